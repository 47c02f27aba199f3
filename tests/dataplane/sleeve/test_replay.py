"""The replay window against a slow and obvious one: no counter twice, and late ones welcome within the promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.replay import COUNTER_MAX, REORDER_MAX, Window

NEAR = st.integers(0, 200)
FAR = st.integers(0, COUNTER_MAX)
EDGES = st.sampled_from(
    [0, 31, 32, 16_351, 16_352, 16_353, 16_383, 16_384, 16_385, 32_768, COUNTER_MAX - 1, COUNTER_MAX]
)


def test_each_counter_is_accepted_once_in_order() -> None:
    window = Window()
    assert [window.accept(counter) for counter in range(40_000)] == [True] * 40_000
    assert not any(window.accept(counter) for counter in range(40_000))


def test_each_counter_is_accepted_once_in_reverse_within_the_window() -> None:
    window = Window()
    assert all(window.accept(counter) for counter in range(REORDER_MAX, -1, -1))
    assert not any(window.accept(counter) for counter in range(REORDER_MAX + 1))


def test_the_promise_is_at_least_8192_counters() -> None:
    assert REORDER_MAX >= 8192


@given(st.lists(NEAR | FAR | EDGES, max_size=60))
def test_nothing_is_accepted_twice(counters: list[int]) -> None:
    window, seen = Window(), set[int]()
    for counter in counters:
        expected = window.is_new(counter)
        assert window.accept(counter) == expected
        assert not (expected and counter in seen)
        assert not window.is_new(counter)
        if expected:
            seen.add(counter)
        assert window.top == max(seen, default=-1)


@given(st.integers(0, 1 << 36), st.lists(st.integers(0, REORDER_MAX), min_size=1, max_size=60))
def test_what_is_new_and_not_too_late_is_accepted(base: int, offsets: list[int]) -> None:
    window = Window()
    assert window.accept(base + REORDER_MAX)
    seen = {REORDER_MAX}
    for offset in offsets:
        assert window.accept(base + offset) == (offset not in seen)
        seen.add(offset)


def test_what_a_newer_block_has_displaced_is_refused_whether_seen_or_not() -> None:
    window = Window()
    assert window.accept(1_000)
    assert window.accept(1_000 + 16_384)
    assert not window.accept(1_000)
    assert not window.is_new(1_001)


@pytest.mark.parametrize("counter", [COUNTER_MAX + 1, 1 << 40, (1 << 64) - 1])
def test_counters_beyond_the_last_are_refused_and_change_nothing(counter: int) -> None:
    window = Window()
    assert window.accept(5)
    assert not window.is_new(counter)
    assert not window.accept(counter)
    assert window.accept(6)
    assert window.top == 6


def test_windows_do_not_share_their_memory() -> None:
    one, other = Window(), Window()
    assert one.accept(7)
    assert other.accept(7)
