"""One member of the ring, without sockets, disk or clock: pages and requests in; journal changes and pages out.

Everything that others must be able to count on leaves through `take`: changes for the journal, and pages to publish
once those are on disk. In between this host believes in what is not on disk yet, and shows nobody. After each input
`settle` looks at all of it: which ring, which decision, what to vote, what was given to us, what is asked of us. Each
step is a rule over what is known now; none remembers which page led to it.

`mesh.ipam.desk` gives addresses, `mesh.ipam.rings` moves between rings, `mesh.ipam.elections` says which votes to hold;
what they look at is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from random import Random

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from mesh.ipam import elections, exchange, rings, spans
from mesh.ipam.ballots import Ballots
from mesh.ipam.charter import (
    Charter,
    Seat,
    blocking_of,
    charter_of_seeds,
    decode_charter_untrusted,
    encode_charter,
    is_name,
    nickname_seat,
    unpack_own,
)
from mesh.ipam.holdings import Changes, Holdings
from mesh.ipam.lease import Lease
from mesh.ipam.left import Left, unpack_left
from mesh.ipam.owners import Owners
from mesh.ipam.ranges import OBSERVER, SEED
from mesh.ipam.space import Space
from mesh.ipam.spans import Spans
from mesh.ipam.statement import (
    BALLOT,
    CHARTER,
    PROPOSAL,
    RECEIPTS,
    RELICS,
    REPORT,
    STATEMENT,
    Ask,
    Proposal,
    Range,
    Receipts,
    Refusal,
    Report,
    Statement,
    Vote,
    decode_proposal_untrusted,
    decode_receipts_untrusted,
    decode_relic_untrusted,
    decode_report_untrusted,
    decode_statement_untrusted,
    decode_vote_untrusted,
    receipt_page,
)
from mesh.ipam.surroundings import Known, Out, Settings, Surroundings
from mesh.ipam.voice import Voice
from mesh.ipam.voter import Voter, rings_of

ADOPT_PATIENCE_S = 60.0
AHEAD_MAX = 1 << 20
"""Nobody misses so many decisions."""
RELICS_KNOWN_MAX = 1024
SETTLE_TURNS_MAX = 8


class Member:
    """This host in its ring, or before it has one. `now` is always seconds of one clock that counts sleep too."""

    def __init__(
        self, settings: Settings, around: Surroundings, contents: dict[bytes, bytes], rng: Random, now: float
    ) -> None:
        """`contents`: what the journal has."""
        self.settings = settings
        self.around = around
        self.own = around.own
        self.rng = rng
        self.changes: Changes = {}
        self.charter: Charter | None = None
        self.known: dict[PeerName, Known] = {}
        self.reachable: frozenset[PeerName] = frozenset()
        self.unreachable_since: dict[PeerName, float] = {}
        self.expected = settings.expected or 1
        """For the first vote; the daemon tells how many peers the user named."""
        self.wants_ring = False
        self.removals: dict[PeerName, None] = {}
        """Peers that an operator wants removed."""
        self.asks: dict[int, Ask] = {}
        """By nonce."""
        self.refusals: dict[PeerName, Refusal] = {}
        self.resigned = False
        self.has_given = False
        self.joins: tuple[bytes, bytes] = (b"", b"")
        self.conflict = ""
        """Why nothing may be given here although everything else is in order."""
        self.lost: Spans = spans.NONE
        """What was taken over while we were away."""
        self.splits: dict[bytes, list[PeerName]] = {}
        """Other rings in reach, and who is in them."""
        self.events: list[str] = []
        """What happened, for the log."""
        self.seat: Seat = nickname_seat(around.nickname)
        self.holdings = Holdings(self.changes)
        self.lease = Lease()
        self._voters: dict[bytes, Voter] = {}
        """By ring."""
        self.left: dict[bytes, Left] = {}
        """Rings that were ours, and what we had of them."""
        self.ballots = Ballots(around.own, around.epoch, rng)
        self.taken_gifts: dict[PeerName, tuple[int, frozenset[int]]] = {}
        """By donor: gifts of its that we took and its newest statement still shows, by nonce; and the sequence of that
        statement, as older ones may come late."""
        self.relics: dict[PeerName, Statement] = {}
        """What voters still hold of peers that gossip has forgotten."""
        self.onsets: dict[object, float] = {}
        self.said: Statement | None = None
        """Our own newest statement."""
        self._voice = Voice()
        self._owners: tuple[list[tuple[PeerName, Statement]], int, Owners] | None = None
        self._members: tuple[bytes, list[tuple[PeerName, Statement]]] | None = None
        self._postponed: float | None = None
        self._unheld: set[PeerName] = set()
        self._load(contents, now)

    def _load(self, contents: dict[bytes, bytes], now: float) -> None:
        if (body := contents.get(b"c")) is not None:
            self.charter = decode_charter_untrusted(body)
        self.resigned = b"z" in contents
        if (body := contents.get(b"m")) is not None:
            self.has_given, left, right, self.conflict = unpack_own(body)
            self.joins = (left, right)
        for key, value in contents.items():
            if key[:1] == b"t":
                sequence, nonces = unpack_own(value)
                self.taken_gifts[PeerName(key[1:])] = (sequence, frozenset(nonces))
            elif key[:1] == b"l":
                self.left[key[1:]] = unpack_left(value)
        self.holdings.load(contents, now)
        for ring in rings_of(contents):
            self._voters[ring] = Voter(self.changes, ring, self.around.boot, now)
            self._voters[ring].load(contents, now)
        self._begin_to_vote(now)
        if self.charter is None and self.settings.init == SEED and self.settings.seeds:
            self._adopt(charter_of_seeds(self.settings.space, self.settings.lease_s, self.settings.seeds), now)
        self._announce_first()

    def _begin_to_vote(self, now: float) -> None:
        """In the ring that is ours now."""
        self.voter = self._voters.setdefault(self.ring, Voter(self.changes, self.ring, self.around.boot, now))

    def _announce_first(self) -> None:
        if self.charter is not None and self.holdings.owned:
            self.holdings.announce_more(self.space.whole())

    # -- what is known -----------------------------------------------------------------------------

    @property
    def space(self) -> Space:
        return self.charter.space if self.charter is not None else self.settings.space

    @property
    def tip(self) -> int:
        return self.charter.number if self.charter is not None else -1

    @property
    def ring(self) -> bytes:
        return self.charter.ring if self.charter is not None else b""

    @property
    def votes_at_all(self) -> bool:
        return self.settings.init != OBSERVER and not self.resigned

    @property
    def own_seat(self) -> Seat | None:
        """Under which name we vote, if we do."""
        if self.charter is None or self.resigned:
            return None
        return next((seat for seat in (bytes(self.own), self.seat) if seat in self.charter.voters), None)

    def seat_of(self, peer: PeerName) -> Seat | None:
        """Under which name a peer votes."""
        assert self.charter is not None
        if peer == self.own:
            return self.own_seat
        said = self.statement(peer)
        seats = (bytes(peer), said.seat if said is not None else b"")
        return next((seat for seat in seats if seat in self.charter.voters), None)

    def peer_at(self, seat: Seat) -> PeerName | None:
        """Who has a seat; None where that is not known yet."""
        if is_name(seat):
            return PeerName(seat)
        if seat == self.seat and self.settings.init == SEED:
            return self.own
        return next((peer for peer in sorted(self.known) if self._said_seat(peer) == seat), None)

    def _said_seat(self, peer: PeerName) -> bytes:
        said = self.statement(peer)
        return said.seat if said is not None else b""

    def statement(self, peer: PeerName) -> Statement | None:
        """What a peer says, if it is of our ring."""
        if peer == self.own:
            return self.said
        known = self.known.get(peer)
        said = known.statement if known is not None else None
        return said if said is not None and said.ring == self.ring else None

    def members(self) -> list[tuple[PeerName, Statement]]:
        """Everybody else of our ring who has said something."""
        if self._members is None or self._members[0] != self.ring:
            found = [
                (peer, known.statement) for peer, known in sorted(self.known.items())
                if known.statement is not None and known.statement.ring == self.ring
            ]  # fmt: skip
            self._members = (self.ring, found)
        return self._members[1]

    def owners(self) -> Owners:
        """Who owns what, as they say, and as our receipts say of whoever gossip knows less of. Who has been retired
        since does not count."""
        charter = self.charter
        assert charter is not None
        members = self.members()
        if self._owners is None or self._owners[0] is not members or self._owners[1] != charter.number:
            newest = dict(members)
            for peer, receipt in self.voter.receipts.items():
                said = newest.get(peer)
                if peer != self.own and (said is None or said.sequence < receipt.statement.sequence):
                    newest[peer] = receipt.statement
            found = Owners((p, s.owned) for p, s in newest.items() if s.ranges and not charter.fenced_after(p, s.tip))
            self._owners = (members, charter.number, found)
        return self._owners[2]

    def is_removed(self, peer: PeerName) -> bool:
        """Whether an operator's word, or its own, has removed a peer, and it has not come back since."""
        fence = self.charter.fence_of(peer) if self.charter is not None else None
        said = self.statement(peer)
        return fence is not None and fence.removed and (said is None or said.tip < fence.number)

    # -- inputs ------------------------------------------------------------------------------------

    def hear_untrusted(self, peer: PeerName, page: int, body: bytes) -> bool:
        """The newest version of one page of another peer; whether it could be read. `settle` is to follow."""
        assert peer != self.own
        known = self.known.setdefault(peer, Known())
        try:
            if page == STATEMENT:
                known.statement = decode_statement_untrusted(body) if body else None
                self._members = None
                self._unheld.add(peer)
            elif page == CHARTER:
                known.charter = decode_charter_untrusted(body) if body else None
            elif page == BALLOT:
                known.vote = decode_vote_untrusted(body) if body else Vote()
                self.ballots.see(known.vote.promised)
            elif page == REPORT:
                known.report = decode_report_untrusted(body) if body else Report()
            elif page == PROPOSAL:
                known.proposal = decode_proposal_untrusted(body) if body else None
            elif page >= RELICS:
                if body:
                    dead, said = decode_relic_untrusted(body)
                    before = self.relics.get(dead)
                    is_new = before is None or before.sequence < said.sequence
                    if is_new and (before is not None or len(self.relics) < RELICS_KNOWN_MAX):
                        self.relics[dead] = said
            elif page >= RECEIPTS:
                if body:
                    known.receipts[page] = decode_receipts_untrusted(body)
                else:
                    known.receipts.pop(page, None)
        except ProtocolError:
            return False
        return True

    def forget(self, peer: PeerName) -> None:
        """Gossip has forgotten a peer."""
        self.known.pop(peer, None)
        self._members = None
        self.unreachable_since.pop(peer, None)

    def reach(self, reachable: frozenset[PeerName], now: float) -> None:
        for peer in self.reachable - reachable:
            self.unreachable_since[peer] = now
        for peer in reachable - self.reachable:
            self.unreachable_since.pop(peer, None)
        self.reachable = reachable

    def unreachable_for_s(self, peer: PeerName, now: float) -> float:
        if peer in self.reachable:
            return 0.0
        return now - self.unreachable_since.setdefault(peer, now)

    # -- settling ----------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Draw every conclusion from what is known."""
        for _ in range(SETTLE_TURNS_MAX):
            before = (self.ring, self.tip, self.holdings.version, self.voter.vote, self.ballots.proposal)
            rings.choose(self, now)
            self._learn(now)
            if self.charter is not None:
                self._serve_as_voter(now)
                exchange.settle(self, now)
                if self.lease.hear(self.held_by):
                    self.holdings.confirm_donors(self.lease.confirmed_owned)
            self._vote(now)
            elections.settle(self, now)
            if before == (self.ring, self.tip, self.holdings.version, self.voter.vote, self.ballots.proposal):
                break
        self.holdings.wake(now)
        self.holdings.trim()

    def _learn(self, now: float) -> None:
        """The newest decision that anybody of our ring knows."""
        if self.charter is None:
            return
        found = [known.charter for known in self.known.values() if known.charter is not None]
        mine = (self.ring, self.charter.space, self.charter.lease_s)
        later = [
            charter for charter in found
            if (charter.ring, charter.space, charter.lease_s) == mine
            and self.tip < charter.number < self.tip + AHEAD_MAX
        ]  # fmt: skip
        if later:
            charter = max(later, key=lambda charter: charter.number)
            if self._may_adopt(charter, now):
                self.adopt(charter, now)

    def adopt(self, charter: Charter, now: float) -> None:
        """A decision of our ring, the one that makes it, or one of a ring that we move to."""
        if charter.ring != self.ring or charter.number > self.tip:
            self._adopt(charter, now)

    def _may_adopt(self, charter: Charter, now: float) -> bool:
        """What a donor gave us just before it was retired may be ours or its heir's: that must be known first."""
        donors = {each.donor for each in self.holdings.ranges if each.donor}
        unclear = [donor for donor in donors if exchange.lost_with(self, charter, donor) is None]
        if not unclear:
            self._postponed = None
            return True
        self._postponed = now if self._postponed is None else self._postponed
        return now >= self._postponed + ADOPT_PATIENCE_S

    def _adopt(self, charter: Charter, now: float) -> None:
        tip = self.tip if self.ring == charter.ring else -1
        self.follow(charter, now)
        if tip >= 0 and charter.fenced_after(self.own, tip):
            # All of it: what voters confirmed is the heir's, and gifts that they did not are their donors' again.
            self.lost = self.holdings.owned
            self.holdings.remove(self.lost)
            self.holdings.drop_gifts(list(self.holdings.gifts))  # the vote knew of them, or gave the slots to the heir
            self.lease.end()
            self.events.append(f"lost {spans.size(self.lost)} addresses: they were taken over while this host was away")
        for each in [each for each in self.holdings.ranges if each.donor] if tip >= 0 else ():
            lost = exchange.lost_with(self, charter, each.donor, tip)
            self.holdings.remove(spans.both((each.span,), lost if lost is not None else (each.span,)))
        # What was not lost with a donor is ours by that decision: of the donor's word nobody may be left who knows it.
        settled = [each.span for each in self.holdings.ranges if each.donor and charter.fenced_after(each.donor, tip)]
        self.holdings.confirm_donors(spans.normal(settled))
        for grant in charter.grants:
            if grant.number > tip and grant.heir in self._own_seats():
                for start, end in spans.minus(grant.slots, self.holdings.owned):
                    self.holdings.add_range(Range(start, end, grant.number, 0))
                if grant.reserved:
                    self.holdings.keep_also(PeerName(grant.source), grant.number, grant.reserved)
        self.voter.forget_retired(charter)
        self.begin_anew()
        self.events.append(f"decision {charter.number}: {charter.note}")

    def follow(self, charter: Charter, now: float) -> None:
        """From now on this is what we know to be decided."""
        before = self.space
        self.charter = charter
        self.changes[b"c"] = encode_charter(charter)
        if before != charter.space:
            rings.renumber(self, before, charter.space)
        self._begin_to_vote(now)

    def begin_anew(self) -> None:
        """All that we say follows from what is decided."""
        self._announce_first()
        self.voter.say_all_again()
        self._unheld.update(self.known)
        self.ballots.drop()
        self.note_mind()

    def _own_seats(self) -> set[bytes]:
        return {bytes(self.own), *([self.seat] if self.settings.init == SEED else [])}

    def note_mind(self) -> None:
        self.changes[b"m"] = msgpack.packb([self.has_given, *self.joins, self.conflict])

    def note_given(self) -> None:
        """An address of this ring is in use."""
        if not self.has_given:
            self.has_given = True
            self.note_mind()

    def note_conflict(self, text: str) -> None:
        """Stop giving, now and after a restart; an empty text ends that."""
        self.conflict = text
        self.note_mind()

    # -- as a voter --------------------------------------------------------------------------------

    def _serve_as_voter(self, now: float) -> None:
        """Hold others' statements."""
        charter = self.charter
        assert charter is not None
        seat = self.own_seat
        if seat is None:
            return
        if not self.voter.has_inherited(charter):
            if not self.voter.inherit(charter, seat, self.receipts_at, self.newest, now):
                return
            self._owners = None
            self._unheld.update(self.known)
        self.voter.forget_departed({*self.known, self.own}, charter.lease_s, now)
        still: set[PeerName] = set()
        for peer in sorted(self._unheld):
            said = self.statement(peer)
            if said is not None and not self.hold(peer, said, now) and said.tip >= charter.number:
                still.add(peer)
        self._unheld = still

    def newest(self, peer: PeerName) -> Statement | None:
        """What a peer says, or said last as far as any voter tells."""
        said, relic = self.statement(peer), self.relics.get(peer)
        if relic is not None and relic.ring == self.ring and (said is None or relic.sequence > said.sequence):
            return relic
        return said

    def hold(self, peer: PeerName, said: Statement, now: float) -> bool:
        """Take a statement into our receipts, unless something stands against it; false where that may pass."""
        assert self.charter is not None
        held = self.voter.receipts.get(peer)
        if held is not None and held.statement.sequence >= said.sequence:
            return True
        if said.tip != self.tip or self.voter.refuses(peer, said, self.charter) or self.voter.is_closed(self.charter):
            return False
        if held is None and self.voter.is_full_for(peer):
            return False
        is_known = held is not None and held.statement.ranges == said.ranges
        if not is_known and (not self._has_provenance(said) or exchange.overlaps(self, peer, said)):
            return False
        self.voter.take(peer, said, now)
        return True

    def _has_provenance(self, said: Statement) -> bool:
        """Whether we know the word by which every donor let go of what it gave."""
        for each in said.ranges:
            if each.donor and each.donor != self.own:
                donor = self.newest(each.donor)
                held = self.voter.receipts.get(each.donor)
                best = max(donor.sequence if donor else 0, held.statement.sequence if held else 0)
                if best < each.donor_sequence:
                    return False
        return True

    def receipts_at(self, seat: Seat) -> dict[int, Receipts]:
        peer = self.peer_at(seat)
        if peer == self.own:
            return self.voter_pages()
        known = self.known.get(peer) if peer is not None else None
        return known.receipts if known is not None else {}

    def voter_pages(self) -> dict[int, Receipts]:
        """All our receipts, as others see them."""
        dirty = set(self.voter.dirty)
        self.voter.say_all_again()
        assert self.charter is not None
        pages = self.voter.pages(self.charter)
        self.voter.dirty = dirty
        return pages

    def held_by(self, seat: Seat) -> int:
        """Which of our statements a voter holds."""
        return self._held(seat, self.own)

    def _held(self, seat: Seat, of: PeerName) -> int:
        """The sequence of the statement that a voter holds of a peer; 0 for none."""
        peer = self.peer_at(seat)
        if peer == self.own:
            held = self.voter.receipts.get(of)
            return held.statement.sequence if held is not None else 0
        known = self.known.get(peer) if peer is not None else None
        page = known.receipts.get(receipt_page(of)) if known is not None else None
        return page.held.get(of, 0) if page is not None and page.ring == self.ring else 0

    def is_held_beside(self, peer: PeerName, sequence: int) -> bool:
        """Whether enough voters beside that peer hold so new a statement of it: what only gossip tells, or only its own
        disk, may be lost with it."""
        assert self.charter is not None
        beside = tuple(seat for seat in self.charter.voters if self.peer_at(seat) != peer)
        return not beside or sum(self._held(seat, peer) >= sequence for seat in beside) >= blocking_of(beside)

    # -- votes -------------------------------------------------------------------------------------

    def _vote(self, now: float) -> None:
        """Promise or accept what is proposed to us, our own proposal included; and count the votes for that."""
        proposals = [self.known[peer].proposal for peer in sorted(self.known)]
        for proposal in (*proposals, self.ballots.proposal):
            if proposal is not None and self._may_vote(proposal):
                peer = proposal.intent.retire
                best = self.statement(peer) if peer else None
                taken = partial(exchange.taken, self, peer)
                self.voter.consider(proposal, self.charter, best, taken, self.own, now)
                self.ballots.see(proposal.ballot)
        decided = elections.count(self, now)
        if decided is not None:
            self.adopt(decided, now)

    def _may_vote(self, proposal: Proposal) -> bool:
        if proposal.ring != self.ring or proposal.number != self.tip + 1:
            return False
        if self.charter is None:
            return self.votes_at_all
        seat = self.own_seat
        # Not knowing what former voters held, one votes only on a word that leaves too few of these to tell it.
        left = sum(each not in proposal.intent.without for each in self.charter.former)
        is_lost = proposal.intent.by_word and left < self.charter.former_needed
        return seat is not None and (is_lost or self.voter.has_inherited(self.charter))

    # -- what we say -------------------------------------------------------------------------------

    def take(self, now: float) -> Out:
        """What is to be written and then published. The caller does both, in order, before it takes again."""
        pages = self._voice.speak(self, now)
        changes = dict(self.changes)
        self.changes.clear()
        return Out(changes, pages)

    def say_again(self, pages: Iterable[int]) -> None:
        """These pages did not get out."""
        self._voice.say_again(self, pages)

    def next_due(self, now: float) -> float:
        """When `settle` and `take` should be called again at the latest."""
        due = self.ballots.due if self.ballots.due is not None else now + 1.0
        return max(now + 0.02, min(due, now + 1.0))

    def resign(self) -> None:
        """Leave for good: the others decide at once who has what was ours."""
        self.resigned = True
        self.changes[b"z"] = msgpack.packb(True)
        self.lease.end()
