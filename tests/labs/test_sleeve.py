"""The sleeve under whole daemons: what dies is back, what moves loses nothing, what is switched off is never missed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from bench.traffic import Pinger, Pings, ping
from mesh.lab import Lab
from mesh.namespaces import ip_batch, wait_until
from tests.labs.chatter import exchange, listen, talk

pytestmark = pytest.mark.root

PASSWORD, WRONG = "correct-horse-battery", "incorrect-donkey-staple"
FILE_BYTES = 6_000_000
BROADCAST = "10.32.255.255"
INTERVAL_S = 0.01

HIDE_PROBES = (
    "add table inet probes; add chain inet probes in { type filter hook input priority 0; };"
    "add rule inet probes in udp dport 6784 @th,224,16 0x88b5 drop"
)
"""Frames of ethertype 0x88B5 behind outer UDP, VXLAN and two MACs: the probes go, everything else still comes."""


@pytest.fixture(scope="module")
def sealed(make_lab: Callable[..., Lab]) -> Lab:
    """Three hosts under one password: for tests that leave it as they found it."""
    lab = make_lab(hosts=3, containers=1)
    lab.up(["--password", PASSWORD])
    return lab


@pytest.fixture(scope="module")
def clear(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts without a password."""
    lab = make_lab(hosts=2, containers=1)
    lab.up()
    return lab


def row(lab: Lab, node: str, other: str) -> Any:
    rows = lab.weft_json(node, "status", "connections")
    return next((each for each in rows if each["nickname"] == other), {"path": None, "reason": None, "sleeve": None})


def worker_pid(lab: Lab, node: str) -> int:
    return int(lab.weft_json(node, "report")["counters"]["sleeve"]["pid"])


def relaunch(lab: Lab, node: str, *flags: str) -> None:
    lab.weft(node, ["stop"])
    lab.launch(node, flags)
    wait_until(lambda: is_well(lab, node), 10, f"{node} had a path to all others again")


def is_well(lab: Lab, node: str) -> bool:
    rows = lab.weft_json(node, "status", "connections")
    return len(rows) == lab.hosts - 1 and all(each["link"] and each["path"] != "none" for each in rows)


def gap_s(pings: Pings) -> float:
    """The longest time from one ping that was answered to the next."""
    times_s = [pings.sent_s[number] for number in sorted(pings.sent_s)]
    return max(after - before for before, after in pairwise(times_s))


def interface(lab: Lab, container: str) -> str:
    return lab.run(container, ["ip", "-o", "link", "show", "ethwe"]).stdout


# Whatever dies or is started anew.


def test_a_killed_worker_is_back_within_a_second(sealed: Lab) -> None:
    """In both directions; links, containers and the daemon are as they were."""
    assert ping(sealed, "c1.1", sealed.address("c2.1"), wait_s=3).lost == []
    before = [interface(sealed, "c1.1"), sealed.daemon_pid("h1"), row(sealed, "h1", "h2")["since"]]
    there = Pinger(sealed, "c1.1", sealed.address("c2.1"), interval_s=INTERVAL_S)
    back = Pinger(sealed, "c3.1", sealed.address6("c1.1"), interval_s=INTERVAL_S)
    time.sleep(0.5)
    pid = worker_pid(sealed, "h1")
    os.kill(pid, signal.SIGKILL)
    time.sleep(2.0)
    for seen in (there.stop(), back.stop()):
        assert seen.sent > 100 and seen.duplicates == 0
        assert gap_s(seen) <= 1.0
    assert worker_pid(sealed, "h1") != pid
    assert [interface(sealed, "c1.1"), sealed.daemon_pid("h1"), row(sealed, "h1", "h2")["since"]] == before
    assert row(sealed, "h1", "h2")["link"] is True


@pytest.mark.parametrize("end", ["stop", "kill -9"])
def test_a_restarted_daemon_finds_its_worker_at_work(sealed: Lab, end: str) -> None:
    """No packet is lost, neither while there is no daemon nor when there is one again."""
    for container in ("c2.1", "c3.1"):
        assert ping(sealed, "c1.1", sealed.address(container), wait_s=3).lost == []
    pid = worker_pid(sealed, "h1")
    pingers = [
        Pinger(sealed, "c1.1", sealed.address("c2.1"), interval_s=INTERVAL_S),
        Pinger(sealed, "c3.1", sealed.address6("c1.1"), interval_s=INTERVAL_S),
    ]
    if end == "stop":
        sealed.weft("h1", ["stop"])
    else:
        daemon = sealed.daemon_pid("h1")
        assert daemon is not None
        os.kill(daemon, signal.SIGKILL)
    time.sleep(0.5)
    sealed.launch("h1", ["--password", PASSWORD])
    wait_until(lambda: is_well(sealed, "h1"), 10, "h1 was in the mesh again")
    assert worker_pid(sealed, "h1") == pid
    seen = [pinger.stop() for pinger in pingers]
    assert [pings.lost for pings in seen] == [[], []]
    assert all(pings.sent > 40 and pings.duplicates == 0 for pings in seen)


# Three hosts.


def test_a_broadcast_reaches_every_host_once(sealed: Lab) -> None:
    """And only once: nothing is sent on by those that it reaches."""
    with listen(sealed, "c2.1") as second, listen(sealed, "c3.1") as third:
        with talk(sealed, "c1.1", "all", [BROADCAST]):
            time.sleep(0.5)
        heard = [each.stop()[f"all-udp {BROADCAST}"] for each in (second, third)]
    for each in heard:
        assert len(each) > 50 and set(each.values()) == {1}


def test_a_host_with_another_password_is_alone_and_hurts_nobody(sealed: Lab) -> None:
    """The others lose nothing; when it has the right password again, it is one of them again."""
    for container in ("c2.1", "c3.1"):
        assert ping(sealed, "c1.1", sealed.address(container), wait_s=3).lost == []
    pinger = Pinger(sealed, "c1.1", sealed.address("c2.1"), interval_s=INTERVAL_S)
    sealed.weft("h3", ["stop"])
    sealed.launch("h3", ["--password", WRONG])
    try:
        assert ping(sealed, "c1.1", sealed.address("c3.1"), count=3).times_ms == {}
        assert row(sealed, "h1", "h3")["reason"] in ("away", "silent")
    finally:
        relaunch(sealed, "h3", "--password", PASSWORD)
    wait_until(lambda: bool(ping(sealed, "c1.1", sealed.address("c3.1")).times_ms), 5, "c3.1 was reached again")
    assert (row(sealed, "h1", "h3")["path"], row(sealed, "h1", "h3")["link"]) == ("sleeve", True)
    seen = pinger.stop()
    assert seen.lost == [] and seen.duplicates == 0


def test_a_host_that_moves_takes_its_traffic_along(sealed: Lab) -> None:
    """Another address on the underlay, both families at once: its next record says where it is."""
    assert ping(sealed, "c3.1", sealed.address("c1.1"), wait_s=3).lost == []
    pinger = Pinger(sealed, "c3.1", sealed.address("c1.1"), interval_s=INTERVAL_S)
    time.sleep(0.3)
    host = sealed.namespace("h3")
    old, new = ("10.9.0.3/24", "fd00:9::3/64"), ("10.9.0.33/24", "fd00:9::33/64")
    try:
        _move(host, old, new)
        time.sleep(1.0)
        seen = pinger.stop()
        assert seen.sent > 50 and gap_s(seen) <= 0.2
        wait_until(
            lambda: row(sealed, "h1", "h3")["sleeve"]["address"] in ("10.9.0.33:6783", "[fd00:9::33]:6783"),
            3,
            "h1 saw it move",
        )
    finally:
        _move(host, new, old)
    wait_until(lambda: is_well(sealed, "h3"), 15, "h3 was well again")


def _move(host: str, old: tuple[str, str], new: tuple[str, str]) -> None:
    deletions = [f"address del {address} dev eth0" for address in old]
    ip_batch(
        [*deletions, *(f"address add {address} dev eth0{' nodad' if ':' in address else ''}" for address in new)], host
    )


# From VXLAN to the sleeve, and back.


def test_a_path_that_moves_loses_nothing_and_doubles_nothing(clear: Lab) -> None:
    """Only probes are lost, so whatever else is missing or comes twice is the move's own doing."""
    assert ping(clear, "c1.1", clear.address("c2.1"), wait_s=3).lost == []
    pingers = [
        Pinger(clear, "c1.1", clear.address("c2.1"), interval_s=INTERVAL_S),
        Pinger(clear, "c2.1", clear.address6("c1.1"), interval_s=INTERVAL_S),
    ]
    with listen(clear, "c1.1") as first, listen(clear, "c2.1") as second:
        addresses = (BROADCAST, clear.address("c2.1")), (BROADCAST, clear.address("c1.1"))
        with talk(clear, "c1.1", "one", addresses[0]), talk(clear, "c2.1", "two", addresses[1]):
            for node in clear.host_nodes():
                clear.run(node, ["nft", HIDE_PROBES])
            for node, other in (("h1", "h2"), ("h2", "h1")):
                wait_until(lambda n=node, o=other: row(clear, n, o)["reason"] == "vxlan-silent", 10, "it moved")  # type: ignore[misc]
                assert row(clear, node, other)["path"] == "sleeve"
            for node in clear.host_nodes():
                clear.run(node, ["nft", "delete table inet probes"])
            for node, other in (("h1", "h2"), ("h2", "h1")):
                wait_until(lambda n=node, o=other: row(clear, n, o)["path"] == "vxlan", 10, "it moved back")  # type: ignore[misc]
            time.sleep(0.3)
        heard = {**first.stop(), **second.stop()}
    for pinger in pingers:
        seen = pinger.stop()
        assert seen.sent > 200 and len(seen.lost) <= 2 and seen.duplicates == 0
    for what in (
        "one-udp " + addresses[0][1],
        "two-udp " + addresses[1][1],
        f"one-udp {BROADCAST}",
        f"two-udp {BROADCAST}",
    ):
        numbers = {int(number): times for number, times in heard[what].items()}
        missing = set(range(min(numbers), max(numbers))) - numbers.keys()
        doubled = {number: times for number, times in numbers.items() if times > 1}
        assert len(numbers) > 200
        assert len(missing) <= 4, f"{what}: lost"
        assert len(doubled) <= 10 and all(times == 2 for times in doubled.values()), f"{what}: {doubled}"


def test_without_vxlan_on_one_side_both_use_the_sleeve(clear: Lab) -> None:
    """In clear, as the row says, and back by VXLAN when it may again."""
    relaunch(clear, "h1", "--no-vxlan")
    for node, other in (("h1", "h2"), ("h2", "h1")):
        wait_until(lambda n=node, o=other: row(clear, n, o)["path"] == "sleeve", 5, "both used the sleeve")  # type: ignore[misc]
        assert (row(clear, node, other)["reason"], row(clear, node, other)["encrypted"]) == ("no-vxlan", False)
    gave, took = exchange(clear, "c1.1", "c2.1", clear.address("c2.1"), FILE_BYTES, 1)
    assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})
    relaunch(clear, "h1")
    wait_until(lambda: row(clear, "h2", "h1")["path"] == "vxlan", 5, "VXLAN was back")


# Offloads.


OFF = ("tap", "udp-segment", "udp-gro", "tap,udp-segment,udp-gro")


@pytest.mark.parametrize("off", OFF)
def test_whatever_is_switched_off_what_arrives_is_intact(sealed: Lab, off: str) -> None:
    """On one side only, so the other hands over what this side cannot take; both families, both directions."""
    relaunch(sealed, "h1", "--password", PASSWORD, "--without-offload", off)
    for number, address in enumerate((sealed.address("c2.1"), sealed.address6("c2.1"))):
        gave, took = exchange(sealed, "c1.1", "c2.1", address, FILE_BYTES, number)
        assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})


def test_with_nothing_on_either_side_it_is_the_same(sealed: Lab) -> None:
    """Plain frames, plain datagrams."""
    for node in ("h1", "h2"):
        relaunch(sealed, node, "--password", PASSWORD, "--without-offload", OFF[-1])
    gave, took = exchange(sealed, "c1.1", "c2.1", sealed.address("c2.1"), FILE_BYTES, 9)
    assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})
    assert "udp-segment" in row(sealed, "h1", "h2")["sleeve"]["offloads_off"]


# An underlay of IPv6 alone.


def test_over_ipv6_alone_the_sleeve_seals_and_carries(make_lab: Callable[..., Lab]) -> None:
    """Hosts that have no IPv4 address at all."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    for node in lab.host_nodes():
        lab.run(node, ["ip", "-4", "address", "flush", "dev", "eth0"])
    lab.launch("h1", ["--password", PASSWORD])
    lab.launch("h2", ["--password", PASSWORD, lab.underlay6(1)])
    wait_until(lambda: is_well(lab, "h1") and is_well(lab, "h2"), 10, "they had a path")
    for container in lab.container_nodes():
        lab.attach(container)
    gave, took = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), FILE_BYTES, 1)
    assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})
    assert row(lab, "h1", "h2")["sleeve"]["address"] == f"[{lab.underlay6(2)}]:6783"
