"""Which counters of a session were used already: a record that was seen once is never taken a second time.

Knows nothing of records, keys and time. The one idea (RFC 6479, section 2, turned around): counters are grouped in
blocks of 32, and a ring holds for each slot the newest block that fell into it, with one bit for each of its counters.
What is older than the block in its slot is refused, so nothing has to be cleared as the window moves, however far.

    slot  = block % 512, block = counter // 32
     63                         32 31                          0
    +-----------------------------+-----------------------------+
    | block                       | bits: counters seen of it   |
    +-----------------------------+-----------------------------+

A counter that was accepted is refused for ever: its block's bit is kept until a newer block takes the slot, and from
then on the whole block is refused. A new counter is refused only if one more than `REORDER_MAX` ahead was accepted.
"""

from __future__ import annotations

from array import array
from typing import Final

_BLOCK_BITS: Final = 32
_SLOTS: Final = 512
REORDER_MAX: Final = (_SLOTS - 1) * _BLOCK_BITS
"""16352: a counter may be this far behind the newest. A record takes as many counters as it has datagrams."""
COUNTER_MAX: Final = (_BLOCK_BITS << 32) - 1
"""2**37 - 1: what a block number of 32 bits reaches. A session's keys are exchanged long before."""

_BITS: Final = tuple(1 << bit for bit in range(_BLOCK_BITS))
_EMPTY: Final = array("Q", bytes(8 * _SLOTS))


class Window:
    """4 KiB. Ask `is_new` before the work of opening a record, `accept` only after its seal was found good."""

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        self._ring = _EMPTY[:]

    def is_new(self, counter: int) -> bool:
        """Would `accept` take it now?"""
        block = counter >> 5
        entry = self._ring[block & 511]
        if entry >> 32 == block:
            return not entry & _BITS[counter & 31]
        return entry >> 32 < block <= 0xFFFFFFFF

    def accept(self, counter: int) -> bool:
        """True once for each counter, and remembers it."""
        block = counter >> 5
        slot = block & 511
        entry = self._ring[slot]
        bit = _BITS[counter & 31]
        if entry >> 32 == block:
            if entry & bit:
                return False
            self._ring[slot] = entry | bit
            return True
        if entry >> 32 < block <= 0xFFFFFFFF:
            self._ring[slot] = block << 32 | bit
            return True
        return False

    @property
    def top(self) -> int:
        """The highest counter accepted, or -1. Some microseconds: not for every record."""
        newest = max(self._ring)
        return (newest >> 32) * _BLOCK_BITS + (newest & 0xFFFFFFFF).bit_length() - 1
