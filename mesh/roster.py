"""What the sleeve worker was told of other hosts, and what it must still be told.

Knows nothing of sockets or processes: the supervisor writes whatever `pending` returns. The one idea: a connection to a
worker begins with everything and goes on with what changed: a peer that is new or somewhere else whole, else the MACs
that came and went behind it, which are found in the groups that are not the same object any more. A worker left by an
earlier life of the daemon knows more than a daemon that has just started, so such a one is told nothing until the
mesh's state is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dataplane.desired import Group
from dataplane.sleeve.control import Complete, Forget, Graph, Macs, Message, Peer
from gossip.names import PeerName


@dataclass(frozen=True, slots=True)
class Entry:
    """One other host as the worker should know it."""

    peer: Peer
    """With its bridge's MAC alone, which it has whether the host is exposed, and so among its endpoints, or not."""
    groups: tuple[Group, ...] = ()
    """Its endpoints, as in the `Desired` of the same moment: no MAC is there twice."""

    def whole(self) -> Peer:
        return replace(self.peer, macs=tuple(dict.fromkeys((*self.peer.macs, *_macs(self.groups)))))


class Roster:
    """The peers of one worker after another."""

    def __init__(self) -> None:
        self._wanted: Mapping[PeerName, Entry] = {}
        self._graph = Graph(())
        self._told_graph: Graph | None = Graph(())
        self._told: dict[PeerName, Entry] = {}
        self._is_settled = False
        self._is_complete = False
        """The worker has heard that these are all."""
        self._is_adopted = False

    def want(self, peers: Mapping[PeerName, Entry], graph: Graph, settled: bool) -> None:
        """What the worker should know from now on. `settled`: these are all that there are."""
        self._wanted = peers
        self._graph = graph
        self._is_settled = settled

    def begin(self, *, adopted: bool) -> None:
        """Another worker listens: one that knows nothing, or one that knows what an earlier life told it."""
        self._told = {}
        self._told_graph = None if adopted else Graph(())
        self._is_complete = False
        self._is_adopted = adopted

    def pending(self) -> list[Message]:
        """What to say now, and taken for said."""
        if self._is_adopted and not self._is_settled:
            return []
        messages: list[Message] = []
        for name, entry in sorted(self._wanted.items()):
            told = self._told.get(name)
            if told is None or told.peer != entry.peer:
                messages.append(entry.whole())
            elif told is not entry and (change := _difference(told, entry)) is not None:
                messages.append(change)
        messages += [Forget(name) for name in sorted(self._told) if name not in self._wanted]
        self._told = dict(self._wanted)
        if self._graph != self._told_graph:
            messages.append(self._graph)
            self._told_graph = self._graph
        if self._is_settled and not self._is_complete:
            messages.append(Complete())
            self._is_complete = True
        return messages


def _difference(told: Entry, entry: Entry) -> Macs | None:
    """What came and went behind one host, by a look into the groups that are not the same ones."""
    always = entry.peer.macs
    before, after = {id(group) for group in told.groups}, {id(group) for group in entry.groups}
    left = set(_macs(group for group in told.groups if id(group) not in after)).difference(always)
    new = set(_macs(group for group in entry.groups if id(group) not in before)).difference(always)
    if left == new:
        return None
    return Macs(entry.peer.name, tuple(sorted(new - left)), tuple(sorted(left - new)))


def _macs(groups: Iterable[Group]) -> list[bytes]:
    return [endpoint.mac for group in groups for endpoint in group]
