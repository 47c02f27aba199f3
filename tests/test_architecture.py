"""The architecture is a test: who may import whom, which modules stay pure, and what only `dataplane.linux` may do.

Reads source with `ast` and runs none of it, but for one test of what the command really loads. Every finding says the
reason of its rule, so that whoever breaks one learns why it is there. The checker itself is tested on planted faults.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gossip", "dataplane", "mesh", "bench")
OURS = {*PACKAGES, "tests", "labs"}

MAY_IMPORT = {
    "gossip": {"gossip"},
    "dataplane": {"dataplane", "gossip.names", "gossip.errors", "gossip.noise"},
    "mesh": {"mesh", "dataplane", "gossip"},
    "bench": {"bench", "mesh", "dataplane", "gossip"},
}
ORDER_REASON = {
    "gossip": "gossip knows nothing of frames or of the product, so that it can be read, tested and published alone",
    "dataplane": "dataplane shares the peer's name and one Noise with gossip; anything more couples the planes",
    "mesh": "mesh is the product and stands above both planes; tests, labs and benches are not part of it",
    "bench": "benches measure the product; tests and labs may use them, not the other way round",
}

SHELLS = {
    "gossip.transport": "sockets and the one clock of the control plane",
    "dataplane.engine": "the thread on which everything that touches the kernel happens",
    "dataplane.linux": "the kernel drivers",
    "dataplane.sleeve.worker": "the worker's loop: the clock, the TAP and the sockets",
    "dataplane.sleeve.__main__": "the worker as a process",
    "mesh.api": "serves the unix socket",
    "mesh.attach": "resolves targets, waits for the kernel's report",
    "mesh.cli": "the command: arguments, terminal, exit status",
    "mesh.client": "one request over the unix socket",
    "mesh.cni.door": "waits for the workflows that it calls",
    "mesh.cni.plugin": "a program of its own: environment, standard input, one request, other plugins",
    "mesh.cni.setup": "writes the plugin and a network list",
    "mesh.config": "reads the configuration file and the password file",
    "mesh.daemon": "the composition root",
    "mesh.dns.forwarder": "sockets and timers of questions to other servers",
    "mesh.dns.namespace": "opens the namespace of the server",
    "mesh.dns.resolvconf": "reads and writes resolv.conf files",
    "mesh.dns.server": "sockets that containers ask",
    "mesh.dns.service": "composes DNS, waits for the disk",
    "mesh.docker": "asks the Docker Engine over its unix socket",
    "mesh.dockernet.driver": "waits for the disk, the allocator and the kernel",
    "mesh.dockernet.server": "the socket that Docker asks",
    "mesh.dockernet.service": "composes it with the daemon",
    "mesh.dockernet.watch": "asks Docker, waits for its events",
    "mesh.directories": "makes, locks and names the daemon's directories",
    "mesh.expose": "waits for the kernel's report, as attach does",
    "mesh.handover": "waits for the engine's reports",
    "mesh.ipam.allocator": "the shape of what waits for votes and for the disk",
    "mesh.ipam.keeper": "waits for what is given and released",
    "mesh.ipam.mending": "the same, at start and in the background",
    "mesh.ipam.verbs": "answers the API about given addresses",
    "mesh.ipamcli": "the command's part about given addresses: files, terminal",
    "mesh.lab": "builds namespaces",
    "mesh.launch": "starts the daemon as a process",
    "mesh.logs": "log lines go to a file",
    "mesh.namespaces": "makes and removes namespaces",
    "mesh.pinger": "sends and times frames",
    "mesh.prober": "the same on the VXLAN device alone",
    "mesh.removals": "waits for the lock, and for who does it",
    "mesh.returns": "waits for what comes back",
    "mesh.framesocket": "a packet socket on the loop",
    "mesh.offloadprober": "the same with work left to devices",
    "mesh.offloadguard": "composes it with what devices this host has",
    "mesh.measurer": "the same in VXLAN made by hand",
    "mesh.probes": "wires the two, and keeps what they found on disk",
    "mesh.sleeve": "starts and watches the sleeve worker's process",
    "mesh.serve": "runs the event loop, takes the signals",
    "mesh.shutdown": "ends the daemon's process",
    "mesh.targets": "finds namespaces, asks Docker",
    "mesh.underlay": "looks at this host's own network again and again",
    "mesh.verbs": "answers the API, waits for the kernel and for peers",
    "mesh.status": "views of the daemon's live parts, shells among them",
    "mesh.store": "durable state: files, synced",
    "mesh.ipam.build": "opens the journal",
    "mesh.ipam.service": "allocation on the loop: waits for the disk, reads the clock",
    "mesh.journal": "groups commits on the loop, writes them on a thread",
    "mesh.journalfile": "durable state: one file appended to, synced",
}
"""Every module that may wait, read a clock or touch the world; whatever is not named here is pure."""

IMPURE = {
    "asyncio", "concurrent", "ctypes", "fcntl", "logging", "multiprocessing", "os", "pyroute2", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid", "uvloop",
}  # fmt: skip
PURE_REASON = (
    "a pure module is given bytes, `now`, a Random and keys, and answers with values: only so can one seed replay a "
    "whole network; what waits or touches the world belongs into one of the shells"
)

CIRCLE_REASON = "of two modules that know each other neither can be read, tested or changed alone"

DOOR = "mesh.cli"
"""The `weft` command. Whatever of ours it imports is in its process too, and bound by the same rule."""
DOOR_REASON = "that is start-up time which people feel at every command: the standard library only, without asyncio"
DOOR_LATE = {"mesh.serve", "dataplane.linux"}
"""What may be imported inside a function there: the daemon for `launch --foreground`, the drivers for `reset`."""

KERNEL_WORDS = {"AF_NETLINK", "AF_PACKET", "SO_BINDTODEVICE", "setns", "unshare", "TUNSETIFF"}
KERNEL_MODULES = {"ctypes", "pyroute2"}
KERNEL_REASON = "dataplane.linux alone talks to the kernel, so that what needs root has a one-folder answer"
TEST_ONLY = {"scapy", "hypothesis", "pytest"}


@dataclass(frozen=True, slots=True)
class Import:
    module: str
    """Dotted and complete: `gossip.names` both for `import gossip.names` and for `from gossip import names`."""
    line: int
    late: bool
    """Inside a function: paid for only by those who call it."""


def sources() -> dict[str, str]:
    """Module name to source, for everything we ship and the benches."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports_of(module: str, tree: ast.Module, modules: Mapping[str, str]) -> Iterator[Import]:
    late = {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if module in _package_names(modules) else -1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in modules else base, node.lineno, id(node) in late)


def _package_names(modules: Mapping[str, str]) -> set[str]:
    return {name.rpartition(".")[0] for name in modules} | set(PACKAGES)


def within(module: str, names: set[str] | dict[str, str] | dict[str, set[str]]) -> bool:
    """Is `module` one of `names` or inside one of them?"""
    return any(module == name or module.startswith(name + ".") for name in names)


def findings(modules: Mapping[str, str]) -> list[str]:
    """What breaks the architecture, one line each with the rule's reason."""
    found = [*_doors(modules), *_circles(modules)]
    for module, source in modules.items():
        tree = ast.parse(source)
        imports = list(imports_of(module, tree, modules))
        for check in (_order, _kernel, _test_tools):
            found += [f"{module}:{line}: {text}" for line, text in check(module, tree, imports)]
        if module.split(".")[0] != "bench" and not within(module, SHELLS) and module != "mesh.__main__":
            found += [f"{module}:{line}: {text}" for line, text in _purity(tree, imports)]
    return found


def _order(module: str, tree: ast.Module, imports: list[Import]) -> Iterator[tuple[int, str]]:
    package = module.split(".")[0]
    for item in imports:
        if within(item.module, OURS | {"conftest"}) and not within(item.module, MAY_IMPORT[package]):
            yield item.line, f"imports {item.module}: {ORDER_REASON[package]}"


def _purity(tree: ast.Module, imports: list[Import]) -> Iterator[tuple[int, str]]:
    for item in imports:
        if within(item.module, IMPURE):
            yield item.line, f"imports {item.module}: {PURE_REASON}"
        if within(item.module, SHELLS):
            yield item.line, f"imports the shell {item.module}: {PURE_REASON}"
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    command = {id(inner) for main in mains for inner in ast.walk(main)}  # `python -m gossip.sim` prints its results
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, f"waits: {PURE_REASON}"
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in {"open", "input", "print"} and not (called == "print" and id(node) in command):
            yield node.lineno, f"calls {called}(): {PURE_REASON}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            if node.value.id == "random" and node.attr != "Random":
                yield node.lineno, f"uses {dotted}, chance that no seed replays: {PURE_REASON}"
            if dotted in {"datetime.now", "datetime.utcnow", "date.today"}:
                yield node.lineno, f"reads the clock by {dotted}: {PURE_REASON}"


def _doors(modules: Mapping[str, str]) -> Iterator[str]:
    """Walk from the door through everything that its process imports."""
    waiting = [DOOR] if DOOR in modules else []
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        for item in imports_of(module, ast.parse(modules[module]), modules):
            top = item.module.split(".")[0]
            if item.late and within(item.module, DOOR_LATE):
                continue
            if top == "asyncio" or (top != "mesh" and top not in sys.stdlib_module_names):
                yield f"{module}:{item.line}: imports {item.module} into the command's process: {DOOR_REASON}"
            if top == "mesh" and item.module in modules and item.module not in seen:
                seen.add(item.module)
                waiting.append(item.module)


def _circles(modules: Mapping[str, str]) -> Iterator[str]:
    """The first circle of imports, those for types alone included."""
    knows = {
        module: {item.module for item in imports_of(module, ast.parse(source), modules)} & modules.keys() - {module}
        for module, source in modules.items()
    }
    try:
        TopologicalSorter(knows).prepare()
    except CycleError as error:
        yield f"{' <- '.join(error.args[1])}: a circle: {CIRCLE_REASON}"


def _kernel(module: str, tree: ast.Module, imports: list[Import]) -> Iterator[tuple[int, str]]:
    if within(module, {"dataplane.linux"}) or module.split(".")[0] == "bench":
        return
    for item in imports:
        if within(item.module, KERNEL_MODULES):
            yield item.line, f"imports {item.module}: {KERNEL_REASON}"
    for node in ast.walk(tree):
        word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if word in KERNEL_WORDS:
            yield node.lineno, f"uses {word}: {KERNEL_REASON}"


def _test_tools(module: str, tree: ast.Module, imports: list[Import]) -> Iterator[tuple[int, str]]:
    if module.split(".")[0] == "bench":
        return
    for item in imports:
        if within(item.module, TEST_ONLY):
            yield item.line, f"imports {item.module}: a tool of tests, which the daemon neither installs nor pays for"


def undeclared(modules: Mapping[str, str], declared: set[str]) -> list[str]:
    """Imports of libraries that pyproject.toml does not name."""
    known = declared | OURS | set(sys.stdlib_module_names)
    return [
        f"{module}:{item.line}: imports {item.module}, which pyproject.toml does not list: an install lacks it"
        for module, source in modules.items()
        for item in imports_of(module, ast.parse(source), modules)
        if module.split(".")[0] != "bench" and item.module.split(".")[0] not in known
    ]


# The tree as it is


def test_the_tree_keeps_its_architecture() -> None:
    """Import order, purity, doors and kernel access hold in every module."""
    assert findings(sources()) == []


def test_every_shell_named_here_exists() -> None:
    """An exception for a module that has gone would let its successor in unseen."""
    modules = sources()
    assert [shell for shell in SHELLS if shell not in modules] == []
    assert DOOR in modules


def test_every_library_is_declared() -> None:
    """What the product imports is what installing it brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {requirement.split(">")[0].split("=")[0].strip() for requirement in project["dependencies"]}
    assert undeclared(sources(), declared) == []


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["status", "--help"]])
def test_the_command_loads_nothing_heavy(arguments: list[str]) -> None:
    """`weft --help` and its like load none of our libraries, nor asyncio, whatever the imports look like."""
    program = (
        "import json, sys\n"
        "from mesh.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & {"asyncio", "pyroute2", "cryptography", "uvloop", "msgpack", "gossip", "dataplane"} == set()


# The checker, on planted faults

PLANTED = {
    "gossip.node": ("import mesh.cli", "gossip knows nothing of frames"),
    "gossip.link": ("from dataplane import desired", "gossip knows nothing of frames"),
    "dataplane.reconcile": ("from gossip import wire", "shares the peer's name"),
    "dataplane.memory": ("from gossip.names import PeerName\nimport time", "imports time: a pure module"),
    "mesh.endpoints": ("import bench.harness", "not part of it"),
    "mesh.forwarding": ("from tests.soak import main", "not part of it"),
    "mesh.render": ("import msgpack", "into the command's process"),
    "mesh.client": ("def ask() -> None:\n    import asyncio", "imports asyncio into the command's process"),
    "mesh.cli": ("import mesh.daemon\nimport dataplane.linux", "imports dataplane.linux into the command's process"),
    "mesh.config": ("from gossip.names import parse_name", "into the command's process"),
    "mesh.rules": ("async def wait() -> None: ...", "waits: a pure module"),
    "mesh.documents": ("from mesh.daemon import Daemon", "imports the shell mesh.daemon"),
    "gossip.routes": ("import random\nx = random.random()", "chance that no seed replays"),
    "gossip.pages": ("x = open('page')", "calls open()"),
    "gossip.sync": ("from datetime import datetime\nx = datetime.now()", "reads the clock"),
    "mesh.daemon": ("import pyroute2", "alone talks to the kernel"),
    "mesh.attach": ("import socket\nx = socket.AF_PACKET", "alone talks to the kernel"),
    "dataplane.engine": ("import scapy.all", "a tool of tests"),
    "dataplane.linux.netlink": ("from gossip.secret import psk", "shares the peer's name"),
    "dataplane.linux": ("from ..engine import Engine\nfrom mesh import lab", "shares the peer's name"),
}


@pytest.mark.parametrize("module", PLANTED)
def test_a_planted_fault_is_found(module: str) -> None:
    """Each rule finds the fault planted for it, names the module and the line, and says the reason."""
    source, reason = PLANTED[module]

    found = findings({DOOR: "import mesh.client, mesh.config, mesh.render", module: source})

    assert [line for line in found if line.startswith(module + ":") and reason in line], found


def test_modules_that_know_each_other_are_found() -> None:
    """Also where one does so inside a function, and the other for its types."""
    modules = {
        "gossip.node": "def run() -> None:\n    from gossip.link import Link",
        "gossip.link": "if TYPE_CHECKING:\n    from gossip import node",
        "gossip.wire": "",
    }
    [found] = findings(modules)
    assert CIRCLE_REASON in found and "gossip.node" in found and "gossip.link" in found


def test_what_is_allowed_is_not_found() -> None:
    """The exceptions are exceptions, and nothing in an honest module is a finding."""
    modules = {
        "gossip.names": "import hashlib",
        "gossip.node": "from random import Random\nfrom gossip import names",
        "gossip.transport": "import asyncio, socket, time\nfrom gossip.node import Node",
        "dataplane.reconcile": "from gossip.names import PeerName\nfrom dataplane.desired import Desired",
        "dataplane.linux": "from .netlink import Kernel",
        "dataplane.linux.netlink": "import ctypes, pyroute2\nfrom ..desired import Desired\nx = y.AF_PACKET",
        "dataplane.desired": "",
        "mesh.cli": "import os\nfrom mesh import client\ndef launch() -> None:\n    from mesh.serve import run",
        "mesh.client": "import json, socket",
        "mesh.serve": "import uvloop\nfrom mesh.daemon import Daemon",
        "mesh.daemon": "from gossip.transport import serve\nfrom dataplane.linux import open_kernel",
        "bench.harness": "import time, pyroute2\nfrom mesh.lab import Lab",
    }
    assert findings(modules) == []


def test_a_library_nobody_declared_is_found() -> None:
    """An import that only works on the machine of whoever wrote it is a finding."""
    found = undeclared({"mesh.daemon": "import uvloop\nimport requests"}, declared={"uvloop"})
    assert found == ["mesh.daemon:2: imports requests, which pyproject.toml does not list: an install lacks it"]
