"""Hosts and containers as network namespaces, and an engine that really runs in one of them: what tests here stand on.

Every namespace is named after this process and removed with the lab, whatever happened. Two or three hosts hang on a
hub; the engine of a host is started from a thread inside its namespace, which its own thread then inherits.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TypeVar

from dataplane.desired import Desired, Port, RemoteEndpoint, RemotePeer, Segment, Via
from dataplane.engine import Engine, Report
from dataplane.expansion import expand
from dataplane.kernel import PARTS, Kernel
from dataplane.linux import find_namespace, open_kernel, teardown
from dataplane.linux.host import LinuxKernel
from dataplane.linux.netns import open_namespace, run_inside
from dataplane.linux.tap import open_tap
from dataplane.objects import ACCEPT, GUEST_ADDRESS, PORT, UP, fits
from gossip.names import PeerName

T = TypeVar("T")
_numbers = itertools.count()
REPORT_S = 10.0


def run(*command: str, check: bool = True) -> str:
    """Output of a command; a failure shows what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(condition: Callable[[], object], timeout_s: float = 2.0) -> float:
    """Wait for something to become true; how many seconds that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not so after {timeout_s} s"
        time.sleep(0.002)
    return time.monotonic() - started


class Space:
    """A network namespace of ours."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, *command: str, check: bool = True) -> str:
        # Not `ip netns exec`, which mounts a /sys of its own and takes three times as long.
        return run("nsenter", f"--net={self.path}", *command, check=check)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["nsenter", f"--net={self.path}", *command], stdout=subprocess.PIPE, text=True)

    def inside(self, work: Callable[[], T]) -> T:
        descriptor, _ = open_namespace(self.path)
        try:
            return run_inside(descriptor, work)
        finally:
            os.close(descriptor)

    def ping(self, address: str, *options: str, count: int = 2) -> bool:
        command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", "1", *options, address)
        return "0% packet loss" in self.run(*command, check=False).replace("100% packet loss", "")

    def links(self) -> str:
        return self.run("ip", "-d", "link")

    def delete(self) -> None:
        run("ip", "netns", "del", self.name, check=False)


class Host(Space):
    """A host with the underlay addresses 10.9.0.NUMBER and fd00:9::NUMBER, and maybe an engine."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self.number = number
        self.reports: list[Report] = []
        self.news = threading.Condition()
        self.engine: Engine | None = None
        self.kernel: Kernel | None = None

    def start(self, kernel: Callable[[], Kernel] = open_kernel) -> None:
        self.reports = []

        def body() -> None:
            self.kernel = kernel()
            self.engine = Engine(self.kernel, self._hear)
            self.engine.start()

        self.inside(body)

    def stop(self) -> None:
        if self.engine is not None and self.kernel is not None:
            self.engine.stop()
            self.kernel.close()
        self.engine = self.kernel = None

    def _hear(self, report: Report) -> None:
        with self.news:
            self.reports.append(report)
            self.news.notify_all()

    def publish(self, desired: Desired) -> Report:
        """Publish and wait for the report of it."""
        assert self.engine is not None
        generation = self.engine.publish(desired)
        return self.wait(lambda report: report.generation >= generation, REPORT_S)

    def wait(self, condition: Callable[[Report], object], timeout_s: float = 2.0) -> Report:
        with self.news:
            found = self.news.wait_for(lambda: self.reports and condition(self.reports[-1]), timeout_s)
            assert found, f"no such report within {timeout_s} s; the last: {self.reports[-1:]}"
            return self.reports[-1]

    @property
    def report(self) -> Report:
        return self.reports[-1]

    def tear_down(self, memory: Path | None = None) -> None:
        """As `reset` does with the daemon down."""

        def body() -> None:
            kernel = LinuxKernel(memory=memory)
            try:
                teardown(kernel)
            finally:
                kernel.close()

        self.inside(body)

    def segment(self, mtu: int = 1450, vxlan_port: int | None = 6784, vxlan6: bool = False) -> Segment:
        return Segment("weft", bridge_mac(self.number), mtu, 7, vxlan_port, vxlan6=vxlan6)


def bridge_mac(number: int) -> bytes:
    return bytes((2, 0xAA, 0, 0, 0, number))


def guest_mac(host: int, number: int) -> bytes:
    return bytes((2, 0, 0, 0, host, number))


def guest_addresses(host: int, number: int) -> tuple[str, str]:
    return f"10.32.{host}.{number}/16", f"fd00:32::{host}:{number}/64"


def differences(host: Host, desired: Desired) -> list[str]:
    """What a fresh look at the host finds other than wanted."""
    wanted = expand(desired)

    def look() -> list[str]:
        kernel = LinuxKernel()
        try:
            kernel.watch(wanted.scope)
            found = {key: value for part in PARTS for key, value in kernel.listing(part).items()}
        finally:
            kernel.close()
        lacking = [
            f"{key}: {value}, not {found.get(key)}"
            for key, value in wanted.objects.items()
            if key.kind != ACCEPT and not (key in found and fits(value, found[key]))
        ]
        extra = [str(key) for key in found if key not in wanted.objects and key.kind not in (GUEST_ADDRESS, UP, PORT)]
        return lacking + extra

    return host.inside(look)


class Cable:
    """A plain worker: whatever one host's TAP says, the other one's hears, header and all. `frames` are their sizes."""

    def __init__(self, one: Host, other: Host, offload: bool = True) -> None:
        ends = [host.inside(lambda: open_tap("weft-tap", offload)) for host in (one, other)]
        self.ends = {ends[0]: ends[1], ends[1]: ends[0]}
        self.frames: list[int] = []
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._copy, name="cable", daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        poll = select.poll()
        for descriptor in (*self.ends, self._waker):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._waker:
                    return
                try:
                    frame = os.read(descriptor, 1 << 17)
                    self.frames.append(len(frame))
                    os.write(self.ends[descriptor], frame)
                except BlockingIOError:
                    pass
                except OSError as error:
                    if error.errno not in (errno.EBADFD, errno.EIO):  # removed, or down
                        raise
                    if error.errno == errno.EBADFD:
                        poll.unregister(descriptor)

    def close(self) -> None:
        os.eventfd_write(self._waker, 1)
        self._thread.join()
        for descriptor in (*self.ends, self._waker):
            os.close(descriptor)

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def via(desired: Desired, path: Via) -> Desired:
    """The same with every other host by that path."""
    return replace(
        desired,
        peers=tuple(replace(each, via=path) for each in desired.peers),
        groups=tuple(tuple(replace(each, via=path) for each in group) for group in desired.groups),
    )


class Lab:
    """Hosts on a hub. Container N of host H has 10.32.H.N and fd00:32::H:N."""

    def __init__(self) -> None:
        self._prefix = f"wt{os.getpid()}-{next(_numbers)}"
        self._spaces: list[Space] = []
        self.hub: Space | None = None

    def space(self, name: str) -> Space:
        space = Space(f"{self._prefix}{name}")
        self._spaces.append(space)
        return space

    def host(self, number: int, mtu: int = 1500) -> Host:
        if self.hub is None:
            self.hub = self.space("hub")
            self.hub.run("ip", "link", "add", "hub", "up", "type", "bridge")
        host = Host(f"{self._prefix}h{number}", number)
        self._spaces.append(host)
        end = f"h{number}"
        self.hub.run("ip", "link", "add", end, "mtu", str(mtu), "type", "veth", "peer", "eth0", "netns", host.name)
        self.hub.run("ip", "link", "set", end, "master", "hub", "up")
        host.run("ip", "address", "add", f"10.9.0.{number}/24", "dev", "eth0")
        host.run("ip", "address", "add", f"fd00:9::{number}/64", "dev", "eth0", "nodad")
        host.run("ip", "link", "set", "eth0", "mtu", str(mtu), "up")
        return host

    def close(self) -> None:
        for space in self._spaces:
            if isinstance(space, Host):
                space.stop()
        for space in reversed(self._spaces):
            space.delete()


def port(space: Space, host: int, number: int, mac: bytes | None = None, addresses: Sequence[str] = ()) -> Port:
    """A container as the daemon would describe it."""
    found = find_namespace(space.name)
    return Port(
        ifname=f"vw{host}x{number}",
        guest_ifname="ethwe",
        namespace=found.path,
        namespace_id=found.id,
        mac=mac or guest_mac(host, number),
        addresses=tuple(map(ip_interface, addresses or guest_addresses(host, number))),
    )


def remote(host: int, number: int, mac: bytes | None = None, destination: str | None = "") -> RemoteEndpoint:
    """That container as other hosts see it. `destination` "" is its host."""
    target = f"10.9.0.{host}" if destination == "" else destination
    return RemoteEndpoint(
        mac=mac or guest_mac(host, number),
        addresses=tuple(ip_interface(text).ip for text in guest_addresses(host, number)),
        destination=None if target is None else ip_address(target),
    )


def peer(number: int) -> RemotePeer:
    return RemotePeer(PeerName(bytes(7) + bytes((number,))), bridge_mac(number), ip_address(f"10.9.0.{number}"))


class Pair:
    """Two hosts with a container each, all wired up: the usual starting point."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b = lab.host(1), lab.host(2)
        self.ca, self.cb = lab.space("c1"), lab.space("c2")
        self.port_a, self.port_b = port(self.ca, 1, 1), port(self.cb, 2, 1)
        self.desired_a = Desired(self.a.segment(), (self.port_a,), (peer(2),), ((remote(2, 1),),))
        self.desired_b = Desired(self.b.segment(), (self.port_b,), (peer(1),), ((remote(1, 1),),))

    def start(self) -> None:
        for host, desired in ((self.a, self.desired_a), (self.b, self.desired_b)):
            host.start()
            report = host.publish(desired)
            assert (dict(report.port_faults), report.faults) == ({}, ())
