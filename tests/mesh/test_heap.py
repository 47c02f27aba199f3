"""What a daemon knows of a large mesh is out of the collector's sight, without being kept alive by that."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from mesh.heap import GENERATIONS, GROWTH, SIZE_MIN, Heap


class Row:
    """Something that a weak reference can watch."""


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As it was before the test."""
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_has_grown_is_looked_at_no_more_and_goes_when_it_is_let_go() -> None:
    """By its references."""
    rows = [Row() for _ in range(SIZE_MIN)]
    heap, gone = Heap(), [weakref.ref(row) for row in rows]
    assert gc.get_threshold() == GENERATIONS
    assert heap.settle(len(rows))
    assert gc.get_freeze_count() >= SIZE_MIN
    assert not any(isinstance(each, Row) for each in gc.get_objects())
    rows.clear()
    assert not any(ref() for ref in gone)


def test_it_is_done_at_new_heights_only() -> None:
    """Coming and going between them does nothing, so that what it costs is bounded."""
    heap = Heap()
    assert not heap.settle(SIZE_MIN - 1)
    sizes = [SIZE_MIN, SIZE_MIN + 1, 0, int(SIZE_MIN * GROWTH) - 1, int(SIZE_MIN * GROWTH), SIZE_MIN, 10 * SIZE_MIN]
    assert [heap.settle(size) for size in sizes] == [True, False, False, False, True, False, True]


def test_a_cycle_that_is_garbage_already_is_not_kept() -> None:
    """As far as it is young."""
    heap, row = Heap(), Row()
    row.itself = row  # type: ignore[attr-defined]
    gone = weakref.ref(row)
    del row
    assert heap.settle(SIZE_MIN) and gone() is None
