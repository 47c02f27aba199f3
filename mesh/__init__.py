"""The router: endpoints, attach, daemon, API, command line. Kept empty: each command waits for what stands here."""
