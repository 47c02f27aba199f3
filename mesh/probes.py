"""What probes find out about VXLAN, as one thing: who is reached, and how large a packet the path there takes.

Wires the prober, the measurer and the look at whom frames go to; keeps on disk what was found, so that the next daemon
begins where this one ended: it does not trust again what was silent, and does not give the network an MTU that a path
is known not to take. Knows nothing of what is made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from random import SystemRandom
from typing import Any

from dataplane.linux.activity import Activity
from dataplane.objects import vxlan6_name, vxlan_name
from gossip.names import PeerName, format_name, parse_name
from mesh.endpoints import bridge_mac
from mesh.logs import EventLog
from mesh.measurer import Measurer
from mesh.pathmtu import Way
from mesh.prober import Prober
from mesh.store import StoreError
from mesh.vxlanhealth import SILENT, TOO_NARROW

DOCUMENT = "vxlan"
SAVE_DELAY_S = 1.0
"""Many findings may come together."""

log = EventLog("probes")

Found = tuple[Mapping[PeerName, str], Mapping[PeerName, int]]
Write = Callable[[str, dict[str, Any]], Awaitable[None]]


class Probes:
    """Of the VXLAN devices of one bridge."""

    def __init__(
        self,
        bridge: str,
        vni: int,
        port: int,
        own: PeerName,
        document: Mapping[str, Any] | None,
        owner_of: Callable[[bytes], PeerName | None],
        is_peer_mac: Callable[[bytes], bool],
        write: Write,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_found: Callable[[], None],
    ) -> None:
        """`document` is what an earlier life wrote; `owner_of` says behind which other host a MAC is; `on_found` is
        called when something else was found, `spawn` to write that on disk."""
        verdicts, sizes = self._saved = _read(document)
        own_mac = bridge_mac(own)
        self._owner_of = owner_of
        self._write = write
        self._spawn = spawn
        self._on_found = on_found
        self._activity = Activity((vxlan_name(bridge), vxlan6_name(bridge)))
        self._measurer = Measurer(own_mac, vni, port, SystemRandom(), sizes, self._found)
        self._prober = Prober(
            vxlan_name(bridge), own_mac, SystemRandom(), verdicts, is_peer_mac, self._judged, self._talked_to,
            self._measurer.received,
        )  # fmt: skip
        self._told: Mapping[PeerName, str] = verdicts
        self._is_saving = False
        self._is_closed = False

    @property
    def verdicts(self) -> Mapping[PeerName, str]:
        """The peers that VXLAN does not reach, and how."""
        return self._prober.verdicts

    @property
    def path_mtus(self) -> Mapping[PeerName, int]:
        """The largest overlay packet that passes in one piece."""
        return self._measurer.found

    @property
    def counters(self) -> Mapping[str, int]:
        return {**self._prober.counters, **self._measurer.counters}

    def rtts_s(self, peers: Collection[PeerName]) -> dict[PeerName, float]:
        found = {peer: self._prober.rtt_s(peer) for peer in peers}
        return {peer: rtt_s for peer, rtt_s in found.items() if rtt_s is not None}

    def open(self) -> None:
        """Listen and ask; what cannot be opened yet is tried again by the next call."""
        self._prober.open()
        if self._prober.is_listening:
            self._measurer.open()

    def close(self) -> None:
        self._is_closed = True
        self._prober.close()
        self._measurer.close()
        self._activity.close()

    def watch(self, ways: Mapping[PeerName, Way], packet_bytes: int, known: Collection[PeerName] | None) -> None:
        """Probe these, in sizes up to that, and measure the ways to them. `known`, once all are: what was found of any
        other peer is forgotten."""
        self._measurer.watch(ways, known)
        self._prober.watch(ways.keys(), packet_bytes, known)

    def _talked_to(self) -> frozenset[PeerName] | None:
        macs = self._activity.macs()
        if macs is None:
            return None
        return frozenset(owner for mac in macs if (owner := self._owner_of(mac)) is not None)

    def _judged(self) -> None:
        """Where large frames do not pass, and where frames pass again: the path is another one than it was."""
        before, self._told = self._told, self._prober.verdicts
        narrow = {peer for peer, reason in self._told.items() if reason == TOO_NARROW != before.get(peer)}
        back = {peer for peer, reason in before.items() if reason == SILENT and peer not in self._told}
        self._measurer.hurry(narrow | back)
        self._found()

    def _found(self) -> None:
        if self._is_closed:
            return
        self._on_found()
        if not self._is_saving:
            self._is_saving = True
            self._spawn(self._save())

    async def _save(self) -> None:
        while (found := (self.verdicts, self.path_mtus)) != self._saved:
            await asyncio.sleep(SAVE_DELAY_S)
            found = (self.verdicts, self.path_mtus)
            faults = {format_name(name): reason for name, reason in sorted(found[0].items())}
            sizes = {format_name(name): size for name, size in sorted(found[1].items())}
            try:
                await self._write(DOCUMENT, {"faults": faults, "path_mtus": sizes})
            except StoreError as error:
                log.warning("not-saved", error=error)
                break
            self._saved = found
        self._is_saving = False


def _read(document: Mapping[str, Any] | None) -> Found:
    found = document or {}
    return (
        {parse_name(name): str(reason) for name, reason in found.get("faults", {}).items()},
        {parse_name(name): int(size) for name, size in found.get("path_mtus", {}).items()},
    )
