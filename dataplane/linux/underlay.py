"""What carries the overlay: this host's own addresses, the networks they lie in, and their interfaces' MTUs.

Left out is what leads nowhere or back to us: loopback, link-local addresses, our own devices, and the bridges that
container engines make (an overlay over docker0 would go round in circles). Knows nothing of which address other hosts
have really seen. The one idea: a wrong address told to others costs each of them a failed dial, a missing one only
that somebody must observe it; so what is doubtful is left out.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface
from typing import Final

from dataplane.desired import Address
from dataplane.kernel import KernelError
from dataplane.linux import datagram, links
from dataplane.linux.guests import RTM_GETADDR, RTM_NEWADDR
from dataplane.linux.links import Link
from dataplane.linux.netlink import NetlinkSocket, attributes

_FOREIGN_PREFIXES: Final = ("docker", "br-", "cni", "podman", "virbr", "lxcbr", "flannel", "cali", "cilium", "weave")
_OWN_PREFIXES: Final = ("vw",)
_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_AF_INET6: Final = 10
_ANY_PORT: Final = 9
"""A route does not depend on it."""
_UNFIT: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY (IPv6 privacy addresses change), _DADFAILED, _DEPRECATED and _TENTATIVE of linux/if_addr.h.

IPv6 only: on IPv4 the first of these bits marks a secondary address, which is as good as any.
"""


@dataclass(frozen=True, slots=True)
class UnderlayAddress:
    address: Address
    network: IPv4Network | IPv6Network
    ifname: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The underlay at one moment."""

    addresses: tuple[UnderlayAddress, ...]
    """IPv4 first, then in the kernel's order: the one that others should try first stands first."""
    bridge_mtu: int | None
    """MTU of our bridge where an earlier life of the daemon has left one."""

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(found.network for found in self.addresses)


def survey(bridge: str) -> Survey:
    """Look now, in the network namespace of the calling thread. Takes a few milliseconds; raises KernelError."""
    try:
        commands = NetlinkSocket()
        try:
            devices: dict[int, Link] = {}
            for data, kind, start, end in commands.dump(links.RTM_GETLINK, links.every()):
                if kind == links.RTM_NEWLINK:
                    link = links.decode(data, start, end)
                    devices[link.ifindex] = link
            found = []
            for data, kind, start, end in commands.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
                if kind == RTM_NEWADDR and (entry := _usable(data, start, end, devices, bridge)) is not None:
                    found.append(entry)
        finally:
            commands.close()
    except OSError as error:
        text = f"cannot list the addresses of this host: {error.strerror}"
        raise KernelError(error.errno or errno.EIO, None, text) from None
    found.sort(key=lambda each: each.address.version)
    return Survey(tuple(found), next((link.mtu for link in devices.values() if link.name == bridge), None))


def interface_towards(destination: Address, found: Survey) -> str | None:
    """The interface that packets to there leave by, as far as the address they are sent from tells."""
    to: datagram.SocketAddress = (str(destination), _ANY_PORT)
    own = datagram.own_address(to if destination.version == 4 else (*to, 0, 0), 0)
    return next((each.ifname for each in found.addresses if datagram.pack_address((str(each.address), 0)) == own), None)


def _usable(data: bytes, start: int, end: int, devices: Mapping[int, Link], bridge: str) -> UnderlayAddress | None:
    family, length, _, _, ifindex = _ADDRESS.unpack_from(data, start)
    link = devices.get(ifindex)
    if link is None or _is_foreign(link.name, bridge):
        return None
    found = attributes(data, start + _ADDRESS.size, end)
    flags = int.from_bytes(found.get(_IFA_FLAGS, b""), "little")
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or (family == _AF_INET6 and flags & _UNFIT):
        return None
    interface: IPv4Interface | IPv6Interface = ip_interface((packed, length))
    if interface.ip.is_loopback or interface.ip.is_link_local:
        return None
    return UnderlayAddress(interface.ip, interface.network, link.name, link.mtu)


def _is_foreign(ifname: str, bridge: str) -> bool:
    own = ifname == bridge or ifname.startswith((f"{bridge}-", *_OWN_PREFIXES))
    return own or ifname == "lo" or ifname.startswith(_FOREIGN_PREFIXES)
