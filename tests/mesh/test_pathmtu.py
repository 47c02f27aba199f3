"""How large a packet each path takes: found quickly and exactly, never smaller by chance, and asked for little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.names import PeerName
from mesh.pathmtu import AGAIN_S, SEARCH_MIN_BYTES, SEARCHES_MAX, Measure, PathMtus, Way

P, Q = PeerName(b"\x03" * 8), PeerName(b"\x04" * 8)


def way(ceiling: int, instance: bytes = b"") -> Way:
    return Way(ip_address("10.9.0.2"), ceiling, instance)


class World:
    """Time passes; what is not larger than the path is answered after a round trip."""

    def __init__(self, path_bytes: int, ceiling: int = 1450, seed: int = 1, found: dict[PeerName, int] | None = None):
        self.mtus = PathMtus(Random(seed), found or {})
        self.now = 0.0
        self.rtt_s = 0.001
        self.passes: Callable[[Measure], bool] = lambda measure: measure.packet_bytes <= path_bytes
        self.asked: list[tuple[float, Measure]] = []
        self.changes: list[tuple[float, int | None]] = []
        """Of what was found of P."""
        self.busiest = 0
        """Searches under way at once."""
        self._answers: list[tuple[float, Measure]] = []
        self.mtus.watch({P: way(ceiling)}, 0.0)

    def narrow(self, path_bytes: int) -> None:
        self.passes = lambda measure: measure.packet_bytes <= path_bytes

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        begun, end = self.now, self.now + seconds
        while not until():
            moments = [at for at, _ in self._answers]
            if (due_s := self.mtus.next_due()) is not None:
                moments.append(max(due_s, self.now))
            if not moments or min(moments) > end:
                self.now = end
                break
            self.now = min(moments)
            for at, measure in [each for each in self._answers if each[0] <= self.now]:
                self._answers.remove((at, measure))
                self.mtus.answered(measure.peer, measure.nonce, self.now)
            before = self.mtus.found
            for measure in self.mtus.due(self.now):
                self.asked.append((self.now, measure))
                self.busiest = max(self.busiest, len(self.mtus._running))
                if self.passes(measure):
                    self._answers.append((self.now + self.rtt_s, measure))
            if self.mtus.found.get(P) != before.get(P):
                self.changes.append((self.now, self.found))
        return self.now - begun

    @property
    def found(self) -> int | None:
        return self.mtus.found.get(P)


def test_a_path_that_takes_everything_costs_one_question() -> None:
    """And one more every ten minutes or so, each with a small one beside it."""
    world = World(1450)
    world.run(1.0)
    assert world.found == 1450
    assert sorted(measure.packet_bytes for _, measure in world.asked) == [0, 1450]
    world.run(10 * AGAIN_S)
    assert len(world.asked) <= 2 * 11


@given(st.integers(SEARCH_MIN_BYTES, 9000), st.integers(1000, 9000), st.integers(0, 1000))
@settings(deadline=None)
def test_the_true_size_is_found_to_the_byte(path_bytes: int, ceiling: int, seed: int) -> None:
    """Within about two seconds."""
    world = World(path_bytes, ceiling, seed)
    assert world.run(10.0, until=lambda: world.found is not None) <= 2.5
    assert world.found == min(path_bytes, ceiling)
    assert [size for _, size in world.changes] == [world.found]


@pytest.mark.parametrize(("path_bytes", "ceiling"), [(1350, 1450), (1280, 1450), (1450, 8950), (1400, 8950)])
def test_what_is_likely_is_found_in_two_seconds_with_few_questions(path_bytes: int, ceiling: int) -> None:
    """Underlays of 1400 and 1500 bytes among larger ones."""
    world = World(path_bytes, ceiling)
    assert world.run(10.0, until=lambda: world.found is not None) <= 2.0
    assert world.found == path_bytes
    assert len(world.asked) < 200


@given(st.sampled_from([0.05, 0.1, 0.2]), st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_random_loss_shrinks_nothing(loss: float, seed: int) -> None:
    """Of questions and of answers, for hours."""
    chance = Random(seed)
    world = World(1450, seed=seed)
    world.passes = lambda measure: measure.packet_bytes <= 1450 and chance.random() < (1 - loss) ** 2
    world.run(12 * AGAIN_S)
    assert [size for _, size in world.changes] == [1450]


@given(st.integers(600, 1449), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_narrow_path_is_found_in_spite_of_loss(path_bytes: int, seed: int) -> None:
    """Never too large; hardly too small."""
    chance = Random(seed)
    world = World(path_bytes, seed=seed)
    world.passes = lambda measure: measure.packet_bytes <= path_bytes and chance.random() < 0.8
    world.run(60.0, until=lambda: world.found is not None)
    assert world.found is not None and path_bytes - 40 <= world.found <= path_bytes


def test_a_path_that_is_down_is_not_called_narrow() -> None:
    """Nothing is found, nothing found before is given up, and it is asked again ever more seldom."""
    for found in ({}, {P: 1450}):
        world = World(0, found=found)
        world.passes = lambda measure: False
        world.run(3600.0)
        assert dict(world.mtus.found) == found
        assert len(world.asked) < 200


def test_a_path_that_goes_down_in_the_middle_of_a_search_is_not_called_narrow() -> None:
    """Whenever that happens."""
    for tenth in range(25):
        world = World(1350)
        world.run(tenth / 10)
        world.passes = lambda measure: False
        world.run(5.0)
        world.narrow(1350)
        world.run(120.0)
        assert [size for _, size in world.changes] == [1350], tenth


def test_a_narrower_path_is_found_in_a_hurry_and_a_wider_one_in_time() -> None:
    """The first breaks connections; the second only waits to be used."""
    world = World(1450)
    world.run(60.0)
    world.narrow(1400)
    world.mtus.hurry([P], world.now)
    assert world.run(10.0, until=lambda: world.found == 1400) <= 2.0
    world.run(AGAIN_S * 2)
    assert world.found == 1400
    world.narrow(1450)
    assert world.run(AGAIN_S * 2, until=lambda: world.found == 1450) <= AGAIN_S * 1.3


def test_a_narrow_path_that_stays_so_costs_little() -> None:
    """What was found is asked about first, with the next size and the largest."""
    world = World(1350)
    world.run(10.0)
    before = len(world.asked)
    world.run(10 * AGAIN_S)
    assert len(world.asked) - before <= 11 * 40
    assert [size for _, size in world.changes] == [1350]


def test_what_an_earlier_life_found_holds_until_measured() -> None:
    """And is measured at once."""
    world = World(1450, found={P: 1350})
    assert world.found == 1350
    assert world.run(5.0, until=lambda: world.found == 1450) < 1.0


def test_a_long_round_trip_is_waited_for() -> None:
    """Late answers count while a search goes on, and teach it to wait."""
    world = World(1400)
    world.rtt_s = 0.35
    world.run(30.0, until=lambda: world.found is not None)
    assert world.found == 1400


def test_another_ceiling_is_measured_anew() -> None:
    """The peer or this host has another underlay now."""
    world = World(9000)
    world.run(10.0)
    world.mtus.watch({P: way(8950)}, world.now)
    assert world.run(10.0, until=lambda: world.found == 8950) < 1.0


def test_after_a_launch_of_the_peer_its_path_is_measured_anew() -> None:
    """So that a path which has become wider is used from then on."""
    world = World(1350)
    world.run(10.0)
    world.narrow(1450)
    world.mtus.watch({P: way(1450, b"next")}, world.now)
    assert world.run(10.0, until=lambda: world.found == 1450) < 1.0


def test_what_a_peer_says_that_it_takes_leads_to_a_look_but_ends_none() -> None:
    """It may have found the path between us to be narrower."""
    world = World(1350)
    world.run(0.7)
    world.mtus.watch({P: replace(way(1450), told_mtu=1400)}, world.now)
    assert world.run(10.0, until=lambda: world.found == 1350) < 1.5
    world.run(10.0)
    world.narrow(1300)
    world.mtus.watch({P: replace(way(1450), told_mtu=1300)}, world.now)
    assert world.run(10.0, until=lambda: world.found == 1300) < 2.5


def test_many_peers_are_measured_a_few_at_a_time() -> None:
    """A thousand that come together, half of them narrow; those in a hurry first."""
    world = World(1450)
    peers = {PeerName(bytes([7, number // 256, number % 256]) + bytes(5)): way(1450) for number in range(1000)}
    world.mtus.watch({**peers, P: way(1450)}, 0.0)
    world.passes = lambda measure: measure.packet_bytes <= (1450 if measure.peer[2] % 2 else 1350)
    world.run(20.0)
    world.mtus.hurry([P], world.now)
    world.run(3.0)
    assert world.found is not None
    world.run(600.0)
    assert len(world.mtus.found) == 1001
    assert world.busiest == SEARCHES_MAX
    assert len(world.asked) / world.now < 60


def test_who_is_no_more_is_forgotten_and_who_is_out_of_reach_is_not() -> None:
    """Nor asked."""
    world = World(1400)
    world.run(10.0)
    world.mtus.watch({Q: way(1450)}, world.now)
    world.mtus.answered(P, b"12345678", world.now)
    world.mtus.hurry([P], world.now)
    world.mtus.keep_only([P])
    assert world.found == 1400
    world.mtus.keep_only([Q])
    assert world.found is None
