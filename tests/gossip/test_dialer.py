"""Whom to dial and when, with a clock that is only a number."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.dialer import (
    DELAY_FACTOR,
    DIALS_AT_ONCE,
    FIRST_DELAY_S,
    HEAL_INTERVAL_S,
    PEER_DELAY_MAX_S,
    PEER_DIALS_AT_ONCE,
    SPARE_DIAL_INTERVAL_S,
    TARGET_DELAY_MAX_S,
    Dialer,
    Surroundings,
)
from gossip.names import PeerName
from gossip.peers import AWAY, GONE, LIVE
from gossip.routes import links_wanted
from tests.gossip.actors import address, identity, record

ALONE = Surroundings({}, (), frozenset(), (), ())


def name(number: int) -> PeerName:
    return identity(number).name


def around(
    neighbours: range | list[int] = range(0),
    reachable: range | list[int] | None = None,
    lost: range | list[int] = range(0),
    state: str = LIVE,
    own: tuple[str, ...] = (),
    addresses: tuple[str, ...] | None = None,
) -> Surroundings:
    """A mesh in which these hosts are neighbours, in reach and out of reach."""
    reached = {*neighbours, *(reachable if reachable is not None else ())}
    return Surroundings(
        {
            name(number): record(number, state=state, addresses=(address(number),) if addresses is None else addresses)
            for number in sorted({*reached, *lost})
        },
        [name(number) for number in neighbours],
        frozenset(name(number) for number in reached),
        [name(number) for number in lost],
        own,
    )


def dialer(discovery: bool = False, seed: int = 1) -> Dialer:
    return Dialer(6783, discovery, Random(seed), 0.0)


def keys(dials: list[tuple[str | PeerName, tuple[str, ...]]]) -> list[str | PeerName]:
    return [key for key, _ in dials]


def state(made: Dialer, surroundings: Surroundings, now: float = 0.0) -> str:
    return made.status(surroundings, now)[0].state


# Targets


def test_a_target_is_dialled_at_once_and_not_twice() -> None:
    made = dialer()
    made.connect(["h1"], 0.0)
    assert made.due(ALONE, 0.0) == [("h1", ("h1",))]
    assert state(made, ALONE) == "connecting"
    assert made.due(ALONE, 100.0) == []


@given(st.integers(0, 1000))
def test_delays_grow_to_a_cap_and_are_jittered(seed: int) -> None:
    """Each delay is drawn between half and one and a half times its value, which grows by a factor up to the cap."""
    made = dialer(seed=seed)
    made.connect(["h1"], 0.0)
    now, nominal_s = 0.0, FIRST_DELAY_S
    for _ in range(15):
        assert keys(made.due(ALONE, now)) == ["h1"]
        made.failed("h1", "no answer", now)
        wait_s = made.targets["h1"].next_try - now
        assert 0.5 * nominal_s <= wait_s <= 1.5 * nominal_s
        assert made.due(ALONE, now + wait_s - 1e-6) == []
        assert made.next_due(ALONE) == now + wait_s
        now += wait_s
        nominal_s = min(nominal_s * DELAY_FACTOR, TARGET_DELAY_MAX_S)
    assert nominal_s == TARGET_DELAY_MAX_S


def test_hosts_that_start_together_do_not_dial_together() -> None:
    waits = set()
    for seed in range(20):
        made = dialer(seed=seed)
        made.connect(["h1"], 0.0)
        made.due(ALONE, 0.0)
        made.failed("h1", "no answer", 0.0)
        waits.add(round(made.targets["h1"].next_try, 3))
    assert len(waits) > 15


def test_so_many_targets_are_dialled_at_once_and_no_more() -> None:
    """256 of them wait for their turn, and each gets it."""
    made = dialer()
    targets = [f"h{number:03}" for number in range(256)]
    made.connect(targets, 0.0)
    dialled = []
    for _ in range(1000):
        under_way = keys(made.due(ALONE, 0.0))
        assert len(under_way) <= DIALS_AT_ONCE
        if not under_way:
            break
        for key in under_way:
            made.failed(key, "no answer", 0.0)
        dialled += under_way
    assert sorted(map(str, dialled)) == targets


def test_the_places_are_taken_until_somebody_reports() -> None:
    made = dialer()
    made.connect([f"h{number}" for number in range(5)], 0.0)
    first = keys(made.due(ALONE, 0.0))
    assert len(first) == DIALS_AT_ONCE
    assert made.next_due(ALONE) is None
    made.failed(first[0], "no answer", 0.0)
    assert len(made.due(ALONE, 0.0)) == 1


def test_a_target_that_answers_is_connected_and_forgives_its_error() -> None:
    made = dialer()
    made.connect(["h1"], 0.0)
    made.due(ALONE, 0.0)
    made.failed("h1", "no answer", 0.0)
    assert made.status(ALONE, 0.0)[0].error == "no answer"
    made.succeeded("h1", name(1))
    row = made.status(around([1]), 0.0)[0]
    assert (row.state, row.error, row.next_try_s, row.peer) == ("connected", None, None, name(1))
    assert made.next_due(around([1])) is None


def test_a_lost_link_is_dialled_again_soon() -> None:
    """After half to one and a half times the first delay, if the link had lasted; its earlier failures are forgiven."""
    made = dialer()
    made.connect(["h1"], 0.0)
    for _ in range(8):
        made.due(ALONE, made.targets["h1"].next_try)
        made.failed("h1", "no answer", 0.0)
    made.succeeded("h1", name(1))
    made.targets["h1"].next_try = 0.0
    made.link_lost(name(1), lived_s=11.0, now=100.0)
    assert 100.0 + 0.5 * FIRST_DELAY_S <= made.targets["h1"].next_try <= 100.0 + 1.5 * FIRST_DELAY_S


def test_a_link_that_dies_young_forgives_nothing() -> None:
    """A host that crashes as soon as it is up is not dialled twice a second for ever."""
    made = dialer()
    made.connect(["h1"], 0.0)
    for _ in range(8):
        made.due(ALONE, made.targets["h1"].next_try)
        made.failed("h1", "no answer", 0.0)
    delay_s = made.targets["h1"].delay_s
    made.succeeded("h1", name(1))
    made.link_lost(name(1), lived_s=1.0, now=100.0)
    assert made.targets["h1"].next_try >= 100.0 + 0.5 * delay_s


def test_a_target_that_is_this_very_host_is_not_dialled_again() -> None:
    made = dialer()
    made.connect(["localhost"], 0.0)
    made.due(ALONE, 0.0)
    made.led_to_ourselves("localhost")
    assert state(made, ALONE) == "self"
    assert made.due(ALONE, 1e6) == []
    assert made.next_due(ALONE) is None


def test_a_target_that_refuses_says_so_and_is_tried_again() -> None:
    made = dialer()
    made.connect(["h1"], 0.0)
    made.due(ALONE, 0.0)
    made.failed("h1", "the name is in use", 0.0, refused=True)
    assert state(made, ALONE) == "refused"
    assert keys(made.due(ALONE, 100.0)) == ["h1"]


def test_naming_a_target_again_tries_it_at_once() -> None:
    """Also one that led to ourselves: the name may mean another host by now."""
    made = dialer()
    made.connect(["h1", "localhost"], 0.0)
    made.due(ALONE, 0.0)
    made.failed("h1", "no answer", 0.0)
    made.led_to_ourselves("localhost")
    made.connect(["h1", "localhost"], 0.0)
    assert keys(made.due(ALONE, 0.0)) == ["h1", "localhost"]


def test_a_forgotten_target_is_gone_even_while_it_is_dialled() -> None:
    made = dialer()
    made.connect(["h1"], 0.0)
    made.due(ALONE, 0.0)
    made.forget(["h1", "never named"])
    made.failed("h1", "no answer", 0.0)
    made.succeeded("h1", name(1))
    made.led_to_ourselves("h1")
    assert made.status(ALONE, 0.0) == []
    assert made.due(ALONE, 100.0) == []


# Few links


def test_a_target_in_reach_needs_no_link_once_there_are_enough() -> None:
    """It counts as meshed, by the peer that answered there last or by the address that a peer gives as its own."""
    low, _ = links_wanted(31)
    mesh = around(range(1, low + 1), range(1, 31))
    made = dialer()
    made.connect([address(20), "10.9.0.21", "h22"], 0.0)
    made.targets["h22"].peer = name(22)
    assert {row.target: row.state for row in made.status(mesh, 0.0)} == {
        address(20): "meshed",
        "10.9.0.21": "meshed",
        "h22": "meshed",
    }
    assert made.due(mesh, 0.0) == []
    assert made.next_due(mesh) is None
    fewer = around(range(1, low), range(1, 31))
    assert len(made.due(fewer, 0.0)) == DIALS_AT_ONCE


def test_a_target_out_of_reach_is_dialled_however_many_links_there_are() -> None:
    mesh = around(range(1, 9), range(1, 31), lost=[40])
    made = dialer()
    made.connect(["h40"], 0.0)
    made.targets["h40"].peer = name(40)
    assert keys(made.due(mesh, 0.0)) == ["h40"]


def test_with_links_enough_unknown_targets_are_tried_one_at_a_time() -> None:
    """Thirty hosts that name each other by names that no address shows: no burst of thirty links each."""
    mesh = around(range(1, 9), range(1, 31))
    made = dialer()
    made.connect([f"h{number}" for number in range(20)], 0.0)
    now, times = 0.0, list[float]()
    while len(times) < 20:
        due = made.next_due(mesh)
        assert due is not None
        now = max(now, due)
        for key in keys(made.due(mesh, now)):
            times.append(now)
            made.succeeded(key, name(int(str(key)[1:]) + 1))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0.0
    assert all(0.5 * SPARE_DIAL_INTERVAL_S <= gap <= 1.5 * SPARE_DIAL_INTERVAL_S for gap in gaps)


# Peers that nobody named


def test_discovery_makes_links_until_there_are_enough() -> None:
    """One dial at each look, to a peer in reach, at the addresses that it gives."""
    made = dialer(discovery=True)
    mesh = around([1], range(1, 31))
    (found, addresses), *rest = made.due(mesh, 0.0)
    assert rest == [] and found in mesh.reachable and found != name(1)
    assert isinstance(found, bytes) and addresses == mesh.peers[found].addresses
    enough = around(range(1, links_wanted(31)[0] + 1), range(1, 31))
    assert dialer(discovery=True).due(enough, 0.0) == []


def test_without_discovery_only_targets_are_dialled() -> None:
    made = dialer(discovery=False)
    assert made.due(around([1], range(1, 31), lost=[40]), 1e6) == []
    assert made.next_due(around([1], range(1, 31))) is None


def test_so_many_peers_are_dialled_at_once_and_targets_have_places_of_their_own() -> None:
    """Dead peers with many addresses cannot keep a target waiting."""
    made = dialer(discovery=True)
    mesh = around([1], range(1, 31))
    found = [key for _ in range(10) for key in keys(made.due(mesh, 0.0))]
    assert len(found) == len(set(found)) == PEER_DIALS_AT_ONCE
    made.connect(["h1", "h2"], 0.0)
    assert len([key for key in keys(made.due(ALONE, 0.0)) if isinstance(key, str)]) == 2


def test_lost_peers_are_looked_for_now_and_then() -> None:
    """Not by everybody every second: the time between two grows with the mesh."""
    for peers, interval_s in ((5, HEAL_INTERVAL_S), (100, 10.0)):
        made = dialer(discovery=True)
        mesh = around(range(1, 4), range(1, 4), lost=range(4, peers + 1))
        assert len(mesh.peers) == peers
        times: list[float] = []
        now = 0.0
        while len(times) < 12:
            due = made.next_due(mesh)
            assert due is not None and due >= now
            now = due
            for key in keys(made.due(mesh, now)):
                times.append(now)
                assert isinstance(key, bytes)
                made.failed(key, "no answer", now)
                made.peers[key].next_try = 0.0
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert all(0.5 * interval_s <= gap <= 1.5 * interval_s for gap in gaps)


def test_a_lost_peer_that_does_not_answer_waits_longer_each_time() -> None:
    made = dialer(discovery=True)
    mesh = around(lost=[1])
    now, tries = 0.0, []
    while now < 3600.0:
        due = made.next_due(mesh)
        assert due is not None
        now = due
        for key in keys(made.due(mesh, now)):
            tries.append(now)
            made.failed(key, "no answer", now)
    assert 20 < len(tries) < 80
    assert 0.5 * PEER_DELAY_MAX_S <= tries[-1] - tries[-2] <= 1.5 * PEER_DELAY_MAX_S + 2 * HEAL_INTERVAL_S


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (around(lost=[1], state=AWAY), True),
        (around(lost=[1], state=GONE), False),
        (around(lost=[1], addresses=()), False),
        (around(lost=[1], own=(address(1),)), False),
        (around(lost=[1], own=(address(2),)), True),
        (Surroundings({}, (), frozenset(), [name(1)], ()), False),
    ],
)
def test_who_is_worth_looking_for(lost: Surroundings, expected: bool) -> None:
    """Who is away may come back; who is gone will not; an address of our own leads nowhere new."""
    made = dialer(discovery=True)
    assert (keys(made.due(lost, 1e3)) == [name(1)]) == expected


def test_each_failure_begins_with_another_address() -> None:
    """Where the first address is private and somebody else's, the others must have their turn."""
    made = dialer(discovery=True)
    lost = around(lost=[1], addresses=("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), own=("10.0.0.2:1",))
    seen = []
    for life in range(4):
        ((_, addresses),) = made.due(lost, 1e4 * (life + 1))
        seen.append(addresses)
        made.failed(name(1), "another peer answers there", 1e4 * (life + 1))
    assert seen == [("10.0.0.1:1", "10.0.0.3:1"), ("10.0.0.3:1", "10.0.0.1:1")] * 2
    made.succeeded(name(1), name(1))
    assert made.due(lost, 1e6)[0][1][0] == "10.0.0.1:1"


@given(st.randoms(use_true_random=False), st.booleans())
def test_whoever_asks_when_is_never_told_a_time_that_changes_nothing(rng: Random, discovery: bool) -> None:
    """A timer set to `next_due` that leads to no dial must lead to a later time, or the host would spin."""
    made = Dialer(6783, discovery, rng, 0.0)
    made.connect([f"h{number}" for number in range(6)], 0.0)
    now = 0.0
    for _ in range(60):
        mesh = around(range(1, rng.randint(1, 6)), range(1, 8), lost=range(8, rng.randint(8, 12)))
        due = made.next_due(mesh)
        if due is None:
            break
        now = max(now, due)
        dials = keys(made.due(mesh, now))
        later = made.next_due(mesh)
        assert dials or later is None or later > now
        for key in dials:
            if rng.random() < 0.5:
                made.failed(key, "no answer", now)
            elif isinstance(key, str):
                made.succeeded(key, name(rng.randint(1, 9)))
            else:
                made.succeeded(key, key)
