"""What on this host is in the way of an address that is to be exposed: an address of another device, or a route.

Looks at one moment; knows nothing of who exposes. The one idea: an exposed address brings a route to its network, and
that must neither take traffic from a route the host has nor lose its own to one. What a default route would carry is no
one's in particular, so those do not count.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from ipaddress import ip_address
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


def _address(commands: NetlinkSocket, names: Mapping[int, str], bridge: str, interface: Interface) -> str | None:
    for data, kind, start, end in commands.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        if kind == RTM_NEWADDR:
            name = names.get(_ADDRESS.unpack_from(data, start)[4], "")
            found = attributes(data, start + _ADDRESS.size, end)
            if (found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)) == interface.ip.packed and name != bridge:
                return f"the address {interface.ip} of {name}"
    return None


def _route(commands: NetlinkSocket, names: Mapping[int, str], bridge: str, interface: Interface) -> str | None:
    for route in routes(commands, FAMILIES[interface.version]):
        name = names.get(route.ifindex, "")
        if route.network.prefixlen <= DEFAULT_LENGTH_MAX or name == bridge:
            continue
        if route.network.overlaps(interface.network):
            via = f" via {ip_address(route.gateway)}" if route.gateway else ""
            return f"the route {route.network}{via}" + (f" dev {name}" if name else "")
    return None


def _names(commands: NetlinkSocket) -> dict[int, str]:
    dump = commands.dump(links.RTM_GETLINK, links.every())
    found = (links.decode(data, start, end) for data, kind, start, end in dump if kind == links.RTM_NEWLINK)
    return {link.ifindex: link.name for link in found}
