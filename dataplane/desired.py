"""What the kernel of this host should look like, as one frozen value.

The control plane builds a `Desired` from everything it knows and publishes it whole; the reconciler finds out what is
different and changes only that. Nothing here says how or in which order. A value, so that it can be compared, logged,
and cross a thread or process border.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import chain
from typing import Final, Literal

from gossip.names import PeerName

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

VXLAN: Final = "vxlan"
SLEEVE: Final = "sleeve"
NOWHERE: Final = "nowhere"
Via = Literal["vxlan", "sleeve", "nowhere"]
"""Behind which port of the bridge something is: the VXLAN device, the sleeve's TAP, or none: its frames are dropped."""

VXLAN_CHECKSUM: Final = "vxlan-checksum"
VXLAN_SEGMENT: Final = "vxlan-segment"
VXLAN_OFFLOADS: Final = (VXLAN_CHECKSUM, VXLAN_SEGMENT)
"""What the kernel may leave to a network card for packets inside VXLAN, and can be told to do itself: checksums, and
cutting what is larger than the MTU. Without the first there is none of the second."""


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
    offloads_off: tuple[str, ...] = ()
    """Those of `VXLAN_OFFLOADS` that the VXLAN device must do without, sorted."""


@dataclass(frozen=True, slots=True)
class Route:
    """A network that is reached inside a container through its interface: straight, or by a gateway there."""

    network: Network
    gateway: Address | None = None


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
    isolated: bool = False
    """Nothing passes between it and other hosts, in either direction."""
    routes: tuple[Route, ...] = ()
    """Networks beyond its own that are reached inside through it. None of them is everything."""
    leads_out: bool = True
    """Whether there is a default route inside through the host, while that is exposed in its network."""
    gateways: tuple[Address, ...] = ()
    """Where default routes inside lead instead: at most one of an IP version."""
    hairpin: bool = False
    """Whether what it sends may come back to it, as it does where addresses are translated on the way."""
    mtu: int | None = None
    """Less than the network's, where somebody wants that."""
    handed_over: bool = False
    """Whether somebody else takes the inner end into a namespace and gives it what it needs. `namespace` is empty then,
    and the inner end is made beside the other one."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """One address of this host itself on the bridge. Containers in its network reach the outside through it."""

    interface: Interface
    masquerade: bool = True
    """Whether what leaves its network does so under an address of the host, and nothing unasked comes in."""


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


Group = tuple[RemoteEndpoint, ...]
"""Remote endpoints that come, change and go together. A group in which nothing changed is the same object in the next
state: what did not change is then found by looking at groups, of which there are a hundredth as many."""


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything the kernel should hold for us. `Engine.publish` takes one; the newest wins.

    Whether groups are the same objects as the last time, and how large they are, decides what a publish costs and
    nothing else. Where two endpoints claim one thing, the first one has it, whatever their groups.
    """

    segment: Segment
    ports: tuple[Port, ...] = ()
    peers: tuple[RemotePeer, ...] = ()
    groups: tuple[Group, ...] = ()
    settled: bool = True
    """False while other hosts' state is not yet known: what the kernel already holds of theirs stays (adoption)."""
    exposed: tuple[Exposed, ...] = ()
    beside: tuple[Interface, ...] = ()
    """Addresses of this host on the bridge that lead nobody anywhere: by them it speaks with isolated ports."""

    @property
    def endpoints(self) -> tuple[RemoteEndpoint, ...]:
        """Those of all groups, in order. As long as the mesh is large: nothing that runs at every change asks."""
        return tuple(chain.from_iterable(self.groups))
