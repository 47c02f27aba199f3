"""Daemons in the test's own process: real gossip over loopback, real store and engine, a kernel in a dictionary.

Each gets an address of its own in 127.0.0.0/8 and one common port, so that several are as alike as several hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import KernelError, Observation, Operation
from dataplane.linux import underlay
from dataplane.linux.netns import Namespace, NoSuchNamespace
from dataplane.linux.underlay import Survey, UnderlayAddress
from dataplane.memory import MemoryKernel
from dataplane.objects import GUEST_ADDRESS, NEIGHBOUR, Key
from dataplane.sleeve.control import Configure, Graph, PeerStatus, Status
from gossip.names import PeerName
from mesh import attach as attach_module
from mesh import daemon as daemon_module
from mesh import handover as handover_module
from mesh import offloadprober as offloadprober_module
from mesh import pinger as pinger_module
from mesh import prober as prober_module
from mesh import requests
from mesh import returns as returns_module
from mesh import targets as targets_module
from mesh.config import LaunchConfig
from mesh.daemon import Daemon
from mesh.errors import UserError
from mesh.ipam.wants import Claim
from mesh.roster import Entry
from mesh.store import Store

WAIT_LIMIT_S = 10.0
_hosts = itertools.count(2)


class ThreadKernel(MemoryKernel):
    """Waits as a real kernel's socket does, and can be made to hang in the middle of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.running = threading.Event()
        """Operations are done while this is set."""
        self.running.set()
        self.is_asked = threading.Event()
        self.is_closed = False
        self._condition = threading.Condition()
        self._woken = False

    def wait(self, timeout_s: float | None) -> Observation:
        with self._condition:
            if timeout_s != 0.0 and not self._woken and not self._changes:
                self._condition.wait(timeout_s)
            self._woken = False
            return super().wait(timeout_s)

    def wake(self) -> None:
        with self._condition:
            self._woken = True
            self._condition.notify()

    def apply(self, operations: Sequence[Operation]) -> Sequence[KernelError]:
        self.is_asked.set()
        self.running.wait(WAIT_LIMIT_S)
        with self._condition:
            return super().apply(operations)

    def close(self) -> None:
        self.is_closed = True

    def addresses(self) -> dict[str, list[str]]:
        """By the ifname of a container port: what is set inside."""
        found: dict[str, list[str]] = {}
        for key in sorted(self.objects):
            if key.kind == GUEST_ADDRESS:
                found.setdefault(key.device, []).append(f"{ip_address(key.item[:-1])}/{key.item[-1]}")
        return found

    def neighbour(self, address: str) -> object:
        return self.objects.get(Key(NEIGHBOUR, "weft", ip_address(address).packed))


class Stage:
    """Where daemons run: made-up namespaces, made-up underlays, one port."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.port = _free_port()
        self.namespaces = {f"c{number}": Namespace(f"/run/netns/c{number}", (4, number)) for number in range(1, 10)}
        monkeypatch.setattr(targets_module, "find_namespace", self._find)
        monkeypatch.setattr(attach_module, "is_there", self._is_there)
        monkeypatch.setattr(returns_module, "is_there", self._is_there)
        monkeypatch.setattr(pinger_module, "open_probe_socket", self._no_bridge)
        monkeypatch.setattr(prober_module, "open_probe_socket", self._no_bridge)
        monkeypatch.setattr(offloadprober_module, "open_offload_socket", self._no_bridge)
        self._monkeypatch = monkeypatch

    def host(self, name: str, **config: Any) -> Host:
        return Host(self, name, config)

    def use(self, host: Host) -> None:
        """The next daemon that starts finds this host's kernel and underlay."""
        self._monkeypatch.setattr(handover_module, "open_kernel", lambda memory: host.kernel)
        self._monkeypatch.setattr(underlay, "survey", lambda bridge: host.survey)
        self._monkeypatch.setattr(daemon_module, "Supervisor", host.supervise)

    def _find(self, target: str) -> Namespace:
        paths = {found.path: found for found in self.namespaces.values()}
        found = self.namespaces.get(target) or paths.get(target)
        if found is None:
            raise NoSuchNamespace(f"network namespace {target!r} does not exist")
        return found

    def _is_there(self, path: str, expected: tuple[int, int]) -> bool:
        return any(found == Namespace(path, expected) for found in self.namespaces.values())

    def _no_bridge(self, bridge: str) -> socket.socket:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


class StandIn:
    """In the supervisor's place: no process, and a record of what a worker would be told."""

    def __init__(self, host: Host, settings: Configure, epoch: int) -> None:
        self.host = host
        self.settings, self.epoch = settings, epoch
        self.status: Status | None = None
        self.peers: Mapping[PeerName, PeerStatus] = {}
        self.started = 0
        self.trouble_text: str | None = None
        self.told: Mapping[PeerName, Entry] = {}
        self.graph = Graph(())
        self.expected: set[PeerName] = set()
        self.on_news: Callable[[], None] = lambda: None
        self.settled = False
        self.refusal = host.refusal
        self.ended: bool | None = None
        self.renewed: list[int] = []
        self.reconfigured: list[Configure] = []
        self.did: list[str] = []

    async def prepare(self) -> None:
        """Notes whether the kernel was touched before."""
        self.did.append(f"prepare after {len(self.host.kernel.operations)} operations")

    async def start(self) -> None:
        self.did.append("start with " + ",".join(sorted({key.device for key in self.host.kernel.objects})))
        self.started += 1
        if self.refusal:
            raise UserError(self.refusal)

    def tell(self, peers: Mapping[PeerName, Entry], graph: Graph, settled: bool) -> None:
        self.told, self.graph, self.settled = dict(peers), graph, settled

    @property
    def known(self) -> Mapping[PeerName, PeerStatus]:
        return self.peers

    def expect(self, peers: Collection[PeerName]) -> None:
        self.expected |= set(peers)

    def trouble(self, now: float) -> str | None:
        return self.trouble_text

    def renew(self, epoch: int) -> None:
        self.renewed.append(epoch)

    def reconfigure(self, settings: Configure) -> None:
        self.reconfigured.append(settings)

    async def close(self, *, end: bool) -> None:
        self.ended = end


class Host:
    """One host: its disk and its kernel outlive its daemons."""

    def __init__(self, stage: Stage, name: str, config: dict[str, Any]) -> None:
        number = next(_hosts)
        self.stage = stage
        self.address = f"127.0.{number // 250}.{number % 250 + 2}"
        told = ip_address(f"192.0.2.{number % 250 + 2}")
        self.kernel = ThreadKernel()
        self.survey = Survey((UnderlayAddress(told, ip_network("192.0.2.0/24"), "eth0", 1500),), None)
        self.config = LaunchConfig(
            run_dir=str(stage.path / name / "run"),
            state_dir=str(stage.path / name / "state"),
            port=stage.port,
            host=self.address,
            advertise=(str(told),),
            nickname=name,
            docker_socket=str(stage.path / "docker.sock"),
            dns=False,
        )
        self.config = replace(self.config, **config)
        self.store: Store | None = None
        self.refusal = ""
        """Why its worker does not come up."""
        self.sleeves: list[StandIn] = []

    def supervise(
        self, run_dir: str, state_dir: str, settings: Configure, epoch: int, *, on_news: Callable[[], None]
    ) -> StandIn:
        self.sleeves.append(StandIn(self, settings, epoch))
        self.sleeves[-1].on_news = on_news
        return self.sleeves[-1]

    @contextlib.asynccontextmanager
    async def made(self, **config: Any) -> AsyncIterator[Daemon]:
        """A daemon that has not been started; closed in the end, whatever became of it."""
        self.stage.use(self)
        with Store(self.config.state_dir) as store:
            daemon = Daemon(replace(self.config, **config), store, self.survey)
            try:
                yield daemon
            finally:
                await daemon.close()
                self.survey = replace(self.survey, bridge_mtu=1450 if self.kernel.objects else None)

    @contextlib.asynccontextmanager
    async def launched(self, **config: Any) -> AsyncIterator[Daemon]:
        async with self.made(**config) as daemon:
            await daemon.start()
            yield daemon


async def nobody(row: object) -> None:
    """Takes the rows of a stream."""


async def ask(daemon: Daemon, request: requests.Request) -> Any:
    return await daemon.handle(request, nobody)


async def read(daemon: Daemon, verb: str) -> Any:
    return await ask(daemon, requests.Read(verb))


def attach(target: str, *addresses: str) -> requests.Attach:
    return requests.Attach(target, tuple(Claim(ip_interface(each)) for each in addresses), "weft", (), ())


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.01)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60.0))


def document(stage: Stage, host: str, name: str) -> Any:
    """What is on a host's disk, read past the store."""
    path = stage.path / host / "state" / f"{name}.weft"
    return json.loads(path.read_text())["payload"] if path.exists() else None


async def joined(*daemons: Any) -> None:
    others = len(daemons) - 1
    await until(lambda: all(len(each.node.replica.reachable) == others for each in daemons), "all are in reach")
    await until(lambda: all(each.node.settled for each in daemons), "the state is in")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
