"""Who is let in, which of several links stays, and when a silent neighbour is given up."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gossip.node as node_module
from gossip.events import CloseLink, PeerChanged, Send
from gossip.introduction import introduce
from gossip.linkstate import LinkState
from gossip.names import name_of_key
from gossip.peers import AWAY, GONE
from gossip.routes import links_wanted
from gossip.wire import Bye, Digest, Hello, Ping, Pong, decode_untrusted, encode
from tests.gossip.actors import identity, instance, record
from tests.gossip.network import Actor, Network, sent

HASH = b"h" * 32


def hello(number: int, initiator: bool = False, hash_: bytes = HASH, life: int = 1, sequence: int = 1) -> bytes:
    """What host `number` says at its end of a link."""
    end = LinkState(0, initiator, hash_, "10.9.0.9:1", None, 0.0, 0.0, 0.0, hello_sequence=sequence)
    return encode(introduce(identity(number), record(number, life), end))


def dialled(actor: Actor, link: int = 7, key: str | None = None) -> list[object]:
    """Give `actor` a link that it has dialled, with nobody at the other end."""
    return list(actor.node.link_up(link, True, HASH, "10.9.0.2:6783", key, actor.network.now))


def alone() -> tuple[Network, Actor]:
    network = Network(1)
    return network, network.everybody[0]


def reason_of(outcomes: list[object]) -> str:
    (close,) = [outcome for outcome in outcomes if isinstance(outcome, CloseLink)]
    return close.reason


# Hello


def test_two_nodes_introduce_themselves() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b, key="h2")
    assert (a.neighbours(), b.neighbours()) == ([2], [1])
    assert PeerChanged(b.node.name) in a.heard
    assert a.node.links()[0].observed == "10.9.0.1:6783"
    assert a.node.targets(network.now)[:1] == []


@pytest.mark.parametrize(
    "said",
    [
        hello(2, hash_=b"x" * 32),
        hello(2, initiator=True),
        encode(Hello(identity(2).public_key, bytes(64), instance(2), 1, "h2", "")),
        encode(Hello(bytes(32), bytes(64), instance(2), 1, "h2", "")),
        encode(Hello(identity(3).public_key, identity(2).sign(b"weft hello 1\x00r" + HASH), instance(2), 1, "h2", "")),
        encode(Hello(identity(2).public_key, identity(2).sign(HASH), instance(2), 1, "h2", "")),
    ],
    ids=["another link's", "of the wrong role", "unsigned", "of no key", "of another key", "without its label"],
)
def test_a_hello_that_proves_nothing_is_refused(said: bytes) -> None:
    """A relayed, reflected or made-up hello: the link ends, and the reason is counted."""
    _, a = alone()
    dialled(a)
    outcomes = a.node.receive(7, said, 0.0)
    assert reason_of(list(outcomes)) == "bad-identity"
    assert a.node.counters == {"protocol-bad-identity": 1}
    assert a.node.links() == []


def test_our_own_hello_reflected_is_refused() -> None:
    """Somebody between sends back what we said: it is signed in the dialler's role."""
    _, a = alone()
    (said,) = dialled(a)
    assert isinstance(said, Send)
    assert reason_of(list(a.node.receive(7, said.data, 0.0))) == "bad-identity"


def test_a_second_hello_and_a_first_message_that_is_none_are_refused() -> None:
    _, a = alone()
    dialled(a)
    a.node.receive(7, hello(2), 0.0)
    assert reason_of(list(a.node.receive(7, hello(2), 0.0))) == "second-hello"
    dialled(a, 8)
    assert reason_of(list(a.node.receive(8, encode(Ping(1, bytes(16))), 0.0))) == "no-hello"


@given(st.binary(max_size=100), st.booleans())
def test_garbage_ends_the_link_with_a_last_word_that_can_be_read(data: bytes, introduced: bool) -> None:
    """Before the hello and after it; whatever the words of the error, the other side can decode them."""
    _, a = alone()
    dialled(a)
    if introduced:
        a.node.receive(7, hello(2), 0.0)
    outcomes = a.node.receive(7, b"\xc1" + data, 0.0)
    assert reason_of(list(outcomes)) == "bad-message"
    (bye,) = [message for message in sent(outcomes) if isinstance(message, Bye)]
    assert bye.reason == "bad-message"
    assert a.node.receive(7, hello(2), 0.0) == [], "late input for a forgotten link is ignored"
    assert a.node.link_down(7, "closed", 0.0) == []


def test_dialling_oneself_is_noticed_at_both_ends() -> None:
    """The target is never dialled again; nobody's name is in use."""
    network, a = alone()
    a.do(lambda node, now: node.connect(["localhost"], now))
    network.join(a, a, key="localhost")
    assert a.node.links() == []
    assert [row.state for row in a.node.targets(0.0)] == ["self"]
    assert "refused-name-in-use" not in a.node.counters
    network.pass_time(60.0)
    assert len(a.dials) == 1


def test_nobody_else_can_tell_us_that_we_are_ourselves() -> None:
    """A neighbour that says so has a target of ours forgotten for as long as we run."""
    network, a = alone()
    a.do(lambda node, now: node.connect(["h2"], now))
    dialled(a, key="h2")
    a.node.receive(7, encode(Bye("self", "this is the same daemon")), 0.0)
    assert [row.state for row in a.node.targets(0.0)] == ["waiting"]
    network.pass_time(10.0)
    assert len(a.dials) > 1


def test_a_live_host_with_our_key_is_refused_at_both_ends() -> None:
    """A copied state directory: both say so, with what to do, and neither counts as a neighbour."""
    network = Network(1)
    a, twin = network.everybody[0], network.add(1, life=2)
    a.do(lambda node, now: node.connect(["twin"], now))
    network.join(a, twin, key="twin")
    assert a.node.links() == twin.node.links() == []
    assert a.node.counters["refused-name-in-use"] == 1
    (row,) = a.node.targets(0.0)
    assert row.state == "refused" and "weft reset" in (row.error or "")


def test_a_second_live_owner_of_a_name_is_refused() -> None:
    """The first answers a heartbeat while the second waits: the second is told, and the first notices nothing."""
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    twin = network.add(2, life=2)
    twin.do(lambda node, now: node.connect(["h1"], now))
    cable = network.join(twin, a, key="h1")
    assert a.node.links()[0].since == 0.0
    network.pass_time(network.config.challenge_s + 0.1)
    assert cable.closed == [True, True]
    assert a.node.counters["refused-name-in-use"] == 1
    assert a.neighbours() == [2] and b.neighbours() == [1] and twin.neighbours() == []
    (row,) = twin.node.targets(network.now)
    assert row.state == "refused" and "is in use by a live host" in (row.error or "")


def test_a_found_peer_is_asked_before_we_introduce_ourselves() -> None:
    """Another host may answer at its address: no link that stands is touched, nothing is said, and we wait longer."""
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    before = b.node.links()
    a.do(lambda node, now: node._dialer._begin(identity(3).name, now))
    cable = network.cable(a, b, key=identity(3).name)
    assert cable.raise_end(0) == []
    cable.raise_end(1)
    network.settle()
    assert cable.closed == [True, True]
    assert a.closed() == ["not-sought"] and b.node.links() == before
    attempts = a.node._dialer.peers[identity(3).name]
    assert (attempts.dialling, attempts.error) == (False, "another peer answers there")
    assert attempts.next_try > network.now


def test_a_found_peer_that_answers_itself_becomes_a_neighbour() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    a.do(lambda node, now: node._dialer._begin(identity(2).name, now))
    network.join(a, b, key=identity(2).name)
    assert (a.neighbours(), b.neighbours()) == ([2], [1])


def test_whoever_never_says_hello_is_sent_away() -> None:
    network, a = alone()
    a.do(lambda node, now: node.connect(["h2"], now))
    dialled(a, key="h2")
    silence(network, a, network.config.hello_timeout_s - 0.2)
    assert a.closed() == []
    silence(network, a, network.config.hello_timeout_s + 0.2)
    assert a.closed() == ["no-hello"]
    assert [row.state for row in a.node.targets(5.0)] == ["waiting"]


# Several links between the same two


def interleave(network: Network, data: st.DataObject) -> None:
    """Let ends come up and messages arrive in any order that TCP allows, until nothing is left to happen."""
    for _ in range(10_000):
        ends = [(cable, end) for cable in network.cables for end in (0, 1)]
        choices = [(cable.raise_end, end) for cable, end in ends if not cable.up[end] and not cable.closed[end]]
        choices += [(cable.deliver, end) for cable, end in network.deliverable()]
        if not choices:
            return
        action, end = choices[data.draw(st.integers(0, len(choices) - 1))]
        action(end)
    raise AssertionError("they never stop talking")


def check_one_link(a: Actor, b: Actor) -> None:
    (at_a,), (at_b,) = a.node.links(), b.node.links()
    assert (at_a.peer, at_b.peer) == (b.node.name, a.node.name)
    assert at_a.initiator != at_b.initiator
    (link_a,), (link_b,) = a.node._links.values(), b.node._links.values()
    assert a.cables[link_a.id][0] is b.cables[link_b.id][0], "both ends keep the same one"


@settings(max_examples=400)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.data())
def test_any_links_between_two_settle_to_one_in_any_order(from_a: list[bool], data: st.DataObject) -> None:
    """However many, whoever dialled them, whichever hello comes first: exactly one stays, the same at both ends."""
    network = Network(1, 2)
    a, b = network.everybody
    for mine in from_a:
        network.cable(*((a, b) if mine else (b, a)), key="target")
    interleave(network, data)
    check_one_link(a, b)
    assert "refused-name-in-use" not in a.node.counters | b.node.counters


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=1, max_size=3), st.integers(0, 1), st.data())
def test_a_restarted_peer_gets_exactly_one_link_in_any_order(
    from_a: list[bool], dead_end: int, data: st.DataObject
) -> None:
    """Its dead link says nothing; the new ones wait for that to show, however many there are, and one stays."""
    network = Network(1, 2)
    a, b = network.everybody
    dead = network.join(*((a, b) if dead_end else (b, a)))
    dead.cut(dead_end)
    network.everybody.remove(b)
    reborn = network.add(2, life=2)
    network.pass_time(0.5)
    for mine in from_a:
        network.cable(*((a, reborn) if mine else (reborn, a)), key="target")
    interleave(network, data)
    network.pass_time(network.config.challenge_s + 0.2)
    check_one_link(a, reborn)
    assert "refused-name-in-use" not in a.node.counters | reborn.node.counters
    assert a.node.replica.reachable == {reborn.node.name}


def test_a_restarted_peer_is_let_in_the_moment_its_old_link_ends() -> None:
    """Its kernel closes the old connection sooner or later: that is proof enough."""
    network = Network(1, 2)
    a, b = network.everybody
    old = network.join(a, b)
    old.cut(1)
    network.everybody.remove(b)
    reborn = network.add(2, life=2)
    new = network.join(reborn, a)
    assert len(a.node._links) == 2 and a.node.links()[0].since == 0.0
    outcomes = a.do(lambda node, now: node.link_down(old.id_at(0), "reset", now))
    assert [type(message) for message in sent(outcomes)] == [Digest, Ping]
    assert list(a.node._links) == [new.id_at(1)]
    network.settle()
    check_one_link(a, reborn)
    assert reborn.node.replica.store.root_digest() == a.node.replica.store.root_digest()


def test_what_a_peer_says_while_it_waits_is_not_missed() -> None:
    """Its pages are asked for again once it is let in, without waiting for a heartbeat to differ."""
    network = Network(1, 2)
    a, b = network.everybody
    old = network.join(a, b)
    old.cut(1)
    network.everybody.remove(b)
    reborn = network.add(2, life=2)
    reborn.publish(0, b"new life")
    network.join(reborn, a)
    assert a.holds(2, 0) is None
    a.do(lambda node, now: node.link_down(old.id_at(0), "reset", now))
    network.settle()
    assert a.holds(2, 0) == b"new life"


def test_a_link_of_a_running_peer_is_kept_though_a_restarted_one_knocks_behind_it() -> None:
    """A duplicate that replaces the present link does not leave two: whoever waits goes on waiting."""
    network = Network(1, 2)
    a, b = network.everybody
    network.join(b, a)
    twin = network.add(2, life=2)
    network.join(twin, a)
    network.join(b, a)
    assert a.neighbours() == [2]
    network.pass_time(network.config.challenge_s + 0.1)
    check_one_link(a, b)


def test_beyond_so_many_links_a_newcomer_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told why, and tries again later; those who are here stay."""
    monkeypatch.setattr(node_module, "LINKS_HARD_MAX", 3)
    network = Network(1, *range(2, 7))
    hub, *others = network.everybody
    for other in others:
        other.do(lambda node, now: node.connect(["hub"], now))
        network.join(other, hub, key="hub")
    assert hub.neighbours() == [2, 3, 4]
    assert [other.node.targets(0.0)[0].state for other in others] == ["connected"] * 3 + ["waiting"] * 2
    assert "this peer has 3 links" in (others[-1].node.targets(0.0)[0].error or "")


# Heartbeats


def test_heartbeats_keep_a_quiet_link_and_measure_it() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    network.pass_time(60.0)
    assert (a.neighbours(), b.neighbours()) == ([2], [1])
    assert a.node.links()[0].rtt_s == 0.0
    assert a.node.next_timeout() is not None


def test_heartbeats_are_jittered_around_their_interval() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    network.pass_time(5.0)
    pings = []
    for _ in range(200):
        at = a.node.next_timeout()
        assert at is not None
        network.now = max(network.now, at)
        if any(isinstance(message, Ping) for message in sent(a.do(lambda node, now: node.handle_timeout(now)))):
            pings.append(network.now)
        b.do(lambda node, now: node.handle_timeout(now))
        network.settle()
    gaps = [later - earlier for earlier, later in pairwise(pings)]
    assert len(gaps) > 50 and all(0.9 <= gap <= 1.1 for gap in gaps) and max(gaps) - min(gaps) > 0.1


def silence(network: Network, actor: Actor, until_s: float, step_s: float = 0.1) -> None:
    """Time passes for this node alone, with timers looked at all the time: its neighbours have stopped for good."""
    while network.now < until_s:
        network.now += step_s
        actor.node.next_timeout()
        actor.do(lambda node, now: node.handle_timeout(now))


def test_a_silent_neighbour_is_dead_after_three_seconds() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    silence(network, a, 2.8)
    assert a.neighbours() == [2]
    silence(network, a, 3.2)
    assert a.neighbours() == [] and a.closed() == ["silent"]
    assert a.node.counters["links-silent"] == 1
    assert b.node.name not in a.node.replica.reachable
    assert a.node.replica.unreachable_since[b.node.name] == pytest.approx(3.0, abs=0.11)


@pytest.mark.parametrize("message", [Ping(9, bytes(16)), Pong(9, bytes(16))])
def test_anything_at_all_is_a_sign_of_life(message: Ping | Pong) -> None:
    network = Network(1, 2)
    a, _ = network.everybody
    cable = network.join(a, network.everybody[1])
    for _ in range(10):
        silence(network, a, network.now + 2.0)
        a.do(lambda node, now: node.receive(cable.id_at(0), encode(message), now))
    assert a.neighbours() == [2]


def test_a_host_that_was_held_up_itself_accuses_nobody() -> None:
    """Its timers come ten seconds late: by as much its neighbours are forgiven, and no more."""
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    a.node.next_timeout()
    network.now += 10.0
    a.do(lambda node, now: node.handle_timeout(now))
    assert a.neighbours() == [2]
    silence(network, a, network.now + 3.2)
    assert a.neighbours() == []


def test_a_machine_that_is_late_all_the_time_still_finds_the_dead() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b)
    network.everybody.remove(b)
    for cable in network.cables:
        cable.cut(1)
    network.pass_time(60.0, late_s=0.6)
    assert a.node.links() == []


def test_a_hello_that_is_late_because_we_are_is_forgiven() -> None:
    """The same for links on which nobody has said who it is; and the timer does not spin over it."""
    network, a = alone()
    dialled(a)
    a.node.next_timeout()
    network.now = 20.0
    a.node.handle_timeout(network.now)
    due = a.node.next_timeout()
    assert 7 in a.node._links and due is not None and due > network.now
    silence(network, a, network.now + 5.2)
    assert a.node._links == {}


@given(st.lists(st.floats(0.0, 30.0), max_size=8))
def test_timers_early_late_or_twice_do_no_harm(jumps: list[float]) -> None:
    """Whenever it is called: once more at the same moment is the same as once, and something later is always due."""
    network = Network(1, 2)
    a, b = network.everybody
    network.join(a, b, key="h2")
    for jump in jumps:
        network.now += jump
        a.do(lambda node, now: node.handle_timeout(now))
        a.do(lambda node, now: node.handle_timeout(now))
        assert [message for message in sent(a.node.handle_timeout(network.now)) if not isinstance(message, Bye)] == []
        due = a.node.next_timeout()
        assert due is not None and due > network.now
        b.do(lambda node, now: node.handle_timeout(now))
        network.settle()


# Few links


def star(count: int) -> tuple[Network, Actor]:
    """Everybody has a link with the first, and each of the others with enough of its fellows."""
    network = Network(*range(1, count + 2))
    hub, *others = network.everybody
    for other in others:
        network.link(other, hub, key="hub")
    for index, other in enumerate(others):
        for step in range(1, 4):
            network.link(other, others[(index + step) % count])
    network.settle()
    network.pass_time(1.0)
    return network, hub


def test_a_hub_sheds_links_down_to_the_bound() -> None:
    """It says why, those whom it sends away have links enough, and nobody goes out of reach."""
    network, hub = star(16)
    _, high = links_wanted(17)
    assert len(hub.neighbours()) == 16 > high
    network.pass_time(40.0)
    assert len(hub.neighbours()) == high
    assert set(hub.closed()) == {"enough"}
    assert all(len(actor.node.replica.reachable) == 16 for actor in network.everybody)


def test_a_hub_keeps_those_who_would_be_left_with_too_few() -> None:
    network = Network(*range(1, 18))
    hub, *others = network.everybody
    for other in others:
        network.link(other, hub)
    network.settle()
    network.pass_time(20.0)
    assert len(hub.neighbours()) == 16


# Leaving


@pytest.mark.parametrize(("gone", "state"), [(False, AWAY), (True, GONE)])
def test_whoever_leaves_is_known_to_have_left(gone: bool, state: str) -> None:
    """Its last words reach even those who only know it through others, and every link is closed."""
    network = Network(1, 2, 3)
    a, b, c = network.everybody
    network.join(a, b)
    network.join(b, c)
    network.pass_time(2.0)
    assert a.node.name in c.node.replica.reachable
    a.do(lambda node, now: node.leave(gone, now))
    network.everybody.remove(a)
    network.settle()
    assert a.node.links() == [] and a.closed() == ["leaving"]
    network.pass_time(0.2)
    for other in (b, c):
        assert other.node.replica.peers[a.node.name].state == state
        assert a.node.name not in other.node.replica.reachable


def test_last_words_do_not_wait_behind_a_slow_link() -> None:
    network = Network(1, 2)
    a, b = network.everybody
    cable = network.join(a, b)
    a.do(lambda node, now: node.link_full(cable.id_at(0)))
    a.publish(0, b"waits")
    a.do(lambda node, now: node.leave(True, now))
    network.everybody.remove(a)
    network.settle()
    assert b.node.replica.peers[a.node.name].state == GONE


def test_whoever_has_left_dials_nobody_and_does_not_spin() -> None:
    network = Network(1, 2, discovery=True)
    a, b = network.everybody
    a.do(lambda node, now: node.connect(["h2", "h3"], now))
    network.join(a, b)
    a.do(lambda node, now: node.leave(False, now))
    network.settle()
    dials = len(a.dials)
    network.pass_time(120.0)
    assert len(a.dials) == dials


def test_a_link_that_flaps_is_announced_twice_a_second_at_most() -> None:
    """A neighbour that comes and goes all the time must not have the whole mesh told each time; and yet it is told."""
    network = Network(1, 2, 3)
    a, b, c = network.everybody
    network.join(a, b)
    network.pass_time(2.0)
    page_id = (a.node.name, "links", 0)

    def version() -> int:
        page = b.node.replica.store.get(page_id)
        assert page is not None
        return page.version

    before = version()
    for _ in range(100):
        cable = network.join(a, c)
        network.pass_time(0.05)
        cable.queues[0].append(None)
        cable.queues[1].append(None)
        network.pass_time(0.03)
    assert 5 <= version() - before <= 18
    network.pass_time(1.0)
    assert b.node.replica.claims_of(a.node.name) == (b.node.name,)


def test_names_are_those_of_keys() -> None:
    """What a hello proves is a name that nobody else can have."""
    _, a = alone()
    dialled(a)
    a.node.receive(7, hello(2), 0.0)
    said = decode_untrusted(hello(2))
    assert isinstance(said, Hello)
    assert [link.peer for link in a.node.links()] == [name_of_key(said.public_key)]
