"""What a member is told at its start, what it asks of the host around it, and what it knows of each other peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gossip.names import PeerName
from mesh.ipam.charter import Charter
from mesh.ipam.holdings import Changes
from mesh.ipam.ranges import CONSENSUS
from mesh.ipam.space import Network, Space
from mesh.ipam.spans import Spans
from mesh.ipam.statement import Proposal, Receipts, Report, Statement, Vote


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may set. The ranges and the lease are those of the ring, once there is one."""

    space: Space
    """`charter.AUTOMATIC6` for a range to be made from the ring's id."""
    default: tuple[Network, ...] = ()
    """Subnets to give from where none is named, of each version of IP; else the whole range."""
    lease_s: int = 3600
    init: str = CONSENSUS
    expected: int = 0
    """Peers to count on for the first vote; 0: those that are named or known."""
    seeds: tuple[str, ...] = ()
    """Names or nicknames."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a member asks of the host around it."""

    own: PeerName
    nickname: str
    epoch: int
    """Of this start."""
    boot: bytes
    """What tells this boot of the machine from any other."""
    used_elsewhere: Callable[[int], bool] = lambda slot: False
    """Whether another host says that it uses an address of this slot."""
    endpoints_of: Callable[[PeerName], Spans] = lambda peer: ()
    """The slots of which another host says that it uses them."""


@dataclass(frozen=True, slots=True)
class Out:
    """What has to be on disk, and what to publish then, by page."""

    changes: Changes
    pages: dict[int, bytes]


@dataclass(slots=True)
class Known:
    """What one other peer says."""

    statement: Statement | None = None
    charter: Charter | None = None
    vote: Vote = field(default_factory=Vote)
    report: Report = field(default_factory=Report)
    proposal: Proposal | None = None
    receipts: dict[int, Receipts] = field(default_factory=dict)
