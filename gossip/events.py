"""What a node answers with: effects (what the shell must do) and events (what happened, for whoever sits above).

Plain values in one list, in the order in which they are to be taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.names import PeerName

DialKey = str | PeerName
"""What is dialled: a target as the user wrote it, or a peer that was discovered."""


@dataclass(frozen=True, slots=True)
class Send:
    link: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Send what is queued, then close. The node has already forgotten this link."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Try these addresses in order until one gives a link; report with `link_up` or `dial_failed`."""

    key: DialKey
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreEpoch:
    """Somebody has seen a later epoch of ours: keep this one on disk, then call `epoch_stored`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """A peer came into reach or went out of it, or what it says of itself changed."""

    peer: PeerName


@dataclass(frozen=True, slots=True)
class PageChanged:
    owner: PeerName
    table: str
    index: int


@dataclass(frozen=True, slots=True)
class OwnerForgotten:
    """A peer out of reach for too long, or gone, is forgotten with all its documents."""

    owner: PeerName


@dataclass(frozen=True, slots=True)
class Settled:
    """For the first time a neighbour holds exactly what we hold: the mesh's state is in."""


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Another live host uses our identity, and it stays: this one has left the mesh."""

    text: str


@dataclass(frozen=True, slots=True)
class NameContested:
    """Another live host of our name was met, by us or by a peer. We stay, if we are in; the other may go."""

    text: str


Effect = Send | CloseLink | Dial | StoreEpoch
Event = PeerChanged | PageChanged | OwnerForgotten | Settled | NameConflict | NameContested
Outcome = Effect | Event
