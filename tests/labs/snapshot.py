"""The network of a node as one value, to be compared: what Weft must leave as it found it.

Taken inside the node by a program of its own; knows nothing of what is ours. What changes by itself is left out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mesh.lab import Lab

_SNAPSHOT = """
import json, os, subprocess
def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout
def rows(*argv):
    return json.loads(run(*argv) or "[]")
sysctls = {}
for folder, _, names in os.walk("/proc/sys/net"):
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path) as file:
                sysctls[path] = file.read()
        except OSError:
            pass
links = rows("ip", "-d", "-j", "link")
for link in links:
    link.pop("stats64", None)
print(json.dumps({
    "links": links,
    "addresses": rows("ip", "-j", "address"),
    "routes": [rows("ip", "-j", family, "route", "show", "table", "all") for family in ("-4", "-6")],
    "rules": rows("ip", "-j", "rule"),
    "fdb": run("bridge", "fdb"),
    "nft": run("nft", "-s", "list", "ruleset"),
    "sysctls": sysctls,
}))
"""
_VOLATILE = ("nf_conntrack_count", "/neigh/default/gc_", "flush")


def snapshot(lab: Lab, node: str) -> dict[str, Any]:
    """Devices, addresses, routes, rules, nftables and sysctls of a host or container."""
    taken: dict[str, Any] = json.loads(lab.run(node, [sys.executable, "-c", _SNAPSHOT]).stdout)
    sysctls = taken["sysctls"]
    taken["sysctls"] = {path: value for path, value in sysctls.items() if not any(word in path for word in _VOLATILE)}
    return taken
