"""How figures are taken: turns, ratios, percentiles, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path

from bench.harness import Aim, Result, interleave, machine, median_ratio, percentile, write


def test_shapes_take_turns_in_every_order() -> None:
    """A warm-up round that is thrown away, then A B, B A, A B."""
    calls: list[str] = []

    def measure(name: str) -> int:
        calls.append(name)
        return len(calls)

    taken = interleave({"a": lambda: measure("a"), "b": lambda: measure("b")}, rounds=3)

    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert taken == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() -> None:
    """One slow minute of the machine touches both shapes of its round, and so no ratio."""
    assert median_ratio([10.0, 1.0, 30.0], [20.0, 2.0, 60.0]) == 0.5
    assert median_ratio([1.0, 10.0, 100.0], [100.0, 10.0, 1.0]) == 1.0


def test_a_percentile_is_a_value_that_occurred() -> None:
    """Nearest rank, from the smallest to the largest."""
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 99) == 99.0
    assert percentile(values, 100) == 100.0
    assert percentile(values, 0.5) == 1.0
    assert percentile([7.0], 50) == 7.0


def test_an_aim_knows_which_side_of_its_bound_is_good() -> None:
    """Throughput has a least, times have a most, and the bound itself is allowed."""
    assert Aim("throughput", 0.97, 0.97, at_least=True).met
    assert not Aim("throughput", 0.96, 0.97, at_least=True).met
    assert Aim("time", 1.1, 1.1).met
    assert not Aim("time", 1.2, 1.1).met
    assert "MISSED" in Aim("time", 1.2, 1.1).line()


def test_results_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    """The Markdown holds table, aims and machine; the JSON holds the raw figures too."""
    result = Result("x", "A title", "How.", ["shape", "value"], [["weft", "1"]], {"raw": [1, 2]}, [Aim("a", 1, 2)])

    path = write(result, machine(), tmp_path)

    text = path.read_text()
    assert "| weft | 1 |" in text
    assert "met    a: 1 (at most 2)" in text
    assert "Linux" in text
    whole = json.loads((tmp_path / "x.json").read_text())
    assert whole["figures"] == {"raw": [1, 2]}
    assert whole["aims"][0]["met"] is True
    assert whole["machine"]["cores"] >= 1
