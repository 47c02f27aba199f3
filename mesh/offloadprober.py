"""Sends rounds of offload probes on one of our devices, says of those that arrive there what came of them.

The shell around `Offloads`: a socket, a clock and one timer. On the VXLAN device rounds go past the forwarding table,
so they test that path whatever carries a peer's frames; on the bridge they go the way that frames go. Knows nothing of
what a fault is used for.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping

from dataplane import offloadprobe
from dataplane.linux.packet import open_offload_socket
from dataplane.offloadprobe import Arrived, Drop
from gossip.names import PeerName
from mesh.endpoints import bridge_mac
from mesh.offloads import CHECKSUM_PIECES, PLAIN_PIECES, SEGMENT_PIECES, Ask, Fault, Offloads, Reach

FRAMES_AT_ONCE = 64
"""Frames read each time the socket is ready, so that a flood of probes never starves the loop."""
REOPEN_INTERVAL_S = 1.0
TIMER_SLACK_S = 0.005


class OffloadProber:
    """A socket on the device, re-opened when that is made anew."""

    def __init__(
        self,
        device: str,
        way: int,
        own_mac: bytes,
        offloads: Offloads,
        is_peer_mac: Callable[[bytes], bool],
        on_change: Callable[[], None],
    ) -> None:
        """`way` is that of `dataplane.offloadprobe` for this device; `on_change` is called when what was found has
        changed."""
        self.counters: dict[str, int] = {}
        self._device = device
        self._way = way
        self._own_mac = own_mac
        self._offloads = offloads
        self._is_peer_mac = is_peer_mac
        self._on_change = on_change
        self._told = (offloads.faults, offloads.unhelped)
        self._peers: dict[bytes, PeerName] = {}
        self._packet_bytes = 0
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._offloads.faults

    @property
    def off(self) -> tuple[str, ...]:
        """The offloads to do without."""
        return self._offloads.off

    @property
    def unhelped(self) -> frozenset[PeerName]:
        """Peers to whom it does not help to do without."""
        return self._offloads.unhelped

    def open(self) -> None:
        """Listen on the device; where it is not there (yet), the next call tries again."""
        if self._socket is not None or self._is_closed:
            return
        try:
            self._socket = open_offload_socket(self._device)
        except OSError:
            return
        self._loop.add_reader(self._socket, self._readable)
        self._set_timer()

    def close(self) -> None:
        self._is_closed = True
        self._close_socket()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, peers: Mapping[PeerName, Reach], devices: Collection[str] | None, packet_bytes: int) -> None:
        """Test these, with packets of that size. `devices`: what was found of any other is forgotten."""
        self._peers = {bridge_mac(peer): peer for peer in peers}
        self._packet_bytes = packet_bytes
        self._offloads.watch(peers, devices, time.monotonic())
        self._tell()
        self._set_timer()

    def _tell(self) -> None:
        found = (self._offloads.faults, self._offloads.unhelped)
        if found != self._told:
            self._told = found
            self._on_change()

    # -- asking ------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due_s = self._offloads.next_due()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None and self._socket is not None:
            self._timer = self._loop.call_later(max(TIMER_SLACK_S, due_s - time.monotonic()), self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._readable()  # a report that waits behind a late timer is not missing
        for ask in self._offloads.due(time.monotonic()):
            self._ask(ask)
        self._tell()
        self._set_timer()

    def _ask(self, ask: Ask) -> None:
        sent = offloadprobe.Round(bridge_mac(ask.peer), self._own_mac, ask.nonce, self._way, self._packet_bytes)
        frames = [
            offloadprobe.udp(sent, CHECKSUM_PIECES[0]),
            offloadprobe.tcp(sent, CHECKSUM_PIECES[1:]),
            offloadprobe.tcp(sent, SEGMENT_PIECES),
            *(offloadprobe.plain(sent, piece) for piece in range(PLAIN_PIECES)),
        ]
        if not all(self._send(frame) for frame in frames):
            self._offloads.abandon(time.monotonic(), ask.peer)

    # -- the socket --------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(frame)
        except OSError:  # a full queue, or a device that went away, which is noticed when reading
            self._count("offload-send-failed")
            return False
        return True

    def _readable(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(offloadprobe.FRAME_MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:  # the device went away
                self._lose_socket()
                return
            self._received(offloadprobe.decode_untrusted(frame))

    def _received(self, frame: Arrived | offloadprobe.Report | Drop) -> None:
        if isinstance(frame, Drop):
            self._count(frame.value)
        elif frame.destination != self._own_mac or not self._is_peer_mac(frame.source):
            self._count("offload-stranger")
        elif isinstance(frame, Arrived):
            if frame.way == self._way:  # else it was answered on its way to here, or goes on to where it will be
                self._send(offloadprobe.report(frame, self._own_mac))
        elif (peer := self._peers.get(frame.source)) is not None:
            self._offloads.reported(peer, frame.nonce, frame.right, frame.wrong, time.monotonic())
            self._set_timer()

    def _lose_socket(self) -> None:
        """Nothing can be sent until the device is there again, and no offload is to blame for what is under way."""
        self._close_socket()
        self._offloads.abandon(time.monotonic())
        self._loop.call_later(REOPEN_INTERVAL_S, self._reopen)

    def _reopen(self) -> None:
        self.open()
        if self._socket is None and not self._is_closed:
            self._loop.call_later(REOPEN_INTERVAL_S, self._reopen)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
