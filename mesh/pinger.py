"""The data-path ping: frames from bridge to bridge, over whatever path containers' frames take.

Answers the requests of peers we know and asks on behalf of `weft ping`. A request goes to the other bridge's own MAC,
so it proves the path in both directions at its full size. Knows nothing of how a path was chosen.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from dataplane import probe
from dataplane.linux.packet import open_probe_socket

FRAMES_AT_ONCE = 64
"""Frames read each time the socket is ready, so that a flood of probes never starves the loop."""
WAITING_MAX = 4096


class Pinger:
    """A socket on the bridge, re-opened when the bridge is made anew."""

    def __init__(self, bridge: str, own_mac: bytes, is_peer_mac: Callable[[bytes], bool]) -> None:
        self.counters: dict[str, int] = {}
        self._bridge = bridge
        self._own_mac = own_mac
        self._is_peer_mac = is_peer_mac
        self._socket: socket.socket | None = None
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Listen on the bridge; where it is not there (yet), the next call tries again."""
        if self._socket is not None:
            return
        try:
            self._socket = open_probe_socket(self._bridge)
        except OSError:
            return
        self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def ping(self, mac: bytes, packet_bytes: int, timeout_s: float) -> float | None:
        """Seconds to the bridge `mac` and back with a packet of that size, or None where nothing comes back."""
        self.open()
        if self._socket is None or len(self._waiting) >= WAITING_MAX:
            return None
        nonce = os.urandom(probe.NONCE_BYTES)
        answered: asyncio.Future[float] = self._loop.create_future()
        self._waiting[nonce] = answered
        sent = time.monotonic()
        try:
            self._send(probe.request(self._own_mac, mac, nonce, packet_bytes))
            async with asyncio.timeout(timeout_s):
                return await answered - sent
        except TimeoutError:
            return None
        finally:
            del self._waiting[nonce]

    def _send(self, frame: probe.Probe) -> None:
        assert self._socket is not None
        try:
            self._socket.send(probe.encode(frame))
        except BlockingIOError:
            self._count("probe-queue-full")
        except OSError:
            self._count("probe-send-failed")

    def _readable(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(probe.MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:  # The bridge went away; whoever pings next finds the new one.
                self.close()
                return
            self._received(probe.decode_untrusted(frame))

    def _received(self, frame: probe.Probe | probe.Drop) -> None:
        if isinstance(frame, probe.Drop):
            self._count(frame.value)
        elif frame.destination != self._own_mac or not self._is_peer_mac(frame.source):
            self._count("probe-stranger")
        elif frame.kind == probe.REQUEST:
            self._send(probe.reply(frame, self._own_mac))
        elif frame.kind == probe.REPLY:  # not one of a single path, which somebody else asked for
            answered = self._waiting.get(frame.nonce)
            if answered is not None and not answered.done():
                answered.set_result(time.monotonic())

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
