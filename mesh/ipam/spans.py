"""Sets of slots as sorted, disjoint, half-open spans: `((0, 4), (8, 9))` is 0, 1, 2, 3 and 8.

A slot is the number of an address in its range. Everything here is a value; nothing here knows what a slot is for. Sets
have a few hundred spans at most, whatever number of slots they hold, so plain loops over spans are what they cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

Spans = tuple[tuple[int, int], ...]

NONE: Spans = ()


def normal(pairs: Iterable[tuple[int, int]]) -> Spans:
    """The set of all slots in `pairs`, which may overlap, touch, be empty, and come in any order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(pair for pair in pairs if pair[0] < pair[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def of_slots(slots: Iterable[int]) -> Spans:
    return normal((slot, slot + 1) for slot in slots)


def union(*sets: Spans) -> Spans:
    return normal(pair for spans in sets for pair in spans)


def both(left: Spans, right: Spans) -> Spans:
    """What is in both."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def minus(left: Spans, right: Spans) -> Spans:
    """What is in `left` and not in `right`."""
    found = []
    j = 0
    for start, end in left:
        while j < len(right) and right[j][1] <= start:
            j += 1
        at, k = start, j
        while k < len(right) and right[k][0] < end:
            if at < right[k][0]:
                found.append((at, right[k][0]))
            at = max(at, right[k][1])
            k += 1
        if at < end:
            found.append((at, end))
    return tuple(found)


def size(spans: Spans) -> int:
    return sum(end - start for start, end in spans)


def holds(spans: Spans, slot: int) -> bool:
    at = bisect_right(spans, (slot, 1 << 64)) - 1
    return at >= 0 and spans[at][0] <= slot < spans[at][1]


def covers(outer: Spans, inner: Spans) -> bool:
    return not minus(inner, outer)


def slots(spans: Spans) -> Iterator[int]:
    for start, end in spans:
        yield from range(start, end)


def first(spans: Spans, count: int) -> Spans:
    """The lowest `count` slots."""
    taken = []
    for start, end in spans:
        if count <= 0:
            break
        taken.append((start, min(end, start + count)))
        count -= taken[-1][1] - start
    return tuple(taken)


def largest(spans: Spans) -> tuple[int, int]:
    """The longest span, the highest of several; `(0, 0)` where there is none."""
    return max(spans, key=lambda span: (span[1] - span[0], span[0]), default=(0, 0))


def coarse(spans: Spans, most: int, within: Spans) -> Spans:
    """`spans` with the shortest gaps filled, as far as they lie in `within`, until there are at most `most` of them;
    more where the gaps do not lie there."""
    surplus = len(spans) - most
    if surplus <= 0:
        return spans
    gaps = [(low[1], high[0]) for low, high in pairwise(spans)]
    inside = sorted((gap for gap in gaps if covers(within, (gap,))), key=lambda gap: (gap[1] - gap[0], gap[0]))
    return union(spans, normal(inside[:surplus]))
