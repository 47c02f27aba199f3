"""Puts address allocation together from what the user set, the journal on disk, and the daemon around it."""

from __future__ import annotations

from random import SystemRandom

from gossip.names import PeerName
from mesh.endpoints import EndpointTable
from mesh.ipam.member import Member
from mesh.ipam.ranges import Allocation
from mesh.ipam.service import JOURNAL, Ipam, Mesh, boottime, is_used_elsewhere, slots_of
from mesh.ipam.space import AUTOMATIC6, Space
from mesh.ipam.surroundings import Settings, Surroundings
from mesh.journal import Journal


def build(
    told: Allocation,
    directory: str,
    own: PeerName,
    nickname: str,
    epoch: int,
    boot: str,
    table: EndpointTable,
    mesh: Mesh,
) -> Ipam:
    """Blocks while the journal is read. Raises `StoreError` where that cannot be trusted."""
    journal = Journal.open(directory, JOURNAL)
    settings = Settings(
        Space(told.range4, AUTOMATIC6 if told.makes_range6 else told.range6),
        (told.default_subnet,) if told.default_subnet is not None else (),
        told.lease_s,
        told.init,
        told.hosts,
        told.seeds,
    )
    members: list[Member] = []
    around = Surroundings(
        own, nickname, epoch, boot.encode(),
        lambda slot: is_used_elsewhere(members[0], table, slot),
        lambda peer: slots_of(members[0], table, peer),
    )  # fmt: skip
    members.append(Member(settings, around, journal.contents, SystemRandom(), boottime()))
    return Ipam(members[0], journal, mesh)
