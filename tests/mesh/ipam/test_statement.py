"""Pages say what was meant, fit a page of documents at their largest, and garbage is refused in one way."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from random import Random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.documents import BODY_MAX_BYTES
from gossip.errors import ProtocolError
from gossip.names import PeerName
from mesh.ipam.charter import (
    CHARTER_BYTES_MAX,
    FENCES_MAX,
    Charter,
    Fence,
    Grant,
    decode_charter_untrusted,
    encode_charter,
    first_charter,
    nickname_seat,
)
from mesh.ipam.holdings import Given
from mesh.ipam.space import AUTOMATIC6, SLOTS_MAX, Space
from mesh.ipam.statement import (
    ASKS_MAX,
    EXCLUDED_MAX,
    GIFTS_MAX,
    KEPT_PEERS_MAX,
    PREPARE,
    RANGES_MAX,
    RECEIPTS_PER_PAGE,
    STATEMENT_BYTES_MAX,
    USED_MAX,
    Ask,
    Gift,
    Intent,
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
    encode_proposal,
    encode_receipts,
    encode_relic,
    encode_report,
    encode_statement,
    encode_vote,
)
from mesh.ipam.voice import GUEST_SPANS_FEW, KEPT_SPANS_MAX

A, B = PeerName(b"a" * 8), PeerName(b"b" * 8)
SPACE = Space(IPv4Network("10.32.0.0/12"), IPv6Network("fd00:1::/64"))
BALLOT = (7, A, 3)
DECODERS: list[Callable[[bytes], object]] = [
    decode_charter_untrusted,
    decode_statement_untrusted,
    decode_vote_untrusted,
    decode_proposal_untrusted,
    decode_report_untrusted,
    decode_receipts_untrusted,
    decode_relic_untrusted,
]


def large_statement() -> Statement:
    """As large as limits allow, with numbers as long as they get."""
    rng = Random(1)
    cuts = sorted(rng.sample(range(SLOTS_MAX), 2 * USED_MAX))
    used = tuple(zip(cuts[::2], cuts[1::2], strict=True))
    ranges = tuple(Range(start, end, 1 << 16, 1 << 16, B, 1 << 40) for start, end in used[:RANGES_MAX])
    gifts = tuple(Gift(B, rng.getrandbits(62), Range(*span, 1 << 16, 1 << 16), 1 << 16) for span in used[:GIFTS_MAX])
    asks = tuple(Ask(B, rng.getrandbits(62), *each.span, True) for each in ranges[:ASKS_MAX])
    kept = tuple((PeerName(bytes([n]) * 8), used[6 * n : 6 * n + KEPT_SPANS_MAX]) for n in range(KEPT_PEERS_MAX + 1))
    guests = used[:GUEST_SPANS_FEW]
    return Statement(b"r" * 16, 1 << 20, 1 << 60, ranges, used, guests, gifts, asks, kept=kept)


def charter() -> Charter:
    made = first_charter(b"r" * 16, Space(SPACE.range4, AUTOMATIC6), 3600, [bytes(A), nickname_seat("h2")], "made")
    fences = (Fence(B, 3, bytes(A), True),)
    return Charter(
        made.ring, 3, made.space, 60, (bytes(A),), 2, made.voters, 2,
        (*made.grants, Grant(3, A, ((1, 9),), ((2, 3),), B)), fences, "a note",
    )  # fmt: skip


def test_pages_come_back_as_they_were() -> None:
    said = Statement(
        b"r" * 16, 4, 77, (Range(0, 256, 1, 2, A, 9), Range(300, 301, 0, 0)), ((0, 9), (12, 13)), ((5000, 5001),),
        (Gift(B, 5, Range(1, 2, 3, 4)),), (Ask(A, 6, 7, 8, True),), (Refusal(B, 1, "given to c1"),), 3, True, True,
        True, nickname_seat("h1"), (b"x" * 16, b"y" * 16),
    )  # fmt: skip
    assert decode_statement_untrusted(encode_statement(said)) == said
    assert decode_charter_untrusted(encode_charter(charter())) == charter()
    intent = Intent(B, True, (bytes(A), nickname_seat("h9")))
    vote = Vote(b"r" * 16, 4, BALLOT, intent, BALLOT, charter())
    assert decode_vote_untrusted(encode_vote(vote)) == vote
    proposal = Proposal(b"r" * 16, 4, BALLOT, PREPARE, intent, None)
    assert decode_proposal_untrusted(encode_proposal(proposal)) == proposal
    report = Report(4, BALLOT, said, ((1, 2, 3, 4),))
    assert decode_report_untrusted(encode_report(report)) == report
    receipts = Receipts(b"r" * 16, 4, 3, {A: 5, B: 6})
    assert decode_receipts_untrusted(encode_receipts(receipts)) == receipts
    assert decode_relic_untrusted(encode_relic(A, said)) == (A, said)


def test_the_largest_fit_a_page() -> None:
    said = large_statement()
    assert len(encode_statement(said)) <= STATEMENT_BYTES_MAX
    report = Report(1 << 40, BALLOT, said, tuple((*each, 1 << 40, 1 << 40) for each in said.used[:EXCLUDED_MAX]))
    assert len(encode_report(report)) <= BODY_MAX_BYTES
    assert len(encode_relic(A, said)) <= BODY_MAX_BYTES
    fences = tuple(Fence(PeerName(bytes([n]) * 8), 1 << 40, bytes(A), True) for n in range(FENCES_MAX))
    voters = tuple(bytes([n]) * 8 for n in range(7))
    grant = Grant(1 << 40, bytes(A), said.used[:200], said.used[:100], bytes(B))
    full = Charter(b"r" * 16, 1 << 40, SPACE, 3600, voters, 1 << 40, voters, 4, (grant,), fences, "n" * 60)
    assert len(encode_charter(full)) <= CHARTER_BYTES_MAX
    vote = Vote(b"r" * 16, 1 << 40, BALLOT, Intent(B, True, voters), BALLOT, full)
    assert len(encode_vote(vote)) <= BODY_MAX_BYTES
    assert (
        len(
            encode_receipts(
                Receipts(
                    b"r" * 16,
                    9,
                    65535,
                    {PeerName(bytes(6) + bytes(divmod(n, 256))): 1 << 60 for n in range(RECEIPTS_PER_PAGE)},
                )
            )
        )
        <= BODY_MAX_BYTES
    )


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 1 << 63) | st.binary(max_size=20) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=16),
            max_leaves=40,
        ).map(msgpack.packb),
    )
)
def test_garbage_is_refused_in_one_way(decode: Callable[[bytes], object], body: bytes) -> None:
    try:
        decode(body)
    except ProtocolError:
        pass


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(st.data())
def test_pages_with_a_byte_changed_are_read_or_refused(decode: Callable[[bytes], object], data: st.DataObject) -> None:
    whole = {
        decode_charter_untrusted: encode_charter(charter()),
        decode_statement_untrusted: encode_statement(large_statement()),
        decode_vote_untrusted: encode_vote(Vote(b"r" * 16, 4, BALLOT, Intent(), BALLOT, charter())),
        decode_proposal_untrusted: encode_proposal(Proposal(b"", 0, BALLOT, PREPARE, Intent(), charter())),
        decode_report_untrusted: encode_report(Report(4, BALLOT, Statement(), ((1, 2, 3, 4),))),
        decode_receipts_untrusted: encode_receipts(Receipts(b"r" * 16, 4, 3, {A: 5})),
        decode_relic_untrusted: encode_relic(A, Statement()),
    }[decode]
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(changed[: data.draw(st.integers(0, len(whole)))]))
        decode(bytes(changed))
    except ProtocolError:
        pass


def test_what_is_given_knows_its_addresses() -> None:
    given_to = Given("c", (("net:default", ("10.32.0.1/12", "fd00::1/64")), ("ip:10.32.0.1/24", ("10.32.0.1/24",))))
    assert given_to.addresses == ("10.32.0.1/12", "fd00::1/64", "10.32.0.1/24")
