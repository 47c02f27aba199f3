"""Who is tested by which path, by which device each is reached, and what an earlier life is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest

from dataplane.desired import SLEEVE, VXLAN
from dataplane.linux import features, underlay
from dataplane.linux.underlay import Survey, UnderlayAddress
from dataplane.offloadprobe import FAMILIES
from dataplane.sleeve import control
from dataplane.sleeve.control import PeerStatus
from gossip.names import PeerName, format_name
from mesh.offloadguard import OffloadGuard
from mesh.offloadprober import Subject
from mesh.offloads import Fault
from tests.mesh.hosts import Here, Host

RELEASE = "6.18.44"
ETH0, ETH1 = "eth0 (virtio_net 1.0.0)", "eth1 (mlx5_core 24.10)"
OWN_MAC = bytes.fromhex("02aa00000001")


def survey(*ifnames: str) -> Survey:
    network = ip_network("10.9.0.0/24")
    return Survey(tuple(UnderlayAddress(ip_address("10.9.0.1"), network, ifname, 1500) for ifname in ifnames), None)


BOTH = survey("eth0", "eth1")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What works each interface, and by which interface an address is reached."""
    found = {"eth0": "virtio_net 1.0.0", "eth1": "mlx5_core 24.10", "10.9.0.3": "eth0", "10.9.0.4": "eth1"}
    monkeypatch.setattr(features, "driver_of", lambda ifname: found.get(ifname, ""))
    monkeypatch.setattr(underlay, "interface_towards", lambda to, survey: found.get(str(to)))
    return found


@pytest.fixture
def here() -> Here:
    """A host with two neighbours, h3 and h4, by VXLAN."""
    made = Here()
    hosts = Host(3), Host(4)
    for host in hosts:
        made.hear(host)
    made.reach(*hosts)
    made.desired()
    return made


def name_of(here: Here, nickname: str) -> PeerName:
    return next(name for name, record in here.node.replica.peers.items() if record.nickname == nickname)


def made(document: Mapping[str, Any] | None = None, by_hand: tuple[str, ...] = ()) -> OffloadGuard:
    async def make() -> OffloadGuard:
        return OffloadGuard("weft", OWN_MAC, RELEASE, document, by_hand, Random(1), lambda mac: True, lambda: None)

    return asyncio.run(make())


def by_vxlan(guard: OffloadGuard) -> dict[PeerName, str]:
    tracks = [guard._offloads[Subject(VXLAN, family)]._tracks for family in FAMILIES]
    ipv4, ipv6 = ({name: track.reach.device for name, track in each.items()} for each in tracks)
    assert ipv4 == ipv6
    return ipv4


def by_sleeve(guard: OffloadGuard) -> set[PeerName]:
    ipv4, ipv6 = (set(guard._offloads[Subject(SLEEVE, family)]._tracks) for family in FAMILIES)
    assert ipv4 == ipv6
    return ipv4


def sleeves(here: Here, **states: str) -> dict[PeerName, PeerStatus]:
    rows = (
        PeerStatus(name_of(here, nickname), state, None, True, "none", 0.0, None, 0.0, 1, 0, ())
        for nickname, state in states.items()
    )
    return {row.name: row for row in rows}


def test_each_peer_is_tested_by_vxlan_on_the_device_that_leads_there(here: Here, cards: dict[str, str]) -> None:
    """Its driver is part of what the device is; one that nobody knows the way of is put down to some device."""
    guard = made()
    guard.watch(here.router, {}, BOTH)
    assert by_vxlan(guard) == {name_of(here, "h3"): ETH0, name_of(here, "h4"): ETH1}
    del cards["10.9.0.4"], cards["eth0"]
    guard.watch(here.router, {}, survey("eth0"))
    assert by_vxlan(guard) == {name_of(here, "h3"): "eth0", name_of(here, "h4"): "eth0"}


def test_the_sleeve_is_tested_where_it_carries_frames_now(here: Here, cards: dict[str, str]) -> None:
    """Not where VXLAN does, nor where nothing was sent lately: to test it would make keys for nothing."""
    guard = made()
    states = sleeves(here, h3=control.UP, h4=control.IDLE)
    guard.watch(here.router, states, BOTH)
    assert by_sleeve(guard) == set()
    here.local = replace(here.local, has_secret=True)
    here.desired()
    guard.watch(here.router, states, BOTH)
    assert by_sleeve(guard) == {name_of(here, "h3")} and by_vxlan(guard) == {}


def test_a_peer_that_vxlan_does_not_reach_is_tested_there_when_it_does_again(here: Here, cards: dict[str, str]) -> None:
    """At once, and not in its turn."""
    guard = made()
    here.vxlan_faults = {name_of(here, "h3"): "vxlan-silent"}
    here.desired()
    guard.watch(here.router, {}, BOTH)
    assert by_vxlan(guard) == {name_of(here, "h4"): ETH1}
    here.vxlan_faults = {}
    here.desired()
    guard.watch(here.router, {}, BOTH)
    assert by_vxlan(guard) == {name_of(here, "h3"): ETH0, name_of(here, "h4"): ETH1}


def document(here: Here, *rows: tuple[str, str], release: str = RELEASE) -> dict[str, Any]:
    peer = format_name(name_of(here, "h3"))
    return {
        "release": release,
        "faults": [{"offload": offload, "device": device, "peer": peer} for offload, device in rows],
    }


def test_what_an_earlier_life_found_holds_under_the_same_kernel(here: Here, cards: dict[str, str]) -> None:
    """From the start, and it is written down as it was read."""
    known = document(here, ("vxlan-segment", ETH0), ("tap", "weft-tap"))
    guard = made(known)
    assert (guard.vxlan_off, guard.sleeve_off) == (("vxlan-segment",), ("tap",))
    assert guard.document == known
    guard.watch(here.router, {}, BOTH)
    assert guard.view.faults == (
        Fault(ETH0, "vxlan-segment", name_of(here, "h3")), Fault("weft-tap", "tap", name_of(here, "h3"))
    )  # fmt: skip
    for other in (document(here, ("vxlan-segment", ETH0), release="6.18.45"), None):
        assert (made(other).vxlan_off, made(other).sleeve_off) == ((), ())


def test_it_is_forgotten_with_the_device_or_its_driver(here: Here, cards: dict[str, str]) -> None:
    """But not while the host has no address for a moment."""
    guard = made(document(here, ("vxlan-segment", ETH0), ("tap", "weft-tap")))
    guard.watch(here.router, {}, Survey((), None))
    assert guard.vxlan_off == ("vxlan-segment",)
    cards["eth0"] = "virtio_net 1.0.1"
    guard.watch(here.router, {}, BOTH)
    assert (guard.vxlan_off, guard.sleeve_off) == ((), ("tap",))


def test_what_is_switched_off_by_hand_is_off_and_no_fault() -> None:
    """And not on disk: the next launch may say otherwise."""
    guard = made(by_hand=("tap", "udp-gro", "vxlan-checksum"))
    assert (guard.vxlan_off, guard.sleeve_off) == (("vxlan-checksum",), ("tap", "udp-gro"))
    assert (guard.view.faults, guard.document["faults"]) == ((), [])
