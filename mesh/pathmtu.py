"""How large a packet each path takes in one piece: when to ask in which size, and what follows from the answers.

Pure: `now` and answers come in, questions to send and found sizes come out. Sizes are those of overlay packets, below
and above the network's MTU alike. Knows nothing of sockets, nor of what a path's size is used for. The one idea: an
answer is a fact and silence is not. So the largest size that was answered only rises within a search, a size is given
up after several tries in each of which a smaller one was answered, and before a path is called narrower than it might
be, what failed is asked once more. Chance and a path that is down shrink nothing then.

    round:   the largest answered < some sizes, evenly spread < the smallest that failed
             each up to TRIES times, several at once; then the next round between the two nearest of the outcome
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from dataplane.desired import Address
from gossip.names import PeerName

SEARCH_MIN_BYTES: Final = 576
"""Smaller packets are not looked for: what every IPv4 path takes."""
LIKELY_BYTES: Final = (1280, 1350, 1370, 1430, 1450, 8950)
"""IPv6's minimum; underlays of 1400, 1420 (WireGuard), 1480 (a tunnel), 1500 and 9000 bytes."""
SIZES_PER_ROUND: Final = 10
TRIES: Final = 3
COPIES: Final = (1, 1, 2)
"""Of each question, in the first, second and third try."""
VERIFY_COPIES: Final = (2, 2, 2)
BLANK_TRIES_MAX: Final = 4
"""Tries without any answer, after which a search is given up: the path is down, and says nothing of its size."""
TRIES_TOTAL_MAX: Final = 64
TRY_MIN_S: Final = 0.1
TRY_MAX_S: Final = 0.6
TRY_ROUND_TRIPS: Final = 2.5
SEARCHES_MAX: Final = 4
"""Under way at once; others wait for their turn."""
FIRST_PER_S: Final = 10
"""Peers that come together are measured one after the other."""
AGAIN_S: Final = 600.0
"""A path is measured again so often. Where a router told the kernel that the path is narrow, the kernel believes it for
ten minutes, so more often would be of little use."""
RETRY_S: Final = 15.0
"""After a search that was given up, doubling up to `AGAIN_S`."""
JITTER: Final = 0.2


@dataclass(frozen=True, slots=True)
class Way:
    """Where a peer's VXLAN is reached."""

    destination: Address
    ceiling: int
    """The largest overlay packet that both ends' own underlays take."""
    instance: bytes = b""
    """Of the peer's daemon: after a launch the way is measured anew."""
    told_mtu: int = 0
    """What the peer says that it takes: where that changes, somebody may have found this way narrower."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A question to send now; it must not be cut on the way."""

    peer: PeerName
    nonce: bytes
    packet_bytes: int
    """0: as small as possible."""


class PathSearch:
    """Of one path, once."""

    def __init__(self, rng: Random, ceiling: int, known: int, now: float) -> None:
        """`ceiling`: what either end takes at most; `known`: what was found before or is likely, 0 for
        nothing."""
        self.low = 0
        """The largest that was answered."""
        self.is_done = False
        self.failed = False
        """Given up: nothing is known then, or nothing new."""
        self.due_s = now
        self._rng = rng
        self._ceiling = ceiling
        self._high = ceiling + 1
        """The smallest that is taken not to pass."""
        self._sizes = tuple(sorted({size for size in (known, known + 1, ceiling) if 0 < size <= ceiling} - {1}))
        self._verified: int | None = None
        """What was the largest when it was last asked once more about what failed; and while that is being done."""
        self._is_verifying = False
        self._tries = self._tries_total = self._blank = 0
        self._asked: dict[bytes, tuple[int, float]] = {}
        self._is_heard = True
        self._rtt_s = TRY_MIN_S / TRY_ROUND_TRIPS

    def due(self, now: float) -> list[tuple[bytes, int]]:
        """(nonce, size) of what to send now; `is_done` and `due_s` say what is next."""
        if now < self.due_s:
            return []
        if self._tries_total:
            self._close_try()
        while not self.is_done and not self._open():
            self._next_round()
        return [] if self.is_done else self._ask(now)

    def _open(self) -> list[int]:
        """Sizes of this round that are still in question."""
        return [size for size in self._sizes if self.low < size < self._high]

    def _close_try(self) -> None:
        if self._tries_total >= TRIES_TOTAL_MAX:
            self.is_done, self.failed = True, self.low == 0
        elif not self._is_heard:
            self._blank += 1
            self._tries -= 1
            if self._blank >= BLANK_TRIES_MAX:
                self.is_done = self.failed = True
        elif (sizes := self._open()) and self._tries >= TRIES:
            self._high = sizes[0]

    def _next_round(self) -> None:
        self._tries = 0
        self._is_verifying = False
        floor = max(self.low, SEARCH_MIN_BYTES - 1)
        if self.low >= self._ceiling or (self._high - floor <= 1 and self._verified == self.low):
            self.is_done = True
            self.failed = self.low == 0
        elif self._high - floor <= 1:
            self._is_verifying, self._verified = True, self.low
            self._sizes = tuple(sorted({self._high, self._ceiling}))
            self._high = self._ceiling + 1
        else:
            step = (self._high - floor) / (SIZES_PER_ROUND + 1)
            spread = {floor + max(1, round(step * number)) for number in range(1, SIZES_PER_ROUND + 1)}
            self._sizes = tuple(sorted(spread | set(LIKELY_BYTES)))

    def _ask(self, now: float) -> list[tuple[bytes, int]]:
        """The open sizes, and beside them the smallest: without an answer to that, silence says nothing."""
        copies = (VERIFY_COPIES if self._is_verifying else COPIES)[min(self._tries, TRIES - 1)]
        sizes = [0] * max(copies, self._blank) + [size for size in self._open() for _ in range(copies)]
        questions = [(self._rng.randbytes(8), size) for size in sizes]
        self._asked.update((nonce, (size, now)) for nonce, size in questions)
        self._is_heard = False
        self._tries += 1
        self._tries_total += 1
        self.due_s = now + min(TRY_MAX_S, max(TRY_MIN_S, TRY_ROUND_TRIPS * self._rtt_s))
        return questions

    def answered(self, nonce: bytes, now: float) -> bool:
        """An answer, perhaps a late one; whether it was to one of these questions."""
        asked = self._asked.pop(nonce, None)
        if asked is None or self.is_done:
            return False
        size, asked_s = asked
        self._rtt_s = max(now - asked_s, self._rtt_s / 2)
        self._is_heard = True
        self._blank = 0
        if size > self.low:
            self.low = size
            if size >= self._high:  # given up too early
                self._high = self._ceiling + 1
            if not self._open():
                self.due_s = now
        return True


@dataclass(slots=True, eq=False)
class _Path:
    way: Way
    due_s: float
    retry_s: float = RETRY_S
    search: PathSearch | None = None
    is_queued: bool = False


@dataclass(slots=True)
class PathMtus:
    """Of all peers."""

    rng: Random
    found: Mapping[PeerName, int]
    """The largest packet that passes in one piece. Replaced by another object when it changes; begins with what an
    earlier life found."""
    _paths: dict[PeerName, _Path] = field(default_factory=dict)
    _queue: deque[PeerName] = field(default_factory=deque)
    """Whose time has come, in order."""
    _running: set[PeerName] = field(default_factory=set)
    _narrow_bytes: int = 0
    """What was last found on a narrow path: others lead the same way, most likely."""

    def watch(self, ways: Mapping[PeerName, Way], now: float) -> None:
        """Measure these, and no others. What was found of others stays."""
        for name in self._paths.keys() - ways.keys():
            del self._paths[name]
            self._running.discard(name)
        news = sorted(name for name, way in ways.items() if name not in self._paths or self._paths[name].way != way)
        spread_s = len(news) / FIRST_PER_S
        for name in news:
            if (path := self._paths.get(name)) is not None:
                if path.search is not None and replace(path.way, told_mtu=ways[name].told_mtu) == ways[name]:
                    path.way = ways[name]  # it is being looked at
                    continue
                self._end(name, path)
            self._paths[name] = _Path(ways[name], now + self.rng.uniform(0.0, spread_s))

    def keep_only(self, names: Collection[PeerName]) -> None:
        """Forget what was found of other peers: they are no more."""
        if gone := self.found.keys() - set(names) - self._paths.keys():
            self.found = {name: size for name, size in self.found.items() if name not in gone}

    def hurry(self, names: Collection[PeerName], now: float) -> None:
        """Something does not get through there: measure now, before others."""
        for name in sorted(names):
            path = self._paths.get(name)
            if path is None:
                continue
            self._end(name, path)  # what it found so far was of the path as it was
            if path.is_queued:
                self._queue.remove(name)
            path.is_queued, path.due_s = True, now
            self._queue.appendleft(name)

    def next_due(self) -> float | None:
        running = [path.search.due_s for name in self._running if (path := self._paths[name]).search is not None]
        if len(self._running) < SEARCHES_MAX:
            running += [path.due_s for path in self._paths.values() if path.search is None]
        return min(running, default=None)

    def due(self, now: float) -> list[Measure]:
        """What to send now. Take in waiting answers first."""
        for name, path in self._paths.items():
            if path.search is None and not path.is_queued and path.due_s <= now:
                path.is_queued = True
                self._queue.append(name)
        while self._queue and len(self._running) < SEARCHES_MAX:
            name = self._queue.popleft()
            started = self._paths.get(name)
            if started is not None and started.is_queued:
                started.is_queued = False
                likely = self.found.get(name) or self._narrow_bytes
                started.search = PathSearch(self.rng, started.way.ceiling, likely, now)
                self._running.add(name)
        measures = []
        for name in sorted(self._running):
            search = self._paths[name].search
            assert search is not None
            measures += [Measure(name, nonce, size) for nonce, size in search.due(now)]
            if search.is_done:
                self._finish(name, self._paths[name], search, now)
        return measures

    def answered(self, name: PeerName, nonce: bytes, now: float) -> None:
        """Somebody answered. What nobody asked, or no longer, changes nothing."""
        path = self._paths.get(name)
        if path is not None and path.search is not None:
            path.search.answered(nonce, now)

    def _finish(self, name: PeerName, path: _Path, search: PathSearch, now: float) -> None:
        self._end(name, path)
        if search.failed:
            path.due_s = now + path.retry_s * self.rng.uniform(1.0 - JITTER, 1.0 + JITTER)
            path.retry_s = min(2 * path.retry_s, AGAIN_S)
            return
        path.retry_s = RETRY_S
        path.due_s = now + AGAIN_S * self.rng.uniform(1.0, 1.0 + JITTER)
        if search.low < path.way.ceiling:
            self._narrow_bytes = search.low
        if self.found.get(name) != search.low:
            self.found = {**self.found, name: search.low}

    def _end(self, name: PeerName, path: _Path) -> None:
        path.search = None
        self._running.discard(name)
