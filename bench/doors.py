"""What a container runtime waits for: ADD and DEL of our CNI plugin beside the reference plugin, alone and at once; and
`docker run` on a network of ours beside Docker's own.

The other one is `bridge` with `host-local`, which know one host only: what is given to a container there is in a file,
and nobody else hears of it. Both are run as a runtime runs them, a process for each call, in turns on the same host.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import least
from bench.engine import Engine
from bench.harness import Aim, Result, interleave, percentile, say
from bench.traffic import AnswerWatch
from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR, LabError, wait_until

REFERENCE = Path("/usr/lib/cni")
PACKAGE = "containernetworking-plugins"
ALONE, AT_ONCE, ROUNDS = 20, 20, 3
PODS = 250
ASKED = 20
"""New containers of which another host waits for the first answer."""
MORE_MS_MAX, TIMES_MAX, ANSWER_MS_MAX = 20.0, 3.0, 200.0
RUNS = 10
NETWORKS = {
    "bridge": "Docker's default bridge",
    "own": "a bridge network that a user made",
    "least": "a network of a plugin that does the least",
    "weft": "a Weft network",
    "inside": "an internal Weft network",
}
RUN_AIMS = (
    ("weft", "bridge", 50.0), ("weft", "own", 50.0), ("weft", "least", 20.0), ("inside", "bridge", 50.0),
)  # fmt: skip
"""Network, the one beside it, and how many ms more. Docker gives a container its own resolver on every network but the
default one, and on those of plugins a second interface for the way out."""
FIRST_NUMBER = 10

Figures = dict[str, list[float]]


@dataclass(slots=True)
class _Door:
    """One plugin on one host."""

    lab: Lab
    node: str
    plugin: Path
    config: dict[str, Any]

    def call(self, command: str, pod: str) -> float:
        """Milliseconds. Raises `LabError` where it fails."""
        line = [
            "nsenter", f"--net={NAMESPACES_DIR / self.lab.namespace(self.node)}", "--", "env", "-i",
            f"CNI_COMMAND={command}", f"CNI_CONTAINERID={pod}", "CNI_IFNAME=eth0", f"CNI_PATH={REFERENCE}",
            f"CNI_NETNS={NAMESPACES_DIR / self.lab.namespace(pod)}", f"PATH={os.environ['PATH']}", str(self.plugin),
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(line, input=json.dumps(self.config), capture_output=True, text=True, check=False)
        took_ms = (time.perf_counter() - start) * 1e3
        if done.returncode:
            raise LabError(f"{self.plugin.name} {command} {pod}: {done.stdout}{done.stderr}")
        return took_ms

    def measure(self, pods: list[str]) -> Figures:
        found: Figures = {}
        for command in ("ADD", "DEL"):
            found[f"{command} alone"] = [self.call(command, pod) for pod in pods[:ALONE]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for command in ("ADD", "DEL"):
                found[f"{command} at once"] = list(pool.map(partial(self.call, command), pods[:AT_ONCE]))
        return found


def run() -> Result:
    """Two hosts; on one of them both plugins."""
    if not (REFERENCE / "bridge").exists():
        raise LabError(f"{REFERENCE / 'bridge'} is missing: install the Debian package {PACKAGE}")
    result = Result(
        "doors",
        "What a container runtime waits for",
        f"{ROUNDS} rounds of {ALONE} ADDs and DELs one after the other and {AT_ONCE} at once, each plugin in turn; "
        f"every call is a process. Then {PODS} containers that come and go, and {ASKED} that another host pings from "
        "the moment that ADD has returned.",
        ["call", "who", "ms: median", "p95", "most"],
    )
    with Lab(f"wb{os.getpid()}", hosts=2, containers=1) as lab:
        lab.up()
        pods = [f"c1.{FIRST_NUMBER + number}" for number in range(PODS)]
        far = [f"c2.{FIRST_NUMBER + number}" for number in range(ASKED)]
        lab.add_namespaces([*pods, *far])
        doors = _doors(lab)
        found = _rounds(doors, pods)
        for call in ("ADD alone", "DEL alone", "ADD at once", "DEL at once"):
            for who in doors:
                result.rows.append([call, who, *_shown(found[who][call])])
        _judge(result, found)
        left = _come_and_go(lab, doors["weft"], pods)
        result.aims.append(Aim(f"links, addresses, rules and files left by {PODS} containers", len(left), 0))
        doors["weft"].call("ADD", pods[0])
        answers = _first_answers(lab, pods[0], far)
        result.rows.append(["first answer from another host, after ADD", "weft", *_shown(answers)])
        result.aims.append(Aim("slowest first answer after ADD", max(answers), ANSWER_MS_MAX, " ms"))
        docker = _docker_runs(lab)
        for network, took_ms in docker.items():
            result.rows.append([f"docker run on {NETWORKS[network]}", "Docker", *_shown(took_ms)])
        for network, other, bound_ms in RUN_AIMS:
            more = statistics.median(docker[network]) - statistics.median(docker[other])
            what = f"docker run on {NETWORKS[network]} over {NETWORKS[other]}"
            result.aims.append(Aim(what, more, bound_ms, " ms"))
        result.figures = {"calls": found, "left": left, "first_answer_ms": answers, "docker_run_ms": docker}
    return result


def _docker_runs(lab: Lab) -> dict[str, list[float]]:
    """Milliseconds of `docker run`, by network, in turns. The host's daemon is launched anew, for Docker to find it. On
    the network `least` it costs what it costs with any plugin."""
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        folder = Path(name)
        (folder / "plugins").mkdir()
        plugin = ["--docker-plugin", str(folder / "plugins" / "weft.sock")]
        lab.weft("h1", ["stop"])
        lab.run("h1", ["env", f"WEFT_DOCKER_SOCKET={folder / 'docker.sock'}", "weft", "launch", *plugin])
        with _least(lab, folder / "plugins"), Engine(lab, "h1", folder, folder / "plugins") as engine:
            engine("network", "create", "-d", "weft", "--ipam-driver", "weft", "weft")
            engine("network", "create", "-d", "weft", "--ipam-driver", "weft", "--internal", "inside")
            engine("network", "create", "-d", least.NAME, "--subnet", least.SUBNET, "least")
            engine("network", "create", "own")
            shapes = {network: partial(engine.run_ms, network) for network in NETWORKS}
            found = interleave(shapes, RUNS, say)
            engine("network", "rm", "weft", "inside", "least", "own")
    return found


@contextlib.contextmanager
def _least(lab: Lab, plugins: Path) -> Iterator[None]:
    path = plugins / f"{least.NAME}.sock"
    process = lab.popen("h1", [sys.executable, "-m", "bench.least", str(path)])
    try:
        wait_until(path.exists, 10.0, "the least plugin was there")
        yield
    finally:
        process.kill()
        process.communicate()


def _doors(lab: Lab) -> dict[str, _Door]:
    folder = lab.directory / "cni"
    weft = {"cniVersion": "1.0.0", "name": "weft", "type": "weft"}
    bridge = {
        "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "cnibench",
        "ipam": {"type": "host-local", "subnet": "10.77.0.0/16", "dataDir": str(folder / "host-local")},
    }  # fmt: skip
    return {
        "weft": _Door(lab, "h1", _installed(lab, "h1"), weft),
        "bridge and host-local": _Door(lab, "h1", REFERENCE / "bridge", bridge),
    }


def _installed(lab: Lab, node: str) -> Path:
    folder = lab.directory / node / "cni"
    lab.weft(node, ["setup-cni", "--bin-dir", str(folder), "--conf-dir", str(folder)])
    return folder / "weft"


def _rounds(doors: dict[str, _Door], pods: list[str]) -> dict[str, Figures]:
    shapes = {who: partial(door.measure, pods) for who, door in doors.items()}
    rounds = interleave(shapes, ROUNDS, say)
    calls = rounds["weft"][0]
    return {who: {call: [ms for each in taken for ms in each[call]] for call in calls} for who, taken in rounds.items()}


def _judge(result: Result, found: dict[str, Figures]) -> None:
    ours, theirs = found["weft"], found["bridge and host-local"]
    median = statistics.median
    for call in ("ADD alone", "DEL alone"):
        result.aims.append(Aim(f"{call} over the other", median(ours[call]) - median(theirs[call]), MORE_MS_MAX, " ms"))
    for call in ("ADD at once", "DEL at once"):
        result.aims.append(Aim(f"{call} over the other", median(ours[call]) / median(theirs[call]), TIMES_MAX, " x"))
    result.aims.append(Aim("DEL over ADD, alone", median(ours["DEL alone"]) / median(ours["ADD alone"]), 1.0, " x"))


def _come_and_go(lab: Lab, door: _Door, pods: list[str]) -> list[str]:
    """What is there afterwards and was not before, or the other way round."""
    before = _traces(lab)
    with ThreadPoolExecutor(8) as pool:
        for command in ("ADD", "DEL"):
            start = time.monotonic()
            list(pool.map(partial(door.call, command), pods))
            say(f"{PODS} times {command} in {time.monotonic() - start:.1f} s")
    return sorted(before ^ _traces(lab))


def _traces(lab: Lab) -> set[str]:
    """Links, addresses, neighbours, forwarding entries, rules and files of the host."""
    shown: Callable[..., str] = lambda *words: lab.run("h1", list(words)).stdout  # noqa: E731
    lines = shown("ip", "-br", "link") + shown("ip", "-br", "address") + shown("bridge", "fdb", "show")
    lines += shown("ip", "neigh", "show", "dev", "weft", "nud", "permanent") + shown("weft", "ps")
    rules = shown("nft", "--stateless", "list", "ruleset").splitlines(keepends=True)
    lines += "".join(rule for rule in rules if "expires" not in rule)
    given = json.loads(shown("weft", "ipam", "export"))["entries"]
    files = [str(path) for folder in (lab.run_dir("h1"), lab.state_dir("h1")) for path in folder.rglob("*")]
    # The other plugin's bridge is its own affair.
    ours = (line for line in lines.splitlines() if "cnibench" not in line)
    return {*ours, *map(json.dumps, given), *files}


def _first_answers(lab: Lab, asker: str, pods: list[str]) -> list[float]:
    """Milliseconds from ADD's return at another host to the first answer, the start of ping included."""
    config = {"cniVersion": "1.0.0", "name": "weft", "type": "weft"}
    door = _Door(lab, "h2", _installed(lab, "h2"), config)
    answers = []
    for pod in pods:
        door.call("ADD", pod)
        returned_s = time.time()
        rows = [row for row in lab.weft_json("h2", "ps") if (row.get("cni") or {}).get("container") == pod]
        waited_s = AnswerWatch(lab, asker, rows[0]["addresses"][0].partition("/")[0]).first_answer(returned_s)
        if waited_s is None:
            raise LabError(f"{pod} never answered")
        answers.append(waited_s * 1e3)
    return answers


def _shown(values_ms: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in (statistics.median(values_ms), percentile(values_ms, 95), max(values_ms))]
