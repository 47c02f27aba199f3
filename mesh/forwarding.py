"""From what the control plane knows to what the kernel should hold: paths, the network's MTU, the desired state.

Pure functions over values. Which path a peer has, and why not a better one, is decided here and nowhere else; the
reason codes are those of the README's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

    A VXLAN device over IPv4 cannot send to IPv6 addresses, so only IPv4 ones count."""
    told = [ip_address(parts[0]) for parts in map(split_address, remote.record.addresses) if parts]
    usable = [address for address in told if address.version == 4]
    link = remote.link_address
    if link is not None and link.version == 4 and (link in usable or not remote.record.attributes.get("advertise")):
        return link
    if previous in usable:
        return previous
    near = [address for address in usable if any(address in network for network in local.networks)]
    return next(iter(near or usable), None)


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


def build_desired(
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
    endpoints: list[RemoteEndpoint] = []
    macs = {port.mac for port in ports}
    for endpoint in table.endpoints():
        if endpoint.owner == own or endpoint.owner in expired:
            continue
        if endpoint.mac in macs:
            continue  # A MAC twice: the first owner by name keeps it here as everywhere.
        path = paths.get(endpoint.owner)
        macs.add(endpoint.mac)
        endpoints.append(
            RemoteEndpoint(endpoint.mac, _held(endpoint, table, expired), path.destination if path else None)
        )
    return Desired(segment, ports, peers, tuple(endpoints), settled)


def _held(endpoint: Endpoint, table: EndpointTable, expired: frozenset[PeerName]) -> tuple[Address, ...]:
    """The addresses of an endpoint that no other endpoint holds by a better claim."""
    addresses = (binding.interface.ip for binding in endpoint.bindings)
    return tuple(address for address in addresses if table.holder(address, expired) is endpoint)
