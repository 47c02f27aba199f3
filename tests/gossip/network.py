"""Nodes joined by cables, in one's hand: nothing moves unless told to, so every order of events can be had.

A cable is what TCP is to two nodes, without any delay of its own: what one end says waits until it is delivered, in
order, and a closed end is the last thing that arrives. `Network.settle` delivers until nobody says anything more,
`Network.pass_time` does so with timers. The simulator is for whole meshes and for chance; this is for one case.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from gossip.events import CloseLink, Dial, DialKey, Outcome, Send
from gossip.node import Node, NodeConfig
from gossip.wire import Message, decode_untrusted
from tests.gossip.actors import address, identity, record

T = TypeVar("T")


@dataclass
class Cable:
    """One connection. End 0 is the dialler's."""

    number: int
    actors: tuple[Actor, Actor]
    key: DialKey | None
    queues: tuple[deque[bytes | None], deque[bytes | None]] = field(default_factory=lambda: (deque(), deque()))
    """By receiving end; None is the end of the stream."""
    up: list[bool] = field(default_factory=lambda: [False, False])
    closed: list[bool] = field(default_factory=lambda: [False, False])

    def raise_end(self, end: int) -> list[Outcome]:
        """Tell the node at this end that the link is there."""
        assert not self.up[end]
        self.up[end] = True
        actor, other = self.actors[end], self.actors[1 - end]
        actor.cables[self.id_at(end)] = (self, end)
        hash_ = hashlib.sha256(f"cable {self.number}".encode()).digest()
        key = self.key if end == 0 else None
        return actor.do(
            lambda node, now: node.link_up(self.id_at(end), end == 0, hash_, address(other.number), key, now)
        )

    def id_at(self, end: int) -> int:
        return 2 * self.number + end

    def can_deliver(self, end: int) -> bool:
        return self.up[end] and bool(self.queues[end])

    def deliver(self, end: int) -> list[Outcome]:
        """The next thing that waits for this end."""
        data = self.queues[end].popleft()
        if self.closed[end]:
            return []
        if data is not None:
            return self.actors[end].do(lambda node, now: node.receive(self.id_at(end), data, now))
        self.closed[end] = True
        return self.actors[end].do(lambda node, now: node.link_down(self.id_at(end), "closed", now))

    def cut(self, end: int) -> None:
        """This end is no more, and nothing tells the other."""
        self.closed[end] = True
        self.queues[end].clear()


class Actor:
    """A node and what it has asked for and reported."""

    def __init__(self, network: Network, number: int, life: int, config: NodeConfig) -> None:
        self.network = network
        self.number = number
        self.life = life
        self.cables: dict[int, tuple[Cable, int]] = {}
        self.heard: list[Outcome] = []
        """Everything but sends, since the beginning."""
        self.dials: list[Dial] = []
        said = record(number, life)
        self.node = Node(identity(number), said, life, config, Random(f"{number}.{life}"), network.now)

    def do(self, call: Callable[[Node, float], T]) -> T:
        """One call of the node; what it asks for is done, but nothing is delivered."""
        answer = call(self.node, self.network.now)
        for outcome in answer if isinstance(answer, list) else []:
            match outcome:
                case Send(link, _) | CloseLink(link, _) if link not in self.cables:
                    pass  # There is nobody at the other end of this one.
                case Send(link, data):
                    cable, end = self.cables[link]
                    assert not cable.closed[end], "said something on a link that it had closed"
                    cable.queues[1 - end].append(data)
                    continue
                case CloseLink(link, _):
                    cable, end = self.cables[link]
                    assert not cable.closed[end], "closed a link twice"
                    cable.closed[end] = True
                    cable.queues[1 - end].append(None)
                case Dial():
                    self.dials.append(outcome)
            self.heard.append(outcome)
        self.node.next_timeout()
        return answer

    def publish(self, index: int, body: bytes) -> list[Outcome]:
        return self.do(lambda node, now: node.publish("rows", index, body, now))

    def holds(self, owner: int, index: int) -> bytes | None:
        page = self.node.replica.store.get((identity(owner).name, "rows", index))
        return None if page is None else page.body

    def neighbours(self) -> list[int]:
        """The numbers of those with whom a link stands."""
        numbers = {identity(actor.number).name: actor.number for actor in self.network.everybody}
        return sorted(numbers[link.peer] for link in self.node.links())

    def closed(self) -> list[str]:
        """Why links were closed here, in order."""
        return [outcome.reason for outcome in self.heard if isinstance(outcome, CloseLink)]


class Network:
    """Everybody, the cables between them, and the time."""

    def __init__(self, *numbers: int, **config: Any) -> None:
        self.now = 0.0
        self.config = NodeConfig(**({"discovery": False} | config))
        self.everybody: list[Actor] = []
        self.cables: list[Cable] = []
        for number in numbers:
            self.add(number)

    def add(self, number: int, life: int = 1) -> Actor:
        self.everybody.append(Actor(self, number, life, self.config))
        return self.everybody[-1]

    def cable(self, dialler: Actor, other: Actor, key: DialKey | None = None) -> Cable:
        """A cable of which neither end knows yet."""
        self.cables.append(Cable(len(self.cables), (dialler, other), key))
        return self.cables[-1]

    def link(self, dialler: Actor, other: Actor, key: DialKey | None = None) -> Cable:
        """Both ends know, nothing is delivered."""
        cable = self.cable(dialler, other, key)
        cable.raise_end(0)
        cable.raise_end(1)
        return cable

    def join(self, dialler: Actor, other: Actor, key: DialKey | None = None) -> Cable:
        """Two nodes that are neighbours now and have told each other everything."""
        cable = self.link(dialler, other, key)
        self.settle()
        return cable

    def deliverable(self) -> list[tuple[Cable, int]]:
        return [(cable, end) for cable in self.cables for end in (0, 1) if cable.can_deliver(end)]

    def settle(self) -> int:
        """Deliver until nobody says anything more; how many messages that took."""
        delivered = 0
        while waiting := self.deliverable():
            for cable, end in waiting:
                cable.deliver(end)
                delivered += 1
                assert delivered < 100_000, "they never stop talking"
        return delivered

    def pass_time(self, seconds: float, late_s: float = 0.0) -> None:
        """With every timer on time, or all of them late by so much."""
        end = self.now + seconds
        for _ in range(100_000):
            self.settle()
            due = [(timeout, actor.number) for actor in self.everybody if (timeout := actor.node.next_timeout())]
            at = max(min((timeout for timeout, _ in due), default=end) + late_s, self.now)
            if at > end:
                self.now = end
                return
            self.now = at
            for actor in list(self.everybody):
                actor.do(lambda node, now: node.handle_timeout(now))
        raise AssertionError("somebody's timer never rests")


def sent(outcomes: Sequence[Outcome]) -> list[Message]:
    """The messages among what a node answered."""
    return [decode_untrusted(outcome.data) for outcome in outcomes if isinstance(outcome, Send)]
