"""From what the control plane knows to what the kernel should hold: paths, the network's MTU, the desired state.

Which path a peer has, and why not a better one, is decided here and nowhere else; the reason codes are those of the
README's table. All of it is made from values that are handed in; the one thing remembered from desired state to desired
state is the rows of endpoints, so that what did not change is the same object and costs nobody a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from dataplane.desired import Address, Desired, Port, RemoteEndpoint, RemotePeer, Segment
from gossip.names import PeerName
from gossip.peers import AWAY, GONE, PeerRecord, split_address
from mesh.endpoints import Endpoint, EndpointTable, bridge_mac

VXLAN_OVERHEAD_V4_BYTES = 50
"""Outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5)."""
HOLD_S = 600.0
"""How long the kernel paths to a host that nobody can reach stay: its containers most likely still run."""
MTU_MIN = 576

VXLAN = "vxlan"
NONE = "none"

BEST = "best"
NO_VXLAN = "no-vxlan"
NO_ADDRESS = "no-address"
OTHER_PORT = "other-port"
ENCRYPTION_UNAVAILABLE = "encryption-unavailable"
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


@dataclass(frozen=True, slots=True)
class Path:
    kind: str
    reason: str
    destination: Address | None = None


def choose_path(local: Local, remote: Remote, previous: Path | None) -> Path:
    """How frames reach this peer, and why not better."""
    if not remote.reachable and remote.unreachable_s >= HOLD_S:
        return Path(NONE, UNREACHABLE)
    if local.has_secret:
        return Path(NONE, ENCRYPTION_UNAVAILABLE)
    attributes = remote.record.attributes
    if not local.vxlan or not attributes.get("vxlan", False):
        return Path(NONE, NO_VXLAN)
    if attributes.get("vxlan_port") != local.vxlan_port:
        return Path(NONE, OTHER_PORT)
    destination = _choose_destination(local, remote, previous.destination if previous else None)
    if destination is None:
        return Path(NONE, NO_ADDRESS)
    reason = BEST
    if not remote.reachable:
        reason = AWAY_REASON if remote.record.state == AWAY else UNREACHABLE
    return Path(VXLAN, reason, destination)


def _choose_destination(local: Local, remote: Remote, previous: Address | None) -> Address | None:
    """The link's own address, since packets are known to pass there; else what served before; else the nearest.

    A VXLAN device over IPv4 cannot send to IPv6 addresses, so only IPv4 ones count. Of a peer that nobody reaches the
    last destination stays: what it told is old, and its kernel is most likely where it was."""
    told = (numeric_address(parts[0]) for parts in map(split_address, remote.record.addresses) if parts)
    usable = [address for address in told if address is not None and _may_lead(local, address)]
    link = remote.link_address
    if (
        link is not None
        and _may_lead(local, link)
        and (link in usable or not remote.record.attributes.get("advertise"))
    ):
        return link
    if previous is not None and (previous in usable or not remote.reachable):
        return previous
    near = [address for address in usable if any(address in network for network in local.networks)]
    return next(iter(near or usable), None)


def numeric_address(host: str) -> Address | None:
    """The address that `host` is, without its zone; None for a name. What others tell need not be an address."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _may_lead(local: Local, address: Address) -> bool:
    """Whether an underlay address can be that of another host, and over IPv4."""
    nowhere = address.is_loopback or address.is_multicast or address.is_unspecified or address.packed == b"\xff" * 4
    return address.version == 4 and not nowhere and address not in local.addresses


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


class Forwarding:
    """Builds one desired state after another."""

    def __init__(self) -> None:
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
            RemotePeer(name, bridge_mac(name), path.destination)
            for name, path in sorted(paths.items())
            if path.kind == VXLAN and path.destination is not None
        )
        local_macs = {port.mac for port in ports}
        before, self._rows = self._rows, {}
        endpoints: list[RemoteEndpoint] = []
        for owner in table.owners():
            if owner == own or owner in expired:
                continue
            path = paths.get(owner)
            destination = path.destination if path is not None else None
            for endpoint in table.of(owner):
                if endpoint.mac in local_macs:
                    continue
                if table.is_contested(endpoint):
                    if table.mac_holder(endpoint.mac, expired) is endpoint:
                        endpoints.append(RemoteEndpoint(endpoint.mac, _held(endpoint, table, expired), destination))
                    continue
                known = before.get(id(endpoint))
                if known is None or known[1].destination is not destination:
                    addresses = tuple(binding.ip for binding in endpoint.bindings)
                    known = (endpoint, RemoteEndpoint(endpoint.mac, addresses, destination))
                self._rows[id(endpoint)] = known
                endpoints.append(known[1])
        return Desired(segment, _held_ports(ports, table, own, expired), peers, tuple(endpoints), settled)


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
