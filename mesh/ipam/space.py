"""The range that addresses come from, as numbered slots.

A slot stands for one IPv4 and one IPv6 address at once, the n-th of each range, so that who owns slots need not know of
versions of IP, and a container gets two addresses that end alike. Where there is only one range, a slot is one address.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface

from mesh.endpoints import Address, Interface

Network = IPv4Network | IPv6Network

AUTOMATIC6 = IPv6Network("fd00::/8")
"""Stands for the /64 that is made from the ring's id (`unique_local`)."""
SLOTS_MAX = 1 << 24
"""Of an IPv4 range of /8; an IPv6 range alone has no use for more."""


@dataclass(frozen=True, slots=True)
class Space:
    """One or two ranges. Without any there is nothing to give."""

    range4: IPv4Network | None
    range6: IPv6Network | None

    @property
    def ranges(self) -> tuple[Network, ...]:
        return tuple(each for each in (self.range4, self.range6) if each is not None)

    @property
    def size(self) -> int:
        """Slots."""
        return min((each.num_addresses for each in self.ranges), default=0) if self.range4 else self._size6

    @property
    def _size6(self) -> int:
        return min(self.range6.num_addresses, SLOTS_MAX) if self.range6 else 0

    def slot(self, address: Address) -> int | None:
        """The slot of an address; None where it is in neither range, or beyond the last slot."""
        for network in self.ranges:
            if address.version == network.version and address in network:
                slot = int(address) - int(network.network_address)
                return slot if slot < self.size else None
        return None

    def address(self, slot: int, version: int) -> Address | None:
        """The address of a slot, where there is a range of that version of IP."""
        if version == 4 and self.range4 is not None:
            return IPv4Address(int(self.range4.network_address) + slot)
        if version == 6 and self.range6 is not None:
            return IPv6Address(int(self.range6.network_address) + slot)
        return None

    def interval(self, subnet: Network) -> tuple[int, int] | None:
        """First slot of a subnet and the one after its last; None where the subnet is not inside its range. What lies
        beyond the last slot does not count."""
        for network in self.ranges:
            if subnet.version == network.version and subnet.subnet_of(network):  # type: ignore[arg-type]
                start = int(subnet.network_address) - int(network.network_address)
                if start < self.size:
                    return start, min(start + subnet.num_addresses, self.size)
        return None

    def whole(self) -> tuple[int, int]:
        return 0, self.size

    def length(self, interval: tuple[int, int], version: int) -> int:
        """Of the prefix that a container in this interval is given."""
        network = self.range4 if version == 4 else self.range6
        assert network is not None
        if interval == self.whole():
            return network.prefixlen
        return network.max_prefixlen - (interval[1] - interval[0] - 1).bit_length()

    def interface(self, slot: int, interval: tuple[int, int], version: int) -> Interface:
        return ip_interface((self.address(slot, version) or 0, self.length(interval, version)))

    def versions(self) -> tuple[int, ...]:
        return tuple(each.version for each in self.ranges)

    def text(self, slot: int) -> str:
        """The addresses of a slot, for people."""
        return " ".join(str(self.address(slot, version)) for version in self.versions())


def unique_local(ring: bytes) -> IPv6Network:
    """A /64 that two clusters do not share, made from the ring's id (RFC 4193, section 3.2: 40 random bits)."""
    return IPv6Network((b"\xfd" + hashlib.sha256(b"weft ula\x00" + ring).digest()[:5] + bytes(10), 64))
