"""Keeps Python's collector of cycles out of what the daemon knows.

What a large mesh is to us is millions of small values, none of them part of a cycle. The collector would look at all of
them whenever they have grown by a quarter, and again when enough came and went: half a second at 100,000 endpoints, in
which nothing else runs. Knows nothing of what the values are. The one idea: when there are many more than ever before,
those that have lasted are put where the collector does not look; counting references frees them all the same.
"""

from __future__ import annotations

import gc
from typing import Final

GENERATIONS: Final = (10_000, 10, 50)
"""Thresholds of the collector: 100,000 endpoints that arrive are then looked at once or twice instead of 15 times."""
GROWTH: Final = 1.25
SIZE_MIN: Final = 1000
"""Rows below which it is not worth a thought."""


class Heap:
    """One for the process."""

    def __init__(self) -> None:
        gc.set_threshold(*GENERATIONS)
        self._largest = float(SIZE_MIN)

    def settle(self, size: int) -> bool:
        """`size`: rows that the daemon knows of now. To be asked now and then; whether anything was done.

        A cycle that is garbage at this moment stays for ever; that is why it is not done at every growth, and why the
        young are looked at first."""
        if size < self._largest:
            return False
        self._largest = size * GROWTH
        gc.collect(1)
        gc.freeze()
        return True
