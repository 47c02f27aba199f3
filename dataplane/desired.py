"""What the kernel of this host should look like, as one frozen value.

The control plane builds a `Desired` from everything it knows and publishes it whole; the reconciler finds out what is
different and changes only that. Nothing here says how or in which order. A value, so that it can be compared, logged,
and cross a thread or process border.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final, Literal

from gossip.names import PeerName

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

VXLAN: Final = "vxlan"
SLEEVE: Final = "sleeve"
NOWHERE: Final = "nowhere"
Via = Literal["vxlan", "sleeve", "nowhere"]
"""Behind which port of the bridge something is: the VXLAN device, the sleeve's TAP, or none: its frames are dropped."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One overlay network on this host: a bridge, the sleeve's TAP and, where frames may leave in clear, its VXLAN
    devices."""

    bridge: str
    """Name of the bridge: `weft` for the default network."""
    bridge_mac: bytes
    """The bridge's own MAC, made from our peer name; other peers send probes to it."""
    mtu: int
    """Bytes of the largest overlay packet, set on the bridge, the overlay ports, the container ports and inside."""
    vni: int
    vxlan_port: int | None
    """UDP port of the VXLAN devices; None where no plain VXLAN device may exist (a secret is set, or --no-vxlan)."""
    tap: bool = True
    """Whether there is a TAP for the sleeve. Without one nothing can be via the sleeve."""
    vxlan6: bool = False
    """Whether there is a second VXLAN device, for IPv6 destinations. Without one they count as none."""


@dataclass(frozen=True, slots=True)
class Port:
    """One container interface attached on this host."""

    ifname: str
    """The end on the bridge: `vw` and a hash."""
    guest_ifname: str
    """The end inside the namespace: `ethwe`."""
    namespace: str
    """Path of the network namespace: `/run/netns/c1`, `/proc/4711/ns/net`."""
    namespace_id: tuple[int, int]
    """st_dev and st_ino it had when attached: a path that leads elsewhere now is another namespace."""
    mac: bytes
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class RemotePeer:
    """Another host that frames are sent to directly."""

    name: PeerName
    bridge_mac: bytes
    destination: Address | None
    """Underlay address its VXLAN device is reached at, where that is known. A link-local one has the number of this
    host's interface as its zone: `fe80::1%3`."""
    via: Via = VXLAN
    """Broadcasts go by VXLAN to the peers that are via VXLAN and to no others. A destination is worth saying of a peer
    via the sleeve too: it stays entered, so that probes can be sent there by VXLAN and moving it is one change."""
    spare: Address | None = None
    """An address of the other IP version, where both are known: entered for probes on the VXLAN device of that version,
    so that a family which fails has a proven one beside it."""


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """One container interface on another host."""

    mac: bytes
    addresses: tuple[Address, ...]
    destination: Address | None
    """As that of its host. None and via VXLAN is nowhere: ARP is still answered, frames are dropped."""
    via: Via = VXLAN


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything the kernel should hold for us. `Engine.publish` takes one; the newest wins.

    A publish is cheapest when endpoints that did not change are the same objects as the last time.
    """

    segment: Segment
    ports: tuple[Port, ...] = ()
    peers: tuple[RemotePeer, ...] = ()
    endpoints: tuple[RemoteEndpoint, ...] = ()
    settled: bool = True
    """False while other hosts' state is not yet known: what the kernel already holds of theirs stays (adoption)."""
