"""Which peers VXLAN really reaches: when to send which probe, and what silence means.

Pure: `now`, answers and who is talked to come in, probes to send and verdicts come out. Knows nothing of sockets, of
routes or of what a verdict is used for. The one idea: probes follow traffic. A peer that frames go to is asked every
second in full size, which proves everything at once; the others share a fixed number of small probes a second, however
many they are. What is lost is asked again at once, in both sizes and in several copies, so that three questions in a
row find silence within three seconds, tell a narrow path from a dead one, and are hardly ever all lost by chance.

    trusted   --- MISSES_MAX questions in a row of which no full-size copy came back --->   silent, or too narrow
    trusted   <-- `needed` full-size answers, hardly interrupted --------------------------   silent, or too narrow

An answer counts as long as its question belongs to the row, so a long round trip is no silence. Whose silence was
followed by its host going out of reach had no chance to answer, so the verdict is taken back.
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
"""Between a peer's answer and the next question, while peers of its sort are few."""
ACTIVE_PER_S: Final = 40
"""Questions a second to all peers that frames go to: with more peers than that each is asked less often."""
IDLE_PER_S: Final = 10
"""The same for all others together."""
FULL_INTERVAL_S: Final = 5.0
FULL_PER_S: Final = 0.4
"""An idle peer is asked in full size so seldom: they cost bytes, and who begins to talk is asked at once anyway."""
RETRY_S: Final = 2.0
RETRY_PER_S: Final = 5
"""The same for silent ones."""
BURST: Final = 400
"""Probes that may go out together: 40 peers in use that fall silent at one moment cost 10 each."""
REFILL_PER_S: Final = 80
"""And that many a second on average. Questions to peers in use do not wait for it; they are bounded by their pace."""
JITTER: Final = 0.15
ANSWER_TIMEOUT_S: Final = 0.6
MISSES_MAX: Final = 3
FULL_COPIES: Final = (1, 2, 4)
SMALL_COPIES: Final = (0, 1, 2)
"""Of the first, second and third question of a row. The first of an idle peer may be a small one instead."""
SILENT_COPIES: Final = 2
ANSWERS_NEEDED: Final = 2
ANSWERS_NEEDED_MAX: Final = 16
"""Each silence soon after the last one doubles what is needed: a path on the edge must not flap."""
MISS_COSTS: Final = 2
"""Answers that one miss takes from a silent peer's: losses by chance only delay its return."""
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
class _Peer:
    name: PeerName
    verdict: str | None = None
    asked: dict[bytes, tuple[bool, float]] = field(default_factory=dict)
    """Of the row under way: each nonce, whether it was of full size, and when it went out."""
    is_waiting: bool = False
    """Whether the last question of the row may still be answered in time."""
    misses: int = 0
    """Questions of the row that were not."""
    small_answered: bool = False
    """In this row, where the size was not enough to end it."""
    odd_rounds: int = 0
    """While silent or too narrow: rounds in a row that say the other of the two."""
    answers: int = 0
    """While silent: of full size, less what misses took."""
    needed: int = ANSWERS_NEEDED
    promoted_s: float = float("-inf")
    silent_s: float = float("-inf")
    """When the last verdict came."""
    full_s: float = float("-inf")
    """When a full-size answer last came."""
    rtt_s: float | None = None
    due_s: float | None = None
    """When the answer is late or the next question due; None: not probed at all."""


class VxlanHealth:
    """All peers and what follows from their answers."""

    def __init__(self, rng: Random, silent: Mapping[PeerName, str]) -> None:
        """`silent`: the verdicts of an earlier life, which are not given up without an answer."""
        self.verdicts: Mapping[PeerName, str] = dict(silent)
        """The peers that VXLAN does not reach, and how. Replaced by another object when it changes."""
        self._rng = rng
        self._peers = {name: _Peer(name, verdict=reason) for name, reason in silent.items()}
        self._watched: frozenset[PeerName] = frozenset()
        self._active: frozenset[PeerName] | None = None
        self._due: list[tuple[float, int, _Peer]] = []
        """A heap; an entry counts only while it is what its peer says."""
        self._serial = 0
        self._doubted: set[PeerName] = set()
        self._tokens = float(BURST)
        self._tokens_s = 0.0

    def watch(self, names: Collection[PeerName], now: float) -> None:
        """Probe these and no others from now on. What was found of others stays."""
        wanted = frozenset(names)
        for name in sorted(self._watched - wanted):
            self._unwatch(name, now)
        newcomers = sorted(wanted - self._watched)
        spread_s = max(CONFIRM_DELAY_S, len(newcomers) / ACTIVE_PER_S)
        for name in newcomers:
            self._schedule(self._peers.setdefault(name, _Peer(name)), now + self._rng.uniform(0.0, spread_s))
        self._watched = wanted

    def _unwatch(self, name: PeerName, now: float) -> None:
        peer = self._peers[name]
        _end_row(peer)
        peer.answers, peer.due_s = 0, None
        if now - peer.silent_s < RECANT_S:
            peer = self._peers[name] = _Peer(name)
        self._tell(peer, now)

    def keep_only(self, names: Collection[PeerName]) -> None:
        """Forget whatever was found of other peers: they are no more."""
        gone = self._peers.keys() - set(names) - self._watched
        if gone:
            self._peers = {name: peer for name, peer in self._peers.items() if name not in gone}
            if not gone.isdisjoint(self.verdicts):
                self.verdicts = {name: reason for name, reason in self.verdicts.items() if name not in gone}

    def talk(self, names: frozenset[PeerName] | None, now: float) -> None:
        """Frames went to these by VXLAN lately; None: nobody knows, so it may be any. Who is new is asked at once."""
        before, self._active = self._active, names
        if names is None or names == before:
            return
        for name in sorted((names if before is None else names - before) & self._watched):
            peer = self._peers[name]
            if peer.verdict is None and not peer.is_waiting:
                self._schedule(peer, max(now, peer.full_s + INTERVAL_S))

    def doubted(self) -> frozenset[PeerName]:
        """Who left a first question unanswered since the last call: silence may follow."""
        doubted = frozenset(self._doubted)
        self._doubted.clear()
        return doubted

    def check(self, names: Collection[PeerName], now: float) -> None:
        """Ask these now: they may soon be needed, and are as doubtful as what fails: a miss counts for them already, so
        that silence is found here as soon as there."""
        for name in sorted(self._watched.intersection(names)):
            peer = self._peers[name]
            if peer.verdict is None:
                peer.misses = max(peer.misses, 1)
                if not peer.is_waiting:
                    self._schedule(peer, now)

    def resize(self, now: float) -> None:
        """Full size is another one now: who was too narrow for the old one, or about to be, is asked at once."""
        for name in sorted(self._watched):
            peer = self._peers[name]
            if peer.verdict == TOO_NARROW or peer.misses:
                _end_row(peer)
                self._schedule(peer, now)

    def rtt_s(self, name: PeerName) -> float | None:
        """How long the last answered probe took, there and back."""
        peer = self._peers.get(name)
        return peer.rtt_s if peer is not None else None

    # -- time --------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        while self._due and self._due[0][0] != self._due[0][2].due_s:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def due(self, now: float) -> list[Ask]:
        """Count what is late as missed, and ask whom it is time to ask. Take in waiting answers first."""
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._tokens_s) * REFILL_PER_S)
        self._tokens_s = now
        asks: list[Ask] = []
        while (due_s := self.next_due()) is not None and due_s <= now:
            peer = heapq.heappop(self._due)[2]
            if peer.is_waiting:
                self._missed(peer, now)
            if peer.due_s is not None and peer.due_s <= now:
                asks += self._ask(peer, now)
        return asks

    def _ask(self, peer: _Peer, now: float) -> list[Ask]:
        full, small = self._copies(peer, now)
        if self._tokens < full + small and not self._is_in_use(peer):
            self._schedule(peer, now + (full + small - self._tokens) / REFILL_PER_S * self._rng.uniform(1.0, 2.0))
            return []
        self._tokens -= full + small
        asks = [Ask(peer.name, self._rng.randbytes(8), number < full) for number in range(full + small)]
        peer.asked.update((ask.nonce, (ask.full_size, now)) for ask in asks)
        peer.is_waiting = True
        self._schedule(peer, now + ANSWER_TIMEOUT_S)
        return asks

    def _copies(self, peer: _Peer, now: float) -> tuple[int, int]:
        """Probes of full size and small ones for the next question."""
        if peer.verdict is not None:
            asks_full = peer.verdict == TOO_NARROW or peer.answers or peer.small_answered or peer.odd_rounds
            return SILENT_COPIES if asks_full else 0, SILENT_COPIES
        if peer.misses:
            return FULL_COPIES[peer.misses], SMALL_COPIES[peer.misses]
        if self._is_in_use(peer) or now - peer.full_s >= self._full_interval_s():
            return FULL_COPIES[0], 0
        return 0, 1

    def _is_in_use(self, peer: _Peer) -> bool:
        return self._active is not None and peer.name in self._active and peer.verdict is None

    def _full_interval_s(self) -> float:
        return FULL_INTERVAL_S if self._active is None else max(FULL_INTERVAL_S, len(self._watched) / FULL_PER_S)

    # -- what comes of it --------------------------------------------------------------------------

    def answered(self, name: PeerName, nonce: bytes, now: float) -> None:
        """Somebody answered, by VXLAN. An answer to what nobody asked, or asked too long ago, changes nothing."""
        peer = self._peers.get(name)
        asked = peer.asked.pop(nonce, None) if peer is not None else None
        if peer is None or asked is None:
            return
        is_full, asked_s = asked
        peer.rtt_s = now - asked_s
        if is_full:
            peer.full_s = now
        if peer.verdict is not None:
            self._answered_again(peer, is_full, now)
        elif is_full or not (peer.misses or any(full for full, _ in peer.asked.values())):
            _end_row(peer)
            self._schedule(peer, now + self._pace(peer))
        else:
            peer.small_answered = True

    def _answered_again(self, peer: _Peer, is_full: bool, now: float) -> None:
        """By a silent peer."""
        if not is_full:
            was_alone = not any(full for full, _ in peer.asked.values())
            peer.small_answered = True
            if was_alone and peer.is_waiting:  # nothing larger was asked: do so soon
                peer.asked.clear()
                peer.is_waiting = False
                self._schedule(peer, now + CONFIRM_DELAY_S)
            return
        peer.answers += 1
        _end_row(peer)
        peer.odd_rounds = 0
        if peer.answers < peer.needed:
            self._schedule(peer, now + CONFIRM_DELAY_S)
            return
        peer.verdict, peer.answers, peer.promoted_s = None, 0, now
        self._tell(peer, now)
        self._schedule(peer, now + self._pace(peer))

    def abandon(self, now: float, names: Collection[PeerName] | None = None) -> None:
        """What is under way (to these peers) will not be answered, and that is not their fault."""
        for name in sorted(self._watched if names is None else names):
            peer = self._peers.get(name)
            if peer is not None and peer.is_waiting:
                peer.is_waiting = False
                peer.asked.clear()
                self._schedule(peer, now + self._pace(peer))

    def _missed(self, peer: _Peer, now: float) -> None:
        peer.is_waiting = False
        if peer.verdict is not None:
            self._missed_again(peer, now)
            self._schedule(peer, now + self._pace(peer))
            return
        peer.misses += 1
        if peer.misses == 1:
            self._doubted.add(peer.name)
        if peer.misses < MISSES_MAX:
            self._schedule(peer, now)
            return
        soon = now - peer.promoted_s < STEADY_S
        peer.needed = min(2 * peer.needed, ANSWERS_NEEDED_MAX) if soon else ANSWERS_NEEDED
        peer.verdict = TOO_NARROW if peer.small_answered else SILENT
        peer.odd_rounds = 0
        _end_row(peer)
        self._tell(peer, now)
        self._schedule(peer, now + self._pace(peer))

    def _missed_again(self, peer: _Peer, now: float) -> None:
        """A silent peer's round without an answer of full size: which of the two kinds of silence is it?"""
        peer.answers = max(0, peer.answers - MISS_COSTS)
        is_odd = peer.small_answered is (peer.verdict == SILENT)
        peer.odd_rounds = peer.odd_rounds + 1 if is_odd else 0
        if peer.odd_rounds >= MISSES_MAX:
            peer.verdict = TOO_NARROW if peer.small_answered else SILENT
            peer.odd_rounds = 0
            self._tell(peer, now)
        _end_row(peer)

    def _tell(self, peer: _Peer, now: float) -> None:
        before = self.verdicts.get(peer.name)
        if peer.verdict == before:
            return
        if before is None:
            peer.silent_s = now
        others = {each: reason for each, reason in self.verdicts.items() if each != peer.name}
        self.verdicts = others if peer.verdict is None else {**others, peer.name: peer.verdict}

    def _pace(self, peer: _Peer) -> float:
        """Seconds from an answer to the next question."""
        if peer.verdict is not None:
            interval_s = max(RETRY_S, len(self.verdicts) / RETRY_PER_S)
        elif self._active is None:
            interval_s = max(INTERVAL_S, len(self._watched) / ACTIVE_PER_S)
        elif peer.name in self._active:
            interval_s = max(INTERVAL_S, len(self._active) / ACTIVE_PER_S)
        else:
            interval_s = max(INTERVAL_S, len(self._watched) / IDLE_PER_S)
        return interval_s * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER)

    def _schedule(self, peer: _Peer, due_s: float) -> None:
        peer.due_s = due_s
        self._serial += 1
        heapq.heappush(self._due, (due_s, self._serial, peer))


def _end_row(peer: _Peer) -> None:
    peer.asked.clear()
    peer.is_waiting = peer.small_answered = False
    peer.misses = 0
