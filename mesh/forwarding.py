"""From what the control plane knows to what the kernel should hold: paths, the network's MTU, the desired state.

Which path a peer has, and why not a better one, is decided here and nowhere else; the reason codes are those of the
README's table. All of it is made from values that are handed in; the one thing remembered from desired state to desired
state is the rows of endpoints, so that what did not change is the same object and costs nobody a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from dataplane.desired import NOWHERE, SLEEVE, VXLAN, Address, Desired, Port, RemoteEndpoint, RemotePeer, Segment, Via
from dataplane.objects import IPV6_MTU_MIN
from gossip.names import PeerName
from gossip.peers import AWAY, GONE, PeerRecord, split_address
from mesh.endpoints import Endpoint, EndpointTable, bridge_mac
from mesh.identity import sleeve_key_of

VXLAN_OVERHEAD_V4_BYTES = 50
"""Outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5)."""
VXLAN_OVERHEAD_V6_BYTES = 70
HOLD_S = 600.0
"""How long the kernel paths to a host that nobody can reach stay: its containers most likely still run."""
MTU_MIN = 576
UNDERLAY_MTU = "underlay_mtu"
"""Attribute of a peer: what its own underlay takes, as an overlay packet. `mtu` may be less, by a path or by order."""

SLEEVE_ADDRESSES_MAX = 8
"""A worker tries so many of a peer's addresses."""

NONE = "none"
"""The third kind of path, beside `VXLAN` and `SLEEVE`."""

BEST = "best"
NO_WIREGUARD = "no-wireguard"
NO_VXLAN = "no-vxlan"
NO_ADDRESS = "no-address"
OTHER_PORT = "other-port"
NO_SLEEVE = "no-sleeve"
UNREACHABLE = "unreachable"
AWAY_REASON = "away"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Local:
    """What the daemon was told and what this host is like."""

    name: PeerName
    has_secret: bool
    vxlan: bool
    """VXLAN was not switched off and the kernel has it."""
    vxlan_port: int
    networks: tuple[Network, ...]
    """Directly connected underlay networks: an address in one of them is the nearest."""
    addresses: frozenset[Address] = frozenset()
    """This host's own. Another host may well have the same private address; it does not lead there from here."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What is known of another peer, for choosing its path."""

    record: PeerRecord
    reachable: bool
    unreachable_s: float
    link_address: Address | None
    """The other end of our link with it, where there is one."""
    vxlan_fault: str = ""
    """What probes say against VXLAN, as a reason; empty where nothing does."""


@dataclass(frozen=True, slots=True)
class Path:
    kind: str
    reason: str
    destination: Address | None = None
    """Where VXLAN would send, also while the sleeve carries the frames."""


def choose_path(local: Local, remote: Remote, previous: Path | None) -> Path:
    """How frames reach this peer, and why not better."""
    if not remote.reachable and remote.unreachable_s >= HOLD_S:
        return Path(NONE, UNREACHABLE)
    destination, obstacle = _try_vxlan(local, remote, previous)
    if obstacle and sleeve_key_of(remote.record.attributes) is None:
        return Path(NONE, NO_SLEEVE)
    reason = obstacle or BEST
    if not remote.reachable:
        reason = AWAY_REASON if remote.record.state == AWAY else UNREACHABLE
    return Path(SLEEVE if obstacle else VXLAN, reason, destination)


def _try_vxlan(local: Local, remote: Remote, previous: Path | None) -> tuple[Address | None, str]:
    """Where VXLAN sends, or would send, and what stands against it as a reason. With a secret there is no such place:
    what is not known cannot be used by mistake."""
    attributes = remote.record.attributes
    if local.has_secret:
        return None, NO_WIREGUARD
    if not local.vxlan or not attributes.get("vxlan", False):
        return None, NO_VXLAN
    if attributes.get("vxlan_port") != local.vxlan_port:
        return None, OTHER_PORT
    destination = _choose_destination(local, remote, previous.destination if previous else None)
    return destination, remote.vxlan_fault if destination is not None else NO_ADDRESS


def _choose_destination(local: Local, remote: Remote, previous: Address | None) -> Address | None:
    """The link's own address, since packets are known to pass there; else what served before; else the nearest.

    A VXLAN device over IPv4 cannot send to IPv6 addresses, so only IPv4 ones count. Of a peer that nobody reaches the
    last destination stays: what it told is old, and its kernel is most likely where it was."""
    usable = [address for address, _ in _told(local, remote) if address.version == 4]
    link = _link_address(local, remote)
    if link is not None and link.version == 4:
        return link
    if previous is not None and (previous in usable or not remote.reachable):
        return previous
    near = [address for address in usable if any(address in network for network in local.networks)]
    return next(iter(near or usable), None)


def sleeve_addresses(local: Local, remote: Remote) -> tuple[tuple[str, int], ...]:
    """Where the peer's sleeve may listen: at the other end of the link first, then as the peer tells, best first."""
    told = _told(local, remote)
    link = _link_address(local, remote)
    if link is not None and told:  # the link's port may be any; that of the sleeve is the one it tells
        told.insert(0, (link, next((port for address, port in told if address == link), told[0][1])))
    return tuple(dict.fromkeys((str(address), port) for address, port in told))[:SLEEVE_ADDRESSES_MAX]


def _told(local: Local, remote: Remote) -> list[tuple[Address, int]]:
    """The addresses and ports that a peer tells and that may lead there from here."""
    parts = [split for split in map(split_address, remote.record.addresses) if split]
    numeric = [(numeric_address(host), port) for host, port in parts]
    return [(address, port) for address, port in numeric if address is not None and _may_lead(local, address)]


def _link_address(local: Local, remote: Remote) -> Address | None:
    """The other end of our link, unless the peer's user said that it is reached elsewhere."""
    link = remote.link_address
    if link is None or not _may_lead(local, link):
        return None
    is_told = any(address == link for address, _ in _told(local, remote))
    return link if is_told or not remote.record.attributes.get("advertise") else None


@lru_cache(maxsize=4096)  # every peer's are looked at in every refresh, and hardly ever change
def numeric_address(host: str) -> Address | None:
    """The address that `host` is, without its zone; None for a name. What others tell need not be an address."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _may_lead(local: Local, address: Address) -> bool:
    """Whether an underlay address can be that of another host. A link-local one of IPv6 means nothing without its
    interface, and a mapped one is an IPv4 address that wears a mask."""
    nowhere = address.is_loopback or address.is_multicast or address.is_unspecified or address.packed == b"\xff" * 4
    if address.version == 6:
        nowhere = nowhere or address.is_link_local or address.ipv4_mapped is not None
    return not nowhere and address not in local.addresses


def network_mtu(own: int, members: Iterable[Remote], current: int | None) -> int:
    """The largest packet that every member can take. It shrinks at once and never grows while a daemon runs."""
    told = [own]
    for member in members:
        mtu = member.record.attributes.get("mtu")
        if isinstance(mtu, int) and mtu >= MTU_MIN and member.record.state != GONE and member.unreachable_s < HOLD_S:
            told.append(mtu)
    if current is not None:
        told.append(current)
    return min(told)


def own_mtu(underlay: int, path_mtus: Iterable[int]) -> int:
    """What this host says that it takes: its underlay's, less where a path was found to be narrower. A path that takes
    less than IPv6 needs does not make the whole network so slow: such a pair uses the sleeve, which splits."""
    return min([underlay, *(found for found in path_mtus if found >= IPV6_MTU_MIN)])


def path_ceiling(underlay: int, peer: PeerRecord, destination: Address) -> int:
    """The largest overlay packet that the underlays at both ends of a path take."""
    told = [peer.attributes.get(name) for name in (UNDERLAY_MTU, "mtu")]
    theirs = next((mtu for mtu in told if isinstance(mtu, int) and mtu >= MTU_MIN), underlay)
    less = VXLAN_OVERHEAD_V6_BYTES - VXLAN_OVERHEAD_V4_BYTES if destination.version == 6 else 0
    return min(underlay, theirs) - less


class Forwarding:
    """Builds one desired state after another."""

    def __init__(self) -> None:
        self.macs: dict[PeerName, list[bytes]] = {}
        """What is behind each other host in the last desired state, its bridge not included."""
        self._rows: dict[int, tuple[Endpoint, RemoteEndpoint]] = {}
        """What an endpoint that shares nothing became last, by its identity, which stays its own while it is kept."""

    def desired(
        self,
        segment: Segment,
        ports: tuple[Port, ...],
        paths: Mapping[PeerName, Path],
        table: EndpointTable,
        own: PeerName,
        expired: frozenset[PeerName],
        settled: bool,
    ) -> Desired:
        """The whole desired state. `expired` owners' endpoints are left out as if they had been detached."""
        peers = tuple(
            RemotePeer(name, bridge_mac(name), path.destination, _via(path))
            for name, path in sorted(paths.items())
            if path.kind != NONE
        )
        local_macs = {port.mac for port in ports}
        before, self._rows = self._rows, {}
        endpoints: list[RemoteEndpoint] = []
        self.macs = {}
        for owner in table.owners():
            if owner == own or owner in expired:
                continue
            path = paths.get(owner)
            destination = path.destination if path is not None else None
            via = _via(path)
            macs = self.macs[owner] = []
            for endpoint in table.of(owner):
                if endpoint.mac in local_macs:
                    continue
                if table.is_contested(endpoint):
                    if table.mac_holder(endpoint.mac, expired) is endpoint:
                        held = _held(endpoint, table, expired)
                        endpoints.append(RemoteEndpoint(endpoint.mac, held, destination, via))
                        macs.append(endpoint.mac)
                    continue
                known = before.get(id(endpoint))
                if known is None or known[1].destination is not destination or known[1].via is not via:
                    addresses = tuple(binding.ip for binding in endpoint.bindings)
                    known = (endpoint, RemoteEndpoint(endpoint.mac, addresses, destination, via))
                self._rows[id(endpoint)] = known
                endpoints.append(known[1])
                macs.append(endpoint.mac)
        return Desired(segment, _held_ports(ports, table, own, expired), peers, tuple(endpoints), settled)


def _via(path: Path | None) -> Via:
    """The bridge port behind which a peer with this path is."""
    if path is None or path.kind == NONE:
        return NOWHERE
    return SLEEVE if path.kind == SLEEVE else VXLAN


def _held(endpoint: Endpoint, table: EndpointTable, expired: frozenset[PeerName]) -> tuple[Address, ...]:
    """The addresses of an endpoint that no other endpoint holds by a better claim."""
    return tuple(binding.ip for binding in endpoint.bindings if table.holder(binding.ip, expired) is endpoint)


def _held_ports(
    ports: tuple[Port, ...], table: EndpointTable, own: PeerName, expired: frozenset[PeerName]
) -> tuple[Port, ...]:
    """Our own ports without the addresses that another host holds by a better claim.

    A container that kept such an address would answer for it on this host, and half of the mesh would talk to it. It
    gets the address back when the other one lets go of it. What is not published yet is about to be, and stays."""
    contested = [endpoint for endpoint in table.of(own) if table.is_contested(endpoint)]
    lost = {(endpoint.mac, binding.ip) for endpoint in contested for binding, _ in table.lost(endpoint, expired)}
    if not lost:
        return ports
    return tuple(
        replace(port, addresses=tuple(each for each in port.addresses if (port.mac, each.ip) not in lost))
        for port in ports
    )
