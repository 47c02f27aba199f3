"""How long the kernel takes to hold thousands of remote endpoints, and whether a second look finds anything to do.

The data plane alone, in a fresh namespace: `Engine` with the real kernel, no daemon. The part that touches the kernel
runs as a child process inside the namespace (`python -m bench.endpoints COUNT`) and answers in JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.harness import Aim, Result, say
from mesh.lab import Lab
from mesh.namespaces import LabError

if TYPE_CHECKING:  # only the child process pays for them
    from dataplane.desired import Desired
    from dataplane.engine import Report

COUNTS = (100, 1_000, 3_000, 10_000)
ROUNDS = 3
PEERS = 50
GROUP = 90
"""About as many as a page of gossip holds."""
PROGRAMMED_S_MAX = 1.0
REPORT_TIMEOUT_S = 120.0


def run() -> Result:
    """The curve over the number of endpoints, each count in a namespace of its own."""
    result = Result(
        "endpoints",
        "Remote endpoints into the kernel",
        f"Endpoints with an IPv4 and an IPv6 address each, spread over {PEERS} hosts: two FDB entries and two "
        f"neighbours apiece. From `publish` to the report that the kernel holds them, median of {ROUNDS} rounds in one "
        "namespace; then the same withdrawn; then a new engine finds what is there and compares all of it.",
        ["endpoints", "kernel entries", "programmed s", "withdrawn s", "compared anew s", "changed by that"],
    )
    for count in COUNTS:
        with Lab(f"wb{os.getpid()}", hosts=1, containers=0) as lab:
            lab.build()
            done = lab.run("h1", [sys.executable, "-m", "bench.endpoints", str(count)], timeout_s=600)
        figures = json.loads(done.stdout)
        result.figures[str(count)] = figures
        programmed_s = statistics.median(figures["programmed_s"])
        result.rows.append(
            [
                f"{count:,}",
                f"{figures['entries']:,}",
                f"{programmed_s:.3f}",
                f"{statistics.median(figures['withdrawn_s']):.3f}",
                f"{figures['compared_s']:.3f}",
                str(figures["applied_by_second_look"]),
            ]
        )
        say(f"{count:,} endpoints: {programmed_s:.3f} s")
    last = result.figures[str(COUNTS[-1])]
    result.aims = [
        Aim(f"{COUNTS[-1]:,} endpoints programmed", statistics.median(last["programmed_s"]), PROGRAMMED_S_MAX, " s"),
        Aim("changed by the next reconcile", last["applied_by_second_look"], 0),
    ]
    return result


class Programmer:
    """An engine on the real kernel, and a publish that waits for its report."""

    def __init__(self) -> None:
        from dataplane.engine import Engine
        from dataplane.linux import open_kernel

        self._arrived = threading.Condition()
        self._reports: list[Report] = []
        self._later_s = 0.0
        self._kernel = open_kernel()
        self._engine = Engine(self._kernel, self._on_report, clock=lambda: time.monotonic() + self._later_s)

    def __enter__(self) -> Programmer:
        self._engine.start()
        return self

    def end_thread(self) -> None:
        self._engine.stop()

    def reconcile(self) -> float:
        """Seconds of the turn in which everything is listed because a minute has passed. After `end_thread`."""
        from dataplane.engine import FULL_INTERVAL_S

        self._later_s += FULL_INTERVAL_S * 2
        start = time.perf_counter()
        self._engine.turn(self._kernel.wait(0.0))
        return time.perf_counter() - start

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.stop()
        self._kernel.close()

    def _on_report(self, report: Report) -> None:
        with self._arrived:
            self._reports.append(report)
            self._arrived.notify()

    def publish(self, desired: Desired) -> tuple[float, Report]:
        """Seconds until the report, and the report."""
        start = time.perf_counter()
        generation = self._engine.publish(desired)
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._last_generation() == generation, REPORT_TIMEOUT_S):
                raise LabError(f"no report of generation {generation} within {REPORT_TIMEOUT_S:g} s")
            report = self._reports[-1]
        took_s = time.perf_counter() - start
        if report.faults:
            raise LabError(f"the kernel refused: {report.faults[0]}")
        return took_s, report

    def _last_generation(self) -> int:
        return self._reports[-1].generation if self._reports else 0


def _inside(count: int) -> dict[str, Any]:
    """In the namespace: publish, wait, withdraw, look again."""
    full = _desired(count)
    empty = replace(full, groups=())
    programmed_s, withdrawn_s = [], []
    with Programmer() as programmer:
        programmer.publish(empty)
        before = entries()
        for _ in range(ROUNDS):
            programmed_s.append(programmer.publish(full)[0])
            held = entries() - before
            if held != 4 * count:
                raise LabError(f"the kernel holds {held} entries for {count} endpoints, and should hold {4 * count}")
            withdrawn_s.append(programmer.publish(empty)[0])
            if entries() != before:
                raise LabError(f"{entries() - before} entries stayed after all endpoints were withdrawn")
        programmer.publish(full)
    with Programmer() as programmer:
        compared_s, report = programmer.publish(full)
    return {
        "entries": held,
        "programmed_s": programmed_s,
        "withdrawn_s": withdrawn_s,
        "compared_s": compared_s,
        "applied_by_second_look": report.counters.applied,
    }


def _desired(count: int) -> Desired:
    from dataplane.desired import Desired, RemoteEndpoint, RemotePeer, Segment
    from gossip.names import PeerName

    underlay = [IPv4Address("10.9.1.0") + number for number in range(PEERS)]
    peers = tuple(
        RemotePeer(PeerName(bytes([2, 0, 0, 0, 0, 0, 0, number])), bytes([2, 1, 0, 0, 0, number]), underlay[number])
        for number in range(PEERS)
    )
    endpoints = [
        RemoteEndpoint(
            bytes([2, 2]) + number.to_bytes(4, "big"),
            (IPv4Address("10.32.0.0") + number + 1, IPv6Address("fd00:32::") + number + 1),
            underlay[number % PEERS],
        )
        for number in range(count)
    ]
    groups = tuple(tuple(endpoints[first : first + GROUP]) for first in range(0, count, GROUP))
    return Desired(Segment("weft", bytes([2, 1, 0, 0, 1, 0]), 1450, 7, 6784), peers=peers, groups=groups)


def entries() -> int:
    """What the kernel itself says it holds, by other tools than ours."""
    commands = (
        ["bridge", "fdb", "show", "dev", "weft-vx"],
        ["ip", "-4", "neighbour", "show", "dev", "weft"],
        ["ip", "-6", "neighbour", "show", "dev", "weft"],
    )
    shown = [subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout for argv in commands]
    return sum(len(lines.splitlines()) for lines in shown)


if __name__ == "__main__":
    print(json.dumps(_inside(int(sys.argv[1]))))
