"""What the sleeve worker was told of other hosts, and what it must still be told.

Knows nothing of sockets or processes: the supervisor writes whatever `pending` returns. The one idea: a connection to a
worker begins with everything and goes on with whole peers that changed. A worker left by an earlier life of the daemon
knows more than a daemon that has just started, so such a one is told nothing until the mesh's state is in.
"""

from __future__ import annotations

from collections.abc import Mapping

from dataplane.sleeve.control import Complete, Forget, Graph, Message, Peer
from gossip.names import PeerName


class Roster:
    """The peers of one worker after another."""

    def __init__(self) -> None:
        self._wanted: Mapping[PeerName, Peer] = {}
        self._graph = Graph(())
        self._told_graph = Graph(())
        self._told: dict[PeerName, Peer] = {}
        self._is_settled = False
        self._is_complete = False
        """The worker has heard that these are all."""
        self._is_adopted = False

    def want(self, peers: Mapping[PeerName, Peer], graph: Graph, settled: bool) -> None:
        """What the worker should know from now on. `settled`: these are all that there are."""
        self._wanted = peers
        self._graph = graph
        self._is_settled = settled

    def begin(self, *, adopted: bool) -> None:
        """Another worker listens: one that knows nothing, or one that knows what an earlier life told it."""
        self._told = {}
        self._told_graph = Graph(())
        self._is_complete = False
        self._is_adopted = adopted

    def pending(self) -> list[Message]:
        """What to say now, and taken for said."""
        if self._is_adopted and not self._is_settled:
            return []
        messages: list[Message] = []
        for name, peer in sorted(self._wanted.items()):
            told = self._told.get(name)
            if told is not peer and told != peer:
                messages.append(peer)
        messages += [Forget(name) for name in sorted(self._told) if name not in self._wanted]
        self._told = dict(self._wanted)
        if self._graph != self._told_graph:
            messages.append(self._graph)
            self._told_graph = self._graph
        if self._is_settled and not self._is_complete:
            messages.append(Complete())
            self._is_complete = True
        return messages
