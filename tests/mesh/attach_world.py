"""A host around the attach workflow, for tests that need no root.

The store is a real one, the engine and the reconciler are the real ones over a kernel in a dictionary; namespaces and
other hosts are made up.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dataplane.desired import Segment
from dataplane.engine import Engine, Report
from dataplane.kernel import DELETE, Fault, KernelError, Operation
from dataplane.linux.netns import Namespace, NoSuchNamespace
from dataplane.memory import MemoryKernel
from dataplane.objects import GUEST_ADDRESS, NEIGHBOUR, Guest, Key, Value
from gossip.names import PeerName
from gossip.pages import TablePager
from mesh import arguments, requests
from mesh import attach as attach_module
from mesh import targets as targets_module
from mesh.attach import DOCUMENT, Attachments, Surroundings
from mesh.attachment import Attachment
from mesh.docker import Docker, DockerError, NoSuchContainer
from mesh.dockerwire import Container
from mesh.endpoints import Binding, Endpoint, EndpointTable, bridge_mac, derive_mac, encode_row
from mesh.expose import Exposures
from mesh.forwarding import Forwarding
from mesh.ipam.wants import Claim, FromSubnet, Want
from mesh.requests import ApiError
from mesh.store import Store, StoreError
from mesh.targets import Place, Targets
from tests.mesh.made_up_ipam import MadeUpIpam

T = TypeVar("T")
ME, P, Q = (PeerName(bytes([number]) * 8) for number in (5, 3, 7))
SEGMENT = Segment("weft", bridge_mac(ME), 1450, 7, 6784)


class Kernel(MemoryKernel):
    """A namespace can be gone here."""

    def __init__(self) -> None:
        super().__init__()
        self.vanished: set[str] = set()

    def apply(self, operations: Sequence[Operation]) -> Sequence[KernelError]:
        refused = [each for each in operations if each.verb != DELETE and each.key.device in self.vanished]
        errors = [KernelError(errno.ESTALE, each, "the namespace is gone", "namespace-gone") for each in refused]
        return [*errors, *super().apply([each for each in operations if each not in refused])]


class MadeUpDocker(Docker):
    """A Docker Engine that answers at once, from a list."""

    def __init__(self) -> None:
        super().__init__("/run/made-up-docker.sock")
        self.containers: dict[str, Container] = {}
        self.trouble = ""
        self.asked: list[str] = []

    async def inspect(self, reference: str) -> Container:
        self.asked.append(reference)
        if self.trouble:
            raise DockerError(self.trouble)
        found = [each for each in self.containers.values() if each.name == reference or each.id.startswith(reference)]
        if len(found) != 1:
            raise NoSuchContainer(f"No such container: {reference}")
        return found[0]


class World:
    """A host around the workflow, one life of its daemon after another."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store(str(path / "state"))
        self.namespaces: dict[str, Namespace] = {}
        self.table = EndpointTable()
        self.pager = TablePager()
        self.kernel = Kernel()
        self.report = Report(0)
        self.engine = Engine(self.kernel, self._reported, clock=lambda: self.now)
        self.now = 0.0
        self.reachable: set[PeerName] = set()
        self.nicknames = {P: "alpha", Q: "omega"}
        self.settled = 0
        self.disk_full = False
        self.told: list[tuple[str, Endpoint | None]] = []
        self.publish: Callable[[], Coroutine[Any, Any, dict[str, Fault]]] = self._publish
        self.boot = "this boot"
        self.docker = MadeUpDocker()
        self.targets = Targets(self.docker)
        self.proc = path / "proc"
        self.ipam = MadeUpIpam()
        monkeypatch.setattr(targets_module, "find_namespace", self._find)
        monkeypatch.setattr(targets_module, "PROC", self.proc)
        monkeypatch.setattr(attach_module, "is_there", self._is_there)
        monkeypatch.setattr(attach_module, "boot_id", lambda: self.boot)
        self.add("c1", 1)
        self.add("c2", 2)
        self.attachments = self.launch()

    def launch(self) -> Attachments:
        around = Surroundings(
            store=self.store,
            write=self._write,
            own=ME,
            table=self.table,
            targets=self.targets,
            nickname_of=lambda peer: self.nicknames[peer],
            is_reachable=lambda peer: peer in self.reachable,
            wait_settled=self._wait_settled,
            publish=lambda: self.publish(),
            tell=self._tell,
            ipam=self.ipam,
        )
        attachments = Attachments(around)
        self.exposures = Exposures(around, attachments)
        return attachments

    def add(self, name: str, inode: int) -> None:
        self.namespaces[name] = Namespace(f"/run/netns/{name}", (4, inode))

    def add_process(self, pid: int, inode: int, container: str = "") -> None:
        """A process in a namespace without a name; `container`: as its control groups say."""
        self.namespaces[str(pid)] = Namespace(f"/proc/{pid}/ns/net", (4, inode))
        (self.proc / str(pid)).mkdir(parents=True)
        groups = f"12:pids:/docker/{container}\n0::/docker/{container}\n" if container else "0::/user.slice\n"
        (self.proc / str(pid) / "cgroup").write_text(groups)

    def add_container(self, name: str, pid: int, inode: int, id: str = "") -> str:
        """A container that runs; its whole id."""
        id = id or hashlib.sha256(name.encode()).hexdigest()
        self.docker.containers[id] = Container(id, name, pid)
        if pid:
            self.add_process(pid, inode, id)
        return id

    def end_process(self, pid: int) -> None:
        del self.namespaces[str(pid)]

    def reported_gone(self, *attachments: Attachment) -> None:
        """The kernel says that the namespaces of these have ended."""
        self.kernel.vanished.update(each.ifname for each in attachments)
        run(self.attachments.vanished(frozenset(each.ifname for each in attachments)))

    def there_again(self, **places: Place) -> None:
        """By id: where attachments are found."""
        by_id = {each.id: each.ifname for each in self.attachments.all()}
        self.kernel.vanished.difference_update(by_id[id] for id in places)
        run(self.attachments.come_back({by_id[id]: place for id, place in places.items()}))

    def _find(self, target: str) -> Namespace:
        paths = {found.path: found for found in self.namespaces.values()}
        found = self.namespaces.get(target) or paths.get(target.replace("/var/run/", "/run/"))
        if found is None:
            raise NoSuchNamespace(f"network namespace {target!r} does not exist; 'ip netns' lists the named ones")
        return found

    def _is_there(self, path: str, expected: tuple[int, int]) -> bool:
        return any(found == Namespace(path, expected) for found in self.namespaces.values())

    async def _wait_settled(self) -> None:
        self.settled += 1

    async def _write(self, name: str, payload: dict[str, Any]) -> None:
        if self.disk_full:
            raise StoreError("cannot save (No space left on device); free some space")
        await asyncio.sleep(0)
        self.store.write(name, payload)

    def _reported(self, report: Report) -> None:
        self.report = report

    async def _publish(self) -> dict[str, Fault]:
        ports = tuple(attachment.port for attachment in self.attachments.here())
        desired = Forwarding().desired(SEGMENT, ports, {}, self.table, ME, frozenset(), True)
        desired = replace(desired, exposed=tuple(held.wanted for held in self.exposures.all()))
        generation = self.engine.publish(desired)
        await asyncio.sleep(0)
        while self.report.generation < generation:
            self.engine.turn(self.kernel.wait(0))
        return dict(self.report.port_faults)

    def _tell(self, ifname: str, endpoint: Endpoint | None) -> None:
        self.told.append((ifname, endpoint))
        changed = self.pager.put(ifname, encode_row(endpoint)) if endpoint else self.pager.remove(ifname)
        for index in sorted(changed):
            assert self.table.replace_page(ME, index, self.pager.body(index)) == 0

    # What tests look at

    def elsewhere(self, owner: PeerName, address: str, claim: int = 1, salt: int = 0) -> Endpoint:
        """Another host's endpoint is heard of."""
        ip = ip_address(address)
        endpoint = Endpoint(owner, f"c-{owner[0]}", derive_mac("weft", ip, salt), (Binding(ip, 16, claim),))
        pager = TablePager()
        pager.put("x", encode_row(endpoint))
        self.table.replace_page(owner, 0, pager.body(0))
        return endpoint

    def on_disk(self) -> list[dict[str, Any]]:
        document = self.store.read(DOCUMENT)
        return [] if document is None else list(document["attachments"])

    def state(self) -> tuple[Any, ...]:
        """Memory, disk, what was told, what is given, and the kernel: what a failed change must leave as it was."""
        told = [encode_row(each) for each in self.table.of(ME)]
        # IPv6 that was switched on inside for an address stays on: nobody knows who else relies on it by now.
        kernel = {
            key: value._replace(ipv6=None) if isinstance(value, Guest) else value
            for key, value in self.kernel.objects.items()
        }
        return self.attachments.all(), self.on_disk(), told, kernel, dict(self.ipam.given)

    def kernel_addresses(self, attachment: Attachment) -> dict[str, Value]:
        """What the container has, by address."""
        found = {}
        for key in self.kernel.objects:
            if key.kind == GUEST_ADDRESS and key.device == attachment.ifname:
                packed, length = key.item[:-1], key.item[-1]
                found[f"{ip_address(packed)}/{length}"] = self.kernel.objects[Key(NEIGHBOUR, "weft", packed)]
        return found


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def wants(*texts: str) -> tuple[Want, ...]:
    return tuple(
        FromSubnet(arguments.parse_subnet(text)) if text.startswith("net:") else Claim(ip_interface(text))
        for text in texts
    )


def wish(target: str, *addresses: str, labels: dict[str, str] | None = None, names: Sequence[str] = ()) -> Any:
    return requests.Attach(target, wants(*addresses), "weft", tuple(sorted((labels or {}).items())), tuple(names))


def unwish(target: str, *addresses: str) -> requests.Detach:
    return requests.Detach(target, tuple(ip_interface(address) for address in addresses))


def attach(world: World, target: str, *addresses: str, **more: Any) -> Attachment:
    return run(world.attachments.attach(wish(target, *addresses, **more)))


def detach(world: World, target: str, *addresses: str) -> list[str]:
    return [str(binding) for binding in run(world.attachments.detach(unwish(target, *addresses)))]


def refused(world: World, work: Coroutine[Any, Any, object], code: str) -> str:
    """It is refused with that code and one line, and nothing has changed."""
    before = world.state()
    with pytest.raises(ApiError) as caught:
        run(work)
    assert caught.value.code == code, caught.value
    assert world.state() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)
