"""Reading what a comparison found: values of a round, their median, and ratios inside one round.

Works on the plain values that stand in the JSON, so that a result of today and one of last year are read by the same
code. The one idea needed to read it: a ratio is taken round by round and its median is the figure; a round in which
either side failed gives none.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Figures = Mapping[str, Any]
"""`figures` of the JSON of the bench `sleeve`."""

Values = list[float | None]


def values(figures: Figures, underlay: str, measure: str, name: str, key: str) -> Values:
    """One a round; empty where it was not measured."""
    samples = figures["underlays"].get(underlay, {}).get("samples", {})
    found: Values = samples.get(measure, {}).get(name, {}).get(key, [])
    return found


def known(found: Iterable[float | None]) -> list[float]:
    return [value for value in found if value is not None]


def median(found: Iterable[float | None]) -> float | None:
    there = known(found)
    return statistics.median(there) if there else None


def ratio(over: Values, under: Values) -> float | None:
    """The median of the rounds' ratios."""
    pairs = [(one, other) for one, other in zip(over, under, strict=False) if one is not None and other]
    return statistics.median(one / other for one, other in pairs) if pairs else None


def peers(figures: Figures) -> list[str]:
    """The other overlays that were measured somewhere."""
    return [name for name, facts in figures["contestants"].items() if facts["is_peer"] and not facts["missing"]]


def best_peer(figures: Figures, underlay: str, measure: str, key: str, *, most: bool = True) -> str | None:
    """The peer with the highest (or the lowest) median."""
    medians = {name: median(values(figures, underlay, measure, name, key)) for name in peers(figures)}
    there = {name: value for name, value in medians.items() if value is not None}
    if not there:
        return None
    return (max if most else min)(sorted(there), key=lambda name: there[name])
