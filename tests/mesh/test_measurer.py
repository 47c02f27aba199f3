"""Measuring paths in VXLAN made by hand: what goes out where, who is answered, and what is found."""

from __future__ import annotations

import asyncio
import errno
import struct
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest

from dataplane import probe
from gossip.names import PeerName
from mesh import measurer as measurer_module
from mesh.endpoints import bridge_mac
from mesh.measurer import Measurer
from mesh.pathmtu import Way

OWN = bytes.fromhex("02aa00000001")
P, STRANGER = PeerName(b"\x03" * 8), PeerName(b"\x09" * 8)
PEER = bridge_mac(P)
VNI, PORT = 7, 6784
WAIT_LIMIT_S = 10.0


class Underlay:
    """What the sockets send, and a path of some width behind them."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any, bool]] = []
        self.path_bytes = 9000
        self.interface_bytes = 9000
        self.measurer: Measurer | None = None

    def open(self, ipv6: bool) -> Any:
        return Socket(self, ipv6)

    def frames(self) -> list[probe.Probe]:
        found = [probe.decode_untrusted(payload[8:]) for payload, _, _ in self.sent]
        assert all(isinstance(frame, probe.Probe) for frame in found)
        return [frame for frame in found if isinstance(frame, probe.Probe)]


class Socket:
    def __init__(self, underlay: Underlay, ipv6: bool) -> None:
        self._underlay = underlay
        self._ipv6 = ipv6

    def sendto(self, payload: bytes, address: Any) -> int:
        if len(payload) > self._underlay.interface_bytes:
            raise OSError(errno.EMSGSIZE, "Message too long")
        self._underlay.sent.append((payload, address, self._ipv6))
        frame = probe.decode_untrusted(payload[8:])
        assert isinstance(frame, probe.Probe)
        passes = frame.size - probe.ETHERNET_HEADER_BYTES <= self._underlay.path_bytes
        if frame.kind == probe.SIZE_REQUEST and passes and self._underlay.measurer is not None:
            answered = probe.reply(frame, PEER)
            asyncio.get_running_loop().call_later(0.001, self._underlay.measurer.received, answered)
        return len(payload)

    def close(self) -> None:
        pass


Scenario = Callable[[Measurer, Underlay, list[None]], Coroutine[Any, Any, None]]


@pytest.fixture
def on_underlay(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario with a measurer. The list grows with every finding."""
    underlay = Underlay()
    monkeypatch.setattr(measurer_module, "open_outer_socket", underlay.open)

    def run(scenario: Scenario, found: dict[PeerName, int] | None = None) -> None:
        async def begin() -> None:
            news: list[None] = []
            measurer = Measurer(OWN, VNI, PORT, Random(1), found or {}, lambda: news.append(None))
            underlay.measurer = measurer
            try:
                await scenario(measurer, underlay, news)
            finally:
                measurer.close()

        asyncio.run(asyncio.wait_for(begin(), 30.0))

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


def ways(destination: str = "10.9.0.3", ceiling: int = 1450) -> dict[PeerName, Way]:
    return {P: Way(ip_address(destination), ceiling)}


@pytest.mark.parametrize("destination", ["10.9.0.3", "fd00:9::3"])
def test_a_path_is_measured_in_vxlan_made_by_hand(on_underlay: Callable[..., None], destination: str) -> None:
    """To the peer's VXLAN port, by the family of its address, with the network's VNI and kinds of its own."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        measurer.open()
        measurer.watch(ways(destination), None)
        await until(lambda: measurer.found == {P: 1450}, "it was found")
        assert len(news) == 1
        reached = (destination, PORT, 0, 0) if ":" in destination else (destination, PORT)
        assert {(address, ipv6) for _, address, ipv6 in underlay.sent} == {(reached, ":" in destination)}
        assert {payload[:8] for payload, _, _ in underlay.sent} == {struct.pack("!II", 0x08000000, VNI << 8)}
        assert sorted(frame.size for frame in underlay.frames()) == [probe.MIN_FRAME_BYTES, 1464]
        whose = {(frame.source, frame.destination, frame.kind) for frame in underlay.frames()}
        assert whose == {(OWN, PEER, probe.SIZE_REQUEST)}

    on_underlay(scenario)


def test_a_link_local_address_is_reached_through_its_interface(on_underlay: Callable[..., None]) -> None:
    """By its number, which is part of the socket's address."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        measurer.open()
        measurer.watch(ways("fe80::3%2"), None)
        await until(lambda: measurer.found == {P: 1450}, "it was found")
        assert {address for _, address, _ in underlay.sent} == {("fe80::3", PORT, 0, 2)}

    on_underlay(scenario)


@pytest.mark.parametrize("name", ["path_bytes", "interface_bytes"])
def test_a_narrow_path_is_found_whether_it_loses_or_this_host_refuses(
    on_underlay: Callable[..., None], name: str
) -> None:
    """In either case nothing comes back."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        setattr(underlay, name, 1350 + (22 if name == "interface_bytes" else 0))
        measurer.open()
        measurer.watch(ways(), None)
        await until(lambda: measurer.found == {P: 1350}, "it was found")
        assert ("measure-send-failed" in measurer.counters) is (name == "interface_bytes")

    on_underlay(scenario)


def test_who_measures_is_answered_as_large_as_it_asked(on_underlay: Callable[..., None]) -> None:
    """Also while nothing is measured here. Nobody whose address is not known is answered."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        measurer.watch(ways(), None)
        asked = probe.request(PEER, OWN, b"12345678", 1500, probe.SIZE_REQUEST)
        measurer.received(asked)
        assert underlay.frames() == [probe.reply(asked, OWN)]
        measurer.received(probe.request(bridge_mac(STRANGER), OWN, b"12345678", 1500, probe.SIZE_REQUEST))
        assert len(underlay.sent) == 1 and measurer.counters == {"measure-stranger": 1}

    on_underlay(scenario)


def test_nothing_is_asked_before_it_is_opened_nor_after_it_is_closed(on_underlay: Callable[..., None]) -> None:
    """Where nobody listens there are no answers."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        measurer.watch(ways(), None)
        measurer.hurry([P])
        await asyncio.sleep(0.1)
        assert underlay.sent == []
        measurer.open()
        await until(lambda: measurer.found == {P: 1450}, "it was found")
        measurer.close()
        measurer.hurry([P])
        await asyncio.sleep(0.1)
        assert len(underlay.sent) == 2

    on_underlay(scenario)


def test_what_an_earlier_life_found_is_there_from_the_start_and_goes_with_the_peer(
    on_underlay: Callable[..., None],
) -> None:
    """Once it is known who there is."""

    async def scenario(measurer: Measurer, underlay: Underlay, news: list[None]) -> None:
        assert measurer.found == {P: 1350}
        measurer.watch({}, None)
        assert measurer.found == {P: 1350}
        measurer.watch({}, [])
        assert measurer.found == {}

    on_underlay(scenario, {P: 1350})
