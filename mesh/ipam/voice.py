"""What a member says: its pages, made anew where there is something new to say.

A statement is new when anything in it is, or when a third of the lease has passed since the last one, which renews it.
What a page is made of is a value, so a page whose value is the same object is not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from gossip.names import PeerName
from mesh.ipam import serving, spans
from mesh.ipam.charter import encode_charter
from mesh.ipam.state import State
from mesh.ipam.statement import (
    BALLOT,
    CHARTER,
    GUEST_SPANS_MAX,
    KEPT_PEERS_MAX,
    PROPOSAL,
    RECEIPTS,
    RELICS,
    RELICS_MAX,
    REPORT,
    STATEMENT,
    STATEMENT_BYTES_MAX,
    Statement,
    encode_proposal,
    encode_receipts,
    encode_relic,
    encode_report,
    encode_statement,
    encode_vote,
    receipt_page,
)

RENEWALS = 3
"""So many statements a lease, if nothing changes."""
AHEAD_MAX = 1 << 48
"""No copy has said so much more than we have: numbers like that are nonsense, and would leave none to say more with."""
GUEST_SPANS_FEW = 16
KEPT_SPANS_MAX = 6


def _next_sequence(member: State) -> int:
    """Above everything that was said with our key: in this life, in earlier ones, and by a copy of our state directory
    that has ended since, which voters may hold. They take nothing that is older than that."""
    said, first = member.said, member.around.epoch << 24
    voters = member.charter.voters if member.charter is not None else ()
    held = [member.held_by(seat) for seat in voters]
    before = [first, said.sequence if said is not None else 0]
    return 1 + max([*before, *(each for each in held if each < first + AHEAD_MAX)])


def _is_outrun(member: State) -> bool:
    """Whether voters hold what we never said. While a copy still speaks, neither of the two outruns the other."""
    assert member.said is not None
    return not member.conflict and _next_sequence(member) > member.said.sequence + 1


class Voice:
    """The pages of one life."""

    def __init__(self) -> None:
        self._version = 0
        self._said: dict[int, bytes] = {}
        self._made_of: dict[int, object] = {}
        self._relics = 0

    def speak(self, member: State, now: float) -> dict[int, bytes]:
        """The pages that are others than before."""
        if self._is_due(member, now):
            self._state(member, now)
        pages = self._pages(member)
        changed = {page: body for page, body in pages.items() if self._said.get(page, b"") != body}
        self._said |= changed
        return changed

    def say_again(self, member: State, pages: Iterable[int]) -> None:
        """These did not get out."""
        for page in pages:
            self._said.pop(page, None)
            self._made_of.pop(page, None)
            if page >= RELICS:
                self._relics = max(self._relics, page - RELICS + 1)
            elif page >= RECEIPTS:
                member.voter.dirty.add(page)

    def _is_due(self, member: State, now: float) -> bool:
        flags = (member.tip, member.ring, member.wants_ring, member.expected, member.has_given, member.resigned)
        refusals = tuple(sorted((peer, refusal.nonce) for peer, refusal in member.refusals.items()))
        version = hash((member.holdings.version, tuple(member.asks), refusals, flags, member.joins))
        renewed = member.lease.renewed_at()
        is_renewed = member.charter is not None and not member.resigned
        lease_s = member.charter.lease_s if member.charter is not None else 0
        old = is_renewed and (renewed is None or now >= renewed + lease_s / RENEWALS)
        is_full = member.charter is not None and member.lease.is_full
        if member.said is not None and not old and not _is_outrun(member) and (version == self._version or is_full):
            return False
        self._version = version
        return True

    def _state(self, member: State, now: float) -> None:
        """The next statement."""
        holdings = member.holdings
        said = member.said = Statement(
            ring=member.ring,
            tip=member.tip,
            sequence=_next_sequence(member),
            ranges=tuple(holdings.ranges),
            used=holdings.announced,
            guests=spans.coarse(spans.of_slots(holdings.guests), GUEST_SPANS_MAX, ((0, 1 << 64),)),
            gifts=tuple(holdings.gifts),
            asks=tuple(member.asks.values()),
            refusals=tuple(member.refusals.values()),
            expects=member.expected if member.votes_at_all else 0,
            wants_ring=member.wants_ring,
            has_given=member.has_given,
            resigned=member.resigned,
            seat=member.seat,
            joins=member.joins,
            kept=holdings.kept_to_say(KEPT_PEERS_MAX, KEPT_SPANS_MAX),
        )
        if len(encode_statement(said)) > STATEMENT_BYTES_MAX:
            # Guests may be told as larger spans than they are, and answers later.
            few = spans.coarse(said.guests, GUEST_SPANS_FEW, ((0, 1 << 64),))
            said = member.said = replace(said, guests=few, refusals=())
        if member.charter is not None and not member.resigned:
            member.lease.say(said.sequence, now, spans.both(said.owned, said.used), said.owned, member.charter)
            if member.own_seat is not None and member.voter.has_inherited(member.charter):
                serving.hold(member, member.own, said, now)
                if member.lease.hear(member.held_by):
                    holdings.confirm_donors(member.lease.confirmed_owned)

    def _pages(self, member: State) -> dict[int, bytes]:
        assert member.said is not None
        voter = member.voter
        pages = {
            STATEMENT: self._made(STATEMENT, member.said, encode_statement),
            CHARTER: self._made(CHARTER, member.charter, encode_charter),
            BALLOT: self._made(BALLOT, voter.vote if voter.vote.number >= 0 else None, encode_vote),
            REPORT: self._made(REPORT, voter.report if voter.report.number >= 0 else None, encode_report),
            PROPOSAL: self._made(PROPOSAL, member.ballots.proposal, encode_proposal),
        }
        if member.own_seat is not None:
            lost = [peer for peer in voter.receipts if self._is_relic(member, peer)]
            lost = sorted(lost, key=lambda peer: voter.receipts[peer].statement.is_empty)[:RELICS_MAX]
            for place in range(max(len(lost), self._relics)):
                peer = lost[place] if place < len(lost) else None
                held = encode_relic(peer, voter.receipts[peer].statement) if peer is not None else b""
                pages[RELICS + place] = held
            self._relics = len(lost)
        if member.charter is not None:
            own = receipt_page(member.own)
            for page, receipts in voter.pages(member.charter).items():
                # One page is always there, to say that there are no others.
                pages[page] = encode_receipts(receipts) if receipts.held or page == own else b""
        return pages

    def _made(self, page: int, value: Any, encode: Callable[[Any], bytes]) -> bytes:
        if value is None:
            self._made_of.pop(page, None)
            return b""
        if self._made_of.get(page) is value and page in self._said:
            return self._said[page]
        self._made_of[page] = value
        return encode(value)

    def _is_relic(self, member: State, peer: PeerName) -> bool:
        """Whether gossip knows less of a peer than we have on disk."""
        said = member.statement(peer)
        sequence = said.sequence if said is not None else 0
        return peer != member.own and member.voter.receipts[peer].statement.sequence > sequence
