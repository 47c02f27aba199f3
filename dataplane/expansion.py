"""What we want of the kernel, as its objects: pure.

An `Expander` turns one `Desired` after another into keyed values and tells what each changes. Nothing here knows what
the kernel has (reconcile), or why a peer is reached the way it is (mesh).

The one idea: what did not change is the same object, and costs nothing. Rows are not kept; they are made again for a
group of endpoints that is another one than before, once as it was and once as it is.

Where VXLAN would send a MAC is wanted while the MAC is behind the TAP too: so a move between the two paths, either way,
is one replacement. A VXLAN device takes destinations of one IP version, so there are two, and what belongs to a
destination (the entry, the flood list) is on the device of its version. A peer is in one flood list at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.desired import (
    SLEEVE,
    VXLAN,
    Address,
    Desired,
    Exposed,
    Group,
    Interface,
    Port,
    RemoteEndpoint,
    RemotePeer,
    Segment,
)
from dataplane.layers import Layers
from dataplane.objects import (
    ACCEPT,
    ACTIVE_RULE,
    BRIDGE_FDB,
    FAMILIES,
    FLOOD,
    FORWARDING,
    GATEWAY,
    GUARD,
    GUARD_RULES,
    GUEST,
    GUEST_ADDRESS,
    GUEST_NETWORK,
    GUEST_ROUTE,
    HOST_ADDRESS,
    IN,
    IPV6_MTU_MIN,
    LINK,
    NEIGHBOUR,
    NOWHERE,
    OFFLOADS,
    OUT,
    PORT,
    UP,
    VXLAN_FDB,
    ZERO_MAC,
    Bridge,
    DefaultRoute,
    Forwarding,
    Gateway,
    Guard,
    Guest,
    GuestAddress,
    HostAddress,
    Key,
    Offloads,
    PortFlags,
    Scope,
    Tap,
    Value,
    Veth,
    Vxlan,
    address_item,
    destination_item,
    network_item,
    tap_name,
    vxlan6_name,
    vxlan_name,
)


class Skipped(NamedTuple):
    """Something in a `Desired` that is left out, for the report's warnings."""

    code: str
    text: str
    cure: str


@dataclass(frozen=True, slots=True)
class Expansion:
    """A `Desired` as kernel objects: as far as they may differ from those of the one before, or all of the first."""

    objects: Mapping[Key, Value]
    """What is wanted from now on."""
    port_of: Mapping[Key, str]
    """The container port an object serves, for the objects that serve one; the bridge for what exposes the host."""
    skipped: tuple[Skipped, ...]
    scope: Scope
    settled: bool
    gone: Sequence[Key] = ()
    """What is wanted no more."""


_Rows = dict[Key, Value]
_Here = tuple[tuple[Port, ...], tuple[Exposed, ...], tuple[Interface, ...]]


class _Oddity(NamedTuple):
    """What has to be left out of a group."""

    unusable: tuple[bytes, ...]
    leaves_ipv6_out: bool


class Expander:
    """Expands one `Desired` after another, looking only at what is not the same object as the last time.

    So a publish that changes one endpoint among a hundred thousand costs the rows of its group, once as they were and
    once as they are, and a look at who the other groups are.
    """

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._layers: Layers[Group | _Rows, Key, Value] = Layers(self._rows_of)
        self._here: tuple[_Here, _Rows, dict[Key, str]] = (((), (), ()), {}, {})
        self._peers: tuple[tuple[RemotePeer, ...], _Rows, list[bytes]] = ((), {}, [])
        self._own: _Rows = {}
        self._odd: dict[int, _Oddity] = {}
        """By identity, the groups of which something is left out."""

    def expand(self, desired: Desired) -> Expansion:
        """Where two things claim one key, the local port wins over a peer, a peer over an endpoint, first over last."""
        segment = desired.segment
        gone: list[Key] = []
        is_new = segment != self._segment
        if is_new:  # all rows are made of it, and of the old one for the last time
            gone = self._layers.replace(()).gone
            self._odd = {}
            self._segment, self._own = segment, _segment_rows(segment)
        exposed = tuple(each for each in desired.exposed if _is_carried(segment, each.interface))
        here = (desired.ports, exposed, desired.beside)
        if is_new or here != self._here[0]:
            self._here = (here, *_rows_here(segment, *here))
        if is_new or desired.peers != self._peers[0]:
            self._peers = (desired.peers, *_all_peer_rows(segment, desired.peers))
        change = self._layers.replace((self._here[1], self._own, self._peers[1], *desired.groups))
        for layer in change.went:
            self._odd.pop(id(layer), None)
        for layer in change.came:
            if isinstance(layer, tuple) and (oddity := _oddity(segment, layer)) is not None:
                self._odd[id(layer)] = oddity
        return Expansion(
            objects=change.rows,
            port_of=self._here[2],
            skipped=_skipped(desired, [*self._peers[2], *self._unusable()], self._leaves_ipv6_out(desired)),
            scope=Scope(
                segment.bridge,
                desired.ports,
                segment.vxlan_port,
                routed=_families(exposed),
                over_ipv6=segment.vxlan6 and _is_over_ipv6(desired),
            ),
            settled=desired.settled,
            gone=change.gone + [key for key in gone if key not in change.rows],
        )

    def _rows_of(self, layer: Group | _Rows) -> _Rows:
        if not isinstance(layer, tuple):
            return layer
        assert self._segment is not None
        rows: _Rows = {}
        for endpoint in reversed(layer):
            rows.update(_endpoint_rows(self._segment, endpoint))
        return rows

    def _unusable(self) -> list[bytes]:
        return [mac for oddity in self._odd.values() for mac in oddity.unusable]

    def _leaves_ipv6_out(self, desired: Desired) -> bool:
        local = (address for port in desired.ports if not port.isolated for address in port.addresses)
        exposed = (each.interface for each in desired.exposed)
        return any(oddity.leaves_ipv6_out for oddity in self._odd.values()) or not all(
            _is_carried(desired.segment, address) for address in (*local, *exposed)
        )


def expand(desired: Desired) -> Expansion:
    """One `Desired`, expanded from nothing."""
    return Expander().expand(desired)


def _oddity(segment: Segment, group: Group) -> _Oddity | None:
    unusable = tuple(endpoint.mac for endpoint in group if not _is_usable(segment, endpoint.mac))
    is_whole = all(_is_carried(segment, address) for endpoint in group for address in endpoint.addresses)
    return None if is_whole and not unusable else _Oddity(unusable, not is_whole)


def _rows_here(
    segment: Segment, ports: Sequence[Port], exposed: Sequence[Exposed], beside: Sequence[Interface]
) -> tuple[_Rows, dict[Key, str]]:
    """Of what is attached on this host and of the host itself, and which port each object serves."""
    rows: _Rows = {}
    port_of: dict[Key, str] = {}
    for port in reversed(ports):
        mine = _port_rows(segment, port)
        rows.update(mine)
        port_of.update(dict.fromkeys(mine, port.ifname))
    rows.update({Key(HOST_ADDRESS, segment.bridge, address_item(each)): HostAddress() for each in beside})
    host = _exposed_rows(segment.bridge, exposed)
    rows.update(host)
    port_of.update(dict.fromkeys(host, segment.bridge))
    for port in [port for port in ports if port.leads_out and not port.handed_over] if exposed else ():
        mine = _route_rows(port, exposed)
        rows.update(mine)
        port_of.update(dict.fromkeys(mine, port.ifname))
    return rows, port_of


def _all_peer_rows(segment: Segment, peers: Sequence[RemotePeer]) -> tuple[_Rows, list[bytes]]:
    """And the MACs among theirs that cannot be used."""
    rows: _Rows = {}
    unusable: list[bytes] = []
    for peer in reversed(peers):
        if not _is_usable(segment, peer.bridge_mac):
            unusable.append(peer.bridge_mac)
            continue
        rows.update(_path_rows(segment, peer.bridge_mac, peer))
        if segment.vxlan_port is None:
            continue
        if peer.spare is not None and (spare := _vxlan_destination(segment, peer, peer.spare)) != NOWHERE:
            rows[Key(VXLAN_FDB, _vxlan_for(segment, spare), peer.bridge_mac)] = spare
        destination = _vxlan_destination(segment, peer, peer.destination)
        if destination != NOWHERE and peer.via == VXLAN:
            rows[Key(FLOOD, _vxlan_for(segment, destination), destination)] = True
    return rows, unusable


def _segment_rows(segment: Segment) -> dict[Key, Value]:
    bridge = segment.bridge
    rows: dict[Key, Value] = {
        Key(LINK, bridge): Bridge(mac=segment.bridge_mac, mtu=segment.mtu),
        Key(UP, bridge): True,
        Key(ACCEPT, bridge, b"ip"): True,
        Key(ACCEPT, bridge, b"ip6"): True,
    }
    if segment.vxlan_port is not None:
        for name in (vxlan_name(bridge), vxlan6_name(bridge))[: 1 + segment.vxlan6]:
            ipv6 = name == vxlan6_name(bridge)
            rows[Key(LINK, name)] = Vxlan(segment.vni, segment.vxlan_port, segment.mtu, ipv6=ipv6)
            rows[Key(OFFLOADS, name)] = Offloads(segment.offloads_off)
            rows.update(_overlay_port_rows(bridge, name))
            rows[Key(GUARD, name)] = Guard((*GUARD_RULES, ACTIVE_RULE))
    if segment.tap:
        name = tap_name(bridge)
        rows[Key(LINK, name)] = Tap(mtu=segment.mtu)
        rows.update(_overlay_port_rows(bridge, name))
    return rows


def _overlay_port_rows(bridge: str, name: str) -> dict[Key, Value]:
    """What every port that leads to other hosts has: it answers ARP and ND at home and gives nothing to its like."""
    return {
        Key(PORT, name): PortFlags(bridge, neigh_suppress=True, isolated=True, locked=False),
        Key(GUARD, name): Guard(GUARD_RULES),
        Key(UP, name): True,
    }


def _port_rows(segment: Segment, port: Port) -> dict[Key, Value]:
    bridge, name = segment.bridge, port.ifname
    addresses = [address for address in port.addresses if _is_carried(segment, address)]
    mtu = segment.mtu if port.mtu is None else min(port.mtu, segment.mtu)
    rows: dict[Key, Value] = {
        Key(LINK, name): Veth(mtu=mtu, namespace=port.namespace_id),
        Key(PORT, name): PortFlags(
            bridge, neigh_suppress=False, isolated=port.isolated, locked=True, hairpin=port.hairpin
        ),
        Key(BRIDGE_FDB, bridge, port.mac): name,
        Key(UP, name): True,
    }
    for address in addresses:
        rows[Key(NEIGHBOUR, bridge, address.ip.packed)] = port.mac
    return rows if port.handed_over else rows | _inside_rows(port, addresses, mtu)


def _inside_rows(port: Port, addresses: Sequence[Interface], mtu: int) -> dict[Key, Value]:
    """What a container has of its interface."""
    name = port.ifname
    # Docker switches IPv6 off inside containers that it gives no IPv6 address; where we give one it must be on.
    ipv6 = True if any(address.version == 6 for address in addresses) else None
    rows: dict[Key, Value] = {Key(GUEST, name): Guest(name=port.guest_ifname, mac=port.mac, mtu=mtu, ipv6=ipv6)}
    for address in addresses:
        rows[Key(GUEST_ADDRESS, name, address_item(address))] = GuestAddress()
    versions = {address.version for address in addresses}
    for route in port.routes:
        if route.network.version in versions:
            gateway = route.gateway.packed if route.gateway is not None else b""
            rows[Key(GUEST_NETWORK, name, network_item(route.network))] = gateway
    for gateway_out in port.gateways:
        if gateway_out.version in versions:
            rows[Key(GUEST_ROUTE, name, FAMILIES[gateway_out.version])] = DefaultRoute(gateway_out.packed)
    return rows


def _exposed_rows(bridge: str, exposed: Sequence[Exposed]) -> dict[Key, Value]:
    """What makes the host itself part of the overlay, and the way out for its containers."""
    rows: dict[Key, Value] = {
        Key(HOST_ADDRESS, bridge, address_item(each.interface)): HostAddress() for each in exposed
    }
    for family in _families(exposed):
        rows[Key(FORWARDING, bridge, family)] = Forwarding()
        rows[Key(ACCEPT, bridge, family + OUT)] = rows[Key(ACCEPT, bridge, family + IN)] = True
    masqueraded = {str(each.interface.network) for each in exposed if each.masquerade}
    plain = {str(each.interface.network) for each in exposed} - masqueraded
    if masqueraded:
        rows[Key(GATEWAY, bridge)] = Gateway(tuple(sorted(masqueraded)), tuple(sorted(plain)))
    return rows


def _families(exposed: Sequence[Exposed]) -> frozenset[bytes]:
    return frozenset(FAMILIES[each.interface.version] for each in exposed)


def _route_rows(port: Port, exposed: Sequence[Exposed]) -> dict[Key, Value]:
    """A default route for each family in which the container and the host are in each other's network."""
    rows: dict[Key, Value] = {}
    for host in reversed(exposed):  # the first one wins
        if any(_are_neighbours(host.interface, address) for address in port.addresses):
            family = FAMILIES[host.interface.version]
            rows[Key(GUEST_ROUTE, port.ifname, family)] = DefaultRoute(host.interface.ip.packed)
    return rows


def _are_neighbours(one: Interface, other: Interface) -> bool:
    return one.ip in other.network and other.ip in one.network  # across families: never


def _endpoint_rows(segment: Segment, endpoint: RemoteEndpoint) -> dict[Key, Value]:
    if not _is_usable(segment, endpoint.mac):
        return {}
    rows = _path_rows(segment, endpoint.mac, endpoint)
    for address in endpoint.addresses:
        if _is_carried(segment, address):
            rows[Key(NEIGHBOUR, segment.bridge, address.packed)] = endpoint.mac
    return rows


def _path_rows(segment: Segment, mac: bytes, remote: RemotePeer | RemoteEndpoint) -> dict[Key, Value]:
    """Behind which bridge port a MAC is, and where VXLAN sends it if it is asked to."""
    rows: dict[Key, Value] = {}
    destination = _vxlan_destination(segment, remote, remote.destination)
    is_in_sleeve = remote.via == SLEEVE and segment.tap
    if segment.vxlan_port is not None:
        name = _vxlan_for(segment, destination)
        if destination != NOWHERE or not is_in_sleeve:
            rows[Key(VXLAN_FDB, name, mac)] = destination
        rows[Key(BRIDGE_FDB, segment.bridge, mac)] = name
    if is_in_sleeve:
        rows[Key(BRIDGE_FDB, segment.bridge, mac)] = tap_name(segment.bridge)
    return rows


def _vxlan_destination(segment: Segment, remote: RemotePeer | RemoteEndpoint, destination: Address | None) -> bytes:
    """Where VXLAN would send what is behind this."""
    leads = remote.via == VXLAN or (remote.via == SLEEVE and segment.tap)
    if destination is None or not leads or (destination.version == 6 and not segment.vxlan6):
        return NOWHERE
    return destination_item(destination)


def _vxlan_for(segment: Segment, destination: bytes) -> str:
    """The device that takes this destination. What leads nowhere is on the first one, which is always there."""
    return (vxlan_name if len(destination) == len(NOWHERE) else vxlan6_name)(segment.bridge)


def _is_carried(segment: Segment, address: Address | Interface) -> bool:
    return address.version == 4 or segment.mtu >= IPV6_MTU_MIN


def _is_usable(segment: Segment, mac: bytes) -> bool:
    """Whether a MAC said to be elsewhere may be pointed there: ours would cut this host off from its own bridge."""
    return len(mac) == 6 and not mac[0] & 1 and mac not in (ZERO_MAC, segment.bridge_mac)


def _skipped(desired: Desired, unusable: Sequence[bytes], leaves_ipv6_out: bool) -> tuple[Skipped, ...]:
    skipped = []
    mtu = desired.segment.mtu
    if leaves_ipv6_out:
        text = f"an MTU of {mtu} is too small for IPv6, so IPv6 addresses of containers are left out"
        skipped.append(Skipped("mtu-below-ipv6", text, f"give the network an MTU of {IPV6_MTU_MIN} or more"))
    if unusable:
        macs = _some(sorted({mac.hex(":") for mac in unusable}))
        text = f"{macs}: not a MAC that something on another host can have, so it is left out"
        skipped.append(Skipped("unusable-mac", text, "change it on the host that has it"))
    return tuple(skipped)


def _is_over_ipv6(desired: Desired) -> bool:
    return any(peer.destination is not None and peer.destination.version == 6 for peer in desired.peers)


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
