"""What probes find out about VXLAN, as one thing: who is reached, and how large a packet the path there takes.

Wires the prober, the measurer and the look at whom frames go to; keeps on disk what was found, so that the next daemon
begins where this one ended: it does not trust again what was silent, and does not give the network an MTU that a path
is known not to take. Knows nothing of what is made of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from random import SystemRandom
from typing import Any

from dataplane import probe
from dataplane.linux.activity import Activity
from dataplane.objects import vxlan6_name, vxlan_name
from gossip.names import PeerName, format_name, parse_name
from mesh.endpoints import bridge_mac
from mesh.logs import EventLog
from mesh.measurer import Measurer
from mesh.pathmtu import Way
from mesh.prober import Faults, Probers
from mesh.store import StoreError
from mesh.vxlanhealth import SILENT, TOO_NARROW

DOCUMENT = "vxlan"
SAVE_DELAY_S = 1.0
"""Many findings may come together."""

log = EventLog("probes")

PathMtus = Mapping[int, Mapping[PeerName, int]]
"""By IP version, the largest overlay packet that the path to a peer takes in one piece."""
Write = Callable[[str, dict[str, Any]], Awaitable[None]]
_KEYS = {4: ("faults", "path_mtus"), 6: ("faults6", "path_mtus6")}
"""Of the document, by IP version."""


class Probes:
    """Of the VXLAN devices of one bridge, one for each IP version."""

    def __init__(
        self,
        bridge: str,
        vni: int,
        port: int,
        own: PeerName,
        document: Mapping[str, Any] | None,
        owner_of: Callable[[bytes], PeerName | None],
        is_peer_mac: Callable[[int, bytes], bool],
        write: Write,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_found: Callable[[], None],
        on_doubt: Callable[[frozenset[PeerName]], None],
    ) -> None:
        """`document` is what an earlier life wrote; `owner_of` says behind which other host a MAC is; `on_found` is
        called when something else was found, `spawn` to write that on disk, `on_doubt` with those whose silence may
        soon be found."""
        verdicts, sizes = self._saved = _read(document)
        devices = {4: vxlan_name(bridge), 6: vxlan6_name(bridge)}
        own_mac = bridge_mac(own)
        self._owner_of = owner_of
        self._write = write
        self._spawn = spawn
        self._on_found = on_found
        self._activities = {version: Activity((device,)) for version, device in devices.items()}
        self._measurers = {
            version: Measurer(own_mac, vni, port, SystemRandom(), sizes[version], self._found) for version in devices
        }
        self._probers = Probers(
            devices, own_mac, SystemRandom(), verdicts, is_peer_mac, self._judged, self._talked_to, self._sized,
            on_doubt,
        )  # fmt: skip
        self._told: Faults = verdicts
        self._is_saving = False
        self._is_closed = False

    @property
    def verdicts(self) -> Faults:
        """The peers that VXLAN does not reach, and how."""
        return self._probers.verdicts

    @property
    def path_mtus(self) -> PathMtus:
        return {version: measurer.found for version, measurer in self._measurers.items()}

    @property
    def counters(self) -> Mapping[str, int]:
        total = Counter(self._probers.counters)
        for measurer in self._measurers.values():
            total.update(measurer.counters)
        return total

    def rtts_s(self, serving: Mapping[PeerName, int]) -> dict[PeerName, float]:
        """By the IP version that serves each."""
        found = {peer: self._probers.rtt_s(peer, version) for peer, version in serving.items()}
        return {peer: rtt_s for peer, rtt_s in found.items() if rtt_s is not None}

    def has_answered(self, peer: PeerName, version: int) -> bool:
        """Whether it ever did, by VXLAN over that IP version, since it was first asked."""
        return self._probers.rtt_s(peer, version) is not None

    def open(self) -> None:
        """Listen and ask; what cannot be opened yet is tried again by the next call."""
        self._probers.open()
        for version, prober in self._probers.each.items():
            if prober.is_listening:
                self._measurers[version].open()

    def close(self) -> None:
        self._is_closed = True
        self._probers.close()
        for measurer in self._measurers.values():
            measurer.close()
        for activity in self._activities.values():
            activity.close()

    def watch(
        self,
        ways: Mapping[int, Mapping[PeerName, Way]],
        lost: Collection[PeerName],
        sizes: Mapping[int, int],
        known: Collection[PeerName] | None,
    ) -> None:
        """Probe these, in sizes up to those, and measure the ways to them, by IP version. `lost` are out of reach and
        have addresses of both; `known`, once all are: what was found of any other peer is forgotten."""
        for version, measurer in self._measurers.items():
            measurer.watch(ways[version], known)
        self._probers.watch({version: each.keys() for version, each in ways.items()}, lost, sizes, known)

    def _talked_to(self, version: int) -> frozenset[PeerName] | None:
        macs = self._activities[version].macs()
        if macs is None:
            return None
        return frozenset(owner for mac in macs if (owner := self._owner_of(mac)) is not None)

    def _sized(self, version: int, frame: probe.Probe) -> None:
        self._measurers[version].received(frame)

    def _judged(self) -> None:
        """Where large frames do not pass, and where frames pass again: the path is another one than it was."""
        before, self._told = self._told, self._probers.verdicts
        for version, measurer in self._measurers.items():
            old, new = before[version], self._told[version]
            narrow = {peer for peer, reason in new.items() if reason == TOO_NARROW != old.get(peer)}
            back = {peer for peer, reason in old.items() if reason == SILENT and peer not in new}
            if narrow or back:
                measurer.hurry(narrow | back)
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
            rows = {
                key: {format_name(name): value for name, value in sorted(each[version].items())}
                for version, keys in _KEYS.items()
                for key, each in zip(keys, found, strict=True)
            }
            try:
                await self._write(DOCUMENT, rows)
            except StoreError as error:
                log.warning("not-saved", error=error)
                break
            self._saved = found
        self._is_saving = False


def _read(document: Mapping[str, Any] | None) -> tuple[Faults, PathMtus]:
    found = document or {}
    faults, sizes = {}, {}
    for version, (faults_key, sizes_key) in _KEYS.items():
        faults[version] = {parse_name(name): str(reason) for name, reason in found.get(faults_key, {}).items()}
        sizes[version] = {parse_name(name): int(size) for name, size in found.get(sizes_key, {}).items()}
    return faults, sizes
