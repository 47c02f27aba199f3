"""What a peer says about addresses, as pages of its table `ipam` (their numbers are the constants below).

- *Statement*: which slots it owns, which of them are or may soon be in use, what it gives away, what it asks for.
- *Charter*: the newest decision it knows.
- *Ballot*: what it promised and accepted as a voter, and in the page after it what it then knew of the peer concerned.
- *Proposal*: the vote that it is holding.
- *Relics*: statements of dead peers that gossip does not know any more and this voter still holds.
- *Receipts*: which statements it holds durably as a voter; on sixteen pages, by the first byte of the peer's name.

There are no messages besides: everything said is state, so it may come twice, late, or through others. Each page is
signed, and replaced as a whole; what has to be seen together is on one page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.charter import (
    SEAT_BYTES_MAX,
    Charter,
    blob,
    decode_charter_untrusted,
    encode_charter,
    flat,
    integer,
    name_of,
    spans_of,
    text,
    unpack,
)
from mesh.ipam.space import SLOTS_MAX
from mesh.ipam.spans import Spans

NOBODY = PeerName(b"")
IPAM_TABLE = "ipam"
STATEMENT, CHARTER, BALLOT, REPORT, PROPOSAL = range(5)
RECEIPTS = 16
RECEIPT_PAGES = 16
RELICS = 64
RELICS_MAX = 64

RANGES_MAX = 80
USED_MAX = 240
"""Spans of slots in use or announced."""
GIFTS_MAX = 16
ASKS_MAX = 16
REFUSALS_MAX = 8
REASON_MAX = 80
GUEST_SPANS_MAX = 160
KEPT_PEERS_MAX = 12
STATEMENT_BYTES_MAX = 7000
"""A voter repeats a statement in a relic, or in a report with what it knows beside it, and each has to fit a page."""
EXCLUDED_MAX = 40
TURN_MAX = 1 << 40
RECEIPTS_PER_PAGE = 400


@dataclass(frozen=True, slots=True)
class Range:
    """Slots that somebody owns. Of two that overlap the one with the higher stamp (term, count) is the newer."""

    start: int
    end: int
    term: int
    """The decision by which the slots last changed hands; a gift does not change it."""
    count: int
    """Rises with each gift."""
    donor: PeerName = NOBODY
    """Who gave it, as long as no voter has confirmed the gift."""
    donor_sequence: int = 0
    """From which statement of the donor on the slots are not its own."""

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class Gift:
    """Slots on their way to another peer; its own as soon as it says so."""

    to: PeerName
    nonce: int
    """Of the ask that this answers."""
    range: Range
    made_at: int = 0
    """Number of the charter that it was made under: a taker that was retired since has lost it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Slots that are wanted from one other peer."""

    donor: PeerName
    nonce: int
    start: int
    end: int
    exact: bool
    """All of these, for an address that somebody chose; else as many of them as the donor likes to part with."""


@dataclass(frozen=True, slots=True)
class Refusal:
    to: PeerName
    nonce: int
    reason: str
    """Empty: nothing is free there. Else who has it."""


@dataclass(frozen=True)
class Statement:
    """Without slots, as what its ranges come to is asked for again and again."""

    ring: bytes = b""
    tip: int = -1
    """Number of the charter that this was said under."""
    sequence: int = 0
    ranges: tuple[Range, ...] = ()
    used: Spans = ()
    """Every slot of ours that is in use, rests, is kept for somebody, or may be given before the next statement."""
    guests: Spans = ()
    """Slots in use here that somebody else owns."""
    gifts: tuple[Gift, ...] = ()
    asks: tuple[Ask, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    expects: int = 0
    """How many peers this one counts on for the first vote; 0: it does not vote."""
    wants_ring: bool = False
    has_given: bool = False
    """Whether an address of this ring was ever given here: such a ring does not yield to another."""
    resigned: bool = False
    """Gone for good by its own word."""
    seat: bytes = b""
    """A nickname's seat that it takes, in a ring made by `seed`."""
    joins: tuple[bytes, bytes] = (b"", b"")
    """By an operator's word the first ring has joined the second one."""
    kept: tuple[tuple[PeerName, Spans], ...] = ()
    """Slots of ours that may be in use on other hosts, by host: whoever takes ours over keeps them for the same. Under
    NOBODY those of more hosts than are told apart."""

    @cached_property
    def owned(self) -> Spans:
        return spans.normal(each.span for each in self.ranges)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that anybody could take over."""
        return not (self.ranges or self.gifts)

    @property
    def given_away(self) -> Spans:
        return spans.normal(gift.range.span for gift in self.gifts)


Ballot = tuple[int, PeerName, int]
"""Round, who proposes, and its epoch: two proposals never share one."""
NO_BALLOT: Ballot = (0, PeerName(b""), 0)

NOTHING, PREPARE, ACCEPT = range(3)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a vote is about, as far as voters have to know it before they promise."""

    retire: PeerName = NOBODY
    """The peer whose slots are to go to the proposer; empty where it is about nothing of that kind."""
    by_word: bool = False
    """An operator said so, or the peer itself: nobody waits for its lease."""
    without: tuple[bytes, ...] = ()
    """Seats of voters that will not vote again, by the same word."""


@dataclass(frozen=True, slots=True)
class Proposal:
    ring: bytes
    number: int
    """Of the decision."""
    ballot: Ballot
    phase: int
    intent: Intent
    value: Charter | None = None


@dataclass(frozen=True, slots=True)
class Vote:
    """A voter's state for one decision."""

    ring: bytes = b""
    number: int = -1
    promised: Ballot = NO_BALLOT
    intent: Intent = field(default_factory=Intent)
    accepted: Ballot = NO_BALLOT
    value: Charter | None = None


Taken = tuple[int, int, int, int]
"""From which slot on and up to which, and the two numbers of the stamp under which somebody has them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a voter knew of the peer to retire when it promised."""

    number: int = -1
    ballot: Ballot = NO_BALLOT
    statement: Statement | None = None
    excluded: tuple[Taken, ...] = ()
    """Slots that this peer had, and that others have by now."""


@dataclass(frozen=True, slots=True)
class Receipts:
    """The statements that a voter holds on disk, by their sequences."""

    ring: bytes
    tip: int
    pages: int
    """Which of the voter's pages of receipts are in use, as a bit mask."""
    held: dict[PeerName, int]


# -- bytes ---------------------------------------------------------------------------------------------


def encode_statement(s: Statement) -> bytes:
    body: bytes = msgpack.packb(
        [
            s.ring, s.tip + 1, s.sequence, [_range_fields(each) for each in s.ranges], flat(s.used), flat(s.guests),
            [(g.to, g.nonce, _range_fields(g.range), g.made_at) for g in s.gifts],
            [(a.donor, a.nonce, a.start, a.end, a.exact) for a in s.asks],
            [(r.to, r.nonce, r.reason) for r in s.refusals],
            s.expects, s.wants_ring, s.has_given, s.resigned, s.seat,
            s.joins,
            [(peer, flat(slots)) for peer, slots in s.kept],
        ]
    )  # fmt: skip
    return body


def _range_fields(each: Range) -> list[Any]:
    fields: list[Any] = [each.start, each.end, each.term, each.count]
    return [*fields, each.donor, each.donor_sequence] if each.donor else fields


def decode_statement_untrusted(body: bytes) -> Statement:
    if len(body) > STATEMENT_BYTES_MAX:
        raise ProtocolError("bad-ipam", f"statement of {len(body)} bytes")
    try:
        (ring, tip, sequence, ranges, used, guests, gifts, asks, refusals,
         expects, wants_ring, has_given, resigned, seat, joins, kept) = unpack(body)  # fmt: skip
        if len(ranges) > RANGES_MAX or max(len(gifts), len(asks), len(refusals), len(kept)) > 2 * GIFTS_MAX:
            raise ValueError("too much of something")
        left, right = joins
        return Statement(
            blob(ring, 0, 16), integer(tip) - 1, integer(sequence, (1 << 63)), tuple(_range(*each) for each in ranges),
            spans_of(used), spans_of(guests),
            tuple(_gift(*each) for each in gifts),
            tuple(_ask(*each) for each in asks),
            tuple(Refusal(name_of(to), integer(nonce, 1 << 63), text(reason)) for to, nonce, reason in refusals),
            integer(expects, 1 << 16), wants_ring is True, has_given is True, resigned is True,
            blob(seat, 0, SEAT_BYTES_MAX), (blob(left, 0, 16), blob(right, 0, 16)),
            tuple((name_of(peer) if peer else NOBODY, spans_of(slots)) for peer, slots in kept),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"statement: {error}") from None


def _range(start: Any, end: Any, term: Any, count: Any, donor: Any = b"", sequence: Any = 0) -> Range:
    each = Range(
        integer(start, SLOTS_MAX), integer(end, SLOTS_MAX), integer(term), integer(count),
        name_of(donor) if donor else NOBODY,
        integer(sequence, 1 << 63),
    )  # fmt: skip
    if each.start >= each.end:
        raise ValueError("a range without slots")
    return each


def _gift(to: Any, nonce: Any, each: Any, made_at: Any) -> Gift:
    return Gift(name_of(to), integer(nonce, 1 << 63), _range(*each), integer(made_at))


def _ask(donor: Any, nonce: Any, start: Any, end: Any, exact: Any) -> Ask:
    return Ask(
        name_of(donor), integer(nonce, 1 << 63), integer(start, SLOTS_MAX), integer(end, SLOTS_MAX), exact is True
    )


def encode_vote(vote: Vote) -> bytes:
    value = encode_charter(vote.value) if vote.value is not None else b""
    body: bytes = msgpack.packb(
        [vote.ring, vote.number, vote.promised, _intent_fields(vote.intent), vote.accepted, value]
    )
    return body


def decode_vote_untrusted(body: bytes) -> Vote:
    try:
        ring, number, promised, intent, accepted, value = unpack(body)
        return Vote(
            blob(ring, 0, 16), integer(number), _ballot(promised), _intent(*intent), _ballot(accepted),
            decode_charter_untrusted(blob(value, 0, 8192)) if value else None,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"vote: {error}") from None


def encode_proposal(p: Proposal) -> bytes:
    value = encode_charter(p.value) if p.value is not None else b""
    body: bytes = msgpack.packb([p.ring, p.number, p.ballot, p.phase, _intent_fields(p.intent), value])
    return body


def decode_proposal_untrusted(body: bytes) -> Proposal:
    try:
        ring, number, ballot, phase, intent, value = unpack(body)
        return Proposal(
            blob(ring, 0, 16), integer(number), _ballot(ballot), integer(phase, ACCEPT), _intent(*intent),
            decode_charter_untrusted(blob(value, 0, 8192)) if value else None,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"proposal: {error}") from None


def _intent_fields(intent: Intent) -> list[Any]:
    return [intent.retire, intent.by_word, intent.without]


def _intent(retire: Any, by_word: Any, without: Any) -> Intent:
    seats = tuple(blob(each, 1, SEAT_BYTES_MAX) for each in without)
    return Intent(name_of(retire) if retire else PeerName(b""), by_word is True, seats)


def _ballot(fields: Any) -> Ballot:
    turn, name, epoch = fields
    return (integer(turn, TURN_MAX), name_of(name) if name else PeerName(b""), integer(epoch))


def encode_report(report: Report) -> bytes:
    said = encode_statement(report.statement) if report.statement is not None else b""
    body: bytes = msgpack.packb([report.number + 1, report.ballot, said, report.excluded])
    return body


def decode_report_untrusted(body: bytes) -> Report:
    try:
        number, ballot, said, excluded = unpack(body)
        statement = decode_statement_untrusted(blob(said, 0, 8192)) if said else None
        if len(excluded) > EXCLUDED_MAX:
            raise ValueError("more excluded than a report has")
        return Report(integer(number) - 1, _ballot(ballot), statement, tuple(_taken(*each) for each in excluded))
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"report: {error}") from None


def stamps_of(said: Statement | None) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Under which stamps an owner has, or had until its gifts, what it says."""
    if said is None:
        return []
    owned = [(each.span, (each.term, each.count)) for each in said.ranges]
    return owned + [(gift.range.span, (gift.range.term, gift.range.count - 1)) for gift in said.gifts]


def still_taken(reported: Iterable[Taken], said: Statement | None) -> Spans:
    """What of these reports holds against the newest statement of the peer: some of it may have come back since."""
    theirs = stamps_of(said)
    gone: list[Spans] = []
    for start, end, term, count in reported:
        back = spans.normal(span for span, stamp in theirs if stamp >= (term, count))
        gone.append(spans.minus(((start, end),), back))
    return spans.union(*gone)


def _taken(start: Any, end: Any, term: Any, count: Any) -> Taken:
    found = integer(start, SLOTS_MAX), integer(end, SLOTS_MAX)
    if found[0] >= found[1]:
        raise ValueError("an empty span")
    return (*found, integer(term), integer(count, 1 << 48))


def encode_receipts(receipts: Receipts) -> bytes:
    body: bytes = msgpack.packb([receipts.ring, receipts.tip, receipts.pages, sorted(receipts.held.items())])
    return body


def decode_receipts_untrusted(body: bytes) -> Receipts:
    try:
        ring, tip, pages, held = unpack(body)
        rows = {name_of(peer): integer(sequence, 1 << 63) for peer, sequence in held}
        return Receipts(blob(ring, 16, 16), integer(tip), integer(pages, (1 << RECEIPT_PAGES) - 1), rows)
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"receipts: {error}") from None


def encode_relic(peer: PeerName, said: Statement) -> bytes:
    body: bytes = msgpack.packb([peer, encode_statement(said)])
    return body


def decode_relic_untrusted(body: bytes) -> tuple[PeerName, Statement]:
    try:
        peer, said = unpack(body)
        return name_of(peer), decode_statement_untrusted(blob(said, 0, 8192))
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-ipam", f"relic: {error}") from None


def receipt_page(peer: PeerName) -> int:
    """On which page a voter says that it holds a statement of `peer`."""
    return RECEIPTS + peer[0] % RECEIPT_PAGES
