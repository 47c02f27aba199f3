"""Two stores that differ in any way at all are equal after one exchange, and no message of it is too long."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.documents import PAGES_PER_OWNER_MAX, TABLE_NAME_MAX_BYTES, DocumentStore, Page
from gossip.names import PeerName
from gossip.sync import answer_digest, answer_have, answer_want, digests
from gossip.wire import (
    ENTRIES_MAX,
    FIRST_NAME,
    LAST_NAME,
    MESSAGE_MAX_BYTES,
    Digest,
    Have,
    Message,
    Want,
    decode_untrusted,
    encode,
)
from tests.gossip.actors import page

pages = st.builds(
    page,
    number=st.integers(1, 5),
    table=st.sampled_from(["links", "peer", "rows"]),
    index=st.integers(0, 3),
    version=st.integers(1, 3),
)


def made_up(owner: int, table: str = "rows", index: int = 0, version: int = 1) -> Page:
    """A page that nobody signed: stores do not look."""
    raw = f"{owner} {table} {index} {version}".encode()
    return Page(PeerName(owner.to_bytes(8, "big")), table, index, 1, version, raw, hashlib.sha256(raw).digest()[:16])


def store_of(taken: list[Page]) -> DocumentStore:
    store = DocumentStore()
    for each in taken:
        store.offer(each)
    return store


def contents(store: DocumentStore) -> list[bytes]:
    return [each.raw for owner in store.owners() for each in store.pages_of(owner)]


class Exchange:
    """`asking` tells its digests, both answer until nothing is left to say. Counts what crosses."""

    def __init__(self, asking: DocumentStore, other: DocumentStore) -> None:
        self.stores = (asking, other)
        self.messages: list[Message] = []
        self.pages: list[Page] = []
        for digest in digests(asking):
            self.cross(digest)
            haves, missing = answer_digest(other, digest, lambda _: 0)
            self.take(0, missing)
            for have in haves:
                self.cross(have)
                newer, wants = answer_have(asking, have)
                self.take(1, newer)
                for want in wants:
                    self.cross(want)
                    self.take(0, answer_want(other, want))

    def cross(self, message: Message) -> None:
        data = encode(message)
        assert len(data) <= MESSAGE_MAX_BYTES
        assert decode_untrusted(data) == message
        self.messages.append(message)

    def take(self, side: int, crossing: list[Page]) -> None:
        self.pages += crossing
        for each in crossing:
            self.stores[side].offer(each)


@given(st.lists(pages, max_size=15), st.lists(pages, max_size=15))
def test_one_exchange_makes_two_stores_equal(some: list[Page], others: list[Page]) -> None:
    """Whoever asks. Owners that only the asking side has are told by digests going the other way, as on every link."""
    asking, other = store_of(some), store_of(others)
    expected = store_of(some + others)
    first = Exchange(asking, other)
    second = Exchange(other, asking)
    assert contents(asking) == contents(other) == contents(expected)
    assert asking.root_digest() == other.root_digest()
    told = [each.raw for each in (*first.pages, *second.pages)]
    assert len(told) == len(set(told)), "no page crosses twice"


@given(st.lists(pages, max_size=15), st.lists(pages, max_size=15))
def test_only_what_is_news_crosses(some: list[Page], others: list[Page]) -> None:
    """Each page that crosses is newer than what the other side had: an exchange costs what differs."""
    before = [store_of(some), store_of(others)]
    exchange = Exchange(store_of(some), store_of(others))
    for each in exchange.pages:
        held = [store.get(each.id) for store in before]
        assert {None if old is None else old.stamp < each.stamp for old in held} != {False}


@given(st.lists(pages, max_size=15))
def test_equal_stores_exchange_digests_alone(taken: list[Page]) -> None:
    exchange = Exchange(store_of(taken), store_of(list(reversed(taken))))
    assert len(exchange.messages) == 1
    assert exchange.pages == []


@pytest.mark.parametrize("owners", [0, 1, ENTRIES_MAX, ENTRIES_MAX + 1, 3000])
def test_digests_cover_every_possible_owner_exactly_once(owners: int) -> None:
    """In order and without gaps, so that an owner missing here is missed by exactly one message."""
    messages = digests(store_of([made_up(number * 1000) for number in range(owners)]))
    assert messages[0].first == FIRST_NAME and messages[-1].last == LAST_NAME
    for message, following in pairwise(messages):
        assert int.from_bytes(following.first, "big") == int.from_bytes(message.last, "big") + 1
    assert sum(len(message.owners) for message in messages) == owners
    assert all(len(encode(message)) <= MESSAGE_MAX_BYTES for message in messages)
    assert all(message.first <= name <= message.last for message in messages for name, _ in message.owners)


def test_the_last_possible_name_is_covered_once() -> None:
    """A full message that ends at the highest name of all has nothing to follow it."""
    store = store_of([made_up(number) for number in range(ENTRIES_MAX - 1)] + [made_up(2**64 - 1)])
    assert [(message.first, message.last) for message in digests(store)] == [(FIRST_NAME, LAST_NAME)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_three_thousand_owners_come_together(seed: int) -> None:
    """A third here, a third there, a third on both sides with one page each that differs."""
    asking = store_of([made_up(number * 7919 + seed) for number in range(2000)])
    other = store_of(
        [made_up(number * 7919 + seed) for number in range(1000, 3000)]
        + [made_up(number * 7919 + seed, version=2) for number in range(1500, 1600)]
    )
    Exchange(asking, other)
    second = Exchange(other, asking)
    assert contents(asking) == contents(other)
    assert len(asking.owners()) == 3000
    assert len(second.messages) == len(digests(other))


@pytest.mark.parametrize("table", ["t", "t" * TABLE_NAME_MAX_BYTES])
def test_an_owner_with_all_the_pages_it_may_have_comes_across(table: str) -> None:
    """The two halves differ in every page; stamps are cut into messages whatever the length of the table's name."""
    versions = range(PAGES_PER_OWNER_MAX)
    asking = store_of([made_up(1, table, index, 1 + index % 2) for index in versions])
    other = store_of([made_up(1, table, index, 1 + (index + 1) % 2) for index in versions])
    exchange = Exchange(asking, other)
    assert contents(asking) == contents(other)
    assert all(each.version == 2 for each in asking.pages_of(PeerName((1).to_bytes(8, "big"))))
    assert sum(isinstance(message, Have) for message in exchange.messages) == -(-PAGES_PER_OWNER_MAX // ENTRIES_MAX)


def test_pages_between_the_parts_of_a_list_are_not_overlooked() -> None:
    """What only the asking side has may lie before, between or behind the positions of any message."""
    asking = store_of([made_up(1, table, index) for table in "abc" for index in range(300)])
    other = store_of([made_up(1, "b", index) for index in range(0, 300, 2)] + [made_up(1, "b", 4095)])
    Exchange(asking, other)
    assert contents(asking) == contents(other)


# What a neighbour may ask


def test_an_owner_nobody_knows_is_answered_with_nothing() -> None:
    """A digest, a have and a want of an unknown owner cost a few bytes."""
    stranger = PeerName(bytes(8))
    store = store_of([made_up(5)])
    haves, missing = answer_digest(store, Digest(stranger, stranger, ((stranger, bytes(15) + b"\x01"),)), lambda _: 0)
    assert missing == [] and [len(have.pages) for have in haves] == [0]
    assert answer_have(store, Have(stranger, 0, ("", 0), ("z", 0), ())) == ([], [])
    assert answer_want(store, Want(stranger, (("rows", 0),) * ENTRIES_MAX)) == []


def test_nothing_outside_of_what_was_asked_is_told() -> None:
    store = store_of([made_up(number) for number in range(1, 10)])
    low, high = (PeerName(number.to_bytes(8, "big")) for number in (3, 5))
    haves, missing = answer_digest(store, Digest(low, high, ()), lambda _: 0)
    assert haves == [] and [each.owner for each in missing] == [PeerName(n.to_bytes(8, "big")) for n in (3, 4, 5)]
    backwards = answer_digest(store, Digest(high, low, ()), lambda _: 0)
    assert backwards == ([], [])


def test_an_age_travels_with_the_stamps() -> None:
    store = store_of([made_up(5)])
    (have,), _ = answer_digest(
        store, Digest(FIRST_NAME, LAST_NAME, ((PeerName((5).to_bytes(8, "big")), bytes(16)),)), lambda _: 77
    )
    assert have.age_s == 77
