"""How we stand with one peer: the sessions it shares with us, our attempt at a new one, and the word that status says.

Knows nothing of datagrams and decides nothing about others' work; `keys` drives it. The one idea: the frame path only
moves counters, so what happened since the last look (something came, something went) is read off them by `observe`,
and everything here follows from that and the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dataplane.sleeve.bucket import Bucket
from dataplane.sleeve.control import CONNECTING, IDLE, SILENT, UP, WRONG_SECRET
from dataplane.sleeve.handshake import Opening, Pair
from dataplane.sleeve.session import Session
from gossip.names import PeerName

ROLL_AFTER_BYTES: Final = 2**36
SEND_MAX_S: Final = 540.0
SEND_MAX_BYTES: Final = 2**38
RECEIVE_MAX_S: Final = SEND_MAX_S + 30.0
"""A session ends; what the peer sent at the last moment may still come."""
SUPERSEDED_KEPT_S: Final = 30.0
"""An older session goes when it was silent for so long, counted from the first record under a better one."""
SILENT_AFTER_S: Final = 3.0
REFUSED_KEPT_S: Final = 15.0
FAULT_KEPT_S: Final = 60.0
"""What was found wrong with a peer is still said so long after the last attempt."""
NEVER_S: Final = float("-inf")


@dataclass(slots=True, eq=False)
class Attempt:
    """Our side of getting a new session: hellos, one after the other; only the last one may be answered."""

    next_at_s: float
    tries: int = 0
    turn: int = -1
    """Which secret the last hello was under."""
    first_s: float = 0.0
    opening: Opening | None = None
    refused: set[int] = field(default_factory=set)
    """The secrets that the peer says it does not have."""
    refused_s: float = NEVER_S

    def next_turn(self, secrets: int, now: float) -> int:
        """The secret to try: in turn, those first that the peer has not refused lately."""
        if now >= self.refused_s + REFUSED_KEPT_S:
            self.refused.clear()
        turns = [(self.turn + step) % secrets for step in range(1, secrets + 1)]
        return next((turn for turn in turns if turn not in self.refused), turns[0])


@dataclass(slots=True, eq=False)
class Standing:
    name: PeerName
    key: bytes
    pair: Pair | None
    """None: the key it published is none."""
    current: Session | None = None
    sessions: list[Session] = field(default_factory=list)
    attempt: Attempt | None = None
    stamp: tuple[int, int] = (0, 0)
    """Of the newest hello answered."""
    hellos: Bucket | None = None
    refusals: Bucket | None = None
    wanted_s: float = NEVER_S
    used_s: float = NEVER_S
    heard_s: float = NEVER_S
    renewed_s: float = NEVER_S
    asked_s: float = NEVER_S
    """When the last hello went."""
    looked_s: float = NEVER_S
    look_at_s: float | None = None
    state: str = IDLE
    since_s: float = 0.0

    def observe(self, now: float) -> None:
        """See what the worker did with the sessions since this was last asked."""
        for session in self.sessions:
            top = session.window.top
            if top != session.heard_top:
                session.heard_top = top
                session.heard_s = self.heard_s = now
            if session.counter != session.used_counter:
                session.used_counter = session.counter
                self.used_s = now

    def generation(self) -> int:
        """The highest of the sessions there are."""
        return max((session.generation for session in self.sessions), default=0)

    def best(self, now: float) -> Session | None:
        """What to send under: the highest rank of those that the peer has for certain."""
        found: Session | None = None
        for session in self.sessions:
            known = session.is_initiator or session.confirmed
            fresh = now < session.born_s + SEND_MAX_S and session.sent_bytes < SEND_MAX_BYTES
            if known and fresh and (found is None or session.rank > found.rank):
                found = session
        return found

    def least(self) -> Session:
        """What to give up for a new session: never the current one nor our last welcome, which the peer may be about
        to use; first, of welcomes before it (they were lost, and the hello repeated), so that repetitions do not push
        out a session in use; then the oldest."""
        unproven = [session for session in self.sessions if not (session.confirmed or session.is_initiator)]
        kept = (self.current, unproven[-1] if unproven else None)
        others = [session for session in self.sessions if session not in kept]
        return min(others, key=lambda session: (session not in unproven, session.rank))

    def is_over(self, session: Session, now: float) -> bool:
        """Whether nothing more is expected under a session."""
        if now >= session.born_s + RECEIVE_MAX_S:
            return True
        current = self.current
        if current is None or not current.confirmed or session.rank >= current.rank:
            return False
        return now >= max(session.heard_s, current.confirmed_s) + SUPERSEDED_KEPT_S

    def is_worn(self, now: float) -> bool:
        """Whether the current session is in use and should be replaced; between `observe` and moving `looked_s`."""
        current = self.current
        if current is None or not self.in_use():
            return False
        return now >= current.roll_at_s or current.sent_bytes >= ROLL_AFTER_BYTES

    def in_use(self) -> bool:
        return max(self.used_s, self.heard_s) > self.looked_s

    def judge(self, secrets: int, now: float) -> None:
        """Put what is known of the peer into one word. `secrets`: how many we have."""
        attempt = self.attempt
        faulty = self.state in (SILENT, WRONG_SECRET)
        if attempt is not None and len(attempt.refused) == secrets and now < attempt.refused_s + REFUSED_KEPT_S:
            state = WRONG_SECRET
        elif attempt is not None and self._is_unanswered(attempt, now):
            state = SILENT
        elif self.current is not None and (not faulty or self.heard_s >= self.since_s):
            state = UP
        elif faulty and (self.current is not None or now < self.asked_s + FAULT_KEPT_S):
            state = self.state
        else:
            state = CONNECTING if attempt is not None else IDLE
        if state != self.state:
            self.state, self.since_s = state, now

    def _is_unanswered(self, attempt: Attempt, now: float) -> bool:
        return attempt.tries > 0 and now >= attempt.first_s + SILENT_AFTER_S and self.heard_s <= attempt.first_s
