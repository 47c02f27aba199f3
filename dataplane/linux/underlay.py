"""The addresses at which other hosts may reach this one, with the interface and MTU of each.

Knows which interfaces are never the way to other hosts: loopback, our own, Docker's and other people's container
bridges. Knows nothing of which address other hosts have really seen (mesh decides that). The one idea: a wrong
address advertised costs every peer a failed dial, a missing one only an observation; so whatever is doubtful is out.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from dataplane.desired import Address
from dataplane.kernel import KernelError
from dataplane.linux import links
from dataplane.linux.guests import RTM_GETADDR, RTM_NEWADDR
from dataplane.linux.netlink import NetlinkSocket, attributes

NEVER_EXACTLY: Final = frozenset({"lo", "docker0", "docker_gwbridge", "virbr0", "lxcbr0", "cni0", "podman0"})
NEVER_PREFIXES: Final = ("br-", "cali", "flannel", "cilium", "lxc", "tunl", "vxlan.", "kube-")
_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_UNUSABLE_FLAGS: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY (privacy addresses of IPv6 change), _DADFAILED, _DEPRECATED, _TENTATIVE."""
_TEMPORARY: Final = 0x01
_AF_INET: Final = 2


@dataclass(frozen=True, slots=True)
class UnderlayAddress:
    address: Address
    interface: str
    mtu: int
    """Of the interface, in bytes."""


def underlay_addresses(bridge: str = "weft") -> tuple[UnderlayAddress, ...]:
    """IPv4 before IPv6, otherwise in the kernel's order (the first interface first). Raises KernelError."""
    try:
        commands = NetlinkSocket()
        try:
            found = {
                link.ifindex: link
                for data, kind, start, end in commands.dump(links.RTM_GETLINK, links.every())
                if kind == links.RTM_NEWLINK
                for link in (links.decode(data, start, end),)
            }
            addresses = [
                (bytes(data[start:end]))
                for data, kind, start, end in commands.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0))
                if kind == RTM_NEWADDR
            ]
        finally:
            commands.close()
    except OSError as error:
        text = f"cannot list the addresses of this host: {error.strerror}"
        raise KernelError(error.errno or errno.EIO, None, text) from None
    ours = {link.ifindex for link in found.values() if is_ours(link.name, bridge)}
    usable = []
    for message in addresses:
        link = found.get(_ADDRESS.unpack_from(message)[4])
        if link is None or not link.up or link.ifindex in ours or link.master in ours or is_never(link.name):
            continue
        address = _address_of(message)
        if address is not None and is_usable(address):
            usable.append(UnderlayAddress(address, link.name, link.mtu))
    return tuple(sorted(usable, key=lambda entry: entry.address.version))


def is_ours(name: str, bridge: str) -> bool:
    return name == bridge or name.startswith(f"{bridge}-")


def is_never(name: str) -> bool:
    return name in NEVER_EXACTLY or name.startswith(NEVER_PREFIXES)


def is_usable(address: Address) -> bool:
    return not (address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified)


def smallest_mtu(addresses: Iterable[UnderlayAddress]) -> int | None:
    return min((entry.mtu for entry in addresses), default=None)


def _address_of(message: bytes) -> Address | None:
    family = message[0]
    found = attributes(message, _ADDRESS.size, len(message))
    flags = int.from_bytes(found.get(_IFA_FLAGS, bytes(4)), "little")
    # On IPv4 the bit of TEMPORARY means a secondary address, which is as good as any.
    if flags & (_UNUSABLE_FLAGS & ~_TEMPORARY if family == _AF_INET else _UNUSABLE_FLAGS):
        return None
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    return None if packed is None else ip_address(packed)
