"""Serving as a voter: whose statements it holds, and what it promises or accepts of what is proposed."""

from __future__ import annotations

from functools import partial

from gossip.names import PeerName
from mesh.ipam import claims
from mesh.ipam.state import State
from mesh.ipam.statement import Proposal, Statement


def serve(member: State, now: float) -> None:
    """Hold others' statements."""
    charter = member.charter
    assert charter is not None
    seat = member.own_seat
    if seat is None:
        return
    if not member.voter.has_inherited(charter):
        if not member.voter.inherit(charter, seat, member.receipts_at, member.newest, now):
            return
        member.look_at_owners_again()
        member.unheld.update(member.known)
    member.voter.forget_departed({*member.known, member.own}, charter.lease_s, now)
    still: set[PeerName] = set()
    for peer in sorted(member.unheld):
        said = member.statement(peer)
        if said is not None and not hold(member, peer, said, now) and said.tip >= charter.number:
            still.add(peer)
    member.unheld = still


def hold(member: State, peer: PeerName, said: Statement, now: float) -> bool:
    """Take a statement into our receipts, unless something stands against it; false where that may pass."""
    assert member.charter is not None
    held = member.voter.receipts.get(peer)
    if held is not None and held.statement.sequence >= said.sequence:
        return True
    if said.tip != member.tip or member.voter.refuses(peer, said, member.charter):
        return False
    if member.voter.is_closed(member.charter):
        return False
    if held is None and member.voter.is_full_for(peer):
        return False
    is_known = held is not None and held.statement.ranges == said.ranges
    if not is_known and (not _has_provenance(member, said) or claims.overlaps(member, peer, said)):
        return False
    member.voter.take(peer, said, now)
    return True


def _has_provenance(member: State, said: Statement) -> bool:
    """Whether we know the word by which every donor let go of what it gave."""
    for each in said.ranges:
        if each.donor and each.donor != member.own:
            donor = member.newest(each.donor)
            held = member.voter.receipts.get(each.donor)
            best = max(donor.sequence if donor else 0, held.statement.sequence if held else 0)
            if best < each.donor_sequence:
                return False
    return True


def vote(member: State, now: float) -> None:
    """Promise or accept what is proposed to us, our own proposal included."""
    proposals = [member.known[peer].proposal for peer in sorted(member.known)]
    for proposal in (*proposals, member.ballots.proposal):
        if proposal is not None and _may_vote(member, proposal):
            peer = proposal.intent.retire
            best = member.statement(peer) if peer else None
            taken = partial(claims.taken, member, peer)
            member.voter.consider(proposal, member.charter, best, taken, member.own, now)
            member.ballots.see(proposal.ballot)


def _may_vote(member: State, proposal: Proposal) -> bool:
    if proposal.ring != member.ring or proposal.number != member.tip + 1:
        return False
    if member.charter is None:
        return member.votes_at_all
    seat = member.own_seat
    # Not knowing what former voters held, one votes only on a word that leaves too few of these to tell it.
    left = sum(each not in proposal.intent.without for each in member.charter.former)
    is_lost = proposal.intent.by_word and left < member.charter.former_needed
    return seat is not None and (is_lost or member.voter.has_inherited(member.charter))
