"""Whole daemons where no datagram joins two hosts: through others, back again, and through NATs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.nat import put_behind_nat
from bench.traffic import Pinger, Pings, ping
from mesh.lab import Lab
from mesh.namespaces import ip_batch, wait_until
from tests.labs.chatter import exchange, listen, talk
from tests.labs.wire import Capture

pytestmark = pytest.mark.root
PASSWORD = ["--password", "correct-horse-battery"]
FILE_BYTES = 6_000_000
INTERVAL_S = 0.01
BROADCAST = "10.32.255.255"


def path(lab: Lab, node: str, other: str) -> dict[str, Any]:
    rows = lab.weft_json(node, "status", "connections")
    return next((row for row in rows if row["nickname"] == other), {"path": None, "reason": None, "via": None})


def is_by(lab: Lab, node: str, other: str, *kinds: str) -> bool:
    return path(lab, node, other)["path"] in kinds


def is_at(lab: Lab, node: str, other: str, address: str) -> bool:
    """Whether frames go straight there."""
    row = path(lab, node, other)
    return bool(row["path"]) and (row["sleeve"] or {}).get("address") == address


def passed_on(lab: Lab, node: str, seconds: float) -> int:
    """How many datagrams a host passes on meanwhile."""

    def counted() -> int:
        return int(lab.weft_json(node, "report")["counters"]["sleeve"].get("relayed-datagrams", 0))

    before = counted()
    time.sleep(seconds)
    return counted() - before


def gap_s(pings: Pings) -> float:
    """The longest time from one ping that was answered to the next."""
    times_s = [pings.sent_s[number] for number in sorted(pings.sent_s) if number not in pings.lost]
    return max(after - before for before, after in pairwise(times_s))


def started(lab: Lab, flags: Sequence[str], targets: dict[str, str]) -> Lab:
    """Daemons on all hosts, each told of one other; containers attached."""
    lab.build()
    lab.launch_all(flags)
    for node, target in targets.items():
        lab.weft(node, ["connect", target])
    wait_until(
        lambda: all(len(lab.weft_json(node, "status", "connections")) == lab.hosts - 1 for node in lab.host_nodes()),
        10,
        "everybody knew everybody",
    )
    for container in lab.container_nodes():
        lab.attach(container)
    return lab


@pytest.mark.parametrize("flags", [PASSWORD, []], ids=["sealed", "clear"])
def test_two_hosts_without_any_way_are_joined_by_a_third(
    make_lab: Callable[..., Lab], tmp_path: Path, flags: list[str]
) -> None:
    """Unicast, broadcast, files; sealed end to end where there is a password; the relay is named with its reason."""
    lab = make_lab(hosts=3, containers=1)
    lab.build()
    lab.cut_pair("h1", "h3")
    lab.launch_all(flags)
    for node in ("h1", "h3"):
        lab.weft(node, ["connect", lab.underlay(2)])
    wait_until(lambda: path(lab, "h1", "h3")["path"] is not None, 10, "they knew each other")
    for container in lab.container_nodes():
        lab.attach(container)
    # Without a password VXLAN is believed in at first, and what goes into it meanwhile is lost.
    wait_until(lambda: not ping(lab, "c1.1", lab.address("c3.1")).lost, 8, "a ping came through")
    for one, other in (("h1", "h3"), ("h3", "h1")):
        wait_until(lambda one=one, other=other: path(lab, one, other)["rtt_ms"], 5, "it is measured")  # type: ignore[misc]
        row = path(lab, one, other)
        assert (row["path"], row["reason"], row["via"]) == ("relay", "no-direct", ["h2"])
        assert row["encrypted"] is bool(flags)
    capture = Capture(lab, "h2", tmp_path)
    with listen(lab, "c3.1") as third, listen(lab, "c2.1") as second:
        with talk(lab, "c1.1", "relaymarker", [lab.address("c3.1"), BROADCAST]):
            time.sleep(2.0)
        heard = [each.stop()[f"relaymarker-udp {BROADCAST}"] for each in (third, second)]
    for each in heard:
        assert len(each) > 100 and set(each.values()) == {1}
    capture.stop()
    assert bool(capture.times(b"relaymarker")) is not bool(flags)
    gave, took = exchange(lab, "c1.1", "c3.1", lab.address("c3.1"), FILE_BYTES, 1)
    assert (gave["back"], took) == (gave["there"], {"there": gave["there"], "missing": 0, "strange": 0})


def test_several_hops_where_one_is_not_enough(make_lab: Callable[..., Lab]) -> None:
    """A chain of four hosts, each of which reaches its neighbours only."""
    lab = make_lab(hosts=4, containers=1)
    lab.build()
    for one, other in (("h1", "h3"), ("h1", "h4"), ("h2", "h4")):
        lab.cut_pair(one, other)
    lab.launch_all(PASSWORD)
    for host in (2, 3, 4):
        lab.weft(f"h{host}", ["connect", lab.underlay(host - 1)])
    wait_until(lambda: path(lab, "h1", "h4")["path"] is not None, 10, "the ends knew each other")
    for container in lab.container_nodes():
        lab.attach(container)
    assert ping(lab, "c1.1", lab.address("c4.1"), wait_s=15).lost == []
    wait_until(lambda: path(lab, "h1", "h4")["via"] == ["h2", "h3"], 5, "both hops are named")
    pinger = Pinger(lab, "c1.1", lab.address("c4.1"), interval_s=INTERVAL_S)
    time.sleep(1.0)
    pings = pinger.stop()
    assert (pings.lost, pings.duplicates) == ([], 0)
    wait_until(lambda: passed_on(lab, "h2", 2.0) == passed_on(lab, "h3", 0.5) == 0, 30, "nothing goes round")
    gave, took = exchange(lab, "c4.1", "c1.1", lab.address("c1.1"), FILE_BYTES, 2)
    assert took == {"there": gave["there"], "missing": 0, "strange": 0}


def test_a_relay_that_dies_is_replaced_within_four_seconds(make_lab: Callable[..., Lab]) -> None:
    """Its worker and its daemon at once."""
    lab = make_lab(hosts=4, containers=1)
    lab.build()
    lab.cut_pair("h1", "h4")
    lab.launch_all(PASSWORD)
    for node in ("h1", "h4"):
        lab.weft(node, ["connect", lab.underlay(2), lab.underlay(3)])
    wait_until(lambda: path(lab, "h1", "h4")["path"] is not None, 10, "they knew each other")
    for container in lab.container_nodes():
        lab.attach(container)
    assert ping(lab, "c1.1", lab.address("c4.1"), wait_s=10).lost == []
    wait_until(lambda: is_by(lab, "h1", "h4", "relay"), 5, "there is a relay")
    (relay,) = path(lab, "h1", "h4")["via"]
    pinger = Pinger(lab, "c1.1", lab.address("c4.1"), interval_s=INTERVAL_S)
    time.sleep(1.0)
    for pid in (lab.daemon_pid(relay), int(lab.weft_json(relay, "report")["counters"]["sleeve"]["pid"])):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    time.sleep(6.0)
    pings = pinger.stop()
    assert gap_s(pings) < 4.0 and pings.duplicates == 0
    assert path(lab, "h1", "h4")["via"] == [{"h2": "h3", "h3": "h2"}[relay]]


@pytest.mark.parametrize("direction", ["both", "there", "back"])
@pytest.mark.parametrize("flags", [PASSWORD, []], ids=["sealed", "clear"])
def test_datagrams_that_stop_passing_cost_seconds_and_their_return_nothing(
    make_lab: Callable[..., Lab], flags: list[str], direction: str
) -> None:
    """In one direction or both, while the links stay up; the faster path is taken again by itself."""
    lab = started(make_lab(hosts=3, containers=1), flags, {"h2": "10.9.0.1", "h3": "10.9.0.2"})
    best = "sleeve" if flags else "vxlan"
    assert ping(lab, "c1.1", lab.address("c3.1"), wait_s=10).lost == []
    wait_until(lambda: is_by(lab, "h1", "h3", best) and is_by(lab, "h3", "h1", best), 5, "they had the best path")
    pinger = Pinger(lab, "c1.1", lab.address("c3.1"), interval_s=INTERVAL_S)
    time.sleep(1.0)
    lab.cut_datagrams("h1", "h3", direction)
    time.sleep(7.0)
    pings = pinger.stop()
    assert gap_s(pings) < (4.0 if flags else 6.0), gap_s(pings)
    assert path(lab, "h1", "h3")["path"] == "relay" == path(lab, "h3", "h1")["path"]
    pinger = Pinger(lab, "c1.1", lab.address("c3.1"), interval_s=INTERVAL_S)
    lab.heal()
    wait_until(lambda: is_by(lab, "h1", "h3", best) and is_by(lab, "h3", "h1", best), 10, "the best path was back")
    time.sleep(1.0)
    pings = pinger.stop()
    assert pings.lost == [] and pings.duplicates == 0
    history = [(row["path"], row["reason"]) for row in lab.weft_json("h1", "report")["history"]]
    assert ("relay", "no-direct") in history


def test_two_behind_nats_reach_each_other_directly(make_lab: Callable[..., Lab]) -> None:
    """With the help of a third that both have dialled; and it reaches both."""
    lab = make_lab(hosts=3, containers=1)
    lab.build()
    put_behind_nat(lab, 1)
    put_behind_nat(lab, 3)
    for node in ("h2", "h1"):
        lab.launch(node, [*PASSWORD, *([lab.underlay(2)] if node != "h2" else [])])
        lab.attach(f"c{node[1]}.1")
    assert ping(lab, "c2.1", lab.address("c1.1"), wait_s=5).lost == []
    begun = time.monotonic()
    lab.launch("h3", [*PASSWORD, lab.underlay(2)])
    lab.attach("c3.1")
    ping(lab, "c1.1", lab.address("c3.1"), wait_s=5)
    first_s = time.monotonic() - begun
    assert first_s < 4.0, "the first frame took too long"
    pinger = Pinger(lab, "c1.1", lab.address("c3.1"), interval_s=INTERVAL_S)
    for one, other, seen in (("h1", "h3", lab.underlay(103)), ("h3", "h1", lab.underlay(101))):
        wait_until(lambda o=one, t=other, s=seen: is_at(lab, o, t, f"{s}:6783"), 5, "it was punched")  # type: ignore[misc]
        assert path(lab, one, other)["path"] == "sleeve"
    time.sleep(1.0)
    pings = pinger.stop()
    assert pings.duplicates == 0 and gap_s(pings) < 1.0
    gave, took = exchange(lab, "c1.1", "c3.1", lab.address("c3.1"), FILE_BYTES, 3)
    assert took == {"there": gave["there"], "missing": 0, "strange": 0}


def test_one_behind_a_nat_works_at_once_in_clear_too(make_lab: Callable[..., Lab]) -> None:
    """VXLAN would not pass, and nobody waits until that is found out."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    put_behind_nat(lab, 1)
    lab.launch("h2", [])
    lab.launch("h1", [lab.underlay(2)])
    for container in lab.container_nodes():
        lab.attach(container)
    assert ping(lab, "c2.1", lab.address("c1.1"), wait_s=2).lost == []
    assert path(lab, "h2", "h1")["reason"] == "nat" == path(lab, "h1", "h2")["reason"]


@pytest.mark.parametrize("flags", [PASSWORD, []], ids=["sealed", "clear"])
def test_a_laptop_that_changes_its_address_is_back_within_three_seconds(
    make_lab: Callable[..., Lab], flags: list[str]
) -> None:
    """In both directions, whoever speaks first."""
    lab = started(make_lab(hosts=3, containers=1), flags, {"h2": "10.9.0.1", "h3": "10.9.0.1"})
    assert ping(lab, "c1.1", lab.address("c3.1"), wait_s=10).lost == []
    pingers = [
        Pinger(lab, "c1.1", lab.address("c3.1"), interval_s=INTERVAL_S),
        Pinger(lab, "c3.1", lab.address("c2.1"), interval_s=INTERVAL_S),
    ]
    time.sleep(1.0)
    ip_batch(["address del 10.9.0.3/24 dev eth0", "address add 10.9.0.77/24 dev eth0"], lab.namespace("h3"))
    time.sleep(5.0)
    for pings in (pinger.stop() for pinger in pingers):
        assert gap_s(pings) < 3.0, gap_s(pings)
