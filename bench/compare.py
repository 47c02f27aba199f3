"""`python -m bench compare OLD NEW`: two results of the bench `sleeve` side by side, and what is more than noise.

A machine is not the same from one hour to the next, so every figure is shown twice: as it was taken, and beside the
kernel's VXLAN of its own run, which went through the same hour. The bounds of a ratio are the worst that the rounds
allow: the lowest new over the highest old, and the other way round. Only where both bounds lie on one side of 1 is
there a difference; everything else is noise, or too few rounds. The one idea needed to read it: with one round there
are no bounds, and then nothing is claimed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figures, Values, known, median, values
from bench.goals import HAND
from bench.harness import Table
from mesh.namespaces import LabError

COMPARED = (
    ("tcp1", "mbit_s", "Mbit/s", True),
    ("tcp4", "mbit_s", "Mbit/s", True),
    ("reverse", "mbit_s", "Mbit/s", True),
    ("udp", "pps", "packets/s", True),
    ("ping", "median_ms", "ms", False),
    ("tcp4", "median_ms", "ms", False),
    ("tcp4", "p99_ms", "ms", False),
    ("tcp1", "cpu_s_per_gb", "s/GB", False),
)
"""Measure, figure, unit, and whether more is better."""
LEAST_COST = 0.05
"""Seconds a gigabyte below which an overlay does nothing on the packet path, and a ratio says nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """New over old."""

    old: float
    new: float
    low: float
    high: float
    bounded: bool

    @property
    def ratio(self) -> float:
        return self.new / self.old

    def verdict(self, more_is_better: bool) -> str:
        if not self.bounded:
            return "one round only"
        if self.low <= 1 <= self.high:
            return "noise"
        return "**better**" if (self.ratio > 1) == more_is_better else "**worse**"


def change(old: Values, new: Values) -> Change | None:
    """None where either side has nothing to compare."""
    before, after = known(old), known(new)
    if not before or not after or min(before) <= 0 or min(after) <= 0:
        return None
    middle_old, middle_new = median(before), median(after)
    assert middle_old is not None and middle_new is not None
    bounded = len(before) > 1 and len(after) > 1
    return Change(middle_old, middle_new, min(after) / max(before), max(after) / min(before), bounded)


def compare(old: Figures, new: Figures) -> list[Table]:
    """One table an underlay that both have."""
    tables = []
    for underlay in [name for name in new["underlays"] if name in old["underlays"]]:
        rows = [row for measure in _measures(new, underlay) for row in _rows(old, new, underlay, *measure)]
        columns = ("measure", "contestant", "old", "new", "new / old: low .. median .. high", "beside VXLAN", "verdict")
        tables.append(Table(f"New against old, {underlay}", columns, rows))
    return tables


def _measures(figures: Figures, underlay: str) -> list[tuple[str, str, str, bool]]:
    found: list[tuple[str, str, str, bool]] = list(COMPARED)
    for measure in figures["underlays"][underlay]["samples"]:
        if measure.startswith("loss "):
            found.append((measure, "mbit_s", "Mbit/s", True))
    return found


def _rows(
    old: Figures, new: Figures, underlay: str, measure: str, key: str, unit: str, more_is_better: bool
) -> Iterator[tuple[str, ...]]:
    for name in new["contestants"]:
        sides = [values(figures, underlay, measure, name, key) for figures in (old, new)]
        seen = change(*sides)
        if seen is None or (key == "cpu_s_per_gb" and min(seen.old, seen.new) < LEAST_COST):
            continue
        shares = [_beside(figures, underlay, measure, name, key) for figures in (old, new)]
        beside = change(*shares) if name != HAND else None
        # Where the reference of each run is known, it decides: it takes the machine's own moods out.
        verdict = (beside or seen).verdict(more_is_better)
        yield (
            f"{measure} {key.rsplit('_ms', 1)[0] if unit == 'ms' else ''}".strip() + f", {unit}",
            name,
            _value(seen.old),
            _value(seen.new),
            _bounds(seen),
            _bounds(beside) if beside else "-",
            verdict,
        )


def _beside(figures: Figures, underlay: str, measure: str, name: str, key: str) -> Values:
    """Round by round over the hand-made VXLAN of the same round."""
    if key == "cpu_s_per_gb":
        return []  # the kernel's has no processes
    pairs = zip(
        values(figures, underlay, measure, name, key), values(figures, underlay, measure, HAND, key), strict=False
    )
    return [one / other for one, other in pairs if one is not None and other]


def _value(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _bounds(seen: Change) -> str:
    return f"{seen.low:.3f} .. {seen.ratio:.3f} .. {seen.high:.3f}" if seen.bounded else f"{seen.ratio:.3f}"


def main(argv: Sequence[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description="Two results of the bench sleeve.")
    parser.add_argument("old", type=Path, metavar="OLD", help="a sleeve.json")
    parser.add_argument("new", type=Path, metavar="NEW", help="another one")
    args = parser.parse_args(argv)
    try:
        old, new = _read(args.old), _read(args.new)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for what, whole in (("old", old), ("new", new)):
        machine = whole["machine"]
        print(f"{what}: {machine['taken']}, {machine['kernel']}, {machine['cores']} cores, Weft {machine['weft']}")
    found = compare(old["figures"], new["figures"])
    if not found:
        print("bench: the two results share no underlay, so there is nothing to compare", file=sys.stderr)
        return 1
    for table in found:
        print("\n".join(["", f"## {table.title}", "", *table.lines()]))
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        whole: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise LabError(f"{path} is no JSON: {error}") from None
    if not isinstance(whole, dict) or whole.get("name") != "sleeve":
        raise LabError(f"{path} is no result of the bench sleeve")
    return whole
