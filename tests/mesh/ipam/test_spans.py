"""Sets of slots, against plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.ipam import spans
from mesh.ipam.charter import flat, spans_of

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def as_set(pairs: list[tuple[int, int]]) -> set[int]:
    return {slot for start, end in pairs for slot in range(start, end)}


@given(PAIRS, PAIRS, st.integers(0, 60))
def test_operations_are_those_of_sets(one: list[tuple[int, int]], two: list[tuple[int, int]], slot: int) -> None:
    a, b = spans.normal(one), spans.normal(two)
    left, right = as_set(one), as_set(two)
    assert set(spans.slots(a)) == left and spans.size(a) == len(left)
    assert set(spans.slots(spans.union(a, b))) == left | right
    assert set(spans.slots(spans.both(a, b))) == left & right
    assert set(spans.slots(spans.minus(a, b))) == left - right
    assert spans.holds(a, slot) == (slot in left)
    assert spans.covers(a, b) == (right <= left)
    assert set(spans.slots(spans.first(a, slot))) == set(sorted(left)[:slot])
    assert spans_of(tuple(flat(a))) == a
    assert spans.normal(a) == a, "one spelling for one set"


@given(PAIRS, PAIRS, st.integers(1, 5))
def test_coarse_sets_are_larger_and_shorter(one: list[tuple[int, int]], two: list[tuple[int, int]], most: int) -> None:
    """Only gaps that may be filled are."""
    a, within = spans.normal(one), spans.normal(two)
    coarse = spans.coarse(a, most, within)
    assert spans.covers(coarse, a)
    assert spans.covers(spans.union(a, within), coarse)
    everything = ((0, 100),)
    assert len(spans.coarse(a, most, everything)) <= most
