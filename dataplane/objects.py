"""What the kernel holds for us, as keyed values: pure, cheap, and the same on both sides of a comparison.

`expansion` turns what we want into them; listing the kernel gives a mapping of the same kind; everything else in this
package compares the two. Nothing here knows in which order things are made (reconcile), how a message to the kernel
looks (linux), or what makes us want an object (expansion).

The one idea: an object is what can be made or removed by one operation. A container's interface is therefore several
objects (the pair, its bridge port flags, its being up, the inner end, each address), and a remote endpoint is four or
so: where VXLAN sends its MAC, which bridge port its MAC is behind (a VXLAN device or the sleeve's TAP), and who
answers for each of its addresses.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from dataplane.desired import Address, Interface, Network, Port

# Kinds. Plain strings: there are tens of thousands of keys, and an enum's hash is a Python call.
LINK: Final = "link"
UP: Final = "up"
PORT: Final = "port"
OFFLOADS: Final = "offloads"
VXLAN_FDB: Final = "vxlan-fdb"
FLOOD: Final = "flood"
BRIDGE_FDB: Final = "bridge-fdb"
NEIGHBOUR: Final = "neighbour"
GUEST: Final = "guest"
GUEST_ADDRESS: Final = "guest-address"
GUEST_ROUTE: Final = "guest-route"
GUEST_NETWORK: Final = "guest-network"
GUARD: Final = "guard"
ACCEPT: Final = "accept"
GATEWAY: Final = "gateway"
HOST_ADDRESS: Final = "host-address"
FORWARDING: Final = "forwarding"

LINK_KINDS: Final = frozenset({LINK, UP, PORT, OFFLOADS})
TABLE_KINDS: Final = frozenset({VXLAN_FDB, FLOOD, BRIDGE_FDB, NEIGHBOUR})
GUEST_KINDS: Final = frozenset({GUEST, GUEST_ADDRESS, GUEST_ROUTE, GUEST_NETWORK})
FIREWALL_KINDS: Final = frozenset({GUARD, ACCEPT, GATEWAY})
HOST_KINDS: Final = frozenset({HOST_ADDRESS, FORWARDING})

FAMILIES: Final[Mapping[int, bytes]] = {4: b"ip", 6: b"ip6"}
"""Item of what there is once for IPv4 and once for IPv6, by version of the address."""
BETWEEN: Final = b""
OUT: Final = b" out"
IN: Final = b" in"
"""What an ACCEPT lets pass, as the end of its item: frames between containers, packets of theirs to the outside, and
packets from there. Those two are wanted only where the host is exposed."""

IPV6_MTU_MIN: Final = 1280
"""RFC 8200, section 5. The kernel takes IPv6 away from a device with less."""
TAP_QUEUE_PACKETS: Final = 1000
"""Frames (up to 64 KiB each) that wait in the TAP for the worker, which does the queueing that matters itself."""
TAP_GSO_MAX_BYTES: Final = 65_400
"""Longer frames are cut to the MTU by the kernel, at ten times the cost. TCP's stay below it, because of the 64 KiB it
may fill it keeps room for headers (the longest seen was 65,318, over IPv6); giants made of UDP segments do not. A frame
of this length with its virtio header, and a record's header and tag, fit one UDP datagram over IPv4: 65,507 bytes."""
ZERO_MAC: Final = bytes(6)
IFINDEX: Final = struct.Struct("=I")
NOWHERE: Final = bytes(4)
"""VXLAN destination of an endpoint no path leads to: the kernel drops what is sent to 0.0.0.0."""


class Key(NamedTuple):
    """Names one kernel object: its kind, the device it belongs to, and what tells it from its siblings there."""

    kind: str
    device: str
    item: bytes = b""


class Bridge(NamedTuple):
    """LINK of a bridge. Its MAC is set before anything else: a change empties the neighbour table."""

    mac: bytes
    mtu: int
    snooping: bool = False
    stp: bool = False
    generates_addresses: bool = False
    accept_ra: int = 0
    ipv6: bool = True


class Vxlan(NamedTuple):
    """LINK of a VXLAN device. `oddity` names an option that ours never has and that cannot be tolerated.

    `ipv6` tells the device for IPv6 destinations. The kernel does not report it, so it goes by the name."""

    vni: int
    port: int
    mtu: int
    oddity: str = ""
    ipv6: bool = False


class Tap(NamedTuple):
    """LINK of the sleeve's TAP. It outlives the process that has it open; without one it has no carrier, and what is
    sent there is dropped. `oddity` names an option that ours never has and that cannot be tolerated."""

    mtu: int
    queue_packets: int = TAP_QUEUE_PACKETS
    gso_max_bytes: int = TAP_GSO_MAX_BYTES
    oddity: str = ""


class Veth(NamedTuple):
    """LINK of the host end of a container's interface; `namespace` is where the other end lives (0, 0: elsewhere)."""

    mtu: int
    namespace: tuple[int, int]


class OtherLink(NamedTuple):
    """LINK of a device that bears one of our names and is none of ours."""

    type: str


class PortFlags(NamedTuple):
    """PORT: membership in a bridge and the flags there. Absent where the device is in no bridge."""

    master: str
    neigh_suppress: bool
    isolated: bool
    locked: bool
    learning: bool = False
    flood: bool = False
    mcast_flood: bool = True
    bcast_flood: bool = True
    hairpin: bool = False


class Offloads(NamedTuple):
    """OFFLOADS of a VXLAN device: those of `desired.VXLAN_OFFLOADS` that it does without, sorted."""

    off: tuple[str, ...] = ()


class Guest(NamedTuple):
    """GUEST: the end inside the namespace. None means: does not matter (wanted), cannot be had (found)."""

    name: str
    mac: bytes
    mtu: int
    up: bool = True
    accept_ra: int | None = 0
    ipv6: bool | None = None


class GuestAddress(NamedTuple):
    """GUEST_ADDRESS: `ours` tells an address we set from one that somebody else added, which is left alone."""

    ours: bool = True


class DefaultRoute(NamedTuple):
    """GUEST_ROUTE: a container's default route through its host, which is a last resort. `others`: it has one from
    somebody else, and then ours is not wanted there. `gateway` is None where ours is not there."""

    gateway: bytes | None
    others: bool = False


class HostAddress(NamedTuple):
    """HOST_ADDRESS: an address of the bridge itself. `ours` as with a container's address."""

    ours: bool = True


class Forwarding(NamedTuple):
    """FORWARDING: the host forwards packets of a family. `ours`: what was before we switched it on is remembered, also
    where somebody has switched it off again."""

    ours: bool = True
    on: bool = True


class Gateway(NamedTuple):
    """GATEWAY: the table that masquerades what leaves `networks`, keeps out what comes into them unasked, and keeps in
    what is from nowhere in these or the `plain` ones. Sorted."""

    networks: tuple[str, ...]
    plain: tuple[str, ...] = ()


class Guard(NamedTuple):
    """GUARD: the rules that keep unanswerable ARP and ND off an overlay port. `rules` are their comments, in order."""

    rules: tuple[str, ...]


class Unavailable(NamedTuple):
    """Found instead of an object that this host cannot have; a warning says why. Fits whatever is wanted."""

    reason: str


class Odd(NamedTuple):
    """A table entry under one of our keys that is not of our form. `sticks`: replacing is not enough, delete first."""

    port: str
    sticks: bool = False


Value = (
    Bridge
    | Vxlan
    | Tap
    | Veth
    | OtherLink
    | PortFlags
    | Offloads
    | Guest
    | GuestAddress
    | DefaultRoute
    | HostAddress
    | Forwarding
    | Gateway
    | Guard
    | Unavailable
    | Odd
    | bytes
    | str
    | bool
)
"""VXLAN_FDB: destination, as `destination_item`. FLOOD, UP: True. BRIDGE_FDB: port name. NEIGHBOUR: MAC. GUEST_NETWORK:
the gateway, packed; empty where there is none. ACCEPT: is the rule there."""

GUARD_RULES: Final = ("weft unanswered arp", "weft local nd", "weft unanswered nd")
"""Comments of the rules of a guard, which are also how it is recognised. A changed rule needs a changed comment."""
ACTIVE_RULE: Final = "weft active macs"
"""On a VXLAN device one rule more, which keeps in a set the MACs that frames went to lately."""


UNHOOKED: Final = Guard(())
"""A guard as found whose device is no more, or another one of the same name now."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look: what a listing and the event filters need to know of a `Desired`."""

    bridge: str
    ports: tuple[Port, ...] = ()
    vxlan_port: int | None = None
    """The UDP port that a firewall on this host should let in."""
    routed: frozenset[bytes] = frozenset()
    """The `FAMILIES` in which containers reach the outside through this host."""
    over_ipv6: bool = False
    """Some peer is reached over IPv6, so that the port should be open there too."""


def vxlan_name(bridge: str) -> str:
    return f"{bridge}-vx"


def vxlan6_name(bridge: str) -> str:
    """The device for IPv6 destinations: a v4 device refuses them, and this one refuses all others."""
    return f"{bridge}-vx6"


def tap_name(bridge: str) -> str:
    return f"{bridge}-tap"


def active_set_name(device: str) -> str:
    """The nftables set of the MACs that frames went to through this VXLAN device."""
    return f"active-{device}"


def address_item(interface: Interface) -> bytes:
    """Item of a GUEST_ADDRESS or HOST_ADDRESS: the packed address and one byte of prefix length."""
    return interface.ip.packed + bytes((interface.network.prefixlen,))


def network_item(network: Network) -> bytes:
    """Item of a GUEST_NETWORK: the packed first address and one byte of prefix length."""
    return network.network_address.packed + bytes((network.prefixlen,))


def destination_item(address: Address) -> bytes:
    """Value of a VXLAN_FDB and item of a FLOOD: the packed address, and of a link-local one the interface's number."""
    if address.version == 6 and address.scope_id is not None:
        return address.packed + IFINDEX.pack(int(address.scope_id))
    return address.packed


def fits(wanted: Value, found: Value) -> bool:
    """Whether what was found needs no operation."""
    if wanted == found and type(wanted) is type(found):
        return True
    if isinstance(wanted, Guest) and isinstance(found, Guest):
        return (
            wanted[:4] == found[:4]
            and (found.accept_ra is None or wanted.accept_ra == found.accept_ra)
            and (wanted.ipv6 is None or wanted.ipv6 == found.ipv6)
        )
    if isinstance(wanted, DefaultRoute) and isinstance(found, DefaultRoute):
        return found.gateway is None if found.others else found.gateway == wanted.gateway
    if isinstance(wanted, Forwarding) and isinstance(found, Forwarding):
        return found.on
    if isinstance(wanted, GuestAddress | HostAddress):
        return type(wanted) is type(found)
    return isinstance(found, Unavailable)
