"""What becomes of pairs that talk when their underlay fails or narrows: left quickly, measured, and used again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from bench.traffic import Pinger, Pings, ping
from mesh.lab import Lab
from mesh.namespaces import ip_batch, wait_until
from tests.labs.chatter import exchange

pytestmark = pytest.mark.root

INTERVAL_S = 0.02
SLACK_BYTES = 4
"""A switch made of veths takes that much more than its MTU says: room for a VLAN tag."""
LEFT_S = 4.5
"""A look each second at who talks, three questions, a report to the kernel, and a busy machine."""


def row(lab: Lab, node: str, other: str) -> Any:
    rows = lab.weft_json(node, "status", "connections")
    return next((each for each in rows if each["nickname"] == other), {"path": None, "reason": None, "path_mtu": None})


def is_best(lab: Lab, node: str, other: str) -> bool:
    found = row(lab, node, other)
    return (found["path"], found["reason"]) == ("vxlan", "best")


def gap_s(pings: Pings) -> float:
    """The longest time from one ping that was answered to the next."""
    times_s = [pings.sent_s[number] for number in sorted(pings.sent_s) if number not in pings.lost]
    return max(after - before for before, after in pairwise(times_s))


def mtu_of(lab: Lab, node: str, device: str = "ethwe") -> int:
    words = lab.run(node, ["ip", "-o", "link", "show", device]).stdout.split()
    return int(words[words.index("mtu") + 1])


def passes(lab: Lab, node: str, address: str, size: int) -> bool:
    command = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - 28), address]
    return lab.run(node, command, check=False).returncode == 0


@contextmanager
def blocked(lab: Lab, node: str, rule: str) -> Iterator[None]:
    """Drop at a host's input, for so long."""
    lab.run(node, ["nft", f"add table inet wall; add chain inet wall in {{ type filter hook input priority 0; }};"
                          f"add rule inet wall in {rule} drop"])  # fmt: skip
    try:
        yield
    finally:
        lab.run(node, ["nft", "delete table inet wall"])


def up(lab: Lab) -> None:
    """All of it over IPv4 alone, so that there is one path by VXLAN."""
    lab.build()
    for node in lab.host_nodes():
        lab.run(node, ["ip", "-6", "address", "flush", "dev", "eth0"])
    lab.launch_all()
    for node in lab.host_nodes()[1:]:
        lab.weft(node, ["connect", lab.underlay(1)])
    lab.wait_connected()
    for container in lab.container_nodes():
        lab.attach(container)


@pytest.fixture(scope="module")
def pair(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, containers=1)
    up(lab)
    return lab


# Blocked


@pytest.mark.parametrize("walls", [["h1"], ["h2"], ["h1", "h2"]])
def test_a_pair_that_talks_leaves_a_blocked_path_within_seconds(pair: Lab, walls: list[str]) -> None:
    """In one direction or both; both sides leave, say why and when, and come back."""
    assert ping(pair, "c1.1", pair.address("c2.1"), wait_s=3).lost == []
    for node, other in (("h1", "h2"), ("h2", "h1")):
        wait_until(lambda n=node, o=other: is_best(pair, n, o), 15, "VXLAN was used")  # type: ignore[misc]
    pinger = Pinger(pair, "c1.1", pair.address("c2.1"), interval_s=INTERVAL_S)
    time.sleep(3.0)
    begun = time.time()
    for node in walls:
        pair.run(node, ["nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; };"
                               "add rule inet wall in udp dport 6784 drop"])  # fmt: skip
    try:
        for node, other in (("h1", "h2"), ("h2", "h1")):
            wait_until(lambda n=node, o=other: row(pair, n, o)["path"] == "sleeve", 10, "it was left")  # type: ignore[misc]
            found = row(pair, node, other)
            assert found["reason"] == "vxlan-silent"
            assert found["since"] - begun <= LEFT_S
        time.sleep(1.0)
    finally:
        for node in walls:
            pair.run(node, ["nft", "delete table inet wall"])
    for node, other in (("h1", "h2"), ("h2", "h1")):
        wait_until(lambda n=node, o=other: is_best(pair, n, o), 15, "VXLAN was used again")  # type: ignore[misc]
    seen = pinger.stop()
    assert gap_s(seen) <= LEFT_S
    changes = [each["path"] for each in pair.weft_json("h1", "report")["history"] if each["at"] >= begun]
    assert changes == ["sleeve", "vxlan"]


def test_who_begins_to_talk_over_a_dead_path_is_moved_soon(pair: Lab) -> None:
    """Also a path on which only large frames are lost: the reason says so, and the sleeve takes them."""
    large = "udp dport 6784 meta length > 1400"
    with blocked(pair, "h2", large), blocked(pair, "h1", large):
        assert ping(pair, "c1.1", pair.address("c2.1"), wait_s=3).lost == []
        gave, took = exchange(pair, "c1.1", "c2.1", pair.address("c2.1"), 3_000_000, 1)
        assert (gave["back"], took["there"]) == (gave["there"], gave["there"])


# Narrow


def test_a_switch_that_swallows_large_frames_shrinks_the_network(make_lab: Callable[..., Lab]) -> None:
    """The hosts believe in 1500, the wire takes 1400: VXLAN is left, measured, and used again at what passes; inside
    running containers too. What was found outlives a restart, and a wire that got wider is used after a launch."""
    lab = make_lab(hosts=2, containers=1)
    up(lab)
    wait_until(lambda: row(lab, "h1", "h2")["path_mtu"] == 1450, 10, "the path was measured")
    pinger = Pinger(lab, "c1.1", lab.address("c2.1"), interval_s=INTERVAL_S)
    time.sleep(2.0)
    ip_batch(["link set dev h2 mtu 1400"], lab.namespace("hub"))
    for container in lab.container_nodes():
        wait_until(lambda c=container: mtu_of(lab, c) == 1350 + SLACK_BYTES, 10, f"{container} had shrunk")  # type: ignore[misc]
    for node, other in (("h1", "h2"), ("h2", "h1")):
        wait_until(lambda n=node, o=other: is_best(lab, n, o), 10, "VXLAN was used again")  # type: ignore[misc]
        wait_until(lambda n=node, o=other: row(lab, n, o)["path_mtu"] == 1354, 10, "both have measured")  # type: ignore[misc]
        assert row(lab, node, other)["mtu"] == 1354
    assert passes(lab, "c1.1", lab.address("c2.1"), 1354)
    assert len(pinger.stop().lost) <= 2
    gave, took = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), 3_000_000, 1)
    assert (gave["back"], took["there"]) == (gave["there"], gave["there"])

    lab.weft("h1", ["stop"])
    lab.launch("h1")
    wait_until(lambda: is_best(lab, "h1", "h2"), 15, "h1 was back")
    time.sleep(3.0)
    assert [mtu_of(lab, node) for node in lab.container_nodes()] == [1354, 1354]
    history = lab.weft_json("h2", "report")["history"]
    assert "vxlan-silent" not in {each["reason"] for each in history}, history

    ip_batch(["link set dev h2 mtu 1500"], lab.namespace("hub"))
    lab.weft("h1", ["stop"])
    lab.launch("h1")
    for container in lab.container_nodes():
        wait_until(lambda c=container: mtu_of(lab, c) == 1450, 20, f"{container} had grown")  # type: ignore[misc]
    assert passes(lab, "c1.1", lab.address("c2.1"), 1450)


def test_a_path_below_what_ipv6_needs_leaves_the_network_as_it_is(make_lab: Callable[..., Lab]) -> None:
    """One bad pair does not make all slow: it stays on the sleeve, which splits."""
    lab = make_lab(hosts=3, containers=1)
    up(lab)
    for node in ("h1", "h2"):
        other = "10.9.0.2" if node == "h1" else "10.9.0.1"
        rule = f"ip saddr {other} udp dport 6784 meta length > 1200"
        lab.run(node, ["nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; };"
                              f"add rule inet wall in {rule} drop"])  # fmt: skip
    pinger = Pinger(lab, "c1.1", lab.address("c2.1"), interval_s=INTERVAL_S)
    wait_until(lambda: row(lab, "h1", "h2")["reason"] == "vxlan-mtu", 10, "it was found")
    wait_until(lambda: row(lab, "h1", "h2")["path_mtu"] == 1150, 10, "it was measured")
    time.sleep(3.0)
    assert row(lab, "h1", "h2")["path"] == "sleeve"
    assert [mtu_of(lab, node) for node in lab.container_nodes()] == [1450] * 3
    assert is_best(lab, "h1", "h3") and is_best(lab, "h2", "h3")
    assert passes(lab, "c1.1", lab.address("c2.1"), 1450)
    pinger.stop()


def test_a_router_that_cuts_large_packets_shrinks_the_network_without_a_break(make_lab: Callable[..., Lab]) -> None:
    """Two routers with 1400 between them: VXLAN in fragments works and is slow, so it is measured and not left."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    route_through_1400(lab)
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    lab.wait_connected()
    for container in lab.container_nodes():
        lab.attach(container)
    for container in lab.container_nodes():
        wait_until(lambda c=container: mtu_of(lab, c) == 1350, 15, f"{container} had shrunk")  # type: ignore[misc]
    assert [each["path"] for each in lab.weft_json("h1", "report")["history"]][-1] == "vxlan"
    assert is_best(lab, "h1", "h2") and is_best(lab, "h2", "h1")
    assert "sleeve" not in {each["path"] for each in lab.weft_json("h2", "report")["history"]}
    assert passes(lab, "c1.1", lab.address("c2.1"), 1350)


def route_through_1400(lab: Lab) -> None:
    """h1 on the hub, then one router, a wire of 1400 bytes, another router, and h2 behind that."""
    lab.add_namespaces(["r1", "r2"])
    hub, one, two, h1, h2 = (lab.namespace(node) for node in ("hub", "r1", "r2", "h1", "h2"))
    ip_batch([f"link add r1 type veth peer name eth0 netns {one}", "link set r1 master hub up", "link del h2"], hub)
    ip_batch(
        [
            f"link add wire mtu 1400 type veth peer name wire mtu 1400 netns {two}",
            "address add 10.9.0.254/24 dev eth0",
            "address add 10.99.0.1/30 dev wire",
            "link set eth0 up",
            "link set wire up",
            "route add 10.9.1.0/24 via 10.99.0.2",
        ],
        one,
    )
    ip_batch(
        [
            f"link add eth0 type veth peer name eth0 netns {h2}",
            "address add 10.9.1.254/24 dev eth0",
            "address add 10.99.0.2/30 dev wire",
            "link set eth0 up",
            "link set wire up",
            "route add 10.9.0.0/24 via 10.99.0.1",
        ],
        two,
    )
    ip_batch(["address add 10.9.1.2/24 dev eth0", "link set eth0 up", "route add default via 10.9.1.254"], h2)
    ip_batch(["route add default via 10.9.0.254"], h1)
    for node in ("r1", "r2"):
        lab.run(node, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])


def test_jumbo_hosts_with_a_narrow_middle_meet_at_what_passes(make_lab: Callable[..., Lab]) -> None:
    """9000 everywhere but on one wire, which takes 1500: found at once, all shrink, nobody leaves VXLAN for long."""
    lab = make_lab(hosts=3, containers=1, mtu=9000)
    lab.build()
    ip_batch(["link set dev h3 mtu 1500"], lab.namespace("hub"))
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    wait_until(lambda: lab.connected_peers("h2") == 1 and lab.connected_peers("h1") == 1, 15, "h1 and h2 met")
    for container in ("c1.1", "c2.1"):
        lab.attach(container)
    assert passes(lab, "c1.1", lab.address("c2.1"), 8950)
    lab.launch("h3", [lab.underlay(1)])
    lab.attach("c3.1")
    for container in lab.container_nodes():
        wait_until(lambda c=container: mtu_of(lab, c) == 1450 + SLACK_BYTES, 20, f"{container} had shrunk")  # type: ignore[misc]
    for node, other in (("h1", "h3"), ("h3", "h2"), ("h1", "h2")):
        wait_until(lambda n=node, o=other: is_best(lab, n, o), 15, "VXLAN was used")  # type: ignore[misc]
    for other, size in (("h2", 8950), ("h3", 1454)):
        wait_until(lambda o=other, s=size: row(lab, "h1", o)["path_mtu"] == s, 10, "it was measured")  # type: ignore[misc]
    assert passes(lab, "c3.1", lab.address("c1.1"), 1450)


# The sleeve


def test_the_sleeve_survives_an_underlay_that_swallows_what_is_above_700_bytes(make_lab: Callable[..., Lab]) -> None:
    """Without a word, in both directions: containers exchange packets of 1400 bytes and TCP all the same."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    wall = "add chain bridge weftlab narrow { type filter hook forward priority 1; };"
    lab.run("hub", ["nft", f"{wall} add rule bridge weftlab narrow meta l4proto udp udp length > 700 drop"])
    lab.launch("h1", ["--password", "correct-horse-battery"])
    lab.launch("h2", ["--password", "correct-horse-battery", lab.underlay(1)])
    lab.wait_connected()
    for container in lab.container_nodes():
        lab.attach(container)
    wait_until(lambda: passes(lab, "c1.1", lab.address("c2.1"), 1400), 15, "large packets passed")
    gave, took = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), 3_000_000, 1)
    assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})
    talk = lab.popen("c1.1", ["ping", "-n", "-i", "0.5", lab.address("c2.1")])  # sizes are tried while a path is in use
    wait_until(lambda: 660 <= row(lab, "h1", "h2")["sleeve"]["datagram_bytes"] <= 692, 20, "the best size was found")
    talk.terminate()
    talk.communicate()
