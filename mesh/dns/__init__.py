"""Names of containers, answered on every host from what it knows: the DNS server and all that belongs to it."""
