"""What a decision changes here: what is lost by it, what is granted, under which numbers addresses go on."""

from __future__ import annotations

from ipaddress import ip_interface

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.charter import Charter, encode_charter
from mesh.ipam.claims import lost_with
from mesh.ipam.space import Space
from mesh.ipam.state import State
from mesh.ipam.statement import Range

ADOPT_PATIENCE_S = 60.0
AHEAD_MAX = 1 << 20
"""Nobody misses so many decisions."""


def learn(member: State, now: float) -> None:
    """The newest decision that anybody of our ring knows."""
    if member.charter is None:
        return
    found = [known.charter for known in member.known.values() if known.charter is not None]
    mine = (member.ring, member.charter.space, member.charter.lease_s)
    later = [
        charter for charter in found
        if (charter.ring, charter.space, charter.lease_s) == mine
        and member.tip < charter.number < member.tip + AHEAD_MAX
    ]  # fmt: skip
    if later:
        charter = max(later, key=lambda charter: charter.number)
        if _may_adopt(member, charter, now):
            adopt(member, charter, now)


def adopt(member: State, charter: Charter, now: float) -> None:
    """A decision of our ring, the one that makes it, or one of a ring that we move to."""
    if charter.ring != member.ring or charter.number > member.tip:
        _adopt(member, charter, now)


def _may_adopt(member: State, charter: Charter, now: float) -> bool:
    """What a donor gave us just before it was retired may be ours or its heir's: that must be known first."""
    donors = {each.donor for each in member.holdings.ranges if each.donor}
    unclear = [donor for donor in donors if lost_with(member, charter, donor) is None]
    if not unclear:
        member.postponed = None
        return True
    member.postponed = now if member.postponed is None else member.postponed
    return now >= member.postponed + ADOPT_PATIENCE_S


def _adopt(member: State, charter: Charter, now: float) -> None:
    tip = member.tip if member.ring == charter.ring else -1
    follow(member, charter, now)
    if tip >= 0 and charter.fenced_after(member.own, tip):
        # All of it: what voters confirmed is the heir's, and gifts that they did not are their donors' again.
        member.lost = member.holdings.owned
        member.holdings.remove(member.lost)
        member.holdings.drop_gifts(list(member.holdings.gifts))  # the vote knew of them, or gave the slots to the heir
        member.lease.end()
        member.events.append(f"lost {spans.size(member.lost)} addresses: they were taken over while this host was away")
    for each in [each for each in member.holdings.ranges if each.donor] if tip >= 0 else ():
        lost = lost_with(member, charter, each.donor, tip)
        member.holdings.remove(spans.both((each.span,), lost if lost is not None else (each.span,)))
    # What was not lost with a donor is ours by that decision: of the donor's word nobody may be left who knows it.
    settled = [each.span for each in member.holdings.ranges if each.donor and charter.fenced_after(each.donor, tip)]
    member.holdings.confirm_donors(spans.normal(settled))
    for grant in charter.grants:
        if grant.number > tip and grant.heir in member.own_seats():
            for start, end in spans.minus(grant.slots, member.holdings.owned):
                member.holdings.add_range(Range(start, end, grant.number, 0))
            if grant.reserved:
                member.holdings.keep_also(PeerName(grant.source), grant.number, grant.reserved)
    member.voter.forget_retired(charter)
    begin_anew(member)
    member.events.append(f"decision {charter.number}: {charter.note}")


def follow(member: State, charter: Charter, now: float) -> None:
    """From now on this is what we know to be decided."""
    before = member.space
    member.charter = charter
    member.changes[b"c"] = encode_charter(charter)
    if before != charter.space:
        _renumber(member, before, charter.space)
    member.begin_to_vote(now)


def begin_anew(member: State) -> None:
    """All that we say follows from what is decided."""
    member.announce_first()
    member.voter.say_all_again()
    member.unheld.update(member.known)
    member.ballots.drop()
    member.note_mind()


def _renumber(member: State, before: Space, after: Space) -> None:
    """The same addresses under the numbers of another range, or under none."""
    if (before.range4, before.range6) == (after.range4, after.range6) or not member.holdings.given:
        return
    texts = {text for given in member.holdings.given.values() for text in given.addresses}
    numbers = {text: after.slot(ip_interface(text).ip) for text in texts}
    dropped = member.holdings.renumber(numbers)
    # What has no number is not ours to manage any more. Nor to give, should we come back: it may be in use still.
    for ring, what in list(member.left.items()) if dropped else ():
        if what.charter.space == before:
            member.note_left(ring, what.without(dropped))
