"""What it costs to give an address: alone, fifty at once, and with thousands given already; beside the CNI plugin.

The one question: does an address cost what it is, or does it cost what is given already? The other one is `host-local`,
which comes with CNI: one process for each request, one file for each address, and a lock around all of them. It takes
turns with us on the same disk. How we give an address is said in `_giver` and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from bench.harness import Aim, Result, interleave, percentile, say
from gossip.names import PeerName, format_name
from mesh.ipam.member import Member
from mesh.ipam.service import Ipam, Mesh, boottime
from mesh.ipam.space import Space
from mesh.ipam.surroundings import Settings, Surroundings
from mesh.ipam.wants import FromSubnet
from mesh.journal import Journal
from mesh.namespaces import LabError

PLUGIN = Path("/usr/lib/cni/host-local")
PACKAGE = "containernetworking-plugins"
COUNTS = (1_000, 10_000, 100_000)
PLUGIN_COUNT_MAX = 10_000
"""With more it takes longer than anybody waits for."""
ROUNDS = 4
AT_ONCE = 50
ALONE, TOGETHER = 20, 100
"""Requests of each kind in a round to the plugin; we take so many more that it lasts long enough to be timed."""
OURS_ALONE, OURS_TOGETHER = 200, 10_000
PER_S_MIN = 5_000.0
GROWTH_MAX = 1.5
SUBNET = "10.96.0.0/12"
FIRST = IPv4Address("10.96.0.2")
FOLDER = "/var/tmp"
"""On a disk, where /tmp may be memory."""

Figures = dict[str, Any]
Ask = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def _giver(directory: str, given: int) -> AsyncIterator[tuple[Ask, Ask]]:
    """Our side, with `given` addresses given: how to give one to a container, and how to take it back. One host alone,
    which is its own voter."""
    journal = Journal.open(directory, "ipam")
    settings = Settings(Space(IPv4Network(SUBNET), None), expected=1)
    around = Surroundings(PeerName(b"bench..."), "bench", 1, b"boot")
    member = Member(settings, around, journal.contents, Random(1), boottime())
    ipam = Ipam(member, journal, Mesh(lambda page, body: None, frozenset, format_name, lambda: 1))
    ipam.start()

    async def give(container: str) -> None:
        await ipam.obtain(container, (FromSubnet(None),))

    waiting = iter(range(given))

    async def fill() -> None:
        for number in waiting:
            await give(f"given-{number}")

    await asyncio.gather(*[fill() for _ in range(AT_ONCE)])
    try:
        yield give, ipam.release_all
    finally:
        await ipam.close()


class _Ours:
    """The giver on a loop of its own, as in the daemon."""

    def __init__(self, directory: Path, given: int) -> None:
        directory.mkdir(mode=0o700)
        self._loop = uvloop.new_event_loop()
        self._context = _giver(str(directory), given)
        self._give, self._take_back = self._loop.run_until_complete(self._context.__aenter__())

    def measure(self) -> Figures:
        return self._loop.run_until_complete(self._measure())

    async def _measure(self) -> Figures:
        alone = [f"alone-{number}" for number in range(OURS_ALONE)]
        together = [f"together-{number}" for number in range(OURS_TOGETHER)]
        alone_ms = []
        for container in alone:
            start = time.perf_counter()
            await self._give(container)
            alone_ms.append((time.perf_counter() - start) * 1e3)
        cpu, start = time.process_time(), time.perf_counter()
        await self._each(self._give, together)
        took_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        await self._each(self._take_back, alone + together)
        return {"alone_ms": alone_ms, "per_s": len(together) / took_s, "cpu_ms": cpu_s / len(together) * 1e3}

    async def _each(self, ask: Ask, containers: list[str]) -> None:
        waiting = iter(containers)

        async def one() -> None:
            for container in waiting:
                await ask(container)

        await asyncio.gather(*[one() for _ in range(AT_ONCE)])

    def close(self) -> None:
        self._loop.run_until_complete(self._context.__aexit__(None, None, None))
        self._loop.close()


@dataclass(slots=True)
class _HostLocal:
    """The plugin, and the files it would have after `given` requests."""

    directory: Path
    given: int

    def fill(self) -> None:
        store = self.directory / "bench"
        store.mkdir(parents=True)
        for number in range(self.given):
            (store / str(FIRST + number)).write_text(f"given-{number}\r\neth0", newline="")
        self._rewind()

    def measure(self) -> Figures:
        alone_ms = [self._timed("ADD", f"alone-{number}") for number in range(ALONE)]
        start = time.perf_counter()
        before = os.times()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda number: self._timed("ADD", f"together-{number}"), range(TOGETHER)))
        after, took_s = os.times(), time.perf_counter() - start
        cpu_s = sum(after[2:4]) - sum(before[2:4])  # of its processes, without us who start them
        nothing_ms = [self._timed("VERSION", "nobody") for _ in range(ALONE)]
        self._forget()
        return {
            "alone_ms": alone_ms,
            "per_s": TOGETHER / took_s,
            "cpu_ms": cpu_s / TOGETHER * 1e3,
            "nothing_ms": nothing_ms,
        }

    def _timed(self, command: str, container: str) -> float:
        """One request, in milliseconds."""
        ipam = {"type": "host-local", "dataDir": str(self.directory), "ranges": [[{"subnet": SUBNET}]]}
        start = time.perf_counter()
        done = subprocess.run(
            [PLUGIN],
            input=json.dumps({"cniVersion": "0.4.0", "name": "bench", "ipam": ipam}).encode(),
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": "/run/netns/bench",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(PLUGIN.parent),
            },
            capture_output=True,
            check=False,
        )
        took_ms = (time.perf_counter() - start) * 1e3
        if done.returncode:
            raise LabError(f"{PLUGIN} refused ({done.stdout.decode().strip()})")
        return took_ms

    def _forget(self) -> None:
        """What a round was given: the next one begins where this one began."""
        names = os.listdir(self.directory / "bench")
        ours = [name for name in names if name[0].isdigit() and int(IPv4Address(name)) >= int(FIRST) + self.given]
        if len(ours) != ALONE + TOGETHER:
            raise LabError(f"{PLUGIN} gave {len(ours)} addresses to {ALONE + TOGETHER} requests")
        for name in ours:
            (self.directory / "bench" / name).unlink()
        self._rewind()

    def _rewind(self) -> None:
        (self.directory / "bench" / "last_reserved_ip.0").write_text(str(FIRST + self.given - 1))


def run() -> Result:
    if not PLUGIN.exists():
        raise LabError(f"{PLUGIN} is missing: apt-get install {PACKAGE}, or make bench, which does that")
    result = Result(
        "ipam",
        "Giving addresses",
        f"One disk, {ROUNDS} rounds in turns, medians; each round ends as it began. *Alone*: one request after the "
        f"other, from the question to the answer. *At once*: {AT_ONCE} askers who ask again when they are answered. "
        "Ours is asked inside the process, and an answer means that it is on the disk; host-local is a process for "
        "each request, as CNI wants it, and leaves its files to the "
        "kernel to be written some time. *A process*: host-local asked for its version only, which is what of its time "
        "goes to starting it.",
        ["given already", "who", "alone ms p50", "p99", "of that a process", "a second, at once", "processor ms each"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="weft-bench-", dir=FOLDER) as folder:
        for count in COUNTS:
            found = _at(Path(folder) / str(count), count)
            result.figures[str(count)] = found
            result.rows += [_row(count, who, rounds) for who, rounds in found.items()]
    _judge(result)
    return result


def _at(folder: Path, count: int) -> dict[str, list[Figures]]:
    folder.mkdir()
    ours = _Ours(folder / "ours", count)
    shapes = {"weft": ours.measure}
    if count <= PLUGIN_COUNT_MAX:
        plugin = _HostLocal(folder / "host-local", count)
        plugin.fill()
        shapes["host-local"] = plugin.measure
    say(f"{count:,} addresses are given")
    try:
        return interleave(shapes, ROUNDS, say)
    finally:
        ours.close()


def _row(count: int, who: str, rounds: list[Figures]) -> list[str]:
    alone = [value for one in rounds for value in one["alone_ms"]]
    nothing = [value for one in rounds for value in one.get("nothing_ms", [])]
    return [
        f"{count:,}",
        who,
        f"{statistics.median(alone):.2f}",
        f"{percentile(alone, 99):.2f}",
        f"{statistics.median(nothing):.2f}" if nothing else "none",
        f"{_median(rounds, 'per_s'):,.0f}",
        f"{_median(rounds, 'cpu_ms'):.3f}",
    ]


def _judge(result: Result) -> None:
    first, last = (result.figures[str(count)]["weft"] for count in (COUNTS[0], COUNTS[-1]))
    both = result.figures[str(PLUGIN_COUNT_MAX)]
    times = [us["per_s"] / them["per_s"] for us, them in zip(both["weft"], both["host-local"], strict=True)]
    growth = _median(last, "cpu_ms") / _median(first, "cpu_ms")
    result.aims = [
        Aim(f"a second, {AT_ONCE} at once, {COUNTS[-1]:,} given", _median(last, "per_s"), PER_S_MIN, at_least=True),
        Aim(f"processor for one, {COUNTS[-1]:,} given over {COUNTS[0]:,}", growth, GROWTH_MAX),
        Aim(f"a second over host-local, {PLUGIN_COUNT_MAX:,} given", statistics.median(times), 1, " x", at_least=True),
    ]


def _median(rounds: list[Figures], what: str) -> float:
    return statistics.median(float(one[what]) for one in rounds)
