"""The router's mind: what the node hears and what is attached here becomes paths, an MTU and one desired kernel state.

No sockets, no kernel, no disk: the daemon feeds it events and takes values out. All that it remembers beyond the node's
documents is what must not flap: each peer's path and since when, and the network's MTU, which grows only after a
launch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from dataplane.desired import SLEEVE, VXLAN, Address, Desired, Exposed, Port, Segment
from dataplane.sleeve.control import Graph, Peer, PeerStatus
from gossip.events import Event, OwnerForgotten, PageChanged
from gossip.names import PeerName
from gossip.node import Node
from gossip.peers import GONE
from mesh.endpoints import ENDPOINTS_TABLE, Endpoint, EndpointTable, bridge_mac
from mesh.forwarding import (
    HOLD_S,
    VXLAN_OVERHEAD_V4_BYTES,
    VXLAN_OVERHEAD_V6_BYTES,
    Forwarding,
    Local,
    Path,
    Remote,
    choose_path,
    held_exposed,
    host_of,
    network_mtu,
    own_mtu,
    path_ceiling,
    sleeve_addresses,
    spare_destination,
)
from mesh.identity import sleeve_key_of
from mesh.pathmtu import Way
from mesh.roster import Entry
from mesh.udpreach import UDP_TABLE, UdpReach

BRIDGE = "weft"
VNI = 0x776566
"""The default network's VXLAN network identifier: the letters "wef"."""
HISTORY_MAX = 256
GROW_S = 10.0
"""The network's MTU may grow for so long after a daemon was launched, here or elsewhere: time enough to measure the
paths there. All hosts hear of the launch, so all grow alike."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the data path was seen to do."""

    vxlan_faults: Mapping[int, Mapping[PeerName, str]] = field(default_factory=dict)
    """What probes say against VXLAN, as reasons, by IP version."""
    vxlan_answers: Callable[[PeerName, int], bool] = lambda *_: False
    """Whether probes to that peer were answered by VXLAN over that IP version."""
    sleeve: Mapping[PeerName, PeerStatus] = field(default_factory=dict)
    """What the worker says of each."""


@dataclass(frozen=True, slots=True)
class PathChange:
    """One entry of the report's history."""

    at_unix_s: float
    peer: PeerName
    path: Path


class Router:
    """Built around a node; `refresh` turns everything known into what the kernel should hold."""

    def __init__(self, node: Node, own_mtu: int, started: float, adopted_mtu: int | None) -> None:
        """`own_mtu` is the largest overlay packet that this host's underlay takes; `adopted_mtu` that of a bridge left
        by an earlier life of the daemon, which is not exceeded until the mesh's state is in."""
        self.node = node
        self.table = EndpointTable()
        self.own_mtu = own_mtu
        self.own_mtu_over_ipv6 = own_mtu
        """The same where packets go by VXLAN over IPv6; not larger."""
        self.is_over_ipv6 = False
        """Frames go to somebody by VXLAN over IPv6, or did: from then on the network's MTU must fit that."""
        self.mtu = min(own_mtu, adopted_mtu or own_mtu)
        self.paths: dict[PeerName, Path] = {}
        self.since: dict[PeerName, float] = {}
        self.history: deque[PathChange] = deque(maxlen=HISTORY_MAX)
        self.malformed_rows = 0
        self.peer_macs: frozenset[bytes] = frozenset()
        """The bridges that data-path pings may come from."""
        self.sleeve_peers: dict[PeerName, Entry] = {}
        """What the sleeve worker should know of other hosts, whatever their path."""
        self.reach = UdpReach()
        self.graph = Graph(())
        """What the worker should know of who exchanges UDP with whom."""
        self.probed: Mapping[int, frozenset[PeerName]] = {4: frozenset(), 6: frozenset()}
        """By IP version, peers in reach to which VXLAN leads there, or would: those whose silence means something."""
        self.lost: frozenset[PeerName] = frozenset()
        """Peers out of reach that VXLAN knows an address of either version of: one may be why they are out of reach."""
        self.macs_over_ipv6: frozenset[bytes] = frozenset()
        """The bridges that probes over IPv6 can be answered to."""
        self._forwarding = Forwarding()
        self._started = started
        self.path_mtus: Mapping[int, Mapping[PeerName, int]] = {}
        """By IP version, the largest overlay packet that the path to a peer takes in one piece, as measured."""
        self._entered: Mapping[int, Mapping[PeerName, Address]] = {4: {}, 6: {}}
        """By IP version, where VXLAN sends or would send."""
        self._instances: dict[PeerName, bytes] = {}
        """Each start of a daemon has another one."""
        self._grows_until_s = float("-inf")

    def take(self, event: Event) -> bool:
        """One event of the node; whether the desired state may have changed."""
        match event:
            case PageChanged(owner, table, index):
                page = self.node.replica.store.get((owner, table, index))
                if table == UDP_TABLE:
                    return page is not None and self.reach.take_untrusted(owner, page.body)
                if table != ENDPOINTS_TABLE:
                    return False
                if page is not None:
                    self.malformed_rows += self.table.replace_page(owner, index, page.body)
            case OwnerForgotten(owner):
                self.table.forget(owner)
                self.reach.forget(owner)
        return True

    def is_settled(self, now: float, limit_s: float) -> bool:
        """Whether what we know of other hosts is all there is to know, or we have waited long enough for it."""
        return self.node.settled or now - self._started >= limit_s

    def others(self) -> list[PeerName]:
        """Every other peer that is part of the mesh, in reach or not."""
        return sorted(n for n, r in self.node.replica.peers.items() if n != self.node.name and r.state != GONE)

    def unreachable_s(self, peer: PeerName, now: float) -> float:
        return 0.0 if peer in self.node.replica.reachable else now - self.node.replica.unreachable_since.get(peer, now)

    def expired(self, now: float) -> frozenset[PeerName]:
        """Owners whose endpoints do not count any more: removed, or out of reach for too long."""
        return frozenset(
            name
            for name, record in self.node.replica.peers.items()
            if record.state == GONE or self.unreachable_s(name, now) >= HOLD_S
        )

    def lost_macs(self, now: float) -> list[Endpoint]:
        """Our own endpoints whose MAC belongs to another host's: they need a new one."""
        expired = self.expired(now)
        return [
            endpoint
            for endpoint in self.table.of(self.node.name)
            if self.table.is_contested(endpoint) and self.table.mac_holder(endpoint.mac, expired) is not endpoint
        ]

    def owner_of(self, mac: bytes) -> PeerName | None:
        """The other host behind which an endpoint's MAC is."""
        holder = self.table.mac_holder(mac)
        return holder.owner if holder is not None and holder.owner != self.node.name else None

    def ways(self, underlay_mtu: int) -> dict[int, dict[PeerName, Way]]:
        """By IP version, where VXLAN would send to those who are probed, and what the underlays at both ends take."""
        ways: dict[int, dict[PeerName, Way]] = {}
        for version, names in self.probed.items():
            ways[version] = {}
            for name in names:
                destination, record = self._entered[version][name], self.node.replica.peers[name]
                ceiling = path_ceiling(underlay_mtu, record, destination)
                told = record.attributes.get("mtu")
                ways[version][name] = Way(destination, ceiling, record.instance, told if isinstance(told, int) else 0)
        return ways

    def find_peer(self, text: str) -> list[PeerName]:
        """Other peers that go by this name or nickname."""
        from_text = [n for n in self.others() if n.hex(":") == text.lower()]
        return from_text or [n for n in self.others() if self.node.replica.peers[n].nickname == text]

    def refresh(
        self,
        local: Local,
        ports: tuple[Port, ...],
        fixed_mtu: int | None,
        now: float,
        unix_now: float,
        settled: bool,
        seen: Seen,
        on_path: Callable[[PeerName, Path], None],
        exposed: tuple[Exposed, ...] = (),
    ) -> Desired:
        """Decide every path and the MTU anew and build the desired state, and what the worker should know beside it.
        `on_path` hears which paths changed."""
        links = {link.peer: link.remote for link in self.node.links()}
        remotes = {
            name: Remote(
                record=self.node.replica.peers[name],
                reachable=name in self.node.replica.reachable,
                unreachable_s=self.unreachable_s(name, now),
                link_address=host_of(links.get(name)),
                vxlan_faults={version: faults[name] for version, faults in seen.vxlan_faults.items() if name in faults},
                vxlan_answers=frozenset(version for version in (4, 6) if seen.vxlan_answers(name, version)),
                sleeve=seen.sleeve.get(name),
            )
            for name in self.others()
        }
        paths: dict[PeerName, Path] = {}
        for name, remote in remotes.items():
            before = self.paths.get(name)
            path = choose_path(local, remote, before)
            if before is not None and path == before:
                paths[name] = before  # the same object: nobody need compare what hangs on it
                continue
            paths[name] = path
            self.since[name] = unix_now
            self.history.append(PathChange(unix_now, name, path))
            on_path(name, path)
        if paths.keys() != self.paths.keys():
            self.since = {name: self.since[name] for name in paths}
            self.peer_macs = frozenset(map(bridge_mac, paths))
        self.paths = paths
        carrying = (path.destination for path in paths.values() if path.kind == VXLAN)
        self.is_over_ipv6 = self.is_over_ipv6 or any(each is not None and each.version == 6 for each in carrying)
        self._mind_launches(remotes, now, settled)
        current = None if settled and now < self._grows_until_s else self.mtu
        self.mtu = fixed_mtu or network_mtu(self.told_mtu, remotes.values(), current)
        vxlan_port = local.vxlan_port if local.vxlan and not local.has_secret else None
        segment = Segment(
            BRIDGE, bridge_mac(local.name), self.mtu, VNI, vxlan_port, vxlan6=local.vxlan6,
            offloads_off=local.offloads_off,
        )  # fmt: skip
        expired = self.expired(now)
        found = {name: spare_destination(local, remote, paths[name]) for name, remote in remotes.items()}
        spares = {name: spare for name, spare in found.items() if spare is not None}
        desired = self._forwarding.desired(segment, ports, paths, self.table, local.name, expired, settled, spares)
        desired = replace(desired, exposed=held_exposed(exposed, self.table, local.name, expired))
        self._describe_sleeve(local, remotes, expired, links.keys())
        self._describe_probes(remotes, spares)
        self.graph = self.reach.graph(self.node.replica.reachable | {self.node.name})
        return desired

    def _mind_launches(self, remotes: Mapping[PeerName, Remote], now: float, settled: bool) -> None:
        """Not before the mesh's state is in: the narrow member may just not have been heard yet."""
        if not settled:
            return
        before = self._instances
        self._instances = {name: remote.record.instance for name, remote in remotes.items()}
        self._instances[self.node.name] = self.node.replica.peers[self.node.name].instance
        if any(before.get(name) != instance for name, instance in self._instances.items()):
            self._grows_until_s = now + GROW_S

    @property
    def told_mtu(self) -> int:
        """What this host tells others that it takes: what its own underlay does, or less by a path that is in use."""
        underlay = min(self.own_mtu, self.own_mtu_over_ipv6) if self.is_over_ipv6 else self.own_mtu
        return own_mtu(underlay, (self.path_mtu(name) for name in {*chain(*self.path_mtus.values())}))

    def path_mtu(self, peer: PeerName) -> int | None:
        """What was measured of the path in use; before that is known, of the one over IPv4."""
        found = {version: sizes[peer] for version, sizes in self.path_mtus.items() if peer in sizes}
        path = self.paths.get(peer)
        if path is not None:
            return found.get(path.destination.version) if path.destination is not None else None
        return found.get(4, found.get(6))

    def probe_bytes(self, version: int) -> int:
        """How large a packet must get through by VXLAN over that IP version. While nothing goes over IPv6 that is what
        the network's MTU would become if it did."""
        is_spare = version == 6 and not self.is_over_ipv6
        return self.mtu - (VXLAN_OVERHEAD_V6_BYTES - VXLAN_OVERHEAD_V4_BYTES) * is_spare

    def _describe_sleeve(
        self,
        local: Local,
        remotes: Mapping[PeerName, Remote],
        expired: frozenset[PeerName],
        linked: Collection[PeerName],
    ) -> None:
        """Who is told to the worker. What did not change is the same object."""
        before, self.sleeve_peers = self.sleeve_peers, {}
        for name, remote in remotes.items():
            key = sleeve_key_of(remote.record.attributes)
            if key is None or name in expired:
                continue
            path = self.paths[name]
            macs = (bridge_mac(name),)
            peer = Peer(name, key, sleeve_addresses(local, remote), macs, path.via == SLEEVE, keep=name in linked)
            entry = Entry(peer, self._forwarding.behind.get(name, ()))
            known = before.get(name)
            self.sleeve_peers[name] = known if known is not None and known == entry else entry

    def _describe_probes(self, remotes: Mapping[PeerName, Remote], spares: Mapping[PeerName, Address]) -> None:
        """Who is asked, and answered, by VXLAN over which IP version. Who has no sleeve has nothing to fall back to."""
        entered: dict[int, dict[PeerName, Address]] = {4: {}, 6: {}}
        for name, path in self.paths.items():
            for address in (path.destination, spares.get(name)):
                if address is not None:
                    entered[address.version][name] = address
        self._entered = entered
        asked = {name for name in self.sleeve_peers if remotes[name].reachable}
        self.probed = {version: frozenset(names.keys() & asked) for version, names in entered.items()}
        self.lost = frozenset((entered[4].keys() & entered[6].keys() & self.sleeve_peers.keys()) - asked)
        self.macs_over_ipv6 = frozenset(map(bridge_mac, entered[6]))
