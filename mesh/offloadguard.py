"""The offloads that this host does without because they lie: found by probes on both paths, kept on disk.

Composes what looks after each path, VXLAN and the sleeve, with what this host is like: which underlay device leads to a
peer, which kernel runs. Knows nothing of how an offload is switched off; the daemon asks for `vxlan_off` and
`sleeve_off` and makes it so.

The one idea: a lie is a property of a device under a kernel. So what was found holds from the first moment of the next
life, and is forgotten, and looked for anew, as soon as either is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from dataplane.desired import SLEEVE, VXLAN, VXLAN_CHECKSUM, VXLAN_OFFLOADS, VXLAN_SEGMENT, Address
from dataplane.linux import features, underlay
from dataplane.objects import tap_name
from dataplane.offloadprobe import FAMILIES
from dataplane.sleeve.control import OFFLOADS as SLEEVE_OFFLOADS
from dataplane.sleeve.control import TAP, UP, PeerStatus
from gossip.names import PeerName, format_name, parse_name
from mesh.offloadprober import OffloadProber, Subject
from mesh.offloads import Fault, Offloads, Reach
from mesh.router import Router

DOCUMENT: Final = "offloads"
FAULTS_MAX: Final = 64
"""Read from the document; a host has a handful of devices."""


@dataclass(frozen=True, slots=True)
class OffloadView:
    """What is known of offloads right now."""

    vxlan_off: tuple[str, ...] = ()
    """Those that the VXLAN device does without, for whatever reason."""
    sleeve_off: tuple[str, ...] = ()
    """Those that the sleeve's worker was told to do without."""
    faults: tuple[Fault, ...] = ()
    unhelped: tuple[PeerName, ...] = ()
    """Peers where packets are lost or changed although the offload they were left to is off."""
    counters: Mapping[str, int] = field(default_factory=dict)


class OffloadGuard:
    """See the module."""

    def __init__(
        self,
        bridge: str,
        own_mac: bytes,
        release: str,
        document: Mapping[str, Any] | None,
        by_hand: tuple[str, ...],
        rng: Random,
        is_peer_mac: Callable[[bytes], bool],
        on_change: Callable[[], None],
    ) -> None:
        """`release` of the kernel; `document` as an earlier life left it; `by_hand`: offloads that the user switched
        off, of whatever kind."""
        self._release = release
        self._tap = tap_name(bridge)
        self._by_hand = frozenset(by_hand)
        faults = _faults_of(document, release)
        self._offloads: dict[Subject, Offloads] = {}
        for family in FAMILIES:
            by_vxlan = [fault for fault in faults if fault.offload in VXLAN_OFFLOADS]
            by_sleeve = [fault for fault in faults if fault.offload == TAP]
            self._offloads[Subject(VXLAN, family)] = Offloads(rng, VXLAN_CHECKSUM, VXLAN_SEGMENT, by_vxlan)
            self._offloads[Subject(SLEEVE, family)] = Offloads(rng, TAP, TAP, by_sleeve)
        self._prober = OffloadProber(bridge, own_mac, self._offloads, is_peer_mac, on_change)
        self._survey: underlay.Survey | None = None
        self._devices: dict[str, str] = {}
        """By interface name."""
        self._towards: dict[Address, str] = {}

    @property
    def vxlan_off(self) -> tuple[str, ...]:
        return self._off(VXLAN_OFFLOADS)

    @property
    def sleeve_off(self) -> tuple[str, ...]:
        return self._off(SLEEVE_OFFLOADS)

    def _off(self, names: tuple[str, ...]) -> tuple[str, ...]:
        lying = {fault.offload for fault in self._faults()}
        return tuple(name for name in names if name in self._by_hand or name in lying)

    def _faults(self) -> tuple[Fault, ...]:
        """One that was found with both families of addresses is one all the same."""
        found: dict[tuple[str, str], Fault] = {}
        for offloads in self._offloads.values():
            for fault in offloads.faults:
                found.setdefault((fault.device, fault.offload), fault)
        return tuple(found.values())

    @property
    def view(self) -> OffloadView:
        unhelped = frozenset[PeerName]().union(*(each.unhelped for each in self._offloads.values()))
        counters = dict(self._prober.counters)
        return OffloadView(self.vxlan_off, self.sleeve_off, self._faults(), tuple(sorted(unhelped)), counters)

    @property
    def document(self) -> dict[str, Any]:
        """What to put on disk."""
        rows = [
            {"offload": fault.offload, "device": fault.device, "peer": format_name(fault.peer)}
            for fault in self._faults()
        ]
        return {"release": self._release, "faults": rows}

    def open(self) -> None:
        self._prober.open()

    def close(self) -> None:
        self._prober.close()

    def watch(self, router: Router, sleeves: Mapping[PeerName, PeerStatus], survey: underlay.Survey) -> None:
        """Test the peers in reach by what carries their frames. A sleeve that is idle is left alone: to test it would
        make keys for nothing."""
        if survey != self._survey:
            names = {found.ifname for found in survey.addresses}
            self._devices = {name: _device(name) for name in names}
            self._towards = {}
            self._survey = survey
        records = router.node.replica.peers
        by_vxlan: dict[PeerName, Reach] = {}
        by_sleeve: dict[PeerName, Reach] = {}
        for name in frozenset[PeerName]().union(*router.probed.values()):
            path = router.paths[name]
            if path.kind == VXLAN and path.destination is not None:
                by_vxlan[name] = Reach(self._device_towards(path.destination, survey), records[name].instance)
        for name, sleeve in sleeves.items():
            is_used = name in router.paths and router.paths[name].kind == SLEEVE and sleeve.state == UP
            if is_used and name in router.node.replica.reachable:
                by_sleeve[name] = Reach(self._tap, records[name].instance)
        # While there is no address at all, the devices that will have them again are not gone.
        devices = self._devices.values() if self._devices else None
        self._prober.watch(VXLAN, by_vxlan, devices, router.mtu)
        self._prober.watch(SLEEVE, by_sleeve, None, router.mtu)

    def _device_towards(self, destination: Address, survey: underlay.Survey) -> str:
        known = self._towards.get(destination)
        if known is None:
            ifname = underlay.interface_towards(destination, survey)
            known = self._towards[destination] = self._devices.get(ifname or "", "")
        return known or next(iter(sorted(self._devices.values())), "")


def _device(ifname: str) -> str:
    """An underlay device with what works it: with another driver or firmware it is another one."""
    driver = features.driver_of(ifname)
    return f"{ifname} ({driver})" if driver else ifname


def _faults_of(document: Mapping[str, Any] | None, release: str) -> list[Fault]:
    """What an earlier life found under this very kernel."""
    if document is None or document.get("release") != release:
        return []
    rows = document["faults"][:FAULTS_MAX]
    return [Fault(str(row["device"]), str(row["offload"]), parse_name(row["peer"])) for row in rows]
