"""All that one member knows, has and has said; what others say, as it comes in; and what follows from that at a glance.

Changes for the journal gather in `changes`. Nothing is concluded here: that is for the rules, which `mesh.ipam.member`
lets look at it one after the other.
"""

from __future__ import annotations

from random import Random

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.ballots import Ballots
from mesh.ipam.charter import (
    Charter,
    Seat,
    blocking_of,
    decode_charter_untrusted,
    is_name,
    nickname_seat,
    unpack_own,
)
from mesh.ipam.holdings import Changes, Holdings
from mesh.ipam.lease import Lease
from mesh.ipam.left import Left, pack_left, unpack_left
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
from mesh.ipam.surroundings import Known, Settings, Surroundings
from mesh.ipam.voter import Voter, rings_of

RELICS_KNOWN_MAX = 1024


class State:
    """What the rules look at. `now` is always seconds of one clock that counts sleep too."""

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
        self.seat: Seat = nickname_seat(around.nickname) if settings.init == SEED else b""
        """The nickname's seat that is ours in a ring made by `seed`: the one that was taken, whatever this host is
        called and told today."""
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
        self._owners: tuple[list[tuple[PeerName, Statement]], int, Owners] | None = None
        self._members: tuple[bytes, list[tuple[PeerName, Statement]]] | None = None
        self.postponed: float | None = None
        """Since when a decision waits for what is not known yet."""
        self.unheld: set[PeerName] = set()
        """Whose statements are not among our receipts yet."""
        self._load(contents, now)
        self.began_at = now
        """This life, and in which ring."""
        self.ring_before = self.ring

    def _load(self, contents: dict[bytes, bytes], now: float) -> None:
        if (body := contents.get(b"c")) is not None:
            self.charter = decode_charter_untrusted(body)
        self.seat = contents.get(b"s", self.seat)
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
        self.begin_to_vote(now)

    def begin_to_vote(self, now: float) -> None:
        """In the ring that is ours now."""
        self.voter = self._voters.setdefault(self.ring, Voter(self.changes, self.ring, self.around.boot, now))
        self._keep_seat()

    def announce_first(self) -> None:
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
        if seat == self.seat:
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

    def standing(self) -> list[tuple[PeerName, Statement]]:
        """Those of them from whom no decision has taken everything since they spoke."""
        charter = self.charter
        return [each for each in self.members() if charter is None or not charter.fenced_after(each[0], each[1].tip)]

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

    def look_at_owners_again(self) -> None:
        """Our receipts have become others."""
        self._owners = None

    def own_seats(self) -> set[bytes]:
        return {bytes(self.own), self.seat}

    def _keep_seat(self) -> None:
        """What we took by our nickname is ours by what is on the disk from now on."""
        charter = self.charter
        seats = (*charter.voters, *(grant.heir for grant in charter.grants)) if charter is not None else ()
        if self.seat and self.seat in seats:
            self.changes[b"s"] = self.seat

    def newest(self, peer: PeerName) -> Statement | None:
        """What a peer says, or said last as far as any voter tells."""
        said, relic = self.statement(peer), self.relics.get(peer)
        if relic is not None and relic.ring == self.ring and (said is None or relic.sequence > said.sequence):
            return relic
        return said

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

    # -- inputs ------------------------------------------------------------------------------------

    def hear_untrusted(self, peer: PeerName, page: int, body: bytes) -> bool:
        """The newest version of one page of another peer; whether it could be read. `settle` is to follow."""
        assert peer != self.own
        known = self.known.setdefault(peer, Known())
        try:
            if page == STATEMENT:
                known.statement = decode_statement_untrusted(body) if body else None
                self._members = None
                self.unheld.add(peer)
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

    # -- notes for the journal ----------------------------------------------------------------------

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

    def note_left(self, ring: bytes, what: Left) -> None:
        self.left[ring] = what
        self.changes[b"l" + ring] = pack_left(what)
