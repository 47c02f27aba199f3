"""What it costs to know whether VXLAN gets through: probes and bytes a second, simulated and on a wire.

The first is the daemon's own pure core with peers that always answer; both sides ask, so what a host sends and receives
is four times its questions. The second counts the probes of one pair in the switch between two hosts of a lab, silent
and while their containers talk.
"""

from __future__ import annotations

import os
import re
import time
from ipaddress import ip_address
from random import Random

from bench.harness import Aim, Result, say
from bench.traffic import Pinger
from dataplane import probe
from gossip.names import PeerName
from mesh.lab import Lab
from mesh.pathmtu import PathMtus, Way
from mesh.vxlanhealth import VxlanHealth

PEERS = (10, 100, 1000)
ACTIVE = (0, 20)
MTU = 1450
OUTER_BYTES = 14 + 20 + 8 + 8
RTT_S = 0.001
SETTLED_S, WATCHED_S = 300.0, 1500.0
"""Of the simulation; the second is longer than the rarest question's interval."""
LAB_SETTLE_S, LAB_WATCH_S = 6.0, 30.0
IDLE_BYTES_MAX = 200.0
"""A second and peer, at a hundred idle ones."""
PROBES_MAX = 60.0
_COUNTING = """\
table bridge benchprobes {
 chain forward {
  type filter hook forward priority 0; policy accept;
  ether type ip udp dport 6784 @th,224,16 0x88b5 counter
 }
}
"""


def run() -> Result:
    result = Result(
        "probes",
        "What probing VXLAN paths costs",
        f"Simulated: every peer answers; {WATCHED_S:g} s are watched after {SETTLED_S:g} s. Bytes are of questions "
        "and answers in both directions, with outer headers. Counted: one pair of hosts, all probes that cross the "
        f"switch between them in {LAB_WATCH_S:g} s.",
        ["how", "peers", "in use", "questions/s", "B/s", "B/s a peer"],
    )
    for peers in PEERS:
        for active in ACTIVE:
            in_use = min(active, peers)
            asked, size = simulate(peers, in_use)
            _add(result, "simulated", peers, in_use, asked, size)
    with Lab(f"wb{os.getpid()}", hosts=2, containers=1) as lab:
        lab.up()
        for in_use in (0, 1):
            pinger = Pinger(lab, "c1.1", lab.address("c2.1"), interval_s=0.2) if in_use else None
            time.sleep(LAB_SETTLE_S)
            say(f"counting for {LAB_WATCH_S:g} s")
            asked, size = _count(lab)
            _add(result, "counted", 1, in_use, asked, size)
            if pinger is not None:
                pinger.stop()
    idle = result.figures["simulated 100 peers, 0 in use"]["bytes_per_s"] / 100
    most = max(each["questions_per_s"] for each in result.figures.values())
    result.aims = [
        Aim("each of a hundred idle peers", idle, IDLE_BYTES_MAX, " B/s"),
        Aim("questions, however many peers", most, PROBES_MAX, "/s"),
    ]
    return result


def _add(result: Result, how: str, peers: int, in_use: int, asked: float, size: float) -> None:
    result.figures[f"{how} {peers} peers, {in_use} in use"] = {"questions_per_s": asked, "bytes_per_s": size}
    result.rows.append([how, str(peers), str(in_use), f"{asked:.1f}", f"{size:.0f}", f"{size / peers:.1f}"])


def simulate(peers: int, in_use: int, seed: int = 1) -> tuple[float, float]:
    """(questions a second of one host, bytes a second that cross its underlay for probes)."""
    names = [PeerName(number.to_bytes(8, "big")) for number in range(peers)]
    health, mtus = VxlanHealth(Random(seed), {}), PathMtus(Random(seed), {})
    health.watch(names, 0.0)
    health.talk(frozenset(names[:in_use]), 0.0)
    mtus.watch({name: Way(ip_address("10.9.0.2"), MTU) for name in names}, 0.0)
    now, asked, total = 0.0, 0, 0
    while (now := min(due_s for due_s in (health.next_due(), mtus.next_due()) if due_s is not None)) < (
        SETTLED_S + WATCHED_S
    ):
        sizes = []
        for ask in health.due(now):
            sizes.append(MTU if ask.full_size else 0)
            health.answered(ask.peer, ask.nonce, now + RTT_S)
        for measure in mtus.due(now):
            sizes.append(measure.packet_bytes)
            mtus.answered(measure.peer, measure.nonce, now + RTT_S)
        if now >= SETTLED_S:
            asked += len(sizes)
            total += sum(max(probe.MIN_FRAME_BYTES, size + probe.ETHERNET_HEADER_BYTES) + OUTER_BYTES for size in sizes)
    return asked / WATCHED_S, 4 * total / WATCHED_S


def _count(lab: Lab) -> tuple[float, float]:
    """The same for one pair, as the switch saw it: a question in four packets is this host's."""
    lab.run("hub", ["nft", "-f", "-"], stdin=_COUNTING)
    time.sleep(LAB_WATCH_S)
    said = lab.run("hub", ["nft", "list", "table", "bridge", "benchprobes"]).stdout
    lab.run("hub", ["nft", "delete", "table", "bridge", "benchprobes"])
    found = re.search(r"counter packets (\d+) bytes (\d+)", said)
    assert found is not None
    packets, size = int(found[1]), int(found[2])
    return packets / 4 / LAB_WATCH_S, (size + 14 * packets) / LAB_WATCH_S
