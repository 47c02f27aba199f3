"""Two live hosts with one key, and one host that was started again: who gets in, and who is told what."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from gossip.events import CloseLink, NameContested, Outcome, Send
from gossip.node import Node, NodeConfig
from gossip.wire import Bye, Message, Ping, Pong, decode_untrusted, encode
from tests.gossip.actors import address, identity, record

CONFIG = NodeConfig(discovery=False)


def node(number: int, life: int = 1) -> Node:
    return Node(identity(number), record(number, life), life, CONFIG, Random(number), 0.0)


class Net:
    """A few nodes and their links. What is said goes over at once, in order; events are kept by node."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = nodes
        self.now = 0.0
        self.ends: dict[tuple[int, int], int] = {}
        """Node and link to the node at the other end."""
        self.silent: set[int] = set()
        """Nodes that are dead: nothing comes from them any more."""
        self.told: dict[int, list[str]] = {index: [] for index in range(len(nodes))}
        self.heard: dict[int, list[Message]] = {index: [] for index in range(len(nodes))}

    def link(self, link: int, dialler: int, listener: int) -> None:
        self.ends[dialler, link], self.ends[listener, link] = listener, dialler
        self.carry(
            (index, outcome)
            for index, key in ((dialler, "target"), (listener, None))
            for outcome in self.nodes[index].link_up(
                link, index == dialler, bytes([link]) * 32, address(9), key, self.now
            )
        )

    def wait(self, index: int, seconds: float) -> None:
        """The clock of this node alone."""
        self.now += seconds
        self.perform(index, self.nodes[index].handle_timeout(self.now))

    def perform(self, index: int, outcomes: list[Outcome]) -> None:
        self.carry((index, outcome) for outcome in outcomes)

    def carry(self, said: Iterable[tuple[int, Outcome]]) -> None:
        queue = deque(said)
        while queue:
            source, outcome = queue.popleft()
            answers: list[Outcome] = []
            if isinstance(outcome, NameContested):
                self.told[source].append(outcome.text)
            if not isinstance(outcome, Send | CloseLink) or source in self.silent:
                continue
            other = self.ends[source, outcome.link]
            if isinstance(outcome, Send):
                self.heard[other].append(decode_untrusted(outcome.data))
                answers = self.nodes[other].receive(outcome.link, outcome.data, self.now)
            else:
                answers = self.nodes[other].link_down(outcome.link, "closed", self.now)
            queue.extend((other, answer) for answer in answers)

    def goodbyes(self, index: int) -> list[str]:
        return [message.reason for message in self.heard[index] if isinstance(message, Bye)]


LISTENER, OLD, NEW = 0, 1, 2


def one_name_twice() -> Net:
    """A listener that has a link with one, and then another one with the same key comes."""
    net = Net(node(1), node(2), node(2, life=2))
    net.link(2, OLD, LISTENER)
    net.now = 1.0
    return net


def test_of_two_hosts_with_one_key_the_later_is_refused_and_both_are_told() -> None:
    net = one_name_twice()
    net.link(3, NEW, LISTENER)
    net.wait(LISTENER, CONFIG.challenge_s)
    assert net.goodbyes(NEW) == ["name-in-use"] and net.goodbyes(OLD) == []
    assert len(net.told[NEW]) == 1 and len(net.told[OLD]) == 1 and net.told[LISTENER] == []
    assert address(9) in net.told[OLD][0]
    assert [status.peer for status in net.nodes[LISTENER].links()] == [identity(2).name]


def test_a_host_that_was_started_again_gets_in_and_nobody_is_told_anything() -> None:
    net = one_name_twice()
    net.silent.add(OLD)
    net.link(3, NEW, LISTENER)
    net.wait(LISTENER, CONFIG.challenge_s)
    assert net.goodbyes(NEW) == [] and net.told == {LISTENER: [], OLD: [], NEW: []}
    assert len(net.nodes[LISTENER].links()) == len(net.nodes[NEW].links()) == 1


def test_what_a_dead_host_had_said_before_does_not_speak_for_it() -> None:
    """A busy listener reads late: an old heartbeat and an old answer arrive while the successor waits."""
    net = one_name_twice()
    net.silent.add(OLD)
    net.link(3, NEW, LISTENER)
    for late in (Ping(7, bytes(16)), Pong(1, bytes(16))):
        net.perform(LISTENER, net.nodes[LISTENER].receive(2, encode(late), net.now + 0.5))
    net.wait(LISTENER, CONFIG.challenge_s)
    assert net.goodbyes(NEW) == [] and net.told == {LISTENER: [], OLD: [], NEW: []}


def test_two_hosts_with_one_key_that_meet_each_other_both_know() -> None:
    net = Net(node(1), node(1, life=2))
    net.link(2, 0, 1)
    assert net.told[0] and net.told[1]
    assert net.nodes[0].links() == net.nodes[1].links() == []


def test_a_daemon_that_dials_itself_is_no_other_host() -> None:
    net = Net(node(1))
    alone = net.nodes[0]
    up = alone.link_up(2, True, bytes(32), address(1), "target", 0.0)
    up += alone.link_up(3, False, bytes(32), address(1), None, 0.0)
    sent = [each for each in up if isinstance(each, Send)]
    answers = [answer for each in sent for answer in alone.receive(5 - each.link, each.data, 0.0)]
    assert any(isinstance(answer, CloseLink) for answer in answers)
    assert not any(isinstance(answer, NameContested) for answer in answers)
