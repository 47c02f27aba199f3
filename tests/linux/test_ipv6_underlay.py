"""VXLAN over IPv6: a device of its own beside the one for IPv4, and peers that move between the two."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.desired import SLEEVE, Address, Desired, RemoteEndpoint, RemotePeer
from tests.linux.hosts import Host, Lab, Pair, differences, peer, port, remote, until, via
from tests.linux.test_forwarding import BROADCAST, Capture

pytestmark = pytest.mark.root


def underlay6(number: int) -> Address:
    return ip_address(f"fd00:9::{number}")


def link_local(of: Host, seen_from: Host) -> Address:
    """The address of one host's eth0, once it is ready to be used, with the number of the other one's."""
    until(lambda: "tentative" not in of.run("ip", "-6", "address", "show", "dev", "eth0"), timeout_s=5.0)
    found = re.search(r"inet6 (fe80::\S+)/64", of.run("ip", "-6", "address", "show", "dev", "eth0"))
    index = re.match(r"(\d+):", seen_from.run("ip", "-o", "link", "show", "dev", "eth0"))
    assert found and index
    return ip_address(f"{found[1]}%{index[1]}")


def over(desired: Desired, host: Host, destination: Address) -> Desired:
    """The same with everybody at that address, and a device for IPv6."""
    return replace(
        desired,
        segment=host.segment(vxlan6=True, mtu=1430),
        peers=tuple(replace(each, destination=destination, spare=each.destination) for each in desired.peers),
        endpoints=tuple(replace(each, destination=destination) for each in desired.endpoints),
    )


def over_ipv6(pair: Pair) -> tuple[Desired, Desired]:
    return over(pair.desired_a, pair.a, underlay6(2)), over(pair.desired_b, pair.b, underlay6(1))


def over_ipv4(pair: Pair) -> tuple[Desired, Desired]:
    """With the device for IPv6, and its address to fall back to."""
    a, b = over_ipv6(pair)
    peers_a = (replace(pair.desired_a.peers[0], spare=underlay6(2)),)
    peers_b = (replace(pair.desired_b.peers[0], spare=underlay6(1)),)
    return (
        replace(a, peers=peers_a, endpoints=pair.desired_a.endpoints),
        replace(b, peers=peers_b, endpoints=pair.desired_b.endpoints),
    )


def publish(pair: Pair, wanted: tuple[Desired, Desired]) -> None:
    for host, desired in zip((pair.a, pair.b), wanted, strict=True):
        report = host.publish(desired)
        assert (report.faults, report.warnings, dict(report.port_faults)) == ((), (), {})


def test_containers_reach_each_other_over_ipv6_alone(pair: Pair) -> None:
    """Full packets too; every outer packet is IPv6, and bears a checksum."""
    publish(pair, over_ipv6(pair))
    assert differences(pair.a, over_ipv6(pair)[0]) == []
    others = Capture(pair.a, "eth0", "udp port 6784 and (ip or ip6[46:2] == 0)")
    mine = Capture(pair.a, "eth0", "ip6 and udp port 6784")
    assert pair.ca.ping("10.32.2.1") and pair.cb.ping("fd00:32::1:1")
    assert pair.ca.ping("10.32.2.1", "-M", "do", "-s", str(1430 - 28))
    assert others.close() == [] and len(mine.close()) >= 6


def test_both_devices_have_the_same_port_and_neither_takes_the_others_packets(pair: Pair) -> None:
    """The socket for IPv6 is for IPv6 only: else the second one to come up would be refused."""
    publish(pair, over_ipv4(pair))
    sockets = [line for line in pair.a.run("ss", "-ulne").splitlines() if ":6784" in line]
    assert len(sockets) == 2 and sum("v6only:1" in line for line in sockets) == 1
    assert pair.ca.ping("10.32.2.1")


def test_a_move_between_the_ip_versions_loses_nothing(pair: Pair) -> None:
    """There and back, many times, under a ping that waits for nobody."""
    publish(pair, over_ipv4(pair))
    with pair.ca.popen("ping", "-n", "-q", "-i", "0.002", "-c", "800", "10.32.2.1") as ping:
        for _ in range(8):
            publish(pair, over_ipv6(pair))
            publish(pair, over_ipv4(pair))
        said = ping.communicate(timeout=30)[0]
    assert " 0% packet loss" in said and "duplicates" not in said
    assert differences(pair.a, over_ipv4(pair)[0]) == []


def test_a_broadcast_goes_once_to_each_peer_of_either_ip_version_and_of_the_sleeve(lab: Lab) -> None:
    """A peer is in one list, whatever else is known of it."""
    spaces = []
    for number in (1, 2, 3):
        host, space = lab.host(number), lab.space(f"c{number}")
        peers: list[RemotePeer] = []
        endpoints: list[RemoteEndpoint] = []
        for other in {1, 2, 3} - {number}:
            two_ways = replace(peer(other), spare=underlay6(other))
            if {number, other} == {1, 2}:
                two_ways = replace(two_ways, destination=underlay6(other), spare=two_ways.destination)
            peers.append(two_ways)
            endpoints.append(remote(other, 1, destination=str(two_ways.destination)))
        host.start()
        desired = Desired(host.segment(vxlan6=True), (port(space, number, 1),), tuple(peers), tuple(endpoints))
        assert host.publish(desired).faults == ()
        spaces.append(space)
    captures = [Capture(space, "ethwe", "udp port 40001") for space in spaces]
    spaces[0].run("python3", "-c", BROADCAST)
    assert [len(capture.close()) for capture in captures] == [1, 1, 1]


def test_link_local_addresses_serve_with_their_interface(pair: Pair) -> None:
    """With nothing else on the underlay; also after a restart, which finds nothing to change."""
    for host in (pair.a, pair.b):
        host.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    wanted_a = over(pair.desired_a, pair.a, link_local(pair.b, pair.a))
    wanted_b = over(pair.desired_b, pair.b, link_local(pair.a, pair.b))
    publish(pair, (wanted_a, wanted_b))
    assert "via eth0" in pair.a.run("bridge", "fdb", "show", "dev", "weft-vx6")
    assert pair.ca.ping("10.32.2.1") and pair.cb.ping("fd00:32::1:1")
    assert differences(pair.a, wanted_a) == []
    pair.a.stop()
    pair.a.start()
    assert pair.a.publish(wanted_a).counters.applied == 0
    publish(pair, (via(wanted_a, SLEEVE), via(wanted_b, SLEEVE)))
    assert "00:00:00:00:00:00" not in pair.a.run("bridge", "fdb", "show", "dev", "weft-vx6")


def test_with_a_secret_neither_device_stays_and_nobody_listens(pair: Pair) -> None:
    """As for the first device: gone before anything else is done."""
    publish(pair, over_ipv6(pair))
    sealed = replace(pair.desired_a, segment=pair.a.segment(vxlan_port=None, vxlan6=True))
    assert pair.a.publish(via(sealed, SLEEVE)).faults == ()
    assert "vxlan" not in pair.a.links() and ":6784" not in pair.a.run("ss", "-uln")


def test_teardown_removes_both_devices(pair: Pair) -> None:
    """Also one that was given another name, which still holds the port."""
    publish(pair, over_ipv6(pair))
    pair.a.stop()
    pair.a.run("ip", "link", "set", "weft-vx6", "down", "name", "renamed")
    pair.a.tear_down()
    assert "vxlan" not in pair.a.links() and "nft" not in pair.a.run("nft", "list", "tables")


def test_the_second_device_goes_when_it_is_wanted_no_more(pair: Pair) -> None:
    """And its peers are then reached by the first one."""
    publish(pair, over_ipv6(pair))
    publish(pair, (pair.desired_a, pair.desired_b))
    assert "weft-vx6" not in pair.a.links() and pair.ca.ping("10.32.2.1")
    assert differences(pair.a, pair.desired_a) == []


def test_a_packet_too_large_for_ipv6_is_answered_or_lost_but_never_cut(pair: Pair) -> None:
    """What the rule for the MTU rests on: the kernel does not fragment an outer IPv6 packet, as it does over IPv4."""
    wide = [replace(each, segment=host.segment(mtu=1450, vxlan6=True))
            for each, host in zip(over_ipv6(pair), (pair.a, pair.b), strict=True)]  # fmt: skip
    publish(pair, (wide[0], wide[1]))
    fragments = Capture(pair.a, "eth0", "ip6[6] == 44")
    assert not pair.cb.ping("10.32.1.1", "-M", "probe", "-s", str(1450 - 28))
    said = pair.ca.run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", str(1450 - 28), "10.32.2.1", check=False)
    assert "mtu = 1430" in said
    assert fragments.close() == []
    publish(pair, over_ipv6(pair))
    assert pair.cb.ping("10.32.1.1", "-s", str(1430 - 28))
