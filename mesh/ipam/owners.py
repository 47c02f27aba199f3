"""Who owns what, of everybody at once, so that one question does not look at all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from gossip.names import PeerName
from mesh.ipam.spans import Spans


class Owners:
    """Spans with their owners, as they are said; they may overlap."""

    def __init__(self, said: Iterable[tuple[PeerName, Spans]]) -> None:
        self._rows = sorted((start, end, peer) for peer, owned in said for start, end in owned)
        self._highest = list(accumulate((end for _, end, _ in self._rows), max))
        """The highest end of a row and all before it."""

    def of(self, slots: Spans) -> Iterator[PeerName]:
        """Who owns any of these; somebody may come more than once."""
        for start, end in slots:
            at = bisect_left(self._rows, (end,)) - 1  # the last that begins before our end
            while at >= 0 and self._highest[at] > start:
                if self._rows[at][1] > start:
                    yield self._rows[at][2]
                at -= 1
