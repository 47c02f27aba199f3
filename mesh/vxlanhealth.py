"""Which peers VXLAN really reaches: when to send which probe, and what silence means.

Pure: `now` and answers come in, probes to send and verdicts come out. Knows nothing of sockets, of routes or of what a
verdict is used for. The one idea: a peer has two tracks, one of small frames and one of full size, and each is the same
little machine. It trusts until several questions in a row went unanswered, and then distrusts until several in a row
were answered. A second question follows a lost one at once and in two copies, so that silence is found quickly and
random loss is hardly ever taken for it.

    trusted   --- MISSES_MAX misses in a row --->   silent
    trusted   <-- `needed` answers in a row ----    silent

However many peers there are, the probes a second are bounded: each is asked less often. Whose silence was followed by
its host going out of reach had no chance to answer, so the verdict is taken back.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from gossip.names import PeerName

SILENT: Final = "vxlan-silent"
"""Nothing comes back."""
TOO_NARROW: Final = "vxlan-mtu"
"""Small frames come back, those of full size do not."""

INTERVAL_S: Final = 1.0
"""Between two small probes to a peer that answers, while peers are few."""
PEERS_AT_FULL_PACE: Final = 40
"""With more peers than that, each is probed the less often."""
FULL_SIZE_EVERY: Final = 5
"""One full-size probe for so many small ones."""
RETRY_EVERY: Final = 2
"""A silent peer is probed once in so many intervals."""
JITTER: Final = 0.2
ANSWER_TIMEOUT_S: Final = 0.8
MISSES_MAX: Final = 3
ANSWERS_NEEDED: Final = 2
ANSWERS_NEEDED_MAX: Final = 16
"""Each silence soon after the last one doubles what is needed: a path on the edge must not flap."""
CONFIRM_DELAY_S: Final = 0.2
STEADY_S: Final = 60.0
"""After so long without silence a path is as good as new."""
RECANT_S: Final = 4.0
"""A peer that goes out of reach so soon after its verdict was silent because its daemon was: gossip notices a dead
neighbour within about the time that a verdict takes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A probe to send now."""

    peer: PeerName
    nonce: bytes
    full_size: bool


@dataclass(slots=True, eq=False)
class _Track:
    """One size of probes to one peer."""

    peer: PeerName
    full_size: bool
    is_silent: bool = False
    misses: int = 0
    answers: int = 0
    """In a row, while silent."""
    needed: int = ANSWERS_NEEDED
    promoted_s: float = float("-inf")
    asked: tuple[bytes, ...] = ()
    """The nonces under way; an answer to any of them will do."""
    asked_s: float = 0.0
    due_s: float | None = None
    """When the answer is late or the next question due; None: not probed at all."""


@dataclass(slots=True, eq=False)
class _Peer:
    small: _Track
    full: _Track
    silent_s: float = float("-inf")
    """When the last verdict came."""
    is_too_narrow: bool = False
    """A full-size probe was missed while small ones were answered: a silent full-size track means the size."""
    answered_s: float = float("-inf")
    """When the last small probe was answered."""
    rtt_s: float | None = None
    tracks: tuple[_Track, _Track] = field(init=False)

    def __post_init__(self) -> None:
        self.tracks = (self.small, self.full)


class VxlanHealth:
    """All peers' tracks and what follows from them."""

    def __init__(self, rng: Random, silent: Mapping[PeerName, str]) -> None:
        """`silent`: the verdicts of an earlier life, which are not given up without an answer."""
        self.verdicts: Mapping[PeerName, str] = dict(silent)
        """The peers that VXLAN does not reach, and how. Replaced by another object when it changes."""
        self._rng = rng
        self._peers: dict[PeerName, _Peer] = {}
        self._watched: set[PeerName] = set()
        self._due: list[tuple[float, int, _Track]] = []
        """A heap; an entry counts only while it is what its track says."""
        self._serial = 0
        for name, reason in sorted(silent.items()):
            peer = self._peers[name] = _new_peer(name)
            peer.full.is_silent = True
            peer.small.is_silent = reason == SILENT
            peer.is_too_narrow = not peer.small.is_silent

    def watch(self, names: Collection[PeerName], now: float) -> None:
        """Probe these and no others from now on. What was found of others stays."""
        for name in sorted(self._watched - set(names)):
            self._unwatch(name, now)
        for name in sorted(set(names) - self._watched):
            for track in self._peers.setdefault(name, _new_peer(name)).tracks:
                self._rest(track, now + self._rng.uniform(0.0, CONFIRM_DELAY_S))
        self._watched = set(names)

    def _unwatch(self, name: PeerName, now: float) -> None:
        peer = self._peers[name]
        for track in peer.tracks:
            track.asked, track.misses, track.answers, track.due_s = (), 0, 0, None
        if now - peer.silent_s < RECANT_S:
            peer = self._peers[name] = _new_peer(name)
        self._judge(peer, now)

    def keep_only(self, names: Collection[PeerName]) -> None:
        """Forget whatever was found of other peers: they are no more."""
        gone = self._peers.keys() - set(names) - self._watched
        if gone:
            self._peers = {name: peer for name, peer in self._peers.items() if name not in gone}
            if not gone.isdisjoint(self.verdicts):
                self.verdicts = {name: reason for name, reason in self.verdicts.items() if name not in gone}

    def rtt_s(self, name: PeerName) -> float | None:
        """How long the last small probe took, there and back."""
        peer = self._peers.get(name)
        return peer.rtt_s if peer is not None else None

    # -- time --------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        while self._due and self._due[0][0] != self._due[0][2].due_s:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def due(self, now: float) -> list[Ask]:
        """Count what is late as missed, and ask whom it is time to ask. Take in waiting answers first."""
        asks: list[Ask] = []
        while (due_s := self.next_due()) is not None and due_s <= now:
            track = heapq.heappop(self._due)[2]
            if track.asked:
                self._missed(track, now)
            if not track.asked and track.due_s is not None and track.due_s <= now:
                asks += self._ask(track, now)
        return asks

    def _ask(self, track: _Track, now: float) -> list[Ask]:
        copies = 1 if track.misses == 0 or track.is_silent else 2
        track.asked = tuple(self._rng.randbytes(8) for _ in range(copies))
        track.asked_s = now
        self._schedule(track, now + ANSWER_TIMEOUT_S)
        return [Ask(track.peer, nonce, track.full_size) for nonce in track.asked]

    # -- what comes of it --------------------------------------------------------------------------

    def answered(self, name: PeerName, nonce: bytes, now: float) -> None:
        """Somebody answered, by VXLAN. An answer to what nobody asked, or asked too long ago, changes nothing."""
        peer = self._peers.get(name)
        track = next((each for each in peer.tracks if nonce in each.asked), None) if peer is not None else None
        if peer is None or track is None:
            return
        track.asked, track.misses = (), 0
        if not track.full_size:
            peer.rtt_s, peer.answered_s = now - track.asked_s, now
        if track.is_silent:
            track.answers += 1
            if track.answers < track.needed:
                self._rest(track, now + CONFIRM_DELAY_S)
                return
            track.is_silent, track.answers, track.promoted_s = False, 0, now
            if not track.full_size and peer.full.is_silent and not peer.full.asked:
                self._rest(peer.full, now)
            self._judge(peer, now)
        self._rest(track, now + self._pace(track))

    def abandon(self, now: float, names: Collection[PeerName] | None = None) -> None:
        """What is under way (to these peers) will not be answered, and that is not their fault."""
        for name in sorted(self._watched if names is None else names):
            for track in self._peers[name].tracks if name in self._peers else ():
                if track.asked:
                    track.asked = ()
                    self._rest(track, now + self._pace(track))

    def _missed(self, track: _Track, now: float) -> None:
        peer = self._peers[track.peer]
        track.asked, track.answers = (), 0
        if track.full_size and not peer.small.is_silent:
            if peer.small.promoted_s <= track.asked_s <= peer.answered_s:
                peer.is_too_narrow = True
            elif not peer.small.asked:
                self._rest(peer.small, now)  # is it the size, or everything?
        if not track.is_silent:
            track.misses += 1
            if track.misses < MISSES_MAX:
                self._rest(track, now)
                return
            track.is_silent, track.misses = True, 0
            soon = now - track.promoted_s < STEADY_S
            track.needed = min(2 * track.needed, ANSWERS_NEEDED_MAX) if soon else ANSWERS_NEEDED
            if not track.full_size:
                peer.is_too_narrow = False
        self._judge(peer, now)
        self._rest(track, now + self._pace(track))

    def _judge(self, peer: _Peer, now: float) -> None:
        name = peer.small.peer
        verdict = None
        if peer.small.is_silent or peer.full.is_silent:
            verdict = TOO_NARROW if peer.is_too_narrow and not peer.small.is_silent else SILENT
        before = self.verdicts.get(name)
        if verdict == before:
            return
        if before is None:
            peer.silent_s = now
        others = {each: reason for each, reason in self.verdicts.items() if each != name}
        self.verdicts = others if verdict is None else {**others, name: verdict}

    def _pace(self, track: _Track) -> float:
        """Seconds from an answer to the next question."""
        interval_s = INTERVAL_S * max(1.0, len(self._watched) / PEERS_AT_FULL_PACE)
        if track.is_silent:
            interval_s *= RETRY_EVERY
        elif track.full_size:
            interval_s *= FULL_SIZE_EVERY
        return interval_s * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER)

    def _rest(self, track: _Track, until_s: float) -> None:
        assert not track.asked
        self._schedule(track, until_s)

    def _schedule(self, track: _Track, due_s: float) -> None:
        track.due_s = due_s
        self._serial += 1
        heapq.heappush(self._due, (due_s, self._serial, track))


def _new_peer(name: PeerName) -> _Peer:
    return _Peer(_Track(name, full_size=False), _Track(name, full_size=True))
