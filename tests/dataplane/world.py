"""A reconciler and a kernel in memory, and desired states by numbers: what tests of differences and order stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from dataplane.desired import SLEEVE, VXLAN, Address, Desired, Exposed, Port, RemoteEndpoint, RemotePeer, Segment, Via
from dataplane.expansion import Expander, expand
from dataplane.kernel import PARTS, Operation
from dataplane.memory import MemoryKernel
from dataplane.objects import ACCEPT, Key, Value, fits
from dataplane.reconcile import Reconciler
from gossip.names import PeerName

SEGMENT = Segment("weft", bytes.fromhex("02aa00000001"), 1450, 7, 6784)
KINDS = frozenset().union(*PARTS.values())


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def port(number: int, namespace: int = 1000) -> Port:
    addresses = (ip_interface(f"10.32.0.{number}/16"), ip_interface(f"fd00::{number}/64"))
    return Port(f"vw{number}", "ethwe", f"/run/netns/{number}", (4, namespace), mac(number), addresses)


def underlay(host: int, version: int = 4) -> Address:
    return ip_address(f"10.9.0.{host}" if version == 4 else f"fd00:9::{host}")


def peer(number: int, via: Via = VXLAN, version: int = 4, spare: int | None = None) -> RemotePeer:
    """`spare` is an IP version too: of the address that is only probed."""
    mac = bytes((2, 0xAA, 0, 0, 0, number))
    beside = None if spare is None else underlay(number, spare)
    return RemotePeer(PeerName(bytes(8)), mac, underlay(number, version), via, beside)


def endpoint(number: int, host: int | None = 2, via: Via = VXLAN, version: int = 4) -> RemoteEndpoint:
    destination = None if host is None else underlay(host, version)
    addresses = (ip_address(f"10.32.0.{number}"), ip_address(f"fd00::{number}"))
    return RemoteEndpoint(mac(number), addresses, destination, via)


SEGMENT6 = replace(SEGMENT, vxlan6=True)
DESIRED = Desired(SEGMENT, (port(1),), (peer(2), peer(3)), ((endpoint(11), endpoint(12, 3), endpoint(13, None)),))


EXPOSED = replace(
    DESIRED, exposed=(Exposed(ip_interface("10.32.0.200/16")), Exposed(ip_interface("fd00::200/64")))
)


def by_sleeve(desired: Desired) -> Desired:
    """The same with everybody via the sleeve."""
    return replace(
        desired,
        peers=tuple(replace(each, via=SLEEVE) for each in desired.peers),
        groups=tuple(tuple(replace(each, via=SLEEVE) for each in group) for group in desired.groups),
    )


class World:
    """A reconciler and its kernel, driven as the engine drives them, with a clock by hand."""

    def __init__(self, objects: Mapping[Key, Value] | None = None) -> None:
        self.kernel = MemoryKernel()
        self.kernel.objects = dict(objects or {})
        self.reconciler = Reconciler()
        self.expander = Expander()
        self.now = 0.0

    def want(self, desired: Desired) -> None:
        self.reconciler.want(self.expander.expand(desired))

    def list_all(self) -> None:
        self.kernel.wait(0.0)
        self.reconciler.replace(KINDS, dict(self.kernel.objects))

    def one_pass(self) -> list[Operation]:
        done: list[Operation] = []
        for stage in self.reconciler.plan(self.now):
            operations = [operation for operation in stage if self.reconciler.ready(operation)]
            errors = {id(error.operation): error for error in self.kernel.apply(operations)}
            for operation in operations:
                self.reconciler.record(operation, errors.get(id(operation)), self.now)
            done += operations
        return done

    def settle(self) -> list[Operation]:
        """Passes until nothing is left to do for now."""
        done: list[Operation] = []
        for _ in range(10):
            for key, value in self.kernel.wait(0.0).changes:
                self.reconciler.observe(key, value)
            if self.reconciler.take_stale():
                self.list_all()
            if not self.reconciler.is_pending:
                return done
            done += self.one_pass()
        raise AssertionError("does not settle")

    def later(self, seconds: float) -> list[Operation]:
        self.now += seconds
        self.reconciler.retry(self.now)
        return self.settle()

    def reach(self, desired: Desired) -> list[Operation]:
        self.want(desired)
        self.list_all()
        return self.settle()

    def assert_holds(self, desired: Desired) -> None:
        """Exactly what is wanted is there, but for what cannot be had."""
        wanted = {key: value for key, value in expand(desired).objects.items() if key.kind != ACCEPT}
        found = {key: value for key, value in self.kernel.objects.items() if key.kind != ACCEPT}
        assert {key for key in found if key not in wanted} == set()
        assert {key for key, value in wanted.items() if key not in found or not fits(value, found[key])} == set()
