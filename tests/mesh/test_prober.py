"""Probes of the VXLAN device: who is asked and answered there, and what a device that goes away costs."""

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

from dataplane import probe
from gossip.names import PeerName
from mesh import framesocket, vxlanhealth
from mesh import prober as prober_module
from mesh.endpoints import bridge_mac
from mesh.framesocket import FRAMES_AT_ONCE
from mesh.prober import Prober, Probers
from mesh.vxlanhealth import SILENT, TOO_NARROW

OWN = bytes.fromhex("02aa00000001")
P, STRANGER = PeerName(b"\x03" * 8), PeerName(b"\x09" * 8)
PEER = bridge_mac(P)
NONCE = b"12345678"
WAIT_LIMIT_S = 10.0


class Device:
    """The VXLAN device: what the prober sends comes out of `wire`, what is put in there arrives."""

    def __init__(self, name: str = "weft-vx") -> None:
        self.name = name
        self.wire: socket.socket | None = None
        self.opened = 0
        self.is_there = True
        self.send_error = 0
        self.talked_to: frozenset[PeerName] | None = None
        self.sizes: list[probe.Probe] = []
        """What was handed on."""

    def open(self, device: str) -> Any:
        assert device == self.name
        if not self.is_there:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        self.opened += 1
        self.wire, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.wire.setblocking(False)
        inner.setblocking(False)
        return End(self, inner)

    def vanish(self) -> None:
        """Removed: whoever reads is told so once."""
        assert self.wire is not None
        self.is_there = False
        self.wire.send(b"gone")

    def received(self) -> list[probe.Probe]:
        frames = []
        while self.wire is not None:
            try:
                frame = self.wire.recv(65535)
            except BlockingIOError:
                break
            if not frame:  # closed at the other end
                break
            found = probe.decode_untrusted(frame)
            assert isinstance(found, probe.Probe)
            frames.append(found)
        return frames

    def send(self, frame: probe.Probe) -> None:
        assert self.wire is not None
        with contextlib.suppress(BrokenPipeError):
            self.wire.send(probe.encode(frame))


class End:
    """The socket as the kernel makes it, errors included."""

    def __init__(self, device: Device, inner: socket.socket) -> None:
        self._device = device
        self._inner = inner

    def fileno(self) -> int:
        return self._inner.fileno()

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        if data == b"gone":
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        return data

    def send(self, frame: bytes) -> int:
        if self._device.send_error:
            raise OSError(self._device.send_error, os.strerror(self._device.send_error))
        return self._inner.send(frame)

    def close(self) -> None:
        self._inner.close()


Scenario = Callable[[Prober, Device, list[None]], Coroutine[Any, Any, None]]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario with a prober on a device, ten times as fast as in life. The list grows with every verdict."""
    device = Device()
    monkeypatch.setattr(prober_module, "open_probe_socket", device.open)
    monkeypatch.setattr(framesocket, "REOPEN_INTERVAL_S", 0.1)
    monkeypatch.setattr(prober_module, "LOOK_INTERVAL_S", 0.1)
    for name in ("INTERVAL_S", "ANSWER_TIMEOUT_S", "CONFIRM_DELAY_S"):
        monkeypatch.setattr(vxlanhealth, name, getattr(vxlanhealth, name) / 10)

    def run(scenario: Scenario, silent: dict[PeerName, str] | None = None) -> None:
        async def begin() -> None:
            verdicts: list[None] = []
            prober = Prober(
                "weft-vx", OWN, Random(1), silent or {}, lambda mac: mac == PEER, lambda: verdicts.append(None),
                lambda: device.talked_to, device.sizes.append,
            )  # fmt: skip
            prober.open()
            try:
                await scenario(prober, device, verdicts)
            finally:
                prober.close()
                if device.wire is not None:
                    device.wire.close()

        asyncio.run(asyncio.wait_for(begin(), 30.0))

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


def answer(device: Device) -> list[probe.Probe]:
    """Answer as the peer would; what was asked."""
    asked = device.received()
    for frame in asked:
        device.send(probe.reply(frame, PEER))
    return asked


def request(source: bytes = PEER, destination: bytes = OWN, kind: int = probe.PATH_REQUEST) -> probe.Probe:
    return probe.Probe(destination, source, kind, NONCE, 1464)


# Asking


def test_peers_are_asked_in_both_sizes_and_believed(on_device: Callable[..., None]) -> None:
    """To their bridge's MAC, with kinds that nobody on the bridge takes for a ping."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        prober.watch([P], 1450, None)
        asked: list[probe.Probe] = []

        def both_sizes() -> bool:
            asked.extend(answer(device))
            return {frame.size for frame in asked} >= {probe.MIN_FRAME_BYTES, 1464}

        await until(both_sizes, "both sizes were asked")
        assert {(frame.source, frame.destination, frame.kind) for frame in asked} == {(OWN, PEER, probe.PATH_REQUEST)}
        await until(lambda: prober.rtt_s(P) is not None, "the answer was taken")
        assert (prober.verdicts, verdicts, prober.counters) == ({}, [], {})

    on_device(scenario)


def test_silence_is_told_and_its_end_too(on_device: Callable[..., None]) -> None:
    """Once each."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        prober.watch([P], 1450, None)
        await until(lambda: prober.verdicts == {P: SILENT}, "silence was found")
        assert len(verdicts) == 1
        await until(lambda: not answer(device) and not prober.verdicts, "it was answered")
        assert len(verdicts) == 2

    on_device(scenario)


def test_an_answer_that_waits_behind_a_late_timer_is_no_miss(on_device: Callable[..., None]) -> None:
    """The loop was busy with something else for seconds."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        prober.watch([P], 1450, None)
        for _ in range(8):
            await until(lambda: answer(device), "it asked")
            time.sleep(0.2)  # the answer is there; the loop is not
            await asyncio.sleep(0.0)
        assert prober.verdicts == {}

    on_device(scenario)


def test_the_verdicts_of_an_earlier_life_are_there_from_the_start(on_device: Callable[..., None]) -> None:
    """And forgotten with the peer, once it is known who there is."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        assert prober.verdicts == {P: SILENT}
        prober.watch([], 1450, None)
        assert prober.verdicts == {P: SILENT}
        prober.watch([], 1450, [])
        assert (prober.verdicts, len(verdicts)) == ({}, 1)

    on_device(scenario, {P: SILENT})


def test_whom_frames_go_to_is_looked_at_and_asked_in_full_size(on_device: Callable[..., None]) -> None:
    """Who begins to talk is asked with the next look."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        device.talked_to = frozenset()
        prober.watch([P], 1450, None)
        await until(lambda: [frame.size for frame in answer(device)] == [probe.MIN_FRAME_BYTES], "it asked a small one")
        device.talked_to = frozenset({P})
        sizes: list[int] = []

        def large() -> bool:
            sizes.extend(frame.size for frame in answer(device))
            return sizes[-4:] == [1464] * 4

        await until(large, "it asks in full size")

    on_device(scenario)


def test_another_full_size_is_what_is_asked_from_then_on(on_device: Callable[..., None]) -> None:
    """The network has shrunk: who was too narrow is asked anew, at once."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        assert prober.verdicts == {P: TOO_NARROW}
        prober.watch([P], 1450, None)

        def only_up_to(size: int) -> None:
            for frame in device.received():
                if frame.size <= size:
                    device.send(probe.reply(frame, PEER))

        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            only_up_to(1364)
            await asyncio.sleep(0.005)
        assert prober.verdicts == {P: TOO_NARROW}
        prober.watch([P], 1350, None)
        await until(lambda: only_up_to(1364) or not prober.verdicts, "it is used again")

    on_device(scenario, {P: TOO_NARROW})


@pytest.mark.parametrize("kind", [probe.SIZE_REQUEST, probe.SIZE_REPLY])
def test_probes_that_measure_are_handed_on(on_device: Callable[..., None], kind: int) -> None:
    """Those of known peers only."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        device.send(request(kind=kind, source=bridge_mac(STRANGER)))
        device.send(request(kind=kind))
        await until(lambda: device.sizes, "it was handed on")
        assert device.sizes == [request(kind=kind)]
        assert prober.counters == {"probe-stranger": 1}

    on_device(scenario)


# Answering


def test_a_peer_is_answered_on_the_device_as_large_as_it_asked(on_device: Callable[..., None]) -> None:
    """Both directions are proven at that size."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        device.send(request())
        found: list[probe.Probe] = []
        await until(lambda: found.extend(device.received()) or found, "it was answered")
        assert found == [probe.Probe(PEER, OWN, probe.PATH_REPLY, NONCE, 1464)]

    on_device(scenario)


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (probe.encode(request(source=bridge_mac(STRANGER))), "probe-stranger"),
        (probe.encode(request(destination=b"\xff" * 6)), "probe-stranger"),
        (probe.encode(request(source=bridge_mac(STRANGER), kind=probe.PATH_REPLY)), "probe-stranger"),
        (probe.encode(request())[:-1], "probe-cut"),
        (b"x", "probe-short"),
        (probe.encode(request(kind=9)), "probe-kind"),
        (probe.encode(request(kind=probe.PATH_REPLY)), None),
        (probe.encode(request(kind=probe.REQUEST)), None),
        (probe.encode(request(kind=probe.REPLY)), None),
    ],
)
def test_nobody_else_is_answered(on_device: Callable[..., None], frame: bytes, counter: str | None) -> None:
    """Strangers, broken frames, answers nobody waits for; pings are for the bridge and not counted here."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        assert device.wire is not None
        device.wire.send(frame)
        device.send(request())
        found: list[probe.Probe] = []
        await until(lambda: found.extend(device.received()) or found, "the honest one was answered")
        assert len(found) == 1
        assert prober.counters == ({counter: 1} if counter else {})

    on_device(scenario)


def test_a_flood_leaves_the_loop_its_turn(on_device: Callable[..., None]) -> None:
    """A bounded number of frames at a time."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        assert device.wire is not None
        for _ in range(FRAMES_AT_ONCE + 10):
            device.wire.send(b"x")
        prober._frames.read()
        assert prober.counters == {"probe-short": FRAMES_AT_ONCE}

    on_device(scenario)


# The device


def test_a_device_that_is_made_anew_is_listened_to_again(on_device: Callable[..., None]) -> None:
    """Nobody is judged by what could not be asked meanwhile."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        prober.watch([P], 1450, None)
        await until(lambda: answer(device), "it asked")
        device.vanish()
        await asyncio.sleep(0.6)
        assert prober.verdicts == {}
        device.is_there = True
        await until(lambda: answer(device), "it asks again")
        assert (device.opened, verdicts) == (2, [])

    on_device(scenario)


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (errno.EAGAIN, "probe-queue-full"),
        (errno.ENXIO, "probe-send-failed"),
        (errno.EMSGSIZE, "probe-send-failed"),
    ],
)
def test_what_cannot_be_sent_is_counted_and_blamed_on_nobody(
    on_device: Callable[..., None], error: int, counter: str
) -> None:
    """Our own queue is full, the device is down, or narrower than it should be. The socket stays."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        device.send_error = error
        prober.watch([P], 1450, None)
        await until(lambda: prober.counters.get(counter, 0) >= 3, "it tried again and again")
        assert prober.verdicts == {}
        device.send_error = 0
        await until(lambda: answer(device), "it asks")
        assert device.opened == 1

    on_device(scenario)


def test_a_closed_prober_stays_closed(on_device: Callable[..., None]) -> None:
    """Also where it was about to open the device again."""

    async def scenario(prober: Prober, device: Device, verdicts: list[None]) -> None:
        device.vanish()
        await asyncio.sleep(0.05)
        prober.close()
        device.is_there = True
        await asyncio.sleep(0.2)
        assert device.opened == 1

    on_device(scenario)


# Both devices

VERSIONS = {4: "weft-vx", 6: "weft-vx6"}
SIZES = {4: 1450, 6: 1430}
TwoScenario = Callable[[Probers, dict[int, Device]], Coroutine[Any, Any, None]]


@pytest.fixture
def on_devices(monkeypatch: pytest.MonkeyPatch, on_device: Callable[..., None]) -> Callable[[TwoScenario], None]:
    """As `on_device`, with a device for each IP version; the one for IPv6 knows the peer only."""
    devices = {version: Device(name) for version, name in VERSIONS.items()}
    by_name = {device.name: device for device in devices.values()}
    monkeypatch.setattr(prober_module, "open_probe_socket", lambda name: by_name[name].open(name))
    monkeypatch.setattr(prober_module, "LINGER_S", prober_module.LINGER_S / 10)

    def run(scenario: TwoScenario) -> None:
        async def begin() -> None:
            macs = {4: {PEER, bridge_mac(STRANGER)}, 6: {PEER}}
            probers = Probers(
                VERSIONS, OWN, Random(1), {}, lambda version, mac: mac in macs[version], lambda: None,
                lambda version: None, lambda version, frame: None, lambda peers: None,
            )  # fmt: skip
            probers.open()
            try:
                await scenario(probers, devices)
            finally:
                probers.close()
                for device in devices.values():
                    if device.wire is not None:
                        device.wire.close()

        asyncio.run(asyncio.wait_for(begin(), 30.0))

    return run


def test_a_verdict_is_of_the_device_that_was_silent(on_devices: Callable[[TwoScenario], None]) -> None:
    """Each is asked at its own size; the other one's verdict is its own."""

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        probers.watch({4: [P], 6: [P]}, [], SIZES, None)
        sizes: set[int] = set()

        def silent_over_ipv4() -> bool:
            sizes.update(frame.size for frame in answer(devices[6]))
            return probers.verdicts == {4: {P: SILENT}, 6: {}}

        await until(silent_over_ipv4, "one version was silent")
        assert sizes == {probe.MIN_FRAME_BYTES, 1430 + probe.ETHERNET_HEADER_BYTES}
        assert probers.rtt_s(P, 6) is not None and probers.rtt_s(P, 4) is None

    on_devices(scenario)


def test_who_begins_to_be_silent_is_asked_over_the_other_version_at_once(
    on_devices: Callable[[TwoScenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large mesh that one is asked once in a minute, and it is where frames would go next."""
    monkeypatch.setattr(vxlanhealth, "IDLE_PER_S", 0.01)

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        probers.watch({4: [P], 6: [P]}, [], SIZES, None)
        await until(lambda: [*answer(devices[4]), *answer(devices[6])] and probers.rtt_s(P, 6), "both answered")
        probers.each[4].check([P])
        await until(lambda: answer(devices[6]), "the other one was asked")

    on_devices(scenario)


def test_a_peer_is_asked_where_it_has_an_address(on_devices: Callable[[TwoScenario], None]) -> None:
    """And nowhere else."""

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        probers.watch({4: [], 6: [P]}, [], SIZES, None)
        await until(lambda: (answer(devices[6]), probers.rtt_s(P, 6))[1], "it was asked over IPv6")
        assert devices[4].received() == []

    on_devices(scenario)


def test_a_question_is_answered_on_the_device_it_came_by_if_that_can_reach_the_asker(
    on_devices: Callable[[TwoScenario], None],
) -> None:
    """What the device has no entry for would go to every peer."""

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        for device in devices.values():
            device.send(request(source=bridge_mac(STRANGER)))
        await until(lambda: probers.counters.get("probe-stranger"), "the one over IPv6 was turned away")
        await until(lambda: [frame.kind for frame in devices[4].received()] == [probe.PATH_REPLY], "the other was not")
        assert devices[6].received() == []

    on_devices(scenario)


def test_a_peer_out_of_reach_that_answers_over_one_version_is_silent_over_the_other(
    on_devices: Callable[[TwoScenario], None],
) -> None:
    """It has lost the addresses that its links went by, and is alive."""

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        probers.watch({4: [P], 6: [P]}, [], SIZES, None)
        await until(lambda: (answer(devices[6]), probers.rtt_s(P, 6))[1], "an answer was taken")
        probers.watch({4: [], 6: []}, [P], SIZES, None)
        await until(lambda: not answer(devices[6]) and probers.verdicts == {4: {P: SILENT}, 6: {}}, "it was found out")

    on_devices(scenario)


def test_nothing_is_held_against_a_peer_out_of_reach_that_says_nothing_at_all(
    on_devices: Callable[[TwoScenario], None],
) -> None:
    """Its daemon was stopped: nobody asks it any more, after the last answer has grown old."""

    async def scenario(probers: Probers, devices: dict[int, Device]) -> None:
        probers.watch({4: [P], 6: [P]}, [], SIZES, None)
        await until(lambda: (answer(devices[6]), probers.rtt_s(P, 6))[1], "an answer was taken")
        probers.watch({4: [], 6: []}, [P], SIZES, None)
        await asyncio.sleep(1.5)  # several times what a verdict takes
        assert probers.verdicts == {4: {}, 6: {}}
        for device in devices.values():
            device.received()
        await asyncio.sleep(0.3)
        assert all(device.received() == [] for device in devices.values())

    on_devices(scenario)
