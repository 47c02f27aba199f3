"""Other hosts whose documents arrive at a router as gossip would bring them: no sockets, no clock."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

from dataplane.desired import Desired, Port
from gossip.documents import sign_page
from gossip.events import PageChanged
from gossip.identity import Identity
from gossip.names import PeerName
from gossip.node import Node, NodeConfig
from gossip.pages import TablePager
from gossip.peers import LIVE, PEER_TABLE, PeerRecord, encode_peer
from mesh.endpoints import ENDPOINTS_TABLE, Binding, Endpoint, derive_mac, encode_row
from mesh.forwarding import Local, Path
from mesh.router import Router

OWN = Identity(b"\x00" * 32, b"\x00" * 32)
X = ip_address("10.32.0.1")
ATTRIBUTES: dict[str, Any] = {
    "mtu": 1450, "vxlan": True, "vxlan_port": 6784, "advertise": False, "sleeve_key": b"\x07" * 32,
}  # fmt: skip


class Host:
    """Another member: its documents arrive as gossip would bring them."""

    def __init__(self, number: int) -> None:
        self.identity = Identity(bytes([number]) * 32, bytes(32))
        self.name = self.identity.name
        self.record = PeerRecord(f"h{number}", bytes(16), LIVE, "0", (f"10.9.0.{number}:6783",), ATTRIBUTES)
        self.endpoints: list[Endpoint] = []
        self.version = 0

    def page(self, table: str, index: int, body: bytes) -> bytes:
        self.version += 1
        return sign_page(self.identity, table, index, 1, self.version, body).raw


class Here:
    """A router around a node, and the hosts that it hears of."""

    def __init__(self, own_mtu: int = 8950, adopted_mtu: int | None = None, secret: bool = False) -> None:
        record = PeerRecord("me", bytes(16), LIVE, "0", (), {})
        self.node = Node(OWN, record, 1, NodeConfig(), Random(1), 0.0)
        self.router = Router(self.node, own_mtu, 0.0, adopted_mtu)
        self.local = Local(OWN.name, secret, True, 6784, (ip_network("10.9.0.0/24"),))
        self.told: list[tuple[PeerName, Path]] = []
        self.fixed_mtu: int | None = None
        self.ports: tuple[Port, ...] = ()
        self.vxlan_faults: dict[PeerName, str] = {}
        """Over IPv4."""
        self.vxlan6_faults: dict[PeerName, str] = {}

    def hear(self, host: Host, now: float = 0.0, age_s: int = 0) -> bool:
        """All documents of a host arrive; whether the router says that something may have changed."""
        raws = [(PEER_TABLE, 0, host.page(PEER_TABLE, 0, encode_peer(host.record)))]
        pager = TablePager()
        for number, endpoint in enumerate(host.endpoints):
            pager.put(str(number), encode_row(endpoint))
        body = pager.body(0) if host.endpoints else b""
        raws.append((ENDPOINTS_TABLE, 0, host.page(ENDPOINTS_TABLE, 0, body)))
        changed = []
        for table, index, raw in raws:
            self.node.replica.take_untrusted(raw, age_s, now)
            changed.append(self.router.take(PageChanged(host.name, table, index)))
        return any(changed)

    def reach(self, *hosts: Host, now: float = 0.0) -> None:
        self.node.replica.update_reach([host.name for host in hosts], now)

    def desired(self, now: float = 1.0, settled: bool = True) -> Desired:
        return self.router.refresh(
            self.local, self.ports, self.fixed_mtu, now, 1000.0 + now, settled,
            {4: self.vxlan_faults, 6: self.vxlan6_faults}, lambda *row: self.told.append(row),
        )  # fmt: skip


def attached(host: Host, claim: int = 1, address: str = "10.32.0.1") -> Endpoint:
    ip = ip_address(address)
    return Endpoint(host.name, "c1", derive_mac("weft", ip), (Binding(ip, 16, claim),))
