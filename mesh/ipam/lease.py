"""Until when, and from which slots, this host may give: what enough voters have confirmed, and nothing else.

An owner says in each statement which slots it owns and which of them it may give before the next. Once a blocking set
of voters holds that statement on disk, the owner may give those slots until *T* + lease - margin, where *T* is when it
said it, on a clock that runs while the machine sleeps. A slot that a later statement left out may not be given even
though an earlier one is confirmed: a voter may know only the later one by now. Knows nothing of what slots are for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from mesh.ipam import spans
from mesh.ipam.charter import Charter, Seat, blocking_of
from mesh.ipam.spans import Spans

DRIFT = 0.002
"""By how much the clocks of two hosts may run apart, and more than twenty times what bad ones do."""
MARGIN_S = 1.0
OUTSTANDING_MAX = 64


def owner_limit_s(lease_s: float) -> float:
    """For how long after its statement an owner may give."""
    return max(0.0, lease_s * (1 - DRIFT) - min(MARGIN_S, lease_s / 10))


def voter_limit_s(lease_s: float) -> float:
    """For how long after its receipt a voter does not vote for taking the owner's slots."""
    return lease_s * (1 + DRIFT) + MARGIN_S


@dataclass(frozen=True, slots=True)
class _Said:
    sequence: int
    at: float
    slots: Spans
    """Owned, and in use or announced."""
    owned: Spans
    voters: tuple[Seat, ...]
    lease_s: float


class Lease:
    """This life's statements, and which of them are confirmed. After a start there are none."""

    def __init__(self) -> None:
        self._said: deque[_Said] = deque()
        """The newest confirmed one, if any is, and all after it."""
        self._confirmed = False
        self._may: Spans = spans.NONE
        self.until = 0.0
        """When what is confirmed ends, on the clock that `say` was given."""

    @property
    def is_full(self) -> bool:
        return len(self._said) >= OUTSTANDING_MAX

    @property
    def confirmed_owned(self) -> Spans:
        """What the newest confirmed statement says that we own."""
        return self._said[0].owned if self._confirmed else spans.NONE

    def say(self, sequence: int, now: float, slots: Spans, owned: Spans, charter: Charter) -> None:
        self._said.append(_Said(sequence, now, slots, owned, charter.voters, charter.lease_s))
        if len(self._said) > OUTSTANDING_MAX:  # an unconfirmed one in the middle is as good as its successor
            first = self._said.popleft()
            second = self._said.popleft()
            kept = spans.both(first.slots, second.slots)
            if self._confirmed:
                self._said.appendleft(replace(first, slots=kept))
            else:
                self._said.appendleft(second)
        self._settle()

    def hear(self, held: Callable[[Seat], int]) -> bool:
        """`held`: the sequence of our statement that a voter holds, 0 for none. Whether that confirms a newer one. What
        is newer than all that we said was said by a copy of our state directory: it confirms nothing of ours."""
        newest = self._said[-1].sequence if self._said else 0
        for at in range(len(self._said) - 1, 0 if self._confirmed else -1, -1):
            said = self._said[at]
            if sum(said.sequence <= held(seat) <= newest for seat in said.voters) >= blocking_of(said.voters):
                for _ in range(at):
                    self._said.popleft()
                self._confirmed = True
                self.until = said.at + owner_limit_s(said.lease_s)
                self._settle()
                return True
        return False

    @property
    def slots(self) -> Spans:
        """What may be given while the lease lasts."""
        return self._may

    def may_give(self, slot: int, now: float) -> bool:
        return now < self.until and spans.holds(self._may, slot)

    def renewed_at(self) -> float | None:
        """When the newest statement was said."""
        return self._said[-1].at if self._said else None

    def end(self) -> None:
        """Nothing that was said counts any more."""
        self._said.clear()
        self._confirmed = False
        self.until = 0.0
        self._settle()

    def _settle(self) -> None:
        may = self._said[0].slots if self._confirmed else spans.NONE
        for said in list(self._said)[1:] if self._confirmed else ():
            if said.slots != may:
                may = spans.both(may, said.slots)
        self._may = may
