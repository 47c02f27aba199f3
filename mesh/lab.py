"""A small world on one machine: hosts as network namespaces, a daemon in each, containers as named namespaces.

    hub namespace        bridge `hub`, one port per host, an nft table that can cut hosts off
      h1 ... hN          eth0, underlay 10.9.0.H/24 and fd00:9::H/64 (or less), a daemon with directories of its own
        cH.1 ... cH.M    attached by the daemon of host H with 10.32.H.M/16 and fd00:32::H:M/64

`weft lab` builds it for people, tests and benches use `Lab` directly. It deliberately knows nothing of how Weft works:
it talks to the product through the `weft` command only. The one idea needed to read it: what is to be made is written
to a state file first, so that `down` removes exactly that, whoever was killed in between; and because everything is
made inside the lab's own namespaces, removing them removes everything.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mesh.dns import resolvconf
from mesh.namespaces import (
    COMMAND_TIMEOUT_S,
    NAMESPACES_DIR,
    CommandFailed,
    LabError,
    end_processes_in,
    ends_in_order,
    identity,
    ip_batch,
    namespace_of,
    need_root_and_tools,
    uninterrupted,
    wait_until,
)

DEFAULT_NAME = "weftlab"
LABS_DIR = Path("/run/weft-lab")

HOSTS_MAX = 200
"""10.9.0.H and 10.32.H.M leave room for little more than this, and one machine for less."""
CONTAINERS_MAX = 200
MTU_MIN, MTU_MAX = 1280, 65535
LINK_LOCAL_TIMEOUT_S = 10.0
"""The kernel first asks whether anybody else has it, which takes about two seconds."""
_LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,23}")
_HOST = re.compile(r"h([1-9][0-9]{0,2})")
_CONTAINER = re.compile(r"c([1-9][0-9]{0,2})\.([1-9][0-9]{0,2})")

_HUB_RULES = """\
table bridge weftlab {
 set from { type ifname; }
 set to { type ifname; }
 set pairs { type ifname . ifname; }
 set datagrams { type ifname . ifname; }
 chain forward {
  type filter hook forward priority 0; policy accept;
  iifname @from drop
  oifname @to drop
  iifname . oifname @pairs drop
  iifname . oifname @datagrams meta l4proto udp drop
 }
}
"""

Say = Callable[[str], None]


class Lab:
    """One lab. As a context manager it holds the lab's lock, and leaves nothing behind at the end."""

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        hosts: int = 3,
        containers: int = 2,
        mtu: int = 1500,
        host_mtus: Mapping[int, int] | None = None,
        host_versions: Mapping[int, Collection[int]] | None = None,
        say: Say = lambda line: None,
    ) -> None:
        """`mtu` is the underlay's, `host_mtus` the exceptions by host number. So is `host_versions`, for hosts that do
        not have addresses of both IP versions: {4} has no IPv6 at all, {6} no IPv4, and the empty one its link-local
        address alone. Nothing is made yet."""
        if not _LAB_NAME.fullmatch(name):
            raise LabError(f"{name!r} is no name for a lab: use up to 24 small letters and digits, a letter first")
        if not 1 <= hosts <= HOSTS_MAX or not 0 <= containers <= CONTAINERS_MAX:
            raise LabError(f"a lab has 1 to {HOSTS_MAX} hosts, and 0 to {CONTAINERS_MAX} containers on each")
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise LabError(f"an underlay's MTU is {MTU_MIN} (what IPv6 needs) to {MTU_MAX} bytes")
        self.name, self.hosts, self.containers = name, hosts, containers
        self.mtu = mtu
        self.host_mtus = dict(host_mtus or {})
        self.host_versions = {host: frozenset(versions) for host, versions in (host_versions or {}).items()}
        self.directory = LABS_DIR / name
        self._say = say
        self._namespaces: list[str] = []
        self.ready = False
        """True once `up` has come to its end."""
        self._lock_fd: int | None = None

    @classmethod
    def open(cls, name: str = DEFAULT_NAME) -> Lab:
        """The lab of that name that some process built, whole or in part."""
        lab = cls._read(name)
        if lab is None:
            raise LabError(f"there is no lab {name!r}; weft lab up builds one")
        return lab

    @classmethod
    def _read(cls, name: str) -> Lab | None:
        path = LABS_DIR / name / "state.json"
        try:
            state = json.loads(path.read_text())
            lab = cls(state["name"], hosts=state["hosts"], containers=state["containers"], mtu=state["mtu"])
            lab._namespaces = [str(namespace) for namespace in state["namespaces"]]
            lab.ready = bool(state["ready"])
        except FileNotFoundError:
            return None
        except PermissionError:
            raise LabError(f"{path} is root's: run this as root, or with sudo") from None
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{path} is damaged ({error}): delete the namespaces {name}-*, then {path.parent}") from None
        return lab

    def __enter__(self) -> Lab:
        self._lock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with uninterrupted():
            self.down()

    # Names of things

    def host_nodes(self) -> list[str]:
        return [f"h{host}" for host in range(1, self.hosts + 1)]

    def container_nodes(self) -> list[str]:
        return [f"c{host}.{n}" for host in range(1, self.hosts + 1) for n in range(1, self.containers + 1)]

    def namespace(self, node: str) -> str:
        """The namespace of `hub`, `h1`, `c1.2`: what `ip netns` lists, and a TARGET for attach."""
        return f"{self.name}-{node}"

    def underlay(self, host: int) -> str:
        return f"10.9.0.{host}"

    def underlay6(self, host: int) -> str:
        return f"fd00:9::{host}"

    def versions(self, host: int) -> frozenset[int]:
        """The IP versions that the host has addresses of, link-local ones aside."""
        return self.host_versions.get(host, frozenset((4, 6)))

    def target(self, host: int, seen_from: int) -> str | None:
        """What one host is told to dial to reach another; None where they have no IP version in common."""
        common = self.versions(host) & self.versions(seen_from)
        if common:
            return self.underlay(host) if 4 in common else self.underlay6(host)
        if frozenset((4,)) in (self.versions(host), self.versions(seen_from)):
            return None
        return f"{self.link_local(host)}%eth0"

    def link_local(self, host: int) -> str:
        """The address that the kernel gave to its interface, once it may be used."""

        def found() -> list[str]:
            shown = json.loads(self.run(f"h{host}", ["ip", "-json", "-6", "address", "show", "dev", "eth0"]).stdout)
            each = (address for link in shown for address in link["addr_info"] if not address.get("tentative"))
            return [str(address["local"]) for address in each if address["scope"] == "link"]

        wait_until(found, LINK_LOCAL_TIMEOUT_S, f"h{host} had a link-local address")
        return found()[0]

    def address(self, node: str) -> str:
        """The IPv4 address of container cH.M, without its length."""
        return "10.32.{}.{}".format(*_container(node))

    def address6(self, node: str) -> str:
        return "fd00:32::{}:{}".format(*_container(node))

    def addresses(self, node: str) -> list[str]:
        """What `attach` is given for container cH.M."""
        return [f"{self.address(node)}/16", f"{self.address6(node)}/64"]

    def run_dir(self, node: str) -> Path:
        return self.directory / node / "run"

    def state_dir(self, node: str) -> Path:
        return self.directory / node / "state"

    # Building

    def up(self, launch_args: Sequence[str] = ()) -> None:
        """Everything: namespaces, a daemon per host, h2 and the others connected to h1, all containers attached."""
        self.build()
        self._say(f"launching {self.hosts} daemons")
        self.launch_all(launch_args)
        for host in range(2, self.hosts + 1):
            if (target := self.target(1, host)) is not None:
                self.weft(f"h{host}", ["connect", target])
        self.wait_connected()
        self._say(f"attaching {len(self.container_nodes())} containers")
        for node in self.container_nodes():
            self.attach(node)
        self.ready = True
        self._save()

    def build(self) -> None:
        """The namespaces and the underlay, without a daemon."""
        need_root_and_tools()
        self._lock()
        before = Lab._read(self.name)
        if before is not None and before.ready:
            self._unlock()
            raise LabError(f"lab {self.name!r} is up already: look with weft lab status, or weft lab down first")
        if before is not None:  # we hold its lock, so whoever began it has died
            self._say(f"removing what is left of an unfinished lab {self.name!r}")
            before._remove_namespaces()
        self._say(f"building {self.hosts} hosts with {self.containers} containers each as network namespaces")
        self.add_namespaces(["hub", *self.host_nodes(), *self.container_nodes()])
        self._plug_hub()
        for host in range(1, self.hosts + 1):
            self._plug_host(host)

    def add_namespaces(self, nodes: Sequence[str]) -> None:
        """Empty namespaces, with only `lo` up; `down` removes them with the rest."""
        names = [self.namespace(node) for node in nodes]
        for name in names:
            if (NAMESPACES_DIR / name).exists():
                raise LabError(f"a network namespace {name} exists already and is not ours: choose another --name")
        self._namespaces += names
        self._save()  # before the first is made: whoever kills us now leaves a list of what to remove
        ip_batch([f"netns add {name}" for name in names])
        for name in names:
            ip_batch(["link set lo up"], name)

    def _plug_hub(self) -> None:
        hub = self.namespace("hub")
        ip_batch(["link add name hub type bridge mcast_snooping 0", "link set dev hub up"], hub)
        # The hub plays the wire: iptables of the machine have no business there.
        for switch in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"):
            if Path("/proc/sys/net/bridge", switch).exists():
                self.run("hub", ["sh", "-c", 'echo 0 > "/proc/sys/net/bridge/$1"', "sh", switch])
        self.run("hub", ["nft", "-f", "-"], stdin=_HUB_RULES)

    def _plug_host(self, host: int) -> None:
        hub, node = self.namespace("hub"), self.namespace(f"h{host}")
        mtu = self.host_mtus.get(host, self.mtu)
        ip_batch(
            [
                f"link add name h{host} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {node}",
                f"link set dev h{host} master hub up",
            ],
            hub,
        )
        versions = self.versions(host)
        if versions == {4}:
            self.run(f"h{host}", ["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])
        addresses = {4: f"{self.underlay(host)}/24 dev eth0", 6: f"{self.underlay6(host)}/64 dev eth0 nodad"}
        ip_batch(["link set dev eth0 up", *(f"address add {addresses[each]}" for each in sorted(versions))], node)
        for directory in (self.run_dir(f"h{host}"), self.state_dir(f"h{host}")):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config(f"h{host}").touch()  # empty, so that the machine's own configuration does not reach the lab

    def _config(self, node: str) -> Path:
        return self.directory / node / "weft.toml"

    # Daemons and containers

    def launch_all(self, args: Sequence[str] = ()) -> None:
        """`launch` on every host, a few at a time: most of it is the start of an interpreter."""
        at_once = max(2, os.cpu_count() or 2)
        nodes = self.host_nodes()
        for first in range(0, len(nodes), at_once):
            batch = nodes[first : first + at_once]
            started = [(node, self.popen(node, ["weft", *self._launch_argv(node, args)])) for node in batch]
            for node, process in started:
                stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT_S)
                if process.returncode != 0:
                    raise CommandFailed(f"launch on {node}", process.returncode, stdout, stderr)

    def launch(self, node: str, args: Sequence[str] = (), *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`weft launch` on one host; `args` are further flags and the peers."""
        return self.weft(node, self._launch_argv(node, args), check=check)

    def _launch_argv(self, node: str, args: Sequence[str]) -> list[str]:
        return ["launch", "--nickname", node, "--config", str(self._config(node)), *args]

    def attach(self, container: str, host: str | None = None, addresses: Sequence[str] | None = None) -> str:
        """Attach a container, by default at its own host with its own addresses. What `attach` printed."""
        host = host or f"h{_container(container)[0]}"
        wanted = self.addresses(container) if addresses is None else addresses
        return self.weft(host, ["attach", *wanted, self.namespace(container)]).stdout

    def wait_connected(self, timeout_s: float = 15.0) -> None:
        """Until every host has a working path to every other."""
        for node in self.host_nodes():
            connected = functools.partial(self._is_connected, node)
            wait_until(connected, timeout_s, f"{node} had a path to all {self.hosts - 1} other hosts")

    def _is_connected(self, node: str) -> bool:
        return self.connected_peers(node) == self.hosts - 1

    def connected_peers(self, node: str) -> int:
        """To how many other hosts this one has a path that carries frames."""
        return sum(1 for row in self.weft_json(node, "status", "connections") if row["path"] != "none")

    def daemon_pid(self, node: str) -> int | None:
        """The daemon of a host, None where none runs."""
        try:
            pid = int((self.run_dir(node) / "weft.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        lives_in = namespace_of(pid)
        return pid if lives_in is not None and lives_in == identity(self.namespace(node)) else None

    # Commands in the lab

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in the namespace of a node."""
        if command[0] == "weft":
            command = [sys.executable, "-m", "mesh", *command[1:]]
        return ["nsenter", f"--net={NAMESPACES_DIR / self.namespace(node)}", "--", *command]

    def environment(self, node: str) -> dict[str, str]:
        """The environment in which `weft` reaches that host's daemon."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
        beside = os.path.dirname(sys.executable)
        source = str(Path(__file__).resolve().parent.parent)
        ours["PATH"] = os.pathsep.join([beside, ours.get("PATH", os.defpath)])
        ours["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [ours.get("PYTHONPATH")])])
        if _HOST.fullmatch(node):
            ours["WEFT_RUN_DIR"] = str(self.run_dir(node))
            ours["WEFT_STATE_DIR"] = str(self.state_dir(node))
        return ours

    def run(
        self,
        node: str,
        command: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node and wait for it. Raises `CommandFailed` where it fails and `check` is set."""
        try:
            done = subprocess.run(
                self.argv(node, command),
                env=self.environment(node),
                input=stdin if stdin is not None else "",
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{' '.join(command)} on {node} did not end within {timeout_s:g} s") from None
        if check and done.returncode != 0:
            raise CommandFailed(f"{' '.join(command)} on {node}", done.returncode, done.stdout, done.stderr)
        return done

    def popen(self, node: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command on a node; it is the caller's to end, and `down` ends what is left."""
        return subprocess.Popen(
            self.argv(node, command),
            env=self.environment(node),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def weft(self, node: str, args: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(node, ["weft", *args], check=check)

    def weft_json(self, node: str, *args: str) -> Any:
        """The parsed output of a `weft` command that has `--json`."""
        return json.loads(self.weft(node, [*args, "--json"]).stdout)

    # Faults on the wire

    def cut(self, node: str, direction: str = "both") -> None:
        """Cut a host off: nothing `from` it, nothing `to` it, or `both`."""
        for name in ("from", "to") if direction == "both" else (direction,):
            self._nft_element("add", name, f'"{node}"')

    def cut_pair(self, one: str, other: str) -> None:
        """Cut two hosts off from each other, and from nobody else."""
        self._nft_element("add", "pairs", f'"{one}" . "{other}", "{other}" . "{one}"')

    def cut_datagrams(self, one: str, other: str, direction: str = "both") -> None:
        """No UDP between two hosts, or in one direction only (`there`: from the one to the other; `back`)."""
        ways = {"there": [(one, other)], "back": [(other, one)], "both": [(one, other), (other, one)]}[direction]
        self._nft_element("add", "datagrams", ", ".join(f'"{source}" . "{sink}"' for source, sink in ways))

    def heal(self) -> None:
        """Every cut at an end."""
        for name in ("from", "to", "pairs", "datagrams"):
            self.run("hub", ["nft", "flush", "set", "bridge", "weftlab", name])

    def _nft_element(self, verb: str, name: str, elements: str) -> None:
        self.run("hub", ["nft", verb, "element", "bridge", "weftlab", name, f"{{ {elements} }}"])

    # Taking it down

    def down(self) -> None:
        """Remove exactly what the state file lists. Nothing to do is fine."""
        if not self.directory.exists():
            return
        self._lock()
        built = Lab._read(self.name)
        if built is not None:
            built._remove_namespaces()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            LABS_DIR.rmdir()  # goes when the last lab has gone
        self._namespaces, self.ready = [], False
        self._unlock()

    def _remove_namespaces(self) -> None:
        existing = [name for name in self._namespaces if (NAMESPACES_DIR / name).exists()]
        end_processes_in(existing)
        if existing:
            ip_batch([f"netns delete {name}" for name in existing])
        resolvconf.forget(f"{self.name}-")

    def _save(self) -> None:
        state = {
            "name": self.name,
            "hosts": self.hosts,
            "containers": self.containers,
            "mtu": self.mtu,
            "ready": self.ready,
            "namespaces": self._namespaces,
        }
        path = self.directory / "state.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(state, indent=1) + "\n")
        fresh.replace(path)

    def _lock(self) -> None:
        """Hold the lab's directory until `_unlock` or the end of the process, so that no two change one lab."""
        if self._lock_fd is not None:
            return
        while True:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except PermissionError:
                raise LabError(f"cannot make {self.directory}: run this as root, or with sudo") from None
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                busy = f"another process is at work on lab {self.name!r}: wait for it, or choose another --name"
                raise LabError(busy) from None
            if self.directory.exists() and os.fstat(fd).st_ino == self.directory.stat().st_ino:
                self._lock_fd = fd
                return
            os.close(fd)  # it was removed between our two steps

    @property
    def held(self) -> bool:
        """True while no other process can change this lab."""
        return self._lock_fd is not None

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _container(node: str) -> tuple[str, str]:
    match = _CONTAINER.fullmatch(node)
    if match is None:
        raise LabError(f"{node!r} is not a container of a lab: they are called c1.1, c1.2, c2.1, ...")
    return match[1], match[2]


# The command


def main(argv: Sequence[str]) -> int:
    """`weft lab up|status|exec|down`. Returns the exit status, raises `LabError` for the caller to print."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.run
    with ends_in_order():
        return command(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weft lab", description="Hosts, daemons and containers as network namespaces on this machine."
    )
    verbs = parser.add_subparsers(required=True, metavar="up|status|exec|down")

    up = verbs.add_parser("up", help="build it: hosts, a daemon on each, containers attached")
    up.add_argument("--hosts", type=int, default=3, metavar="N", help="default 3")
    up.add_argument("--containers", type=int, default=2, metavar="M", help="containers on each host, default 2")
    up.add_argument("--mtu", type=int, default=1500, metavar="BYTES", help="of the underlay, default 1500")
    up.set_defaults(run=_up)

    status = verbs.add_parser("status", help="what is there, and which daemons run")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(run=_status)

    inside = verbs.add_parser("exec", help="run a command on a host (h1) or in a container (c1.2)")
    inside.set_defaults(run=_exec)

    down = verbs.add_parser("down", help="remove all of it; nothing to remove is fine")
    down.set_defaults(run=_down)

    for verb in (up, status, inside, down):
        verb.add_argument("--name", default=DEFAULT_NAME, help=f"of the lab, default {DEFAULT_NAME}")
    inside.add_argument("node", metavar="NODE", help="h1, c1.2, or hub")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD", help="default: a shell")
    return parser


def _up(args: argparse.Namespace) -> int:
    lab = Lab(args.name, hosts=args.hosts, containers=args.containers, mtu=args.mtu, say=_progress)
    try:
        lab.up()
    except BaseException:
        if lab.held:  # else it is somebody else's
            with uninterrupted():
                lab.down()
        raise
    print(f"lab {args.name!r} is up. Try: weft lab exec h1 weft status")
    if lab.hosts > 1 and lab.containers:
        print(f"          weft lab exec c1.1 ping -c 3 {lab.address('c2.1')}")
    return 0


def _progress(line: str) -> None:
    print(line, flush=True)


def _status(args: argparse.Namespace) -> int:
    lab = Lab.open(args.name)
    hosts = [
        {
            "node": host,
            "namespace": lab.namespace(host),
            "underlay": [lab.underlay(number), lab.underlay6(number)],
            "daemon_pid": lab.daemon_pid(host),
            "containers": [
                {"node": node, "namespace": lab.namespace(node), "addresses": lab.addresses(node)}
                for node in lab.container_nodes()
                if _container(node)[0] == str(number)
            ],
        }
        for number, host in enumerate(lab.host_nodes(), start=1)
    ]
    if args.json:
        print(json.dumps({"name": lab.name, "mtu": lab.mtu, "ready": lab.ready, "hosts": hosts}, indent=2))
        return 0
    if not lab.ready:
        print(f"lab {lab.name!r} was left unfinished: weft lab down removes it")
    for number, host in enumerate(lab.host_nodes(), start=1):
        pid = lab.daemon_pid(host)
        print(f"{host:6} {lab.underlay(number):16} {f'daemon {pid}' if pid else 'no daemon'}")
        for node in lab.container_nodes():
            if _container(node)[0] == str(number):
                print(f"  {node:6} {'  '.join(lab.addresses(node))}")
    return 0


def _exec(args: argparse.Namespace) -> int:
    lab = Lab.open(args.name)
    if not (NAMESPACES_DIR / lab.namespace(args.node)).exists():
        raise LabError(f"there is no {args.node!r} in lab {lab.name!r}: see weft lab status")
    command = args.command or [os.environ.get("SHELL", "/bin/sh")]
    argv = lab.argv(args.node, command)
    try:
        os.execvpe(argv[0], argv, lab.environment(args.node))
    except OSError as error:
        raise LabError(f"cannot run {argv[0]}: {error.strerror}") from None


def _down(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise LabError("removing a lab needs root: run this as root, or with sudo")
    with uninterrupted():
        Lab(args.name).down()
    return 0
