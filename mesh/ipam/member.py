"""One member of the ring, without sockets, disk or clock: pages and requests in; journal changes and pages out.

Everything that others must be able to count on leaves through `take`: changes for the journal, and pages to publish
once those are on disk. In between this host believes in what is not on disk yet, and shows nobody. After each input
`settle` looks at all of it: which ring, which decision, what to vote, what was given to us, what is asked of us. Each
step is a rule over what is known now; none remembers which page led to it.

The rules, in the order in which `settle` asks them: `rings` (which one is ours), `adoption` (what a decision changes
here), `serving` (as a voter), `exchange` (slots that change hands), `elections` (which votes to hold). They look at
`state`, and by way of `claims` at who has which slots by it; `voice` says what comes of it. `desk` gives addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import msgpack

from mesh.ipam import adoption, elections, exchange, rings, serving
from mesh.ipam.charter import charter_of_seeds
from mesh.ipam.ranges import SEED
from mesh.ipam.state import State
from mesh.ipam.surroundings import Out, Settings, Surroundings
from mesh.ipam.voice import Voice

SETTLE_TURNS_MAX = 8


class Member(State):
    """This host in its ring, or before it has one. `now` is always seconds of one clock that counts sleep too."""

    def __init__(
        self, settings: Settings, around: Surroundings, contents: dict[bytes, bytes], rng: Random, now: float
    ) -> None:
        """`contents`: what the journal has."""
        super().__init__(settings, around, contents, rng, now)
        self._voice = Voice()
        is_seeded = settings.init == SEED and settings.seeds and settings.space.ranges
        if self.charter is None and is_seeded:
            adoption.adopt(self, charter_of_seeds(settings.space, settings.lease_s, settings.seeds), now)
        self.announce_first()

    # -- settling ----------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Draw every conclusion from what is known."""
        for _ in range(SETTLE_TURNS_MAX):
            before = (self.ring, self.tip, self.holdings.version, self.voter.vote, self.ballots.proposal)
            rings.choose(self, now)
            adoption.learn(self, now)
            if self.charter is not None:
                serving.serve(self, now)
                exchange.settle(self, now)
                if self.lease.hear(self.held_by):
                    self.holdings.confirm_donors(self.lease.confirmed_owned)
            serving.vote(self, now)
            if (decided := elections.count(self, now)) is not None:
                adoption.adopt(self, decided, now)
            elections.settle(self, now)
            if before == (self.ring, self.tip, self.holdings.version, self.voter.vote, self.ballots.proposal):
                break
        self.holdings.wake(now)
        self.holdings.trim()

    # -- what we say -------------------------------------------------------------------------------

    def take(self, now: float) -> Out:
        """What is to be written and then published. The caller does both, in order, before it takes again."""
        pages = self._voice.speak(self, now)
        changes = dict(self.changes)
        self.changes.clear()
        return Out(changes, pages)

    def say_again(self, pages: Iterable[int]) -> None:
        """These pages did not get out."""
        self._voice.say_again(self, pages)

    def next_due(self, now: float) -> float:
        """When `settle` and `take` should be called again at the latest."""
        due = self.ballots.due if self.ballots.due is not None else now + 1.0
        return max(now + 0.02, min(due, now + 1.0))

    def resign(self) -> None:
        """Leave for good: the others decide at once who has what was ours."""
        self.resigned = True
        self.changes[b"z"] = msgpack.packb(True)
        self.lease.end()
