"""Who exchanges UDP with whom: what each host's worker has seen of those it has links with, told to everybody.

Pure. The one idea: hosts that no datagram joins directly need others between, and only what was seen to pass makes a
good hop; links are few for each host and join all of them, so telling which links pass UDP is little to say and enough
to find a way from anywhere to anywhere. The finding is the worker's (`dataplane.sleeve.routes`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dataplane.sleeve.control import UP, Graph, PeerStatus
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.peers import decode_links_untrusted, encode_links

UDP_TABLE = "udp"
"""One page for each host: a msgpack list of names, as that of its links."""


class UdpReach:
    """What all hosts have said."""

    def __init__(self) -> None:
        self.malformed = 0
        self._edges: dict[PeerName, tuple[PeerName, ...]] = {}
        self._graph = Graph(())
        self._is_fresh = True
        self._among: frozenset[PeerName] = frozenset()

    def take_untrusted(self, owner: PeerName, body: bytes) -> bool:
        """One host's page; whether it says something new."""
        try:
            names = decode_links_untrusted(body)
        except ProtocolError:
            self.malformed += 1
            return False
        if self._edges.get(owner, ()) == names:
            return False
        self._edges[owner] = names
        self._is_fresh = False
        return True

    def forget(self, owner: PeerName) -> None:
        if self._edges.pop(owner, None):
            self._is_fresh = False

    def graph(self, among: Collection[PeerName]) -> Graph:
        """What the worker should know; hosts out of reach pass nothing on. The same object while nothing changes."""
        if not self._is_fresh or self._among != among:
            self._among, self._is_fresh = frozenset(among), True
            edges = tuple((name, names) for name, names in sorted(self._edges.items()) if names and name in among)
            if edges != self._graph.edges:
                self._graph = Graph(edges)
        return self._graph


def own_page(neighbours: Iterable[PeerName], seen: Mapping[PeerName, PeerStatus]) -> bytes:
    """What this host says: those of its link neighbours that its worker exchanges datagrams with directly."""
    passing = [name for name in sorted(neighbours) if (row := seen.get(name)) and row.state == UP and not row.via]
    return encode_links(passing)
