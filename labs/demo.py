"""`make demo`: three hosts find each other, and containers on all of them talk.

    c1.1  c1.2        c2.1  c2.2        c3.1  c3.2        containers: named network namespaces
      \\    /            \\    /            \\    /
       h1 -------------- h2 -------------- h3             hosts: a daemon each; h2 and h3 are told of h1 only

Shows what `weft status` says, pings every ordered pair over IPv4 and IPv6, lets two containers find each other by name,
runs TCP across hosts and says which path it took. Uses the `weft` command and nothing else of Weft. Whatever happens,
nothing of it is left on the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.traffic import IperfServer, ping
from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR, LabError, ends_in_order, need_root_and_tools

NAME = "weftdemo"
TCP_SECONDS = 3.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m labs.demo", description="Three hosts, a mesh, and traffic on it.")
    parser.add_argument("--name", default=NAME, help=f"of the lab, default {NAME}")
    start = time.monotonic()
    try:
        lab = Lab(parser.parse_args(argv).name, hosts=3, containers=2, say=_step)
        need_root_and_tools()
        with ends_in_order(), lab:
            lab.down()  # of an earlier demo that was killed
            try:
                failed = show(lab)
            except LabError:
                _last_words(lab)
                raise
            _step("cleaning up")
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    left = sorted(path.name for path in NAMESPACES_DIR.glob(f"{lab.name}-*")) if NAMESPACES_DIR.exists() else []
    if left or lab.directory.exists():
        print(f"demo: left behind: {' '.join(left) or lab.directory}", file=sys.stderr)
        return 1
    print(f"\nThat was Weft, in {time.monotonic() - start:.0f} s; nothing is left of it on this machine.")
    print("To keep one and try things: make install, then: sudo weft lab up")
    return 1 if failed else 0


def show(lab: Lab) -> int:
    """The tour. Returns how many pings were lost."""
    lab.up()
    _step("weft status on h1")
    print(lab.weft("h1", ["status"]).stdout.rstrip())
    for part, meaning in (("peers", "who is in the mesh"), ("connections", "and how frames reach them")):
        _step(f"weft status {part} on h1: {meaning}")
        print(lab.weft("h1", ["status", part]).stdout.rstrip())
    failed = _ping_everybody(lab)
    failed += _by_name(lab)
    _tcp(lab)
    return failed


def _ping_everybody(lab: Lab) -> int:
    """Every container pings every other one. The number of pings that nobody answered."""
    nodes = lab.container_nodes()
    pairs = [(source, target) for source in nodes for target in nodes if source != target]
    lost = 0
    for family, address_of in (("IPv4", lab.address), ("IPv6", lab.address6)):
        _step(f"ping over {family}, every ordered pair, in ms")
        times = {(source, target): ping(lab, source, address_of(target), wait_s=2) for source, target in pairs}
        print("from \\ to " + "".join(f"{node:>8}" for node in nodes))
        for source in nodes:
            cells = [_cell(times[source, target].times_ms) if source != target else "-" for target in nodes]
            print(f"{source:10}" + "".join(f"{cell:>8}" for cell in cells))
        lost += sum(1 for pings in times.values() if pings.lost)
    print(f"{2 * len(pairs) - lost} of {2 * len(pairs)} pings answered")
    return lost


def _by_name(lab: Lab) -> int:
    """Two containers on two hosts to which nobody gave an address, and one finds the other by its name."""
    lab.add_namespaces(["web", "db"])
    _step("weft attach web on h2, weft attach -h sql db on h3: addresses that nobody chose")
    print(lab.weft("h2", ["attach", lab.namespace("web")]).stdout.rstrip())
    print(lab.weft("h3", ["attach", "-h", "sql", lab.namespace("db")]).stdout.rstrip())
    _step("ping sql, from web")
    done = subprocess.run(
        ["ip", "netns", "exec", lab.namespace("web"), "ping", "-c", "1", "-W", "5", "sql"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print("\n".join(done.stdout.splitlines()[:2]) or done.stderr.rstrip())
    return int(done.returncode != 0)


def _cell(times_ms: dict[int, float]) -> str:
    return f"{times_ms[1]:.2f}" if times_ms else "LOST"


def _tcp(lab: Lab) -> None:
    _step(f"TCP from c1.1 on h1 to c2.1 on h2, for {TCP_SECONDS:g} s")
    with IperfServer(lab, "c2.1") as server:
        mbit_s = server.measure("c1.1", lab.address("c2.1"), TCP_SECONDS)
    row = next(row for row in lab.weft_json("h1", "status", "connections") if row["nickname"] == "h2")
    print(f"{mbit_s / 1e3:.2f} Gbit/s by path {row['path']} (reason: {row['reason']}), overlay MTU {row['mtu']}")


def _last_words(lab: Lab) -> None:
    """What the daemons wrote last, before their logs go with the lab."""
    for node in lab.host_nodes():
        log = lab.state_dir(node) / "weft.log"
        for line in log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []:
            print(f"{node} log: {line}", file=sys.stderr)


def _step(line: str) -> None:
    print(f"\n== {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
