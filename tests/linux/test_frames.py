"""Frames cut and finished in user space, against a kernel that does the same, and under real streams."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from dataplane.linux import tap
from dataplane.sleeve.frames import (
    ETHERNET_BYTES,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    HEADER_BYTES,
    NEEDS_CHECKSUM,
    check_untrusted,
    finish_checksum,
    split,
)
from tests.dataplane.sleeve.shapes import ETHER, EVERY, HEADER, NETWORKS, TRANSPORTS, some, super_frame
from tests.linux.hosts import Lab, Space, until

pytestmark = pytest.mark.root

MTU = 1450
READ_BYTES = 1 << 17
STREAM_BYTES = 3_000_000
UDP_SEGMENT = 103
DATAGRAM_BYTES = 1000
DATAGRAMS = 40
Transform = Callable[[bytes], list[bytes]]


def as_it_is(data: bytes) -> list[bytes]:
    return [data]


def by_threes(data: bytes) -> list[bytes]:
    return split(data, 3)


def plain(data: bytes) -> list[bytes]:
    return [finish_checksum(frame) for frame in split(data, 1)]


def open_in(space: Space, name: str, offload: bool) -> int:
    """A TAP of that namespace, up, and readable from here."""

    def body() -> int:
        tap.create(name)
        return tap.open_tap(name, offload)

    descriptor = space.inside(body)
    space.run("sysctl", "-qw", f"net.ipv6.conf.{name}.router_solicitations=0", f"net.ipv6.conf.{name}.accept_dad=0")
    space.run("ip", "link", "set", name, "mtu", str(MTU), "up")
    return descriptor


def frames_from(descriptor: int, source: bytes, quiet_s: float = 0.2) -> list[bytes]:
    """What is read until nothing more comes, of that sender only."""
    found = []
    while select.select([descriptor], [], [], quiet_s)[0]:
        data = os.read(descriptor, READ_BYTES)
        if data[HEADER_BYTES + 6 : HEADER_BYTES + 12] == source:
            found.append(data)
    return found


LARGEST: dict[Transform, tuple[int, int]] = {
    as_it_is: (20 * MTU, READ_BYTES),
    by_threes: (2 * MTU, 3 * MTU),
    plain: (MTU, MTU + ETHERNET_BYTES + HEADER_BYTES),
}
"""Of the frames that go there, the largest has so many bytes."""

# The kernel cuts, too


@pytest.fixture
def bridged(lab: Lab) -> Iterator[tuple[int, int]]:
    """Two TAPs on a bridge: what is written to the first whole, the kernel has to cut and finish for the second."""
    space = lab.space("bridge")
    space.run("ip", "link", "add", "bridge", "mtu", str(MTU), "type", "bridge", "mcast_snooping", "0")
    ends = open_in(space, "whole", True), open_in(space, "cut", False)
    try:
        for name in ("whole", "cut"):
            space.run("ip", "link", "set", name, "master", "bridge")
        space.run("ip", "link", "set", "bridge", "up")
        yield ends
    finally:
        for descriptor in ends:
            os.close(descriptor)


def test_the_kernel_makes_the_same_frames(bridged: tuple[int, int]) -> None:
    """Byte for byte, of every kind of super-frame; and what we cut into smaller super-frames it takes as well."""
    whole, cut = bridged
    source = ETHER.build()[6:12]
    for network, transport in EVERY:
        for size in (1001, 9_999):
            data = super_frame(NETWORKS[network] / TRANSPORTS[transport], some(size), 1000).data
            ours = [frame[HEADER_BYTES:] for frame in plain(data)]
            for transform in (as_it_is, by_threes, plain):
                for piece in transform(data):
                    assert check_untrusted(piece) is None
                    assert os.write(whole, piece) == len(piece)
                theirs = frames_from(cut, source, 0.03)
                assert [frame[HEADER_BYTES:] for frame in theirs] == ours, (network, transport, size, transform)
                assert all(frame[0] & NEEDS_CHECKSUM == 0 for frame in theirs)


def test_what_the_kernel_refuses_is_refused_before(bridged: tuple[int, int]) -> None:
    """Headers at random: none that passes the check makes a write fail."""
    whole, cut = bridged
    random = Random(1)
    makers = [super_frame(NETWORKS[network] / TRANSPORTS[transport], some(3000), 1000) for network, transport in EVERY]
    refused = passed = 0
    for _ in range(20_000):
        made = random.choice(makers)
        hurt = bytearray(made.data)
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(HEADER_BYTES) if random.random() < 0.7 else random.randrange(len(hurt) - 3000)
            hurt[place] = random.choice([0, 1, 2, 4, 5, 6, 16, 34, 255, random.randrange(256)])
        reason = check_untrusted(hurt)
        if reason is not None:
            refused += 1
            continue
        passed += 1
        assert os.write(whole, hurt) == len(hurt)
        if passed % 50 == 0:
            frames_from(cut, b"", 0.0)
    assert refused > 1000 and passed > 1000


# Real streams


class Copier:
    """Moves frames between two TAPs, changed on the way, and keeps what it saw."""

    def __init__(self, ends: tuple[int, int], there: Transform, back: Transform) -> None:
        self._ways = {ends[0]: (ends[1], there), ends[1]: (ends[0], back)}
        self.kinds: set[int] = set()
        """Types of super-frames that were read at the first end."""
        self.reasons: set[str] = set()
        self.largest = 0
        self._first = ends[0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for source in select.select(list(self._ways), [], [], 0.05)[0]:
                self._move(source)

    def _move(self, source: int) -> None:
        target, transform = self._ways[source]
        data = os.read(source, READ_BYTES)
        if source == self._first:
            self.kinds.add(HEADER.unpack_from(data)[1])
        reason = check_untrusted(data)
        if reason is not None:
            self.reasons.add(reason)
            return
        for piece in transform(data):
            self.largest = max(self.largest, len(piece)) if source == self._first else self.largest
            os.write(target, piece)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def joined(lab: Lab, there: Transform, offload: tuple[bool, bool]) -> Iterator[tuple[Space, Space, Copier]]:
    """Two namespaces with a TAP each and us between them; answers go back as they are or plain."""
    spaces = lab.space("left"), lab.space("right")
    ends = open_in(spaces[0], "tap", offload[0]), open_in(spaces[1], "tap", offload[1])
    copier = None
    try:
        for number, space in enumerate(spaces, start=1):
            space.run("ip", "address", "add", f"10.32.{number}.1/16", "dev", "tap")
            space.run("ip", "address", "add", f"fd00:32::{number}:1/64", "dev", "tap", "nodad")
        copier = Copier(ends, there, as_it_is if offload[0] else plain)
        yield spaces[0], spaces[1], copier
    finally:
        if copier is not None:
            copier.close()
        for descriptor in ends:
            os.close(descriptor)


def checksum_errors(space: Space) -> int:
    """Of everything that arrived there, in both families."""
    total = 0
    lines = space.run("cat", "/proc/net/snmp").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        counters = dict(zip(names.split()[1:], values.split()[1:], strict=True))
        total += int(counters.get("InCsumErrors", 0)) + int(counters.get("InHdrErrors", 0))
    for line in space.run("cat", "/proc/net/snmp6").splitlines():
        name, value = line.split()
        total += int(value) if name in ("Udp6InCsumErrors", "Ip6InHdrErrors", "Icmp6InCsumErrors") else 0
    return total


def stream(left: Space, right: Space, address: str) -> None:
    """Bytes over TCP; they arrive as they were."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sent = Random(1).randbytes(STREAM_BYTES)
    got = bytearray()
    with right.inside(lambda: socket.create_server((address, 5001), family=family)) as server:

        def receive() -> None:
            server.settimeout(10)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                while data := connection.recv(1 << 20):
                    got.extend(data)

        receiver = threading.Thread(target=receive)
        receiver.start()
        with left.inside(lambda: socket.socket(family, socket.SOCK_STREAM)) as sender:
            sender.settimeout(10)
            sender.connect((address, 5001))
            sender.sendall(sent)
            sender.shutdown(socket.SHUT_WR)
            receiver.join(20)
    assert bytes(got) == sent


def datagrams(left: Space, right: Space, address: str) -> None:
    """Many UDP datagrams by one send; each arrives as it was, in order, the shorter last one too."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sent = Random(2).randbytes(DATAGRAM_BYTES * DATAGRAMS - 1)
    with right.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as receiver:
        receiver.bind((address, 5002))
        receiver.settimeout(2)
        with left.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sender:
            sender.connect((address, 5002))
            sender.send(b"first")  # finds the neighbour, so that nothing is dropped below
            assert receiver.recv(2000) == b"first"
            sender.sendmsg([sent], [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", DATAGRAM_BYTES))])
            got = [receiver.recv(2000) for _ in range(DATAGRAMS)]
    assert got == [sent[at : at + DATAGRAM_BYTES] for at in range(0, len(sent), DATAGRAM_BYTES)]


@pytest.mark.parametrize(
    ("there", "offload"),
    [
        pytest.param(as_it_is, (True, True), id="whole"),
        pytest.param(by_threes, (True, True), id="by-threes"),
        pytest.param(plain, (True, False), id="to-a-tap-without-offload"),
        pytest.param(plain, (True, True), id="plain-to-a-tap-with-offload"),
        pytest.param(as_it_is, (False, False), id="without-any-offload"),
        pytest.param(as_it_is, (False, True), id="from-a-tap-without-offload"),
    ],
)
@pytest.mark.parametrize("address", ["10.32.2.1", "fd00:32::2:1"])
def test_streams_arrive_whole_and_without_a_checksum_error(
    lab: Lab, there: Transform, offload: tuple[bool, bool], address: str
) -> None:
    """TCP and segmented UDP over both families, whoever cuts and finishes: we, either kernel, or nobody."""
    with joined(lab, there, offload) as (left, right, copier):
        stream(left, right, address)
        datagrams(left, right, address)
        assert (checksum_errors(left), checksum_errors(right)) == (0, 0)
        assert copier.reasons == set()
        # The test is about what it says: super-frames were read where they should be.
        kinds = {GSO_NONE, GSO_UDP, GSO_TCPV6 if ":" in address else GSO_TCPV4}
        assert copier.kinds == (kinds if offload[0] else {GSO_NONE})
        # Read whole they have some 40 segments.
        least, most = LARGEST[there] if offload[0] else LARGEST[plain]
        assert least <= copier.largest <= most


def test_a_wrong_checksum_would_be_noticed(lab: Lab) -> None:
    """Left unfinished with the header gone, every datagram is an error: so the test above means something."""

    def careless(data: bytes) -> list[bytes]:
        return [bytes(HEADER_BYTES) + data[HEADER_BYTES:]]

    with (
        joined(lab, careless, (True, True)) as (left, right, _),
        right.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
        left.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.bind(("10.32.2.1", 5002))
        sender.sendto(b"lost", ("10.32.2.1", 5002))
        until(lambda: checksum_errors(right) > 0, 5.0)
