"""What a large mesh costs one host: to learn it, to hold it, to look through it, and to follow one change of it.

Three hosts (`bench.statehost`, each in a namespace of its own) know 1,000, 10,000 and 100,000 endpoints elsewhere and
take turns. The one question: does the cost of one change follow the change, or the mesh? Beside every time stands the
limit: the kernel's own for the same messages, ready made, in batches through the same socket.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from bench.harness import Aim, Result, Table, median_ratio, percentile, say
from mesh.lab import Lab
from mesh.namespaces import LabError

COUNTS = (1_000, 10_000, 100_000)
ROUNDS = 12
CHANGES = 25
"""Of each host in a round."""
PROGRAMMED_S_MAX = 10.0
CHANGE_MS_MAX = 5.0
GROWTH_MAX = 1.5
"""One change at the largest count over one at the smallest; and one entry programmed at the largest over one at the
middle count."""


class _Child:
    """A host of one size, and its answers."""

    def __init__(self, lab: Lab, node: str, count: int) -> None:
        self.count = count
        self._process = subprocess.Popen(
            lab.argv(node, [sys.executable, "-m", "bench.statehost", str(count)]),
            env=lab.environment(node),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise LabError(f"the host of {self.count:,} endpoints died (its trouble stands above)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run() -> Result:
    """The curve."""
    result = Result(
        "state",
        "A large mesh in one host",
        "Endpoints with an IPv4 and an IPv6 address each, spread over 11 hosts whose signed pages arrive as gossip "
        "brings them, at a router and an engine with the real kernel (no event loop, no sleeve worker). *Learnt*: all "
        "pages taken, signatures included. *Programmed*: from the desired state to the report that the kernel holds "
        "it. *Compared*: what comes every minute, everything listed and looked through; its memory is the peak above "
        "what is held. *Adopted*: the same at a start. Processor time in brackets: the machine is shared.",
        ["endpoints", "kernel entries", "learnt s", "programmed s", "the limit s", "compared s", "adopted s", "held MB",
         "bytes an endpoint: mesh + kernel", "more while compared"],
    )  # fmt: skip
    figures = result.figures = {str(count): {} for count in COUNTS}
    with Lab(f"wb{os.getpid()}", hosts=len(COUNTS), containers=0) as lab:
        lab.build()
        for node, count in zip(lab.host_nodes(), COUNTS, strict=True):
            child = _Child(lab, node, count)  # another process: what it did is not in the memory of the next
            figures[str(count)]["limit"] = child.ask("limit")
            child.end()
        children = [_Child(lab, node, count) for node, count in zip(lab.host_nodes(), COUNTS, strict=True)]
        for child in children:
            filled = figures[str(child.count)]["filled"] = child.ask("fill")
            say(f"{child.count:,} endpoints programmed: {filled['programmed_s']:.2f} s")
        rounds: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
        for number in range(ROUNDS):
            for child in children if number % 2 else reversed(children):
                rounds[child.count].append(child.ask("change", CHANGES))
            say(f"changes: round {number + 1} of {ROUNDS}")
        for child in children:
            figures[str(child.count)]["rounds"] = rounds[child.count]
            figures[str(child.count)]["compared"] = child.ask("reconcile")
            child.end()
    for count in COUNTS:
        result.rows.append(_row(count, figures[str(count)]))
    _show_changes(result, rounds)
    _judge(result, rounds)
    return result


def _row(count: int, found: dict[str, Any]) -> list[str]:
    filled, compared = found["filled"], found["compared"]
    return [
        f"{count:,}",
        f"{filled['entries']:,}",
        f"{filled['taken_s'] + filled['decided_s']:.2f}",
        f"{filled['programmed_s']:.2f} ({filled['programmed_cpu_s']:.2f})",
        f"{found['limit']['programmed_s']:.2f}",
        f"{compared['reconciled_s']:.2f} ({compared['reconciled_cpu_s']:.2f})",
        f"{compared['adopted_s']:.2f}",
        f"{filled['rss_mb']:.0f}",
        f"{filled['control_bytes']:,.0f} + {filled['dataplane_bytes']:,.0f}",
        f"{compared['reconcile_bytes']:,.0f}",
    ]


def _show_changes(result: Result, rounds: dict[int, list[dict[str, Any]]]) -> None:
    rows = []
    for count in COUNTS:
        taken = _all(rounds[count], "change_s")
        limit = result.figures[str(count)]["limit"]["change_s"]
        rows.append(
            [
                f"{count:,}",
                *(f"{value * 1e3:.2f}" for value in (statistics.median(taken), percentile(taken, 99), max(taken))),
                f"{statistics.median(_all(rounds[count], 'change_cpu_s')) * 1e3:.2f}",
                f"{statistics.median(limit) * 1e3:.2f}",
                f"{_over_smallest(rounds, count, 'change_s'):.2f}",
            ]
        )
    note = (
        "An endpoint gets another MAC: from the arrival of its owner's page to the report that the kernel has the six "
        f"changes that follow. {ROUNDS} rounds of {CHANGES}, the sizes in turns; the last column is the median of the "
        "rounds' ratios."
    )
    columns = ["endpoints", "p50 ms", "p99 ms", "most", "processor ms", "the limit ms", f"over {COUNTS[0]:,}"]
    result.tables.append(Table("One change", columns, rows, note))


def _judge(result: Result, rounds: dict[int, list[dict[str, Any]]]) -> None:
    middle, last = (result.figures[str(count)] for count in COUNTS[1:])
    ratio = last["filled"]["programmed_cpu_s"] / middle["filled"]["programmed_cpu_s"] / (COUNTS[2] / COUNTS[1])
    result.aims = [
        Aim(f"{COUNTS[2]:,} endpoints programmed", last["filled"]["programmed_s"], PROGRAMMED_S_MAX, " s"),
        Aim(f"processor for an endpoint, {COUNTS[2]:,} over {COUNTS[1]:,}", ratio, GROWTH_MAX),
        Aim(
            f"one change at {COUNTS[2]:,}, p50",
            statistics.median(_all(rounds[COUNTS[2]], "change_s")) * 1e3,
            CHANGE_MS_MAX,
            " ms",
        ),
        Aim(f"one change, {COUNTS[2]:,} over {COUNTS[0]:,}", _over_smallest(rounds, COUNTS[2], "change_s"), GROWTH_MAX),
        Aim("changed by an adoption", sum(f["compared"]["changed_by_adoption"] for f in result.figures.values()), 0),
    ]


def _over_smallest(rounds: dict[int, list[dict[str, Any]]], count: int, what: str) -> float:
    medians = {each: [statistics.median(one[what]) for one in rounds[each]] for each in (COUNTS[0], count)}
    return median_ratio(medians[count], medians[COUNTS[0]])


def _all(rounds: list[dict[str, Any]], what: str) -> list[float]:
    return [value for one in rounds for value in one[what]]
