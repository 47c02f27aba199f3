"""Routes through a graph: shortest, apart from each other, sound, and the same as the slow way finds."""

from __future__ import annotations

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.routes import ROUTE_NAMES_MAX, Edges, Graph, Route, agreed, find_routes, is_sound
from gossip.names import PeerName

A, B, C, D, E, F, G, H = (PeerName(bytes([number]) * 8) for number in range(1, 9))
NAMES = (A, B, C, D, E, F)


def mutual(graph: Graph) -> Edges:
    """Both sides say it."""
    said = {name: set(others) for name, others in graph.items()}
    for name, others in graph.items():
        for other in others:
            said.setdefault(other, set()).add(name)
    return agreed(said)


def test_the_shortest_comes_first_and_each_begins_elsewhere() -> None:
    graph = {B: (C, D), C: (D, E), D: (E,), F: (E,)}
    found = find_routes(mutual(graph), A, E, {B: 1.0, C: 2.0}, 3)
    assert found == [Route((A, C, E)), Route((A, B, C, E))]


def test_among_equals_the_nearest_comes_first() -> None:
    graph = {B: (E,), C: (E,), D: (E,)}
    found = find_routes(mutual(graph), A, E, {B: 3.0, C: 1.0, D: 2.0}, 2)
    assert found == [Route((A, C, E)), Route((A, D, E))]


def test_only_what_both_sides_say_counts() -> None:
    assert find_routes(agreed({E: (B,), B: (E,)}), A, E, {B: 1.0}, 3) == [Route((A, B, E))]
    for graph in ({E: (B,)}, {B: (E,)}, {B: (B, E)}):
        assert find_routes(agreed(graph), A, E, {B: 1.0}, 3) == []


def test_there_is_no_way_through_ourselves_or_without_a_hop_of_ours() -> None:
    assert find_routes(agreed({B: (A,), A: (E,)}), A, E, {B: 1.0}, 3) == []
    assert find_routes(agreed({B: (E,)}), A, E, {C: 1.0}, 3) == []


def test_longer_ways_than_a_route_may_be_are_none() -> None:
    chain = (B, C, D, E, F, G, H)
    edges = mutual({one: (other,) for one, other in pairwise(chain)})
    assert [len(route) for end in chain[1:] for route in find_routes(edges, A, end, {B: 1.0}, 1)] == [3, 4, 5, 6]
    assert find_routes(edges, A, G, {B: 1.0}, 1) == []


def test_a_sound_route_has_somebody_between_and_nobody_twice() -> None:
    assert is_sound((A, B, C)) and is_sound((A, B, C, D, E, F))
    assert not is_sound((A, C)) and not is_sound((A, B, A)) and not is_sound((A, B, C, D, E, F, G)) and not is_sound(())
    assert Route((A, B, C)).back() == Route((C, B, A)) and Route((A, B, C, D)).between == (B, C)


graphs = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4).map(tuple))


@given(graphs, st.sets(st.sampled_from(NAMES[1:5])))
def test_any_graph_gives_the_shortest_sound_routes(
    graph: dict[PeerName, tuple[PeerName, ...]], direct: set[PeerName]
) -> None:
    said = {(one, other) for one, others in graph.items() for other in others if one != other}
    edges = {frozenset(pair) for pair in said if pair[::-1] in said}
    found = find_routes(agreed(graph), A, F, dict.fromkeys(direct, 1.0), 9)
    for first in direct:
        between = [name for name in NAMES[1:5] if name != first]
        ways = [
            (A, first, *rest, F)
            for length in range(ROUTE_NAMES_MAX - 2)
            for rest in permutations(between, length)
            if all(frozenset(hop) in edges for hop in zip((first, *rest), (*rest, F), strict=True))
        ]
        mine = [route for route in found if route[1] == first]
        assert [len(route) for route in mine] == ([min(map(len, ways))] if ways else [])
        assert all(tuple(route) in ways and is_sound(route) for route in mine)
    assert [len(route) for route in found] == sorted(len(route) for route in found)
