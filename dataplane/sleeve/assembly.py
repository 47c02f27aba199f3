"""Records that came in parts, put together again.

Takes parts of one record in whatever way they come and gives the sealed record when there is enough of it. Knows no
keys: that the parts belong together is proven by the seal afterwards, so all that matters here is that nobody can make
it hold much or for long. The one idea: it holds only parts for sessions that exist, few at a time; the oldest goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from dataplane.sleeve import parity as code
from dataplane.sleeve.wire import DATAGRAMS_MAX, SEND_MAX_BYTES

AGE_MAX_S: Final = 0.05
PARTIALS_MAX: Final = 64
BYTES_MAX: Final = 4 * 1024 * 1024
"""What all unfinished records may hold together."""


@dataclass(slots=True)
class Burst:
    """An unfinished burst: its header, and what followed it from the same address, in order."""

    header: bytes
    index: int
    counter: int
    datagrams: int
    size: int
    """Of the whole, header included."""
    segment: int
    began_s: float
    parts: list[bytes] = field(default_factory=list)
    have: int = 0


@dataclass(slots=True)
class Pieces:
    count: int
    parity: int
    size: int
    began_s: float
    parts: dict[int, bytes] = field(default_factory=dict)


class Assembly:
    """All unfinished records of one worker."""

    def __init__(self) -> None:
        self.bursts: dict[object, Burst] = {}
        """By source address: at most one each, because a burst's datagrams come one after the other."""
        self.pieces: dict[tuple[int, int], Pieces] = {}
        """By receiver's index and counter."""
        self.bytes = 0
        self.dropped = 0
        """Records given up, whole."""
        self.recovered = 0
        """Records that parity completed."""

    def begin_burst(self, address: object, burst: Burst, data: memoryview) -> None:
        """The beginning of a burst of which more must follow."""
        if address in self.bursts:
            self.give_up_burst(address)
        elif len(self.bursts) >= PARTIALS_MAX:
            self.give_up_burst(next(iter(self.bursts)))
        self.bursts[address] = burst
        self._append(burst, data)
        self._bound()

    def continue_burst(self, address: object, data: memoryview, now: float) -> tuple[Burst, bytearray] | None:
        """More of it. The burst and its sealed bytes, header included, when that was the last of it."""
        burst = self.bursts[address]
        if burst.have + len(data) > burst.size or now - burst.began_s > AGE_MAX_S:
            self.give_up_burst(address)
            return None
        self._append(burst, data)
        if burst.have < burst.size:
            self._bound()
            return None
        del self.bursts[address]
        self.bytes -= burst.have
        return burst, bytearray().join(burst.parts)

    def give_up_burst(self, address: object) -> None:
        self.bytes -= self.bursts.pop(address).have
        self.dropped += 1

    def _append(self, burst: Burst, data: memoryview) -> None:
        burst.parts.append(bytes(data))
        burst.have += len(data)
        self.bytes += len(data)

    def take(
        self, index: int, counter: int, number: int, count: int, parity: int, parts: Sequence[memoryview], now: float
    ) -> Sequence[code.Piece]:
        """Pieces from `number` on. All the data pieces, in order, when they were the last that were needed."""
        size = len(parts[0])
        if not 0 < count <= DATAGRAMS_MAX or size == 0 or count * size > SEND_MAX_BYTES:
            self.dropped += 1
            return ()
        if number + len(parts) > count + parity or len(parts[-1]) != size:
            self.dropped += 1
            return ()
        key = (index, counter)
        found = self.pieces.get(key)
        if number == 0 and len(parts) >= count:
            if found is not None:
                self._forget_pieces(key)
            return parts[:count]
        if found is None:
            if len(self.pieces) >= PARTIALS_MAX:
                self._give_up_pieces(next(iter(self.pieces)))
            found = self.pieces[key] = Pieces(count, parity, size, now)
        elif (found.count, found.parity, found.size) != (count, parity, size):
            return ()
        held = found.parts
        for part in parts:
            if number not in held:
                held[number] = bytes(part)
                self.bytes += size
            number += 1
        if len(held) < count:
            self._bound()
            return ()
        self._forget_pieces(key)
        if all(each in held for each in range(count)):
            return [held[each] for each in range(count)]
        whole = code.recover(held, count, parity)
        if whole is None:
            self.dropped += 1
            return ()
        self.recovered += 1
        return whole

    def expire(self, now: float) -> None:
        """Give up pieces that are too old; records begin in the order of the dictionary. Bursts are the receiver's."""
        for key, pieces in list(self.pieces.items()):
            if now - pieces.began_s <= AGE_MAX_S:
                break
            self._give_up_pieces(key)

    def _forget_pieces(self, key: tuple[int, int]) -> None:
        gone = self.pieces.pop(key)
        self.bytes -= gone.size * len(gone.parts)

    def _give_up_pieces(self, key: tuple[int, int]) -> None:
        self._forget_pieces(key)
        self.dropped += 1

    def _bound(self) -> None:
        while self.bytes > BYTES_MAX:
            if self.pieces:
                self._give_up_pieces(next(iter(self.pieces)))
            else:
                self.give_up_burst(next(iter(self.bursts)))
