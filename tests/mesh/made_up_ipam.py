"""An allocator in a dictionary, for tests of what stands around it: no ring, no votes, no disk.

It gives the lowest free address of a subnet, finds again what an owner was given for the same want, and can be told to
wait or to refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from typing import Any

from gossip.names import PeerName, format_name
from mesh.endpoints import Address, EndpointTable, Interface
from mesh.ipam.wants import Claim, Want
from mesh.requests import ApiError

RANGES: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("10.32.0.0/12"), IPv6Network("fd00:32::/64"))


class MadeUpIpam:
    """Has the shape of `mesh.ipam.allocator.Allocator`."""

    def __init__(self) -> None:
        self.ranges = RANGES
        self.given: dict[tuple[str, Want], tuple[Interface, ...]] = {}
        """By owner and want, addresses inside the ranges only."""
        self.refusal: ApiError | None = None
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        """Runs after addresses were given, before whoever asked gets to know."""
        self.kept: list[set[str]] = []
        self.said: dict[str, Any] = {}
        self.warned: list[dict[str, str]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.primes: list[str] = []
        self.primed = asyncio.Event()

    def addresses(self, owner: str) -> list[str]:
        return sorted(str(each) for (who, _), given in self.given.items() if who == owner for each in given)

    def summary(self) -> dict[str, Any]:
        return {"state": self.said.get("state", "ready"), "given": len(self.given), "disk": ""}

    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return self.ranges

    def interface_of(self, address: Address) -> Interface:
        network = next(each for each in self.ranges if address in each)
        return ip_interface(f"{address}/{network.prefixlen}")

    async def obtain(self, owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        self.asked.append((owner, wants))
        if self.refusal is not None:
            raise self.refusal
        before = dict(self.given)
        try:
            found = [each for want in wants for each in self._give(owner, want)]
        except ApiError:
            self.given = before
            raise
        if (act := self.before_answer) is not None:
            self.before_answer = None
            await act()
        await asyncio.sleep(0)
        return tuple(found)

    def _give(self, owner: str, want: Want) -> tuple[Interface, ...]:
        if (owner, want) in self.given:
            return self.given[owner, want]
        if isinstance(want, Claim):
            if any(want.interface.ip in network for network in self.ranges):
                for (who, _), given in self.given.items():
                    if who != owner and any(each.ip == want.interface.ip for each in given):
                        raise ApiError("address-taken", f"{want.interface.ip} is given to {who}; take another")
                self.given[owner, want] = (want.interface,)
            return (want.interface,)
        networks = [want.network] if want.network is not None else list(self.ranges)
        if not self.ranges:
            raise ApiError("ipam-off", "this host allocates no addresses (--ipalloc-range none): give one")
        given = tuple(self._free(network) for network in networks)
        self.given[owner, want] = given
        return given

    def _free(self, network: IPv4Network | IPv6Network) -> Interface:
        taken = {each.ip for given in self.given.values() for each in given}
        return next(ip_interface(f"{ip}/{network.prefixlen}") for ip in network.hosts() if ip not in taken)

    async def release(self, owner: str, addresses: Collection[Address]) -> None:
        self.asked.append(("release", owner, set(addresses)))
        for key, given in list(self.given.items()):
            rest = tuple(each for each in given if each.ip not in addresses)
            if key[0] == owner and rest != given:
                del self.given[key]
                if rest:
                    self.given[key] = rest

    async def release_all(self, owner: str) -> None:
        self.given = {key: given for key, given in self.given.items() if key[0] != owner}

    async def keep_only(self, owners: Collection[str]) -> None:
        self.kept.append(set(owners))
        self.given = {key: given for key, given in self.given.items() if key[0] in owners}

    async def prime(self, timeout_s: float | None, tell: Callable[[str], Awaitable[None]]) -> None:
        for text in self.primes:
            await tell(text)
            await asyncio.sleep(0.01)
        if timeout_s is not None:
            raise ApiError("ipam-waiting", f"not ready after {timeout_s:g} s: waiting for {self.primes[-1]}")
        await self.primed.wait()

    async def remove_peers(self, names: Sequence[PeerName]) -> dict[str, Any]:
        self.asked.append(("remove", *names))
        return {"removed": [format_name(name) for name in names], "addresses": 4096}

    async def join(self, ring: str | None, force: bool, table: EndpointTable) -> dict[str, Any]:
        self.asked.append(("join", ring, force))
        return {"joined": ring or "ab" * 16, "conflicts": []}

    def export(self) -> dict[str, Any]:
        entries = [{"owner": owner, "addresses": [str(each) for each in given]} for (owner, _), given in
                   self.given.items()]  # fmt: skip
        return {"format": 1, "entries": entries}

    async def import_(self, document: dict[str, Any], force: bool) -> dict[str, Any]:
        self.asked.append(("import", document, force))
        return {"taken": len(document["entries"]), "refused": []}

    async def check(self, attached: Mapping[Interface, str], repair: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        owners = {interface.ip: owner for interface, owner in attached.items()}
        given = {each.ip: owner for (owner, _), addresses in self.given.items() for each in addresses}
        for (owner, _), addresses in list(self.given.items()):
            for each in addresses:
                if owners.get(each.ip) != owner:
                    found.append({"address": str(each), "owner": owner, "problem": "given to what is not attached"})
        for interface, owner in attached.items():
            inside = any(interface.ip in network for network in self.ranges)
            if inside and given.get(interface.ip) != owner:
                found.append({"address": str(interface), "owner": owner, "problem": "attached and not given"})
        return [row | {"repaired": repair} for row in found]

    def status(self) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "range": str(ip_network("10.32.0.0/12")), "range6": None, "default_subnet": None, "state": "ready",
            "advice": None, "ring": None, "decision": 0, "voters": [], "lease_s": 3600, "confirmed_for_s": None,
            "peers": [], "entries": [], "pending": [], "other_rings": [],
        }  # fmt: skip
        return empty | self.said

    def warnings(self) -> list[dict[str, str]]:
        return self.warned
