"""What processes cost: processor time and memory, summed over all of an overlay, and what the rest of the machine took.

Reads /proc and knows nothing of overlays. The one idea needed to read it: on a shared machine a figure is only as good
as the quiet it was taken in, so the share that strangers took of the processors is measured beside every figure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from mesh.namespaces import processes_in

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)
"""Of the first line of /proc/stat: user, nice, system, irq and softirq; neither idle nor stolen."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of an overlay, as it is now."""

    pid: int
    what: str
    cpu_s: float
    rss_mb: float
    peak_rss_mb: float


def overlay_processes(namespaces: Sequence[str]) -> list[Process]:
    """All processes that live in these namespaces."""
    found = []
    for pid in sorted(processes_in(namespaces)):
        try:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
            )
            found.append(
                Process(pid, _what(pid), _times(pid)[0], _megabytes(status, "VmRSS"), _megabytes(status, "VmHWM"))
            )
        except OSError:  # it has just ended
            continue
    return found


def _megabytes(status: dict[str, str], field: str) -> float:
    return int(status.get(field, "0 kB").split()[0]) * 1024 / 1e6


def _what(pid: int) -> str:
    """The program; for Python the module, because `python` says nothing."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "-m" in words:
        return words[words.index("-m") + 1]
    return os.path.basename(words[0]) or "?"


def _times(pid: int) -> tuple[float, float]:
    """Seconds on a processor: its own, and those of its children that have ended."""
    # The name may hold spaces and brackets, so what follows the last bracket is counted.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own * _TICK_S, children * _TICK_S


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time between two moments."""

    overlay_s: float
    machine_s: float
    """All busy time of all processors: the sender, the receiver and the kernel included."""
    foreign: float
    """The share of all processors that others took."""


class Meter:
    """From its making to `read`."""

    def __init__(self, overlay: Iterable[int], ours: Iterable[str]) -> None:
        """`overlay`: the pids to charge. `ours`: namespaces whose processes are no strangers."""
        self._overlay = sorted(overlay)
        self._ours = list(ours)
        self._start_s = monotonic()
        self._overlay_start_s = self._overlay_s()
        self._strangers_start = self._strangers()
        self._machine_start_s = _machine_s()

    def read(self) -> Usage:
        machine_s = _machine_s() - self._machine_start_s
        overlay_s = self._overlay_s() - self._overlay_start_s
        strangers = self._strangers()
        passed_s = monotonic() - self._start_s
        # Whoever ended meanwhile is in the books of its parent.
        foreign_s = sum(strangers.values()) - sum(self._strangers_start.values())
        return Usage(overlay_s, machine_s, max(0.0, foreign_s) / passed_s / (os.cpu_count() or 1))

    def _overlay_s(self) -> float:
        total = 0.0
        for pid in self._overlay:
            try:
                total += _times(pid)[0]
            except OSError as error:
                raise ProcessLookupError(f"process {pid} of the overlay ended during a measurement") from error
        return total

    def _strangers(self) -> dict[int, float]:
        known = {os.getpid(), *processes_in(self._ours)}
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) not in known:
                try:
                    found[int(entry)] = sum(_times(int(entry)))
                except OSError:
                    continue
        return found


def _machine_s() -> float:
    with open("/proc/stat") as file:
        fields = file.readline().split()[1:]
    return sum(int(fields[index]) for index in _BUSY) * _TICK_S
