"""Which offloads lie: whom to test, when, and what follows from what arrived.

Pure: `now` and the other side's reports come in, rounds to send and faults come out. Knows nothing of sockets, frames
or of what a fault is used for. The one idea: a round is a set of pieces, some plain and some with work left to devices,
and only a round whose plain pieces were all answered counts. What is then missing in one round after the other, or
arrives wrong, is missing or wrong because of the offload: losses hit plain pieces as well, a peer that knows nothing of
such rounds answers none of them, and nothing but a lie changes bytes.

    resting      --- something is missing or wrong ------------------------> suspicious
    suspicious   --- every piece was right at least once, none wrong ------> resting
    suspicious   --- some piece was right in none of ROUNDS_MAX rounds ----> fault, resting
    suspicious   --- some piece was wrong in each of WRONG_MAX rounds -----> fault, resting

A fault belongs to the underlay device that the peer is reached by, and stays until that device is another one, or the
kernel: who made this object with the faults of an earlier life knows about the kernel.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from gossip.names import PeerName

NONCE_BYTES: Final = 8
PLAIN_PIECES: Final = (0, 1, 2, 3)
"""Half of them in UDP packets, half in TCP packets."""
CHECKSUM_PIECES: Final = (4, 5)
"""One in a UDP packet, one in a TCP packet."""
SEGMENT_PIECES: Final = (6, 7, 8, 9)
"""All in one packet."""

INTERVAL_S: Final = 600.0
"""Between two rounds to a peer where nothing is wrong."""
JITTER: Final = 0.2
STARTS_PER_S: Final = 20.0
"""Peers that come together are tested one after the other."""
ANSWER_TIMEOUT_S: Final = 1.0
GRACE_S: Final = 0.1
"""For pieces that come later than the plain ones, which were sent after them."""
CONFIRM_DELAY_S: Final = 0.1
ROUNDS_MAX: Final = 6
"""At a loss of 10 % each way a given piece is missing in all of them by chance once in 20,000 times."""
WRONG_MAX: Final = 3
RETRY_FIRST_S: Final = 1.0
"""After a round that does not count; doubles up to INTERVAL_S."""
RECHECK_S: Final = 5.0
"""After a fault: does it help to do without?"""


@dataclass(frozen=True, slots=True)
class Fault:
    """An offload that lies."""

    device: str
    """The underlay device, with what works it: `eth0 (virtio_net 1.0.0)`."""
    offload: str
    peer: PeerName
    """To whom it was found."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How a peer is reached now. One that is reached otherwise is tested anew."""

    device: str
    life: bytes
    """Of its daemon: another one each time that it was started."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A round to send now: the pieces that leave work to devices first, then the plain ones."""

    peer: PeerName
    nonce: bytes


@dataclass(slots=True, eq=False)
class _Track:
    """One peer."""

    peer: PeerName
    reach: Reach
    nonce: bytes = b""
    """Of the round under way."""
    right: int = 0
    wrong: int = 0
    due_s: float | None = None
    """When the round ends or the next one is due."""
    ever_right: int = 0
    """Pieces that arrived right in any round of this suspicion."""
    counted: int = 0
    """Rounds of this suspicion."""
    wrong_rounds: int = 0
    ever_wrong: int = 0
    uncounted: int = 0
    """Rounds in a row that did not count."""


def _mask(pieces: Collection[int]) -> int:
    return sum(1 << piece for piece in pieces)


_PLAIN: Final = _mask(PLAIN_PIECES)
_ALL: Final = _PLAIN | _mask(CHECKSUM_PIECES) | _mask(SEGMENT_PIECES)


class Offloads:
    """All peers' tracks and what follows from them, for one device of ours."""

    def __init__(self, rng: Random, checksum: str, segment: str, faults: Collection[Fault]) -> None:
        """`checksum` and `segment`: the offloads that the pieces are about; they may be one. `faults`: those of an
        earlier life under the same kernel."""
        self.faults: tuple[Fault, ...] = tuple(faults)
        """Replaced by another object when it changes."""
        self.unhelped: frozenset[PeerName] = frozenset()
        """Peers where pieces are missing or wrong although the offload they are about is off."""
        self._offloads = ((_mask(CHECKSUM_PIECES), checksum), (_mask(SEGMENT_PIECES), segment))
        self._rng = rng
        self._tracks: dict[PeerName, _Track] = {}
        self._due: list[tuple[float, int, _Track]] = []
        """A heap; an entry counts only while it is what its track says."""
        self._serial = 0

    @property
    def off(self) -> tuple[str, ...]:
        """The offloads to do without."""
        return tuple(sorted({fault.offload for fault in self.faults}))

    def watch(self, peers: Mapping[PeerName, Reach], devices: Collection[str] | None, now: float) -> None:
        """Test these and no others from now on. `devices`: all that this host has, where
        that is known; what was found of any other is forgotten."""
        for name in sorted(self._tracks.keys() - peers.keys()):
            self._forget(name)
        begun = 0
        for name in sorted(peers):
            known = self._tracks.get(name)
            if known is not None and known.reach == peers[name]:
                continue
            if known is not None:
                self._forget(name)
            self._tracks[name] = track = _Track(name, peers[name])
            self._schedule(track, now + begun / STARTS_PER_S + self._rng.uniform(0.0, CONFIRM_DELAY_S))
            begun += 1
        if devices is not None:
            kept = tuple(fault for fault in self.faults if fault.device in devices)
            if len(kept) < len(self.faults):
                self.faults, self.unhelped = kept, frozenset()
                self._test_anew(now)

    def _forget(self, name: PeerName) -> None:
        self._tracks.pop(name).due_s = None
        self.unhelped -= {name}

    def _test_anew(self, now: float) -> None:
        """An offload is on again: nothing that was found without it counts."""
        for number, name in enumerate(sorted(self._tracks)):
            track = self._tracks[name]
            self._rest(track, now + number / STARTS_PER_S + CONFIRM_DELAY_S)

    # -- time --------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        while self._due and self._due[0][0] != self._due[0][2].due_s:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def due(self, now: float) -> list[Ask]:
        """End the rounds whose time is up, and begin those that it is time for. Take in waiting reports first."""
        asks: list[Ask] = []
        while (due_s := self.next_due()) is not None and due_s <= now:
            track = heapq.heappop(self._due)[2]
            if track.nonce:
                self._end_round(track, now)
            else:
                track.nonce, track.right, track.wrong = self._rng.randbytes(NONCE_BYTES), 0, 0
                self._schedule(track, now + ANSWER_TIMEOUT_S)
                asks.append(Ask(track.peer, track.nonce))
        return asks

    # -- what comes of it --------------------------------------------------------------------------

    def reported(self, peer: PeerName, nonce: bytes, right: int, wrong: int, now: float) -> None:
        """What the peer says to have received of a round. Of any but the one under way it changes nothing."""
        track = self._tracks.get(peer)
        if track is None or not nonce or nonce != track.nonce or track.due_s is None:
            return
        track.right |= right
        track.wrong |= wrong
        if track.right & _PLAIN == _PLAIN:
            is_complete = (track.right | track.wrong) & _ALL == _ALL
            self._schedule(track, now if is_complete else min(track.due_s, now + GRACE_S))

    def abandon(self, now: float, peer: PeerName | None = None) -> None:
        """The round under way (to this peer) could not be sent: it says nothing."""
        for name in sorted(self._tracks) if peer is None else [peer]:
            track = self._tracks.get(name)
            if track is not None and track.nonce:
                track.right = 0
                self._end_round(track, now)

    def _end_round(self, track: _Track, now: float) -> None:
        track.nonce = b""
        if track.right & _PLAIN != _PLAIN or track.wrong & _PLAIN:
            delay_s = min(RETRY_FIRST_S * 2 ** min(track.uncounted, 16), INTERVAL_S)
            track.uncounted += 1
            self._schedule(track, now + delay_s)
            return
        track.uncounted = 0
        track.counted += 1
        track.ever_right |= track.right & ~track.wrong
        track.ever_wrong |= track.wrong
        track.wrong_rounds += track.wrong != 0
        is_over = track.counted >= ROUNDS_MAX or track.wrong_rounds >= WRONG_MAX
        if track.ever_right & _ALL == _ALL and not track.ever_wrong:
            self.unhelped -= {track.peer}
            self._rest(track, now + INTERVAL_S * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER))
        elif is_over:
            self._judge(track, now)
        else:
            self._schedule(track, now + CONFIRM_DELAY_S)

    def _judge(self, track: _Track, now: float) -> None:
        """A suspicion has had its rounds: which offload is it, if any? Without checksums there is no cutting either, so
        the first that fits is blamed alone."""
        bad = _ALL & ~track.ever_right
        if track.wrong_rounds >= WRONG_MAX:
            bad |= track.ever_wrong
        offload = next((name for mask, name in self._offloads if bad & mask), None)
        pause_s = INTERVAL_S
        if offload is None:
            self.unhelped -= {track.peer}
        elif offload in self.off:
            self.unhelped |= {track.peer}
        else:
            self.faults = (*self.faults, Fault(track.reach.device, offload, track.peer))
            pause_s = RECHECK_S
        self._rest(track, now + pause_s * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER))

    def _rest(self, track: _Track, until_s: float) -> None:
        track.nonce = b""
        track.ever_right = track.ever_wrong = track.counted = track.wrong_rounds = track.uncounted = 0
        self._schedule(track, until_s)

    def _schedule(self, track: _Track, due_s: float) -> None:
        track.due_s = due_s
        self._serial += 1
        heapq.heappush(self._due, (due_s, self._serial, track))
