"""What carries the overlay: this host's own addresses, the networks they lie in, and their interfaces' MTUs.

Left out is what leads nowhere or back to us: loopback, our own devices, and the bridges that container engines make (an
overlay over docker0 would go round in circles). Link-local addresses of IPv6 stand apart: they mean nothing elsewhere.
Knows nothing of which address other hosts have really seen. The one idea: a wrong address told to others costs each of
them a failed dial, a missing one only that somebody must observe it; so what is doubtful is left out.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address, ip_interface
from typing import Final

from dataplane.desired import Address
from dataplane.kernel import KernelError
from dataplane.linux import datagram, links
from dataplane.linux.guests import RTM_GETADDR, RTM_NEWADDR
from dataplane.linux.links import Link
from dataplane.linux.netlink import NETLINK_ROUTE, EventSocket, NetlinkSocket, attributes

_FOREIGN_PREFIXES: Final = ("docker", "br-", "cni", "podman", "virbr", "lxcbr", "flannel", "cali", "cilium", "weave")
_OWN_PREFIXES: Final = ("vw",)
_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_AF_INET6: Final = 10
_ADDRESS_GROUPS: Final = (5, 9)
"""RTNLGRP_IPV4_IFADDR and _IPV6_IFADDR of linux/rtnetlink.h."""
_EVENTS_AT_ONCE: Final = 256
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
    link_local: tuple[UnderlayAddress, ...] = ()
    """Those of IPv6, each with the number of its interface as its zone. They are told to nobody."""

    @property
    def has_ipv6(self) -> bool:
        return bool(self.link_local) or any(found.address.version == 6 for found in self.addresses)

    @property
    def zones(self) -> frozenset[str]:
        """The numbers of the interfaces that have a link-local address."""
        zones = (each.address.scope_id for each in self.link_local if isinstance(each.address, IPv6Address))
        return frozenset(zone for zone in zones if zone is not None)

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(found.network for found in self.addresses)


class AddressWatch:
    """Hears when addresses of this host come and go: a file descriptor for a loop, in the namespace of the thread that
    makes it."""

    def __init__(self) -> None:
        """Raises KernelError."""
        try:
            self._events = EventSocket(NETLINK_ROUTE, _ADDRESS_GROUPS)
        except OSError as error:
            text = f"cannot listen for changes of this host's addresses: {error.strerror}"
            raise KernelError(error.errno or errno.EIO, None, text) from None

    def fileno(self) -> int:
        return self._events.fileno()

    def taken(self) -> None:
        """Read what waits; that there was something is all that is told. What got lost was something too."""
        for _ in range(_EVENTS_AT_ONCE):
            with suppress(OSError):
                if self._events.receive() is None:
                    return

    def close(self) -> None:
        self._events.close()


def is_own(address: str) -> bool:
    """Whether this host has that address, be it fit to be told to others or not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


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
    told = tuple(each for each in found if not each.address.is_link_local)
    link_local = tuple(each for each in found if each.address.version == 6 and each.address.is_link_local)
    bridge_mtu = next((link.mtu for link in devices.values() if link.name == bridge), None)
    return Survey(told, bridge_mtu, link_local)


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
    if packed is None:
        return None
    interface: IPv4Interface | IPv6Interface = ip_interface((packed, length))
    address = interface.ip
    if address.version == 6 and address.is_link_local:
        address = ip_address(f"{address}%{ifindex}")  # a tentative one says enough: that there is IPv6
    elif address.is_loopback or (family == _AF_INET6 and flags & _UNFIT):
        return None
    return UnderlayAddress(address, interface.network, link.name, link.mtu)


def _is_foreign(ifname: str, bridge: str) -> bool:
    own = ifname == bridge or ifname.startswith((f"{bridge}-", *_OWN_PREFIXES))
    return own or ifname == "lo" or ifname.startswith(_FOREIGN_PREFIXES)
