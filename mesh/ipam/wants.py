"""What may be asked for: an address of a subnet, or one address in particular."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network


@dataclass(frozen=True, slots=True)
class FromSubnet:
    """Any free address of a subnet."""

    network: IPv4Network | IPv6Network | None
    """None: the default subnet, in every family there is."""
    first: IPv4Address | IPv6Address | None = None
    last: IPv4Address | IPv6Address | None = None
    """Where only some of it will do: from which one on, and up to which."""
    others: tuple[FromSubnet, ...] = ()
    """As good, where this one has none left, in this order."""

    @property
    def choices(self) -> tuple[FromSubnet, ...]:
        return (self, *self.others)

    def __str__(self) -> str:
        network = str(self.network) if self.network is not None else "default"
        limits = f":{self.first or ''}-{self.last or ''}" if self.first or self.last else ""
        return "|".join([f"net:{network}{limits}", *map(str, self.others)])


@dataclass(frozen=True, slots=True)
class Claim:
    """This very address."""

    interface: IPv4Interface | IPv6Interface

    def __str__(self) -> str:
        return f"ip:{self.interface}"


Want = FromSubnet | Claim
