"""How figures are taken and written down: interleaved rounds, medians of ratios, aims, and the machine they belong to.

Knows nothing of networks or of Weft. The one idea needed to read it: on a shared machine the speed changes from minute
to minute, so two things are never measured one after the other. They take turns (A B, B A, A B, ...), each round gives
one ratio, and the median of the ratios is the figure; absolute numbers are only there to be looked at.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

RESULTS_DIR = Path(__file__).resolve().parent / "results"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """One more table of a result, with its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def lines(self) -> list[str]:
        return [
            "| " + " | ".join(self.columns) + " |",
            "|" + "---|" * len(self.columns),
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound that a figure should keep."""

    what: str
    value: float
    bound: float
    unit: str = ""
    at_least: bool = False
    """Is the bound the least allowed, or (as for times) the most?"""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        verb = "at least" if self.at_least else "at most"
        verdict = "met" if self.met else "MISSED"
        by = "" if self.met else f", missed by {self.shortfall}"
        return f"{verdict:6} {self.what}: {self.value:.4g}{self.unit} ({verb} {self.bound:g}{self.unit}{by})"

    @property
    def shortfall(self) -> str:
        """By how much a missed bound is missed."""
        if self.bound == 0:
            return f"{abs(self.value):.4g}{self.unit}"
        return f"{abs(self.value / self.bound - 1) * 100:.0f} %"


@dataclass(slots=True)
class Result:
    """What one bench found."""

    name: str
    title: str
    method: str
    """How it was measured, for a reader who doubts it."""
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Everything behind the rows, raw values included; goes into the JSON."""
    aims: list[Aim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    """More than the first one, in order."""
    pictures: list[str] = field(default_factory=list)
    """Files beside the Markdown that it shows."""
    aims_in_table: bool = False
    """Whether a table shows them already."""

    def table(self) -> list[str]:
        return Table("", self.columns, self.rows).lines()

    def further(self) -> list[str]:
        """The other tables, each under its heading."""
        lines = []
        for table in self.tables:
            lines += [f"## {table.title}", "", *([table.note, ""] if table.note else []), *table.lines(), ""]
        return lines


def interleave(
    shapes: Mapping[str, Callable[[], T]], rounds: int, progress: Callable[[str], None] = lambda line: None
) -> dict[str, list[T]]:
    """Each shape once per round, in every order that there is, one after the other: none is always the first, or always
    after the one that heats the machine. One warm-up round is thrown away."""
    for measure in shapes.values():
        measure()
    taken: dict[str, list[T]] = {name: [] for name in shapes}
    orders = itertools.cycle(itertools.permutations(shapes))
    for number in range(rounds):
        for name in next(orders):
            taken[name].append(shapes[name]())
        progress(f"round {number + 1} of {rounds}")
    return taken


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the per-round ratios."""
    return statistics.median(over / under for over, under in zip(numerators, denominators, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that really occurred."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """`low .. median .. high` for a table."""
    return " .. ".join(f"{value:.{digits}g}" for value in (min(values), statistics.median(values), max(values)))


def machine() -> dict[str, Any]:
    """What a figure depends on and a reader cannot guess."""
    return {
        "taken": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "kernel": platform.release(),
        "system": _first_line("/etc/os-release", "PRETTY_NAME=").strip('"'),
        "cpu": _first_line("/proc/cpuinfo", "model name").lstrip("\t :"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: _package(name) for name in ("cryptography", "msgpack", "pyroute2", "uvloop")},
        "tools": {
            tool: _tool(tool, flag) for tool, flag in (("ip", "-V"), ("nft", "--version"), ("iperf3", "--version"))
        },
        "weft": revision(),
    }


def _first_line(path: str, start: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line[len(start) :] for line in lines if line.startswith(start)), "unknown")


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tool(name: str, flag: str) -> str:
    if shutil.which(name) is None:
        return "not installed"
    done = subprocess.run([name, flag], capture_output=True, text=True, timeout=10, check=False)
    said = (done.stdout or done.stderr).splitlines()
    return said[0].strip() if said else "unknown"


def describe(facts: Mapping[str, Any]) -> str:
    """The machine in one paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['taken']}; {facts['system']}, Linux {facts['kernel']}, {facts['cores']} cores of {facts['cpu']}, "
        f"{facts['memory_gib']} GiB, load {facts['load_average']:.1f}; Python {facts['python']}, {packages}; "
        + ", ".join(facts["tools"].values())
        + f"; Weft {facts['weft']}"
    )


def write(result: Result, facts: Mapping[str, Any], directory: Path = RESULTS_DIR) -> Path:
    """`NAME.md` for people and `NAME.json` for programs; the path of the first."""
    directory.mkdir(parents=True, exist_ok=True)
    aims = [
        {
            "what": aim.what,
            "value": aim.value,
            "bound": aim.bound,
            "unit": aim.unit,
            "at_least": aim.at_least,
            "met": aim.met,
        }
        for aim in result.aims
    ]
    whole = {
        "name": result.name,
        "title": result.title,
        "method": result.method,
        "machine": dict(facts),
        "columns": list(result.columns),
        "rows": [list(row) for row in result.rows],
        "figures": result.figures,
        "aims": aims,
    }
    (directory / f"{result.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    lines = [f"# {result.title}", "", result.method, "", *result.table(), "", *result.further()]
    lines += [f"![{Path(picture).stem}]({picture})\n" for picture in result.pictures]
    lines += [] if result.aims_in_table else [f"- {aim.line()}" for aim in result.aims]
    lines += ["", f"Machine: {describe(facts)}", ""]
    path = directory / f"{result.name}.md"
    path.write_text("\n".join(lines))
    return path


def revision() -> str:
    """The version of Weft, and the commit that it was measured at."""
    here = Path(__file__).resolve().parent.parent
    try:
        describe = ["git", "-c", f"safe.directory={here}", "-C", str(here), "describe", "--always", "--dirty"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
        commit = done.stdout.strip()
    except OSError:
        commit = ""
    return f"{_package('weft')} ({commit})" if commit else _package("weft")


def say(line: str) -> None:
    """Progress, apart from results: on stderr."""
    print(line, file=sys.stderr, flush=True)
