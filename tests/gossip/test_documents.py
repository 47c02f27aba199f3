"""The laws of merging: whatever the order, whatever the repetition, the newest of everything is what stays."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gossip.documents as documents
from gossip.documents import (
    BODY_MAX_BYTES,
    EPOCH_MAX,
    PAGES_PER_OWNER_MAX,
    TABLE_NAME_MAX_BYTES,
    DocumentStore,
    Page,
    parse_header_untrusted,
    sign_page,
    verify_page_untrusted,
)
from gossip.errors import ProtocolError
from gossip.names import PeerName
from tests.gossip.actors import identity, page

pages = st.builds(
    page,
    number=st.integers(1, 3),
    table=st.sampled_from(["peer", "rows"]),
    index=st.integers(0, 2),
    epoch=st.integers(1, 2),
    version=st.integers(1, 3),
    body=st.sampled_from([b"", b"a", b"b"]),
)


def store_of(taken: list[Page]) -> DocumentStore:
    store = DocumentStore()
    for each in taken:
        store.offer(each)
    return store


def contents(store: DocumentStore) -> dict[object, bytes]:
    return {each.id: each.raw for owner in store.owners() for each in store.pages_of(owner)}


def newest(taken: list[Page]) -> dict[object, bytes]:
    """The slow obvious merge: of each page the version with the highest stamp."""
    best: dict[object, Page] = {}
    for each in sorted(taken, key=lambda each: each.stamp):
        best[each.id] = each
    return {page_id: each.raw for page_id, each in best.items()}


def take_untrusted(raw: bytes) -> Page:
    return verify_page_untrusted(parse_header_untrusted(raw), raw)


def raw_page(unsigned: bytes) -> bytes:
    """`unsigned` signed as a page is, whatever it says."""
    return unsigned + identity(1).sign(b"weft document 1\x00" + unsigned)


def header(
    form: int = 1, epoch: int = 1, version: int = 1, index: int = 0, table: bytes = b"rows", length: int | None = None
) -> bytes:
    size = len(table) if length is None else length
    return struct.pack("!B32sQQHB", form, identity(1).public_key, epoch, version, index, size) + table


# Merging


@given(st.lists(pages, max_size=12), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_lead_to_the_same_store(taken: list[Page], rng: random.Random) -> None:
    """Two stores that have seen the same pages are equal, digests included."""
    shuffled = [*taken, *(rng.choices(taken, k=5) if taken else [])]
    rng.shuffle(shuffled)
    one, other = store_of(taken), store_of(shuffled)
    assert contents(one) == contents(other) == newest(taken)
    assert one.root_digest() == other.root_digest()
    assert one.size_bytes == other.size_bytes == sum(map(len, newest(taken).values()))
    for owner in one.owners():
        assert one.owner_digest(owner) == other.owner_digest(owner)


@given(st.lists(pages, max_size=10), st.lists(pages, max_size=10))
def test_digests_are_equal_exactly_when_pages_are(some: list[Page], others: list[Page]) -> None:
    """A digest is what decides whether anything is exchanged: it must neither miss a difference nor invent one."""
    one, other = store_of(some), store_of(others)
    assert (one.root_digest() == other.root_digest()) == (contents(one) == contents(other))
    for number in (1, 2, 3):
        owner = identity(number).name
        same = [each.raw for each in one.pages_of(owner)] == [each.raw for each in other.pages_of(owner)]
        assert (one.owner_digest(owner) == other.owner_digest(owner)) == same


@given(st.lists(pages, max_size=12))
def test_a_page_is_news_once(taken: list[Page]) -> None:
    """What is here already, or older, is no news and changes nothing."""
    store = DocumentStore()
    for each in taken:
        held = store.get(each.id)
        assert store.offer(each) == (held is None or held.stamp < each.stamp)
        digest = store.root_digest()
        assert not store.offer(each)
        assert store.root_digest() == digest


@given(st.lists(pages, min_size=1, max_size=12))
def test_a_forgotten_owner_leaves_no_trace(taken: list[Page]) -> None:
    """Forgetting gives the store that would be, had the owner never spoken; what was dropped is told."""
    owner = taken[0].owner
    store = store_of(taken)
    held = store.pages_of(owner)
    assert store.forget(owner) == held
    rest = store_of([each for each in taken if each.owner != owner])
    assert contents(store) == contents(rest)
    assert (store.root_digest(), store.size_bytes) == (rest.root_digest(), rest.size_bytes)
    assert owner not in store
    assert store.owner_digest(owner) == bytes(16)
    assert store.forget(owner) == []


def test_a_later_epoch_beats_any_version() -> None:
    """A host that lost count of its versions but started again is believed."""
    store = store_of([page(epoch=1, version=1_000_000)])
    assert store.offer(page(epoch=2, version=1))
    assert not store.offer(page(epoch=1, version=1_000_001))


# Pages from the network


def test_a_page_travels_as_the_bytes_that_were_signed() -> None:
    """What comes out of the bytes is what the owner put in, however long table and body are."""
    for table, body in (("t", b""), ("t" * TABLE_NAME_MAX_BYTES, bytes(range(256)) * 32)):
        signed = sign_page(identity(4), table, PAGES_PER_OWNER_MAX - 1, EPOCH_MAX, 2**64 - 1, body)
        taken = take_untrusted(signed.raw)
        assert taken == signed
        assert (taken.owner, taken.body) == (identity(4).name, body)


@given(st.integers(0, 8 * len(page().raw) - 1))
def test_no_bit_can_be_changed_on_the_way(bit: int) -> None:
    """A relay that changes anything breaks the signature, or the page claims another owner and breaks it too."""
    raw = bytearray(page().raw)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        take_untrusted(bytes(raw))


@given(st.integers(0, len(page().raw) - 1))
def test_a_page_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        take_untrusted(page().raw[:length])


@given(st.binary(min_size=1, max_size=300))
def test_a_page_with_more_behind_it_is_refused(tail: bytes) -> None:
    with pytest.raises(ProtocolError):
        take_untrusted(page().raw + tail)


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    """Nothing but `ProtocolError`, whatever the bytes."""
    with pytest.raises(ProtocolError):
        take_untrusted(data)


def test_another_key_cannot_sign_for_an_owner() -> None:
    """The name is the hash of the key inside the page, and that key must have signed."""
    mine, theirs = page(number=1), page(number=2)
    with pytest.raises(ProtocolError) as error:
        take_untrusted(mine.raw[:-64] + theirs.raw[-64:])
    assert error.value.reason == "bad-signature"


def test_a_signature_for_another_purpose_is_no_page() -> None:
    """The label in front of what is signed keeps a hello from being passed off as a document."""
    unsigned = header() + b"body"
    with pytest.raises(ProtocolError):
        take_untrusted(unsigned + identity(1).sign(unsigned))


@pytest.mark.parametrize(
    "unsigned",
    [
        header(form=0) + b"body",
        header(form=2) + b"body",
        header(table=b""),
        header(table=b"t" * (TABLE_NAME_MAX_BYTES + 1)),
        header(table=b"two words"),
        header(table=b"t\xc3\xa4ble"),
        header(table=b"line\n"),
        header(table=b"\x7f"),
        header(index=PAGES_PER_OWNER_MAX),
        header(epoch=EPOCH_MAX + 1),
        header(length=200) + b"body",
        header() + bytes(BODY_MAX_BYTES + 1),
    ],
)
def test_a_signed_page_must_still_keep_the_rules(unsigned: bytes) -> None:
    """An owner that signs nonsense has signed nonsense: limits are checked before the signature is."""
    with pytest.raises(ProtocolError) as error:
        parse_header_untrusted(raw_page(unsigned))
    assert error.value.reason == "bad-page"


def test_limits_are_what_is_still_allowed() -> None:
    unsigned = header(epoch=EPOCH_MAX, index=PAGES_PER_OWNER_MAX - 1, table=b"t" * TABLE_NAME_MAX_BYTES)
    assert take_untrusted(raw_page(unsigned + bytes(BODY_MAX_BYTES))).index == PAGES_PER_OWNER_MAX - 1


# Limits of the store


def made_up(number: int, table: str = "rows", index: int = 0, version: int = 1, size: int = 100) -> Page:
    """A page that nobody signed, for limits that would take a minute of signing to reach."""
    owner = PeerName(number.to_bytes(8, "big"))
    raw = f"{number} {table} {index} {version}".encode().ljust(size, b".")
    return Page(owner, table, index, 1, version, raw, raw[:16])


def refusal(store: DocumentStore, offered: Page) -> str:
    before = (store.root_digest(), store.size_bytes, store.owners())
    with pytest.raises(ProtocolError) as error:
        store.offer(offered)
    assert (store.root_digest(), store.size_bytes, store.owners()) == before
    return error.value.reason


def test_one_owner_has_so_many_pages_and_no_more() -> None:
    """All tables count together; what is there already can still change."""
    store = DocumentStore()
    for index in range(PAGES_PER_OWNER_MAX):
        assert store.offer(made_up(1, "ab"[index % 2], index))
    assert refusal(store, made_up(1, "c")) == "too-many"
    assert store.offer(made_up(1, "a", 0, version=2))
    assert store.offer(made_up(2))
    assert store.offer(made_up(1, "c"), limited=False)


def test_so_many_owners_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer beyond the limit is refused; those who are here are not disturbed, and room is given back."""
    monkeypatch.setattr(documents, "OWNERS_MAX", 20)
    store = store_of([made_up(number) for number in range(20)])
    assert refusal(store, made_up(20)) == "too-many"
    assert store.offer(made_up(0, index=1))
    store.forget(PeerName((3).to_bytes(8, "big")))
    assert store.offer(made_up(20))


def test_a_full_store_still_takes_what_is_modest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy owners fill it up to the limit; every other may still have its share, and anybody may shrink."""
    monkeypatch.setattr(documents, "STORE_MAX_BYTES", 10_000)
    monkeypatch.setattr(documents, "OWNER_SHARE_BYTES", 500)
    store = store_of([made_up(1, index=index, size=1000) for index in range(10)])
    assert refusal(store, made_up(1, index=10, size=1000)) == "too-many"
    assert refusal(store, made_up(2, size=501)) == "too-many"
    assert store.offer(made_up(2, size=500))
    assert refusal(store, made_up(2, index=1, size=100)) == "too-many"
    assert store.offer(made_up(1, version=2, size=900))
    assert store.size_bytes == 10_400


@settings(max_examples=20)
@given(st.integers(0, 5))
def test_what_nobody_has_said_is_not_there(number: int) -> None:
    store = store_of([page(number=9)])
    assert store.get((identity(number).name, "rows", 0)) is None
    assert store.pages_of(identity(number).name) == []
    assert identity(number).name not in store
