"""Who is in reach: pure functions of who claims a link with whom.

A peer is reachable when a chain of claims leads to it: we have a link with A, A says it has one with B. What a peer
says of its own links counts only once it is reached itself, so a dead peer's old claims change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gossip.names import PeerName


def reachable_from(
    neighbours: Iterable[PeerName], claims: Mapping[PeerName, tuple[PeerName, ...]], departed: frozenset[PeerName]
) -> frozenset[PeerName]:
    """Every peer that a chain of links leads to, beginning with our own `neighbours`. `departed` are never reached."""
    reached: set[PeerName] = set()
    frontier = [name for name in neighbours if name not in departed]
    while frontier:
        name = frontier.pop()
        if name not in reached:
            reached.add(name)
            frontier.extend(other for other in claims.get(name, ()) if other not in reached and other not in departed)
    return frozenset(reached)


def links_wanted(peers: int) -> tuple[int, int]:
    """How many links a host should have at least and at most in a mesh of `peers` hosts, itself included.

    About log2(n): a random graph of that degree stays connected when hosts fail, and one change crosses it in a few
    hops. Between the two bounds nothing is done, so links do not flap."""
    low = max(2, (peers - 1).bit_length())
    return low, low + 4
