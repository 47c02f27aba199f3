"""Measures how large a packet the path to each peer takes, and answers those who measure theirs.

The shell around `PathMtus`: one UDP socket for each family, a clock and one timer. What it sends is made into VXLAN by
hand and must not be cut on the way; it arrives at the other host's VXLAN device like every frame, where the prober
takes it and hands it over. Knows nothing of what a size is used for.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping
from random import Random

from dataplane import probe
from dataplane.desired import Address
from dataplane.linux.packet import open_outer_socket
from gossip.names import PeerName
from mesh.endpoints import bridge_mac
from mesh.pathmtu import Measure, PathMtus, Way

TIMER_SLACK_S = 0.005


class Measurer:
    """Works only between `open` and `close`; before that it knows what an earlier life found."""

    def __init__(
        self, own_mac: bytes, vni: int, port: int, rng: Random, found: Mapping[PeerName, int],
        on_found: Callable[[], None],
    ) -> None:  # fmt: skip
        """`found` is of an earlier life; `on_found` is called when something else was found."""
        self.counters: dict[str, int] = {}
        self._mtus = PathMtus(rng, dict(found))
        self._own_mac = own_mac
        self._vni = vni
        self._port = port
        self._on_found = on_found
        self._ways: Mapping[PeerName, Way] = {}
        self._peers: dict[bytes, PeerName] = {}
        self._sockets: dict[int, socket.socket] = {}
        """By IP version."""
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def found(self) -> Mapping[PeerName, int]:
        """The largest overlay packet that passes in one piece, both ways."""
        return self._mtus.found

    def open(self) -> None:
        if not self._is_open:
            self._is_open = True
            self._set_timer()

    def close(self) -> None:
        self._is_open = False
        self._set_timer()
        for opened in self._sockets.values():
            opened.close()
        self._sockets = {}

    def watch(self, ways: Mapping[PeerName, Way], known: Collection[PeerName] | None) -> None:
        """Measure the paths to these. `known`, once all are: what was found of any other peer is forgotten."""
        if ways != self._ways:
            self._ways = ways
            self._peers = {bridge_mac(peer): peer for peer in ways}
            self._mtus.watch(ways, time.monotonic())
            self._set_timer()
        if known is not None:
            self._mtus.keep_only(known)

    def hurry(self, peers: Collection[PeerName]) -> None:
        """Measure these now."""
        self._mtus.hurry(peers, time.monotonic())
        self._set_timer()

    def received(self, frame: probe.Probe) -> None:
        """A question or an answer of these kinds that came by VXLAN from a known peer to us."""
        peer = self._peers.get(frame.source)
        if peer is None:
            self._count("measure-stranger")
        elif frame.kind == probe.SIZE_REQUEST:
            self._send(peer, probe.reply(frame, self._own_mac))
        else:
            self._mtus.answered(peer, frame.nonce, time.monotonic())
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._mtus.next_due() if self._is_open else None
        if due_s is not None:
            self._timer = self._loop.call_later(max(TIMER_SLACK_S, due_s - time.monotonic()), self._turn)

    def _turn(self) -> None:
        self._timer = None
        before = self._mtus.found
        for measure in self._mtus.due(time.monotonic()):
            self._ask(measure)
        if self._mtus.found is not before:
            self._on_found()
        self._set_timer()

    def _ask(self, measure: Measure) -> None:
        mac = bridge_mac(measure.peer)
        asked = probe.request(self._own_mac, mac, measure.nonce, measure.packet_bytes, probe.SIZE_REQUEST)
        self._send(measure.peer, asked)

    def _send(self, peer: PeerName, frame: probe.Probe) -> None:
        """What cannot be sent is lost, as what is sent may be."""
        destination = self._ways[peer].destination
        payload = probe.encapsulate(probe.encode(frame), self._vni)
        try:
            opened = self._sockets.get(destination.version)
            if opened is None:
                opened = self._sockets[destination.version] = open_outer_socket(destination.version == 6)
            opened.sendto(payload, _socket_address(destination, self._port))
        except OSError:
            self._count("measure-send-failed")

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1


def _socket_address(address: Address, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """As sockets take it; a link-local one with the number of our interface."""
    if address.version == 4:
        return str(address), port
    return str(address).partition("%")[0], port, 0, int(address.scope_id or 0)
