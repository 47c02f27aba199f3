"""From what the control plane knows to what the kernel should hold: paths, the network's MTU, the desired state.

Which path a peer has, and why not a better one, is decided here and nowhere else; the reason codes are those of the
README's table. All of it is made from values that are handed in; the one thing remembered from desired state to desired
state is the groups of endpoints, one for each page of the table, so that a group in which nothing changed is the same
object and costs nobody a look inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import chain
from types import MappingProxyType

from dataplane.desired import (
    NOWHERE,
    SLEEVE,
    VXLAN,
    Address,
    Desired,
    Exposed,
    Group,
    Port,
    RemoteEndpoint,
    RemotePeer,
    Segment,
    Via,
)
from dataplane.objects import IPV6_MTU_MIN
from dataplane.sleeve.control import SILENT, WRONG_SECRET, PeerStatus
from gossip.names import PeerName
from gossip.peers import AWAY, GONE, PeerRecord, split_address
from mesh.endpoints import Endpoint, EndpointTable, Place, bridge_mac
from mesh.identity import sleeve_key_of

VXLAN_OVERHEAD_V4_BYTES = 50
"""Outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5)."""
VXLAN_OVERHEAD_V6_BYTES = 70
"""The same with an outer IPv6 header of 40 bytes. The kernel does not cut what is too large for that, it drops it."""
HOLD_S = 600.0
"""How long the kernel paths to a host that nobody can reach stay: its containers most likely still run."""
MTU_MIN = 576
UNDERLAY_MTU = "underlay_mtu"
"""Attribute of a peer: what its own underlay takes, as an overlay packet. `mtu` may be less, by a path or by order."""

SLEEVE_ADDRESSES_MAX = 8
"""A worker tries so many of a peer's addresses."""

NONE = "none"
RELAY = "relay"
"""The other kinds of path, beside `VXLAN` and `SLEEVE`."""

BEST = "best"
NO_WIREGUARD = "no-wireguard"
NO_VXLAN = "no-vxlan"
NO_ADDRESS = "no-address"
OTHER_PORT = "other-port"
NAT = "nat"
NO_DIRECT = "no-direct"
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
    nat: bool = False
    """Others see this host at an address that is not its own."""
    vxlan6: bool = False
    """This host has, or had, IPv6: there is a VXLAN device for IPv6 destinations too."""
    zones: frozenset[str] = frozenset()
    """Numbers of the interfaces that have a link-local IPv6 address."""
    offloads_off: tuple[str, ...] = ()
    """Those of `dataplane.desired.VXLAN_OFFLOADS` that VXLAN does without."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What is known of another peer, for choosing its path."""

    record: PeerRecord
    reachable: bool
    unreachable_s: float
    link_address: Address | None
    """The other end of our link with it, where there is one; a link-local one with the number of our interface."""
    vxlan_faults: Mapping[int, str] = field(default_factory=dict)
    """What probes say against VXLAN by the address of an IP version, as a reason; empty where they say nothing."""
    vxlan_answers: frozenset[int] = frozenset()
    """The IP versions over which probes were answered by VXLAN."""
    sleeve: PeerStatus | None = None
    """How the worker does towards it, as far as it has had to do with it."""


@dataclass(frozen=True, slots=True)
class Path:
    kind: str
    reason: str
    destination: Address | None = None
    """Where VXLAN would send, also while the sleeve carries the frames."""
    between: tuple[PeerName, ...] = ()
    """The hosts that pass frames on, the nearest first."""

    @property
    def via(self) -> Via:
        """The bridge port behind which a peer with this path is. Where the sleeve does not get through it goes on
        trying, and finds out by what it is given."""
        if self.kind in (SLEEVE, RELAY) or self.reason in (SILENT, WRONG_SECRET):
            return SLEEVE
        return VXLAN if self.kind == VXLAN else NOWHERE


def choose_path(local: Local, remote: Remote, previous: Path | None) -> Path:
    """How frames reach this peer, and why not better."""
    if not remote.reachable and remote.unreachable_s >= HOLD_S:
        return Path(NONE, UNREACHABLE)
    destination, obstacle = _try_vxlan(local, remote, previous)
    if obstacle and sleeve_key_of(remote.record.attributes) is None:
        return Path(NONE, NO_SLEEVE)
    path = _by_sleeve(remote.sleeve, obstacle, destination) if obstacle else Path(VXLAN, BEST, destination)
    if not remote.reachable and path.kind != NONE:
        return replace(path, reason=AWAY_REASON if remote.record.state == AWAY else UNREACHABLE)
    return path


def _by_sleeve(seen: PeerStatus | None, obstacle: str, destination: Address | None) -> Path:
    """What comes of it where VXLAN is not to be had; nothing is known yet of a peer that nothing was sent to."""
    if seen is not None and seen.state in (SILENT, WRONG_SECRET):
        return Path(NONE, seen.state, destination)
    if seen is not None and seen.via:
        return Path(RELAY, NO_DIRECT, destination, seen.via)
    return Path(SLEEVE, obstacle, destination)


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
    found = _destinations(local, remote, previous.destination if previous else None)
    if not found:
        return None, NO_ADDRESS
    version = found[0].version
    if version not in remote.vxlan_answers and _is_translated(local, remote, found[0]):
        return found[0], NAT
    return found[0], remote.vxlan_faults.get(version, "")


def _is_translated(local: Local, remote: Remote, destination: Address) -> bool:
    """Whether something between the two changes addresses, as far as can be seen. VXLAN hardly ever passes there (its
    answers go to a port that nothing was sent from), so it is not believed in before it answers. Of IPv6 addresses a
    host has more than it tells (those that change for privacy), and nobody makes others of them."""
    if destination.version == 6:
        return False
    if all(address != destination for address, _ in _told(local, remote)):
        return True
    is_near = any(destination in network for network in local.networks)
    return not is_near and (local.nat or bool(remote.record.attributes.get("nat")))


def spare_destination(local: Local, remote: Remote, path: Path) -> Address | None:
    """The best address of the IP version that does not serve: probed, so that it can serve when the other one fails."""
    if path.destination is None:
        return None
    return next(iter(_destinations(local, remote, path.destination)[1:]), None)


def _destinations(local: Local, remote: Remote, previous: Address | None) -> list[Address]:
    """Where VXLAN may reach the peer, one address of each IP version at most, the one that is to serve first.

    Which one: the link's own address, since packets are known to pass there; else what served before; else the nearest;
    IPv4 before IPv6. But before all that, one that probes say nothing against, and one of a version that this host has.
    Of a peer that nobody reaches the last destination stays: what it told is old, and its kernel is most likely where
    it was. So does a link-local one when the link is gone: nobody tells those, and it need not have to do with it."""
    link = _link_address(local, remote)
    told = [address for address, _ in _told(local, remote)]
    lacking = {4, 6} - {network.version for network in local.networks} if local.networks else set()

    def near(address: Address) -> bool:
        return any(address in network for network in local.networks)

    def rank(address: Address) -> tuple[bool | int, ...]:
        return (
            address.version in remote.vxlan_faults,
            address.version in lacking and not address.is_link_local,
            address != link,
            address != previous,
            not near(address),
            address.version,
        )

    found = []
    for version in (4, 6) if local.vxlan6 else (4,):
        usable = [each for each in told if each.version == version and version not in lacking]
        if link is not None and link.version == version:
            found.append(link)
        elif previous is not None and previous.version == version and _stays(local, remote, previous, usable):
            found.append(previous)
        elif usable:
            found.append(next(filter(near, usable), usable[0]))
    return sorted(found, key=rank)


def _stays(local: Local, remote: Remote, previous: Address, usable: list[Address]) -> bool:
    """Whether an address that served may go on."""
    in_zone = isinstance(previous, IPv6Address) and previous.is_link_local and previous.scope_id in local.zones
    return in_zone or previous in usable or not remote.reachable


def sleeve_addresses(local: Local, remote: Remote) -> tuple[tuple[str, int], ...]:
    """Where the peer's sleeve may listen: at the other end of the link first, then as the peer tells, best first."""
    told = _told(local, remote)
    link = _link_address(local, remote)
    if link is not None and (port := _sleeve_port(remote, link)) is not None:
        told.insert(0, (link, port))
    return tuple(dict.fromkeys((str(address), port) for address, port in told))[:SLEEVE_ADDRESSES_MAX]


def _sleeve_port(remote: Remote, at: Address) -> int | None:
    """The port that its sleeve has at an address: that of a link may be any. A peer with link-local addresses alone
    tells none; then it is the one before its VXLAN port."""
    told = _numeric(remote.record.addresses)
    if told:
        return next((port for address, port in told if address == at), told[0][1])
    vxlan_port = remote.record.attributes.get("vxlan_port")
    return vxlan_port - 1 if isinstance(vxlan_port, int) and 1 < vxlan_port < 65536 else None


def _told(local: Local, remote: Remote) -> list[tuple[Address, int]]:
    """The addresses and ports that a peer tells and that may lead there from here."""
    return [(address, port) for address, port in _numeric(remote.record.addresses) if _may_lead(local, address)]


@lru_cache(maxsize=4096)  # every peer's are looked at more than once in every refresh, and hardly ever change
def _numeric(addresses: tuple[str, ...]) -> tuple[tuple[Address, int], ...]:
    """Those of a peer's addresses that are some."""
    parts = [split for split in map(split_address, addresses) if split]
    numeric = [(numeric_address(host), port) for host, port in parts]
    return tuple((address, port) for address, port in numeric if address is not None)


def _link_address(local: Local, remote: Remote) -> Address | None:
    """The other end of our link, unless the peer's user said that it is reached elsewhere."""
    link = remote.link_address
    if link is None:
        return None
    has_interface = isinstance(link, IPv6Address) and link.is_link_local and link.scope_id is not None
    if not (has_interface or _may_lead(local, link)):
        return None
    is_told = any(address == link for address, _ in _told(local, remote))
    return link if is_told or not remote.record.attributes.get("advertise") else None


def numeric_address(host: str) -> Address | None:
    """The address that `host` is, without its zone; None for a name. What others tell need not be an address."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def host_of(address: str | None) -> Address | None:
    """The numeric address in `10.9.0.1:6783` or `[fd00::1]:6783`; None where there is none. A link-local one keeps its
    zone, the number of our interface."""
    parts = split_address(address) if address else None
    found = numeric_address(parts[0]) if parts else None
    if parts and found is not None and found.version == 6 and found.is_link_local and "%" in parts[0]:
        return ip_address(parts[0])
    return found


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


def own_mtu(underlay: int, path_mtus: Iterable[int | None]) -> int:
    """What this host says that it takes: its underlay's, less where a path was found to be narrower. A path that takes
    less than IPv6 needs does not make the whole network so slow: such a pair uses the sleeve, which splits."""
    return min([underlay, *(found for found in path_mtus if found is not None and found >= IPV6_MTU_MIN)])


def path_ceiling(underlay: int, peer: PeerRecord, destination: Address) -> int:
    """The largest overlay packet that the underlays at both ends of a path take."""
    told = [peer.attributes.get(name) for name in (UNDERLAY_MTU, "mtu")]
    theirs = next((mtu for mtu in told if isinstance(mtu, int) and mtu >= MTU_MIN), underlay)
    less = VXLAN_OVERHEAD_V6_BYTES - VXLAN_OVERHEAD_V4_BYTES if destination.version == 6 else 0
    return min(underlay, theirs) - less


Way = tuple[Address | None, Via]
"""Where a host is for VXLAN, and behind which port."""


class Forwarding:
    """Builds one desired state after another. A page of the endpoint table is looked at when something about it may be
    different: its rows, who holds what they claim, the way to its owner, or what is attached here."""

    def __init__(self) -> None:
        self.behind: dict[PeerName, tuple[Group, ...]] = {}
        """What is behind each other host in the last desired state, its bridge not included."""
        self._table: EndpointTable | None = None
        self._groups: dict[PeerName, dict[int, Group]] = {}
        """The same by page; none is empty."""
        self._ways: dict[PeerName, Way] = {}
        self._expired: frozenset[PeerName] = frozenset()
        self._local_macs: frozenset[bytes] = frozenset()
        self._all: tuple[Group, ...] = ()

    def desired(
        self,
        segment: Segment,
        ports: tuple[Port, ...],
        paths: Mapping[PeerName, Path],
        table: EndpointTable,
        own: PeerName,
        expired: frozenset[PeerName],
        settled: bool,
        spares: Mapping[PeerName, Address] = MappingProxyType({}),
    ) -> Desired:
        """The whole desired state. `expired` owners' endpoints are left out as if they had been detached; `spares` are
        addresses of the other IP version."""
        peers = tuple(
            RemotePeer(name, bridge_mac(name), path.destination, path.via, spares.get(name))
            for name, path in sorted(paths.items())
            if path.via != NOWHERE
        )
        ways = {owner: _way(paths.get(owner)) for owner in table.owners() if owner != own}
        places = self._take_changed(table, ways, expired, frozenset(port.mac for port in ports))
        if places:
            self._regroup(places, table)
        return Desired(segment, _held_ports(ports, table, own, expired), peers, self._all, settled)

    def _take_changed(
        self,
        table: EndpointTable,
        ways: dict[PeerName, Way],
        expired: frozenset[PeerName],
        local_macs: frozenset[bytes],
    ) -> set[Place]:
        """The pages to look at."""
        places = table.take_changed()
        if table is not self._table:
            places = {(owner, index) for owner in (*self._groups, *ways) for index in table.pages(owner)}
            places |= {(owner, index) for owner, groups in self._groups.items() for index in groups}
        for owner in expired ^ self._expired:
            places |= table.concerned_by(owner)
        places |= table.having(local_macs ^ self._local_macs)
        for owner, way in ways.items():
            if way != self._ways.get(owner):
                places |= {(owner, index) for index in table.pages(owner)}
        self._table, self._ways, self._expired, self._local_macs = table, ways, expired, local_macs
        return places

    def _regroup(self, places: set[Place], table: EndpointTable) -> None:
        mac_holders: dict[bytes, Endpoint | None] = {}
        for place in places:
            owner, index = place
            groups = self._groups.setdefault(owner, {})
            before, group = groups.pop(index, ()), tuple(self._rows(place, table, mac_holders))
            if group:
                groups[index] = before if group == before else group
        for owner in {owner for owner, _ in places}:
            groups = self._groups[owner]
            self.behind[owner] = tuple(groups[index] for index in sorted(groups))
            if not groups:
                del self._groups[owner], self.behind[owner]
        self._all = tuple(chain.from_iterable(self.behind[owner] for owner in sorted(self.behind)))

    def _rows(
        self, place: Place, table: EndpointTable, mac_holders: dict[bytes, Endpoint | None]
    ) -> Iterator[RemoteEndpoint]:
        """What the endpoints on one page become. `mac_holders` are known for all pages together."""
        owner, _ = place
        if owner not in self._ways or owner in self._expired:
            return
        destination, via = self._ways[owner]
        for endpoint in table.on_page(place):
            mac = endpoint.mac
            if mac in self._local_macs:
                continue
            if not table.is_contested(endpoint):
                yield RemoteEndpoint(mac, tuple(binding.ip for binding in endpoint.bindings), destination, via)
                continue
            if mac not in mac_holders:
                mac_holders[mac] = table.mac_holder(mac, self._expired)
            if mac_holders[mac] is endpoint:
                yield RemoteEndpoint(mac, _held(endpoint, table, self._expired), destination, via)


def _way(path: Path | None) -> Way:
    return (None, NOWHERE) if path is None else (path.destination, path.via)


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


def held_exposed(
    exposed: tuple[Exposed, ...], table: EndpointTable, own: PeerName, expired: frozenset[PeerName]
) -> tuple[Exposed, ...]:
    """What this host is exposed as, without the addresses that an endpoint elsewhere holds by a better claim."""
    lost = {
        binding.ip
        for endpoint in table.of(own)
        if endpoint.is_host and table.is_contested(endpoint)
        for binding, _ in table.lost(endpoint, expired)
    }
    return tuple(each for each in exposed if each.interface.ip not in lost) if lost else exposed
