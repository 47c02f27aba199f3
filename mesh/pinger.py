"""The data-path ping: frames from bridge to bridge, over whatever path containers' frames take.

Answers the requests of peers we know and asks on behalf of `weft ping`. A request goes to the other bridge's own MAC,
so it proves the path in both directions at its full size. Knows nothing of how a path was chosen.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from dataplane import probe
from dataplane.linux.packet import open_probe_socket
from mesh.framesocket import FrameSocket

WAITING_MAX = 4096


class Pinger:
    """A socket on the bridge, re-opened when the bridge is made anew."""

    def __init__(self, bridge: str, own_mac: bytes, is_peer_mac: Callable[[bytes], bool]) -> None:
        self.counters: dict[str, int] = {}
        self._own_mac = own_mac
        self._is_peer_mac = is_peer_mac
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        self._loop = asyncio.get_running_loop()
        self._frames = FrameSocket(
            lambda: open_probe_socket(bridge), probe.MAX_FRAME_BYTES,
            lambda frame: self._received(probe.decode_untrusted(frame)), self._count, "probe",
        )  # fmt: skip

    def open(self) -> None:
        """Listen on the bridge; where it is not there (yet), the next call tries again."""
        self._frames.open()

    def close(self) -> None:
        self._frames.close()

    async def ping(self, mac: bytes, packet_bytes: int, timeout_s: float) -> float | None:
        """Seconds to the bridge `mac` and back with a packet of that size, or None where nothing comes back."""
        self.open()
        if not self._frames.is_open or len(self._waiting) >= WAITING_MAX:
            return None
        nonce = os.urandom(probe.NONCE_BYTES)
        answered: asyncio.Future[float] = self._loop.create_future()
        self._waiting[nonce] = answered
        sent = time.monotonic()
        try:
            self._frames.send(probe.encode(probe.request(self._own_mac, mac, nonce, packet_bytes)))
            async with asyncio.timeout(timeout_s):
                return await answered - sent
        except TimeoutError:
            return None
        finally:
            del self._waiting[nonce]

    def _received(self, frame: probe.Probe | probe.Drop) -> None:
        if isinstance(frame, probe.Drop):
            self._count(frame.value)
        elif frame.destination != self._own_mac or not self._is_peer_mac(frame.source):
            self._count("probe-stranger")
        elif frame.kind == probe.REQUEST:
            self._frames.send(probe.encode(probe.reply(frame, self._own_mac)))
        elif frame.kind == probe.REPLY:  # not one of a single path, which somebody else asked for
            answered = self._waiting.get(frame.nonce)
            if answered is not None and not answered.done():
                answered.set_result(time.monotonic())

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
