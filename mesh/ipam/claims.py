"""Who has which slots, as far as a member knows: by what others say, by receipts, and by what was decided."""

from __future__ import annotations

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.charter import Charter, Fence
from mesh.ipam.spans import Spans
from mesh.ipam.state import State
from mesh.ipam.statement import Statement, Taken, stamps_of

EVERYTHING: Spans = ((0, 1 << 64),)


def overlaps(member: State, peer: PeerName, said: Statement) -> bool:
    """Whether somebody else, as far as we know, has slots that `peer` says are its own."""
    assert member.charter is not None
    owned = said.owned
    if not owned:
        return False
    if any(other not in (peer, member.own) for other in member.owners().of(owned)):
        return True
    if peer != member.own and spans.both(owned, member.holdings.owned):
        return True
    for grant in member.charter.grants:
        heir = member.peer_at(grant.heir)
        if heir != peer and spans.both(owned, grant.slots) and not has_taken(member, heir, grant.number):
            return True
    return False


def has_taken(member: State, heir: PeerName | None, number: int) -> bool:
    if heir == member.own:
        return member.tip >= number
    said = member.statement(heir) if heir is not None else None
    return said is not None and said.tip >= number


def taken(member: State, peer: PeerName, slots: Spans) -> list[Taken]:
    """Which of these slots, once of `peer`, others have by now, and under which stamp: one above those of its own
    statement, or of its gifts, which are as good as made."""
    held = member.voter.receipts.get(peer)
    said = member.statement(peer)
    if held is not None and (said is None or held.statement.sequence > said.sequence):
        said = held.statement
    theirs = stamps_of(said)
    others = [(other, each) for other, each in member.members() if other != peer]
    others += [(other, receipt.statement) for other, receipt in member.voter.receipts.items() if other != peer]
    if member.own != peer and member.charter is not None:
        mine = Statement(ranges=tuple(member.holdings.ranges), gifts=tuple(member.holdings.gifts))
        others.append((member.own, mine))
    gone: list[Taken] = []
    for other, each in others:
        ranges = [*each.ranges, *(gift.range for gift in each.gifts if gift.to != peer)]
        if member.charter is not None and member.charter.fenced_after(other, each.tip) and other != member.own:
            continue
        for their in ranges:
            for span in spans.both(slots, (their.span,)):
                below = [stamp for mine, stamp in theirs if spans.both((mine,), (span,))]
                if (their.term, their.count) > max(below, default=(-1, -1)):
                    gone.append((*span, their.term, their.count))
    return gone


def lost_with(member: State, charter: Charter, donor: PeerName, tip: int | None = None) -> Spans | None:
    """Which slots another charter than ours, of number `tip`, says that a donor lost: those its heir was granted, and
    what that has given on since. None where that is not known yet; where it is too long ago, all."""
    if not charter.fenced_after(donor, member.tip if tip is None else tip):
        return spans.NONE
    fence = charter.fence_of(donor)
    if fence is None:
        return EVERYTHING
    passed = passed_on(member, charter, fence)
    numbers = {each.number for each in passed}
    lost = [grant.slots for grant in charter.grants if grant.number in numbers]
    heir = member.peer_at(passed[-1].heir)
    said = member.statement(heir) if heir is not None else None
    if not lost and (said is None or said.tip < passed[-1].number):
        return None
    for _, other in member.members():
        for each in (*other.ranges, *(gift.range for gift in other.gifts)):
            if each.term >= fence.number:
                lost.append((each.span,))
    return spans.union(*lost)


def passed_on(member: State, charter: Charter, fence: Fence) -> list[Fence]:
    """By which decisions what one took away went on: an heir may be retired in its turn, before it says a word."""
    passed = [fence]
    while (heir := member.peer_at(passed[-1].heir)) is not None:
        later = charter.fence_of(heir)
        if later is None or later.number <= passed[-1].number:
            break
        passed.append(later)
    return passed
