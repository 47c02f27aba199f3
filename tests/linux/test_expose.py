"""The host itself on the overlay: it talks to containers everywhere, and containers reach the outside through it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from dataplane.desired import Desired, Exposed, RemoteEndpoint
from dataplane.linux.host import LinuxKernel
from tests.linux.hosts import Pair, Space, bridge_mac, differences

pytestmark = pytest.mark.root

HOST4, HOST6 = "10.32.100.1", "fd00:32::100:1"
OUTSIDE4, OUTSIDE6 = "192.0.2.9", "2001:db8:9::9"
RESTORED_S = 1.0


def exposed(masquerade: bool = True, *addresses: str) -> tuple[Exposed, ...]:
    texts = addresses or (f"{HOST4}/16", f"{HOST6}/64")
    return tuple(Exposed(ip_interface(text), masquerade) for text in texts)


class World:
    """The pair, host A exposed as its own daemon and that of B would have it, and a namespace outside behind A.

    The outside knows A's address and nothing of the overlay."""

    def __init__(self, pair: Pair, tmp_path: Path) -> None:
        self.pair = pair
        self.memory = tmp_path / "forwarding.weft"
        self.host, self.container, self.far = pair.a, pair.ca, pair.cb
        self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
        self.outside = pair.lab.space("out")
        self.host.run("ip", "link", "add", "wan", "type", "veth", "peer", "eth0", "netns", self.outside.name)
        for space, device, number in ((self.host, "wan", 1), (self.outside, "eth0", 9)):
            space.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", device)
            space.run("ip", "address", "add", f"2001:db8:9::{number}/64", "dev", device, "nodad")
            space.run("ip", "link", "set", device, "up")
        self.desired = replace(pair.desired_a, exposed=exposed())
        self.hidden = pair.desired_a
        seen = RemoteEndpoint(bridge_mac(1), (ip_address(HOST4), ip_address(HOST6)), ip_address("10.9.0.1"))
        pair.b.publish(replace(pair.desired_b, endpoints=(*pair.desired_b.endpoints, seen)))
        self.restart()

    def restart(self) -> None:
        self.host.stop()
        self.host.start(lambda: LinuxKernel(memory=self.memory))
        self.publish(self.desired)

    def publish(self, desired: Desired) -> None:
        report = self.host.publish(desired)
        assert (dict(report.port_faults), report.faults) == ({}, ())

    def reaches_outside(self, space: Space | None = None) -> bool:
        inside = space or self.container
        return inside.ping(OUTSIDE4, count=1) and inside.ping(OUTSIDE6, count=1)

    def forwarding(self) -> list[str]:
        return self.host.run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding").split()

    def default_routes(self, space: Space | None = None) -> list[str]:
        inside = space or self.container
        return [
            line
            for family in ("-4", "-6")
            for line in inside.run("ip", family, "route", "show", "default").splitlines()
        ]


@pytest.fixture
def world(pair: Pair, tmp_path: Path) -> World:
    return World(pair, tmp_path)


def test_the_host_and_containers_of_every_host_talk(world: World) -> None:
    """Both families, both ways, local and remote."""
    for address in ("10.32.1.1", "fd00:32::1:1", "10.32.2.1", "fd00:32::2:1"):
        assert world.host.ping(address), address
    for space in (world.container, world.far):
        assert space.ping(HOST4) and space.ping(HOST6)
    assert differences(world.host, world.desired) == []


def test_containers_reach_the_outside_under_the_address_of_the_host(world: World) -> None:
    """The outside has no route to the overlay, so answers prove the masquerade."""
    assert world.reaches_outside()
    assert "10.32" not in world.outside.run("ip", "route")
    routes = world.default_routes()
    assert len(routes) == 2 and f"via {HOST4}" in routes[0] and f"via {HOST6}" in routes[1]
