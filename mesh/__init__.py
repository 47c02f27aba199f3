"""The router: endpoints, attach, daemon, API and command line. Kept empty: every import here is start-up its users feel."""
