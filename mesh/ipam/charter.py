"""What the ring has decided, as one value: the newest charter is all that anybody needs of its history.

Decision 0 makes the ring: its ranges, its first voters, a share for each. Every later one is made by a majority of the
voters that the one before named: others vote from now on; or a dead peer's slots go to an heir. A peer holds one
charter and replaces it by any with a higher number, so this state merges without ever failing.

*Seats* are how voters and heirs are named: a peer name, or, in a ring that `seed` made before anybody's name was
known, a nickname with that word before it. *Grants* are slots that a decision gave and whose heir has not been seen to
have taken them; *fences* say which decision took a peer's slots away, so that it knows when it is back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Any

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PEER_NAME_BYTES, PeerName, parse_name
from mesh.ipam import spans
from mesh.ipam.ranges import LEASE_MAX_S
from mesh.ipam.space import AUTOMATIC6, SLOTS_MAX, Space, unique_local
from mesh.ipam.spans import Spans

RING_BYTES = 16
VOTERS_MAX = 7
FIRST_SHARES_MAX = 32
"""Of a ring that is made: who is there beyond these asks for slots like anybody who comes later."""
FENCES_MAX = 96
GRANTS_MAX = 64
CHARTER_BYTES_MAX = 7000
"""So that a charter, and a vote on one, fits a page of documents."""
SEAT_BYTES_MAX = 80
NUMBER_MAX = 1 << 48
SPANS_MAX = 400

Seat = bytes


_NICKNAME = b"nickname:"


def nickname_seat(nickname: str) -> Seat:
    return _NICKNAME + nickname.encode()[: SEAT_BYTES_MAX - len(_NICKNAME)]


def is_name(seat: Seat) -> bool:
    return len(seat) == PEER_NAME_BYTES


@dataclass(frozen=True, slots=True)
class Grant:
    """Slots that decision `number` gave to `heir`."""

    number: int
    heir: Seat
    slots: Spans
    reserved: Spans
    """Those of them that may be in use on `source`."""
    source: Seat
    """For which host they are kept, as a rule whose slots they were; empty for a first share, and where that is not
    told apart."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Decision `number` took everything away from `peer`."""

    peer: PeerName
    number: int
    heir: Seat
    removed: bool
    """By an operator's word: it does not come back, and what was kept for it is free."""


@dataclass(frozen=True, slots=True)
class Charter:
    ring: bytes
    number: int
    space: Space
    lease_s: int
    voters: tuple[Seat, ...]
    """Sorted."""
    since: int = 0
    """The decision by which these vote."""
    former: tuple[Seat, ...] = ()
    """Who voted before them, those excepted whom a word left out."""
    former_needed: int = 0
    """Of how many of them those who vote now must know what they held."""
    grants: tuple[Grant, ...] = ()
    fences: tuple[Fence, ...] = ()
    """The latest ones, by number."""
    note: str = ""
    """What this decision was, for people."""

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def blocking(self) -> int:
        """So many voters that no majority is without one of them."""
        return blocking_of(self.voters)

    def fence_of(self, peer: PeerName) -> Fence | None:
        return next((fence for fence in self.fences if fence.peer == peer), None)

    def fenced_after(self, peer: PeerName, number: int) -> bool:
        """Whether a decision later than `number` took the slots of `peer`. Fences older than those that are kept are
        taken for granted: a peer that missed so many decisions was among the dead."""
        fence = self.fence_of(peer)
        if fence is not None:
            return fence.number > number
        return len(self.fences) >= FENCES_MAX and self.fences[0].number > number

    def granted(self, seat: Seat) -> list[Grant]:
        return [grant for grant in self.grants if grant.heir == seat]

    def with_voters(self, voters: Iterable[Seat], note: str) -> Charter:
        """The next decision: these vote from now on."""
        return replace(
            self, number=self.number + 1, voters=tuple(sorted(set(voters))), since=self.number + 1,
            former=self.voters, former_needed=self.majority, note=note,
        )  # fmt: skip

    def plain(self, note: str) -> Charter:
        """The next decision, which changes nothing: it ends a vote that somebody left unfinished."""
        return replace(self, number=self.number + 1, note=note)

    def with_fence(self, fence: Fence) -> Charter:
        kept = [each for each in self.fences if each.peer != fence.peer]
        return replace(self, fences=tuple([*kept, fence][-FENCES_MAX:]))


def blocking_of(voters: tuple[Seat, ...]) -> int:
    return len(voters) - (len(voters) // 2 + 1) + 1


def first_charter(ring: bytes, space: Space, lease_s: int, seats: list[Seat], note: str) -> Charter:
    """Decision 0: the slots in equal shares for all seats, the first of which vote."""
    if space.range6 == AUTOMATIC6:
        space = Space(space.range4, unique_local(ring))
    shares = _shares(space.size, len(seats))
    grants = tuple(Grant(0, seat, (share,), (), b"") for seat, share in zip(seats, shares, strict=True))
    voters = tuple(sorted(seats[:VOTERS_MAX]))
    return Charter(ring, 0, space, lease_s, voters, grants=grants, note=note)


def charter_of_seeds(space: Space, lease_s: int, seeds: Iterable[str]) -> Charter:
    """The ring that everybody makes alike who was given the same seeds: names of peers, or nicknames."""
    seats = sorted({_seed_seat(seed) for seed in seeds})
    text = f"{space.range4} {space.range6} {lease_s}".encode()
    ring = hashlib.sha256(b"weft ring\x00" + text + b"\x00".join(seats)).digest()[:RING_BYTES]
    return first_charter(ring, space, lease_s, seats, "the ring of the seeds")


def _seed_seat(seed: str) -> Seat:
    try:
        return bytes(parse_name(seed))
    except ValueError:
        return nickname_seat(seed)


def _shares(size: int, count: int) -> list[tuple[int, int]]:
    """Cut at multiples of 256 where there are enough slots, so that small subnets lie in one share."""
    unit = 256 if size >= 512 * count else 1
    cuts = [size * i // count // unit * unit for i in range(count)] + [size]
    return list(pairwise(cuts))


# -- bytes ---------------------------------------------------------------------------------------------


def encode_charter(charter: Charter) -> bytes:
    grants = [(g.number, g.heir, flat(g.slots), flat(g.reserved), g.source) for g in charter.grants]
    fences = [(f.peer, f.number, f.heir, f.removed) for f in charter.fences]
    space = [str(each) if each is not None else "" for each in (charter.space.range4, charter.space.range6)]
    body: bytes = msgpack.packb(
        [charter.ring, charter.number, space, charter.lease_s, charter.voters, charter.since, charter.former,
         charter.former_needed, grants, fences, charter.note]
    )  # fmt: skip
    return body


def decode_charter_untrusted(body: bytes) -> Charter:
    """Raises `ProtocolError` for anything that no honest peer decides."""
    return charter_of(unpack(body))


def charter_of(fields: Any) -> Charter:
    try:
        ring, number, space, lease_s, voters, since, former, needed, grants, fences, note = fields
        low, high = space
        charter = Charter(
            blob(ring, RING_BYTES, RING_BYTES), integer(number), _space(low, high), integer(lease_s, LEASE_MAX_S),
            seats(voters), integer(since), seats(former), integer(needed, VOTERS_MAX),
            tuple(_grant(*each) for each in grants), tuple(_fence(*each) for each in fences), text(note),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-charter", f"charter: {error}") from None
    if not charter.voters or charter.lease_s < 1 or not 4 <= charter.space.size <= SLOTS_MAX:
        raise ProtocolError("bad-charter", "charter without voters, lease or range")
    if len(charter.grants) > GRANTS_MAX or len(charter.fences) > FENCES_MAX:
        raise ProtocolError("bad-charter", "charter of too many parts")
    return charter


def _space(low: Any, high: Any) -> Space:
    range4, range6 = text(low), text(high)
    return Space(IPv4Network(range4) if range4 else None, IPv6Network(range6) if range6 else None)


def _grant(number: Any, heir: Any, slots: Any, reserved: Any, source: Any) -> Grant:
    return Grant(integer(number), seat_of(heir), spans_of(slots), spans_of(reserved), blob(source, 0, SEAT_BYTES_MAX))


def _fence(peer: Any, number: Any, heir: Any, removed: Any) -> Fence:
    return Fence(name_of(peer), integer(number), seat_of(heir), removed is True)


def unpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(
            body, raw=False, use_list=False, strict_map_key=True, max_str_len=256, max_bin_len=16_384,
            max_array_len=4096, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("bad-ipam", f"page cannot be decoded: {error}") from None


def unpack_own(body: bytes) -> Any:
    """What our own journal has: its checksum has held, and what is large there was large when it was written."""
    return msgpack.unpackb(body, raw=False, use_list=False, strict_map_key=True)


def flat(value: Spans) -> list[int]:
    """Spans as distances, which are small numbers: gap, length, gap, length."""
    numbers, at = [], 0
    for start, end in value:
        numbers += [start - at, end - start]
        at = end
    return numbers


def spans_of(numbers: Any, most: int = SPANS_MAX) -> Spans:
    if not isinstance(numbers, tuple) or len(numbers) % 2 or len(numbers) > 2 * most:
        raise ValueError("malformed spans")
    found, at = [], 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        start = at + integer(gap, SLOTS_MAX)
        at = start + integer(length, SLOTS_MAX)
        found.append((start, at))
    if at > SLOTS_MAX:
        raise ValueError("spans beyond the last slot")
    return spans.normal(found)


def integer(value: Any, most: int = NUMBER_MAX) -> int:
    if value.__class__ is not int or not 0 <= value <= most:
        raise ValueError(f"expected an integer from 0 to {most}")
    return int(value)


def blob(value: Any, least: int, most: int) -> bytes:
    if value.__class__ is not bytes or not least <= len(value) <= most:
        raise ValueError(f"expected {least} to {most} bytes")
    return bytes(value)


def text(value: Any) -> str:
    if value.__class__ is not str or not value.isprintable():
        raise ValueError("expected a printable text")
    return str(value)


def seat_of(value: Any) -> Seat:
    seat = blob(value, 1, SEAT_BYTES_MAX)
    if not is_name(seat) and not seat.startswith(_NICKNAME):
        raise ValueError("expected a seat")
    return seat


def seats(value: Any) -> tuple[Seat, ...]:
    if not isinstance(value, tuple) or len(value) > VOTERS_MAX:
        raise ValueError("expected a few seats")
    return tuple(seat_of(each) for each in value)


def name_of(value: Any) -> PeerName:
    return PeerName(blob(value, PEER_NAME_BYTES, PEER_NAME_BYTES))
