"""Puts address allocation together from what the user set, the journal on disk, and the daemon around it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface
from random import SystemRandom

from dataplane.linux.collision import collision
from gossip.names import PeerName
from mesh import allocation
from mesh.allocation import Allocation
from mesh.endpoints import EndpointTable
from mesh.errors import UsageError
from mesh.ipam.member import Member
from mesh.ipam.service import JOURNAL, Ipam, Mesh, boottime, is_used_elsewhere, slots_of
from mesh.ipam.space import Space
from mesh.ipam.surroundings import Settings, Surroundings
from mesh.journal import Journal
from mesh.logs import EventLog

log = EventLog("ipam")


def build(
    asked: Allocation,
    directory: str,
    own: PeerName,
    nickname: str,
    epoch: int,
    boot: str,
    table: EndpointTable,
    mesh: Mesh,
    collides: Callable[[allocation.Network], str | None],
) -> Ipam:
    """Blocks while the journal is read. Raises `UserError` for a range that collides, `StoreError` for the journal."""
    journal = Journal.open(directory, JOURNAL)
    has_ring = b"c" in journal.contents
    try:
        range4, trouble = (asked.range4, "") if has_ring else allocation.choose_range(asked, collides)
    except ValueError as error:
        raise UsageError(f"launch: {error}") from None
    if trouble:
        log.warning("range-chosen", range=range4, instead=asked.range4, because=trouble)
    settings = Settings(
        Space(range4, asked.range6),
        (asked.default,) if asked.default is not None else (),
        asked.lease_s,
        asked.init.kind,
        asked.init.expected,
        asked.init.seeds,
    )
    members: list[Member] = []
    around = Surroundings(
        own, nickname, epoch, boot.encode(),
        lambda slot: is_used_elsewhere(members[0], table, slot),
        lambda peer: slots_of(members[0], table, peer),
    )  # fmt: skip
    members.append(Member(settings, around, journal.contents, SystemRandom(), boottime()))
    return Ipam(members[0], journal, mesh)


def collides_on(bridge: str) -> Callable[[allocation.Network], str | None]:
    """What on this host a network collides with; raises `KernelError`."""
    return lambda network: collision(bridge, ip_interface((network.network_address, network.prefixlen)))
