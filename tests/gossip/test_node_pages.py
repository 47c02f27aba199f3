"""How news travels: to everybody once, past slow links, into stores that were cut off, and out of memory in the end."""

from __future__ import annotations

import pytest

import gossip.documents as documents
from gossip.documents import sign_page
from gossip.errors import ProtocolError
from gossip.events import CloseLink, NameConflict, OwnerForgotten, PageChanged, Send, Settled, StoreEpoch
from gossip.linkstate import DIGEST_PASS_INTERVAL_S, FLUSH_PAGES
from gossip.names import PeerName
from gossip.node import RESYNC_DOUBLINGS_MAX
from gossip.peers import GONE, PEER_TABLE, encode_peer
from gossip.wire import (
    ENTRIES_MAX,
    FIRST_NAME,
    LAST_NAME,
    Digest,
    Have,
    Message,
    PageMessage,
    Ping,
    Pong,
    Want,
    decode_untrusted,
    encode,
)
from tests.gossip.actors import identity, page, record
from tests.gossip.network import Actor, Cable, Network, sent


def ring(count: int, **config: object) -> Network:
    """Neighbours on both sides, and one chord across."""
    network = Network(*range(1, count + 1), **config)
    for index, actor in enumerate(network.everybody):
        network.link(actor, network.everybody[(index + 1) % count])
    network.link(network.everybody[0], network.everybody[count // 2])
    network.settle()
    network.pass_time(2.0)
    return network


def pair(**config: object) -> tuple[Network, Actor, Actor, Cable]:
    network = Network(1, 2, **config)
    a, b = network.everybody
    cable = network.join(a, b)
    network.pass_time(1.0)
    return network, a, b, cable


def say(actor: Actor, cable: Cable, message: Message) -> list[Message]:
    """What `actor` answers, at its end of `cable`, to a message that nobody really sent."""
    end = cable.actors.index(actor)
    return sent(actor.node.receive(cable.id_at(end), encode(message), actor.network.now))


def waiting(cable: Cable) -> list[Message]:
    return [decode_untrusted(data) for queue in cable.queues for data in queue if data is not None]


# Flooding


def test_news_reaches_everybody_and_crosses_no_link_more_than_once_each_way() -> None:
    network = ring(8)
    crossed = 0
    network.everybody[2].publish(0, b"news")
    while due := network.deliverable():
        for cable, end in due:
            crossed += isinstance(decode_untrusted(cable.queues[end][0] or b""), PageMessage)
            cable.deliver(end)
    assert all(actor.holds(3, 0) == b"news" for actor in network.everybody)
    links = len(network.cables)
    assert links <= crossed <= 2 * links - (len(network.everybody) - 1)
    for actor in network.everybody:
        expected = [PageChanged(identity(3).name, "rows", 0)] if actor.number != 3 else []
        assert [event for event in actor.heard if isinstance(event, PageChanged) and event.table == "rows"] == expected


def test_the_same_page_again_is_no_news_and_goes_nowhere() -> None:
    network, a, _, cable = pair()
    a.publish(0, b"news")
    network.settle()
    assert a.publish(0, b"news") == []
    assert say(network.everybody[1], cable, PageMessage(page(9).raw, 0)) == []
    assert say(network.everybody[1], cable, PageMessage(page(9).raw, 0)) == []
    assert network.everybody[1].node.counters["pages-old"] >= 1


def test_a_page_whose_like_we_cannot_read_goes_on_to_others() -> None:
    """A later release says more than we understand: it reaches those behind us, and stores stay equal."""
    network = ring(4)
    first = network.everybody[0]
    odd = page(9, PEER_TABLE, 0, body=b"\xc1")
    network.cables[0].actors[1].node.receive(network.cables[0].id_at(1), encode(PageMessage(odd.raw, 0)), network.now)
    told = network.everybody[1].do(
        lambda node, now: node.receive(
            network.cables[1].id_at(0), encode(PageMessage(page(9, PEER_TABLE, 0, version=2, body=b"\xc1").raw, 0)), now
        )
    )
    assert told
    network.settle()
    assert all(actor.node.replica.store.get(odd.id) is not None for actor in network.everybody)
    assert first.node.counters["pages-malformed"] == 1
    assert first.neighbours() == [2, 3, 4]


def test_pages_for_which_there_is_no_room_cost_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores that are full of different owners disagree for ever; the neighbours stay neighbours."""
    network, a, b, cable = pair()
    monkeypatch.setattr(documents, "OWNERS_MAX", 4)
    for number in (11, 12, 13):
        say(a, cable, PageMessage(page(number).raw, 0))
        say(b, cable, PageMessage(page(number + 10).raw, 0))
    network.pass_time(60.0)
    assert (a.neighbours(), b.neighbours()) == ([2], [1])
    assert a.node.counters["pages-too-many"] > 0
    assert a.node.replica.store.root_digest() != b.node.replica.store.root_digest()


# Slow links


def test_a_slow_link_gets_the_newest_version_once() -> None:
    """While the socket takes nothing, a hundred changes of one page become one."""
    network, a, b, cable = pair()
    a.do(lambda node, now: node.link_full(cable.id_at(0)))
    for version in range(100):
        assert sent(a.publish(0, b"%d" % version)) == []
    told = sent(a.do(lambda node, now: node.link_ready(cable.id_at(0), now)))
    assert len(told) == 1
    network.settle()
    assert b.holds(1, 0) == b"99"


def test_a_link_that_is_ready_again_gets_a_batch_at_a_time() -> None:
    """The socket may be full again after each: what waits is sent as fast as it is taken, and everything arrives."""
    network, a, b, cable = pair()
    a.do(lambda node, now: node.link_full(cable.id_at(0)))
    for index in range(3 * FLUSH_PAGES + 5):
        a.publish(index, b"body")
    batches = [len(sent(a.do(lambda node, now: node.link_ready(cable.id_at(0), now))))]
    a.do(lambda node, now: node.link_full(cable.id_at(0)))
    assert [m for m in sent(a.do(lambda node, now: node.handle_timeout(now))) if isinstance(m, PageMessage)] == []
    batches.append(len(sent(a.do(lambda node, now: node.link_ready(cable.id_at(0), now)))))
    assert batches == [FLUSH_PAGES, FLUSH_PAGES]
    before = network.now
    network.pass_time(0.0)
    assert network.now == before
    assert b.holds(1, 3 * FLUSH_PAGES + 4) == b"body"


def test_several_links_with_pages_waiting_all_go_on() -> None:
    """None of them is forgotten because another has nothing left to send."""
    network = Network(1, 2, 3, 4)
    hub, *others = network.everybody
    cables = [network.join(hub, other) for other in others]
    network.pass_time(1.0)
    for cable in cables[:2]:
        hub.do(lambda node, now, link=cable.id_at(0): node.link_full(link))  # type: ignore[misc]  # noqa: B008
    for index in range(3 * FLUSH_PAGES):
        hub.publish(index, b"body")
    for cable in cables[:2]:
        hub.do(lambda node, now, link=cable.id_at(0): node.link_ready(link, now))  # type: ignore[misc]  # noqa: B008
    network.pass_time(0.01)
    assert all(other.holds(1, 3 * FLUSH_PAGES - 1) == b"body" for other in others)


def test_what_a_neighbour_turns_out_to_have_is_not_sent_to_it() -> None:
    """It told us of a newer version while ours waited for its link."""
    network, a, _, to_b = pair()
    c = network.add(3)
    to_c = network.join(c, a)
    a.do(lambda node, now: node.link_full(to_b.id_at(0)))
    say(a, to_c, PageMessage(page(9, version=1).raw, 0))
    assert list(a.node._links[to_b.id_at(0)].waiting) == [page(9).id]
    say(a, to_b, PageMessage(page(9, version=2).raw, 0))
    assert list(a.node._links[to_b.id_at(0)].waiting) == []


def test_a_full_link_is_asked_nothing_and_answers_nothing_large() -> None:
    """Whoever asks and does not read is not answered: neither stamps nor pages nor even heartbeats pile up."""
    network, a, _, cable = pair()
    for index in range(5):
        a.publish(index, b"body")
    network.settle()
    a.do(lambda node, now: node.link_full(cable.id_at(0)))
    everything = Want(a.node.name, tuple(("rows", index) for index in range(5)))
    for _ in range(50):
        for question in (Digest(FIRST_NAME, LAST_NAME, ()), everything, Ping(1, bytes(16))):
            assert say(a, cable, question) == []
        assert say(a, cable, Have(a.node.name, 0, ("", 0), ("z", 0), ())) == []
    assert len(a.node._links[cable.id_at(0)].waiting) == 5
    assert a.node.counters["answers-spared"] == 100


# Comparing


def test_a_newcomer_is_told_everything_by_one_exchange_and_says_that_it_is_settled() -> None:
    network, a, b, _ = pair()
    for index in range(100):
        a.publish(index, b"body")
    network.settle()
    newcomer = network.add(3)
    newcomer.publish(0, b"mine")
    network.join(newcomer, a)
    network.pass_time(0.5)
    assert newcomer.holds(1, 99) == b"body" and b.holds(3, 0) == b"mine"
    assert sum(isinstance(event, Settled) for event in newcomer.heard) == 1
    assert "resyncs" not in newcomer.node.counters
    network.pass_time(30.0)
    assert sum(isinstance(event, Settled) for actor in network.everybody for event in actor.heard) == 3


def test_a_page_that_was_lost_is_found_by_heartbeats() -> None:
    """Digests in every ping show a difference; two in a row lead to an exchange."""
    network, a, b, cable = pair()
    network.pass_time(10.0)
    a.publish(0, b"lost")
    cable.queues[1].clear()
    network.settle()
    assert b.holds(1, 0) is None
    network.pass_time(2.5)
    assert b.holds(1, 0) == b"lost"


def test_stores_that_will_not_agree_are_compared_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without end, but not often; when they do agree, the next difference is repaired as fast as ever."""
    network, a, b, cable = pair()
    say(a, cable, PageMessage(page(9).raw, 0))
    b.node.replica.store.offer = lambda page, limited=True: (_ for _ in ()).throw(  # type: ignore[method-assign]
        ProtocolError("too-many", "full")
    )
    network.pass_time(600.0)
    resyncs = a.node.counters["resyncs"] + b.node.counters.get("resyncs", 0)
    longest_s = network.config.resync_interval_s * 2**RESYNC_DOUBLINGS_MAX
    assert 600 / longest_s / 1.5 <= resyncs <= 2 * (600 / longest_s / 0.75 + RESYNC_DOUBLINGS_MAX + 1)
    del b.node.replica.store.offer
    network.pass_time(1.5 * longest_s)
    assert b.node.replica.store.root_digest() == a.node.replica.store.root_digest()
    a.publish(0, b"lost")
    cable.queues[1].clear()
    network.pass_time(2.5)
    assert b.holds(1, 0) == b"lost"


def test_everything_is_compared_once_a_second_however_often_a_neighbour_asks() -> None:
    """A small question with a large answer: the parts of one pass follow each other freely, passes do not."""
    network, a, _, cable = pair()
    a.publish(0, b"body")
    network.settle()
    question = Digest(FIRST_NAME, LAST_NAME, ())
    network.now += 10.0
    assert len(say(a, cable, question)) == 5
    assert [say(a, cable, question) for _ in range(20)] == [[]] * 20
    assert a.node.counters["digests-too-soon"] == 20
    network.now += DIGEST_PASS_INTERVAL_S
    assert len(say(a, cable, question)) == 5
    network.now += DIGEST_PASS_INTERVAL_S
    middle = identity(1).name
    before, behind = ((int.from_bytes(middle, "big") + step).to_bytes(8, "big") for step in (-1, 1))
    rows = tuple((FIRST_NAME, bytes(16)) for _ in range(ENTRIES_MAX))
    assert say(a, cable, Digest(FIRST_NAME, PeerName(before), rows)) != []
    assert len(say(a, cable, Digest(middle, middle, rows))) >= 3
    assert say(a, cable, Digest(middle, middle, rows)) == [], "going back is a new pass"
    assert say(a, cable, Digest(PeerName(behind), LAST_NAME, ())) == [], "and what was refused is not gone on with"


# Forgetting


def gone(network: Network, actor: Actor) -> None:
    actor.do(lambda node, now: node.leave(True, now))
    network.settle()
    network.everybody.remove(actor)


def test_who_is_gone_is_forgotten_by_everybody_for_good() -> None:
    """Each host forgets in its own time; none is reminded by another that still remembers."""
    network = ring(6, forget_gone_after_s=60.0)
    leaver = network.everybody[3]
    leaver.publish(0, b"body")
    network.settle()
    gone(network, leaver)
    network.pass_time(55.0)
    assert all(leaver.node.name in actor.node.replica.peers for actor in network.everybody)
    network.pass_time(25.0)
    for actor in network.everybody:
        assert leaver.node.name not in actor.node.replica.store
        assert actor.heard.count(OwnerForgotten(leaver.node.name)) == 1
        assert leaver.node.name not in actor.node._dialer.peers
    before = [dict(actor.node.counters) for actor in network.everybody]
    network.pass_time(120.0)
    assert [actor.node.counters for actor in network.everybody] == before, "and nothing more is said of it"


def test_a_host_that_was_cut_off_does_not_bring_back_the_dead() -> None:
    """It holds them as they were; what it says of their age is believed."""
    network = Network(1, 2, 3, forget_after_s=100.0)
    a, b, c = network.everybody
    network.join(a, b)
    cable = network.join(b, c)
    network.pass_time(2.0)
    a.publish(0, b"body")
    network.settle()
    for end in (0, 1):
        cable.queues[end].append(None)
    network.settle()
    a.do(lambda node, now: node.leave(False, now))
    network.settle()
    network.everybody.remove(a)
    network.pass_time(97.0)
    b.node.replica.forget_expired(network.now + 50.0)
    assert identity(1).name not in b.node.replica.store and c.holds(1, 0) == b"body"
    network.join(c, b)
    network.pass_time(40.0)
    for actor in (b, c):
        assert identity(1).name not in actor.node.replica.store


def test_a_host_that_comes_back_after_it_was_forgotten_is_welcome() -> None:
    network = Network(1, 2, forget_gone_after_s=30.0)
    a, b = network.everybody
    network.join(a, b)
    gone(network, b)
    network.pass_time(50.0)
    assert identity(2).name not in a.node.replica.store
    again = network.add(2, life=2)
    network.join(again, a)
    network.pass_time(1.0)
    assert a.node.replica.reachable == {again.node.name}
    assert a.node.replica.peers[again.node.name] == record(2, 2)


def test_a_host_that_comes_back_is_told_at_once_to_those_who_hold_it_for_dead() -> None:
    """Its first news passes hosts that have not heard yet how to reach it, though to them it has long expired."""
    network = Network(1, 2, 3, forget_gone_after_s=1e6)
    a, b, c = network.everybody
    network.join(a, b)
    network.join(b, c)
    network.pass_time(2.0)
    gone(network, a)
    network.pass_time(30.0)
    for actor in (b, c):
        actor.node.replica._forget_gone_after_s = 1.0
        actor.node._forget_due = 1e9
    assert b.node.replica.is_expired(identity(1).name, network.now)
    again = network.add(1, life=2)
    again.publish(0, b"back")
    network.join(again, b)
    network.pass_time(0.2)
    assert c.holds(1, 0) == b"back"
    assert again.node.name in c.node.replica.reachable


# Our own documents


def test_what_an_earlier_life_left_behind_is_withdrawn() -> None:
    """A restarted host that does not use a page any more: its neighbours learn it within one exchange."""
    network, a, b, cable = pair()
    b.publish(0, b"kept")
    b.publish(1, b"not kept")
    network.settle()
    cable.cut(1)
    a.do(lambda node, now: node.link_down(cable.id_at(0), "gone", now))
    network.everybody.remove(b)
    reborn = network.add(2, life=2)
    reborn.publish(0, b"kept")
    network.join(reborn, a)
    network.pass_time(1.0)
    assert (a.holds(2, 0), a.holds(2, 1)) == (b"kept", b"")
    assert a.node.replica.store.root_digest() == reborn.node.replica.store.root_digest()


def test_a_host_restored_from_a_backup_speaks_on_under_a_later_epoch() -> None:
    """The epoch goes to disk first; then everything is said anew, and believed."""
    network, a, b, _ = pair()
    later = sign_page(identity(2), "rows", 0, 40, 7, b"a later life")
    say(a, network.cables[0], PageMessage(later.raw, 0))
    b.publish(0, b"restored")
    network.pass_time(10.0)
    assert [each for each in b.heard if isinstance(each, StoreEpoch)] == [StoreEpoch(41)]
    assert a.holds(2, 0) == b"a later life", "nothing is said before the epoch is on disk"
    network.pass_time(60.0)
    assert sum(isinstance(each, StoreEpoch) for each in b.heard) == 1, "the disk is full: once is enough"
    b.do(lambda node, now: node.epoch_stored(41, now))
    network.settle()
    assert a.holds(2, 0) == b"restored"
    assert a.node.replica.store.root_digest() == b.node.replica.store.root_digest()


def test_a_host_whose_twin_persists_leaves_and_stays_away() -> None:
    """It says so once, closes its links with the reason, lets nobody in and does nothing more."""
    network, a, _, cable = pair()
    lower = record(1, instance=bytes(16))
    for epoch in range(2, 10):
        body = encode_peer(lower)
        outcomes = a.do(
            lambda node, now, raw=sign_page(identity(1), PEER_TABLE, 0, epoch, 1, body).raw: node.receive(  # type: ignore[misc]  # noqa: B008
                cable.id_at(0), encode(PageMessage(raw, 0)), now
            )
        )
        for outcome in outcomes:
            if isinstance(outcome, StoreEpoch):
                a.do(lambda node, now, epoch=outcome.epoch: node.epoch_stored(epoch, now))  # type: ignore[misc]
        if a.node.conflict:
            break
    (conflict,) = [event for event in a.heard if isinstance(event, NameConflict)]
    assert "weft reset" in conflict.text
    assert a.closed() == ["name-in-use"] and a.node.links() == []
    assert a.node.next_timeout() is None and a.node.handle_timeout(1e6) == []
    assert a.node.connect(["h2"], network.now) == []
    outcomes = a.node.link_up(99, False, bytes(32), "10.9.0.3:1", None, network.now)
    assert [type(outcome) for outcome in outcomes] == [Send, CloseLink]


def test_an_answer_to_an_old_heartbeat_measures_nothing() -> None:
    network, a, _, cable = pair()
    before = a.node.links()[0].rtt_s
    network.now += 5.0
    say(a, cable, Pong(0, bytes(16)))
    assert a.node.links()[0].rtt_s == before


def test_late_questions_of_a_forgotten_link_are_ignored() -> None:
    network, a, _, cable = pair()
    link = cable.id_at(0)
    a.do(lambda node, now: node.link_down(link, "closed", now))
    a.node.link_full(link)
    assert a.node.link_ready(link, network.now) == []
    assert a.node.receive(link, encode(Ping(1, bytes(16))), network.now) == []
    assert a.node.link_down(link, "closed", network.now) == []
    assert GONE not in [record.state for record in a.node.replica.peers.values()]
