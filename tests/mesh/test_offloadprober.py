"""Rounds of offload probes between two hosts: what is asked, answered and found on an honest and a lying device."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from dataplane import offloadprobe
from dataplane.desired import SLEEVE, VXLAN
from dataplane.offloadprobe import IPV4, IPV6, VNET_BYTES, Report, Round
from dataplane.sleeve import frames
from gossip.names import PeerName
from mesh import framesocket
from mesh import offloadprober as prober_module
from mesh import offloads as offloads_module
from mesh.endpoints import bridge_mac
from mesh.framesocket import FRAMES_AT_ONCE
from mesh.offloadprober import OffloadProber, Subject
from mesh.offloads import Fault, Offloads, Reach

A, B, STRANGER = PeerName(b"\x02" * 8), PeerName(b"\x03" * 8), PeerName(b"\x09" * 8)
MAC_A, MAC_B = bridge_mac(A), bridge_mac(B)
CHECKSUM, SEGMENT = "vxlan-checksum", "vxlan-segment"
ETH0 = "eth0 (liar 1.0)"
WAIT_LIMIT_S = 10.0

Device = Callable[[bytes], list[bytes]]


def honest(frame: bytes) -> list[bytes]:
    return [frames.finish_checksum(piece) for piece in frames.split(frame, 1)]


def passing(frame: bytes) -> list[bytes]:
    """Nothing is done, and said to be left: as between two hosts in one kernel."""
    return [frame]


def lazy(frame: bytes) -> list[bytes]:
    """Nothing is done, and nobody told."""
    return [bytes(VNET_BYTES) + frame[VNET_BYTES:]]


def greedy(frame: bytes) -> list[bytes]:
    """Of what it cuts, all but the first segment is lost."""
    return honest(frame)[:1]


class Network:
    """Two hosts' bridges. What the first sends goes through `device`, everything else just goes."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.sent: list[bytes] = []
        """By the first host."""
        self.is_there = True
        """The first host's bridge."""
        self.send_error = 0
        self.ends: list[End] = []

    def opener(self, is_first: bool) -> Callable[..., Any]:
        def open_socket(bridge: str) -> Any:
            assert bridge == "weft"
            if is_first and not self.is_there:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            self.ends.append(End(self, is_first))
            return self.ends[-1]

        return open_socket

    def carry(self, sender: End, frame: bytes) -> None:
        if sender.is_first:
            self.sent.append(frame)
        for arriving in self.device(frame) if sender.is_first else [frame]:
            for end in self.ends:
                if end.is_first != sender.is_first:
                    with contextlib.suppress(OSError):
                        end.wire.send(arriving)

    def first(self) -> End | None:
        return next((end for end in self.ends if end.is_first), None)

    def deliver(self, frame: bytes) -> None:
        """To the first host."""
        end = self.first()
        assert end is not None
        end.wire.send(frame)


class End:
    def __init__(self, network: Network, is_first: bool) -> None:
        self.network, self.is_first = network, is_first
        self.wire, self._inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.wire.setblocking(False)
        self._inner.setblocking(False)

    def fileno(self) -> int:
        return self._inner.fileno()

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        if data == b"gone":
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        return data

    def send(self, frame: bytes) -> None:
        if self.is_first and self.network.send_error:
            raise OSError(self.network.send_error, os.strerror(self.network.send_error))
        self.network.carry(self, frame)

    def close(self) -> None:
        self._inner.close()
        self.wire.close()
        self.network.ends.remove(self)


class Prober(OffloadProber):
    """With the two `Offloads` that it looks after."""

    def __init__(self, mac: bytes, on_change: Callable[[], None]) -> None:
        self.vxlan = Offloads(Random(1), CHECKSUM, SEGMENT, ())
        self.sleeve = Offloads(Random(2), "tap", "tap", ())
        subjects = {Subject(VXLAN, IPV4): self.vxlan, Subject(SLEEVE, IPV6): self.sleeve}
        super().__init__("weft", mac, subjects, lambda mac: mac in (MAC_A, MAC_B), on_change)

    def test(self, peer: PeerName, path: str = VXLAN, size: int = 1450) -> None:
        self.watch(path, {peer: Reach(ETH0, b"1")}, [ETH0], size)


Scenario = Callable[[Prober, Prober, Network, list[None]], Coroutine[Any, Any, None]]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario with two hosts' probers, five times as fast as in life. The list grows with every change."""
    for name in ("ANSWER_TIMEOUT_S", "GRACE_S", "CONFIRM_DELAY_S", "RETRY_FIRST_S"):
        monkeypatch.setattr(offloads_module, name, getattr(offloads_module, name) / 5)
    monkeypatch.setattr(framesocket, "REOPEN_INTERVAL_S", 0.1)

    def run(scenario: Scenario, device: Device = honest) -> None:
        network = Network(device)

        async def begin() -> None:
            changes: list[None] = []
            probers = [Prober(mac, lambda: changes.append(None)) for mac in (MAC_A, MAC_B)]
            for prober, is_first in reversed(list(zip(probers, (True, False), strict=True))):
                monkeypatch.setattr(prober_module, "open_offload_socket", network.opener(is_first))
                prober.open()
            try:
                await scenario(*probers, network, changes)
            finally:
                for prober in probers:
                    prober.close()
                assert network.ends == []

        asyncio.run(asyncio.wait_for(begin(), 30.0))

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


def is_done(offloads: Offloads) -> bool:
    """Its only round has ended, and the next one is far."""
    due_s = offloads.next_due()
    return due_s is not None and due_s > time.monotonic() + 60


@pytest.mark.parametrize("device", [honest, passing])
@pytest.mark.parametrize("size", [576, 1450, 9000])
@pytest.mark.parametrize("path", [VXLAN, SLEEVE])
def test_an_honest_device_passes_in_one_round(
    between: Callable[..., None], device: Device, size: int, path: str
) -> None:
    """And one that does nothing and says so. One path by IPv4 here, the other by IPv6."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        a.test(B, path, size)
        offloads = a.vxlan if path == VXLAN else a.sleeve
        await until(lambda: is_done(offloads), "the round was answered")
        assert (offloads.faults, changes, a.counters, b.counters) == ((), [], {}, {})
        ethertype = b"\x08\x00" if path == VXLAN else b"\x86\xdd"
        assert {frame[VNET_BYTES + 12 : VNET_BYTES + 14] for frame in network.sent} == {ethertype}
        assert len(network.sent) == 7  # UDP, TCP, one to cut, four plain ones

    between(scenario, device)


@pytest.mark.parametrize(("device", "offload"), [(lazy, CHECKSUM), (greedy, SEGMENT)])
def test_a_lying_device_is_found_and_told_once(between: Callable[..., None], device: Device, offload: str) -> None:
    """Whichever way it lies."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        a.test(B)
        await until(lambda: a.vxlan.faults, "it was found")
        assert a.vxlan.faults == (Fault(ETH0, offload, B),)
        assert (a.vxlan.off, len(changes)) == ((offload,), 1)

    between(scenario, device)


def test_what_is_found_belongs_to_the_path_that_was_tested(between: Callable[..., None]) -> None:
    """All reports come in at one place."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        a.test(B, SLEEVE)
        await until(lambda: a.sleeve.faults, "it was found")
        network.device = honest
        a.test(B)
        await until(lambda: is_done(a.vxlan), "the other path was tested")
        assert (a.vxlan.off, a.sleeve.off) == ((), ("tap",))

    between(scenario, lazy)


def test_what_the_other_host_sends_is_not_held_against_us(between: Callable[..., None]) -> None:
    """Its frames do not pass our card's lies."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        b.test(A)
        await until(lambda: is_done(b.vxlan), "the round was answered")
        assert (b.vxlan.faults, changes) == ((), [])

    between(scenario, lazy)


def piece(source: bytes = MAC_B, destination: bytes = MAC_A) -> bytes:
    return offloadprobe.finished(offloadprobe.udp(Round(IPV4, destination, source, b"12345678", 576), 3))


def test_strangers_get_no_answer(between: Callable[..., None]) -> None:
    """Nor do containers, whose MAC is never that of a bridge."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        network.deliver(piece(source=bridge_mac(STRANGER)))
        network.deliver(piece(destination=b"\xff" * 6))
        await until(lambda: a.counters == {"offload-stranger": 2}, "they were counted")
        network.deliver(b"x" * 9)
        network.deliver(piece())
        await until(lambda: network.sent, "the peer was answered")
        found = [offloadprobe.decode_untrusted(frame) for frame in network.sent]
        assert found == [Report(MAC_B, MAC_A, b"12345678", 8, 0)]
        assert a.counters == {"offload-stranger": 2, "offload-short": 1}

    between(scenario)


def test_a_flood_leaves_the_loop_its_turn(between: Callable[..., None]) -> None:
    """A bounded number of frames at a time."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        for _ in range(FRAMES_AT_ONCE + 10):
            network.deliver(b"x")
        a._frames.read()
        assert a.counters == {"offload-short": FRAMES_AT_ONCE}

    between(scenario)


def test_a_bridge_that_is_made_anew_is_listened_to_again(between: Callable[..., None]) -> None:
    """What could not be asked meanwhile is nobody's fault."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        network.is_there = False
        network.deliver(b"gone")
        await until(lambda: network.first() is None, "it was noticed")
        a.test(B)
        await asyncio.sleep(0.5)
        assert a.vxlan.faults == () and network.sent == []
        network.is_there = True
        await until(lambda: is_done(a.vxlan), "a round was answered")

    between(scenario)


@pytest.mark.parametrize(
    ("error", "counter"), [(errno.EINVAL, "offload-send-failed"), (errno.EAGAIN, "offload-queue-full")]
)
def test_what_cannot_be_sent_is_counted_and_blamed_on_no_offload(
    between: Callable[..., None], error: int, counter: str
) -> None:
    """A kernel that takes no such frames from us, say, or a full queue."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        network.send_error = error
        a.test(B)
        await until(lambda: a.counters.get(counter, 0) >= 3, "it tried again")
        assert a.vxlan.faults == ()
        network.send_error = 0
        await until(lambda: is_done(a.vxlan), "a round was answered")

    between(scenario)


def test_a_closed_prober_stays_closed(between: Callable[..., None]) -> None:
    """Also where it was about to open the bridge again."""

    async def scenario(a: Prober, b: Prober, network: Network, changes: list[None]) -> None:
        network.deliver(b"gone")
        await asyncio.sleep(0.05)
        a.close()
        await asyncio.sleep(0.2)
        assert network.first() is None

    between(scenario)
