"""TCP through one host that passes it on, beside TCP straight ahead, on the same three hosts.

    c1.1 - h1 -------- h2 - c2.1       straight: from h1 to h2
              x        |
    c3.1 - h3 ---------+               through one: from h1 to h3 by h2, as no datagram passes between h1 and h3

The hub is a bridge that hands packets on whole, as a veth does. Knows labs, streams and what daemons tell of their
paths. The one idea needed to read it: both streams start at the same container and take turns, so a ratio is of the
same minute, of the same sender and of the same hop.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.harness import interleave, say
from bench.outage import RELAY, Pair
from bench.traffic import IperfServer
from mesh.lab import Lab
from mesh.namespaces import LabError

STRAIGHT, BY_ONE = "straight", "through one"
SLEEVE = "sleeve"
HOP = "h2"
CLIENT = "c1.1"
TOLD = ("loss", "datagrams", "parity")


def measure(lab: Lab, rounds: int, seconds: int) -> dict[str, Any]:
    """Mbit/s of each round, by shape. The lab is up, with a password."""
    straight, by_one = Pair(lab, "h1", HOP), Pair(lab, "h1", "h3")
    lab.cut_datagrams("h1", "h3")
    straight.make_ready(SLEEVE)
    by_one.make_ready(RELAY)
    with IperfServer(lab, "c2.1") as near, IperfServer(lab, "c3.1") as far:
        shapes = {
            STRAIGHT: partial(_run, straight, near, seconds),
            BY_ONE: partial(_run, by_one, far, seconds),
        }
        before = _received(lab)
        taken = interleave(shapes, rounds, lambda line: say(f"[relay-tcp] {line}"))
        after = _received(lab)
    for pair, path in ((straight, SLEEVE), (by_one, RELAY)):
        for row in pair.ends():
            if row["path"] != path or not row["encrypted"] or row["via"] not in ([], [HOP]):
                raise LabError(f"{pair.one} and {pair.other} ended by {row['path']} via {row['via']}, not by {path}")
    packets, size = (after[index] - before[index] for index in (0, 1))
    return {
        "mbit_s": {name: [mbit_s for mbit_s, _ in runs] for name, runs in taken.items()},
        "sender": {name: [state for _, state in runs] for name, runs in taken.items()},
        "mean_packet_bytes": round(size / max(1, packets)),
    }


def _run(pair: Pair, server: IperfServer, seconds: int) -> tuple[float, dict[str, Any]]:
    """Mbit/s, and how the sender sends at the end of it: what it has made of the way."""
    mbit_s = _stream(server, pair.lab.address(f"c{pair.other[1:]}.1"), seconds)
    state = pair.ends()[0]["sleeve"]
    return mbit_s, {key: state[key] for key in TOLD}


def _stream(server: IperfServer, address: str, seconds: int) -> float:
    """Mbit/s; one that fails is tried once more, for a server is busy until it has seen the last one's end."""
    try:
        return server.measure(CLIENT, address, seconds)
    except LabError as error:
        say(f"[relay-tcp] once more: {error}")
        server.restart()
        return server.measure(CLIENT, address, seconds)


def _received(lab: Lab) -> tuple[int, int]:
    """Packets and bytes that have reached the hosts; one that was handed on whole counts as one."""
    packets = size = 0
    for node in lab.host_nodes():
        for line in lab.run(node, ["cat", "/proc/net/dev"]).stdout.splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == "eth0":
                size += int(rest.split()[0])
                packets += int(rest.split()[1])
    return packets, size
