"""Reach, beside the slowest way of finding it out; and how many links a host should have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossip.names import PeerName
from gossip.routes import links_wanted, reachable_from

NAMES = [PeerName(bytes([number] * 8)) for number in range(8)]
names = st.sampled_from(NAMES)
claims = st.dictionaries(names, st.lists(names, max_size=4).map(tuple))


def reached_step_by_step(
    neighbours: list[PeerName], said: dict[PeerName, tuple[PeerName, ...]], departed: frozenset[PeerName]
) -> set[PeerName]:
    """As often as there are peers: whoever is claimed by somebody in reach is in reach."""
    reached = set(neighbours) - departed
    for _ in NAMES:
        reached |= {claimed for name in reached for claimed in said.get(name, ())} - departed
    return reached


@given(st.lists(names, max_size=3), claims, st.frozensets(names, max_size=3))
def test_reach_is_what_chains_of_claims_lead_to(
    neighbours: list[PeerName], said: dict[PeerName, tuple[PeerName, ...]], departed: frozenset[PeerName]
) -> None:
    assert reachable_from(neighbours, said, departed) == reached_step_by_step(neighbours, said, departed)


def test_what_a_dead_peer_once_said_leads_nowhere() -> None:
    """Nobody claims B any more, so that B's old claim of C counts for nothing."""
    a, b, c = NAMES[:3]
    assert reachable_from([a], {a: (b,), b: (c,)}, frozenset()) == {a, b, c}
    assert reachable_from([a], {a: (), b: (c,), c: (b,)}, frozenset()) == {a}


def test_a_departed_peer_is_no_bridge() -> None:
    a, b, c = NAMES[:3]
    assert reachable_from([a], {a: (b,), b: (c,)}, frozenset([b])) == {a}
    assert reachable_from([a], {a: (b,)}, frozenset([a])) == frozenset()


@given(st.integers(1, 10_000))
def test_links_grow_as_the_logarithm(peers: int) -> None:
    """Enough that a random mesh of that degree holds together, far from everybody with everybody."""
    low, high = links_wanted(peers)
    assert low >= 2 and 2 ** (low - 1) < max(peers, 3) <= 2 ** (low + 1)
    assert low < high <= low + 4
    assert links_wanted(peers + 1) >= (low, high)


def test_a_hundred_hosts_need_few_links() -> None:
    assert links_wanted(100) == (7, 11)
    assert links_wanted(1) == (2, 6)
