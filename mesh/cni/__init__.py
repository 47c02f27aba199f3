"""Weft for container runtimes that speak CNI: the plugin they run, and what the daemon does for it."""
