"""Where addresses are given: requests of containers, one by one, from what this host owns or is given for them.

A request has every address it wants or none. It is answered at once where the pool has what it needs; else it waits:
for the ring, for voters to confirm, for another host to part with slots. What it waits for is said in `status`, and is
the error when its time is up. Slots that a request was given count as given before they are on disk; its answer goes
out after that, and only if this host may still give them then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface

from gossip.names import PeerName, format_name
from mesh.endpoints import Interface
from mesh.ipam import elections, spans
from mesh.ipam.errors import Refused
from mesh.ipam.member import Member
from mesh.ipam.space import AUTOMATIC6, Network, Space
from mesh.ipam.spans import Spans
from mesh.ipam.statement import ASKS_MAX, Ask
from mesh.ipam.wants import Claim, FromSubnet, Want

ASK_PATIENCE_S = 2.0
"""For one other host to answer."""
DONORS_MAX = 16
"""So many others are asked before space counts as exhausted."""
EXHAUSTED_S = 1.0
"""For so long the next request is told the same at once."""
LEAST_SUBNET = 4


class _Waiting(Exception):
    """Not yet. The message says what for."""


@dataclass(slots=True)
class Request:
    """One container's wants, and what became of them."""

    owner: str
    wants: tuple[Want, ...]
    since: float
    until: float
    elsewhere: frozenset[int] = frozenset()
    """Claimed slots of which another host said, when this was asked, that it uses them."""
    may_move: bool = True
    """The caller has seen that such a host is out of reach, and an address moves then, by its user's word; else these
    are refused."""
    waiting_for: str = ""
    answer: tuple[Interface, ...] | None = None
    refused: Refused | None = None
    slots: tuple[int, ...] = ()
    """Newly given for it."""
    space: Space | None = None
    """By which they are numbered."""
    ring: bytes = b""
    """That they were given in; empty before there was one."""

    @property
    def is_done(self) -> bool:
        return self.answer is not None or self.refused is not None


@dataclass(slots=True)
class _Asking:
    """A question to others, one after the other."""

    ask: Ask | None = None
    since: float = 0.0
    tried: set[PeerName] = field(default_factory=set)


RESIGNED = "this host has left the mesh for good, and the others have its addresses: finish that with `weft reset`"

_Key = tuple[int, int, bool]
_Found = tuple[str, int | None, tuple[str, ...], bool]
"""Want, slot, addresses, whether the slot is new."""


class Desk:
    """All requests on this host."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.waiting: dict[int, Request] = {}
        self._asking: dict[_Key, _Asking] = {}
        self._exhausted: dict[_Key, float] = {}
        self._count = 0

    def submit(
        self, owner: str, wants: tuple[Want, ...], now: float, until: float, may_move: bool = True
    ) -> Request:  # fmt: skip
        """Try at once; a request that is not done is tried again by `work`."""
        request = Request(owner, wants, now, until, self._elsewhere(wants), may_move)
        self._try(request, now)
        if not request.is_done:
            self._count += 1
            self.waiting[self._count] = request
        return request

    def _elsewhere(self, wants: tuple[Want, ...]) -> frozenset[int]:
        slots = (self.member.space.slot(want.interface.ip) for want in wants if isinstance(want, Claim))
        return frozenset(slot for slot in slots if slot is not None and self.member.around.used_elsewhere(slot))

    def cancel(self, request: Request) -> None:
        self.waiting = {number: each for number, each in self.waiting.items() if each is not request}

    def work(self, now: float) -> None:
        """Try again what waits. To be called after each `settle`."""
        for number, request in list(self.waiting.items()):
            self._try(request, now)
            if not request.is_done and now >= request.until:
                request.refused = Refused("ipam-waiting", self._too_late(request))
            if request.is_done:
                del self.waiting[number]
        self._tidy_asks(now)

    def still_holds(self, request: Request, now: float) -> bool:
        """Whether this host may still give what it gave: to be asked after the disk has it. Else it is taken back."""
        member = self.member
        if request.slots and request.ring not in (b"", member.ring):
            self.take_back(request, now)  # we have moved to another ring since, where somebody else may give them
            return False
        for slot in request.slots:
            if slot not in member.holdings.guests and not member.lease.may_give(slot, now):
                self.take_back(request, now)
                return False
        return True

    def take_back(self, request: Request, now: float) -> None:
        """The answer never reaches anybody."""
        if request.space is not None:
            texts = {str(request.space.address(slot, version)) for slot in request.slots for version in (4, 6)}
            for slot in self.member.holdings.slots_of(request.owner):
                given = self.member.holdings.given[slot]
                if any(text.partition("/")[0] in texts for text in given.addresses):
                    self.member.holdings.release(slot, now, rests=False)
        request.slots = ()

    def release(self, owner: str, addresses: set[str] | None, now: float) -> bool:
        """Addresses of this owner, all or these (without lengths), are given no more; whether there were any. A slot is
        as long as one of its addresses is."""
        is_any = False
        for slot in self.member.holdings.slots_of(owner):
            given = self.member.holdings.given[slot]
            theirs = {text.partition("/")[0] for text in given.addresses}
            if addresses is None or theirs & addresses:
                is_any = True
                if addresses is None or not self.member.holdings.give_less(slot, addresses):
                    self.member.holdings.release(slot, now)
        return is_any

    # -- one request -------------------------------------------------------------------------------

    def _try(self, request: Request, now: float) -> None:
        try:
            found = self._find_all(request, now)
        except _Waiting as waiting:
            request.waiting_for = str(waiting)
            return
        except Refused as refused:
            request.refused = refused
            return
        member = self.member
        new = []
        for want, slot, addresses, is_new in found:
            if slot is not None:
                if is_new and slot not in new:
                    new.append(slot)
                member.holdings.give(slot, request.owner, want, addresses)
        if new:
            if member.charter is not None:
                member.note_given()
            member.holdings.refill(member.space.whole())
        request.slots, request.space, request.ring = tuple(new), member.space, member.ring
        request.answer = tuple(ip_interface(text) for _, _, addresses, _ in found for text in addresses)

    def _find_all(self, request: Request, now: float) -> list[_Found]:
        if self.member.conflict:
            raise Refused("ipam-conflict", self.member.conflict)
        if self.member.resigned:
            raise Refused("ipam-resigned", RESIGNED)
        found: list[_Found] = []
        for want in request.wants:
            if isinstance(want, Claim):
                found.append(self._claim(request, want, now))
            else:
                taken = {slot for _, slot, _, _ in found}
                found.append(self._from_subnet(request.owner, want, taken, now))
        return found

    def answer_again(self, owner: str, wants: Sequence[str], addresses: Sequence[str]) -> None:
        """What this owner has of these is what it is told when it wants that, as it was elsewhere or before."""
        holdings, space = self.member.holdings, self.member.space
        for text in addresses:
            slot = space.slot(ip_interface(text).ip)
            given = holdings.given.get(slot) if slot is not None else None
            if slot is None or given is None or given.owner != owner or text not in given.addresses:
                continue
            for want in wants:
                known = next((texts for before, texts in given.wants if before == want), ())
                holdings.give(slot, owner, want, tuple(dict.fromkeys((*known, text))))
                given = holdings.given[slot]

    # -- any address of a subnet -------------------------------------------------------------------

    def _from_subnet(self, owner: str, want: FromSubnet, taken: set[int | None], now: float) -> _Found:
        member, text = self.member, str(want)
        for slot in member.holdings.slots_of(owner):
            if any(before == text for before, _ in member.holdings.given[slot].wants):
                return text, slot, self._addresses(slot, self._choice_of(slot, want)), False
        if member.charter is None:
            member.wants_ring = True
            raise _Waiting(self.why_no_ring())
        used_up: Refused | None = None
        for choice in want.choices:
            try:
                slot = self._free_slot(owner, choice, taken, now)
                return text, slot, self._addresses(slot, choice), True
            except Refused as refused:
                if refused.code != "ipam-exhausted":
                    raise
                used_up = used_up or refused
        assert used_up is not None
        raise used_up

    def _free_slot(self, owner: str, want: FromSubnet, taken: set[int | None], now: float) -> int:
        member = self.member
        interval, _ = self._interval(want.network)
        usable = (interval[0] + 1, interval[1] - 1) if interval[1] - interval[0] >= LEAST_SUBNET else interval
        usable = self._limited(usable, want)
        for slot in self._free(owner, usable):
            if slot not in taken and member.lease.may_give(slot, now) and not member.around.used_elsewhere(slot):
                return slot
        raise self._wait_for_more(usable, want, now)

    def _choice_of(self, slot: int, want: FromSubnet) -> FromSubnet:
        for choice in want.choices:
            interval, _ = self._interval(choice.network)
            if interval[0] <= slot < interval[1]:
                return choice
        return want

    def _addresses(self, slot: int, want: FromSubnet) -> tuple[str, ...]:
        interval, versions = self._interval(want.network)
        return tuple(str(self.member.space.interface(slot, interval, version)) for version in versions)

    def _interval(self, network: Network | None) -> tuple[tuple[int, int], tuple[int, ...]]:
        space = self.member.space
        if network is None:
            subnets = (space.interval(subnet) for subnet in self.member.settings.default)
            return next((each for each in subnets if each is not None), space.whole()), space.versions()
        interval = space.interval(network)
        if interval is None or interval[1] - interval[0] < min(LEAST_SUBNET, network.num_addresses):
            ranges = " and ".join(map(str, space.ranges)) or "none"
            raise Refused(
                "outside-range",
                f"the subnet {network} is not inside the range that addresses are given from ({ranges}); name one that "
                "is, or give an explicit address of it",
            )
        return interval, (network.version,)

    def _limited(self, usable: tuple[int, int], want: FromSubnet) -> tuple[int, int]:
        """What is left of it between the first and the last address wanted."""
        space = self.member.space
        first, last = (space.slot(each) if each is not None else None for each in (want.first, want.last))
        start = usable[0] if first is None else max(usable[0], first)
        end = usable[1] if last is None else min(usable[1], last + 1)
        if start >= end:
            limits = f"between {want.first or 'its first'} and {want.last or 'its last'}"
            raise Refused("outside-range", f"no address of {want.network} that a host can have is {limits}")
        return start, end

    def _free(self, owner: str, usable: tuple[int, int]) -> Iterator[int]:
        """What this owner had until a moment ago first."""
        holdings = self.member.holdings
        for slot in holdings.rested_of(owner):
            if usable[0] <= slot < usable[1] and spans.holds(holdings.owned, slot):
                yield slot
        yield from holdings.pool(usable)

    def _wait_for_more(self, usable: tuple[int, int], want: FromSubnet, now: float) -> Exception:
        """What there is to wait for, or why there is nothing."""
        member = self.member
        pooled = next((slot for slot in member.holdings.pool(usable) if not member.around.used_elsewhere(slot)), None)
        if pooled is None and member.holdings.unannounced(usable):
            member.holdings.announce_more(usable)
            pooled = next(member.holdings.pool(usable), None)
        if now >= member.lease.until and member.holdings.owned:
            return _Waiting(self.why_not_confirmed())
        if pooled is not None:
            return _Waiting("voters to confirm what may be given next")
        if (coming := self._coming(usable, now)) is not None:
            return _Waiting(coming)
        key = (*usable, False)
        if now < self._exhausted.get(key, 0.0):
            return Refused("ipam-exhausted", self._exhaustion(usable, want))
        if not self._ask_others(key, now):
            self._exhausted[key] = now + EXHAUSTED_S
            return Refused("ipam-exhausted", self._exhaustion(usable, want))
        asked = self._asking[key].ask
        who = format_name(asked.donor) if asked is not None else "others"
        return _Waiting(f"addresses from {who}")

    # -- one address -------------------------------------------------------------------------------

    def _claim(self, request: Request, want: Claim, now: float) -> _Found:
        owner, member, text = request.owner, self.member, str(want)
        holdings, slot = member.holdings, member.space.slot(want.interface.ip)
        if member.charter is None and member.space.range6 == AUTOMATIC6 and want.interface.version == 6:
            slot = None  # the range is not known before there is a ring
        if slot is None:
            return text, None, (str(want.interface),), False
        addresses = (str(want.interface),)
        given = holdings.given.get(slot)
        if given is not None:
            if given.owner == owner:
                return text, slot, addresses, False
            held = [each.partition("/")[0] for each in given.addresses]
            # Whoever has one address of a slot has the slot: the other one is not known to be anybody else's.
            goes = "" if str(want.interface.ip) in held else f"goes with {' and '.join(held)}, which "
            text = f"{want.interface.ip} {goes}is given to {given.owner} on this host; take another"
            raise Refused("address-taken", text)
        if slot in request.elsewhere and not request.may_move:
            raise Refused("address-taken", f"{want.interface.ip} is in use on another host; release it there first")
        if member.charter is None:
            return text, slot, addresses, True
        if spans.holds(holdings.owned, slot):
            self._refuse_kept(request, want, slot)
            if not spans.holds(holdings.announced, slot):
                holdings.announce(slot)
            if not member.lease.may_give(slot, now):
                raise _Waiting(self.why_not_confirmed())
            return text, slot, addresses, True
        return self._claim_elsewhere(request, want, slot, addresses, now)

    def _refuse_kept(self, request: Request, want: Claim, slot: int) -> None:
        """What may be in use on another host is not given, unless it moves."""
        member = self.member
        for peer, (_, slots) in member.holdings.kept.items():
            if spans.holds(slots, slot) and (peer in member.reachable or slot not in request.elsewhere):
                who = format_name(peer)
                raise Refused(
                    "address-taken",
                    f"{want.interface.ip} is kept for containers of host {who}; release it there, or run `weft rmpeer "
                    f"{who}` if that host is gone for good, or take another",
                )

    def _claim_elsewhere(
        self, request: Request, want: Claim, slot: int, addresses: tuple[str, ...], now: float
    ) -> _Found:
        member, ip = self.member, want.interface.ip
        if (taker := self._taker_of(slot)) is not None:
            raise Refused(
                "address-taken",
                f"{ip} is on its way to host {format_name(taker)}, which asked for it; take another, or try again soon",
            )
        owner = self.owner_of(slot)
        if owner is None:
            raise _Waiting(f"word of who owns {ip}")
        if owner not in member.reachable:
            if slot in request.elsewhere:
                return str(want), slot, addresses, True
            raise Refused(
                "owner-unreachable",
                f"{ip} is among the addresses of host {format_name(owner)}, which is out of reach and cannot be asked; "
                f"take another, or run `weft rmpeer {format_name(owner)}` if that host is gone for good",
            )
        key = (slot, slot + 1, True)
        if (refusal := self._refusal(key)) is not None and refusal:
            del self._asking[key]
            raise Refused("address-taken", f"{ip} is taken: {refusal}, says host {format_name(owner)}; take another")
        if not self._ask_others(key, now):
            self._asking.pop(key, None)  # who owned it has given it away meanwhile: ask the next owner
        raise _Waiting(f"{ip} from host {format_name(owner)}")

    def _taker_of(self, slot: int) -> PeerName | None:
        """To whom this host has given a slot away, who has not said yet that it has it."""
        for gift in self.member.holdings.gifts:
            if gift.range.start <= slot < gift.range.end:
                said = self.member.statement(gift.to)
                if said is None or not spans.holds(said.owned, slot):
                    return gift.to
        return None

    def owner_of(self, slot: int) -> PeerName | None:
        """Who owns a slot, as far as is known here."""
        member = self.member
        if spans.holds(member.holdings.owned, slot):
            return member.own
        found = [
            ((each.term, each.count), peer) for peer, said in member.members() for each in said.ranges
            if each.start <= slot < each.end
        ]  # fmt: skip
        assert member.charter is not None
        for grant in member.charter.grants:
            heir = member.peer_at(grant.heir)
            if heir is not None and spans.holds(grant.slots, slot):
                found.append(((grant.number, 0), heir))
        return max(found)[1] if found else None

    # -- asking others -----------------------------------------------------------------------------

    def _ask_others(self, key: _Key, now: float) -> bool:
        """Ask the next donor if the last one has refused or is silent; false where nobody is left to ask."""
        member = self.member
        asking = self._asking.setdefault(key, _Asking())
        if asking.ask is not None:
            was_given = asking.ask.nonce not in member.asks
            if was_given:
                asking.tried.clear()
            if not was_given and self._refusal(key) is None and now < asking.since + ASK_PATIENCE_S:
                return True
            member.asks.pop(asking.ask.nonce, None)
            asking.ask = None
        if not member.holdings.can_take_more:
            del self._asking[key]
            return False
        donor = self._donor(key, asking.tried)
        if donor is None or len(asking.tried) >= DONORS_MAX:
            del self._asking[key]
            return False
        if len(member.asks) < ASKS_MAX:
            asking.tried.add(donor)
            nonce = member.rng.getrandbits(62)
            asking.ask = member.asks[nonce] = Ask(donor, nonce, key[0], key[1], key[2])
            asking.since = now
        return True

    def _donor(self, key: _Key, tried: set[PeerName]) -> PeerName | None:
        """Who has most to give there; last those that seem to have nothing, and may have free ones in their pool."""
        member, interval = self.member, ((key[0], key[1]),)
        if key[2]:
            owner = self.owner_of(key[0])
            return owner if owner not in tried and owner != member.own else None
        found = []
        for peer, said in member.members():
            if peer in member.reachable and peer not in tried:
                owned = spans.both(said.owned, interval)
                if owned:
                    free = spans.size(spans.minus(owned, said.used))
                    found.append((free * (0.5 + member.rng.random()), spans.size(owned), peer))
        return max(found)[2] if found else None

    def _refusal(self, key: _Key) -> str | None:
        asking = self._asking.get(key)
        if asking is None or asking.ask is None:
            return None
        said = self.member.statement(asking.ask.donor)
        for refusal in said.refusals if said is not None else ():
            if refusal.to == self.member.own and refusal.nonce == asking.ask.nonce:
                return refusal.reason or ""
        return None

    def _tidy_asks(self, now: float) -> None:
        """Questions that nobody waits for any more."""
        self._exhausted = {key: until for key, until in self._exhausted.items() if until > now}
        if not self.waiting and self._asking:
            self.member.asks.clear()
            self._asking.clear()

    # -- saying why --------------------------------------------------------------------------------

    def why_no_ring(self) -> str:
        member = self.member
        if not member.votes_at_all:
            return "another host to make the ring: this one observes (--ipalloc-init)"
        missing = elections.missing_for_first(member)
        if not missing:
            return "the ring to be agreed"
        return f"{missing} more of {elections.expected(member)} hosts to agree on a ring"

    def why_not_confirmed(self) -> str:
        member = self.member
        assert member.charter is not None
        peers = [member.peer_at(seat) for seat in member.charter.voters]
        there = sum(peer == member.own or peer in member.reachable for peer in peers)
        return f"{member.charter.blocking} of {len(peers)} voters to confirm it ({there} are in reach)"

    def _too_late(self, request: Request) -> str:
        waited = f"{request.until - request.since:.0f} s"
        cure = "bring missing hosts back, or `weft rmpeer` those that are gone for good; `weft status ipam` has more"
        if self.member.charter is None:
            cure = "launch or connect them, or launch with --ipalloc-init consensus=1 to begin alone"
        return f"no address for {request.owner}: waited {waited} for {request.waiting_for}; {cure}"

    def _coming(self, usable: tuple[int, int], now: float) -> str | None:
        """Whom there is to wait for before it can be said that space is used up: somebody owns it, who may not have
        been heard of yet, or whose word has come before the way to it."""
        member, owners = self.member, self._owned_in(usable)
        if not owners:
            seeds = member.settings.seeds
            named = f" (--ipalloc-init names {', '.join(seeds)})" if seeds else ""
            return f"word of a host that owns addresses there{named}"
        for peer, _, _ in owners:
            if peer not in (member.own, *member.reachable) and member.unreachable_for_s(peer, now) < ASK_PATIENCE_S:
                return f"{format_name(peer)} to come into reach"
        return None

    def _owned_in(self, usable: tuple[int, int]) -> list[tuple[PeerName, Spans, Spans]]:
        """Who is known to own what of it, and which slots of all that it owns are used."""
        member, interval = self.member, (usable,)
        rows = [(member.own, spans.both(member.holdings.owned, interval), member.holdings.announced)]
        rows += [(peer, spans.both(said.owned, interval), said.used) for peer, said in member.standing()]
        return [row for row in rows if row[1]]

    def _exhaustion(self, usable: tuple[int, int], want: FromSubnet) -> str:
        """Where the addresses are."""
        member = self.member
        parts = []
        for peer, owned, used in self._owned_in(usable):
            where = "here" if peer == member.own else format_name(peer)
            far = "" if peer == member.own or peer in member.reachable else ", out of reach"
            free = spans.size(spans.minus(owned, used))
            parts.append(f"{where}: {spans.size(owned)}{far}{f', {free} free' if free else ''}")
        resting = sum(usable[0] <= slot < usable[1] for slot in member.holdings.resting)
        rests = f"; {resting} rest for up to a minute" if resting else ""
        more = f" and {len(parts) - 8} hosts more" if len(parts) > 8 else ""
        subnet = want.network if want.network is not None else "the default subnet"
        return (
            f"no address of {subnet} is free (owned by {'; '.join(parts[:8])}{more}{rests}): "
            "detach what is not needed, `weft rmpeer` hosts that are gone, or name another subnet"
        )
