"""Who exchanges UDP with whom: told by each host, put together, and given on only when it changes."""

from __future__ import annotations

import pytest

from dataplane.sleeve.control import CONNECTING, SILENT, UP, Graph, PeerStatus
from gossip.names import PeerName
from gossip.peers import encode_links
from mesh.udpreach import UdpReach, own_page

A, B, C, D = (PeerName(bytes([number]) * 8) for number in range(1, 5))
ALL = frozenset({A, B, C, D})


def row(name: PeerName, state: str = UP, via: tuple[PeerName, ...] = ()) -> PeerStatus:
    return PeerStatus(name, state, None, True, "aes-256-gcm", 0.0, None, 0.0, 64, 0, (), via)


def test_a_host_tells_of_neighbours_that_are_reached_without_help() -> None:
    seen = {A: row(A), B: row(B, SILENT), C: row(C, via=(A,)), D: row(D)}
    assert own_page([D, C, B, A], seen) == encode_links([A, D])
    assert own_page([A, B], {A: row(A), B: row(B, CONNECTING), D: row(D)}) == encode_links([A])
    assert own_page([A], {}) == encode_links([])


def test_the_graph_is_the_same_object_while_nothing_changes() -> None:
    reach = UdpReach()
    assert reach.take_untrusted(A, encode_links([B])) and reach.take_untrusted(B, encode_links([])) is False
    graph = reach.graph(ALL)
    assert graph == Graph(((A, (B,)),))
    assert not reach.take_untrusted(A, encode_links([B]))
    assert reach.graph(frozenset(ALL)) is graph
    assert reach.take_untrusted(B, encode_links([C]))
    assert reach.graph(ALL) == Graph(((A, (B,)), (B, (C,))))


def test_hosts_out_of_reach_pass_nothing_on() -> None:
    reach = UdpReach()
    reach.take_untrusted(A, encode_links([B]))
    reach.take_untrusted(C, encode_links([B]))
    assert reach.graph({A, B}) == Graph(((A, (B,)),))
    reach.forget(A)
    assert reach.graph(ALL) == Graph(((C, (B,)),))


@pytest.mark.parametrize("body", [b"\xc1", b"\x91\x01", b"\xff" * 20, encode_links([A])[:-1]])
def test_nonsense_is_counted_and_changes_nothing(body: bytes) -> None:
    reach = UdpReach()
    reach.take_untrusted(A, encode_links([B]))
    assert not reach.take_untrusted(A, body)
    assert reach.malformed == 1 and reach.graph(ALL) == Graph(((A, (B,)),))
