"""What this host owns and what it gave of it: the part of its state that only it can know.

Slots are *owned* (in one of our ranges), *announced* (others know that they may be in use), *given* (to an owner id, a
container), *resting* (given until a moment ago), *kept* (perhaps in use on a host whose slots we took over, or that
holds slots of ours as a guest) or in the *pool* (announced and free: given next). Everything given, resting or kept and
owned is announced. A *guest* is a slot given here that is not ours.

Every change is noted under its key in `changes`, for the journal; nothing here waits for the disk. The cost of giving
or releasing one does not depend on how many there are.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgpack

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.charter import flat, spans_of, unpack_own
from mesh.ipam.spans import Spans
from mesh.ipam.statement import NOBODY, RANGES_MAX, USED_MAX, Gift, Range

POOL = 512
"""So many free slots are announced at a time: what a take-over leaves unused until the owner is back is no more."""
POOL_LOW = 256
"""With fewer free ones left more are announced."""
POOL_HIGH = 4 * POOL
REST_S = 60.0
"""Caches and neighbour tables have forgotten an address by then."""

Changes = dict[bytes, bytes | None]
_SLOT = struct.Struct("!cQ")


@dataclass(frozen=True, slots=True)
class Given:
    """To whom a slot is given, and the addresses by each of its wants."""

    owner: str
    wants: tuple[tuple[str, tuple[str, ...]], ...]
    """The want, as text, and the addresses with their lengths that answered it."""

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(text for _, texts in self.wants for text in texts)


class Holdings:
    """Owned ranges, gifts under way, and slots by state."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.version = 0
        """Rises with everything that others have to be told."""
        self.ranges: list[Range] = []
        self.gifts: list[Gift] = []
        self.given: dict[int, Given] = {}
        self.guests: set[int] = set()
        self.kept: dict[PeerName, tuple[int, Spans]] = {}
        """By the peer that may use them: the decision that took them (-1: they are its guests), and which."""
        self.resting: dict[int, tuple[float, str]] = {}
        """Until when, and who had it."""
        self.announced: Spans = spans.NONE
        self.owned: Spans = spans.NONE
        self.kept_slots: Spans = spans.NONE
        self._pool: dict[int, None] = {}
        self._of_owner: dict[str, dict[int, None]] = {}
        self._rests: deque[tuple[float, int]] = deque()
        self._rested: dict[str, dict[int, None]] = {}

    # -- disk --------------------------------------------------------------------------------------

    def load(self, contents: dict[bytes, bytes], now: float) -> None:
        """What the journal had. Slots that rested begin to rest anew."""
        if (own := contents.get(b"o")) is not None:
            self.ranges, self.gifts = unpack_ranges(own)
        self._settle_owned()
        for key, value in contents.items():
            if key[:1] == b"g":
                owner, wants = unpack_own(value)
                slot = _SLOT.unpack(key)[1]
                self.given[slot] = Given(owner, wants)
                self._of_owner.setdefault(owner, {})[slot] = None
            elif key[:1] == b"q":
                slot = _SLOT.unpack(key)[1]
                self._rest(slot, now, str(unpack_own(value)))
            elif key[:1] == b"k":
                number, kept = unpack_own(value)
                self.kept[PeerName(key[1:])] = (number - 1, spans_of(kept, 1 << 24))
        self._settle_kept()
        self.guests = {slot for slot in self.given if not spans.holds(self.owned, slot)}
        ours = [slot for slot in (*self.given, *self.resting) if slot not in self.guests]
        self._announce(spans.union(spans.of_slots(ours), self.kept_slots))

    def _note_own(self) -> None:
        self.version += 1
        self.changes[b"o"] = pack_ranges(self.ranges, self.gifts)

    # -- ranges ------------------------------------------------------------------------------------

    def add_range(self, new: Range) -> None:
        """These slots are ours from now on. Guests among them are guests no more."""
        self.ranges.append(new)
        self._join_neighbours()
        self._settle_owned()
        self._note_own()
        within = [slot for slot in self.guests if new.start <= slot < new.end]
        self.guests.difference_update(within)
        self._announce(spans.of_slots(within))

    def remove(self, gone: Spans) -> None:
        """These slots are not ours any more. What was given of them becomes a guest."""
        self.ranges = cut(self.ranges, gone)
        self._settle_owned()
        self._note_own()
        lost = spans.both(self.announced, gone)
        self.announced = spans.minus(self.announced, gone)
        if spans.size(lost) < len(self.given):
            self.guests.update(slot for slot in spans.slots(lost) if slot in self.given)
        else:
            self.guests.update(slot for slot in self.given if spans.holds(gone, slot))
        for slot in [slot for slot in self._pool if spans.holds(gone, slot)]:
            del self._pool[slot]
        for slot in [slot for slot in self.resting if spans.holds(gone, slot)]:
            self._unrest(slot)
        for peer, (number, slots) in list(self.kept.items()):
            self.keep(peer, number, spans.minus(slots, gone))

    def confirm_donors(self, owned: Spans) -> None:
        """Voters hold that we own these: where they came from matters no more."""
        if any(each.donor and spans.covers(owned, (each.span,)) for each in self.ranges):
            self.ranges = [
                Range(*each.span, each.term, each.count) if spans.covers(owned, (each.span,)) else each
                for each in self.ranges
            ]
            self._join_neighbours()
            self._note_own()

    def give_away(self, gift: Gift) -> None:
        self.remove((gift.range.span,))
        self.add_gifts([gift])

    def add_gifts(self, gifts: Iterable[Gift]) -> None:
        self.gifts += gifts
        self._note_own()

    def drop_gifts(self, done: list[Gift]) -> None:
        if done:
            self.gifts = [gift for gift in self.gifts if gift not in done]
            self._note_own()

    def _join_neighbours(self) -> None:
        """Ranges of ours that touch become one: an owner may raise the stamps of its own."""
        joined: list[Range] = []
        for each in sorted(self.ranges, key=lambda each: each.start):
            last = joined[-1] if joined else None
            if last is not None and last.end == each.start and not (last.donor or each.donor):
                stamp = max((last.term, last.count), (each.term, each.count))
                same = (last.term, last.count) == (each.term, each.count)
                joined[-1] = Range(last.start, each.end, stamp[0], stamp[1] + (not same))
            else:
                joined.append(each)
        self.ranges = joined

    def _settle_owned(self) -> None:
        self.owned = spans.normal(each.span for each in self.ranges)

    @property
    def can_take_more(self) -> bool:
        return len(self.ranges) < RANGES_MAX

    # -- announcing --------------------------------------------------------------------------------

    def unannounced(self, interval: tuple[int, int]) -> Spans:
        return spans.minus(spans.both(self.owned, (interval,)), self.announced)

    def announce_more(self, interval: tuple[int, int], count: int = POOL) -> None:
        self._announce(spans.first(self.unannounced(interval), count))

    def refill(self, interval: tuple[int, int]) -> None:
        """Announce more where the pool runs low."""
        if len(self._pool) < POOL_LOW:
            self.announce_more(interval)

    def announce(self, slot: int) -> None:
        self._announce(((slot, slot + 1),))

    def _announce(self, more: Spans) -> None:
        before = self.announced
        after = spans.coarse(spans.union(before, more), USED_MAX, self.owned)
        self.announced = after
        self.version += after != before
        for slot in spans.slots(spans.minus(after, before)):
            self._maybe_pool(slot)

    def trim(self) -> None:
        """Take back announcements of far too many free slots."""
        if len(self._pool) <= POOL_HIGH or len(self.announced) > USED_MAX // 2:
            return
        surplus = sorted(self._pool, reverse=True)[: len(self._pool) - POOL]
        self.withdraw(spans.of_slots(surplus))

    def withdraw(self, free: Spans) -> None:
        """Free slots that are not to be given before they are announced again."""
        self.announced = spans.minus(self.announced, free)
        self.version += 1
        for slot in [slot for slot in self._pool if spans.holds(free, slot)]:
            del self._pool[slot]

    # -- giving ------------------------------------------------------------------------------------

    def pool(self, interval: tuple[int, int]) -> Iterator[int]:
        return (slot for slot in self._pool if interval[0] <= slot < interval[1])

    def is_free(self, slot: int) -> bool:
        """Ours, and neither given nor resting nor kept."""
        taken = slot in self.given or slot in self.resting or spans.holds(self.kept_slots, slot)
        return not taken and spans.holds(self.owned, slot)

    def give(self, slot: int, owner: str, want: str, addresses: tuple[str, ...]) -> None:
        """To a container; one more want where it has the slot already."""
        before = self.given.get(slot)
        wants = tuple(each for each in before.wants if each[0] != want) if before is not None else ()
        wants = (*wants, (want, addresses))
        self.given[slot] = Given(owner, wants)
        self._of_owner.setdefault(owner, {})[slot] = None
        self._pool.pop(slot, None)
        if slot in self.resting:
            self._unrest(slot)
        if not spans.holds(self.owned, slot):
            self.guests.add(slot)
            self.version += 1
        self.changes[_SLOT.pack(b"g", slot)] = msgpack.packb([owner, wants])

    def give_less(self, slot: int, addresses: set[str]) -> bool:
        """Take these addresses, without lengths, off what is given; whether any is left of it."""
        given = self.given[slot]
        kept = [
            (want, tuple(text for text in texts if text.partition("/")[0] not in addresses))
            for want, texts in given.wants
        ]
        wants = tuple(each for each in kept if each[1])
        if wants and wants != given.wants:
            self.given[slot] = Given(given.owner, wants)
            self.changes[_SLOT.pack(b"g", slot)] = msgpack.packb([given.owner, wants])
        return bool(wants)

    def release(self, slot: int, now: float, rests: bool = True) -> None:
        """Given no more; a slot of ours rests first, unless nobody ever got to know of it."""
        gone = self.given.pop(slot)
        mine = self._of_owner[gone.owner]
        del mine[slot]
        if not mine:
            del self._of_owner[gone.owner]
        self.changes[_SLOT.pack(b"g", slot)] = None
        if slot in self.guests:
            self.guests.discard(slot)
            self.version += 1
        elif rests:
            self._rest(slot, now, gone.owner)
            self.changes[_SLOT.pack(b"q", slot)] = msgpack.packb(gone.owner)
        else:
            self._maybe_pool(slot)

    def slots_of(self, owner: str) -> list[int]:
        return list(self._of_owner.get(owner, ()))

    def rested_of(self, owner: str) -> list[int]:
        """Slots that it had until a moment ago."""
        return list(self._rested.get(owner, ()))

    def owners(self) -> list[str]:
        return list(self._of_owner)

    def wake(self, now: float) -> float | None:
        """What has rested long enough is free; when the next one will be."""
        while self._rests and self._rests[0][0] <= now:
            until, slot = self._rests.popleft()
            if self.resting.get(slot, (None,))[0] == until:
                self._unrest(slot)
                self._maybe_pool(slot)
        return self._rests[0][0] if self._rests else None

    def _rest(self, slot: int, now: float, owner: str) -> None:
        self.resting[slot] = (now + REST_S, owner)
        self._rests.append((now + REST_S, slot))
        self._rested.setdefault(owner, {})[slot] = None

    def _unrest(self, slot: int) -> None:
        _, owner = self.resting.pop(slot)
        mine = self._rested[owner]
        del mine[slot]
        if not mine:
            del self._rested[owner]
        self.changes[_SLOT.pack(b"q", slot)] = None

    # -- keeping for others ------------------------------------------------------------------------

    def keep(self, peer: PeerName, number: int, slots: Spans) -> None:
        """These slots of ours, and no others, may be in use on `peer`."""
        slots = spans.minus(spans.both(slots, self.owned), self._given_of(slots))
        before = self.kept.get(peer)
        if before == (number, slots) or (before is None and not slots):
            return
        if slots:
            self.kept[peer] = (number, slots)
            self.changes[b"k" + peer] = msgpack.packb([number + 1, flat(slots)])
        else:
            del self.kept[peer]
            self.changes[b"k" + peer] = None
        self._settle_kept()
        self._announce(slots)
        for slot in [slot for slot in self._pool if spans.holds(slots, slot)]:
            del self._pool[slot]
        if before is not None:
            # Beyond the pool's size they are not announced any more: they are free, and given when their turn comes.
            self.withdraw(spans.minus(spans.minus(before[1], self.kept_slots), self._busy(before[1])))

    def keep_also(self, peer: PeerName, number: int, slots: Spans) -> None:
        """More of them, by a decision."""
        before = self.kept.get(peer, (-1, spans.NONE))[1]
        self.keep(peer, number, spans.union(before, slots))

    def kept_to_say(self, most: int, spans_most: int) -> tuple[tuple[PeerName, Spans], ...]:
        """What is kept for whom, in no more than so many parts of so many spans: beyond that it is kept for hosts that
        are not told apart, or a little more of it."""
        rows = sorted(self.kept.items())
        told = [(peer, spans.coarse(slots, spans_most, self.owned)) for peer, (_, slots) in rows[:most]]
        rest = spans.union(*(slots for _, (_, slots) in rows[most:]))
        if rest:
            told.append((NOBODY, spans.coarse(rest, spans_most, self.owned)))
        return tuple(told)

    def _given_of(self, slots: Spans) -> Spans:
        if spans.size(slots) < len(self.given):
            return spans.of_slots(slot for slot in spans.slots(slots) if slot in self.given)
        return spans.of_slots(slot for slot in self.given if spans.holds(slots, slot))

    def _busy(self, slots: Spans) -> Spans:
        resting = spans.of_slots(slot for slot in self.resting if spans.holds(slots, slot))
        return spans.union(self._given_of(slots), resting)

    def _settle_kept(self) -> None:
        self.kept_slots = spans.union(*(slots for _, slots in self.kept.values()))

    def _maybe_pool(self, slot: int) -> None:
        if self.is_free(slot) and spans.holds(self.announced, slot):
            self._pool[slot] = None

    # -- giving up ---------------------------------------------------------------------------------

    def leave(self) -> None:
        """Own nothing any more; what is given stays with who has it."""
        self.remove(((0, 1 << 64),))
        self.gifts = []
        self._note_own()
        for peer in list(self.kept):
            self.keep(peer, -1, spans.NONE)

    def renumber(self, numbers: Mapping[str, int | None]) -> Spans:
        """The range is another one: by address, of which slot it is now, None outside of it. The two of a slot may be
        of two by now; and two of different owners of one, which the first has then. Which slots were dropped: all of
        them lies outside, and is not ours to manage. Only after `leave`."""
        assert not self.ranges
        before, self.given, self._of_owner, self.guests = self.given, {}, {}, set()
        for slot in before:
            self.changes[_SLOT.pack(b"g", slot)] = None
        dropped = []
        for slot, given in before.items():
            places = dict.fromkeys(place for text in given.addresses if (place := numbers[text]) is not None)
            first = next(iter(places), None)
            if first is None:
                dropped.append(slot)
            for want, place in ((want, place) for want in given.wants for place in places):
                # What lies outside goes along with the first that does not.
                there = (text for text in want[1] if place == (first if numbers[text] is None else numbers[text]))
                if (addresses := tuple(there)) and self.given.get(place, given).owner == given.owner:
                    self.give(place, given.owner, want[0], addresses)
        return spans.of_slots(dropped)


def cut(ranges: Iterable[Range], gone: Spans) -> list[Range]:
    """What remains of them."""
    return [
        Range(start, end, each.term, each.count, each.donor, each.donor_sequence)
        for each in ranges
        for start, end in spans.minus((each.span,), gone)
    ]


def pack_ranges(ranges: Iterable[Range], gifts: Iterable[Gift]) -> bytes:
    """For our own disk."""
    rows = [(r.start, r.end, r.term, r.count, r.donor, r.donor_sequence) for r in ranges]
    given = [(g.to, g.nonce, (*g.range.span, g.range.term, g.range.count), g.made_at) for g in gifts]
    return bytes(msgpack.packb([rows, given]))


def unpack_ranges(packed: bytes) -> tuple[list[Range], list[Gift]]:
    rows, given = unpack_own(packed)
    gifts = [Gift(PeerName(to), nonce, Range(*each), made_at) for to, nonce, each, made_at in given]
    return [Range(*each) for each in rows], gifts
