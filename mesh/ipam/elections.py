"""Which votes this host should hold, and how they are counted.

A vote is held for the ring itself when somebody wants an address; for more voters while there are fewer than seven; to
retire peers that are dead, have resigned, or are removed by an operator's word; and to end a vote that somebody left
open. Where such a word leaves nobody who votes none can be held: the ring is made anew. Voters in reach take turns by
rank, so that usually only one proposes. What is decided is chosen by `_value`.
"""

from __future__ import annotations

from dataclasses import replace

from gossip.names import PeerName
from mesh.ipam import rings, spans
from mesh.ipam.ballots import Electorate
from mesh.ipam.charter import (
    CHARTER_BYTES_MAX,
    FENCES_MAX,
    FIRST_SHARES_MAX,
    GRANTS_MAX,
    VOTERS_MAX,
    Charter,
    Fence,
    Grant,
    encode_charter,
    first_charter,
)
from mesh.ipam.spans import Spans
from mesh.ipam.state import State
from mesh.ipam.statement import RANGES_MAX, USED_MAX, Intent, Report, Statement, Vote, still_taken
from mesh.ipam.voter import are_complete

TURN_S = 2.0
"""A voter of the next rank waits so much longer before it proposes the same."""
SETTLED_S = 2.0
"""Newcomers become voters when they have been there for so long."""
ABSENT_S = 5.0
"""Nobody is retired who was in reach a moment ago."""
OPEN_S = 4.0


def settle(member: State, now: float) -> None:
    """Hold the vote that is due, if one is."""
    if rings.is_to_be_made_anew(member, now):
        rings.make_anew(member, now)
    if _is_taken_back(member):
        member.ballots.drop()
    intent = _intent(member, now)
    if intent is not None:
        member.ballots.begin(member.ring, member.tip + 1, intent, now)


def _is_taken_back(member: State) -> bool:
    """Whether our vote is about a word that nobody stands by any more: who gave it was told that too few voters are
    there, and may have brought them back since, with the peer itself."""
    proposal = member.ballots.proposal
    if proposal is None or not proposal.intent.by_word or member.charter is None:
        return False
    return proposal.intent.retire not in (*member.removals, *_resigned(member))


def _intent(member: State, now: float) -> Intent | None:
    if member.charter is None:
        return _first(member, now)
    if member.removals:
        wanted = next(iter(member.removals))
        without = tuple(seat for peer in member.removals if (seat := member.seat_of(peer)) is not None)
        if (fence := member.charter.fence_of(wanted)) is not None and fence.removed and not _is_there(member, wanted):
            del member.removals[wanted]
            return _intent(member, now)
        return Intent(wanted, True, without)
    rank = _rank(member)
    if rank is not None and (resigned := _resigned(member)):
        # By their own word they vote no more, so that whoever is left decides without them.
        seats = tuple(seat for peer in resigned if (seat := member.seat_of(peer)) is not None)
        intent = Intent(resigned[0], True, seats)
        if now >= member.onsets.setdefault((member.tip, intent), now) + rank * TURN_S:
            return intent
    if rank is None or not _has_majority(member):
        return None
    for intent, after_s in sorted(_due(member, now), key=lambda due: member.ballots.is_fruitless(due[0], now)):
        onset = member.onsets.setdefault((member.tip, intent), now)
        if now >= onset + after_s + rank * TURN_S:
            return intent
    if len(member.onsets) > 64:
        member.onsets = {key: at for key, at in member.onsets.items() if key[0] == member.tip}  # type: ignore[index]
    return None


def _first(member: State, now: float) -> Intent | None:
    """The ring is made when somebody wants an address, by whoever wants it and may vote. Its range is that of who
    proposes it, so a host without makes none."""
    if not member.space.ranges:
        return None
    asking = member.wants_ring or any(
        known.statement is not None and known.statement.wants_ring and peer in member.reachable
        for peer, known in member.known.items()
    )
    if not asking or not member.votes_at_all or len(_electors(member)) < _needed(member):
        return None
    onset = member.onsets.setdefault("first", now)
    return Intent() if member.wants_ring or now >= onset + TURN_S else None


def _electors(member: State) -> list[PeerName]:
    """Who could make the first ring, as far as is known."""
    others = [
        peer for peer, known in sorted(member.known.items())
        if known.statement is not None and known.statement.expects and not known.statement.ring
        and not known.statement.resigned and peer in member.reachable
    ]  # fmt: skip
    return sorted([member.own, *others])


def _founders(member: State) -> list[PeerName]:
    """Who could make the first ring, and who has promised to and is out of reach since. Without these, who is left
    might be the only voter of a ring that others are in, and take all of it along."""
    proposal = member.ballots.proposal
    assert proposal is not None
    promised = (peer for peer, known in member.known.items() if known.vote.promised == proposal.ballot)
    return sorted({*_electors(member), *promised})


def _needed(member: State) -> int:
    """A majority of those that are expected; who is there without having been expected counts too."""
    return expected(member) // 2 + 1


def expected(member: State) -> int:
    """How many peers the first vote counts on: as many as the user said, or as are named or known."""
    return member.settings.expected or max(member.expected, len(_electors(member)))


def missing_for_first(member: State) -> int:
    """How many more peers have to come into reach before there can be a ring."""
    return max(0, _needed(member) - len(_electors(member)))


def _has_majority(member: State) -> bool:
    """Whether enough voters are in reach for a vote to come to anything."""
    assert member.charter is not None
    peers = (member.peer_at(seat) for seat in member.charter.voters)
    there = sum(peer is not None and (peer == member.own or peer in member.reachable) for peer in peers)
    return there >= member.charter.majority


def _rank(member: State) -> int | None:
    """How many voters in reach stand before us; None where we are none."""
    assert member.charter is not None
    if member.own_seat is None or not member.voter.has_inherited(member.charter):
        return None
    peers = (member.peer_at(seat) for seat in member.charter.voters)
    return sum(peer is not None and peer in member.reachable and peer < member.own for peer in peers)


def _due(member: State, now: float) -> list[tuple[Intent, float]]:
    """Votes that should be held, each with how long that must have been so."""
    assert member.charter is not None
    due: list[tuple[Intent, float]] = []
    for peer in _dead(member, now):
        due.append((Intent(peer), 0.0))
    if member.voter.is_open(member.charter):
        due.append((Intent(), OPEN_S))
    elif _candidates(member):
        due.append((Intent(), SETTLED_S))
    return due


def _resigned(member: State) -> list[PeerName]:
    return [peer for peer, said in member.members() if said.resigned and _has_part(member, peer)]


def _dead(member: State, now: float) -> list[PeerName]:
    """Peers whose slots may be taken over, or that should vote no more."""
    charter = member.charter
    assert charter is not None
    voters = [peer for seat in charter.voters if (peer := member.peer_at(seat)) is not None]
    heirs = [peer for grant in charter.grants if (peer := member.peer_at(grant.heir)) is not None]
    found = []
    for peer in sorted({*member.known, *member.voter.receipts, *voters, *heirs} - {member.own}):
        left = peer in member.reachable and member.statement(peer) is None and peer in member.known
        if not left and member.unreachable_for_s(peer, now) < ABSENT_S:
            continue
        if _has_part(member, peer) and member.voter.lease_is_over(peer, charter.lease_s, now):
            found.append(peer)
    return found


def _best(member: State, peer: PeerName) -> Statement | None:
    """The newest statement of our ring that we know of a peer."""
    said = member.statement(peer)
    held = member.voter.receipts.get(peer)
    if held is not None and (said is None or held.statement.sequence > said.sequence):
        return held.statement
    return said


def _has_part(member: State, peer: PeerName) -> bool:
    """Whether there is anything to take from a peer: slots, gifts, a vote."""
    assert member.charter is not None
    said = _best(member, peer)
    tip = said.tip if said is not None else -1
    if bytes(peer) in member.charter.voters or member.seat_of(peer) is not None:
        return True
    seats = {bytes(peer), said.seat if said is not None else b""}
    if any(grant.heir in seats and grant.number > tip for grant in member.charter.grants):
        return True
    return said is not None and bool(said.ranges or said.gifts) and not member.charter.fenced_after(peer, tip)


def _is_there(member: State, peer: PeerName) -> bool:
    """Whether a removed peer has come back since."""
    assert member.charter is not None
    said, fence = member.statement(peer), member.charter.fence_of(peer)
    return said is not None and fence is not None and said.tip >= fence.number and _has_part(member, peer)


def _candidates(member: State, without: frozenset[bytes] = frozenset()) -> list[bytes]:
    """Who should vote and does not yet, as many as there are places for."""
    charter = member.charter
    assert charter is not None
    seated = {member.peer_at(seat) for seat in charter.voters}
    able = [
        peer for peer, said in member.members()
        if peer in member.reachable and said.expects and not said.resigned and said.tip == charter.number
    ]  # fmt: skip
    if member.votes_at_all:
        able.append(member.own)
    free = VOTERS_MAX - len([seat for seat in charter.voters if seat not in without])
    wanted = [bytes(peer) for peer in sorted(able) if peer not in seated and bytes(peer) not in without]
    return wanted[: max(0, free)]


# -- counting ------------------------------------------------------------------------------------------


def count(member: State, now: float) -> Charter | None:
    """Look at the votes for our proposal; the decision, once there is one."""
    proposal = member.ballots.proposal
    if proposal is None or (proposal.ring, proposal.number) != (member.ring, member.tip + 1):
        return None
    votes: dict[bytes, tuple[Vote, Report]] = {}
    for peer, known in sorted(member.known.items()):
        seat = bytes(peer) if member.charter is None else _seat_any(member, peer)
        if seat is not None:
            votes[seat] = (known.vote, known.report)
    own = bytes(member.own) if member.charter is None else member.own_seat
    if own is not None:
        votes[own] = (member.voter.vote, member.voter.report)
    for vote, _ in votes.values():
        if (vote.ring, vote.number) == (proposal.ring, proposal.number):
            member.ballots.see(vote.promised)  # of an earlier life of ours too: the next ballot has to be above it
    if member.charter is None:
        electorate = Electorate(set(votes), _needed(member))
    else:
        left = [seat for seat in member.charter.voters if seat not in proposal.intent.without]
        # Those that a word leaves out may have been part of an earlier majority, or of the blocking set that holds a
        # statement: as many as without a word are needed, as far as there are so many.
        needed = max(len(left) // 2 + 1, min(len(left), member.charter.majority))
        electorate = Electorate(left, needed)
    value = proposal.value
    if member.charter is not None and value is not None and value.since == value.number:
        # Those who will vote have to know what those who voted held: it is decided when it shows.
        votes = {seat: vote for seat, vote in votes.items() if _shows_receipts(member, seat, value.number)}
    return member.ballots.advance(votes, electorate, lambda intent, reports: _value(member, intent, reports), now)


def _shows_receipts(member: State, seat: bytes, number: int) -> bool:
    return are_complete(member.receipts_at(seat), member.ring, number)


def _seat_any(member: State, peer: PeerName) -> bytes | None:
    assert member.charter is not None
    if bytes(peer) in member.charter.voters:
        return bytes(peer)
    return member.seat_of(peer)


def _value(member: State, intent: Intent, reports: list[Report]) -> Charter | None:
    """What to decide, now that a majority has promised and nothing was accepted before; None for what fits no page."""
    following = _following(member, intent, reports)
    return following if following is not None and len(encode_charter(following)) <= CHARTER_BYTES_MAX else None


def _following(member: State, intent: Intent, reports: list[Report]) -> Charter | None:
    if member.charter is None:
        seats = [bytes(peer) for peer in _founders(member)][:FIRST_SHARES_MAX]
        settings = member.settings
        ring = member.rng.randbytes(16)
        return first_charter(ring, settings.space, settings.lease_s, seats, "a ring of its own")
    if intent.retire:
        return _retired(member, intent, reports)
    wanted = _candidates(member)
    charter = replace(member.charter, grants=_still_granted(member))
    if wanted:
        seats = [_named(member, seat) for seat in charter.voters]
        return charter.with_voters([*seats, *wanted], f"{len(wanted)} more voters")
    return charter.plain("a vote that was left open")


def _named(member: State, seat: bytes) -> bytes:
    peer = member.peer_at(seat)
    return bytes(peer) if peer is not None else seat


def _still_granted(member: State) -> tuple[Grant, ...]:
    """Grants of which not enough voters beside the heir hold yet that it took them."""
    assert member.charter is not None
    kept = []
    for grant in member.charter.grants:
        peer = member.peer_at(grant.heir)
        held = member.voter.receipts.get(peer) if peer is not None else None
        has_taken = held is not None and held.statement.tip >= grant.number
        if peer is None or held is None or not has_taken or not member.is_held_beside(peer, held.statement.sequence):
            kept.append(grant)
    return tuple(kept)


def _by_host(kept: list[tuple[bytes, Spans]], within: Spans) -> dict[bytes, Spans]:
    """What is kept for each host, a slot for one of them only."""
    found: dict[bytes, Spans] = {}
    rest = within
    for other, slots in sorted(kept):
        theirs = spans.both(slots, rest)
        if theirs:
            found[other] = spans.union(found.get(other, spans.NONE), theirs)
            rest = spans.minus(rest, theirs)
    return found


def _retired(member: State, intent: Intent, reports: list[Report]) -> Charter | None:
    """Everything of one peer goes to us. What may be in use on its host is kept for it, unless it is gone for good."""
    charter = member.charter
    assert charter is not None
    peer = intent.retire
    statements = [*(report.statement for report in reports), _best(member, peer), member.newest(peer)]
    said = max((each for each in statements if each is not None), key=lambda each: each.sequence, default=None)
    if said is not None and said.ring != charter.ring:
        said = None
    seats = {bytes(peer), said.seat if said is not None and said.seat else bytes(peer)}
    tip = said.tip if said is not None else -1
    waiting = [grant for grant in charter.grants if grant.heir in seats and grant.number > tip]
    parts = [grant.slots for grant in waiting]
    own_use = [grant.reserved for grant in waiting if not grant.source]
    kept = [(grant.source, grant.reserved) for grant in waiting if grant.source]
    if said is not None and not charter.fenced_after(peer, said.tip):
        parts += [said.owned, said.given_away]
        own_use.append(said.used)
        kept += [(bytes(other), slots) for other, slots in said.kept]
    excluded = still_taken([each for report in reports for each in report.excluded], said)
    slots = spans.minus(spans.union(*parts), excluded)
    grants = [grant for grant in _still_granted(member) if grant.heir not in seats]
    number = charter.number + 1
    rest = slots
    for other, theirs in _by_host(kept, slots).items():
        # Kept for a third host: that goes on, whatever became of who kept it.
        if not other or not member.is_removed(PeerName(other)):
            grants.append(Grant(number, bytes(member.own), theirs, theirs, other))
            rest = spans.minus(rest, theirs)
    reserved = spans.NONE
    if not intent.by_word:
        own_use.append(member.around.endpoints_of(peer))
        reserved = spans.coarse(spans.both(spans.union(*own_use), rest), USED_MAX, rest)
    if rest:
        grants.append(Grant(number, bytes(member.own), rest, reserved, bytes(peer)))
    fence = Fence(peer, number, bytes(member.own), intent.by_word)
    gone = frozenset({*seats, *intent.without})
    voters = [seat for seat in (_named(member, each) for each in charter.voters) if seat not in gone]
    voters += [seat for seat in _candidates(member, gone) if seat not in gone]
    voters = voters or [bytes(member.own)]
    note = f"{peer.hex(':')} {'is removed' if intent.by_word else 'is taken for dead'}, {spans.size(slots)} addresses"
    if tuple(sorted(set(voters))) != charter.voters:
        following = charter.with_voters(voters, note)
        # Those who by an operator's word never speak again cannot be asked what they know.
        former = tuple(seat for seat in charter.voters if seat not in intent.without)
        following = replace(following, former=former, former_needed=min(len(former), charter.majority))
    else:
        following = charter.plain(note)
    following = replace(following.with_fence(fence), grants=tuple(grants))
    # An heir of too many pieces could not say what it owns any more: let another one, or nobody for now.
    pieces = len(member.holdings.ranges) + sum(len(grant.slots) for grant in following.granted(bytes(member.own)))
    if len(grants) > GRANTS_MAX or pieces > RANGES_MAX:
        return None
    return None if _is_forgotten_too_soon(member, following, intent) else following


def _is_forgotten_too_soon(member: State, following: Charter, intent: Intent) -> bool:
    """Whether a host that has slots, and has only not heard of the last decisions, would seem to be retired as the
    oldest fences are forgotten: it would drop what nobody else was given."""
    if len(following.fences) < FENCES_MAX:
        return False
    assert member.charter is not None
    oldest = following.fences[0].number
    said = {peer: receipt.statement for peer, receipt in member.voter.receipts.items()} | dict(member.members())
    return any(
        peer not in (intent.retire, member.own) and not each.is_empty and each.tip < oldest
        and not member.charter.fenced_after(peer, each.tip)
        for peer, each in said.items()
    )  # fmt: skip
