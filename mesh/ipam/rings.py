"""Which ring we belong to, and moving from one to another.

There are several where hosts made one each before they met. A ring that was never used yields to one that was, and of
two unused ones the greater id to the lesser; used ones stay apart until an operator's word joins them.
Where such a word removes all who vote in a ring, the next one is made at once, and the old one is joined to it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gossip.names import PeerName
from mesh.ipam import adoption, left
from mesh.ipam.charter import FENCES_MAX, FIRST_SHARES_MAX, RING_BYTES, Fence, first_charter
from mesh.ipam.lease import voter_limit_s
from mesh.ipam.state import State


def choose(member: State, now: float) -> None:
    """Move, if we should; and see which other rings are in reach."""
    if member.resigned:
        return
    found: dict[bytes, list[PeerName]] = {}
    for peer, known in sorted(member.known.items()):
        said = known.statement
        if said is not None and peer in member.reachable and said.ring and said.ring != member.ring:
            found.setdefault(said.ring, []).append(peer)
    member.splits = {}
    for ring, peers in sorted(found.items()):
        if member.charter is None:
            _move_to(member, ring, peers, now)
        elif _has_been_joined(member, ring):
            member.joins = (member.ring, ring)
            _move_to(member, ring, peers, now)
        elif not _is_used(member, member.ring):
            if _is_used(member, ring) or ring < member.ring:
                _move_to(member, ring, peers, now)
        elif _is_used(member, ring):
            member.splits[ring] = peers


def join(member: State, ring: bytes) -> None:
    """By an operator's word, our ring joins another one in reach."""
    assert member.charter is not None and ring in member.splits
    member.joins = (member.ring, ring)
    member.note_mind()


def _has_been_joined(member: State, ring: bytes) -> bool:
    """Whether an operator's word moved our ring into that one."""
    others = (known.statement.joins for known in member.known.values() if known.statement is not None)
    return (member.ring, ring) in (member.joins, *others)


def _is_used(member: State, ring: bytes) -> bool:
    if ring == member.ring and member.has_given:
        return True
    said = (known.statement for known in member.known.values() if known.statement is not None)
    return any(each.ring == ring and each.has_given for each in said)


def _move_to(member: State, ring: bytes, peers: list[PeerName], now: float) -> None:
    if ring in member.left:
        _come_back(member, ring, now)
        return
    charters = [member.known[peer].charter for peer in peers]
    found = [charter for charter in charters if charter is not None and charter.ring == ring]
    if found:
        _leave(member)
        adoption.adopt(member, max(found, key=lambda charter: charter.number), now)


def _leave(member: State) -> None:
    """To those who stay we are a host that is off; what is in use goes on."""
    if member.charter is not None:
        member.note_left(member.ring, left.what_is_left(member.charter, member.holdings, member.has_given))
    member.holdings.leave()
    member.lease.end()
    member.asks.clear()
    member.refusals.clear()
    member.has_given = False


def _come_back(member: State, ring: bytes, now: float) -> None:
    """To a ring that was ours, knowing what we knew then: what it decided since is learned like after any absence."""
    _leave(member)
    adoption.follow(member, member.left[ring].charter, now)
    what = member.left.pop(ring)
    member.changes[b"l" + ring] = None
    left.come_back(member.holdings, what)
    member.has_given = what.has_given
    adoption.begin_anew(member)
    member.events.append(f"back in a ring that was left, as of decision {member.tip}")


def has_voters_beside(member: State, gone: Collection[PeerName]) -> bool:
    """Whether these, once they are removed, leave anybody who votes."""
    assert member.charter is not None
    return any(member.peer_at(seat) not in gone for seat in member.charter.voters)


def out_of_reach(member: State, gone: Collection[PeerName]) -> list[PeerName]:
    """Who else may be giving addresses of our ring, and would not hear that there is another one."""
    return [peer for peer, _ in member.standing() if peer not in gone and peer not in member.reachable]


def too_early_s(member: State, now: float) -> float:
    """For how long others may still be giving of whom this life, begun in the midst of the ring, has not heard."""
    assert member.charter is not None
    is_old = member.ring == member.ring_before
    return max(0.0, member.began_at + voter_limit_s(member.charter.lease_s) - now) if is_old else 0.0


def is_to_be_made_anew(member: State, now: float) -> bool:
    gone = member.removals
    if not gone or member.charter is None or has_voters_beside(member, gone):
        return False
    return not out_of_reach(member, gone) and not too_early_s(member, now)


def make_anew(member: State, now: float) -> None:
    """Nobody is left who votes: a ring of this host and those in reach, which have equal shares of it. The one before
    is joined to it, so what is in use goes on, but not what the removed ones had."""
    before = member.charter
    assert before is not None
    there = [peer for peer, said in member.members() if peer in member.reachable and said.expects and not said.resigned]
    seats = [bytes(member.own), *map(bytes, there)][:FIRST_SHARES_MAX]
    removed = dict.fromkeys([*(fence.peer for fence in before.fences if fence.removed), *member.removals])
    fences = tuple(Fence(peer, 0, bytes(member.own), True) for peer in removed)[-FENCES_MAX:]
    ring = member.rng.randbytes(RING_BYTES)
    charter = first_charter(ring, before.space, before.lease_s, seats, "a ring made anew: no voter was left")
    _leave(member)
    member.joins = (before.ring, ring)
    adoption.adopt(member, replace(charter, fences=fences), now)
    member.note_given()
