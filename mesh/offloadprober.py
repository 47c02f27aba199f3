"""Sends rounds of offload probes on the bridge, and says of those that arrive there what came of them.

The shell around `Offloads`, one of which looks after each path and each family of addresses: a socket, a clock and one
timer. Rounds go as frames go, so which path a peer's frames take is which path its rounds test. Knows nothing of what a
fault is used for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from dataplane import offloadprobe
from dataplane.linux.packet import open_offload_socket
from dataplane.offloadprobe import Arrived, Drop, Family, Report, Round
from gossip.names import PeerName
from mesh.endpoints import bridge_mac
from mesh.framesocket import FrameSocket
from mesh.offloads import CHECKSUM_PIECES, PLAIN_PIECES, SEGMENT_PIECES, Ask, Offloads, Reach

TIMER_SLACK_S = 0.005


class Subject(NamedTuple):
    """What one `Offloads` is about."""

    path: str
    family: Family


class OffloadProber:
    """A socket on the bridge, re-opened when that is made anew."""

    def __init__(
        self,
        bridge: str,
        own_mac: bytes,
        subjects: Mapping[Subject, Offloads],
        is_peer_mac: Callable[[bytes], bool],
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when what was found of one of the `subjects` has changed."""
        self.counters: dict[str, int] = {}
        self._own_mac = own_mac
        self._subjects = subjects
        self._is_peer_mac = is_peer_mac
        self._on_change = on_change
        self._told = self._found()
        self._peers: dict[str, dict[bytes, PeerName]] = {}
        self._packet_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._frames = FrameSocket(
            lambda: open_offload_socket(bridge), offloadprobe.FRAME_MAX_BYTES,
            lambda frame: self._received(offloadprobe.decode_untrusted(frame)), self._count, "offload",
            self._set_timer, self._lost,
        )  # fmt: skip

    def open(self) -> None:
        """Listen on the bridge; where it is not there (yet), the next call tries again."""
        self._frames.open()

    def close(self) -> None:
        self._frames.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(
        self, path: str, peers: Mapping[PeerName, Reach], devices: Collection[str] | None, packet_bytes: int
    ) -> None:
        """Test these, whose frames go by that path, with packets of that size. `devices`: what was found of any other
        is forgotten."""
        self._peers[path] = {bridge_mac(peer): peer for peer in peers}
        self._packet_bytes = packet_bytes
        for subject, offloads in self._subjects.items():
            if subject.path == path:
                offloads.watch(peers, devices, time.monotonic())
        self._tell()
        self._set_timer()

    def _found(self) -> list[object]:
        return [(each.faults, each.unhelped) for each in self._subjects.values()]

    def _tell(self) -> None:
        if (found := self._found()) != self._told:
            self._told = found
            self._on_change()

    # -- asking ------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due_s = min((due for each in self._subjects.values() if (due := each.next_due()) is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is not None and self._frames.is_open:
            self._timer = self._loop.call_later(max(TIMER_SLACK_S, due_s - time.monotonic()), self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._frames.read()  # a report that waits behind a late timer is not missing
        for subject, offloads in self._subjects.items():
            for ask in offloads.due(time.monotonic()):
                if not self._ask(subject.family, ask):
                    offloads.abandon(time.monotonic(), ask.peer)
        self._tell()
        self._set_timer()

    def _ask(self, family: Family, ask: Ask) -> bool:
        sent = Round(family, bridge_mac(ask.peer), self._own_mac, ask.nonce, self._packet_bytes)
        udp, tcp = CHECKSUM_PIECES
        frames = [
            offloadprobe.udp(sent, udp),
            offloadprobe.tcp(sent, (tcp,)),
            offloadprobe.tcp(sent, SEGMENT_PIECES),
            *(offloadprobe.finished(offloadprobe.udp(sent, piece)) for piece in PLAIN_PIECES[::2]),
            *(offloadprobe.finished(offloadprobe.tcp(sent, (piece,))) for piece in PLAIN_PIECES[1::2]),
        ]
        return all(self._frames.send(frame) for frame in frames)

    # -- what is heard -----------------------------------------------------------------------------

    def _received(self, frame: Arrived | Report | Drop) -> None:
        if isinstance(frame, Drop):
            self._count(frame.value)
        elif frame.destination != self._own_mac or not self._is_peer_mac(frame.source):
            self._count("offload-stranger")
        elif isinstance(frame, Arrived):
            self._frames.send(offloadprobe.report(frame, self._own_mac))
        else:
            for subject, offloads in self._subjects.items():  # whose round it was, the nonce says
                if (peer := self._peers.get(subject.path, {}).get(frame.source)) is not None:
                    offloads.reported(peer, frame.nonce, frame.right, frame.wrong, time.monotonic())
            self._set_timer()

    def _lost(self) -> None:
        """Nothing can be sent until the bridge is there again, and no offload is to blame for what is under way."""
        for offloads in self._subjects.values():
            offloads.abandon(time.monotonic())

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
