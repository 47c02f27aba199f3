"""What containers see of it: pings arrive, questions are answered at home, nothing is flooded."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace

import pytest

from dataplane.desired import Desired
from tests.linux.hosts import Lab, Pair, Space, guest_mac, peer, port, remote, until

pytestmark = pytest.mark.root

BROADCAST = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.sendto(b"x", ("10.32.255.255", 40001))
"""
FORGED = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("ethwe", 0))
s.send(bytes.fromhex("{destination}{source}88b6") + bytes(50))
"""


class Capture:
    """Packets that match a filter on a device, while it is open."""

    def __init__(self, space: Space, device: str, expression: str) -> None:
        command = ["nsenter", f"--net={space.path}", "tcpdump", "-n", "-p", "-l", "-i", device, expression]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        while "listening on" not in (line := self._process.stderr.readline()):
            assert line, "tcpdump did not start"

    def close(self) -> list[str]:
        time.sleep(0.3)  # tcpdump hands over what it captured a little later
        self._process.terminate()
        output, _ = self._process.communicate(timeout=10)
        return [line for line in output.splitlines() if line]


def test_containers_on_two_hosts_reach_each_other_over_ipv4_and_ipv6(pair: Pair) -> None:
    """Both ways; a packet of exactly the MTU too, and one byte more is refused at home."""
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    assert pair.cb.ping("10.32.1.1") and pair.cb.ping("fd00:32::1:1")
    assert pair.ca.ping("10.32.2.1", "-M", "do", "-s", str(1450 - 28))
    assert not pair.ca.ping("10.32.2.1", "-M", "do", "-s", str(1450 - 27))


def test_a_broadcast_reaches_every_container_elsewhere_once(lab: Lab) -> None:
    """Head-end replication: one copy on each host, and none comes back."""
    spaces = []
    for number in (1, 2, 3):
        host, space = lab.host(number), lab.space(f"c{number}")
        others = tuple(other for other in (1, 2, 3) if other != number)
        host.start()
        host.publish(
            Desired(
                host.segment(),
                (port(space, number, 1),),
                tuple(map(peer, others)),
                tuple(remote(other, 1) for other in others),
            )
        )
        spaces.append(space)
    captures = [Capture(space, "ethwe", "udp port 40001") for space in spaces]
    spaces[0].run("python3", "-c", BROADCAST)
    assert [len(capture.close()) for capture in captures] == [1, 1, 1]


def test_known_addresses_are_resolved_without_a_word_on_the_overlay(pair: Pair) -> None:
    """ARP and neighbour solicitation for remote and local containers are answered by the bridge."""
    capture = Capture(pair.a, "weft-vx", "arp or (icmp6 and ip6[40] == 135)")
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    assert capture.close() == []


def test_questions_that_nobody_can_answer_do_not_leave_the_host(pair: Pair) -> None:
    """Unknown addresses: the other host sees neither the ARP request nor the neighbour solicitation."""
    capture = Capture(pair.b, "weft-vx", "arp or (icmp6 and ip6[40] == 135)")
    assert not pair.ca.ping("10.32.9.9", count=1) and not pair.ca.ping("fd00:32::9:9", count=1)
    assert capture.close() == []


def test_link_local_neighbours_are_still_found_across_hosts(pair: Pair) -> None:
    """Nobody enters fe80 addresses as neighbours, so their solicitations may travel."""
    show = ("ip", "-6", "-o", "address", "show", "dev", "ethwe", "scope", "link")
    for space in (pair.ca, pair.cb):
        until(lambda space=space: "tentative" not in space.run(*show), timeout_s=5.0)
    address = pair.cb.run(*show).split()[3].split("/")[0]
    assert pair.ca.ping(f"{address}%ethwe")


def test_an_endpoint_without_a_path_is_answered_for_and_its_frames_are_dropped(lab: Lab) -> None:
    """Its MAC is known, nothing is flooded to the peers there are."""
    host, space = lab.host(1), lab.space("c1")
    host.start()
    lost = remote(2, 1, destination=None)
    assert host.publish(Desired(host.segment(), (port(space, 1, 1),), (peer(3),), (lost,))).faults == ()
    capture = Capture(host, "eth0", "udp port 6784")
    assert not space.ping("10.32.2.1", count=2)
    assert guest_mac(2, 1).hex(":") in space.run("ip", "neigh", "show", "10.32.2.1")
    assert capture.close() == []


def test_a_path_that_comes_back_carries_frames_again(pair: Pair) -> None:
    """From nowhere to somewhere is one replaced destination."""
    lost = replace(pair.desired_a, endpoints=(remote(2, 1, destination=None),))
    pair.a.publish(lost)
    assert not pair.ca.ping("10.32.2.1", count=1)
    before = pair.a.report.counters.applied
    assert pair.a.publish(pair.desired_a).counters.applied == before + 1
    assert pair.ca.ping("10.32.2.1")


def test_a_container_cannot_take_another_ones_frames_by_its_mac(pair: Pair) -> None:
    """A forged source MAC, local or remote, is not forwarded and moves no entry."""
    neighbour = pair.lab.space("c3")
    pair.a.publish(replace(pair.desired_a, ports=(pair.port_a, port(neighbour, 1, 2))))
    before = pair.a.run("bridge", "fdb", "show", "br", "weft")
    capture = Capture(neighbour, "ethwe", "ether proto 0x88b6")
    for source in (guest_mac(2, 1), guest_mac(1, 2), bytes.fromhex("020000000909")):
        pair.ca.run("python3", "-c", FORGED.format(destination="ff" * 6, source=source.hex()))
    assert capture.close() == []
    assert pair.a.run("bridge", "fdb", "show", "br", "weft") == before
