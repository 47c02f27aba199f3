"""What Docker has been promised, as values, and how it is kept on disk: it tells nothing of it a second time. Pure."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_interface, ip_network
from typing import Any

from dataplane.desired import Port
from gossip.names import PeerName
from mesh.arguments import NAMES_MAX, parse_name
from mesh.endpoints import TEXT_MAX_BYTES, Binding, Endpoint, Interface

INNER_PREFIX = "vg"
"""Of the inner end's name, until Docker takes it into the container and calls it otherwise."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Where addresses of a Docker network come from."""

    id: str
    subnet: str
    """Of our range; empty: the default subnet."""
    version: int
    part: str = ""
    """Of which part of it this host gives addresses; empty: of all. They have the length of the subnet all the same."""


@dataclass(frozen=True, slots=True)
class Lent:
    """An address that Docker asked for and has not given back."""

    address: str
    """With its length."""
    pool: str
    owner: str
    """What the allocator knows it by."""


@dataclass(frozen=True, slots=True)
class Network:
    id: str
    internal: bool
    mtu: int | None = None
    foreign: bool = False
    """Whether addresses come from another address plugin than ours."""
    seen: bool = False
    """Whether the Docker that we ask has listed it: one that it never had is another Docker's."""
    kept_free: tuple[str, ...] = ()
    """Addresses of it that the user wants given to nobody, without their lengths."""


@dataclass(frozen=True, slots=True)
class Member:
    """A container's interface on one of these networks: Docker calls it an endpoint."""

    id: str
    network: str
    mac: str
    addresses: tuple[str, ...]
    """With their lengths."""
    claims: tuple[int, ...]
    joined: bool = False
    """Whether there is an interface: from Join to Leave."""
    container: str | None = None
    name: str | None = None
    """What Docker calls the container."""
    aliases: tuple[str, ...] = ()
    """What else it is called on this network."""
    sandbox: str = ""
    """What Docker calls the container's network, in which there may be others of these."""
    rank: int = 0
    """The how manieth of them it is."""

    @property
    def ifname(self) -> str:
        return "vw" + self._digest

    @property
    def inner(self) -> str:
        return INNER_PREFIX + self._digest

    @property
    def _digest(self) -> str:
        return hashlib.sha256(f"docker {self.id}".encode()).hexdigest()[:11]

    @property
    def owner(self) -> str:
        """What the allocator knows addresses by that another address plugin chose."""
        return f"docker-endpoint:{self.id}"

    @property
    def called(self) -> str:
        """As much of it as others take."""
        return (self.name or self.id[:12])[:TEXT_MAX_BYTES]

    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(map(ip_interface, self.addresses))

    def bindings(self) -> tuple[Binding, ...]:
        pairs = zip(self.interfaces(), self.claims, strict=True)
        return tuple(Binding(interface.ip, interface.network.prefixlen, claim) for interface, claim in pairs)

    def port(self, mtu: int | None) -> Port:
        mac = bytes.fromhex(self.mac.replace(":", ""))
        return Port(self.ifname, self.inner, "", (0, 0), mac, self.interfaces(), mtu=mtu, handed_over=True)

    def endpoint(self, owner: PeerName) -> Endpoint:
        mac = bytes.fromhex(self.mac.replace(":", ""))
        own_names, others = host_names([self.name or ""]), host_names(self.aliases)
        return Endpoint(
            owner, self.called, mac, self.bindings(), others[:NAMES_MAX], called=own_names[0] if own_names else ""
        )


@dataclass(frozen=True, slots=True)
class State:
    """All of it, by id. Changed by making another one."""

    pools: dict[str, Pool] = field(default_factory=dict)
    lent: dict[str, Lent] = field(default_factory=dict)
    """By address without its length."""
    networks: dict[str, Network] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    def to_json(self, boot: str) -> dict[str, Any]:
        parts: dict[str, dict[str, Any]] = {
            "pools": self.pools, "lent": self.lent, "networks": self.networks, "members": self.members,
        }  # fmt: skip
        return {"boot": boot} | {key: [asdict(each) for each in part.values()] for key, part in parts.items()}

    def owners(self) -> dict[Interface, str]:
        """The allocator's owner of every address in use."""
        found: dict[Interface, str] = {ip_interface(each.address): each.owner for each in self.lent.values()}
        for each in self.members.values():
            network = self.networks.get(each.network)
            if network is not None and network.foreign:
                found |= dict.fromkeys(each.interfaces(), each.owner)
        return found

    def holders(self, address: str) -> list[Member]:
        """Who has this address, without its length."""
        return [each for each in self.members.values() if address in (one.partition("/")[0] for one in each.addresses)]

    def unused(self) -> set[str]:
        """Addresses that were lent and that nobody has."""
        used = {one.partition("/")[0] for each in self.members.values() for one in each.addresses}
        kept = {address for each in self.networks.values() for address in each.kept_free}
        return self.lent.keys() - used - kept

    def underway(self) -> frozenset[str]:
        """What Docker has begun with and may go on with: addresses, and members without an interface."""
        return frozenset(self.unused()) | {key for key, each in self.members.items() if not each.joined}

    def without_networks(self, gone: Iterable[str]) -> State:
        ids = set(gone)
        return replace(
            self,
            networks={key: each for key, each in self.networks.items() if key not in ids},
            members={key: each for key, each in self.members.items() if each.network not in ids},
        )


def state_from_json(value: dict[str, Any], boot: str) -> State:
    """The inverse of `to_json`. Its input has passed the store's checksum. No interface outlives a boot."""
    members = [
        Member(**(each | {key: tuple(each[key]) for key in ("addresses", "claims", "aliases")}))
        for each in value["members"]
    ]
    if value["boot"] != boot:
        members = [replace(each, joined=False) for each in members]
    return State(
        {each["id"]: Pool(**each) for each in value["pools"]},
        {each["address"].partition("/")[0]: Lent(**each) for each in value["lent"]},
        {each["id"]: Network(**(each | {"kept_free": tuple(each["kept_free"])})) for each in value["networks"]},
        {each.id: each for each in members},
    )


def host_names(called: Iterable[str]) -> tuple[str, ...]:
    """Those that are names of hosts, each once."""
    found = []
    for text in called:
        with contextlib.suppress(ValueError):
            found.append(parse_name(text))
    return tuple(dict.fromkeys(found))


def is_within(subnet: str, outer: Iterable[Any]) -> bool:
    network = ip_network(subnet)
    return any(network.version == each.version and network.subnet_of(each) for each in outer)
