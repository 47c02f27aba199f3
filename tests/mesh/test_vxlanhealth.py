"""Whether VXLAN gets through, by a clock that is only a number: found quickly, kept steadily, asked for little."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.names import PeerName
from mesh.vxlanhealth import (
    ACTIVE_PER_S,
    ANSWER_TIMEOUT_S,
    ANSWERS_NEEDED,
    ANSWERS_NEEDED_MAX,
    BURST,
    FULL_INTERVAL_S,
    FULL_PER_S,
    IDLE_PER_S,
    INTERVAL_S,
    JITTER,
    MISSES_MAX,
    RECANT_S,
    REFILL_PER_S,
    RETRY_PER_S,
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
        self.active: frozenset[PeerName] | None = None
        self.rtt_s = 0.01
        self.peers = [P, *(PeerName(bytes([7, number // 256, number % 256]) + bytes(5)) for number in range(peers - 1))]
        self.health.watch(self.peers, self.now)

    def talk(self, *names: PeerName) -> None:
        """Frames go to these from now on, and it is known."""
        self.health.talk(frozenset(names), self.now)

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


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("wire", [nothing, only_small])
def test_a_path_in_use_is_left_within_three_seconds_and_not_before_three_misses(is_known: bool, wire: Wire) -> None:
    """Whenever it goes silent, or black for what is of full size. Where nobody knows who is talked to, large frames are
    asked about less often."""
    took = []
    for seed in range(200):
        world = World(seed=seed)
        if is_known:
            world.talk(P)
        world.run(10.0 + seed / 17)
        world.wire = wire
        took.append(world.run(20.0, until=world.is_silent))
        assert world.verdict == (SILENT if wire is nothing else TOO_NARROW)
    assert min(took) >= 2 * ANSWER_TIMEOUT_S, "three in a row, one after the other"
    longest_s = FULL_INTERVAL_S if wire is only_small and not is_known else 0.0
    assert max(took) <= INTERVAL_S * (1 + JITTER) + MISSES_MAX * ANSWER_TIMEOUT_S + longest_s + 0.01
    if is_known:
        assert max(took) <= 3.0


@pytest.mark.parametrize("is_silent_towards", [0, 1])
def test_a_path_that_passes_one_way_only_is_left_by_both_sides(is_silent_towards: int) -> None:
    """A question needs both directions, whoever asks it."""
    for seed in range(20):
        worlds = [World(seed=seed), World(seed=100 + seed)]
        for number, world in enumerate(worlds):
            world.talk(P)
            world.run(10.0 + seed / 17)
            passes = [direction != is_silent_towards for direction in (number, 1 - number)]
            world.wire = lambda ask, now, passes=passes: all(passes)  # type: ignore[misc]
            assert world.run(10.0, until=world.is_silent) <= 3.0


def test_a_long_round_trip_is_no_silence() -> None:
    """By satellite: each answer comes while the next question is already under way."""
    world = World()
    waiting: list[tuple[float, Ask]] = []
    world.wire = lambda ask, now: waiting.append((now + 1.1, ask)) or False  # type: ignore[func-returns-value]
    world.talk(P)
    for _ in range(3000):
        world.run(0.1)
        for at, ask in [each for each in waiting if each[0] <= world.now]:
            world.health.answered(P, ask.nonce, at)
        waiting = [each for each in waiting if each[0] > world.now]
    assert world.changes == []


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
    rounds: list[float] = []

    def every_other(ask: Ask, now: float) -> bool:
        if now not in rounds:
            rounds.append(now)
        return ask.full_size and len(rounds) % 2 == 0

    world.health.resize(world.now)
    world.wire = only_small
    world.run(30.0)
    world.wire = every_other
    world.run(60.0)
    assert len(rounds) > 10 and world.verdict is not None


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


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1, 0.2])
def test_random_loss_is_hardly_ever_taken_for_silence(loss: float) -> None:
    """Each probe and each answer may get lost. An hour of it moves no peer at 5 %, and for moments only at 20 %."""
    chance = Random(7)
    world = World()
    world.talk(P)
    world.wire = lambda ask, now: chance.random() > 1 - (1 - loss) ** 2
    world.run(3600.0)
    ends = [at for at, _ in world.changes[1:]] + [world.now]
    silent_s = sum(end - at for (at, verdict), end in zip(world.changes, ends, strict=False) if verdict is not None)
    assert (len(world.changes) == 0) if loss <= 0.05 else silent_s < 60.0
    spells = [end - at for (at, verdict), end in zip(world.changes, ends, strict=False) if verdict is not None]
    assert max(spells, default=0.0) < 30.0


@given(st.floats(0.0, 0.2), st.integers(0, 100_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_loss_of_up_to_a_fifth_never_demotes_for_long(loss: float, seed: int, is_talked_to: bool) -> None:
    """Whoever is moved by chance is back within half a minute."""
    chance = Random(seed)
    world = World(seed=seed)
    world.talk(*([P] if is_talked_to else []))
    world.wire = lambda ask, now: chance.random() < (1 - loss) ** 2
    world.run(1800.0)
    ends = [at for at, _ in world.changes[1:]] + [world.now]
    spells = [end - at for (at, verdict), end in zip(world.changes, ends, strict=False) if verdict is not None]
    assert max(spells, default=0.0) < 30.0 and sum(spells) < 90.0


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
        needed.append(len({at for at, ask in world.asked[before:] if ask.full_size}))
    assert needed[0] <= ANSWERS_NEEDED + 1
    assert needed[-1] >= ANSWERS_NEEDED_MAX
    world.run(STEADY_S + 10.0)
    world.wire = nothing
    world.run(30.0, until=world.is_silent)
    world.wire = everything
    assert world.run(60.0, until=lambda: not world.is_silent()) < 5.0


# Whom it asks


@pytest.mark.parametrize("peers", [1, 10, 100, 1000, 5000])
@pytest.mark.parametrize("in_use", [0, 20, 5000])
def test_probes_a_second_are_bounded_however_many_peers_there_are(peers: int, in_use: int) -> None:
    """Some tens, those in use included."""
    world = World(peers=peers)
    world.talk(*world.peers[:in_use])
    world.run(2 * peers / ACTIVE_PER_S + 10.0)
    before = len(world.asked)
    world.run(60.0)
    rate = (len(world.asked) - before) / 60.0
    active, idle = min(peers, in_use), max(0, peers - in_use)
    assert rate <= 1.3 * (min(active, ACTIVE_PER_S) + min(idle, IDLE_PER_S)) + 0.5
    assert rate <= 1.3 * (ACTIVE_PER_S + IDLE_PER_S)


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 1000), st.sampled_from([nothing, only_small]))
@settings(max_examples=25, deadline=None)
def test_probes_are_bounded_also_when_everything_falls_silent(peers: int, in_use: int, seed: int, wire: Wire) -> None:
    """An uplink that is cut: at most a burst once, and then few."""
    world = World(peers=peers, seed=seed)
    world.talk(*world.peers[:in_use])
    world.run(30.0)
    world.wire = wire
    begun = len(world.asked)
    world.run(60.0)
    assert len(world.asked) - begun <= BURST + 60.0 * REFILL_PER_S + ACTIVE_PER_S * 10
    world.run(300.0 if wire is nothing else 2 * peers / FULL_PER_S + 60.0)
    assert len(world.health.verdicts) == peers
    begun = len(world.asked)
    world.run(60.0)
    assert (len(world.asked) - begun) / 60.0 <= 4 * RETRY_PER_S * 1.2 + 3.0


def test_an_idle_peer_is_asked_seldom_and_with_few_bytes() -> None:
    """Of a hundred, each costs less than 200 bytes a second on the underlay, for both sides' questions and answers."""
    world = World(peers=100)
    world.talk()
    world.run(10.0)
    before = len(world.asked)
    world.run(1000.0)
    outer = sum((1464 if ask.full_size else 26) + 14 + 20 + 8 + 8 for _, ask in world.asked[before:])
    assert 4 * outer / 1000.0 / 100 < 100.0


def test_who_is_talked_to_is_asked_at_once() -> None:
    """In full size: the first packets of a connection are soon followed by large ones."""
    world = World(peers=1000)
    world.talk()
    world.run(100.0)
    for seconds, longest_s in ((0.0, 0.01), (0.3, INTERVAL_S), (5.0, 0.01)):
        world.run(seconds)
        begun, before = world.now, len(world.asked)
        world.talk(P)
        world.run(INTERVAL_S)
        mine = [(at, ask) for at, ask in world.asked[before:] if ask.peer == P]
        assert mine and mine[0][1].full_size and mine[0][0] - begun <= longest_s
        world.talk()


def test_who_is_talked_to_no_more_is_asked_seldom_again() -> None:
    """After one more question."""
    world = World(peers=1000)
    world.talk(P)
    world.run(20.0)
    world.talk()
    before = len(world.asked)
    world.run(30.0)
    assert len([ask for _, ask in world.asked[before:] if ask.peer == P]) <= 2


def test_who_begins_to_miss_questions_is_told_once_and_whoever_may_be_needed_is_asked() -> None:
    """Before there is a verdict."""
    world = World(peers=1000)
    world.talk(P)
    world.run(30.0)
    other = world.peers[500]
    world.health.doubted()
    world.wire = lambda ask, now: ask.peer != P
    assert world.run(10.0, until=lambda: P in world.health._doubted) <= INTERVAL_S * (1 + JITTER) + ANSWER_TIMEOUT_S
    assert world.health.doubted() == {P} and world.health.doubted() == frozenset() and world.verdict is None
    before = len(world.asked)
    world.health.check([other], world.now)
    world.run(0.01)
    assert other in {ask.peer for _, ask in world.asked[before:]}


def test_a_new_full_size_is_asked_at_once_of_who_was_too_narrow_for_the_old_one() -> None:
    """The network has shrunk to what passes there."""
    world = World()
    world.talk(P)
    world.wire = only_small
    world.run(10.0, until=world.is_silent)
    world.wire = everything
    world.health.resize(world.now)
    assert world.run(5.0, until=lambda: not world.is_silent()) <= 2 * ANSWERS_NEEDED * 0.2


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
    world.run(20.0)
    world.health.watch([P], world.now)
    before = len(world.asked)
    world.run(1.9 * ANSWER_TIMEOUT_S)
    assert world.verdict is None and len(world.asked) - before <= 4


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
