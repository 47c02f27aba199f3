"""What on this host is in the way of addresses of the overlay: an address of another device, or a route.

Looks at one moment; knows nothing of who exposes, or of who gives addresses. The one idea: an exposed address brings a
route to its network, and that must neither take traffic from a route the host has nor lose its own to one. What a
default route would carry is no one's in particular, so those do not count.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from dataplane.desired import Interface
from dataplane.kernel import KernelError
from dataplane.linux import links
from dataplane.linux.guests import RTM_GETADDR, RTM_NEWADDR
from dataplane.linux.netlink import NetlinkSocket, attributes
from dataplane.linux.routes import routes
from dataplane.objects import FAMILIES

DEFAULT_LENGTH_MAX: Final = 3
"""Of a prefix that counts as a default route: /1 is half of one, as VPNs set it, 2000::/3 the whole global internet."""

_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


def collision(bridge: str, interface: Interface) -> str | None:
    """The address or route of this host that is in the way, as people write it; None where nothing is.

    In the network namespace of the calling thread. Raises KernelError."""
    try:
        commands = NetlinkSocket()
        try:
            names = _names(commands)
            return _address(commands, names, bridge, interface) or _route(commands, names, bridge, interface)
        finally:
            commands.close()
    except OSError as error:
        text = f"cannot list the routes of this host: {error.strerror}"
        raise KernelError(error.errno or errno.EIO, None, text) from None


def host_routes(bridge: str) -> list[tuple[IPv4Network | IPv6Network, str]]:
    """Every network that this host has a route to, but for default routes and those of the bridge, with the route as
    people write it; and every address of other devices.

    In the network namespace of the calling thread. Raises KernelError."""
    try:
        commands = NetlinkSocket()
        try:
            names = _names(commands)
            found = [route for family in FAMILIES.values() for route in _routes(commands, names, bridge, family)]
            addresses = ((address, name) for address, name in _addresses(commands, names) if name != bridge)
            return found + [(ip_network(address), f"the address {address} of {name}") for address, name in addresses]
        finally:
            commands.close()
    except OSError as error:
        text = f"cannot list the routes of this host: {error.strerror}"
        raise KernelError(error.errno or errno.EIO, None, text) from None


def _address(commands: NetlinkSocket, names: Mapping[int, str], bridge: str, interface: Interface) -> str | None:
    for address, name in _addresses(commands, names):
        if address == interface.ip and name != bridge:
            return f"the address {interface.ip} of {name}"
    return None


def _addresses(commands: NetlinkSocket, names: Mapping[int, str]) -> Iterator[tuple[IPv4Address | IPv6Address, str]]:
    """Each address of this host, and the device that has it."""
    for data, kind, start, end in commands.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        if kind == RTM_NEWADDR:
            found = attributes(data, start + _ADDRESS.size, end)
            if packed := found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS):
                yield ip_address(packed), names.get(_ADDRESS.unpack_from(data, start)[4], "")


def _route(commands: NetlinkSocket, names: Mapping[int, str], bridge: str, interface: Interface) -> str | None:
    for network, text in _routes(commands, names, bridge, FAMILIES[interface.version]):
        if network.overlaps(interface.network):
            return text
    return None


def _routes(
    commands: NetlinkSocket, names: Mapping[int, str], bridge: str, family: bytes
) -> Iterator[tuple[IPv4Network | IPv6Network, str]]:
    """Those that count, and how people write them."""
    for route in routes(commands, family):
        name = names.get(route.ifindex, "")
        if route.network.prefixlen > DEFAULT_LENGTH_MAX and name != bridge:
            via = f" via {ip_address(route.gateway)}" if route.gateway else ""
            yield route.network, f"the route {route.network}{via}" + (f" dev {name}" if name else "")


def _names(commands: NetlinkSocket) -> dict[int, str]:
    dump = commands.dump(links.RTM_GETLINK, links.every())
    found = (links.decode(data, start, end) for data, kind, start, end in dump if kind == links.RTM_NEWLINK)
    return {link.ifindex: link.name for link in found}
