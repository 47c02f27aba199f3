"""Finding out what really gets through to a peer: how large a datagram, and whether many may go in one send.

A virtual network card may claim to cut UDP_SEGMENT sends and corrupt them; a tunnel on the way may swallow datagrams
of full size. So nothing is believed: a record that fills three datagrams is sent in each way, best first, until one is
answered. Pure: the clock comes in, questions come out. Until the first answer the smallest way is used, which every
path has; a way that was not the best is questioned again every minute, and the way in use whenever datagrams are lost.
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

    @property
    def way(self) -> Way:
        return self.ways[-1 if self.proven is None else self.proven]

    def due(self, now: float) -> tuple[Way, bytes] | None:
        """The question to send now, in a record that fills `DATAGRAMS` datagrams sent in that way."""
        if self.next_s is None or now < self.next_s:
            return None
        if self._tries >= TRIES:
            self._tries = 0
            if self._doubted:
                self._doubted, self.proven, self._asked = False, None, -1
            better = self.proven is None or self._asked + 1 < self.proven
            if not better or self._asked + 1 >= len(self.ways):
                self._asked = 0
                self.next_s = now + AGAIN_S
                return None
            self._asked += 1
        self.next_s = now + TRY_S * 2**self._tries
        self._tries += 1
        self._salt = (self._salt + 1) & 0xFFFFFFFF
        return self.ways[self._asked], _BODY.pack(self._asked, self._salt)

    def answered(self, body: bytes, now: float) -> None:
        """An answer, perhaps a late one. What the body says is under the seal, but the other side may be odd."""
        if len(body) != _BODY.size:
            return
        number, _ = _BODY.unpack(body)
        if self._doubted and number == self.proven:
            self._doubted = False
            self._rest(now)
        if number >= len(self.ways) or (self.proven is not None and number >= self.proven):
            return
        self.proven = number
        self._doubted = False
        self._rest(now)

    def _rest(self, now: float) -> None:
        self._asked = self._tries = 0
        self.next_s = None if self.proven == 0 else now + AGAIN_S

    def doubt(self, now: float) -> None:
        """Datagrams are lost: perhaps the path takes no longer what it took. Where no answer comes, all begins anew."""
        if self.proven is not None and not self._doubted and now - self._doubted_s >= DOUBT_S:
            self._doubted, self._doubted_s = True, now
            self._asked, self._tries, self.next_s = self.proven, 0, now

    def refused(self, now: float) -> None:
        """The kernel itself would not send in the way in use (EMSGSIZE, EINVAL, EIO): take the next one at once."""
        if self.proven is not None and self.proven + 1 < len(self.ways):
            self.proven += 1
            self._doubted = False
            self._rest(now)
