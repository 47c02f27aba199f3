"""Offload probes on real devices: what an honest kernel makes of them, and that nobody but us answers."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane import offloadprobe
from dataplane.desired import SLEEVE, VXLAN_OFFLOADS
from dataplane.linux import underlay
from dataplane.linux.packet import open_offload_socket
from dataplane.offloadprobe import FAMILIES, IPV4, Arrived, Family, Round
from tests.linux.hosts import Cable, Host, Pair, bridge_mac, until, via

pytestmark = pytest.mark.root

SEGMENTS = (3, 4, 5, 6)
NONCE = b"12345678"
ALL = 0b1111111
WAIT_S = 2.0


def every_kind(family: Family, size: int = 1450) -> list[bytes]:
    of = Round(family, bridge_mac(2), bridge_mac(1), NONCE, size)
    plain = offloadprobe.finished(offloadprobe.udp(of, 0))
    return [plain, offloadprobe.udp(of, 1), offloadprobe.tcp(of, (2,)), offloadprobe.tcp(of, SEGMENTS)]


@contextmanager
def sockets(pair: Pair) -> Iterator[tuple[socket.socket, socket.socket]]:
    opened = [host.inside(lambda: open_offload_socket("weft")) for host in (pair.a, pair.b)]
    try:
        yield opened[0], opened[1]
    finally:
        for each in opened:
            each.close()


def received(from_: socket.socket) -> list[Arrived]:
    found = []
    while True:
        try:
            frame = offloadprobe.decode_untrusted(from_.recv(offloadprobe.FRAME_MAX_BYTES))
        except BlockingIOError:
            return found
        assert isinstance(frame, Arrived)
        found.append(frame)


def masks(from_: socket.socket) -> tuple[int, int]:
    """All that comes until every piece has."""
    right = wrong = 0

    def is_complete() -> bool:
        nonlocal right, wrong
        for arrived in received(from_):
            right, wrong = right | arrived.right, wrong | arrived.wrong
        return right | wrong == ALL

    until(is_complete, WAIT_S)
    return right, wrong


def cut_everything(host: Host) -> None:
    """As a network card without any offload: what is left to it, the kernel finishes."""
    host.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off")


def leave_whole(host: Host) -> None:
    """As between two hosts in one kernel: nothing is ever finished."""


@pytest.mark.parametrize("underlay", [leave_whole, cut_everything])
@pytest.mark.parametrize("off", [(), VXLAN_OFFLOADS[:1], VXLAN_OFFLOADS[1:], VXLAN_OFFLOADS], ids=str)
def test_an_honest_underlay_brings_every_piece(
    pair: Pair, underlay: Callable[[Host], None], off: tuple[str, ...]
) -> None:
    """Right, whatever is left to it and whatever the VXLAN device does itself."""
    for host in (pair.a, pair.b):
        underlay(host)
    pair.a.publish(replace(pair.desired_a, segment=replace(pair.desired_a.segment, offloads_off=off)))
    with sockets(pair) as (a, b):
        for family in FAMILIES:
            for frame in every_kind(family):
                a.send(frame)
            assert masks(b) == (ALL, 0)


@pytest.mark.parametrize("offload", [True, False], ids=["tap", "no-tap"])
def test_a_taps_offloads_are_tested_on_the_bridge(pair: Pair, offload: bool) -> None:
    """Where the forwarding table leads to the sleeve, there go probes; whether a worker takes them whole or cut."""
    pair.a.publish(via(pair.desired_a, SLEEVE))
    pair.b.publish(via(pair.desired_b, SLEEVE))
    with Cable(pair.a, pair.b, offload) as cable, sockets(pair) as (a, b):
        until(lambda: pair.ca.ping("10.32.2.1"), WAIT_S)  # the TAPs have their carrier
        for family in FAMILIES:
            for frame in every_kind(family):
                a.send(frame)
            assert masks(b) == (ALL, 0)
        assert (max(cable.frames) > 5000) == offload


def test_a_peer_is_put_down_to_the_interface_that_leads_there(pair: Pair) -> None:
    """With both families; to nowhere leads none."""
    pair.a.run("ip", "link", "add", "eth1", "up", "type", "veth", "peer", "name", "eth1x")
    pair.a.run("ip", "address", "add", "10.8.0.1/24", "dev", "eth1")
    pair.a.run("ip", "address", "add", "fd00:8::1/64", "dev", "eth1", "nodad")
    wanted = {"10.9.0.2": "eth0", "10.8.0.7": "eth1", "fd00:8::7": "eth1", "203.0.113.1": None}

    def look() -> dict[str, str | None]:
        found = underlay.survey("weft")
        return {each: underlay.interface_towards(ip_address(each), found) for each in wanted}

    assert pair.a.inside(look) == wanted


def counters(host: Host) -> dict[str, int]:
    """Of /proc/net/snmp and snmp6, by name."""
    found: dict[str, int] = {}
    lines = host.run("cat", "/proc/net/snmp").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol, *rest = names.split()
        found |= {f"{protocol}{name}": int(value) for name, value in zip(rest, values.split()[1:], strict=True)}
    rows = (line.split() for line in host.run("cat", "/proc/net/snmp6").splitlines())
    return found | {name: int(value) for name, value in rows}


def test_no_stack_answers_or_forwards_a_probe(pair: Pair) -> None:
    """Not even one that is told to take everything for good: nothing goes out, nobody is complained to."""
    with sockets(pair) as (a, b):
        pair.b.run("ip", "address", "add", "10.32.0.2/16", "dev", "weft")
        pair.b.run("ip", "route", "add", "default", "via", "10.9.0.1")
        for name in ("ip_forward", "conf.all.route_localnet", "conf.weft.route_localnet", "conf.weft.accept_local"):
            pair.b.run("sysctl", "-qw", f"net.ipv4.{name}=1")
        for name in ("all", "weft", "eth0"):
            pair.b.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
        pair.b.run("ip", "address", "add", "fd00:32::2/64", "dev", "weft", "nodad")
        pair.b.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        pair.b.run("ip", "-6", "route", "add", "default", "dev", "weft")
        before = counters(pair.b)
        for family in FAMILIES:
            for _ in range(5):
                for frame in every_kind(family):
                    a.send(frame)
            assert masks(b) == (ALL, 0)
        time.sleep(0.3)
        after = counters(pair.b)
    more = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    answers = r"Icmp:|IcmpMsg:|Tcp:|Udp:(Out|NoPorts)|Ip:Forw"
    answers6 = r"Icmp6Out(Dest|Time|Parm)|Ip6OutForw|Udp6(Out|NoPorts)"
    assert not {name for name in more if re.match(f"{answers}|{answers6}", name)}
    # What arrived is the outer packets, each delivered, and the inner ones, none delivered.
    assert more["Ip:InReceives"] > more["Ip:InDelivers"] > 0
    assert more["Ip6InHdrErrors"] >= 5


def test_a_container_cannot_make_a_probe(pair: Pair) -> None:
    """A frame with a bridge's MAC as its source does not leave a container's port."""
    with sockets(pair) as (a, b):
        forger = pair.ca.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        with forger:
            forger.bind(("ethwe", 0))
            for frame in [frame for family in FAMILIES for frame in every_kind(family)[:3]]:
                forger.send(frame[offloadprobe.VNET_BYTES :])
            a.send(every_kind(IPV4)[0])
            until(lambda: received(b), WAIT_S)
        time.sleep(0.2)
        assert received(b) == []
