"""What hosts say to each other over UDP when no container says anything: counted on the wire, and computed for more.

A mesh of a hundred hosts does not fit a small machine, so a small one is measured, and the questions over VXLAN, the
part that depends on the number of peers, are asked by the real thing under a clock that is only a number. The one idea
needed to read it: what is computed for the small mesh stands beside what was counted there, so the computation is
tested by each run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench import probes
from bench.harness import say
from dataplane.probe import ETHERNET_HEADER_BYTES
from gossip.routes import links_wanted
from mesh.lab import Lab

PORTS: Mapping[str, int] = {"sleeve": 6783, "vxlan": 6784}
SETTLE_S = 15.0
WATCH_S = 30.0
MANY_HOSTS = 100
_COUNTING = """\
table bridge benchquiet {{
{counters}
 chain forward {{
  type filter hook forward priority 0; policy accept;
{rules}
 }}
}}
"""


@dataclass(frozen=True, slots=True)
class Idle:
    """One mesh at rest, in bytes a second of Ethernet frames without preamble and checksum."""

    hosts: int
    links: int
    """Pairs of hosts with a control link."""
    sleeve_b_s: float
    vxlan_b_s: float

    @property
    def pairs(self) -> int:
        return self.hosts * (self.hosts - 1) // 2

    def per_peer_b_s(self) -> dict[str, float]:
        """What one pair of hosts says, both ways together: the same as what a host sends to and hears from one peer."""
        found = {"sleeve": self.sleeve_b_s / self.pairs, "vxlan": self.vxlan_b_s / self.pairs}
        return {**found, "both": sum(found.values())}


def watch(lab: Lab, seconds: float = WATCH_S) -> Idle:
    """Count in the hub what crosses it for the two ports."""
    counters = "\n".join(f" counter {name} {{ }}" for name in PORTS)
    rules = "\n".join(f"  udp dport {port} counter name {name}" for name, port in PORTS.items())
    time.sleep(SETTLE_S)
    linked = sum(row["link"] for node in lab.host_nodes() for row in lab.weft_json(node, "status", "connections"))
    time.sleep(1.0)  # after so many commands
    say(f"watching for {seconds:g} s")
    lab.run("hub", ["nft", "-f", "-"], stdin=_COUNTING.format(counters=counters, rules=rules))
    start = time.monotonic()
    time.sleep(seconds)
    said = lab.run("hub", ["nft", "list", "table", "bridge", "benchquiet"]).stdout
    passed_s = time.monotonic() - start
    found = counted(said)
    return Idle(lab.hosts, linked // 2, found["sleeve"] / passed_s, found["vxlan"] / passed_s)


def counted(said: str) -> dict[str, int]:
    """Bytes of Ethernet frames by counter; nft counts from the IP header on."""
    shown = re.findall(r"counter (\w+) \{\s*packets (\d+) bytes (\d+)", said)
    return {name: int(size) + ETHERNET_HEADER_BYTES * int(packets) for name, packets, size in shown}


def computed(seen: Idle, hosts: int) -> dict[str, float]:
    """What one peer costs in a larger mesh: sleeves speak along links, of which a host has the most that it wants."""
    link_b_s = seen.sleeve_b_s / max(1, seen.links)
    sleeve_b_s = link_b_s * min(links_wanted(hosts)[1], hosts - 1) / (hosts - 1)
    vxlan_b_s = vxlan_per_peer_b_s(hosts)
    return {"sleeve": sleeve_b_s, "vxlan": vxlan_b_s, "both": sleeve_b_s + vxlan_b_s}


def vxlan_per_peer_b_s(hosts: int) -> float:
    """The probes of one pair of hosts, questions and answers of both, where nobody talks and everybody answers."""
    return probes.simulate(hosts - 1, 0)[1] / (hosts - 1)


def figures(seen: Idle, hosts: int = MANY_HOSTS) -> dict[str, Any]:
    """For the JSON: measured, the same computed, and many more computed; bytes a second to and from one peer."""
    return {
        "measured": {**asdict(seen), "per_peer_b_s": seen.per_peer_b_s()},
        "computed_same": computed(seen, seen.hosts),
        "computed_hosts": hosts,
        "computed": computed(seen, hosts),
    }
