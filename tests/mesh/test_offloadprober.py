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
from dataplane.offloadprobe import ON_BRIDGE, ON_PORT, VNET_BYTES, Report, Round
from dataplane.sleeve import frames
from gossip.names import PeerName
from mesh import offloadprober as prober_module
from mesh import offloads as offloads_module
from mesh.endpoints import bridge_mac
from mesh.offloadprober import FRAMES_AT_ONCE, OffloadProber
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


class Link:
    """Two ends as packet sockets on two hosts' devices; what the first sends goes through `device`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.sent: list[bytes] = []
        """By the first end."""
        self.opened = 0
        self.is_there = True
        self.send_error = 0
        self.ends: list[End] = []

    def open(self, device: str) -> Any:
        if not self.is_there:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        self.opened += 1
        self.ends.append(End(self, is_first=device == "first"))
        return self.ends[-1]

    def carry(self, sender: End, frame: bytes) -> None:
        if sender.is_first:
            self.sent.append(frame)
        for end in self.ends:
            if end.is_first != sender.is_first:
                for arriving in self.device(frame) if sender.is_first else [frame]:
                    with contextlib.suppress(OSError):
                        end.wire.send(arriving)


class End:
    def __init__(self, link: Link, is_first: bool) -> None:
        self.link, self.is_first = link, is_first
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
        if self.link.send_error:
            raise OSError(self.link.send_error, os.strerror(self.link.send_error))
        self.link.carry(self, frame)

    def close(self) -> None:
        self._inner.close()
        self.wire.close()
        self.link.ends.remove(self)


Scenario = Callable[[OffloadProber, OffloadProber, Link, list[None]], Coroutine[Any, Any, None]]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario with two hosts' probers, five times as fast as in life. The list grows with every change."""
    for name in ("ANSWER_TIMEOUT_S", "GRACE_S", "CONFIRM_DELAY_S", "RETRY_FIRST_S"):
        monkeypatch.setattr(offloads_module, name, getattr(offloads_module, name) / 5)
    monkeypatch.setattr(prober_module, "REOPEN_INTERVAL_S", 0.1)

    def run(scenario: Scenario, device: Device = honest, ways: tuple[int, int] = (ON_PORT, ON_PORT)) -> None:
        link = Link(device)
        monkeypatch.setattr(prober_module, "open_offload_socket", link.open)

        async def begin() -> None:
            changes: list[None] = []
            probers = [
                OffloadProber(
                    device, way, mac, Offloads(Random(1), CHECKSUM, SEGMENT, ()), lambda mac: mac in (MAC_A, MAC_B),
                    lambda: changes.append(None),
                )
                for device, way, mac in (("first", ways[0], MAC_A), ("second", ways[1], MAC_B))
            ]  # fmt: skip
            for prober in probers:
                prober.open()
            try:
                await scenario(*probers, link, changes)
            finally:
                for prober in probers:
                    prober.close()

        asyncio.run(asyncio.wait_for(begin(), 30.0))

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


def watch(prober: OffloadProber, peer: PeerName, device: str = ETH0, size: int = 1450) -> None:
    prober.watch({peer: Reach(device, b"1")}, [device], size)


def is_done(prober: OffloadProber) -> bool:
    """Its only round has ended, and the next one is far."""
    due_s = prober._offloads.next_due()
    return due_s is not None and due_s > time.monotonic() + 60


@pytest.mark.parametrize("device", [honest, passing])
@pytest.mark.parametrize("size", [576, 1450, 9000])
def test_an_honest_device_passes_in_one_round(between: Callable[..., None], device: Device, size: int) -> None:
    """And one that does nothing and says so."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        watch(a, B, size=size)
        await until(lambda: is_done(a), "the round was answered")
        assert (a.faults, changes, a.counters, b.counters) == ((), [], {}, {})
        assert len(link.sent) == 7  # UDP, TCP, one to cut, four plain ones

    between(scenario, device)


@pytest.mark.parametrize(("device", "offload"), [(lazy, CHECKSUM), (greedy, SEGMENT)])
def test_a_lying_device_is_found_and_told_once(between: Callable[..., None], device: Device, offload: str) -> None:
    """Whichever way it lies."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        watch(a, B)
        await until(lambda: a.faults, "it was found")
        assert a.faults == (Fault(ETH0, offload, B),)
        assert (a.off, len(changes)) == ((offload,), 1)

    between(scenario, device)


def test_what_the_other_host_sends_is_not_held_against_us(between: Callable[..., None]) -> None:
    """Its frames do not pass our card's lies."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        watch(b, A)
        await until(lambda: is_done(b), "the round was answered")
        assert (b.faults, changes) == ((), [])

    between(scenario, lazy)


def test_each_device_answers_its_own_rounds(between: Callable[..., None]) -> None:
    """What came by VXLAN is seen on the bridge too, and answered once."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        watch(a, B)
        await until(lambda: len(link.sent) == 7, "a round was sent")
        await asyncio.sleep(0.3)
        assert not is_done(a) and b.counters == {}

    between(scenario, honest, (ON_PORT, ON_BRIDGE))


def test_strangers_get_no_answer(between: Callable[..., None]) -> None:
    """Nor do containers, whose MAC is never that of a bridge."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        (first,) = [end for end in link.ends if end.is_first]
        for source, destination in ((bridge_mac(STRANGER), MAC_A), (MAC_B, b"\xff" * 6)):
            first.wire.send(offloadprobe.plain(Round(destination, source, b"12345678", ON_PORT, 576), 0))
        await until(lambda: a.counters == {"offload-stranger": 2}, "they were counted")
        first.wire.send(b"x" * 9)
        first.wire.send(offloadprobe.plain(Round(MAC_A, MAC_B, b"12345678", ON_PORT, 576), 3))
        await until(lambda: link.sent, "the peer was answered")
        found = [offloadprobe.decode_untrusted(frame) for frame in link.sent]
        assert found == [Report(MAC_B, MAC_A, b"12345678", 8, 0)]
        assert a.counters == {"offload-stranger": 2, "offload-short": 1}

    between(scenario)


def test_a_flood_leaves_the_loop_its_turn(between: Callable[..., None]) -> None:
    """A bounded number of frames at a time."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        (first,) = [end for end in link.ends if end.is_first]
        for _ in range(FRAMES_AT_ONCE + 10):
            first.wire.send(b"x")
        a._readable()
        assert a.counters == {"offload-short": FRAMES_AT_ONCE}

    between(scenario)


def test_a_device_that_is_made_anew_is_used_again(between: Callable[..., None]) -> None:
    """What could not be asked meanwhile is nobody's fault."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        (first,) = [end for end in link.ends if end.is_first]
        link.is_there = False
        first.wire.send(b"gone")
        await until(lambda: first not in link.ends, "it was noticed")
        watch(a, B)
        await asyncio.sleep(0.5)
        assert a.faults == () and link.sent == []
        link.is_there = True
        await until(lambda: is_done(a), "a round was answered")
        assert link.opened == 3

    between(scenario)


def test_what_cannot_be_sent_is_counted_and_blamed_on_no_offload(between: Callable[..., None]) -> None:
    """A kernel that takes no such frames from us, say."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        link.send_error = errno.EINVAL
        watch(a, B)
        await until(lambda: a.counters.get("offload-send-failed", 0) >= 3, "it tried again")
        assert a.faults == ()
        link.send_error = 0
        await until(lambda: is_done(a), "a round was answered")

    between(scenario)


def test_a_closed_prober_stays_closed(between: Callable[..., None]) -> None:
    """Also where it was about to open the device again."""

    async def scenario(a: OffloadProber, b: OffloadProber, link: Link, changes: list[None]) -> None:
        (first,) = [end for end in link.ends if end.is_first]
        first.wire.send(b"gone")
        await asyncio.sleep(0.05)
        a.close()
        await asyncio.sleep(0.2)
        assert link.opened == 2

    between(scenario)
