"""One peer's proposals: a ballot from its first promise to the decision.

Phase 1 asks a majority to promise; whatever one of them has accepted under the highest ballot must be proposed again,
else the value is ours to choose, from what they reported. Phase 2 asks them to accept it. Votes are read from pages, so
nothing is ever sent twice and everything may come late. Knows nothing of what a value means; who counts is told to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from random import Random

from gossip.names import PeerName
from mesh.ipam.charter import Charter
from mesh.ipam.statement import ACCEPT, PREPARE, Ballot, Intent, Proposal, Report, Vote

PATIENCE_S = 1.5
BACKOFF_MAX_S = 30.0
FRUITLESS_S = 300.0
"""For so long other votes come before one of which nothing came although a majority promised."""
AHEAD_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who counts in one vote."""

    who: Collection[bytes]
    """Seats; for the first decision, the names of all who vote."""
    needed: int


class Ballots:
    """At most one proposal of ours at a time."""

    def __init__(self, own: PeerName, epoch: int, rng: Random) -> None:
        self.proposal: Proposal | None = None
        self.tries = 0
        self._own = own
        self._epoch = epoch
        self._rng = rng
        self._until = 0.0
        self._not_before = 0.0
        self._highest = 0
        self._fruitless: dict[Intent, float] = {}

    def see(self, ballot: Ballot) -> None:
        if ballot[0] < self._highest + AHEAD_MAX:  # else it is nonsense, and no turn would be left for anybody
            self._highest = max(self._highest, ballot[0])

    def begin(self, ring: bytes, number: int, intent: Intent, now: float) -> bool:
        """Ask for promises, unless a vote of ours is under way or failed a moment ago; whether that was done."""
        before = self.proposal
        if before is not None and (before.ring, before.number) != (ring, number):
            self.drop()
            before = None
        is_urgent = before is not None and intent.by_word and before.intent != intent
        if not is_urgent and (now < self._not_before or (before is not None and now < self._until)):
            return False
        if before is not None and before.intent == intent:
            self.tries += 1
        self._highest += 1
        ballot = (self._highest, self._own, self._epoch)
        self.proposal = Proposal(ring, number, ballot, PREPARE, intent)
        wait = min(PATIENCE_S * 2 ** min(self.tries, 5), BACKOFF_MAX_S)
        self._until = now + wait * (0.75 + 0.75 * self._rng.random())
        return True

    def is_fruitless(self, intent: Intent, now: float) -> bool:
        """Whether such a vote could decide nothing a moment ago, as what it would have to say fits no charter."""
        self._fruitless = {each: until for each, until in self._fruitless.items() if until > now}
        return intent in self._fruitless

    def drop(self) -> None:
        self.proposal = None
        self.tries = 0
        self._not_before = 0.0

    def advance(
        self,
        votes: Mapping[bytes, tuple[Vote, Report]],
        electorate: Electorate,
        choose: Callable[[Intent, list[Report]], Charter | None],
        now: float,
    ) -> Charter | None:
        """Look at the votes, by seat. The decision, once it is made; the proposal moves on to its second phase."""
        proposal = self.proposal
        if proposal is None:
            return None
        counted = [
            (vote, report) for seat, (vote, report) in sorted(votes.items())
            if seat in electorate.who and (vote.ring, vote.number) == (proposal.ring, proposal.number)
        ]  # fmt: skip
        if proposal.phase == PREPARE:
            promised = [(vote, report) for vote, report in counted if vote.promised == proposal.ballot]
            if proposal.intent.retire:
                promised = [(vote, report) for vote, report in promised if report.ballot == proposal.ballot]
            if len(promised) < electorate.needed:
                return None
            bound = max((vote for vote, _ in promised if vote.value is not None), key=_accepted, default=None)
            value = bound.value if bound is not None else choose(proposal.intent, [report for _, report in promised])
            if value is None:
                self._fruitless[proposal.intent] = now + FRUITLESS_S
                self.drop()
                self._not_before = now + PATIENCE_S
                return None
            self.proposal = Proposal(proposal.ring, proposal.number, proposal.ballot, ACCEPT, proposal.intent, value)
            return None
        if sum(vote.accepted == proposal.ballot for vote, _ in counted) < electorate.needed:
            return None
        value = proposal.value
        self.drop()
        return value

    @property
    def due(self) -> float | None:
        return self._until if self.proposal is not None else None


def _accepted(vote: Vote) -> Ballot:
    return vote.accepted
