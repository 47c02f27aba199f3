"""Other people's names: whom to ask, for how long, and what counts as an answer (RFC 5452).

A machine: questions, datagrams and the time in, effects out. Every try has an id and a source port of its own; the
shell (`mesh.dns.forwarder`) makes the sockets. The one idea: whoever asks what is being asked already waits for the
same answer. That saves questions, leaves a forger one chance instead of many, and ends loops: a question that comes
back to us by way of another server meets itself, and is not asked again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from gossip.errors import ProtocolError
from mesh.dns import message
from mesh.dns.message import Query

Server = tuple[str, int]
"""Address and port."""

TRY_S: Final = 1.2
"""For one server to answer, before the next one is asked."""
TOTAL_S: Final = 4.0
"""For all of them: less than the 5 s after which a resolver gives up on us."""
IN_FLIGHT_MAX: Final = 512
"""Questions being asked. Beyond them the answer is a failure at once, so that a flood costs others little."""
WAITING_MAX: Final = 64
"""Askers of one question."""
OF_ONE_MAX: Final = 128
"""Questions that one address waits for: a container that asks for the world leaves room for the others."""
TRIES_MAX: Final = 12
_NEXT_PLEASE: Final = frozenset({message.SERVFAIL, message.REFUSED, message.NOTIMP, message.FORMERR})
"""What one server says and another may not."""


class Asker(NamedTuple):
    """Who waits, and for what."""

    key: Hashable
    query: Query
    tcp: bool
    source: str
    """The address that the question came from."""


@dataclass(frozen=True, slots=True)
class Try:
    """Send these bytes to that server from a fresh port. What comes back on it goes to `answered_untrusted`."""

    token: int
    server: Server
    data: bytes
    tcp: bool


@dataclass(frozen=True, slots=True)
class End:
    """The socket of a try is of no more use."""

    token: int


@dataclass(frozen=True, slots=True)
class Tell:
    """An asker's answer; None: there is none to be had."""

    asker: Asker
    data: bytes | None


Effect = Try | End | Tell


@dataclass(slots=True)
class _Exchange:
    key: Hashable
    query: Query
    tcp: bool
    gives_up_at: float
    left: deque[Server]
    waiting: list[Asker] = field(default_factory=list)
    token: int = 0
    ident: int = 0
    try_ends_at: float = 0.0
    tries: int = 0
    last: bytes | None = None
    """What the last server said that would rather not answer."""


class Upstreams:
    """Questions on their way to other servers."""

    def __init__(self, random: Random) -> None:
        self.servers: tuple[Server, ...] = ()
        self.counters: Counter[str] = Counter()
        self._random = random
        self._exchanges: dict[Hashable, _Exchange] = {}
        self._by_token: dict[int, _Exchange] = {}
        self._next_token = 1
        self._waiting_of: Counter[str] = Counter()
        self._answers: Server | None = None
        """Who answered last, and is asked first."""
        self._silent: dict[Server, None] = {}
        """Who said nothing when it was asked last, the longest ago first. They are asked after all others: one question
        has time for a few only, and one that answers may stand behind more that do not."""

    def use(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)
        self._silent = {each: None for each in self._silent if each in self.servers}

    def ask(self, asker: Asker, now: float) -> list[Effect]:
        """Ask for somebody. A server that we ask is not answered by asking it."""
        if any(asker.source == address for address, _ in self.servers):
            self.counters["loops"] += 1
            return [Tell(asker, None)]
        if self._waiting_of[asker.source] >= OF_ONE_MAX:
            self.counters["too-many-of-one"] += 1
            return [Tell(asker, None)]
        query = asker.query
        key = (query.question.lower(), query.flags & (message.CD | 0x0020), query.edns_bytes is None,
               query.wants_dnssec, asker.tcp)  # fmt: skip
        exchange = self._exchanges.get(key)
        if exchange is not None:
            if len(exchange.waiting) >= WAITING_MAX:
                self.counters["too-many"] += 1
                return [Tell(asker, None)]
            self.counters["joined"] += 1
            self._waiting_of[asker.source] += 1
            exchange.waiting.append(asker)
            return []
        if not self.servers:
            self.counters["no-upstream"] += 1
            return [Tell(asker, None)]
        if len(self._exchanges) >= IN_FLIGHT_MAX:
            self.counters["too-many"] += 1
            return [Tell(asker, None)]
        self.counters["forwarded"] += 1
        self._waiting_of[asker.source] += 1
        exchange = _Exchange(key, query, asker.tcp, now + TOTAL_S, deque(self._order()), [asker])
        self._exchanges[key] = exchange
        return self._try_next(exchange, now)

    def _order(self) -> list[Server]:
        first = [self._answers] if self._answers in self.servers else []
        others = [server for server in self.servers if server not in first]
        return [*first, *(each for each in others if each not in self._silent),
                *(each for each in self._silent if each not in first)]  # fmt: skip

    def answered_untrusted(self, token: int, data: bytes, now: float) -> list[Effect]:
        """What came on a try's socket, which took it from its server alone."""
        exchange = self._by_token.get(token)
        if exchange is None:
            return []
        try:
            rcode = message.answers_untrusted(data, exchange.ident, exchange.query.question)
        except ProtocolError:
            self.counters["not-answers"] += 1
            return []
        self._silent.pop(self._server_of(exchange), None)
        if rcode in _NEXT_PLEASE:
            exchange.last = data
            return self._failed(exchange, now)
        self.counters["answers"] += 1
        self._answers = self._server_of(exchange)
        return self._finish(exchange, data)

    def refused(self, token: int, now: float) -> list[Effect]:
        """The server cannot be reached."""
        exchange = self._by_token.get(token)
        return [] if exchange is None else self._failed(exchange, now)

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        for exchange in [each for each in self._exchanges.values() if now >= each.try_ends_at]:
            self.counters["silences"] += 1
            server = self._server_of(exchange)
            self._silent.pop(server, None)
            if server in self.servers:
                self._silent[server] = None
            exchange.left.append(server)  # it may just have lost one datagram
            effects += self._failed(exchange, now)
        return effects

    def due(self) -> float | None:
        return min((each.try_ends_at for each in self._exchanges.values()), default=None)

    def __len__(self) -> int:
        return len(self._exchanges)

    def _server_of(self, exchange: _Exchange) -> Server:
        return exchange.left[0]

    def _failed(self, exchange: _Exchange, now: float) -> list[Effect]:
        exchange.left.popleft()
        return self._try_next(exchange, now)

    def _try_next(self, exchange: _Exchange, now: float) -> list[Effect]:
        effects = self._end_try(exchange)
        if not exchange.left or now >= exchange.gives_up_at or exchange.tries >= TRIES_MAX:
            self.counters["given-up"] += 1
            return [*effects, *self._finish(exchange, exchange.last)]
        exchange.tries += 1
        exchange.token, self._next_token = self._next_token, self._next_token + 1
        exchange.ident = self._random.getrandbits(16)
        exchange.try_ends_at = min(now + TRY_S, exchange.gives_up_at)
        self._by_token[exchange.token] = exchange
        data = message.ask(exchange.ident, exchange.query)
        return [*effects, Try(exchange.token, exchange.left[0], data, exchange.tcp)]

    def _end_try(self, exchange: _Exchange) -> list[Effect]:
        if self._by_token.pop(exchange.token, None) is None:
            return []
        return [End(exchange.token)]

    def _finish(self, exchange: _Exchange, data: bytes | None) -> list[Effect]:
        del self._exchanges[exchange.key]
        effects = self._end_try(exchange)
        for asker in exchange.waiting:
            self._waiting_of[asker.source] -= 1
            if not self._waiting_of[asker.source]:
                del self._waiting_of[asker.source]
            told = None if data is None else message.pass_on(data, asker.query, asker.tcp)
            effects.append(Tell(asker, told))
        return effects
