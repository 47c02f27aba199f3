"""What carries the overlay: this host's own addresses, the networks they lie in, and their interfaces' MTUs.

Left out is what leads nowhere or back to us: loopback, link-local addresses, our own devices, and the bridges that
container engines make (an overlay over docker0 would go round in circles).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface

from pyroute2 import IPRoute

from dataplane.desired import Address

_FOREIGN_PREFIXES = ("docker", "br-", "cni", "podman", "virbr", "lxcbr", "flannel", "cali", "weave")
_OWN_PREFIXES = ("vw",)
_DEPRECATED_OR_TENTATIVE = 0x20 | 0x40 | 0x08
"""IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_DADFAILED of linux/if_addr.h: addresses not to be told to anybody."""
_TEMPORARY = 0x01
"""IFA_F_TEMPORARY: IPv6 privacy addresses, which change."""


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
    """Look now, in the network namespace of the calling thread, which must not be running an event loop."""
    with IPRoute() as route:
        links = {link["index"]: link for link in route.get_links()}
        found: list[UnderlayAddress] = []
        for message in route.get_addr():
            link = links.get(message["index"])
            interface = _interface(message)
            if link is None or interface is None:
                continue
            ifname = str(link.get_attr("IFLA_IFNAME"))
            if not _is_foreign(ifname, bridge):
                found.append(UnderlayAddress(interface.ip, interface.network, ifname, int(link.get_attr("IFLA_MTU"))))
        bridges = [link for link in links.values() if link.get_attr("IFLA_IFNAME") == bridge]
    found.sort(key=lambda each: each.address.version)
    return Survey(tuple(found), int(bridges[0].get_attr("IFLA_MTU")) if bridges else None)


def _interface(message: dict[str, int]) -> IPv4Interface | IPv6Interface | None:
    flags = message.get_attr("IFA_FLAGS") or message["flags"]  # type: ignore[attr-defined]
    if flags & (_DEPRECATED_OR_TENTATIVE | _TEMPORARY):
        return None
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")  # type: ignore[attr-defined]
    interface = ip_interface(f"{text}/{message['prefixlen']}")
    return None if interface.ip.is_loopback or interface.ip.is_link_local else interface


def _is_foreign(ifname: str, bridge: str) -> bool:
    own = ifname == bridge or ifname.startswith((f"{bridge}-", *_OWN_PREFIXES))
    return own or ifname == "lo" or ifname.startswith(_FOREIGN_PREFIXES)
