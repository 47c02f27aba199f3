"""DNS: how many questions a second are answered, and how soon, beside dnsmasq with the same names.

dnsperf asks from a container of this host, so every question crosses the bridge as in real life; dnsmasq serves in a
network namespace at the end of a wire of its own. The mesh gossips all the while: another host moves its endpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Aim, Result, say
from mesh.dns.service import DOCUMENT
from mesh.lab import Lab
from mesh.namespaces import LabError, ip_batch, wait_until
from mesh.store import Store

NAMES = 10_000
SERVER = "169.254.6.53"
RATE = 5_000
P99_MS_MAX = 2.0
PER_SECOND_MIN = 15_000
SECONDS = 5
ROUNDS = 3
STEPS = (5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000, 80_000, 100_000, 120_000)
LOSS_MAX = 0.0
"""Of a rate that counts as answered."""
DNSMASQ = "10.77.0.1"


def run() -> Result:
    """Both servers, in turns."""
    result = Result(
        "dns",
        f"DNS with {NAMES:,} names",
        f"dnsperf in a container (8 clients, one thread) asks for A records of {NAMES:,} names in random order over "
        "UDP with EDNS. *Without loss*: the highest of fixed rates at which every question was answered, and how many "
        "were asked for then. *p99* and *median* at 5,000 a second, of each question. Another host attaches and "
        f"detaches all the time. dnsmasq: the same names by --addn-hosts. Median of {ROUNDS} rounds in turns.",
        ["server", "without loss, a second", f"median ms at {RATE:,}", f"p99 ms at {RATE:,}", "lost"],
    )
    with Lab(f"wd{os.getpid()}", hosts=2, containers=2) as lab:
        lab.build()
        _keep_names(lab)
        lab.launch_all()
        lab.weft("h2", ["connect", lab.underlay(1)])
        for node in lab.container_nodes():
            lab.attach(node)
        queries = lab.directory / "queries"
        _write_queries(queries)
        with _dnsmasq(lab), _gossip(lab):
            servers = {"weft": SERVER, "dnsmasq": DNSMASQ}
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
            for number in range(ROUNDS):
                for name in sorted(servers, reverse=bool(number % 2)):
                    found[name].append(_measure(lab, servers[name], queries))
                    say(f"round {number + 1} of {ROUNDS}: {name} {found[name][-1]['without_loss']:,.0f} a second")
    for name in ("weft", "dnsmasq"):
        medians = {key: statistics.median(each[key] for each in found[name]) for key in found[name][0]}
        result.rows.append(
            [name, f"{medians['without_loss']:,.0f}", f"{medians['median_ms']:.2f}", f"{medians['p99_ms']:.2f}",
             f"{medians['lost']:.0f}"]
        )  # fmt: skip
        result.figures[name] = {"rounds": found[name], "medians": medians}
    ours = result.figures["weft"]["medians"]
    result.aims = [
        Aim(f"p99 at {RATE:,} a second", ours["p99_ms"], P99_MS_MAX, " ms"),
        Aim("questions a second without loss", ours["without_loss"], PER_SECOND_MIN, at_least=True),
    ]
    return result


def _names() -> Iterator[tuple[str, str]]:
    for number in range(NAMES):
        yield f"n{number}", f"10.40.{number // 250}.{number % 250 + 1}"


def _keep_names(lab: Lab) -> None:
    """On the disk of h1, for its daemon to find: ten thousand commands would take minutes."""
    with Store(str(lab.state_dir("h1"))) as store:
        store.write(DOCUMENT, {"names": [[name, [address]] for name, address in _names()]})


def _write_queries(path: Path) -> None:
    names = sorted(_names(), key=lambda pair: hash(pair[1]) & 0xFFFF)
    path.write_text("".join(f"{name}.weft.local A\n" for name, _ in names))


@contextlib.contextmanager
def _dnsmasq(lab: Lab) -> Iterator[None]:
    """In a namespace of its own, at the end of a veth from the container that asks."""
    lab.add_namespaces(["dnsmasq"])
    hosts = lab.directory / "hosts"
    hosts.write_text("".join(f"{address} {name}.weft.local\n" for name, address in _names()))
    here, there = lab.namespace("c1.1"), lab.namespace("dnsmasq")
    ip_batch([f"link add name masq type veth peer name eth0 netns {there}", "address add 10.77.0.2/24 dev masq",
              "link set dev masq up"], here)  # fmt: skip
    ip_batch([f"address add {DNSMASQ}/24 dev eth0", "link set dev eth0 up"], there)
    argv = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", "--user=root",
            f"--listen-address={DNSMASQ}", "--bind-interfaces", "--local-ttl=1", "--conf-file=/dev/null",
            "--pid-file=", "--cache-size=10000"]  # fmt: skip
    process = lab.popen("dnsmasq", argv)
    try:
        wait_until(lambda: _perf(lab, DNSMASQ, lab.directory / "queries", 100, 1)["completed"], 15, "dnsmasq answered")
        yield
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _gossip(lab: Lab) -> Iterator[None]:
    """The other host changes an endpoint about ten times a second."""
    from mesh import client

    ending = threading.Event()
    target = lab.namespace("c2.2")

    def flap() -> None:
        number = 0
        path = str(lab.run_dir("h2"))
        while not ending.is_set():
            number = number % 200 + 1
            for verb in ("dns-add", "dns-remove"):
                with contextlib.suppress(Exception):
                    os.environ["WEFT_RUN_DIR"] = path
                    client.call(verb, {"names": [f"flap{number}"], "target": target})
                ending.wait(0.05)

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        os.environ.pop("WEFT_RUN_DIR", None)


def _measure(lab: Lab, server: str, queries: Path) -> dict[str, Any]:
    at_rate = _perf(lab, server, queries, RATE, SECONDS, latencies=True)
    best = 0.0
    for rate in STEPS:
        found = _perf(lab, server, queries, rate, 2)
        if found["lost"] > LOSS_MAX or found["per_second"] < rate * 0.97:
            best = max(best, found["per_second"] if not found["lost"] else 0.0)
            break
        best = found["per_second"]
    return {"without_loss": best, **{key: at_rate[key] for key in ("median_ms", "p99_ms", "lost")}}


def _perf(
    lab: Lab, server: str, queries: Path, rate: int, seconds: int, *, latencies: bool = False
) -> dict[str, float]:
    argv = ["dnsperf", "-s", server, "-d", str(queries), "-l", str(seconds), "-Q", str(rate), "-c", "8", "-T", "1",
            "-q", "1000", "-t", "1", "-e", *(["-v"] if latencies else [])]  # fmt: skip
    done = subprocess.run(lab.argv("c1.1", argv), capture_output=True, text=True, timeout=seconds + 30, check=False)
    if done.returncode not in (0, 1) or "Queries sent" not in done.stdout:
        raise LabError(f"dnsperf failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    if _number(done.stdout, "NOERROR") != _number(done.stdout, "Queries completed:"):
        raise LabError(f"{server} did not answer every question with an address: {done.stdout}")
    figures = {
        "sent": _number(done.stdout, "Queries sent:"),
        "completed": _number(done.stdout, "Queries completed:"),
        "lost": _number(done.stdout, "Queries lost:"),
        "per_second": _number(done.stdout, "Queries per second:"),
    }
    if latencies:
        taken = sorted(_taken(done.stdout.splitlines()))
        figures["median_ms"] = taken[len(taken) // 2] * 1000
        figures["p99_ms"] = taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000
    return figures


def _taken(lines: Sequence[str]) -> list[float]:
    """Seconds of each question: `> NOERROR name A 0.000123`."""
    return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("> ")] or [0.0]


def _number(text: str, label: str) -> float:
    found = re.search(re.escape(label) + r"\s+([0-9.]+)", text)
    return float(found[1]) if found else 0.0
