"""A voter's memory: which statements it holds, what it promised, what it accepted; on disk before anybody sees it.

Decisions are made one after the other, each by Paxos (Lamport, "Paxos Made Simple", 2001) among the voters that the one
before named. What is added to Paxos here, for votes that take a peer's slots away:

- who has a receipt of that peer's statement promises nothing before the lease has run out, by its own clock;
- with its promise it reports the newest statement of that peer that it knows, and which of the slots others have;
- from its promise until the decision it takes no statement of that peer, and none of others that newly own its slots.

Since a majority promises, and every blocking set has a member in every majority, nothing that an owner may still do,
and nothing that anybody may do with slots it got from that owner, is unknown to the vote: docs/ipam.md argues it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

import msgpack

from gossip.names import PEER_NAME_BYTES, PeerName
from mesh.ipam import spans
from mesh.ipam.charter import RING_BYTES, Charter, flat, spans_of, unpack_own
from mesh.ipam.holdings import Changes
from mesh.ipam.lease import voter_limit_s
from mesh.ipam.spans import Spans
from mesh.ipam.statement import (
    ACCEPT,
    EXCLUDED_MAX,
    NO_BALLOT,
    PREPARE,
    RECEIPT_PAGES,
    RECEIPTS,
    RECEIPTS_PER_PAGE,
    Proposal,
    Receipts,
    Report,
    Statement,
    Taken,
    Vote,
    decode_report_untrusted,
    decode_statement_untrusted,
    decode_vote_untrusted,
    encode_report,
    encode_statement,
    encode_vote,
    receipt_page,
)


def _tellable(taken: list[Taken], concerned: Spans) -> tuple[Taken, ...]:
    """Too many pieces to tell are told as more than there are: what is excluded stays with whoever has it."""
    if len(taken) <= EXCLUDED_MAX:
        return tuple(taken)
    merged = spans.coarse(spans.normal((start, end) for start, end, _, _ in taken), EXCLUDED_MAX, concerned)
    newest = max((term, count) for _, _, term, count in taken)
    return tuple((start, end, *newest) for start, end in merged)


def rings_of(contents: Mapping[bytes, bytes]) -> set[bytes]:
    """In which rings a journal says that we voted."""
    return {key[1:] for key in contents if key[:1] in (b"v", b"i")} | {
        key[1 : 1 + RING_BYTES] for key in contents if key[:1] == b"a"
    }


@dataclass(frozen=True, slots=True)
class Receipt:
    """A statement that is on our disk, and when it got there."""

    statement: Statement
    at: float
    """On the clock of this boot; of a receipt from an earlier boot, when this life began."""


class Voter:
    """One host's votes and receipts in one ring. What is not a voter holds no receipts and promises nothing.

    A host that leaves a ring and comes back later goes on where it was: what it promised there, it promised."""

    def __init__(self, changes: Changes, ring: bytes, boot: bytes, now: float) -> None:
        """`ring` is empty before there is one."""
        self.changes = changes
        self.vote = Vote()
        self.report = Report()
        self.receipts: dict[PeerName, Receipt] = {}
        self.dirty: set[int] = set()
        """Our pages of receipts that have to be said anew."""
        self._frozen: dict[PeerName, Spans] = {}
        """By each peer that we promised a vote on for this decision: the slots that others must not newly own. They add
        up: what a lower ballot proposed may still be what is decided."""
        self._mask = 0
        self._ring = ring
        self._boot = boot
        self._inherited = -1
        self._heard_of_all = now
        """When we took over what earlier voters knew: until a lease later any of them may have confirmed anybody."""

    def load(self, contents: dict[bytes, bytes], now: float) -> None:
        self.say_all_again()
        if (body := contents.get(b"v" + self._ring)) is not None:
            self.vote = decode_vote_untrusted(body)
        if (body := contents.get(b"w" + self._ring)) is not None:
            report, frozen = unpack_own(body)
            self.report = decode_report_untrusted(report)
            self._frozen = {PeerName(peer): spans_of(slots, 1 << 20) for peer, slots in frozen}
        if (body := contents.get(b"i" + self._ring)) is not None:
            self._inherited, boot, at = unpack_own(body)
            self._heard_of_all = min(now, at) if boot == self._boot else now
        prefix = b"a" + self._ring
        for key, value in contents.items():
            if key.startswith(prefix) and len(key) == len(prefix) + PEER_NAME_BYTES:
                boot, at, statement = unpack_own(value)
                said_at = min(now, at) if boot == self._boot else now
                self.receipts[PeerName(key[len(prefix) :])] = Receipt(decode_statement_untrusted(statement), said_at)

    # -- receipts ----------------------------------------------------------------------------------

    def take(self, peer: PeerName, said: Statement, now: float) -> None:
        """Hold a statement: once that is on disk, its peer may count on it."""
        self.receipts[peer] = Receipt(said, now)
        self.changes[b"a" + self._ring + peer] = msgpack.packb([self._boot, now, encode_statement(said)])
        self.dirty.add(receipt_page(peer))

    def is_full_for(self, peer: PeerName) -> bool:
        """Whether the page that a receipt for a new peer belongs on has no room: with more than 6,000 hosts."""
        page = receipt_page(peer)
        return sum(receipt_page(each) == page for each in self.receipts) >= RECEIPTS_PER_PAGE

    def refuses(self, peer: PeerName, said: Statement, charter: Charter) -> bool:
        """Whether a promise of ours stands against it."""
        vote = self.vote
        if vote.number != charter.number + 1 or vote.ring != charter.ring:
            return False
        if peer in self._frozen:
            return True
        held = self.receipts.get(peer)
        new = spans.minus(said.owned, held.statement.owned if held is not None else spans.NONE)
        return any(spans.both(new, slots) for slots in self._frozen.values())

    def _concerned(self, peer: PeerName, said: Statement | None, charter: Charter) -> Spans:
        parts = [grant.slots for grant in charter.granted(peer)]
        if said is not None:
            parts += [said.owned, said.given_away]
        return spans.union(*parts)

    def is_closed(self, charter: Charter) -> bool:
        """Whether we accepted that others vote from now on: until we know what came of it we hold no more statements,
        so that what our receipts say is all that those who follow us have to know."""
        vote = self.vote
        value = vote.value if (vote.ring, vote.number) == (charter.ring, charter.number + 1) else None
        return value is not None and value.since == value.number

    def pages(self, charter: Charter) -> dict[int, Receipts]:
        """Our pages of receipts that have changed, to be said."""
        ring, tip = charter.ring, charter.number + self.is_closed(charter)
        by_page: dict[int, dict[PeerName, int]] = {}
        for peer, receipt in self.receipts.items():
            by_page.setdefault(receipt_page(peer), {})[peer] = receipt.statement.sequence
        mask = sum(1 << (page - RECEIPTS) for page in by_page)
        if mask != self._mask:
            self._mask = mask
            self.say_all_again()  # each page says which there are
        changed, self.dirty = self.dirty, set()
        return {page: Receipts(ring, tip, mask, by_page.get(page, {})) for page in sorted(changed)}

    def say_all_again(self) -> None:
        self.dirty = set(range(RECEIPTS, RECEIPTS + RECEIPT_PAGES))

    def forget_departed(self, known: Container[PeerName], lease_s: float, now: float) -> None:
        """Hosts that have nothing and that nobody has heard of for longer than a lease need not be remembered."""
        for peer in [peer for peer, held in self.receipts.items() if held.statement.is_empty and peer not in known]:
            if self.lease_is_over(peer, lease_s, now):
                del self.receipts[peer]
                self.changes[b"a" + self._ring + peer] = None
                self.dirty.add(receipt_page(peer))

    def forget_retired(self, charter: Charter) -> None:
        """What a decision took away is decided; what its peer said before is of no use any more."""
        for fence in charter.fences:
            held = self.receipts.get(fence.peer)
            if held is not None and held.statement.tip < fence.number:
                del self.receipts[fence.peer]
                self.changes[b"a" + self._ring + fence.peer] = None

    # -- inheriting --------------------------------------------------------------------------------

    def has_inherited(self, charter: Charter) -> bool:
        """Whether we know all that those who voted before knew. Without that nobody votes."""
        return self._inherited >= charter.since

    def inherit(
        self,
        charter: Charter,
        own: bytes,
        receipts_of: Callable[[bytes], dict[int, Receipts]],
        known: Callable[[PeerName], Statement | None],
        now: float,
    ) -> bool:
        """Take over what a majority of the former voters hold, as far as they have said all of it since that decision.
        Whether that could be done."""
        found: dict[PeerName, Statement] = {}
        if charter.since > 0:
            full = 0
            for seat in charter.former:
                pages = receipts_of(seat)
                is_complete = are_complete(pages, charter.ring, charter.since)
                theirs = self._held_by(pages, charter, known) if is_complete else None
                if theirs is not None:
                    full += 1
                    found |= theirs
            if full < max(1, charter.former_needed):
                return False
        for peer, said in sorted(found.items()):
            self.take(peer, said, now)
        fewer = charter.majority < charter.former_needed
        # Without those that a word removed, fewer former voters than a majority of all may be left to ask.
        by_word = any(fence.removed and fence.number == charter.since for fence in charter.fences)
        if own not in charter.former or fewer or by_word or self._inherited < 0:
            self._heard_of_all = now
        self._inherited = charter.since
        self.changes[b"i" + self._ring] = msgpack.packb([self._inherited, self._boot, self._heard_of_all])
        self.say_all_again()
        return True

    def _held_by(
        self, pages: Mapping[int, Receipts], charter: Charter, known: Callable[[PeerName], Statement | None]
    ) -> dict[PeerName, Statement] | None:
        """What a former voter held and we do not; None while some of that is not known. It may never be, where nobody
        else holds the statement of one that is gone: then there have to be enough others."""
        found: dict[PeerName, Statement] = {}
        for peer, sequence in [pair for page in pages.values() for pair in page.held.items()]:
            held = self.receipts.get(peer)
            if held is not None and held.statement.sequence >= sequence:
                continue
            said = known(peer)
            if said is not None and (charter.fenced_after(peer, said.tip) or self.refuses(peer, said, charter)):
                continue  # it has lost what it had: a receipt from us must not seem to confirm it
            if said is None and charter.fence_of(peer) is not None:
                continue
            if said is None or said.sequence < sequence:
                return None
            found[peer] = said
        return found

    def lease_is_over(self, peer: PeerName, lease_s: float, now: float) -> bool:
        """Whether nothing that we, or those before us, confirmed entitles `peer` to anything any more."""
        held = self.receipts.get(peer)
        last = max(self._heard_of_all, held.at) if held is not None else self._heard_of_all
        return now >= last + voter_limit_s(lease_s)

    # -- votes -------------------------------------------------------------------------------------

    def consider(
        self, proposal: Proposal, charter: Charter | None, best: Statement | None,
        taken: Callable[[Spans], list[Taken]], own: PeerName, now: float,
    ) -> bool:  # fmt: skip
        """Promise or accept if we may; whether we did. `best`: the newest statement that we know of the peer to retire;
        `taken`: which of some slots others have."""
        vote = self.vote
        if (vote.ring, vote.number) != (proposal.ring, proposal.number):
            vote = Vote(proposal.ring, proposal.number)
        if proposal.phase == PREPARE and proposal.ballot > vote.promised:
            intent = proposal.intent
            if (
                charter is not None
                and intent.retire
                and not intent.by_word
                and (intent.retire == own or not self.lease_is_over(intent.retire, charter.lease_s, now))
            ):
                return False
            if vote.promised == NO_BALLOT:
                self._frozen = {}
            self.vote = replace(vote, promised=proposal.ballot, intent=intent)
            self.report = Report(proposal.number, proposal.ballot)
            if intent.retire and charter is not None:
                held = self.receipts.get(intent.retire)
                if held is not None and (best is None or held.statement.sequence > best.sequence):
                    best = held.statement
                concerned = self._concerned(intent.retire, best, charter)
                self._frozen[intent.retire] = spans.union(self._frozen.get(intent.retire, ()), concerned)
                self.report = Report(proposal.number, proposal.ballot, best, _tellable(taken(concerned), concerned))
        elif (
            proposal.phase == ACCEPT
            and proposal.value is not None
            and proposal.value.number == proposal.number
            and proposal.ballot >= vote.promised
            and proposal.ballot != vote.accepted
        ):
            if vote.promised == NO_BALLOT:
                self._frozen = {}
            self.vote = replace(
                vote, promised=proposal.ballot, intent=proposal.intent, accepted=proposal.ballot, value=proposal.value
            )
        else:
            return False
        if charter is not None and self.is_closed(charter):
            self.say_all_again()
        self.changes[b"v" + self._ring] = encode_vote(self.vote)
        frozen = [(peer, flat(slots)) for peer, slots in sorted(self._frozen.items())]
        self.changes[b"w" + self._ring] = msgpack.packb([encode_report(self.report), frozen])
        return True

    def is_open(self, charter: Charter | None) -> bool:
        """Whether a promise of ours waits for a decision."""
        ring, number = (charter.ring, charter.number + 1) if charter is not None else (b"", 0)
        return self.vote.ring == ring and self.vote.number == number and self.vote.promised != NO_BALLOT


def are_complete(pages: Mapping[int, Receipts], ring: bytes, number: int) -> bool:
    """Whether these are all the receipts of a voter, and none was added since it accepted decision `number`."""
    newest = [page for page in pages.values() if page.ring == ring and page.tip >= number]
    masks = {page.pages for page in newest}
    if len(masks) != 1:
        return False
    (mask,) = masks
    said = {page for page, receipts in pages.items() if receipts in newest}
    return all(RECEIPTS + bit in said for bit in range(RECEIPT_PAGES) if mask >> bit & 1)
