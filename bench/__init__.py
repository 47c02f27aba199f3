"""Figures about Weft, each beside what it is compared with. `python -m bench NAME` runs one, `all` runs every one."""
