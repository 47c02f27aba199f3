"""Which offloads lie: what is found, how soon, and what is never taken for a lie, under a clock by hand."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from gossip.names import PeerName
from mesh.offloads import (
    ANSWER_TIMEOUT_S,
    CHECKSUM_PIECES,
    INTERVAL_S,
    JITTER,
    PLAIN_PIECES,
    ROUNDS_MAX,
    SEGMENT_PIECES,
    STARTS_PER_S,
    WRONG_MAX,
    Fault,
    Offloads,
    Reach,
)

P, Q = PeerName(b"\x01" * 8), PeerName(b"\x02" * 8)
ETH0, ETH1 = "eth0 (liar 1.0)", "eth1 (virtio_net 1.0)"
CHECKSUM, SEGMENT = "vxlan-checksum", "vxlan-segment"
CHECKSUMS, SEGMENTS, PLAIN = frozenset(CHECKSUM_PIECES), frozenset(SEGMENT_PIECES), frozenset(PLAIN_PIECES)
ALL = PLAIN | CHECKSUMS | SEGMENTS
RTT_S = 0.01


@dataclass
class Path:
    """What becomes of each piece on the way, and of the answers. An offload that is off harms nothing."""

    lost: Callable[[int], bool] = lambda piece: False
    lost_if_off: frozenset[int] = frozenset()
    swallowed: frozenset[int] = frozenset()
    """Never arrive."""
    wrong: frozenset[int] = frozenset()
    """Arrive changed."""
    rtt_s: float = RTT_S


def honest() -> Path:
    return Path()


@dataclass
class World:
    """One host's `Offloads` and the paths to others, each reached by eth0 unless said otherwise."""

    offloads: Offloads = field(default_factory=lambda: Offloads(Random(1), CHECKSUM, SEGMENT, ()))
    paths: dict[PeerName, Path] = field(default_factory=lambda: {P: honest()})
    now: float = 1000.0
    asked: list[tuple[float, PeerName]] = field(default_factory=list)
    _answers: list[tuple[float, int, PeerName, bytes, int, int]] = field(default_factory=list)

    def watch(self, *names: PeerName, device: str = ETH0, life: bytes = b"1", devices: tuple[str, ...] = ()) -> None:
        reaches = {name: Reach(device, life) for name in names}
        self.offloads.watch(reaches, devices or None, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due_s = self.offloads.next_due()
            answer_s = self._answers[0][0] if self._answers else None
            next_s = min(each for each in (due_s, answer_s, end) if each is not None)
            if next_s >= end:
                break
            self.now = max(self.now, next_s)
            if answer_s is not None and answer_s <= self.now:
                _, _, peer, nonce, right, wrong = heapq.heappop(self._answers)
                self.offloads.reported(peer, nonce, right, wrong, self.now)
                continue
            for ask in self.offloads.due(self.now):
                self.asked.append((self.now, ask.peer))
                self._carry(ask.peer, ask.nonce)
        self.now = end

    def _carry(self, peer: PeerName, nonce: bytes) -> None:
        path = self.paths[peer]
        harmless = {CHECKSUM: CHECKSUMS | SEGMENTS, SEGMENT: SEGMENTS}
        done_here = frozenset().union(*(harmless[name] for name in self.offloads.off))
        for piece in sorted(ALL):
            is_swallowed = piece in path.swallowed - done_here or piece in path.lost_if_off
            if is_swallowed or path.lost(piece):
                continue
            is_wrong = piece in path.wrong - done_here
            bit = 1 << piece
            answer = (self.now + path.rtt_s, len(self.asked) * 16 + piece, peer, nonce)
            heapq.heappush(self._answers, (*answer, 0 if is_wrong else bit, bit if is_wrong else 0))


def fault(offload: str, device: str = ETH0, peer: PeerName = P) -> Fault:
    return Fault(device, offload, peer)


def test_an_honest_path_is_asked_once_and_then_now_and_then() -> None:
    """Nothing is found."""
    world = World()
    world.watch(P)
    world.run(10)
    assert len(world.asked) == 1
    world.run(2 * INTERVAL_S * (1 + JITTER))
    assert 3 <= len(world.asked) <= 4
    assert (world.offloads.faults, world.offloads.unhelped) == ((), frozenset())


@pytest.mark.parametrize("how", ["swallowed", "wrong"])
@pytest.mark.parametrize(
    ("pieces", "offload"),
    [
        (CHECKSUMS | SEGMENTS, CHECKSUM),
        (frozenset(CHECKSUM_PIECES[:1]), CHECKSUM),
        (frozenset(CHECKSUM_PIECES[1:]) | SEGMENTS, CHECKSUM),
        (SEGMENTS, SEGMENT),
        (frozenset(SEGMENT_PIECES[1:]), SEGMENT),
        (frozenset(SEGMENT_PIECES[-1:]), SEGMENT),
    ],
    ids=["all", "udp", "tcp", "segments", "all-but-the-first", "the-last"],
)
def test_a_lie_is_found_in_two_seconds_and_the_smallest_offload_blamed(
    how: str, pieces: frozenset[int], offload: str
) -> None:
    """Whether what was touched is dropped on the way or arrives changed. Doing without helps, so that is all."""
    world = World(paths={P: Path(**{how: pieces})})
    world.watch(P)
    world.run(2.0)
    assert world.offloads.faults == (fault(offload),)
    assert world.offloads.off == (offload,)
    world.run(3 * INTERVAL_S)
    assert (world.offloads.faults, world.offloads.unhelped) == ((fault(offload),), frozenset())


def test_a_card_that_lies_in_both_loses_both() -> None:
    """Segments that are wrong by themselves are found when checksums are no longer their fault."""
    world = World(paths={P: Path(swallowed=CHECKSUMS)})
    world.offloads.faults = (fault(CHECKSUM),)
    world.paths[P] = Path(lost_if_off=SEGMENTS)
    world.watch(P)
    world.run(10)
    assert world.offloads.off == (CHECKSUM, SEGMENT)


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.2])
def test_loss_is_not_taken_for_a_lie(loss: float) -> None:
    """Of pieces and of answers, in 200 lives of an hour each."""
    found = 0
    for seed in range(200):
        rng = Random(seed)
        world = World(paths={P: Path(lost=lambda piece, rng=rng: rng.random() < loss or rng.random() < loss)})
        world.watch(P)
        world.run(3600)
        found += bool(world.offloads.faults)
    assert found <= (0 if loss <= 0.1 else 4)


def test_a_lie_is_found_through_loss() -> None:
    """It takes longer, because fewer rounds count."""
    for seed in range(50):
        rng = Random(seed)
        lossy = Path(lost=lambda piece, rng=rng: rng.random() < 0.1, swallowed=CHECKSUMS | SEGMENTS)
        world = World(paths={P: lossy})
        world.watch(P)
        world.run(60)
        assert world.offloads.faults == (fault(CHECKSUM),)


@pytest.mark.parametrize(
    "path",
    [
        Path(swallowed=ALL),
        Path(swallowed=frozenset((0,)) | SEGMENTS),
        Path(wrong=ALL),
        Path(rtt_s=3.0),
        Path(swallowed=PLAIN),
    ],
    ids=["silent", "one-plain-piece-is-missing", "everything-is-changed", "late", "only-plain-pieces-are-missing"],
)
def test_where_plain_pieces_do_not_arrive_nothing_is_found(path: Path) -> None:
    """An older peer, a dead one, a path too narrow: not the offloads' fault. It is asked less and less often."""
    world = World(paths={P: path})
    world.watch(P)
    world.run(3600)
    assert world.offloads.faults == ()
    assert 8 <= len(world.asked) <= 20


def test_a_peer_that_answers_again_is_tested_in_full() -> None:
    """The lie is found then."""
    world = World(paths={P: Path(swallowed=ALL)})
    world.watch(P)
    world.run(30)
    world.paths[P] = Path(swallowed=SEGMENTS)
    world.run(60)
    assert world.offloads.faults == (fault(SEGMENT),)


def test_a_passing_change_of_bytes_is_no_lie() -> None:
    """Two rounds, and then nothing is wrong in all those that follow: memory errs."""
    world = World(paths={P: Path(wrong=SEGMENTS)})
    world.watch(P)
    while len(world.asked) < WRONG_MAX - 1:
        world.run(0.01)
    world.run(0.05)
    world.paths[P] = honest()
    world.run(10)
    assert len(world.asked) == ROUNDS_MAX
    world.run(3 * INTERVAL_S)
    assert world.offloads.faults == ()


def test_what_does_not_help_is_said_and_taken_back() -> None:
    """Doing without changes nothing: the fault is the other side's, and may go."""
    world = World(paths={P: Path(lost_if_off=CHECKSUMS | SEGMENTS)})
    world.watch(P)
    world.run(20)
    assert world.offloads.faults == (fault(CHECKSUM),)
    assert world.offloads.unhelped == {P}
    world.paths[P] = honest()
    world.run(2 * INTERVAL_S)
    assert (world.offloads.faults, world.offloads.unhelped) == ((fault(CHECKSUM),), frozenset())
    world.watch()
    assert world.offloads.unhelped == frozenset()


def test_a_peer_is_tested_anew_when_it_is_reached_otherwise_or_was_started_anew() -> None:
    """And as soon as it is in reach again; not when nothing has changed."""
    world = World()
    world.watch(P)
    world.run(10)
    world.watch(P)
    world.run(10)
    assert len(world.asked) == 1
    world.watch(P, life=b"2")
    world.run(10)
    world.watch(P, life=b"2", device=ETH1)
    world.run(10)
    world.watch()
    world.run(INTERVAL_S)
    world.watch(P, life=b"2", device=ETH1)
    world.run(10)
    assert len(world.asked) == 4


def test_a_fault_goes_with_its_device_and_everybody_is_tested_anew() -> None:
    """Another card: what was off is on again, and must prove itself."""
    world = World(paths={P: Path(swallowed=SEGMENTS), Q: honest()})
    world.watch(P, Q, devices=(ETH0,))
    world.run(10)
    assert world.offloads.faults == (fault(SEGMENT),)
    asked = len(world.asked)
    world.watch(P, Q, devices=(ETH0, ETH1))
    assert world.offloads.faults == (fault(SEGMENT),)
    world.paths[P] = honest()
    world.watch(P, Q, device=ETH1, devices=(ETH1,))
    assert (world.offloads.faults, world.offloads.off) == ((), ())
    world.run(10)
    assert {peer for _, peer in world.asked[asked:]} == {P, Q}
    assert world.offloads.faults == ()


def test_a_fault_of_an_earlier_life_holds_from_the_start() -> None:
    """Nothing is suffered again; that it helps is looked at, and while devices are not known it stays."""
    world = World(Offloads(Random(1), CHECKSUM, SEGMENT, [fault(CHECKSUM)]), {P: Path(swallowed=CHECKSUMS)})
    assert world.offloads.off == (CHECKSUM,)
    world.watch(P)
    world.run(10)
    assert (world.offloads.faults, world.offloads.unhelped) == ((fault(CHECKSUM),), frozenset())


def test_one_name_for_both_offloads_is_one_fault() -> None:
    """As at a TAP."""
    world = World(Offloads(Random(1), "tap", "tap", ()), {P: Path(lost_if_off=CHECKSUMS | SEGMENTS)})
    world.watch(P)
    world._answers.clear()
    while world.now < 1002:
        world.now += 0.01
        for ask in world.offloads.due(world.now):
            plain = sum(1 << piece for piece in PLAIN)
            world.offloads.reported(P, ask.nonce, plain, 0, world.now)
    assert world.offloads.faults == (fault("tap"),)


def test_what_could_not_be_sent_says_nothing() -> None:
    """A device that went away, a full queue: the round does not count, and neither do late reports of it."""
    world = World()
    world.watch(P)
    for _ in range(3 * ROUNDS_MAX):
        world.now += INTERVAL_S
        for ask in world.offloads.due(world.now):
            world.offloads.reported(P, ask.nonce, sum(1 << piece for piece in PLAIN), 0, world.now)
            world.offloads.abandon(world.now, P)
            world.offloads.reported(P, ask.nonce, 0, 1 << SEGMENT_PIECES[0], world.now)
    world.offloads.abandon(world.now)
    assert world.offloads.faults == ()


def test_reports_of_strangers_and_of_other_rounds_change_nothing() -> None:
    """Nor does one before anything was asked."""
    offloads = Offloads(Random(1), CHECKSUM, SEGMENT, ())
    offloads.watch({P: Reach(ETH0, b"")}, None, 0.0)
    offloads.reported(P, b"", 0xFFFF, 0, 0.0)
    (ask,) = offloads.due(1.0)
    offloads.reported(Q, ask.nonce, 0xFFFF, 0, 1.0)
    offloads.reported(P, b"12345678", 0xFFFF, 0, 1.0)
    assert offloads.next_due() == 1.0 + ANSWER_TIMEOUT_S


def test_many_peers_that_come_together_are_tested_one_after_the_other() -> None:
    """A large mesh at its start."""
    names = [PeerName(number.to_bytes(8, "big")) for number in range(500)]
    world = World(paths={name: honest() for name in names})
    world.watch(*names)
    world.run(60)
    times = [when for when, _ in world.asked]
    assert len(times) == 500
    assert max(sum(begin <= when < begin + 1 for when in times) for begin in times) <= 2 * STARTS_PER_S
