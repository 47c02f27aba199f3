"""Whether VXLAN gets through, by a clock that is only a number: found quickly, kept steadily, asked for little."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.names import PeerName
from mesh.vxlanhealth import (
    ANSWER_TIMEOUT_S,
    ANSWERS_NEEDED,
    ANSWERS_NEEDED_MAX,
    INTERVAL_S,
    JITTER,
    MISSES_MAX,
    PEERS_AT_FULL_PACE,
    RECANT_S,
    SILENT,
    STEADY_S,
    TOO_NARROW,
    Ask,
    VxlanHealth,
)

P = PeerName(b"\x03" * 8)
Wire = Callable[[Ask, float], bool]
"""Whether a probe sent at that time is answered."""


def everything(ask: Ask, now: float) -> bool:
    return True


def nothing(ask: Ask, now: float) -> bool:
    return False


def only_small(ask: Ask, now: float) -> bool:
    return not ask.full_size


class World:
    """Time passes; probes go over a wire and come back, 10 ms later, or not."""

    def __init__(self, silent: dict[PeerName, str] | None = None, peers: int = 1, seed: int = 1) -> None:
        self.health = VxlanHealth(Random(seed), silent or {})
        self.now = 0.0
        self.wire: Wire = everything
        self.asked: list[tuple[float, Ask]] = []
        self.changes: list[tuple[float, str | None]] = []
        """Verdicts about P."""
        self.peers = [P, *(PeerName(bytes([7, number // 256, number % 256]) + bytes(5)) for number in range(peers - 1))]
        self.health.watch(self.peers, self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Pass this time, or until something; how long it took."""
        begun, end = self.now, self.now + seconds
        while not until():
            due_s = self.health.next_due()
            if due_s is None or due_s > end:
                self.now = end
                break
            self.now = max(self.now, due_s)
            before = self.health.verdicts
            for ask in self.health.due(self.now):
                self.asked.append((self.now, ask))
                if self.wire(ask, self.now):
                    self.health.answered(ask.peer, ask.nonce, self.now + 0.01)
            if self.health.verdicts is not before:
                self.changes.append((self.now, self.verdict))
        return self.now - begun

    @property
    def verdict(self) -> str | None:
        return self.health.verdicts.get(P)

    def is_silent(self) -> bool:
        return self.verdict is not None


# Silence and its end


def test_a_new_peer_is_trusted_and_stays_so_while_it_answers() -> None:
    """Nothing is waited for; its round trip is known."""
    world = World()
    assert world.verdict is None
    world.run(600.0)
    assert world.changes == []
    assert world.health.rtt_s(P) == pytest.approx(0.01)


def test_silence_is_found_within_four_seconds_and_not_before_three_misses() -> None:
    """Whenever it begins."""
    took = []
    for seed in range(50):
        world = World(seed=seed)
        world.run(10.0 + seed / 17)
        world.wire = nothing
        took.append(world.run(10.0, until=world.is_silent))
        assert world.verdict == SILENT
    assert min(took) >= 2 * ANSWER_TIMEOUT_S, "three in a row, one after the other"
    assert max(took) <= INTERVAL_S * (1 + JITTER) + MISSES_MAX * ANSWER_TIMEOUT_S + 0.01 < 4.0


def test_two_answers_in_a_row_bring_a_peer_back() -> None:
    """Within some seconds; one answer alone does not."""
    world = World()
    world.wire = nothing
    world.run(20.0)
    world.wire = lambda ask, now: len(world.asked) % 2 == 0
    world.run(1.0)
    world.wire = everything
    assert world.run(10.0, until=lambda: not world.is_silent()) <= 4.0


def test_a_single_answer_does_not_bring_a_peer_back() -> None:
    """The next question is asked soon and must be answered too."""
    world = World()
    world.wire = nothing
    world.run(20.0)
    answered: list[bool] = []

    def every_other(ask: Ask, now: float) -> bool:
        if not ask.full_size:
            answered.append(not (answered and answered[-1]))
            return answered[-1]
        return True

    world.wire = every_other
    world.run(60.0)
    assert answered.count(True) > 5 and world.verdict == SILENT


def test_small_frames_alone_do_not_make_a_path() -> None:
    """TCP would send into a hole. The reason says so, and it comes back when the large ones do."""
    world = World()
    world.run(5.0)
    world.wire = only_small
    assert world.run(20.0, until=world.is_silent) <= 10.0
    assert world.verdict == TOO_NARROW
    world.run(30.0)
    assert [verdict for _, verdict in world.changes] == [TOO_NARROW]
    world.wire = everything
    world.run(10.0)
    assert world.verdict is None


def test_silence_and_its_end_are_one_change_each() -> None:
    """Both sizes go silent and come back at different moments; nobody is told of a narrow path between."""
    for seed in range(50):
        world = World(seed=seed)
        world.run(7.0)
        world.wire = nothing
        world.run(30.0)
        world.wire = everything
        world.run(30.0)
        assert [verdict for _, verdict in world.changes] == [SILENT, None]


def test_a_path_that_becomes_narrower_says_so_from_either_side() -> None:
    """From silence to small ones only, and back."""
    world = World()
    world.wire = nothing
    world.run(20.0)
    world.wire = only_small
    world.run(30.0)
    assert world.verdict == TOO_NARROW
    world.wire = nothing
    world.run(30.0)
    assert world.verdict == SILENT


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1])
def test_random_loss_is_hardly_ever_taken_for_silence(loss: float) -> None:
    """Each probe and each answer may get lost. An hour of it moves no peer at 5 %, and for moments only at 10 %."""
    chance = Random(7)
    world = World()
    world.wire = lambda ask, now: chance.random() > 1 - (1 - loss) ** 2
    world.run(3600.0)
    ends = [at for at, _ in world.changes[1:]] + [world.now]
    silent_s = sum(end - at for (at, verdict), end in zip(world.changes, ends, strict=False) if verdict is not None)
    assert (len(world.changes) == 0) if loss <= 0.05 else silent_s < 60.0


def test_a_path_on_the_edge_does_not_flap() -> None:
    """Each silence soon after the last asks for twice as many answers in a row, up to a limit; a steady path is new."""
    world = World()
    needed = []
    for _ in range(8):
        world.wire = nothing
        world.run(30.0, until=world.is_silent)
        world.wire = everything
        before = len(world.asked)
        world.run(60.0, until=lambda: not world.is_silent())
        needed.append(sum(not ask.full_size for _, ask in world.asked[before:]))
    assert needed[0] <= ANSWERS_NEEDED + 1
    assert needed[-1] >= ANSWERS_NEEDED_MAX
    world.run(STEADY_S + 10.0)
    world.wire = nothing
    world.run(30.0, until=world.is_silent)
    world.wire = everything
    assert world.run(60.0, until=lambda: not world.is_silent()) < 5.0


# Whom it asks


def test_probes_a_second_are_bounded_however_many_peers_there_are() -> None:
    """At most two sizes to a bounded number of peers."""
    rates = {}
    for peers in (1, PEERS_AT_FULL_PACE, 10 * PEERS_AT_FULL_PACE):
        world = World(peers=peers)
        world.run(100.0)
        rates[peers] = len(world.asked) / 100.0
    assert rates[1] < 1.5
    assert rates[10 * PEERS_AT_FULL_PACE] < 1.5 * PEERS_AT_FULL_PACE


def test_probes_to_silent_peers_are_bounded_too() -> None:
    """A whole mesh behind a firewall."""
    world = World(peers=PEERS_AT_FULL_PACE)
    world.wire = nothing
    world.run(20.0)
    before = len(world.asked)
    world.run(100.0)
    assert (len(world.asked) - before) / 100.0 < 1.5 * PEERS_AT_FULL_PACE


def test_the_first_probes_of_many_peers_do_not_come_in_step() -> None:
    """Nor do the later ones."""
    world = World(peers=40)
    world.run(60.0)
    moments = sorted(at for at, _ in world.asked)
    assert len(set(moments)) > 0.9 * len(moments)


def test_who_is_out_of_reach_is_not_asked_and_keeps_what_it_had() -> None:
    """Its daemon does not answer, whatever its kernel does."""
    world = World()
    world.wire = nothing
    world.run(20.0)
    world.run(RECANT_S)
    world.health.watch([], world.now)
    before = len(world.asked)
    world.run(600.0)
    assert (len(world.asked), world.verdict) == (before, SILENT)
    world.health.watch([P], world.now)
    world.wire = everything
    assert world.run(10.0, until=lambda: not world.is_silent()) < 5.0


def test_whose_daemon_fell_silent_is_not_blamed_for_its_path() -> None:
    """It was judged just before gossip noticed: its kernel is most likely fine."""
    world = World()
    world.run(5.0)
    world.wire = nothing
    world.run(10.0, until=world.is_silent)
    world.run(2.0)
    world.health.watch([], world.now)
    assert world.verdict is None


def test_misses_of_before_do_not_count_when_a_peer_is_back() -> None:
    """Two before it left and one after are not three in a row."""
    world = World()
    world.run(3.3)
    world.wire = nothing
    world.run(INTERVAL_S * (1 + JITTER) + 1.9 * ANSWER_TIMEOUT_S)
    world.health.watch([], world.now)
    world.health.watch([P], world.now)
    world.run(1.9 * ANSWER_TIMEOUT_S)
    assert world.changes == []


def test_who_is_no_more_is_forgotten() -> None:
    """A peer that comes back after its reset is a new one."""
    world = World({P: SILENT})
    world.health.keep_only([P])
    world.health.watch([], 0.0)
    assert world.health.verdicts == {P: SILENT}
    world.health.keep_only([])
    assert world.health.verdicts == {}
    world.health.watch([P], 0.0)
    assert world.verdict is None


# Other things that may happen


@pytest.mark.parametrize("reason", [SILENT, TOO_NARROW])
def test_a_verdict_of_an_earlier_life_stays_until_it_is_answered(reason: str) -> None:
    """And is not told as news."""
    world = World({P: reason})
    assert world.verdict == reason
    world.wire = nothing if reason == SILENT else only_small
    world.run(30.0)
    assert world.changes == []
    world.wire = everything
    assert world.run(10.0, until=lambda: not world.is_silent()) < 5.0


def test_what_could_not_be_sent_is_not_missed() -> None:
    """A full queue of our own, or a device that is being made anew."""
    world = World()
    world.wire = nothing
    for _ in range(100):
        world.run(0.3)
        world.health.abandon(world.now, [P])
    assert world.changes == []
    world.run(10.0)
    assert world.verdict == SILENT


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    """Late, forged, from elsewhere, twice."""
    world = World()
    world.wire = nothing
    world.run(0.5)
    _, ask = world.asked[0]
    world.health.answered(PeerName(b"\x09" * 8), ask.nonce, world.now)
    world.health.answered(P, bytes(8), world.now)
    world.run(20.0)
    for _, ask in world.asked[:-1]:
        world.health.answered(P, ask.nonce, world.now)
    assert world.verdict == SILENT


@given(
    st.lists(
        st.tuples(st.sampled_from(["all", "none", "small", "out", "in", "abandon", "forget"]), st.floats(0.0, 20.0)),
        max_size=30,
    ),
    st.integers(0, 1000),
)
def test_whatever_happens_it_ends_where_the_wire_is(steps: list[tuple[str, float]], seed: int) -> None:
    """Nothing raises, the heap stays small, and a wire that stays as it is becomes the verdict."""
    world = World(seed=seed)
    wires = {"all": everything, "none": nothing, "small": only_small}
    for what, seconds in steps:
        if what in wires:
            world.wire = wires[what]
        elif what == "abandon":
            world.health.abandon(world.now)
        elif what == "forget":
            world.health.keep_only([])
        else:
            world.health.watch([P] if what == "in" else [], world.now)
        world.run(seconds)
        assert len(world.health._due) < 50
    world.health.watch([P], world.now)
    world.wire = everything
    world.run(120.0)
    assert world.verdict is None
    world.wire = only_small
    world.run(30.0)
    assert world.verdict == TOO_NARROW
    world.wire = nothing
    world.run(30.0)
    assert world.verdict == SILENT
