"""The kernel drivers: the only code in Weft that talks to Linux."""
