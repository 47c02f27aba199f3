"""Ways to a host through others: along pairs of hosts that are known to pass UDP, shortest first.

Pure and without memory: a graph in, routes out; who passes UDP is found by the workers and told by the daemons. The one
idea: a route names every host on it, from the first to the last, and each hop only steps one further along it. So no
hop decides anything, two that disagree about the graph do no harm, and nothing can go round in circles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from gossip.names import PeerName

ROUTE_NAMES_MAX: Final = 6
"""Both ends included: four hosts between. A graph of few random links per host is hardly ever wider."""

Graph = Mapping[PeerName, Collection[PeerName]]
"""Of each host, whom it says to exchange UDP with directly."""
Edges = Mapping[PeerName, Sequence[PeerName]]
"""The same, as far as both sides say it."""


class Route(tuple[PeerName, ...]):
    """The names from one end to the other. Stands in the place of an address, where a peer is reached that way."""

    __slots__ = ()

    def back(self) -> Route:
        """The same way in the other direction."""
        return Route(reversed(self))

    @property
    def between(self) -> tuple[PeerName, ...]:
        """Those who pass it on."""
        return self[1:-1]


def is_sound(names: tuple[PeerName, ...]) -> bool:
    """Whether these names can be a route: two ends, somebody between, nobody twice."""
    return 3 <= len(names) <= ROUTE_NAMES_MAX and len(set(names)) == len(names)


def agreed(graph: Graph) -> Edges:
    """Of what hosts say, that which both sides say: so nobody makes himself everybody's neighbour."""
    said = {name: frozenset(others) for name, others in graph.items()}
    return {
        name: tuple(sorted(other for other in others if other != name and name in said.get(other, ())))
        for name, others in said.items()
    }


def find_routes(
    edges: Edges, us: PeerName, them: PeerName, direct: Mapping[PeerName, float], limit: int
) -> list[Route]:
    """At most `limit` routes, each by another first hop, the shortest first and among equals those whose first hop is
    the nearest. `direct`: the peers that we reach directly now, and their round trip in ms. The search goes back from
    them, a hop at a time, and no further than it must: mostly to the neighbours of their neighbours."""
    onward: dict[PeerName, PeerName] = {us: us}
    """By host: the next one on its shortest way to them."""
    found: list[PeerName] = []
    level = [them]
    for _ in range(ROUTE_NAMES_MAX - 2):
        reached: list[PeerName] = []
        for name in level:
            for neighbour in edges.get(name, ()):
                if neighbour not in onward and neighbour != them:
                    onward[neighbour] = name
                    reached.append(neighbour)
        found += sorted((name for name in reached if name in direct), key=lambda name: (direct[name], name))
        if len(found) >= limit or not reached:
            break
        level = reached
    routes = []
    for name in found[:limit]:
        names = [us, name]
        while names[-1] != them:
            names.append(onward[names[-1]])
        routes.append(Route(names))
    return routes
