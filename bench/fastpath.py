"""Container to container over Weft, beside the same shape built by hand, beside a bare veth pair.

    weft       c1.1 -- bridge -- VXLAN -- eth0 -- hub -- eth0 -- VXLAN -- bridge -- c2.1     made by two daemons
    by hand    the same, by `ip` and `bridge`, with static FDB entries, in a lab of its own
    raw veth   two namespaces and one veth pair: what this machine can do at most

All three stay up during the whole run and take turns.
"""

from __future__ import annotations

import os
import statistics
from functools import partial

from bench.harness import Aim, Result, interleave, median_ratio, percentile, say, spread
from bench.traffic import IperfServer, ping
from mesh.lab import Lab
from mesh.namespaces import LabError, ip_batch

ROUNDS = 10
TCP_SECONDS = 3
PINGS_PER_SECOND = 500
"""For as long as a stream takes."""
PING_INTERVAL_S = 0.002

THROUGHPUT_RATIO_MIN = 0.97
LATENCY_RATIO_MAX = 1.10

_MTU = 1450
_VNI = 7
_PORT = 6784


def run(rounds: int = ROUNDS, seconds: int = TCP_SECONDS) -> Result:
    """Two labs of two hosts, a pair of bare namespaces, rounds of TCP and of pings."""
    result = Result(
        "fastpath",
        "Container to container: Weft, the same by hand, a bare veth pair",
        f"{rounds} interleaved rounds after one warm-up, all shapes up throughout: iperf3 TCP with cubic for "
        f"{seconds} s, then {PINGS_PER_SECOND * seconds} pings at {PING_INTERVAL_S * 1e3:g} ms. Both ends "
        "share the machine's cores. A ratio is the median of the rounds' ratios.",
        ["shape", "TCP Mbit/s, low .. median .. high", "x by hand", "ping median ms", "x by hand", "ping p99 ms"],
    )
    with (
        Lab(f"wb{os.getpid()}w", hosts=2, containers=1) as weft,
        Lab(f"wb{os.getpid()}h", hosts=2, containers=1) as hand,
    ):
        weft.up()
        hand.build()
        build_by_hand(hand)
        _build_raw(hand)
        path = weft.weft_json("h1", "status", "connections")[0]["path"]
        say(f"path of Weft: {path}")
        ends = {
            "weft": (weft, "c1.1", "c2.1", weft.address("c2.1")),
            "by hand": (hand, "c1.1", "c2.1", hand.address("c2.1")),
            "raw veth": (hand, "raw1", "raw2", "10.99.0.2"),
        }
        for name, (lab, client, _, address) in ends.items():
            if ping(lab, client, address, count=3).lost == [1, 2, 3]:
                raise LabError(f"the shape {name!r} carries no ping, so there is nothing to compare")
        tcp = _measure_tcp(ends, rounds, seconds)
        medians, worst = _measure_pings(ends, rounds, PINGS_PER_SECOND * seconds)
    result.figures = {"path": path, "tcp_mbit_s": tcp, "ping_median_ms": medians, "ping_p99_ms": worst}
    for name in ends:
        result.rows.append(
            [
                name,
                spread(tcp[name]),
                f"{median_ratio(tcp[name], tcp['by hand']):.3f}",
                f"{statistics.median(medians[name]):.4f}",
                f"{median_ratio(medians[name], medians['by hand']):.3f}",
                f"{statistics.median(worst[name]):.4f}",
            ]
        )
    result.aims = [
        Aim("TCP over Weft / by hand", median_ratio(tcp["weft"], tcp["by hand"]), THROUGHPUT_RATIO_MIN, at_least=True),
        Aim("ping median over Weft / by hand", median_ratio(medians["weft"], medians["by hand"]), LATENCY_RATIO_MAX),
    ]
    return result


Ends = dict[str, tuple[Lab, str, str, str]]


def _measure_tcp(ends: Ends, rounds: int, seconds: int) -> dict[str, list[float]]:
    servers = {name: IperfServer(lab, server) for name, (lab, _, server, _) in ends.items()}
    with servers["weft"], servers["by hand"], servers["raw veth"]:
        shapes = {
            name: partial(servers[name].measure, client, address, seconds)
            for name, (_, client, _, address) in ends.items()
        }
        return interleave(shapes, rounds, lambda line: say(f"TCP {line}"))


def _measure_pings(ends: Ends, rounds: int, count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    shapes = {
        name: partial(ping, lab, client, address, count=count, interval_s=PING_INTERVAL_S)
        for name, (lab, client, _, address) in ends.items()
    }
    taken = interleave(shapes, rounds, lambda line: say(f"ping {line}"))
    medians, worst = {}, {}
    for name, seen in taken.items():
        times = [list(pings.times_ms.values()) for pings in seen]
        medians[name] = [statistics.median(values) for values in times]
        worst[name] = [percentile(values, 99) for values in times]
    return medians, worst


def build_by_hand(lab: Lab) -> None:
    """What somebody would type: container, veth, bridge, VXLAN, static FDB."""
    for host, other in ((1, 2), (2, 1)):
        node, container = lab.namespace(f"h{host}"), lab.namespace(f"c{host}.1")
        ip_batch(
            [
                f"link add br0 mtu {_MTU} type bridge",
                f"link add vx0 mtu {_MTU} type vxlan id {_VNI} dstport {_PORT} local {lab.underlay(host)} nolearning",
                "link set vx0 master br0 up",
                f"link add vc1 mtu {_MTU} type veth peer name eth0 mtu {_MTU} address {_mac(host)} netns {container}",
                "link set vc1 master br0 up",
                "link set br0 up",
            ],
            node,
        )
        ip_batch(["link set eth0 up", f"address add {lab.address(f'c{host}.1')}/16 dev eth0"], container)
        for entry in (
            ["append", "00:00:00:00:00:00", "dev", "vx0", "dst", lab.underlay(other), "self", "permanent"],
            ["replace", _mac(other), "dev", "vx0", "dst", lab.underlay(other), "self", "static"],
            ["replace", _mac(other), "dev", "vx0", "master", "static"],
        ):
            lab.run(f"h{host}", ["bridge", "fdb", *entry])


def _mac(host: int) -> str:
    return f"02:00:00:00:{host:02x}:01"


def _build_raw(lab: Lab) -> None:
    lab.add_namespaces(["raw1", "raw2"])
    ip_batch(
        [
            f"link add eth0 type veth peer name eth0 netns {lab.namespace('raw2')}",
            "link set eth0 up",
            "address add 10.99.0.1/24 dev eth0",
        ],
        lab.namespace("raw1"),
    )
    ip_batch(["link set eth0 up", "address add 10.99.0.2/24 dev eth0"], lab.namespace("raw2"))
