"""What a daemon costs when nothing happens: processor time and memory of all its processes in a mesh of three."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.harness import Aim, Result, say
from mesh.lab import Lab
from mesh.namespaces import processes_in

SETTLE_S = 5.0
WATCH_S = 30.0
CPU_PERCENT_MAX = 0.5
RSS_MB_MAX = 60.0


def run() -> Result:
    """Three hosts with two containers each, silent; everything that runs in a host's namespace is counted."""
    result = Result(
        "idle",
        "An idle daemon in a mesh of three",
        f"Three hosts, two containers each, no traffic. After {SETTLE_S:g} s of rest, {WATCH_S:g} s are watched: "
        "processor time of every thread from schedstat; then resident and proportional memory of all processes.",
        ["host", "processes", "CPU, % of a core", "RSS MB", "PSS MB"],
    )
    with Lab(f"wb{os.getpid()}", hosts=3, containers=2) as lab:
        lab.up()
        time.sleep(SETTLE_S)
        say(f"watching for {WATCH_S:g} s")
        pids = {node: processes_in([lab.namespace(node)]) for node in lab.host_nodes()}
        start = time.monotonic()
        before = {node: sum(map(_cpu_s, pids[node])) for node in pids}
        time.sleep(WATCH_S)
        passed_s = time.monotonic() - start
        for node, running in pids.items():
            percent = (sum(map(_cpu_s, running)) - before[node]) / passed_s * 100
            rss_mb = sum(_memory_mb(pid, "smaps_rollup", "Rss:") for pid in running)
            pss_mb = sum(_memory_mb(pid, "smaps_rollup", "Pss:") for pid in running)
            result.figures[node] = {
                "cpu_percent": percent,
                "rss_mb": rss_mb,
                "pss_mb": pss_mb,
                "processes": len(running),
            }
            result.rows.append([node, str(len(running)), f"{percent:.3f}", f"{rss_mb:.1f}", f"{pss_mb:.1f}"])
    result.aims = [
        Aim(
            "busiest daemon",
            max(row["cpu_percent"] for row in result.figures.values()),
            CPU_PERCENT_MAX,
            " % of a core",
        ),
        Aim(
            "largest daemon, all its processes",
            max(row["rss_mb"] for row in result.figures.values()),
            RSS_MB_MAX,
            " MB",
        ),
    ]
    return result


def _cpu_s(pid: int) -> float:
    """Seconds that a process has spent on a processor, all its threads together."""
    spent_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent_ns += int((task / "schedstat").read_text().split()[0])
    return spent_ns / 1e9


def _memory_mb(pid: int, file: str, field: str) -> float:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
