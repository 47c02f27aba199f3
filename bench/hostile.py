"""What becomes of an encrypted stream while somebody pours hostile datagrams over the sleeve's port?

Two hosts with a password on the *wire*, and an attacker on the same switch that hears everything and has no key. It
sends from its own address, and from the peer's address and port. Knows labs and what an attacker can make
(`bench/forgery.py`). The one idea needed to read it: fifty thousand datagrams a second cost something wherever they go,
so the stream is measured beside the same datagrams to a port where nobody listens, and the ratio counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import attack
from bench.attack import Pack, read_packs, write_packs
from bench.contestants import WeftSleeve
from bench.forgery import Forger, hellos_of, newest_index, records_of
from bench.harness import Aim, Result, say
from bench.processes import Process
from bench.traffic import ping
from bench.underlay import CLIENT, SERVER, WIRE, World
from mesh.namespaces import LabError, ip_batch, wait_until

PORT = 6783
CLOSED_PORT = 6781
RATE = 50_000
ROUNDS, SECONDS = 2, 1
GOAL = 0.7
MEMORY_MAX_MB = 60.0
PIECES_LOSS = 2.0
"""Percent that the switch loses while pieces are captured: without loss there are none."""
ATTACKER = "x"
ATTACKER_ADDRESS = "10.9.0.99"
ATTACKER_PORT = 40_000
WORKER = "dataplane.sleeve"
KINDS = ("random bytes", "truncated", "replayed", "reordered", "bit-flipped", "hellos", "half records")
OWN, SPOOFED = "own address", "spoofed"
END_TIMEOUT_S = 10.0
SETTLE_S = 0.3
"""From the beginning of a flood to the beginning of the measurement."""
DROPS = frozenset(
    {
        "bad-record", "bad-seal", "burst-broken", "burst-cut", "burst-long", "datagram-empty", "hello-flood",
        "hellos-busy", "bad-code", "bad-handshake", "piece-elsewhere", "record-short", "records-incomplete", "replayed",
        "replayed-hello", "repeated-hello", "unasked", "unknown-peer", "unknown-session", "unknown-type",
        "wrong-secret",
    }
)  # fmt: skip
"""The counters of what was not taken."""


class Siege:
    """The world with an attacker in it. As a context manager it leaves nothing behind."""

    def __init__(self, name: str) -> None:
        self.world = World(name, WIRE)
        self.lab = self.world.lab

    def __enter__(self) -> Siege:
        self.world.__enter__()
        try:
            self._plug_attacker()
            contestant = WeftSleeve()
            contestant.build(self.world)
            contestant.wait(self.world)
            self.world.serve()
            self._hellos = self._hear_hellos()
        except BaseException:
            self.world.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.world.__exit__(kind, error, at)

    def _plug_attacker(self) -> None:
        lab = self.lab
        lab.add_namespaces([ATTACKER])
        ip_batch(
            [
                f"link add name {ATTACKER} type veth peer name eth0 netns {lab.namespace(ATTACKER)}",
                f"link set dev {ATTACKER} master hub up",
            ],
            lab.namespace("hub"),
        )
        ip_batch(["link set dev eth0 up", f"address add {ATTACKER_ADDRESS}/24 dev eth0"], lab.namespace(ATTACKER))
        self.world.cut_packets("hub", device=ATTACKER, gro="off")
        self.world.cut_packets(ATTACKER, device="eth0", gro="on")

    # Listening

    @contextlib.contextmanager
    def hearing(self) -> Iterator[list[Pack]]:
        """What h1 sends to h2's port, in the list when it ends."""
        heard: list[Pack] = []
        path = self.lab.directory / "heard"
        process = self._start("hub", ["hear", str(path), "h1", str(PORT)])
        try:
            yield heard
        finally:
            _end(process)
        heard += read_packs(path)

    def _hear_hellos(self) -> list[bytes]:
        """A new worker on h1 knows no session, and says hello."""
        hellos: list[bytes] = []

        def answered() -> bool:
            return not ping(self.lab, CLIENT, self.lab.address(SERVER)).lost

        old = self.worker("h1").pid
        with self.hearing() as heard:
            os.kill(old, 9)
            wait_until(lambda: self._has_other_worker("h1", old), 10, "the killed worker was replaced")
            wait_until(answered, 15, "the containers heard each other again")
        hellos += hellos_of(heard)
        if not hellos:
            raise LabError("the new worker of h1 said no hello")
        return hellos

    def _has_other_worker(self, host: str, old: int) -> bool:
        return any(each.pid != old for each in self._workers(host))

    def forger(self, rng: random.Random) -> Forger:
        """From records of the session in use, bursts and pieces."""
        with self.hearing() as heard:
            self.goodput(1)
            self.world.lose(PIECES_LOSS)
        found = list(heard)
        with self.hearing() as heard:
            self.goodput(1)
            self.world.lose(0)
        index = newest_index(heard)
        return Forger([*records_of(found, index), *records_of(heard, index)], self._hellos, rng)

    # Attacking

    @contextlib.contextmanager
    def flood(self, packs: list[Pack], *, port: int = PORT, source: str = OWN) -> Iterator[dict[str, float]]:
        """From its beginning to its end; what was sent, a second, is in the dictionary then."""
        path = self.lab.directory / "packs"
        write_packs(path, packs)
        address = (ATTACKER_ADDRESS, ATTACKER_PORT) if source == OWN else (self.lab.underlay(1), PORT)
        before, began_s = self._crossed(), time.monotonic()
        process = self._start(
            ATTACKER, ["send", str(path), self.lab.underlay(2), str(port), str(RATE), address[0], str(address[1])]
        )
        told: dict[str, float] = {}
        try:
            yield told
        finally:
            facts = _end(process)
        told["sent_pps"] = facts["sent"] / facts["seconds"]
        told["crossed"] = self._crossed() - before
        told["sent"] = facts["sent"]
        told["seconds"] = time.monotonic() - began_s

    def _start(self, node: str, arguments: list[str]) -> subprocess.Popen[str]:
        script = str(Path(attack.__file__).resolve())
        process = subprocess.Popen(
            self.lab.argv(node, [sys.executable, "-S", "-E", script, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise LabError(f"the attacker did not start: {' '.join(arguments)}")
        return process

    def _crossed(self) -> int:
        """Datagrams that the switch took from the attacker."""
        for line in self.lab.run("hub", ["cat", "/proc/net/dev"]).stdout.splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == ATTACKER:
                return int(rest.split()[1])
        raise LabError("the attacker is not plugged in")

    # Watching

    def goodput(self, seconds: int) -> float:
        return self.world.serve().measure(CLIENT, self.lab.address(SERVER), seconds)

    def _workers(self, host: str) -> list[Process]:
        found = [each for each in self.world.processes() if each.what == WORKER]
        inside = set(self.lab.run(host, ["ip", "netns", "pids", self.lab.namespace(host)]).stdout.split())
        return [each for each in found if str(each.pid) in inside]

    def worker(self, host: str) -> Process:
        found = self._workers(host)
        if not found:
            raise LabError(f"{host} has no sleeve worker")
        return found[0]

    def counters(self, host: str = "h2") -> dict[str, int]:
        """What the worker says it did and dropped."""
        time.sleep(0.6)  # it tells the daemon twice a second
        report = self.lab.weft_json(host, "report")
        return {name: int(count) for name, count in report["counters"]["sleeve"].items() if isinstance(count, int)}


def _end(process: subprocess.Popen[str]) -> dict[str, float]:
    said, _ = process.communicate("", timeout=END_TIMEOUT_S)
    if process.returncode != 0:
        raise LabError("the attacker failed")
    facts: dict[str, float] = json.loads(said)
    return facts


def risen(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Which counters rose, and by how much, most first."""
    rises = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    return dict(sorted(rises.items(), key=lambda item: -item[1]))


def run() -> Result:
    """Every kind of hostile datagram from both addresses, beside the same to a closed port."""
    result = Result(
        "hostile",
        f"An encrypted stream while {RATE:,} hostile datagrams a second arrive",
        f"wire; TCP, one stream, {SECONDS} s a run, {ROUNDS} runs of each; medians. Harmless "
        "are the same datagrams to a UDP port where nobody listens. The attacker hears everything and has no key.",
        (
            "datagrams",
            "from",
            "Mbit/s, harmless",
            "Mbit/s, hostile",
            "ratio",
            "sent a second, least",
            "dropped, mostly as",
        ),
    )
    with Siege(f"wb{os.getpid()}hostile") as siege:
        before_mb = siege.worker("h2").rss_mb
        peak_mb = before_mb
        for kind in KINDS:
            # Captured anew for each kind: what was captured under keys that have rolled is another, easier thing.
            packs = siege.forger(random.Random(1)).kinds()[kind]()
            for source in (OWN, SPOOFED):
                row = _besiege(siege, packs, source)
                say(f"[hostile] {kind}, {source}: {row['ratio']:.2f} of {row['harmless']:,.0f} Mbit/s")
                drops = ", ".join(f"{name} {count:,}" for name, count in list(row["risen"].items())[:3])
                result.rows.append(
                    (kind, source, f"{row['harmless']:,.0f}", f"{row['hostile']:,.0f}", f"{row['ratio']:.2f}",
                     f"{row['sent_pps']:,.0f}", drops or "-")
                )  # fmt: skip
                result.figures[f"{kind}, {source}"] = row
                result.aims.append(
                    Aim(f"{kind}, {source}: goodput beside harmless", row["ratio"], GOAL, "", at_least=True)
                )
                peak_mb = max(peak_mb, siege.worker("h2").rss_mb)
        result.aims.append(Aim("memory of the worker under attack", peak_mb, MEMORY_MAX_MB, " MB"))
        result.figures["worker_rss_mb"] = {"before": before_mb, "most": peak_mb}
    return result


def _besiege(siege: Siege, packs: list[Pack], source: str) -> dict[str, Any]:
    """The same datagrams to the sleeve's port and to a closed one, in turn."""
    harmless: list[float] = []
    hostile: list[float] = []
    sent: list[float] = []
    before = siege.counters()
    # Harmless first: where a peer's address is spoofed, the sender goes on sending otherwise for ten seconds.
    for port, into in ((CLOSED_PORT, harmless), (PORT, hostile)):
        for _ in range(ROUNDS):
            with siege.flood(packs, port=port, source=source) as told:
                time.sleep(SETTLE_S)
                into.append(siege.goodput(SECONDS))
            sent.append(told["sent_pps"])
    calm, hard = statistics.median(harmless), statistics.median(hostile)
    return {
        "harmless": calm,
        "hostile": hard,
        "ratio": hard / calm,
        "sent_pps": min(sent),
        "risen": {name: count for name, count in risen(before, siege.counters()).items() if name in DROPS},
        "raw": {"harmless": harmless, "hostile": hostile},
    }
