"""Routes as netlink messages: the main table, and the routes that a container gets from us.

Knows nothing of who is exposed or attached, or of namespaces: whoever calls is in the right one. The one idea: a
default route of ours bears our protocol number and the metric of a last resort, so it is told from everybody else's,
and loses to them even in the moment before we know of them. Layout: linux/rtnetlink.h.

    0        1        2        3     4       5          6       7      8       12
    +--------+--------+--------+-----+-------+----------+-------+------+-------+----------- - -
    | family | length |        | tos | table | protocol | scope | type | flags | attributes
    +--------+--------+--------+-----+-------+----------+-------+------+-------+----------- - -
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, NamedTuple

from dataplane.linux.netlink import CREATE, REPLACE, NetlinkError, NetlinkSocket, attribute, attributes, u32
from dataplane.objects import DefaultRoute, network_item

RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26

OUR_PROTOCOL: Final = 0x57
"""Protocol number our routes carry (`ip route` shows it as `proto 87`)."""
LAST_RESORT_METRIC: Final = (1 << 31) - 1

_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_TABLE_MAIN: Final = 254
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255
_RTN_UNICAST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_FAMILY_NUMBERS: Final = {b"ip": 2, b"ip6": 10}


class Route(NamedTuple):
    """One route of the main table."""

    network: IPv4Network | IPv6Network
    gateway: bytes
    """Packed; empty where there is none."""
    ifindex: int
    protocol: int


def routes(commands: NetlinkSocket, family: bytes) -> Iterator[Route]:
    """The main table. A kernel without IPv6 has none of that."""
    number = _FAMILY_NUMBERS[family]
    try:
        for data, kind, start, end in commands.dump(RTM_GETROUTE, _ROUTE.pack(number, 0, 0, 0, 0, 0, 0, 0, 0)):
            got, length, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(data, start)
            if kind == RTM_NEWROUTE and got == number and table == _TABLE_MAIN:
                found = attributes(data, start + _ROUTE.size, end)
                packed = found.get(_RTA_DST) or bytes(4 if family == b"ip" else 16)
                ifindex = int.from_bytes(found.get(_RTA_OIF, b""), "little")
                yield Route(ip_network((packed, length)), found.get(_RTA_GATEWAY, b""), ifindex, protocol)
    except NetlinkError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


def default_route(commands: NetlinkSocket, family: bytes, ifindex: int) -> DefaultRoute | None:
    """What there is of default routes in this namespace: ours through that device, and whether there are others."""
    gateway: bytes | None = None
    others = False
    for route in routes(commands, family):
        if route.network.prefixlen == 0:
            if route.protocol == OUR_PROTOCOL and route.ifindex == ifindex:
                gateway = route.gateway
            else:
                others = True
    return DefaultRoute(gateway, others) if others or gateway is not None else None


def set_default_route(commands: NetlinkSocket, family: bytes, ifindex: int, gateway: bytes | None) -> None:
    """Make `gateway` ours, or take ours away. Where somebody else's is there, ours goes too."""
    found = default_route(commands, family, ifindex)
    if gateway is not None and not (found is not None and found.others):
        payload = _default(family, ifindex) + attribute(_RTA_GATEWAY, gateway)
        commands.change(RTM_NEWROUTE, CREATE | REPLACE, payload)
    elif found is not None and found.gateway is not None:
        commands.change(RTM_DELROUTE, 0, _default(family, ifindex))


def network_routes(commands: NetlinkSocket, ifindex: int) -> dict[bytes, bytes]:
    """The gateways (packed; empty where there is none) of our routes to networks through that device, by item (packed
    address and length). Default routes are not among them."""
    return {
        network_item(route.network): route.gateway
        for family in _FAMILY_NUMBERS
        for route in routes(commands, family)
        if route.protocol == OUR_PROTOCOL and route.ifindex == ifindex and route.network.prefixlen
    }


def set_network_route(commands: NetlinkSocket, ifindex: int, item: bytes, gateway: bytes | None) -> None:
    """Lead to a network through that device: straight where `gateway` is empty; None: do not."""
    packed, length = item[:-1], item[-1]
    family = _FAMILY_NUMBERS[b"ip" if len(packed) == 4 else b"ip6"]
    scope = _SCOPE_NOWHERE if gateway is None else _SCOPE_UNIVERSE if gateway else _SCOPE_LINK
    head = _ROUTE.pack(family, length, 0, 0, _TABLE_MAIN, OUR_PROTOCOL, scope, _RTN_UNICAST, 0)
    payload = head + attribute(_RTA_DST, packed) + u32(_RTA_OIF, ifindex)
    if gateway is None:
        commands.change(RTM_DELROUTE, 0, payload)
    else:
        via = attribute(_RTA_GATEWAY, gateway) if gateway else b""
        commands.change(RTM_NEWROUTE, CREATE | REPLACE, payload + via)


def _default(family: bytes, ifindex: int) -> bytes:
    head = _ROUTE.pack(_FAMILY_NUMBERS[family], 0, 0, 0, _TABLE_MAIN, OUR_PROTOCOL, 0, _RTN_UNICAST, 0)
    return head + u32(_RTA_OIF, ifindex) + u32(_RTA_PRIORITY, LAST_RESORT_METRIC)
