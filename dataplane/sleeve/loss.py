"""How large a record may be, from how much is lost on the way.

A record that lost more datagrams than its parity is lost whole, so large records turn rare single losses into holes of
64 KiB. Pure: reports in, a shape out. The one idea: it is not lost datagrams that hurt a stream of TCP but the number
of times it must recover, so what is held low is lost records for each byte, and the price is paid in parity and in
seals per byte, as little as the measured loss asks for.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Shape(NamedTuple):
    """Of the records to one peer."""

    datagrams: int
    """At most so many with data."""
    parity: int
    """And so many more, of which as many may be lost. Bursts have none."""
    guarded: bool = False
    """Pieces, whether or not there is parity."""


BURST: Final = Shape(64, 0)
LADDER: Final[tuple[tuple[float, Shape], ...]] = (
    (0.0006, BURST),
    (0.003, Shape(16, 1)),
    (0.02, Shape(8, 2)),
    (0.12, Shape(4, 2)),
    (1.0, Shape(2, 2)),
)
"""Up to which share of lost datagrams each shape serves."""
MEMORY_S: Final = 4.0
"""How long a loss counts; the older, the less."""
SAMPLE_MIN: Final = 400
"""Fewer datagrams than that are taken for so many, or one lost ping would look like a bad path."""
EARLY_MAX: Final = 68
"""Pieces of a record that is not complete yet are reported as received before they are reported as sent, at most so
many; where that is forgotten, they are lost in the next report."""
GROW_BELOW: Final = 0.5
"""Records grow again when the loss is below half of what made them small."""
GUARDED: Final = Shape(64, 0, guarded=True)
"""Instead of bursts, where somebody sends from our address what is not ours: he breaks a burst with every datagram that
comes between its own, which have no header to be told by. A piece has."""
GUARD_FROM: Final = 16
"""Records that were not ours, among those that are remembered, from which on it is worth that."""
GUARD_MEMORY_S: Final = 10.0


class LossMeter:
    """Of the path to one peer."""

    def __init__(self) -> None:
        self.shape = BURST
        self._sent = 0.0
        self._lost = 0.0
        self._early = 0.0
        self._at = 0.0
        self._step = 0
        self._forged = 0.0
        self._forged_s = 0.0

    @property
    def loss(self) -> float:
        """Share of datagrams lost lately, 0 to 1."""
        return min(1.0, self._lost / max(self._sent, SAMPLE_MIN))

    def report(self, sent: int, lost: int, now: float) -> None:
        """Since the last call so many datagrams went out, and so many did not arrive (negative: late or early ones
        did)."""
        keep = max(0.0, 1.0 - (now - self._at) / MEMORY_S)
        self._at = now
        self._sent = self._sent * keep + max(0, sent)
        balance = self._lost * keep + lost - self._early
        self._lost = max(0.0, balance)
        self._early = min(EARLY_MAX, max(0.0, -balance))
        loss = self.loss
        step = next(number for number, (limit, _) in enumerate(LADDER) if loss <= limit)
        while step < self._step and loss > LADDER[self._step - 1][0] * GROW_BELOW:
            step += 1
        self._step = step
        self.shape = LADDER[step][1]
        if self.shape is BURST and self._forged and self._forgeries(now) >= GUARD_FROM:
            self.shape = GUARDED

    def disturbed(self, forged: int, now: float) -> None:
        """The other side got so many records from our address that were not as we sent them."""
        self._forged = self._forgeries(now) + forged
        self._forged_s = now

    def _forgeries(self, now: float) -> float:
        return self._forged * max(0.0, 1.0 - (now - self._forged_s) / GUARD_MEMORY_S)
