"""Slots change hands between owners: gifts made, taken and seen to be taken; what is kept for others.

An owner that runs short asks one other for slots, and is given half of the longest free span there. The donor lets go
first, on disk; the gift is the taker's as soon as the taker says so; and the donor goes on showing the gift until then.
A gift may come late, twice, or be shown by a donor that has since been retired: each of these has its rule here.
"""

from __future__ import annotations

import msgpack

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.claims import has_taken, passed_on
from mesh.ipam.state import State
from mesh.ipam.statement import (
    GIFTS_MAX,
    NOBODY,
    RANGES_MAX,
    REASON_MAX,
    REFUSALS_MAX,
    Ask,
    Gift,
    Range,
    Refusal,
)

Stamp = tuple[int, int]


def settle(member: State, now: float) -> None:
    _take_gifts(member)
    _finish_gifts(member)
    _yield_to_newer(member)
    _keep_for_others(member)
    _answer_asks(member, now)


def _yield_to_newer(member: State) -> None:
    """Somebody has slots of ours under a later stamp. No honest course of things leads there but a copied state
    directory, or a word on each of two sides that the other is gone; what is in doubt is given by neither. Two such
    sides may have decided as much as each other, under the same numbers: then the lesser name has the later stamp."""
    for other in sorted(set(member.owners().of(member.holdings.owned))):
        said = member.statement(other)
        if other == member.own or said is None or said.tip < member.tip:
            continue
        for their in said.ranges:
            for mine in member.holdings.ranges:
                doubt = spans.both((their.span,), (mine.span,))
                is_later = (their.term, their.count, member.own) > (mine.term, mine.count, other)
                if doubt and is_later:
                    member.holdings.remove(doubt)
                    member.events.append(f"{spans.size(doubt)} addresses of ours are owned by {other.hex(':')} too")
                    return


# -- gifts ---------------------------------------------------------------------------------------------


def _take_gifts(member: State) -> None:
    """Each gift once: what was taken is remembered with the donor's newest statement that showed it, or showed it gone,
    and older statements of that donor are old news for good."""
    assert member.charter is not None
    own_fence = member.charter.fence_of(member.own)
    for donor, said in member.members():
        newest, before = member.taken_gifts.get(donor, (0, frozenset()))
        if said.sequence < newest or not (said.gifts or before):
            continue
        ours = [gift for gift in said.gifts if gift.to == member.own]
        shown = before & {gift.nonce for gift in ours}
        for gift in ours if not member.charter.fenced_after(donor, said.tip) else ():
            if own_fence is not None and own_fence.number > gift.made_at:
                continue  # it was lost with all the rest, and is the donor's again
            if gift.made_at > member.tip:
                continue  # between our decision and the donor's we may have lost everything: that comes first
            if gift.nonce not in before and member.holdings.can_take_more:
                each = gift.range
                if not spans.both((each.span,), member.holdings.owned):
                    member.holdings.add_range(Range(*each.span, each.term, each.count, donor, said.sequence))
                shown |= {gift.nonce}
                member.asks.pop(gift.nonce, None)
        if shown != before:
            member.taken_gifts[donor] = (said.sequence, shown)
            member.changes[b"t" + donor] = msgpack.packb([said.sequence, sorted(shown)])


def _finish_gifts(member: State) -> None:
    """Gifts of ours that have arrived: voters hold that the taker has them, confirmed, or that somebody has the slots
    under a later stamp. And those whose taker was retired before that: ours again unless they went to its heir."""
    assert member.charter is not None
    done: list[Gift] = []
    back: list[Range] = []
    others = member.members() if member.holdings.gifts else ()
    told = [said for peer, said in others if member.is_held_beside(peer, said.sequence)]
    for gift in member.holdings.gifts:
        stamp = (gift.range.term, gift.range.count)
        newer = [
            each.span for said in told for each in (*said.ranges, *(g.range for g in said.gifts))
            if (each.term, each.count) > stamp or ((each.term, each.count) == stamp and not each.donor)
        ]  # fmt: skip
        granted = [pair for grant in member.charter.grants if grant.number > gift.range.term for pair in grant.slots]
        rest = spans.minus((gift.range.span,), spans.normal([*newer, *granted]))
        if not rest:
            done.append(gift)
            continue
        fence = member.charter.fence_of(gift.to)
        if fence is None or fence.number <= gift.made_at:
            continue
        last = passed_on(member, member.charter, fence)[-1]
        heir = member.peer_at(last.heir)
        if has_taken(member, heir, last.number) or any(g.number == last.number for g in member.charter.grants):
            done.append(gift)
            # Under the stamp of before: whoever has them by way of the taker, and is heard of late, has the later one.
            back += [Range(start, end, gift.range.term, gift.range.count - 1) for start, end in rest]
    member.holdings.drop_gifts(done)
    for each in back:
        member.holdings.add_range(each)


def _answer_asks(member: State, now: float) -> None:
    """Give, or say why not. An answer stands until the ask is gone."""
    assert member.charter is not None
    asked: dict[PeerName, list[Ask]] = {}
    for peer, said in member.members():
        mine = [ask for ask in said.asks if ask.donor == member.own]
        if mine and peer in member.reachable and not member.charter.fenced_after(peer, said.tip):
            asked[peer] = mine
    for peer in [peer for peer in member.refusals if peer not in asked]:
        del member.refusals[peer]
    if now >= member.lease.until or member.conflict:
        return
    for peer, asks in asked.items():
        answered = {gift.nonce for gift in member.holdings.gifts if gift.to == peer}
        for ask in asks:
            refusal = member.refusals.get(peer)
            if ask.nonce in answered or (refusal is not None and refusal.nonce == ask.nonce):
                continue
            span, reason = _choose(member, peer, ask)
            if span is None:
                if reason is not None and (refusal is not None or len(member.refusals) < REFUSALS_MAX):
                    member.refusals[peer] = Refusal(peer, ask.nonce, _tellable(reason))
                continue
            if refusal is not None and refusal.nonce != ask.nonce:
                del member.refusals[peer]
            stamp = max((r.term, r.count) for r in member.holdings.ranges if spans.both((r.span,), (span,)))
            member.holdings.give_away(Gift(peer, ask.nonce, Range(*span, stamp[0], stamp[1] + 1), member.tip))


def _tellable(reason: str) -> str:
    """Owners may be called what no page may say."""
    printable = "".join(char if char.isprintable() else "?" for char in reason)
    return printable.encode(errors="replace")[:REASON_MAX].decode(errors="ignore")


def _choose(member: State, peer: PeerName, ask: Ask) -> tuple[tuple[int, int] | None, str | None]:
    """What to give; or why nothing, or None to answer later."""
    holdings = member.holdings
    if len(holdings.gifts) >= GIFTS_MAX:
        return None, None
    if len(holdings.ranges) >= RANGES_MAX - 1:
        return None, ""  # one more cut would make too many pieces of what is ours
    wanted = spans.both(holdings.owned, ((ask.start, ask.end),))
    if ask.exact:
        if wanted != ((ask.start, ask.end),):
            return None, ""
        for slot in range(ask.start, ask.end):
            if (given := holdings.given.get(slot)) is not None:
                return None, f"given to {given.owner}"
            if slot in holdings.resting:
                return None, f"released by {holdings.resting[slot][1]} less than a minute ago"
            for other, (_, slots) in holdings.kept.items():
                if other != peer and spans.holds(slots, slot):
                    return None, f"kept for containers of {other.hex(':')}"
            if member.around.used_elsewhere(slot) and not spans.holds(member.around.endpoints_of(peer), slot):
                return None, "in use on another host"
        return (ask.start, ask.end), None
    free = holdings.unannounced((ask.start, ask.end))
    if not free:
        pooled = spans.of_slots(holdings.pool((ask.start, ask.end)))
        free = (spans.largest(pooled),) if pooled else ()
    if not free:
        return None, ""
    start, end = spans.largest(free)
    if 2 * (end - start) > spans.size(free) and end - start > 1:
        start += (end - start) // 2
    return (start, end), None


# -- keeping -------------------------------------------------------------------------------------------


def _are_all_back(member: State, number: int) -> bool:
    """Whether nobody is missing whose slots were taken up to that decision."""
    assert member.charter is not None
    for fence in member.charter.fences:
        said = member.statement(fence.peer)
        is_back = fence.peer == member.own or (said is not None and said.tip >= fence.number)
        if fence.number <= number and not fence.removed and not is_back:
            return False
    return True


def _keep_for_others(member: State) -> None:
    """Slots of ours that are in use elsewhere: all that a take-over found, until their host is back and says which of
    them it still uses; then those."""
    assert member.charter is not None
    holdings = member.holdings
    for peer, (number, slots) in list(holdings.kept.items()):
        said = member.statement(peer)
        if member.is_removed(peer) or (peer == NOBODY and _are_all_back(member, number)):
            holdings.keep(peer, -1, spans.NONE)
        elif said is not None and said.tip >= number:
            holdings.keep(peer, -1, spans.both(said.guests, holdings.owned))
        elif number >= 0:
            holdings.keep(peer, number, slots)
    for peer, said in member.members():
        if said.guests and peer not in holdings.kept and not member.is_removed(peer):
            holdings.keep(peer, -1, spans.both(said.guests, holdings.owned))
