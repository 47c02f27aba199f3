"""Forwarding and neighbour entries as netlink messages: the bulk of what we program.

Turns entries into messages and messages into keyed values; knows nothing of sockets or of who wants what. The one
idea: a message of our own making has one layout, so encoding is concatenation, and decoding looks at the fixed places
first. Layout: linux/neighbour.h.

    0        1        4         8       10      11     12
    +--------+--------+---------+-------+-------+------+----------- - -
    | family |        | ifindex | state | flags | type | attributes: destination, MAC, ...
    +--------+--------+---------+-------+-------+------+----------- - -

The same message means three things. Family bridge with a master: an entry of the bridge's FDB, ifindex being the port.
Family bridge without: an entry of the VXLAN device's own FDB. An address family: a neighbour.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from dataplane.linux.netlink import APPEND, CREATE, REPLACE, attribute, attributes, u32
from dataplane.objects import BRIDGE_FDB, FLOOD, NEIGHBOUR, NOWHERE, VXLAN_FDB, ZERO_MAC, Key, Odd, Value

RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30

_ENTRY: Final = struct.Struct("=BxxxiHBB")
_AF_BRIDGE: Final = 7
_AF_INET: Final = 2
_AF_INET6: Final = 10

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_VLAN: Final = 5
_NDA_IFINDEX: Final = 8
_NDA_MASTER: Final = 9
# A VXLAN entry with a port, VNI, source VNI or nexthop of its own is not one of ours.
_NDA_DETOURS: Final = (6, 7, 11, 13)
_IPV6_BYTES: Final = 16

_NUD_REACHABLE: Final = 0x02
_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
_STATIC: Final = _NUD_NOARP | _NUD_REACHABLE
"""What `bridge fdb` calls static; VXLAN takes nothing without one of REACHABLE and PERMANENT."""
_NTF_SELF: Final = 0x02
_NTF_MASTER: Final = 0x04
_NTF_PROXY: Final = 0x08
_NTF_EXT_LEARNED: Final = 0x10
_NTF_STICKY: Final = 0x40

Change = tuple[int, int, bytes]
"""Message type, flags and payload."""


def put(key: Key, value: Value, index: int) -> Change:
    """Add or replace an entry. `index`: the VXLAN device, the bridge port, or the bridge of a neighbour."""
    kind, _, item = key
    if kind == NEIGHBOUR:
        assert isinstance(value, bytes)
        head = _ENTRY.pack(_AF_INET if len(item) == 4 else _AF_INET6, index, _NUD_PERMANENT, 0, 0)
        return RTM_NEWNEIGH, CREATE | REPLACE, head + attribute(_NDA_DST, item) + attribute(_NDA_LLADDR, value)
    if kind == VXLAN_FDB:
        assert isinstance(value, bytes)
        head = _ENTRY.pack(_AF_BRIDGE, index, _STATIC, _NTF_SELF, 0)
        return RTM_NEWNEIGH, CREATE | REPLACE, head + attribute(_NDA_LLADDR, item) + _towards(value)
    if kind == FLOOD:
        head = _ENTRY.pack(_AF_BRIDGE, index, _STATIC, _NTF_SELF, 0)
        return RTM_NEWNEIGH, CREATE | APPEND, head + attribute(_NDA_LLADDR, ZERO_MAC) + _towards(item)
    assert kind == BRIDGE_FDB
    head = _ENTRY.pack(_AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER | _NTF_STICKY, 0)
    return RTM_NEWNEIGH, CREATE | REPLACE, head + attribute(_NDA_LLADDR, item)


def remove(key: Key, index: int) -> Change:
    kind, _, item = key
    if kind == NEIGHBOUR:
        head = _ENTRY.pack(_AF_INET if len(item) == 4 else _AF_INET6, index, 0, 0, 0)
        return RTM_DELNEIGH, 0, head + attribute(_NDA_DST, item)
    if kind == VXLAN_FDB:
        head = _ENTRY.pack(_AF_BRIDGE, index, _STATIC, _NTF_SELF, 0)
        return RTM_DELNEIGH, 0, head + attribute(_NDA_LLADDR, item)
    if kind == FLOOD:
        head = _ENTRY.pack(_AF_BRIDGE, index, _STATIC, _NTF_SELF, 0)
        return RTM_DELNEIGH, 0, head + attribute(_NDA_LLADDR, ZERO_MAC) + _towards(item)
    assert kind == BRIDGE_FDB
    head = _ENTRY.pack(_AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    return RTM_DELNEIGH, 0, head + attribute(_NDA_LLADDR, item)


def _towards(destination: bytes) -> bytes:
    """A VXLAN destination: the address, and behind which interface of this host a link-local one is."""
    interface = destination[_IPV6_BYTES:]
    address = attribute(_NDA_DST, destination[:_IPV6_BYTES])
    return address + attribute(_NDA_IFINDEX, interface) if interface else address


def ports_question(bridge: int) -> bytes:
    """Dump of the FDB of a bridge and of the own FDB of each of its ports."""
    return _ENTRY.pack(_AF_BRIDGE, 0, 0, 0, 0) + u32(_NDA_MASTER, bridge)


def device_question(device: int) -> bytes:
    """Dump of the own FDB of one device that is in no bridge."""
    return _ENTRY.pack(_AF_BRIDGE, device, 0, 0, 0)


def neighbours_question(device: int, *, ipv6: bool) -> bytes:
    return _ENTRY.pack(_AF_INET6 if ipv6 else _AF_INET, 0, 0, 0, 0) + u32(_NDA_IFINDEX, device)


def decode(
    data: bytes, start: int, end: int, names: Mapping[int, str], bridge: str, vxlans: tuple[str, ...]
) -> tuple[Key, Value | None] | None:
    """The key and what a RTM_NEWNEIGH says is there; None if the message is about nothing of ours.

    `names` are our devices by ifindex, `vxlans` those with a table of destinations. A value of None: there is an entry,
    but none that counts as there.
    """
    family, index, state, flags, _ = _ENTRY.unpack_from(data, start)
    name = names.get(index)
    if family != _AF_BRIDGE:
        if name != bridge or flags & _NTF_PROXY:
            return None
        found = attributes(data, start + 12, end)
        key = Key(NEIGHBOUR, bridge, found.get(_NDA_DST, b""))
        return key, found.get(_NDA_LLADDR) if state & _NUD_PERMANENT else None
    found = attributes(data, start + 12, end)
    mac = found.get(_NDA_LLADDR, b"")
    if (master := found.get(_NDA_MASTER)) is not None:
        if names.get(int.from_bytes(master, "little")) != bridge or _NDA_VLAN in found or state & _NUD_PERMANENT:
            return None  # permanent here means: an address of the host itself
        ours = name is not None and state & _NUD_NOARP and flags & (_NTF_STICKY | _NTF_EXT_LEARNED) == _NTF_STICKY
        value: Value = name if ours and name is not None else Odd(name or f"#{index}", bool(flags & _NTF_EXT_LEARNED))
        return Key(BRIDGE_FDB, bridge, mac), value
    if name not in vxlans:
        return None
    address, interface = found.get(_NDA_DST, NOWHERE), found.get(_NDA_IFINDEX, b"")
    destination = address + interface
    plain = state & (_NUD_NOARP | _NUD_PERMANENT) and not any(kind in found for kind in _NDA_DETOURS)
    plain = plain and not (interface and len(address) < _IPV6_BYTES)
    if mac == ZERO_MAC:
        return (Key(FLOOD, name, destination), True) if plain else None
    return Key(VXLAN_FDB, name, mac), destination if plain else Odd(name)
