"""Finding out what really gets through to a peer: how large a datagram, and whether many may go in one send.

A virtual network card may claim to cut UDP_SEGMENT sends and corrupt them; a tunnel on the way may swallow datagrams
of full size. So nothing is believed: a record that fills three datagrams is sent in each way, best first, until one is
answered. Pure: the clock comes in, questions come out. Until the first answer the smallest way is used, which every
path has; a way that was not the best is questioned again every minute, and the way in use whenever datagrams are lost.

Between the best size of the ladder and the next larger one lies what the path really takes: that is found by halving,
a few questions a step, each time that the ladder has come to rest below its top.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dataplane.sleeve.wire import SEND_MAX_BYTES

DATAGRAM_BYTES: Final = (1372, 1252, 548)
"""UDP payloads to fall back to: beneath another tunnel, IPv6's minimum of 1280, IPv4's of 576."""
TRIES: Final = 4
TRY_S: Final = 0.08
"""Between two questions of the same kind, doubling; a path with a longer round trip answers the earlier ones late."""
AGAIN_S: Final = 60.0
DOUBT_S: Final = 5.0
"""Between two doubts of the way in use."""
FINE_TRIES: Final = 3
FINE_BYTES: Final = 24
"""The size in use is at most so much below what the path takes."""
FINE_NUMBER: Final = 255
"""Stands for a size between two of the ladder in a question, whose salt says which."""
DATAGRAMS: Final = 3
LARGEST_BYTES: Final = SEND_MAX_BYTES // DATAGRAMS
_BODY: Final = struct.Struct("!BI")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to send."""

    datagram_bytes: int
    """UDP payload of a full datagram."""
    segmented: bool
    """One UDP_SEGMENT send for all datagrams of a record."""


class Trial:
    """Of one session with one peer."""

    def __init__(self, datagram_bytes: int, may_segment: bool, steps: tuple[int, ...] = DATAGRAM_BYTES) -> None:
        """`datagram_bytes`: what fits the underlay's MTU on this host; `steps`: what to fall back to."""
        datagram_bytes = min(datagram_bytes, LARGEST_BYTES)
        sizes = [datagram_bytes, *(size for size in steps if size < datagram_bytes)]
        ways = [Way(size, segmented) for size in sizes for segmented in (True, False)]
        self.ways = [way for way in ways if may_segment or not way.segmented]
        self.proven: int | None = None
        """Number of the best way that was answered."""
        self._asked = 0
        """Number of the way in question."""
        self._tries = 0
        self.next_s: float | None = 0.0
        self._salt = 0
        self._doubted = False
        """Whether the way in question is the one in use."""
        self._doubted_s = float("-inf")
        self._before_doubt: tuple[int, int, float | None] = (0, 0, None)
        self._fine_bytes = 0
        """The largest size between two of the ladder that was answered; 0 where there is none."""
        self._fine_asked = 0
        """The size in question; 0 while the ladder is asked about."""
        self._fine_failed = 0
        """The smallest that is taken not to pass."""
        self._fine_salts: set[int] = set()
        """Of the questions in that size."""

    @property
    def way(self) -> Way:
        way = self.ways[-1 if self.proven is None else self.proven]
        return way if self._fine_bytes <= way.datagram_bytes else Way(self._fine_bytes, way.segmented)

    def due(self, now: float) -> tuple[Way, bytes] | None:
        """The question to send now, in a record that fills `DATAGRAMS` datagrams sent in that way."""
        if self.next_s is None or now < self.next_s:
            return None
        if self._fine_asked and not self._doubted and (finer := self._due_finer(now)):
            return finer
        if now < self.next_s:
            return None
        if self._tries >= TRIES:
            self._tries = 0
            if self._doubted:
                self._doubted, self.proven, self._asked = False, None, -1
                self._fine_bytes = self._fine_asked = 0
            better = self.proven is None or self._asked + 1 < self.proven
            if not better or self._asked + 1 >= len(self.ways):
                self._rest(now)
                return None
            self._asked += 1
        asked = self.way if self._doubted else self.ways[self._asked]
        return asked, _BODY.pack(self._asked, self._next_try(now))

    def _next_try(self, now: float) -> int:
        """The salt of the question that goes out now."""
        assert self.next_s is not None
        self.next_s = now + TRY_S * 2**self._tries
        self._tries += 1
        self._salt = (self._salt + 1) & 0xFFFFFFFF
        return self._salt

    def _due_finer(self, now: float) -> tuple[Way, bytes] | None:
        """The next question in a size between two of the ladder. None where that has come to its end."""
        if self._tries >= FINE_TRIES:
            self._fine_failed = self._fine_asked
            self._halve(now)
            if not self._fine_asked:
                return None
        salt = self._next_try(now)
        self._fine_salts.add(salt)
        return Way(self._fine_asked, self.way.segmented), _BODY.pack(FINE_NUMBER, salt)

    def _halve(self, now: float) -> None:
        low = self.way.datagram_bytes
        is_fine = self._fine_failed - low <= FINE_BYTES
        self._fine_asked = 0 if is_fine else (low + self._fine_failed) // 2
        self._fine_salts.clear()
        self._tries = 0
        self.next_s = now + AGAIN_S if is_fine else now

    def answered(self, body: bytes, now: float) -> None:
        """An answer, perhaps a late one. What the body says is under the seal, but the other side may be odd."""
        if len(body) != _BODY.size:
            return
        number, salt = _BODY.unpack(body)
        if self._doubted and number == self.proven:
            self._doubted = False
            self._asked, self._tries, self.next_s = self._before_doubt
        if number == FINE_NUMBER and salt in self._fine_salts and not self._doubted:
            self._fine_bytes = self._fine_asked
            self._halve(now)
        if number >= len(self.ways) or (self.proven is not None and number >= self.proven):
            return
        self.proven = number
        self._doubted = False
        if self._fine_bytes <= self.ways[number].datagram_bytes:
            self._fine_bytes = 0
        self._rest(now)

    def _rest(self, now: float) -> None:
        """The ladder has nothing to ask for a while: look at what lies between its steps."""
        self._asked = self._tries = self._fine_asked = 0
        self._fine_salts.clear()
        self.next_s = None if self.proven == 0 else now + AGAIN_S
        larger = [way.datagram_bytes for way in self.ways if way.datagram_bytes > self.way.datagram_bytes]
        if self.proven is None or not larger or larger[-1] - self.way.datagram_bytes <= FINE_BYTES:
            return
        self._fine_failed = larger[-1]
        # What was found before may have become more, which one question tells; else it is half of what there is.
        low = self.way.datagram_bytes
        self._fine_asked = low + FINE_BYTES if self._fine_bytes else (low + self._fine_failed) // 2
        self.next_s = now

    def doubt(self, now: float) -> None:
        """Datagrams are lost: perhaps the path takes no longer what it took. Where no answer comes, all begins anew."""
        if self.proven is not None and not self._doubted and now - self._doubted_s >= DOUBT_S:
            self._before_doubt = (self._asked, self._tries, self.next_s)
            self._doubted, self._doubted_s = True, now
            self._asked, self._tries, self.next_s = self.proven, 0, now

    def refused(self, now: float) -> None:
        """The kernel itself would not send in the way in use (EMSGSIZE, EINVAL, EIO): take the next one at once."""
        if self._fine_bytes and self.proven is not None:
            self._fine_bytes = 0
            self._doubted = False
            self._rest(now)
        elif self.proven is not None and self.proven + 1 < len(self.ways):
            self.proven += 1
            self._doubted = False
            self._rest(now)
