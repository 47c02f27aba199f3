"""One interface on this host as a value: what it is attached to, what it has, how it is kept on disk.

What an attachment is attached to decides whether it comes back. A named namespace is its name: whatever bears it next
is the same container to the person who chose the name. A Docker container is its id, whatever process it has this time.
Anything else, a pid or some other path, means nothing once its namespace has ended; nor does what a runtime asked for
through CNI, as it makes a new sandbox and asks again. Knows nothing of Docker, of CNI's words, of the kernel, or of
when anything ends.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count
from typing import Any

from dataplane.desired import Port, Route
from gossip.names import PeerName
from mesh.arguments import parse_name
from mesh.endpoints import Address, Binding, Endpoint, Interface

GUEST_IFNAME = "ethwe"
NAMED_DIRECTORY = "/run/netns"
NAMED_DIRECTORIES = (NAMED_DIRECTORY, "/var/run/netns")
"""Both are what `ip netns` lists: /var/run is a link to /run."""
AWAY_MAX = 1024
"""So many attachments are remembered while what they are attached to is away; then the longest away is forgotten."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a container runtime knows an interface by that it asked for."""

    network: str
    """The name of its network configuration."""
    container: str
    ifname: str

    @property
    def key(self) -> tuple[str, str]:
        """One of a kind on a host."""
        return self.container, self.ifname


@dataclass(frozen=True, slots=True)
class Inside:
    """What the inner end has beside its addresses: as `dataplane.desired.Port` says it."""

    ifname: str = GUEST_IFNAME
    leads_out: bool = True
    gateways: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    hairpin: bool = False
    mtu: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "ifname": self.ifname,
            "leads_out": self.leads_out,
            "gateways": list(map(str, self.gateways)),
            "routes": [[str(route.network), str(route.gateway) if route.gateway else None] for route in self.routes],
            "hairpin": self.hairpin,
            "mtu": self.mtu,
        }


ORDINARY = Inside()


def _inside_from_json(value: dict[str, Any]) -> Inside:
    routes = ((ip_network(network), ip_address(gateway) if gateway else None) for network, gateway in value["routes"])
    return Inside(
        value["ifname"],
        value["leads_out"],
        tuple(map(ip_address, value["gateways"])),
        tuple(Route(network, gateway) for network, gateway in routes),
        value["hairpin"],
        value["mtu"],
    )


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface on this host."""

    id: str
    """TARGET as it was given."""
    ifname: str
    namespace: str
    """The path it was last found at."""
    namespace_id: tuple[int, int]
    """Which one it was then."""
    mac: bytes
    bindings: tuple[Binding, ...]
    names: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    network: str
    container: str | None = None
    """The whole id of the Docker container whose namespace it is; None for all others."""
    away_since: int | None = None
    """Unix time at which its namespace was found to be gone; None while it is there."""
    owner: str = ""
    """What the allocator knows it by, for as long as it lasts, whatever it is found to be later (`owner_of`)."""

    dns: bool = True
    """Whether it has names, and a resolv.conf of ours where it is named."""
    container_name: str | None = None
    """What Docker, or another runtime, calls it, where that is known."""
    inside: Inside = ORDINARY
    sandbox: Sandbox | None = None
    """None where no runtime asked for it through CNI."""

    @property
    def own_name(self) -> str | None:
        """The host name that it has by being called so; None where it is called nothing, or nothing that is one."""
        called = self._called
        try:
            return parse_name(called) if called else None
        except ValueError:
            return None

    @property
    def unfit_name(self) -> str | None:
        """What it is called, where that is no host name."""
        return self._called if self._called and self.own_name is None else None

    @property
    def _called(self) -> str | None:
        return posixpath.basename(self.namespace) if self.is_named else self.container_name

    @property
    def is_named(self) -> bool:
        is_ours_to_name = self.container is None and self.sandbox is None
        return is_ours_to_name and posixpath.dirname(self.namespace) == NAMED_DIRECTORY

    @property
    def comes_back(self) -> bool:
        """Whether another namespace can be known to be the same container."""
        return self.container is not None or self.is_named

    @property
    def port(self) -> Port:
        interfaces = tuple(binding.interface for binding in self.bindings)
        inside = self.inside
        return Port(
            self.ifname, inside.ifname, self.namespace, self.namespace_id, self.mac, interfaces,
            routes=inside.routes, leads_out=inside.leads_out, gateways=inside.gateways, hairpin=inside.hairpin,
            mtu=inside.mtu,
        )  # fmt: skip

    def endpoint(self, owner: PeerName) -> Endpoint:
        away = self.away_since is not None
        names, called = (self.names, self.own_name or "") if self.dns else ((), "")
        return Endpoint(owner, self.id, self.mac, self.bindings, names, self.labels, self.network, away, called)

    def texts(self) -> list[str]:
        """Its addresses with their lengths."""
        return [str(binding) for binding in self.bindings]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "ifname": self.ifname,
            "namespace": self.namespace,
            "namespace_id": list(self.namespace_id),
            "mac": self.mac.hex(":"),
            "bindings": [[str(binding), binding.claim] for binding in self.bindings],
            "names": list(self.names),
            "labels": [list(label) for label in self.labels],
            "network": self.network,
            "container": self.container,
            "away_since": self.away_since,
            "owner": self.owner,
            "dns": self.dns,
            "container_name": self.container_name,
            "inside": self.inside.to_json(),
            "sandbox": list(astuple(self.sandbox)) if self.sandbox else None,
        }


def attachment_from_json(value: dict[str, Any]) -> Attachment:
    """The inverse of `to_json`. Its input has passed the store's checksum, so it is as we wrote it, if perhaps in a
    version that did not know the last fields yet."""
    device, inode = value["namespace_id"]
    return Attachment(
        id=value["id"],
        ifname=value["ifname"],
        namespace=canonical(value["namespace"]),
        namespace_id=(device, inode),
        mac=bytes.fromhex(value["mac"].replace(":", "")),
        bindings=tuple(make_binding(ip_interface(text), claim) for text, claim in value["bindings"]),
        names=tuple(value["names"]),
        labels=tuple((key, text) for key, text in value["labels"]),
        network=value["network"],
        container=value.get("container"),
        away_since=value.get("away_since"),
        owner=value.get("owner", ""),
        dns=value.get("dns", True),
        container_name=value.get("container_name"),
        inside=_inside_from_json(value["inside"]) if "inside" in value else ORDINARY,
        sandbox=Sandbox(*value["sandbox"]) if value.get("sandbox") else None,
    )


def make_binding(interface: Interface, claim: int) -> Binding:
    return Binding(interface.ip, interface.network.prefixlen, claim)


def canonical(path: str) -> str:
    """A namespace's path, in one spelling for named ones."""
    directory, name = posixpath.split(posixpath.normpath(path))
    return f"{NAMED_DIRECTORY}/{name}" if directory in NAMED_DIRECTORIES else path


def ifname_of(
    path: str,
    namespace_id: tuple[int, int],
    container: str | None,
    network: str,
    taken: Collection[str] = (),
    sandbox: Sandbox | None = None,
) -> str:
    """The host end's name: made from what comes back, so that it is the same for the same container. One that is taken
    belongs to an attachment that was made by the same words, and by now is known to be something else."""
    if sandbox is not None:
        seed = f"sandbox {sandbox.container} {sandbox.ifname}"
    elif container is not None:
        seed = f"container {container} {network}"
    elif posixpath.dirname(path) == NAMED_DIRECTORY:
        seed = f"name {path} {network}"
    else:
        seed = f"namespace {namespace_id} {network}"
    names = ("vw" + hashlib.sha256(f"{seed} {salt}".encode()).hexdigest()[:11] for salt in count())
    return next(name for name in names if name not in taken)


def owner_of(
    path: str,
    namespace_id: tuple[int, int],
    container: str | None,
    boot: str,
    taken: Collection[str] = (),
    sandbox: Sandbox | None = None,
) -> str:
    """What the allocator knows an attachment by: what comes back has the same addresses again. A namespace's number is
    one of a boot only. One that is taken belongs to an attachment as with `ifname_of`."""
    if sandbox is not None:
        seed = f"cni:{sandbox.container}:{sandbox.ifname}"
    elif container is not None:
        seed = f"docker:{container}"
    elif posixpath.dirname(path) == NAMED_DIRECTORY:
        seed = f"netns:{posixpath.basename(path)}"
    else:
        seed = f"ns:{namespace_id[0]}:{namespace_id[1]}@{boot}"
    texts = (seed if salt == 0 else f"{seed}#{salt}" for salt in count())
    return next(text for text in texts if text not in taken)


def with_owners(loaded: Iterable[Attachment], boot: str) -> list[Attachment]:
    """The same, where those kept by an earlier version have no owner yet. `boot`: the one they were kept in."""
    found = list(loaded)
    taken = {each.owner for each in found}
    for index, each in enumerate(found):
        if not each.owner:
            owner = owner_of(each.namespace, each.namespace_id, each.container, boot, taken)
            taken.add(owner)
            found[index] = replace(each, owner=owner)
    return found


def after_boot(loaded: Iterable[Attachment], now_unix_s: int) -> tuple[list[Attachment], list[Attachment]]:
    """What is left of the attachments of an earlier boot: those that can come back, away; and those that cannot.

    No namespace outlives a boot, and the numbers they are told apart by are given to others in the next one."""
    kept = [each if each.away_since is not None else replace(each, away_since=now_unix_s) for each in loaded]
    return [each for each in kept if each.comes_back], [each for each in kept if not each.comes_back]


def too_long_away(held: Mapping[str, Attachment], most: int) -> list[Attachment]:
    """Those to forget so that no more than `most` are away: the longest away."""
    away = [(each.away_since, ifname) for ifname, each in held.items() if each.away_since is not None]
    return [held[ifname] for _, ifname in sorted(away)[: max(0, len(away) - most)]]
