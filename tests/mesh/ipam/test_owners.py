"""Who owns what, against looking at all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.owners import Owners

PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5)


@given(st.lists(PAIRS, max_size=6), PAIRS)
def test_whoever_owns_any_of_it_is_found(said: list[list[tuple[int, int]]], asked: list[tuple[int, int]]) -> None:
    """Also where what they say overlaps."""
    rows = [(PeerName(bytes([number]) * 8), spans.normal(pairs)) for number, pairs in enumerate(said)]
    slots = spans.normal(asked)
    slow = {peer for peer, owned in rows if spans.both(owned, slots)}
    assert set(Owners(rows).of(slots)) == slow
