"""The data-path ping at its socket: who is answered, whose answers count, and what a flood costs.

The socket on the bridge is one end of a pair here, the other end is the wire.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dataplane import probe
from mesh import pinger as pinger_module
from mesh.framesocket import FRAMES_AT_ONCE
from mesh.pinger import Pinger

OWN, PEER, STRANGER = (b"\x06" + bytes([number]) * 5 for number in (1, 2, 3))
NONCE = b"nonce..8"


class Bridge:
    """What `open_probe_socket` opens: nothing while the bridge is missing, else a socket with a wire behind it."""

    def __init__(self) -> None:
        self.there = True
        self.wire = socket.socket()
        self.opened: list[BridgeSocket] = []

    def open(self, name: str) -> Any:
        assert name == "weft"
        if not self.there:
            raise OSError(errno.ENODEV, "no such device")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.wire.close()
        self.wire = theirs
        self.opened.append(BridgeSocket(ours))
        return self.opened[-1]

    def received(self) -> list[probe.Probe]:
        """What has been sent on the bridge since the last call."""
        frames: list[probe.Probe] = []
        while True:
            try:
                found = probe.decode_untrusted(self.wire.recv(probe.MAX_FRAME_BYTES))
            except BlockingIOError:
                return frames
            assert isinstance(found, probe.Probe)
            frames.append(found)

    def close(self) -> None:
        self.wire.close()


class BridgeSocket:
    """A socket that can be told to fail as the real one does."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.recv_error = 0
        self.send_error = 0

    def fileno(self) -> int:
        return self._inner.fileno()

    def recv(self, size: int) -> bytes:
        if self.recv_error:
            raise OSError(self.recv_error, os.strerror(self.recv_error))
        return self._inner.recv(size)

    def send(self, frame: bytes) -> int:
        if self.send_error:
            raise OSError(self.send_error, os.strerror(self.send_error))
        return self._inner.send(frame)

    def close(self) -> None:
        self._inner.close()


def on_bridge(monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Pinger, Bridge], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a pinger on a bridge."""
    bridge = Bridge()
    monkeypatch.setattr(pinger_module, "open_probe_socket", bridge.open)

    async def run() -> None:
        pinger = Pinger("weft", OWN, lambda mac: mac == PEER)
        pinger.open()
        try:
            await scenario(pinger, bridge)
        finally:
            pinger.close()
            bridge.close()

    asyncio.run(run())


async def turn() -> None:
    """Let the loop take what is there."""
    for _ in range(3):
        await asyncio.sleep(0)


def asked(source: bytes = PEER, destination: bytes = OWN, kind: int = probe.REQUEST, size: int = 1464) -> bytes:
    return probe.encode(probe.Probe(destination, source, kind, NONCE, size))


def test_a_peer_is_answered_as_large_as_it_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both directions are proven at full size."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.wire.send(asked(size=1464))
        await turn()
        assert bridge.received() == [probe.Probe(PEER, OWN, probe.REPLY, NONCE, 1464)]
        assert pinger.counters == {}

    on_bridge(monkeypatch, scenario)


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (asked(source=STRANGER), "probe-stranger"),
        (asked(destination=STRANGER), "probe-stranger"),
        (asked(source=STRANGER, kind=probe.REPLY), "probe-stranger"),
        (asked(source=b"\x01" + bytes(5)), "probe-foreign"),
        (asked()[:20], "probe-short"),
        (asked()[:100], "probe-cut"),
        (asked()[:14] + b"\x09" + asked()[15:], "probe-version"),
        (asked(kind=7), "probe-kind"),
    ],
)
def test_strangers_and_garbage_are_counted_and_never_answered(
    frame: bytes, counter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody on the underlay can make such frames where no secret is set."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.wire.send(frame)
        bridge.wire.send(frame)
        await turn()
        assert bridge.received() == []
        assert pinger.counters == {counter: 2}

    on_bridge(monkeypatch, scenario)


@pytest.mark.parametrize("kind", [probe.PATH_REQUEST, probe.PATH_REPLY])
def test_probes_of_one_path_pass_by(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were answered on the device that they came by; an answer from here would prove another path."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.wire.send(asked(kind=kind))
        await turn()
        assert bridge.received() == []
        assert pinger.counters == {}

    on_bridge(monkeypatch, scenario)


def test_a_ping_takes_the_time_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills the packet size it is given."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        ping = asyncio.ensure_future(pinger.ping(PEER, 1450, 5.0))
        await turn()
        (request,) = bridge.received()
        assert (request.source, request.destination, request.kind, request.size) == (OWN, PEER, probe.REQUEST, 1464)
        await asyncio.sleep(0.02)
        bridge.wire.send(probe.encode(probe.reply(request, PEER)))
        took_s = await ping
        assert took_s is not None and 0.015 < took_s < 5.0
        bridge.wire.send(probe.encode(probe.reply(request, PEER)))  # a duplicate, after all is over
        await turn()
        assert pinger.counters == {}

    on_bridge(monkeypatch, scenario)


def test_only_the_answer_with_the_right_nonce_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pings at once do not take each other's answers, and a guessed one is nobody's."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        first, second = (asyncio.ensure_future(pinger.ping(PEER, 100, 0.2)) for _ in range(2))
        await turn()
        requests = bridge.received()
        assert len({request.nonce for request in requests}) == 2
        bridge.wire.send(asked(kind=probe.REPLY))
        bridge.wire.send(probe.encode(probe.reply(requests[1], PEER)))
        bridge.wire.send(probe.encode(probe.reply(requests[1], PEER)))
        await turn()
        assert second.done() and not first.done()
        assert await second is not None
        assert await first is None, "nothing came for it in time"

    on_bridge(monkeypatch, scenario)


def test_a_ping_that_is_given_up_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed out or cancelled; a late answer is nobody's."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        assert await pinger.ping(PEER, 100, 0.01) is None
        cancelled = asyncio.ensure_future(pinger.ping(PEER, 100, 5.0))
        await turn()
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        for request in bridge.received():
            bridge.wire.send(probe.encode(probe.reply(request, PEER)))
        await turn()
        assert pinger._waiting == {}

    on_bridge(monkeypatch, scenario)


def test_pings_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One beyond the limit comes back at once."""
    monkeypatch.setattr(pinger_module, "WAITING_MAX", 3)

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        waiting = [asyncio.ensure_future(pinger.ping(PEER, 100, 0.05)) for _ in range(3)]
        await turn()
        assert await pinger.ping(PEER, 100, 60.0) is None
        assert len(bridge.received()) == 3
        assert await asyncio.gather(*waiting) == [None] * 3

    on_bridge(monkeypatch, scenario)


def test_a_flood_of_requests_is_taken_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two portions the loop does everything else it has to do."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        for _ in range(3 * FRAMES_AT_ONCE):
            bridge.wire.send(asked(size=probe.MIN_FRAME_BYTES))
        portions: list[int] = []
        while sum(portions) < 3 * FRAMES_AT_ONCE:
            await asyncio.sleep(0)
            portions.append(len(bridge.received()))
            assert len(portions) < 20
        assert max(portions) == FRAMES_AT_ONCE

    on_bridge(monkeypatch, scenario)


def test_what_cannot_be_sent_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue and a bridge that is down."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.opened[0].send_error = errno.EAGAIN
        assert await pinger.ping(PEER, 100, 0.01) is None
        bridge.opened[0].send_error = errno.ENETDOWN
        bridge.wire.send(asked())
        await turn()
        assert pinger.counters == {"probe-queue-full": 1, "probe-send-failed": 1}

    on_bridge(monkeypatch, scenario)


def test_without_a_bridge_a_ping_is_unanswered_and_the_next_look_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridge is made by somebody else, in their own time."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.opened[0].recv_error = errno.ENETDOWN
        bridge.wire.send(asked())
        await turn()
        bridge.there = False
        pinger.open()
        assert await pinger.ping(PEER, 100, 60.0) is None
        bridge.there = True
        pinger.open()
        bridge.wire.send(asked())
        await turn()
        assert len(bridge.received()) == 1

    on_bridge(monkeypatch, scenario)


def test_a_bridge_that_was_made_anew_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old socket reports that its device went, once, and is closed; opening twice makes one socket."""

    async def scenario(pinger: Pinger, bridge: Bridge) -> None:
        bridge.opened[0].recv_error = errno.ENETDOWN
        bridge.wire.send(asked())
        await turn()
        assert bridge.opened[0].fileno() == -1
        pinger.open()
        pinger.open()
        assert len(bridge.opened) == 2
        bridge.wire.send(asked())
        await turn()
        assert len(bridge.received()) == 1

    on_bridge(monkeypatch, scenario)
