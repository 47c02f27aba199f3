"""A pager beside a dictionary: the rows are always the same, and a change touches as few pages as it can."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import gossip.pages as pages
from gossip.documents import BODY_MAX_BYTES, PAGES_PER_OWNER_MAX
from gossip.errors import ProtocolError
from gossip.pages import ROW_MAX_BYTES, TABLE_PAGES_MAX, TablePager, rows_untrusted

keys = st.sampled_from([f"vw{number}" for number in range(8)])
rows = st.binary(max_size=60) | st.integers(0, ROW_MAX_BYTES).map(lambda size: b"r" * size)


def bodies(pager: TablePager) -> list[bytes]:
    return [pager.body(index) for index in range(len(pager))]


class PagerBesideDictionary(RuleBasedStateMachine):
    """What is on the pages is what a dictionary holds, after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.pager = TablePager()
        self.rows: dict[str, bytes] = {}
        self.before: list[bytes] = []

    @rule(key=keys, row=rows)
    def put(self, key: str, row: bytes) -> None:
        self.rows[key] = row
        self.check_change(self.pager.put(key, row))

    @rule(key=keys)
    def remove(self, key: str) -> None:
        self.rows.pop(key, None)
        changed = self.pager.remove(key)
        self.check_change(changed)
        assert len(changed) <= 1

    def check_change(self, changed: tuple[int, ...]) -> None:
        """The pages named are exactly those that changed, two at most."""
        now = bodies(self.pager)
        before = self.before + [b""] * (len(now) - len(self.before))
        differ = {index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new}
        assert differ <= set(changed) and len(changed) == len(set(changed)) <= 2
        assert set(changed) - differ == set() or self.rows_unseen(changed)
        self.before = now

    def rows_unseen(self, changed: tuple[int, ...]) -> bool:
        """Two rows of equal bytes may change places, which no body shows."""
        return len(set(self.rows.values())) < len(self.rows) or any(index >= len(self.before) for index in changed)

    @invariant()
    def every_row_is_on_one_page(self) -> None:
        now = bodies(self.pager)
        assert sorted(row for body in now for row in rows_untrusted(body)) == sorted(self.rows.values())
        assert all(len(body) <= BODY_MAX_BYTES for body in now)


TestPagerBesideDictionary = PagerBesideDictionary.TestCase


def test_a_row_stays_on_its_page_while_it_fits() -> None:
    """Others on the page come, go and change; a page number is where a row lives."""
    pager = TablePager()
    assert pager.put("a", b"1" * 100) == (0,)
    assert pager.put("b", b"2" * 100) == (0,)
    assert pager.put("a", b"3" * 2000) == (0,)
    assert pager.remove("a") == (0,)
    assert rows_untrusted(pager.body(0)) == [b"2" * 100]


def test_the_same_row_again_changes_nothing() -> None:
    pager = TablePager()
    pager.put("a", b"row")
    assert pager.put("a", b"row") == ()
    assert pager.remove("b") == ()


def test_a_row_that_outgrows_its_page_shows_on_the_new_one_first() -> None:
    """Told in this order, a row is seen twice for a moment and never missing."""
    pager = TablePager()
    for key in "abcd":
        pager.put(key, b"x" * 2000)
    assert pager.put("a", b"x" * ROW_MAX_BYTES) == (1, 0)
    assert len(rows_untrusted(pager.body(0))) == 3
    assert rows_untrusted(pager.body(1)) == [b"x" * ROW_MAX_BYTES]


def test_room_that_is_given_back_is_used_again() -> None:
    """A table that stays small stays on few pages, however long the host lives."""
    pager = TablePager()
    for life in range(200):
        pager.put(f"vw{life}", b"x" * 4000)
        if life >= 3:
            pager.remove(f"vw{life - 3}")
    assert len(pager) == 2


def test_pages_depend_on_rows_alone() -> None:
    """The same rows on a page are the same bytes, in whatever order they came."""
    one, other = TablePager(), TablePager()
    for key in "abc":
        one.put(key, key.encode())
    for key in "cab":
        other.put(key, key.encode())
    assert one.body(0) == other.body(0)


def test_a_row_may_be_so_long_and_no_longer() -> None:
    pager = TablePager()
    pager.put("a", b"x" * ROW_MAX_BYTES)
    with pytest.raises(ValueError, match=r"4097 bytes is longer than 4096"):
        pager.put("a", b"x" * (ROW_MAX_BYTES + 1))
    assert rows_untrusted(pager.body(0)) == [b"x" * ROW_MAX_BYTES]


def test_a_full_table_refuses_a_row_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is there and outgrows its page keeps its old bytes; what still fits is taken."""
    monkeypatch.setattr(pages, "TABLE_PAGES_MAX", 2)
    pager = TablePager()
    for key in "abcd":
        pager.put(key, key.encode() * 4000)
    pager.put("b", b"b" * ROW_MAX_BYTES)
    pager.put("d", b"d" * ROW_MAX_BYTES)
    before = bodies(pager)
    for key, size in (("a", ROW_MAX_BYTES), ("e", 1000)):
        with pytest.raises(ValueError, match=r"the table is full: 2 pages of 8192 bytes"):
            pager.put(key, b"y" * size)
        assert bodies(pager) == before
    assert pager.put("e", b"e" * 80) == (0,)


def test_a_full_table_leaves_room_for_other_tables() -> None:
    """What one owner may have is more than its largest table, or a host with many containers could not say hello."""
    assert PAGES_PER_OWNER_MAX >= 2 * TABLE_PAGES_MAX


# Bodies from the network


@given(st.lists(st.binary(max_size=80)))
def test_rows_come_out_as_they_went_in(taken: list[bytes]) -> None:
    body = b"".join(struct.pack("!H", len(row)) + row for row in taken)
    assert rows_untrusted(body) == taken


@given(st.binary(max_size=200))
def test_garbage_is_rows_or_a_protocol_error(body: bytes) -> None:
    """And where it is rows, they are what the bytes say."""
    try:
        taken = rows_untrusted(body)
    except ProtocolError as error:
        assert error.reason == "bad-row"
    else:
        assert b"".join(struct.pack("!H", len(row)) + row for row in taken) == body


@pytest.mark.parametrize(
    "body",
    [b"\x00", b"\x00\x05rows", b"\x00\x01r\x00", struct.pack("!H", ROW_MAX_BYTES + 1) + bytes(ROW_MAX_BYTES + 1)],
)
def test_lengths_that_do_not_add_up_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        rows_untrusted(body)
