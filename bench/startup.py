"""What the command costs its users: `weft --help` and `weft status` beside a bare interpreter."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.harness import Result, interleave, percentile, say
from mesh.lab import Lab

ROUNDS = 30


def run() -> Result:
    """One host with a daemon; each command once a round."""
    result = Result(
        "startup",
        "Start-up of the command",
        f"{ROUNDS} interleaved rounds of whole processes, from fork to exit; `status` asks a daemon without peers.",
        ["command", "median ms", "p95 ms", "over a bare interpreter, ms"],
    )
    script = Path(sys.executable).parent / "weft"
    weft = [str(script)] if script.exists() else [sys.executable, "-m", "mesh"]
    with Lab(f"wb{os.getpid()}", hosts=1, containers=0) as lab:
        lab.build()
        lab.launch_all()
        environment = lab.environment("h1")
        shapes: dict[str, Callable[[], float]] = {
            "python -c pass": partial(_time_ms, [sys.executable, "-c", "pass"], environment),
            "weft --help": partial(_time_ms, [*weft, "--help"], environment),
            "weft version": partial(_time_ms, [*weft, "version"], environment),
            "weft status": partial(_time_ms, [*weft, "status"], environment),
        }
        taken = interleave(shapes, ROUNDS, lambda line: None)
    say(f"{ROUNDS} rounds done")
    bare = statistics.median(taken["python -c pass"])
    for name, values in taken.items():
        middle = statistics.median(values)
        result.rows.append([name, f"{middle:.1f}", f"{percentile(values, 95):.1f}", f"{middle - bare:.1f}"])
        result.figures[name] = values
    return result


def _time_ms(argv: Sequence[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=True)
    return (time.perf_counter() - start) * 1e3
