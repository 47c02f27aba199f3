"""Where one partner is: the address or route in use, what else might lead there, and when to ask which of them.

Pure: the clock comes in; whom to ask, and where to go from now on, comes out. Knows nothing of records or sockets. The
one idea: a way counts only when it was proven in both directions, by a probe that went out on it and an answer that
came back on it; so a path that passes one direction only is never gone over to, and is left as any silent one is.

    an address in use   --- unanswered for HUNT_AFTER_S: ask everywhere --->   whatever answers first
    a route in use      --- ask the addresses every few seconds ----------->   the address that answers

Two who cannot dial each other meet by a route and tell each other, under the seal, where others see them. Both then
ask there at the same time, and whatever stands before each of them takes the other's question for an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dataplane.sleeve.routes import Route

Address = tuple[object, ...]
"""As the socket gives and takes it, or a `Route`."""

HUNT_AFTER_S: Final = 0.7
"""Frames go out and none is reported received for so long: ask whether they arrive at all, and what else would."""
PATIENCE_RTTS: Final = 2.0
PATIENCE_MAX_S: Final = 3.0
HUNT_EVERY_S: Final = 0.2
HUNT_SLOWLY_AFTER_S: Final = 5.0
HUNT_SLOWLY_S: Final = 2.0
RETURN_FIRST_S: Final = 0.15
RETURN_MAX_S: Final = 5.0
"""Between two tries to get from a route to an address, doubling while nothing answers."""
STEADY_S: Final = 60.0
"""An address that served so long is gone back to without hesitation."""
FOLLOW_AFTER_S: Final = 1.0
"""A partner that goes over to a route is followed, but not by one who has just seen the address work."""
CALLED_MAX: Final = 4
ASKED_MAX: Final = 64
ROUTES_MAX: Final = 3
"""Asked at once."""


@dataclass(slots=True)
class Question:
    """A probe under way."""

    address: Address
    asked_s: float


class Whereabouts:
    """Of one partner."""

    __slots__ = (
        "_asked",
        "_backoff_s",
        "_heeded_s",
        "_hesitation_s",
        "_hunt_s",
        "_is_called",
        "_moved_s",
        "_return_s",
        "address",
        "called",
        "patience_s",
        "proven_s",
        "told",
        "turned_s",
    )

    def __init__(self) -> None:
        self.address: Address | None = None
        """In use: where its last record came from, or what was proven since."""
        self.told: tuple[Address, ...] = ()
        """Where the daemon says it may be."""
        self.called: tuple[Address, ...] = ()
        """Where it says that others see it, and where its probes came from; newest first."""
        self.proven_s = float("-inf")
        """When the way in use was last seen to work both ways."""
        self.turned_s = 0.0
        """When it last changed between an address and a route."""
        self.patience_s = HUNT_AFTER_S
        """How long silence may last before it means something: longer where answers take long."""
        self._asked: dict[bytes, Question] = {}
        self._hunt_s = 0.0
        self._return_s = 0.0
        self._backoff_s = self._hesitation_s = RETURN_FIRST_S
        self._moved_s = 0.0
        self._is_called = False
        self._heeded_s = float("-inf")

    @property
    def route(self) -> Route | None:
        return self.address if isinstance(self.address, Route) else None

    def straight(self) -> tuple[Address, ...]:
        """Every address that may lead there, the most likely first."""
        known = () if self.address is None or self.route is not None else (self.address,)
        return tuple(dict.fromkeys((*known, *self.told, *self.called)))

    def took(self, rtt_s: float) -> None:
        """So long a question and its answer were on the way in use."""
        self.patience_s = min(max(HUNT_AFTER_S, PATIENCE_RTTS * rtt_s), PATIENCE_MAX_S)

    def is_known(self, address: Address) -> bool:
        """Whether its records may well come from there."""
        return address == self.address or address in self.told or address in self.called

    def take_call(self, addresses: Iterable[Address]) -> None:
        """It asks us now, and says where it is seen: the time to ask it."""
        self._learn(addresses)
        self._is_called = self.route is not None

    def take_probe(self, source: Address) -> None:
        """Its probe came from there: worth asking at once, while we have nothing better."""
        if self.route is not None and not isinstance(source, Route) and not self.is_known(source):
            self._learn((source,))
            self._is_called = True

    def _learn(self, addresses: Iterable[Address]) -> None:
        fresh = (address for address in addresses if address not in self.told)
        self.called = tuple(dict.fromkeys((*fresh, *self.called)))[:CALLED_MAX]

    # When to ask.

    def due(self, routes: Sequence[Route], unanswered_s: float, now: float) -> list[Address]:
        """Whom to ask now. `unanswered_s`: for how long nothing that was sent has been seen to arrive."""
        if unanswered_s > self.patience_s:
            if now < self._hunt_s:
                return []
            self._hunt_s = now + (HUNT_EVERY_S if unanswered_s < HUNT_SLOWLY_AFTER_S else HUNT_SLOWLY_S)
            used = () if self.address is None else (self.address,)
            return list(dict.fromkeys((*used, *self.straight(), *routes)))
        if self.route is not None and self._is_called and now >= self._heeded_s + RETURN_FIRST_S:
            self._is_called, self._heeded_s = False, now  # however often it calls
            return list(self.straight())
        if self.is_returning(now):
            self._return_s = now + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, RETURN_MAX_S)
            return list(self.straight())
        return []

    def is_returning(self, now: float) -> bool:
        """Whether it is time to try to get from a route to an address, together with the other side."""
        return self.route is not None and not self._is_called and now >= self._return_s

    def next_s(self, unanswered_s: float) -> float:
        """When `due` may have something to say, if nothing happens before."""
        if unanswered_s > self.patience_s:
            return self._hunt_s
        if self.route is None:
            return float("inf")
        return self._heeded_s + RETURN_FIRST_S if self._is_called else self._return_s

    def asked(self, salt: bytes, address: Address, now: float) -> None:
        if len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self._asked[salt] = Question(address, now)

    # What comes of it.

    def proven(self, salt: bytes, source: Address) -> Question | None:
        """The question that was answered, where the answer came back on the way that it had gone: NATs may change the
        address, but not a route into one."""
        question = self._asked.pop(salt, None)
        if question is None or isinstance(question.address, Route) is not isinstance(source, Route):
            return None
        return question

    def is_better(self, address: Address, unanswered_s: float) -> bool:
        """Whether to go over to a way that was just proven: anything rather than silence, an address rather than a
        route."""
        if self.address is None or unanswered_s > self.patience_s:
            return True
        return self.route is not None and not isinstance(address, Route)

    def is_followed(self, address: Address, now: float) -> bool:
        """Whether a record with frames that came another way than ours go changes where ours go."""
        if self.address is None or not isinstance(address, Route):
            return True
        if self.route is not None and address[0] > address[-1]:
            return True  # of two that are on different routes one gives way, or they would change places for ever
        return now - self.proven_s > FOLLOW_AFTER_S

    def move(self, address: Address, now: float) -> bool:
        """From now on frames go there. Whether that is a change between address and route."""
        was_route, is_route = self.route is not None, isinstance(address, Route)
        first = self.address is None
        self.address = address
        self._hunt_s = 0.0
        if was_route == is_route and not first:
            return False
        if is_route:
            is_steady = first or now - self._moved_s >= STEADY_S
            self._hesitation_s = RETURN_FIRST_S if is_steady else min(2 * self._hesitation_s, RETURN_MAX_S)
            self._backoff_s = self._hesitation_s
            self._return_s = now if is_steady else now + self._hesitation_s
        self._moved_s = self.turned_s = now
        return True
