"""A ring that was left for another one: what a host had of it, should it come back.

To those who stay it is a host that is off, whose slots they take over a lease later. Coming back before or after that
is the same as starting again from the disk. Without this, a host that came back would say that it owns nothing: what it
had given away could be its own again by an early decision, and what it had not would be nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgpack

from gossip.names import PeerName
from mesh.ipam.charter import Charter, decode_charter_untrusted, encode_charter, flat, spans_of, unpack_own
from mesh.ipam.holdings import Holdings, cut, pack_ranges, unpack_ranges
from mesh.ipam.spans import Spans
from mesh.ipam.statement import Gift, Range


@dataclass(frozen=True, slots=True)
class Left:
    charter: Charter
    """The last decision that we knew."""
    ranges: tuple[Range, ...]
    gifts: tuple[Gift, ...]
    kept: tuple[tuple[PeerName, int, Spans], ...]
    """For whom, by which decision, which slots."""
    has_given: bool

    def without(self, slots: Spans) -> Left:
        return replace(self, ranges=tuple(cut(self.ranges, slots)))


def what_is_left(charter: Charter, holdings: Holdings, has_given: bool) -> Left:
    kept = tuple((peer, number, slots) for peer, (number, slots) in sorted(holdings.kept.items()))
    return Left(charter, tuple(holdings.ranges), tuple(holdings.gifts), kept, has_given)


def come_back(holdings: Holdings, left: Left) -> None:
    """Only where nothing is owned."""
    for each in left.ranges:
        holdings.add_range(each)
    holdings.add_gifts(left.gifts)
    for peer, number, slots in left.kept:
        holdings.keep(peer, number, slots)


def pack_left(left: Left) -> bytes:
    kept = [(peer, number + 1, flat(slots)) for peer, number, slots in left.kept]
    parts = [encode_charter(left.charter), pack_ranges(left.ranges, left.gifts), kept, left.has_given]
    return bytes(msgpack.packb(parts))


def unpack_left(packed: bytes) -> Left:
    charter, own, kept, has_given = unpack_own(packed)
    ranges, gifts = unpack_ranges(own)
    rows = tuple((PeerName(peer), number - 1, spans_of(slots, 1 << 24)) for peer, number, slots in kept)
    return Left(decode_charter_untrusted(charter), tuple(ranges), tuple(gifts), rows, has_given)
