"""Links as netlink messages: devices, bridge ports, and the inner ends of container interfaces.

Turns link messages into objects and wanted objects into messages; knows nothing of sockets or namespaces' paths. The
one idea: one link message carries several objects (that the device is there, that it is up, its bridge port flags),
so a decoded link is kept whole and the objects are read off it. Layouts: linux/rtnetlink.h, linux/if_link.h.

    0        1     2       4         8       12       16
    +--------+-----+-------+---------+-------+--------+----------- - -
    | family |     | type  | ifindex | flags | change | attributes
    +--------+-----+-------+---------+-------+--------+----------- - -
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from dataplane.linux.netlink import attribute, attributes, nested, text, u8, u32
from dataplane.objects import TAP_GSO_MAX_BYTES, Bridge, Guest, PortFlags, Tap, Vxlan

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
AF_UNSPEC: Final = 0
AF_BRIDGE: Final = 7

_INFO: Final = struct.Struct("=BxHiII")
_NETLINK_HEADER_BYTES: Final = 16
_IFF_UP: Final = 0x1

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_PROTINFO: Final = 12
_IFLA_TXQLEN: Final = 13
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_AF_SPEC: Final = 26
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
_IFLA_LINK_NETNSID: Final = 37
_IFLA_GSO_MAX_SIZE: Final = 41
_IFLA_TARGET_NETNSID: Final = 46
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3

_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5

_BR_STP_STATE: Final = 5
_BR_MCAST_SNOOPING: Final = 23

_PORT_HAIRPIN: Final = 4
_PORT_LEARNING: Final = 8
_PORT_UNICAST_FLOOD: Final = 9
_PORT_MCAST_FLOOD: Final = 27
_PORT_BCAST_FLOOD: Final = 30
_PORT_NEIGH_SUPPRESS: Final = 32
_PORT_ISOLATED: Final = 33
_PORT_LOCKED: Final = 39

_VXLAN_ID: Final = 1
_VXLAN_TTL: Final = 5
_VXLAN_LEARNING: Final = 7
_VXLAN_PORT: Final = 15
_VXLAN_DF: Final = 29
_VXLAN_TTL_HOPS: Final = 64
# Options that make a VXLAN device another one than ours: where they are set to anything, frames would go elsewhere,
# be cut differently, or answered by the device itself. Bytes are what a plain device reports for them.
_VXLAN_ODDITIES: Final[Mapping[int, tuple[str, bytes]]] = {
    2: ("a group", b""),
    3: ("an underlay device", bytes(4)),
    4: ("a local address", b""),
    7: ("learning", bytes(1)),
    11: ("proxy", bytes(1)),
    12: ("rsc", bytes(1)),
    16: ("an IPv6 group", b""),
    17: ("a local IPv6 address", b""),
    23: ("gbp", b""),
    25: ("external", bytes(1)),
    27: ("gpe", b""),
    29: ("df", bytes(1)),
}

_TUN_TYPE: Final = 3
# Options of our TAP as the kernel reports them; one that is set otherwise makes it another device than ours.
_TAP_PLAIN: Final[Mapping[int, tuple[str, int]]] = {
    _TUN_TYPE: ("no Ethernet", 2),
    4: ("packet information", 0),
    5: ("no virtio header", 1),
    6: ("not persistent", 1),
    7: ("several queues", 0),
}
"""IFLA_TUN_TYPE (2: TAP), _PI, _VNET_HDR, _PERSIST and _MULTI_QUEUE of linux/if_link.h."""

_VETH_PEER: Final = 1

_AF_INET6: Final = 10
_INET6_CONF: Final = 2
_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_NONE: Final = 1
_CONF_ACCEPT_RA: Final = 3
_CONF_DISABLE_IPV6: Final = 26

ALIAS: Final = "weft"
"""Alias of our container interfaces: a pair that lost its bridge is known for ours by it."""


class Link(NamedTuple):
    """A link message, decoded as far as anybody here asks."""

    family: int
    ifindex: int
    name: str
    up: bool
    mac: bytes
    mtu: int
    master: int
    """ifindex of the bridge, 0 for none."""
    type: str
    data: Mapping[int, bytes]
    """IFLA_INFO_DATA of that type."""
    port: Mapping[int, bytes]
    """Bridge port attributes, empty where it is no bridge port or the message does not say."""
    alias: str
    peer: int
    """ifindex of the other end of a veth."""
    peer_nsid: int
    """Number of the namespace the other end is in; -1: this one."""
    accept_ra: int | None
    ipv6: bool | None
    generates_addresses: bool
    queue_packets: int
    gso_max_bytes: int


def decode(data: bytes, start: int, end: int) -> Link:
    family, _, index, flags, _ = _INFO.unpack_from(data, start)
    found = attributes(data, start + _INFO.size, end)
    info = _inner(found.get(_IFLA_LINKINFO))
    port = _inner(info.get(_INFO_SLAVE_DATA)) if info.get(_INFO_SLAVE_KIND) == b"bridge\0" else {}
    if family == AF_BRIDGE:
        port = _inner(found.get(_IFLA_PROTINFO))
    inet6 = _inner(_inner(found.get(_IFLA_AF_SPEC)).get(_AF_INET6))
    conf = inet6.get(_INET6_CONF, b"")
    return Link(
        family=family,
        ifindex=index,
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        up=bool(flags & _IFF_UP),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=_number(found.get(_IFLA_MTU)),
        master=_number(found.get(_IFLA_MASTER)),
        type=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        data=_inner(info.get(_INFO_DATA)),
        port=port,
        alias=found.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        peer=_number(found.get(_IFLA_LINK)),
        peer_nsid=struct.unpack("=i", found[_IFLA_LINK_NETNSID])[0] if _IFLA_LINK_NETNSID in found else -1,
        accept_ra=_conf(conf, _CONF_ACCEPT_RA),
        ipv6=None if (disabled := _conf(conf, _CONF_DISABLE_IPV6)) is None else not disabled,
        generates_addresses=_number(inet6.get(_INET6_ADDR_GEN_MODE), _ADDR_GEN_NONE) != _ADDR_GEN_NONE,
        queue_packets=_number(found.get(_IFLA_TXQLEN)),
        gso_max_bytes=_number(found.get(_IFLA_GSO_MAX_SIZE), TAP_GSO_MAX_BYTES),
    )


def bridge_of(link: Link) -> Bridge:
    return Bridge(
        mac=link.mac,
        mtu=link.mtu,
        snooping=_number(link.data.get(_BR_MCAST_SNOOPING)) != 0,
        stp=_number(link.data.get(_BR_STP_STATE)) != 0,
        generates_addresses=link.generates_addresses,
        # Where the kernel has no IPv6 at all there is nothing to set, and nothing to find fault with.
        accept_ra=link.accept_ra or 0,
        ipv6=link.ipv6 is not False,
    )


def vxlan_of(link: Link, ipv6: bool) -> Vxlan:
    """Whether it takes IPv6 destinations the kernel does not say."""
    data = link.data
    oddities = [
        name for kind, (name, plain) in _VXLAN_ODDITIES.items() if kind in data and (not plain or data[kind] != plain)
    ]
    port = int.from_bytes(data.get(_VXLAN_PORT, b""), "big")
    return Vxlan(vni=_number(data.get(_VXLAN_ID)), port=port, mtu=link.mtu, oddity=", ".join(oddities), ipv6=ipv6)


def tap_of(link: Link) -> Tap:
    oddities = [
        name for kind, (name, plain) in _TAP_PLAIN.items() if kind in link.data and link.data[kind] != bytes((plain,))
    ]
    return Tap(link.mtu, link.queue_packets, link.gso_max_bytes, ", ".join(oddities))


def port_flags_of(link: Link, master: str) -> PortFlags:
    port = link.port
    return PortFlags(
        master=master,
        neigh_suppress=_number(port.get(_PORT_NEIGH_SUPPRESS)) != 0,
        isolated=_number(port.get(_PORT_ISOLATED)) != 0,
        locked=_number(port.get(_PORT_LOCKED)) != 0,
        learning=_number(port.get(_PORT_LEARNING)) != 0,
        flood=_number(port.get(_PORT_UNICAST_FLOOD)) != 0,
        mcast_flood=_number(port.get(_PORT_MCAST_FLOOD)) != 0,
        bcast_flood=_number(port.get(_PORT_BCAST_FLOOD)) != 0,
        hairpin=_number(port.get(_PORT_HAIRPIN)) != 0,
    )


def guest_of(link: Link) -> Guest:
    return Guest(name=link.name, mac=link.mac, mtu=link.mtu, up=link.up, accept_ra=link.accept_ra, ipv6=link.ipv6)


# Messages. Each is the payload of a RTM_NEWLINK, RTM_DELLINK or RTM_GETLINK.


def one(index: int = 0, name: str = "", nsid: int | None = None) -> bytes:
    """Question for, or deletion of, one link."""
    payload = _INFO.pack(AF_UNSPEC, 0, index, 0, 0)
    if nsid is not None:
        payload += attribute(_IFLA_TARGET_NETNSID, struct.pack("=i", nsid))
    return payload + (text(_IFLA_IFNAME, name) if name else b"")


def set_group(index: int, group: int) -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + u32(_IFLA_GROUP, group)


def all_of_group(group: int) -> bytes:
    """Deletion of many links at once."""
    return _INFO.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(_IFLA_GROUP, group)


def every() -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)


def new_bridge(name: str, wanted: Bridge) -> bytes:
    """Without its MTU: one that is set later counts as the user's and does not follow the ports."""
    data = [("IFLA_BR_STP_STATE", int(wanted.stp)), ("IFLA_BR_MCAST_SNOOPING", int(wanted.snooping))]
    return _new(name, "bridge", data, ("IFLA_ADDRESS", wanted.mac.hex(":")))


def change_bridge(ifindex: int, wanted: Bridge, found: Bridge | None) -> bytes:
    """Only what differs: setting a MAC empties the neighbour table even when it is the same one."""
    payload = _INFO.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    if found is not None and found.mac != wanted.mac:
        payload += attribute(_IFLA_ADDRESS, wanted.mac)
    if found is None or found.mtu != wanted.mtu:
        payload += u32(_IFLA_MTU, wanted.mtu)
    if found is not None and (found.stp, found.snooping) != (wanted.stp, wanted.snooping):
        data = nested(_INFO_DATA, u32(_BR_STP_STATE, wanted.stp), u8(_BR_MCAST_SNOOPING, wanted.snooping))
        payload += nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), data)
    return payload


def new_vxlan(name: str, wanted: Vxlan) -> bytes:
    """A local address of `::` makes it one for IPv6, whose socket takes IPv6 alone: the other device has the same port.
    UDP checksums are as the kernel has them, which over IPv6 means: made, and asked for. They cost next to nothing,
    since the checksum of the packet inside is known, and nothing else protects an IPv6 header."""
    data: list[tuple[str, Any]] = [
        ("IFLA_VXLAN_ID", wanted.vni),
        ("IFLA_VXLAN_PORT", wanted.port),
        ("IFLA_VXLAN_LEARNING", 0),
        ("IFLA_VXLAN_TTL", _VXLAN_TTL_HOPS),
    ]
    if wanted.ipv6:
        data.append(("IFLA_VXLAN_LOCAL6", "::"))
    return _new(name, "vxlan", data, ("IFLA_MTU", wanted.mtu))


def new_veth(name: str, mtu: int, bridge: int, guest: Guest, namespace: int | None) -> bytes:
    """A pair with its inner end born in the namespace of that file descriptor, or in this one. Both ends are down."""
    peer: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", guest.name),
        ("IFLA_ADDRESS", guest.mac.hex(":")),
        ("IFLA_MTU", guest.mtu),
    ]
    peer += [("IFLA_NET_NS_FD", namespace)] if namespace is not None else []
    data = [("VETH_INFO_PEER", {"attrs": peer})]
    return _new(name, "veth", data, ("IFLA_MTU", mtu), ("IFLA_MASTER", bridge))


def _new(name: str, kind: str, data: list[tuple[str, Any]], *attrs: tuple[str, Any]) -> bytes:
    """The payload of a message that makes a device. Devices are made rarely, so pyroute2's tables of their options
    serve here; what is read or changed by the thousand is laid out by hand."""
    info = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), *attrs, ("IFLA_LINKINFO", {"attrs": info})]
    message.encode()
    return bytes(message.data[_NETLINK_HEADER_BYTES:])


def set_mtu(index: int, mtu: int) -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + u32(_IFLA_MTU, mtu)


def set_tap(index: int, wanted: Tap) -> bytes:
    """Its MTU and limits, and that it is ours. What kind of TAP it is, is settled when it is made."""
    head = _INFO.pack(AF_UNSPEC, 0, index, 0, 0)
    limits = u32(_IFLA_TXQLEN, wanted.queue_packets) + u32(_IFLA_GSO_MAX_SIZE, wanted.gso_max_bytes)
    return head + u32(_IFLA_MTU, wanted.mtu) + limits + text(_IFLA_IFALIAS, ALIAS)


def set_up(index: int, up: bool) -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, index, _IFF_UP if up else 0, _IFF_UP)


def set_name(index: int, name: str) -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + text(_IFLA_IFNAME, name)


def set_mac(index: int, mac: bytes) -> bytes:
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + attribute(_IFLA_ADDRESS, mac)


def mark(index: int) -> bytes:
    """Write on it that it is ours, so that it is known under any name."""
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + text(_IFLA_IFALIAS, ALIAS)


def join(index: int, bridge: int) -> bytes:
    """Make it a port of the bridge, and write on it that it is ours."""
    head = _INFO.pack(AF_UNSPEC, 0, index, 0, 0)
    return head + u32(_IFLA_MASTER, bridge) + text(_IFLA_IFALIAS, ALIAS)


def set_port_flags(index: int, wanted: PortFlags) -> bytes:
    data = nested(
        _INFO_SLAVE_DATA,
        u8(_PORT_HAIRPIN, wanted.hairpin),
        u8(_PORT_LEARNING, wanted.learning),
        u8(_PORT_UNICAST_FLOOD, wanted.flood),
        u8(_PORT_MCAST_FLOOD, wanted.mcast_flood),
        u8(_PORT_BCAST_FLOOD, wanted.bcast_flood),
        u8(_PORT_NEIGH_SUPPRESS, wanted.neigh_suppress),
        u8(_PORT_ISOLATED, wanted.isolated),
        u8(_PORT_LOCKED, wanted.locked),
    )
    info = nested(_IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), data)
    return _INFO.pack(AF_UNSPEC, 0, index, 0, 0) + info


def no_generated_addresses(ifindex: int) -> bytes:
    """No link-local address: what a port itself says would go to every peer. Refused where the device has no IPv6."""
    mode = nested(_AF_INET6, u8(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
    return _INFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + nested(_IFLA_AF_SPEC, mode)


def _inner(value: bytes | None) -> dict[int, bytes]:
    return {} if value is None else attributes(value, 0, len(value))


def _number(value: bytes | None, default: int = 0) -> int:
    return default if value is None else int.from_bytes(value, "little")


def _conf(conf: bytes, index: int) -> int | None:
    """One IPv6 setting of a device; None where the kernel has no IPv6 there."""
    if len(conf) < 4 * (index + 1):
        return None
    return int(struct.unpack_from("=i", conf, 4 * index)[0])
