"""The host itself on the overlay: it talks to containers everywhere, and containers reach the outside through it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from dataplane.desired import Desired, Exposed, RemoteEndpoint
from dataplane.linux.collision import collision, host_routes
from dataplane.linux.firewall import Firewall, run_nft
from dataplane.linux.host import LinuxKernel
from tests.linux.hosts import Host, Lab, Pair, Space, bridge_mac, differences, port, until

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
            # Without an address of its own that is no longer tentative a device asks nobody for a neighbour.
            space.run("sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
            space.run("ip", "link", "set", device, "up")
        self.desired = replace(pair.desired_a, exposed=exposed())
        self.hidden = pair.desired_a
        seen = RemoteEndpoint(bridge_mac(1), (ip_address(HOST4), ip_address(HOST6)), ip_address("10.9.0.1"))
        pair.b.publish(replace(pair.desired_b, groups=(*pair.desired_b.groups, (seen,))))
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


def test_a_remote_container_may_use_the_host_as_its_gateway(world: World) -> None:
    """It names the exposed address itself; answers find back to it over the overlay."""
    for family, gateway in (("-4", HOST4), ("-6", HOST6)):
        world.far.run("ip", family, "route", "add", "default", "via", gateway)
    assert world.reaches_outside(world.far)


def test_between_containers_and_to_them_from_the_host_nothing_is_masqueraded(world: World) -> None:
    """Whoever listens on the overlay sees the real other end, and outside that of the host."""
    with Process(world.far, SERVER), Process(world.outside, SERVER):
        for space, address, seen in (
            (world.container, "10.32.2.1", "::ffff:10.32.1.1"),
            (world.container, "fd00:32::2:1", "fd00:32::1:1"),
            (world.host, "10.32.2.1", f"::ffff:{HOST4}"),
            (world.host, "fd00:32::2:1", HOST6),
            (world.container, OUTSIDE4, "::ffff:192.0.2.1"),
            (world.container, OUTSIDE6, "2001:db8:9::1"),
        ):
            assert space.run("python3", "-c", CLIENT, address).strip() == seen, address


def test_frames_between_containers_of_different_networks_are_not_masqueraded(world: World) -> None:
    """They cross the same hooks as routed packets, from a network that is not exposed into one that is."""
    space = world.pair.lab.space("c3")
    other = port(space, 1, 3, addresses=("10.40.0.3/16",))
    world.publish(replace(world.desired, ports=(*world.desired.ports, other)))
    assert world.host.run("sysctl", "-n", "net.bridge.bridge-nf-call-iptables").strip() == "1"
    space.run("ip", "route", "add", "10.32.0.0/16", "dev", "ethwe")
    world.container.run("ip", "route", "add", "10.40.0.0/16", "dev", "ethwe")
    with Process(world.container, SERVER):
        assert space.run("python3", "-c", CLIENT, "10.32.1.1").strip() == "::ffff:10.40.0.3"


def test_what_comes_from_nowhere_in_an_exposed_network_does_not_get_out(world: World) -> None:
    """Nobody would masquerade it. Where that network is routed as it is, it may."""
    space = world.pair.lab.space("c3")
    other = port(space, 1, 3, addresses=("10.40.0.3/16",))
    ports = (*world.desired.ports, other)
    world.outside.run("ip", "route", "add", "10.40.0.0/16", "via", "192.0.2.1")
    for name in ("all", "weft"):
        world.host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    plain = exposed(False, "10.40.100.1/16")
    for more, passes in (((), False), (plain, True), ((), False)):
        world.publish(replace(world.desired, ports=ports, exposed=(*exposed(), *more)))
        space.run("ip", "route", "replace", "default", "via", HOST4, "dev", "ethwe", "onlink")
        assert space.ping(OUTSIDE4, count=1) is passes


SERVER = """
import socket
s = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, a = s.accept()
    c.sendall(a[0].encode())
    c.close()
"""
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), 2).recv(99).decode())"
"""It prints the address that the server sees it come from."""


class Process:
    """A Python program that runs in a namespace while this is held; it has begun to listen by then."""

    def __init__(self, space: Space, program: str) -> None:
        self._process = subprocess.Popen(["nsenter", f"--net={space.path}", sys.executable, "-c", program])
        until(lambda: ":7000" in space.run("ss", "-ltn"))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def test_what_comes_in_unasked_is_dropped_unless_it_was_redirected(world: World) -> None:
    """The outside with a route of its own to the overlay; then a port that the user of the host redirects, to a
    container of another host even: its answers come back here, because it sees the exposed address."""
    world.outside.run("ip", "route", "add", "10.32.0.0/16", "via", "192.0.2.1")
    assert not world.outside.ping("10.32.1.1", count=1) and not world.outside.ping("10.32.2.1", count=1)
    redirect = "-t nat -A PREROUTING -i wan -p icmp -j DNAT --to 10.32.2.1"
    world.host.run("iptables", *redirect.split())
    assert world.outside.ping("192.0.2.1", count=1)


def test_without_masquerade_the_network_is_routed_as_it_is(world: World) -> None:
    """Both ways where the outside knows the way back; no table of ours is there."""
    world.publish(replace(world.desired, exposed=exposed(False)))
    assert "table inet weft" not in world.host.run("nft", "list", "tables")
    assert not world.container.ping(OUTSIDE4, count=1)
    world.outside.run("ip", "route", "add", "10.32.0.0/16", "via", "192.0.2.1")
    world.outside.run("ip", "route", "add", "fd00:32::/64", "via", "2001:db8:9::1")
    assert world.reaches_outside()
    assert world.outside.ping("10.32.1.1", count=1) and world.outside.ping("fd00:32::1:1", count=1)


# What is taken back.


def test_hiding_leaves_nothing_and_the_neighbours_are_there_again(world: World) -> None:
    """With the last IPv4 address the kernel empties the neighbour table without a word."""
    world.publish(world.hidden)
    assert differences(world.host, world.hidden) == []
    assert world.default_routes() == [] and world.forwarding() == ["0", "0"] and not world.memory.exists()
    assert "table inet weft" not in world.host.run("nft", "list", "tables")
    assert "10.32" not in world.host.run("ip", "route") and not world.host.ping("10.32.1.1", count=1)
    until(lambda: "10.32.2.1" in world.host.run("ip", "neigh", "show", "dev", "weft"))
    assert world.container.ping("10.32.2.1") and world.container.ping("fd00:32::2:1")


SYSCTLS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.accept_redirects",
           "net.ipv4.conf.wan.forwarding", "net.ipv6.conf.wan.forwarding", "net.ipv6.conf.wan.accept_ra",
           "net.ipv6.conf.eth0.accept_ra", "net.ipv4.conf.eth0.forwarding")  # fmt: skip


@pytest.mark.parametrize("by", ["hide", "teardown", "teardown after a restart"])
def test_sysctls_are_as_they_were_before(world: World, by: str) -> None:
    """Each one that the switch changes; and while the host forwards it still listens to routers where it did."""
    world.publish(world.hidden)
    world.host.run("sysctl", "-qw", "net.ipv4.conf.wan.forwarding=1", "net.ipv4.conf.all.accept_redirects=0")
    world.host.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv6.conf.wan.accept_ra=0")
    before = world.host.run("sysctl", *SYSCTLS)
    world.publish(world.desired)
    assert world.forwarding() == ["1", "1"]
    accept_ra = ("net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.wan.accept_ra", "net.ipv6.conf.weft.accept_ra")
    assert world.host.run("sysctl", "-n", *accept_ra).split() == ["2", "0", "0"]
    if by == "hide":
        world.publish(world.hidden)
    else:
        if by == "teardown after a restart":
            world.restart()
        world.host.stop()
        world.host.tear_down(world.memory)
    assert world.host.run("sysctl", *SYSCTLS) == before
    assert not world.memory.exists()


def test_forwarding_that_was_on_before_stays_on(world: World) -> None:
    """Somebody else needs it."""
    world.publish(world.hidden)
    world.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    world.publish(world.desired)
    world.publish(world.hidden)
    assert world.forwarding() == ["1", "1"]


def test_what_another_boot_remembered_does_not_count(world: World) -> None:
    """By then somebody may have configured the host to forward."""
    document = json.loads(world.memory.read_text())
    world.host.stop()
    world.memory.write_text(json.dumps({**document, "boot": "another"}))
    world.restart()
    world.publish(world.hidden)
    assert world.forwarding() == ["1", "1"]


def test_teardown_leaves_no_trace(world: World) -> None:
    """Beside Docker's rules, whose chain is as it was."""
    world.host.stop()
    world.host.tear_down(world.memory)
    docker(world.host)
    before = world.host.run("nft", "-s", "list", "ruleset")
    routes = world.host.run("ip", "route") + world.host.run("ip", "-6", "route")
    world.restart()
    until(lambda: world.host.run("iptables", "-S", "FORWARD").count("-o weft") == 2)
    world.host.stop()
    world.host.tear_down(world.memory)
    assert world.host.run("nft", "-s", "list", "ruleset") == before
    assert world.host.run("ip", "route") + world.host.run("ip", "-6", "route") == routes
    assert world.forwarding() == ["0", "0"]


# What others do.

MEDDLING = [
    "ip address flush dev weft",
    "ip address del 10.32.100.1/16 dev weft",
    "ip address del fd00:32::100:1/64 dev weft",
    "nft flush ruleset",
    "nft delete table inet weft",
    "nft flush chain inet weft postrouting",
    "nft delete chain inet weft forward",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv6.conf.all.forwarding=0",
    "ip link del weft",
    "ip link set weft down",
]
INSIDE = ["ip route del default", "ip -6 route del default", "ip link set ethwe down", "ip route flush proto 87",
          "ip address flush dev ethwe"]  # fmt: skip


@pytest.mark.parametrize("command", [*MEDDLING, *INSIDE])
def test_damage_is_repaired_within_a_second(world: World, command: str) -> None:
    """And pings pass again, out and between hosts."""
    (world.container if command in INSIDE else world.host).run(*command.split())
    until(lambda: not differences(world.host, world.desired), RESTORED_S)
    assert world.reaches_outside() and world.host.ping("10.32.2.1") and world.host.ping("fd00:32::2:1")


def test_a_ruleset_flushed_again_and_again_is_back_within_a_second_each_time(world: World) -> None:
    """The pause after a look at the firewall does not count where our own table is gone."""
    slowest = 0.0
    for _ in range(5):
        world.host.run("nft", "flush", "ruleset")
        slowest = max(slowest, until(lambda: "table inet weft" in world.host.run("nft", "list", "tables"), RESTORED_S))
    assert slowest < RESTORED_S


def test_a_pause_that_a_slow_look_makes_long_does_not_keep_our_table_away(pair: Pair, tmp_path: Path) -> None:
    """A look of 0.1 s is followed by a pause of 1 s; a lost table comes back sooner."""

    def slow(commands: str) -> str:
        time.sleep(0.03)
        return run_nft(commands)

    world = World(pair, tmp_path)
    world.host.stop()
    world.host.start(lambda: LinuxKernel(Firewall(slow), world.memory))
    world.publish(world.desired)
    for _ in range(3):
        world.host.run("nft", "flush", "ruleset")
        until(lambda: "inet weft" in world.host.run("nft", "list", "tables"), RESTORED_S)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_default_route_of_the_containers_own_makes_ours_go_until_it_goes(world: World, family: str) -> None:
    """Whoever comes first; it is never touched."""
    own = ("dev", "ethwe", "via", "10.32.2.1" if family == "-4" else "fd00:32::2:1", "metric", "7")
    ours = HOST4 if family == "-4" else HOST6

    def shown() -> list[str]:
        return world.container.run("ip", family, "route", "show", "default").splitlines()

    world.container.run("ip", family, "route", "add", "default", *own)
    until(lambda: len(shown()) == 1 and "metric 7" in shown()[0], RESTORED_S)
    world.publish(world.hidden)
    world.publish(world.desired)
    assert len(shown()) == 1 and "metric 7" in shown()[0]
    world.container.run("ip", family, "route", "del", "default", *own)
    until(lambda: len(shown()) == 1 and ours in shown()[0], RESTORED_S)


def test_a_container_in_another_network_gets_no_default_route(world: World) -> None:
    """It could not reach the gateway."""
    space = world.pair.lab.space("c3")
    other = port(space, 1, 3, addresses=("10.40.0.3/16", "fd00:40::3/64"))
    world.publish(replace(world.desired, ports=(*world.desired.ports, other)))
    assert world.default_routes(space) == [] and len(world.default_routes()) == 2


# Beside other firewalls.


def docker(host: Host) -> None:
    """What Docker does to forwarded packets."""
    for command in ("iptables", "ip6tables"):
        host.run(command, "-P", "FORWARD", "DROP")
        host.run(command, "-N", "DOCKER-USER")
        host.run(command, "-A", "DOCKER-USER", "-j", "RETURN")
        host.run(command, "-A", "FORWARD", "-j", "DOCKER-USER")
        host.run(command, "-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED",
                 "-j", "ACCEPT")  # fmt: skip


def ufw(host: Host) -> None:
    """What `ufw enable` does to forwarded packets: dropped after a walk through chains of its own."""
    for command, prefix in (("iptables", "ufw"), ("ip6tables", "ufw6")):
        host.run(command, "-P", "FORWARD", "DROP")
        for chain in ("before-forward", "after-forward", "reject-forward"):
            host.run(command, "-N", f"{prefix}-{chain}")
            host.run(command, "-A", "FORWARD", "-j", f"{prefix}-{chain}")
        host.run(command, "-A", f"{prefix}-before-forward", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED",
                 "-j", "ACCEPT")  # fmt: skip


FIREWALLD = """
table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority filter + 10; policy accept;
  ct state established,related accept
  ct status dnat accept
  iifname "lo" accept
  jump filter_FORWARD_ZONES
  ct state invalid drop
  reject with icmpx type admin-prohibited
 }
 chain filter_FORWARD_ZONES {
  goto filter_FWD_public
 }
 chain filter_FWD_public {
  reject with icmpx type admin-prohibited
 }
 chain filter_FWD_trusted {
  accept
 }
}
"""
TRUSTED = 'insert rule inet firewalld filter_FORWARD_ZONES iifname "weft" goto filter_FWD_trusted'
"""What firewalld makes of the bridge in its zone `trusted`."""


@pytest.mark.parametrize("rules", [docker, ufw])
def test_packets_pass_beside_docker_and_ufw(world: World, rules: Callable[[Host], None]) -> None:
    """And iptables still reads its table, or those two could not go on; what is unasked stays out."""
    world.outside.run("ip", "route", "add", "10.32.0.0/16", "via", "192.0.2.1")
    rules(world.host)
    until(lambda: world.host.run("iptables", "-S", "FORWARD").count("-o weft") == 2)
    until(lambda: world.host.run("ip6tables", "-S", "FORWARD").count("-o weft") == 2)
    assert world.reaches_outside() and world.container.ping("10.32.2.1")
    assert not world.outside.ping("10.32.1.1", count=1)
    assert world.host.report.warnings == ()
    assert "weft" in world.host.run("iptables-save") and "incompatible" not in world.host.run("iptables-save")
    world.publish(world.hidden)
    assert world.host.run("iptables", "-S", "FORWARD").count("weft") == 3  # the one between containers, and its mark


@pytest.mark.parametrize("bridged", ["0", "1"])
def test_firewalld_is_named_with_its_own_cure(world: World, bridged: str) -> None:
    """An accept elsewhere does not help against its table, and rules that are not its own it would drop. `bridged`:
    whether frames between containers pass it too."""
    for name in ("iptables", "ip6tables"):
        world.host.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}={bridged}")
    world.host.run("nft", FIREWALLD)
    warning = world.host.wait(lambda report: report.warnings).warnings[0]
    assert warning.code == "forward-drop" and "inet firewalld filter_FORWARD drops" in warning.text
    assert warning.cure == "firewall-cmd --permanent --zone=trusted --add-interface=weft && firewall-cmd --reload"
    assert not world.container.ping(OUTSIDE4, count=1)
    world.host.run("nft", TRUSTED)
    assert world.reaches_outside() and world.container.ping("10.32.2.1")
    assert world.host.wait(lambda report: not report.warnings).warnings == ()


def test_a_foreign_chain_that_drops_only_routed_packets_is_named_with_a_cure_that_works(world: World) -> None:
    """Frames between containers it lets pass, so only the way out and back is spoken of."""
    world.host.run("nft", 'table inet fw { chain f { type filter hook forward priority 0; policy drop; '
                          'iifname "weft" oifname "weft" accept; }; }')  # fmt: skip
    warning = world.host.wait(lambda report: report.warnings).warnings[0]
    assert "drops packets between containers on weft and the outside" in warning.text
    assert world.container.ping("10.32.2.1") and not world.container.ping(OUTSIDE4, count=1)
    world.host.run("sh", "-c", warning.cure)
    assert world.reaches_outside()
    world.host.wait(lambda report: not report.warnings)


# What may be exposed.


def test_a_collision_names_the_address_or_the_route(lab: Lab) -> None:
    """Wider, narrower and equal routes of the main table; a default route, whole or in halves, is none."""
    host = lab.host(1)
    for words in ("10.50.0.0/16 via 10.9.0.9", "0.0.0.0/1 via 10.9.0.9", "default via 10.9.0.9",
                  "blackhole 10.60.1.0/24"):  # fmt: skip
        host.run("ip", "route", "add", *words.split())
    host.run("ip", "address", "add", "2001:db8:5::1/64", "dev", "eth0", "nodad")

    def found(text: str) -> str | None:
        return host.inside(lambda: collision("weft", ip_interface(text)))

    assert found("10.32.0.1/16") is None and found("fd00:32::1/64") is None
    assert found("10.9.0.1/32") == "the address 10.9.0.1 of eth0"
    assert found("10.9.0.77/24") == "the route 10.9.0.0/24 dev eth0"
    assert found("10.50.1.1/24") == "the route 10.50.0.0/16 via 10.9.0.9 dev eth0"
    assert found("10.0.0.1/8") in ("the route 10.9.0.0/24 dev eth0", "the route 10.50.0.0/16 via 10.9.0.9 dev eth0")
    assert found("10.60.0.1/16") == "the route 10.60.1.0/24"
    assert found("2001:db8:5::9/64") == "the route 2001:db8:5::/64 dev eth0"
    host.run("ip", "link", "add", "weft", "up", "type", "bridge")
    host.run("ip", "address", "add", "10.32.0.1/16", "dev", "weft")
    assert found("10.32.0.1/16") is None and found("10.32.0.2/16") is None


def test_every_route_and_address_that_a_range_could_collide_with_is_listed(lab: Lab) -> None:
    """But for default routes, and what is the bridge's own."""
    host = lab.host(1)
    for words in ("10.50.0.0/16 via 10.9.0.9", "0.0.0.0/1 via 10.9.0.9", "default via 10.9.0.9"):
        host.run("ip", "route", "add", *words.split())
    host.run("ip", "address", "add", "2001:db8:5::1/64", "dev", "eth0", "nodad")
    host.run("ip", "address", "add", "100.64.0.1/32", "dev", "lo")
    host.run("ip", "link", "add", "weft", "up", "type", "bridge")
    host.run("ip", "address", "add", "10.32.0.1/12", "dev", "weft")
    found = {str(network): text for network, text in host.inside(lambda: host_routes("weft"))}
    assert found["10.50.0.0/16"] == "the route 10.50.0.0/16 via 10.9.0.9 dev eth0"
    assert found["10.9.0.0/24"] == "the route 10.9.0.0/24 dev eth0"
    assert found["2001:db8:5::/64"] == "the route 2001:db8:5::/64 dev eth0"
    assert found["100.64.0.1/32"] == "the address 100.64.0.1 of lo"
    assert found["10.9.0.1/32"] == "the address 10.9.0.1 of eth0"
    assert not {"0.0.0.0/0", "0.0.0.0/1", "10.32.0.0/12", "10.32.0.1/32"} & set(found)


def test_without_nft_nothing_is_forwarded_and_the_fault_says_why(world: World) -> None:
    """Masquerading is what was asked for; without it packets would leave under addresses that nobody can answer."""

    def no_nft(commands: str) -> str:
        raise FileNotFoundError("nft")

    world.publish(world.hidden)
    world.host.stop()
    world.host.start(lambda: LinuxKernel(Firewall(no_nft), world.memory))
    report = world.host.publish(world.desired)
    assert "nft command is not installed; install the package nftables, or" in report.port_faults["weft"].text
    assert world.forwarding() == ["0", "0"] and world.default_routes() == []
    assert world.container.ping(HOST4)
