"""Hosts that no datagram joins directly: through others, back again, through NATs, and never in circles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.sleeve import control
from dataplane.sleeve.sleeve import HOP_QUEUE_BYTES
from dataplane.sleeve.trial import Way
from dataplane.sleeve.wire import HEADER_BYTES, NOTE_PROBE, Relayed, encode_note
from gossip.names import PeerName
from tests.dataplane.sleeve.network import Network, name_of
from tests.dataplane.sleeve.traffic import BROADCAST, TCP, UDP

PSKS = pytest.mark.parametrize("psks", [(b"s" * 32,), ()], ids=["sealed", "clear"])


def chatter(network: Network, source: int, target: int, duration: float) -> None:
    network.traffic(network.flow(source, target, UDP), 0.02, duration, lambda: (100, 0))
    network.traffic(network.flow(target, source, UDP), 0.02, duration, lambda: (100, 0))


def lost(network: Network, duration: float) -> int:
    """Of what is sent within so many seconds, how much has not arrived soon after."""
    since = network.ledger.mark()
    network.run(duration)
    until = network.ledger.mark()
    network.run(0.3)
    return network.ledger.missing(since, until)


def bulk(network: Network, source: int, target: int, duration: float) -> None:
    network.traffic(network.flow(source, target, TCP), 0.01, duration, lambda: (60_000, 1396))


@PSKS
def test_two_without_a_way_are_joined_by_a_third_and_nothing_is_lost_then(psks: tuple[bytes, ...]) -> None:
    network = Network(1, hosts=3, psks=psks)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    chatter(network, 0, 2, 6.0)
    network.run(2.0)
    assert network.via(0, 2) == (1,) and network.via(2, 0) == (1,)
    since = network.ledger.mark()
    bulk(network, 0, 2, 2.0)
    bulk(network, 2, 0, 2.0)
    network.run(4.5)
    assert network.ledger.missing(since) == 0


def test_the_first_frames_wait_less_than_a_second_for_a_route() -> None:
    network = Network(2, hosts=3)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    flow = network.flow(0, 2, UDP)
    network.send(flow, 100)
    network.run(1.0)
    assert network.ledger.missing() == 0


def test_several_hops_where_one_does_not_do() -> None:
    network = Network(3, hosts=5)
    for a in range(5):
        for b in range(a + 2, 5):
            network.block(a, b)
    network.link((0, 1), (1, 2), (2, 3), (3, 4))
    network.run(1.5)
    chatter(network, 0, 4, 6.0)
    bulk(network, 0, 4, 6.0)
    network.run(3.0)
    assert network.via(0, 4) == (1, 2, 3)
    assert lost(network, 4.0) == 0


@pytest.mark.parametrize("ways", [((0, 2), (2, 0)), ((0, 2),), ((2, 0),)], ids=["both-ways", "out", "back"])
def test_a_silent_path_is_left_within_three_seconds_and_taken_again(ways: tuple[tuple[int, int], ...]) -> None:
    network = Network(4, hosts=3)
    network.link((0, 1), (1, 2), (0, 2))
    network.run(1.0)
    chatter(network, 0, 2, 40.0)
    network.run(5.0)
    assert network.via(0, 2) == ()
    network.blocked |= set(ways)
    network.run(3.0)
    assert lost(network, 5.0) == 0
    assert network.via(0, 2) == (1,) and network.via(2, 0) == (1,)
    network.blocked.clear()
    assert lost(network, 10.0) == 0, "the way back lost frames"
    assert network.via(0, 2) == () and network.via(2, 0) == ()


def test_a_relay_that_dies_is_replaced_within_four_seconds() -> None:
    network = Network(5, hosts=4)
    network.block(0, 3)
    network.link((0, 1), (1, 3), (0, 2), (2, 3))
    network.run(1.0)
    chatter(network, 0, 3, 20.0)
    network.run(3.0)
    (relay,) = network.via(0, 3)
    network.hosts[relay].is_dead = True
    network.run(3.0)
    assert lost(network, 3.0) == 0
    assert network.via(0, 3) == (3 - relay,)


def test_broadcast_reaches_everybody_once_whatever_the_way() -> None:
    network = Network(6, hosts=4)
    network.block(0, 3)
    network.block(0, 2)
    network.link((0, 1), (1, 2), (1, 3), (2, 3))
    network.run(2.0)
    flow = network.flow(0, 0, BROADCAST)
    network.traffic(flow, 0.05, 4.0, lambda: (60, 0))
    network.run(1.5)
    assert lost(network, 4.0) == 0  # the ledger itself raises where a frame comes twice


@PSKS
def test_two_behind_nats_meet_by_a_third_and_then_directly(psks: tuple[bytes, ...]) -> None:
    network = Network(7, hosts=3, psks=psks)
    network.put_behind_nat(0)
    network.put_behind_nat(2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    begun = network.now
    chatter(network, 0, 2, 100.0)
    while network.via(0, 2) or network.partner(0, 2).address is None:
        network.run(0.05)
        assert network.now < begun + 2.0, "not punched within two seconds"
    network.run(3.0)
    assert network.via(0, 2) == () == network.via(2, 0)
    since = network.ledger.mark()
    bulk(network, 0, 2, 2.0)
    network.run(60.0)
    assert network.ledger.missing(since) == 0
    row = next(row for row in network.hosts[0].sleeve.status(network.now) if row.name == name_of(2))
    assert row.state == control.UP and row.is_translated


def test_nats_that_cannot_be_punched_leave_two_to_the_relay() -> None:
    network = Network(8, hosts=3)
    network.put_behind_nat(0, is_symmetric=True)
    network.put_behind_nat(2, is_symmetric=True)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    chatter(network, 0, 2, 20.0)
    network.run(3.0)
    assert lost(network, 15.0) == 0 and network.via(0, 2) == (1,)


def test_one_behind_a_nat_is_reached_as_soon_as_it_has_dialled() -> None:
    network = Network(9, hosts=2)
    network.put_behind_nat(0)
    network.link((0, 1))
    network.run(1.0)
    flow = network.flow(1, 0, UDP)
    network.traffic(flow, 0.1, 100.0, lambda: (100, 0))
    assert lost(network, 50.0) == 0


def test_a_host_that_moves_while_it_is_relayed_is_found_again() -> None:
    network = Network(10, hosts=3)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    chatter(network, 0, 2, 12.0)
    network.run(3.0)
    network.roam(0, ("10.9.9.9", 4000))
    network.run(3.0)
    assert lost(network, 5.0) == 0


def test_a_lossy_hop_makes_records_small_and_its_parity_saves_them() -> None:
    network = Network(11, hosts=3)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    chatter(network, 0, 2, 30.0)
    bulk(network, 0, 2, 30.0)
    network.weather.loss = 0.01
    network.run(10.0)
    segments = 18.0 / 0.01 * 43
    assert lost(network, 18.0) < 0.01 * segments, "worse than a bare path over two such hops"
    assert network.via(0, 2) == (1,)


def test_nothing_goes_round_where_everybody_is_told_wrong_ways() -> None:
    network = Network(12, hosts=4)
    for a in range(4):
        for b in range(a):
            network.block(a, b)
    everybody = tuple(name_of(index) for index in range(4))
    for host in network.hosts:
        host.sleeve.set_graph(dict.fromkeys(everybody, everybody))
    for a in range(4):
        for b in range(4):
            if a != b:
                network.traffic(network.flow(a, b, UDP), 0.1, 5.0, lambda: (100, 0))
    network.run(30.0)
    assert network.counted()["relayed-datagrams"] < 1000
    assert network.counts["datagrams"] < 5000


def test_a_chain_of_relays_and_traffic_between_all_pairs_loses_nothing() -> None:
    network = Network(13, hosts=4)
    network.block(0, 2)
    network.block(1, 3)
    network.block(0, 3)
    network.link((0, 1), (1, 2), (2, 3))
    network.run(2.0)
    for a in range(4):
        for b in range(a):
            chatter(network, a, b, 10.0)
    network.run(3.0)
    assert lost(network, 6.0) == 0


def test_a_path_that_takes_small_datagrams_only_is_used_with_small_ones() -> None:
    """Probes pass it, and say nothing of what frames need."""
    network = Network(14)
    network.traffic(network.flow(0, 1, UDP), 0.05, 30.0, lambda: (1396, 0))
    network.traffic(network.flow(1, 0, UDP), 0.05, 30.0, lambda: (1396, 0))
    network.run(5.0)
    network.weather.mtu = 1300
    network.run(4.0)
    assert lost(network, 5.0) == 0
    assert network.partner(0, 1).datagram_bytes <= 1300


def test_bulk_to_a_hop_does_not_starve_what_goes_through_it() -> None:
    network = Network(15, hosts=3)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    ping = network.flow(0, 2, UDP)
    network.traffic(ping, 0.02, 12.0, lambda: (100, 0))
    network.run(2.0)
    slow = network.hosts[1]
    slow.card = replace(slow.card, turn_s=0.002, receives=1)
    network.traffic(network.flow(0, 1, TCP), 0.0006, 6.0, lambda: (60_000, 1396))
    network.run(1.0)
    assert network.partner(0, 1).queue.held_bytes > HOP_QUEUE_BYTES, "the hop was not busy"
    before = len(ping.arrived[2])
    network.run(4.0)
    assert len(ping.arrived[2]) - before > 0.9 * 4.0 / 0.02


def test_one_frame_that_is_lost_leaves_an_idle_pair_as_it_was() -> None:
    network = Network(16)
    flow = network.flow(0, 1, UDP)
    network.traffic(flow, 0.1, 1.0, lambda: (100, 0))
    network.run(20.0)
    network.weather.loss = 1.0
    network.send(flow, 100)
    network.run(0.1)
    network.weather.loss = 0.0
    network.run(5.0)
    (row,) = network.hosts[0].sleeve.status(network.now)
    assert row.state == control.UP
    network.weather.loss = 1.0
    network.send(flow, 100)
    network.run(60.0)
    before = network.counts["datagrams"]
    network.run(60.0)
    assert network.counts["datagrams"] == before, "asked on although nobody wants it any more"


@pytest.mark.parametrize("delay_s", [0.0002, 0.05])
def test_a_pair_that_falls_idle_falls_silent(delay_s: float) -> None:
    network = Network(17)
    network.weather.delay_s = (delay_s, delay_s)
    network.traffic(network.flow(0, 1, UDP), 0.1, 2.0, lambda: (100, 0))
    network.run(30.0)
    before = network.counts["datagrams"]
    network.run(600.0)
    assert network.counts["datagrams"] == before


def test_a_record_full_of_probes_is_answered_once() -> None:
    """Whatever address it seems to come from, and it learns of no address that way."""
    network = Network(18)
    network.traffic(network.flow(0, 1, UDP), 0.1, 1.0, lambda: (100, 0))
    network.run(1.0)
    host, partner = network.hosts[0], network.partner(0, 1)
    session = host.sleeve.keyring.current(name_of(1))
    assert session is not None
    before = network.counts["datagrams"]
    for number in range(200):
        record = host.sleeve.take_buffer()
        note = encode_note(NOTE_PROBE, number.to_bytes(8, "big"))
        record.end = HEADER_BYTES + 100 * len(note)
        record.view[HEADER_BYTES : record.end] = note * 100
        for pieces, _, _ in host.sleeve.sender.seal_burst(partner, session, record, Way(1472, False)):
            network._arrive_at(network.now, 1, b"".join(pieces), ("203.0.113.9", number))
        network.run(0.001)
    network.run(1.0)
    assert network.counts["datagrams"] - before < 300
    assert len(network.hosts[1].sleeve._by_address) < 10


def test_a_host_that_lies_about_whom_it_reaches_takes_no_ways_away() -> None:
    """It says that it is everybody's neighbour; those that it names do not."""
    network = Network(19, hosts=4)
    network.block(0, 3)
    network.link((0, 1), (0, 2), (2, 3))
    network.block(1, 3)
    network.run(1.0)
    names = [name_of(index) for index in range(4)]
    honest = {names[0]: (names[1], names[2]), names[2]: (names[0], names[3]), names[3]: (names[2],)}
    for host in network.hosts:
        host.sleeve.set_graph({**honest, names[1]: tuple(names)})
        set_graph = host.sleeve.set_graph
        host.sleeve.set_graph = lambda graph, give=set_graph: give({**graph, names[1]: tuple(names)})  # type: ignore[method-assign]
    chatter(network, 0, 3, 6.0)
    network.run(2.0)
    assert lost(network, 3.0) == 0 and network.via(0, 3) == (2,)


def test_names_that_a_member_makes_up_get_it_no_larger_share_of_a_hop() -> None:
    network = Network(20, hosts=3)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    relay = network.hosts[1].sleeve
    source, hop = relay.partners[name_of(0)], relay.partners[name_of(2)]
    for number in range(500):
        route = (name_of(0), name_of(1), name_of(2), PeerName(number.to_bytes(8, "big")))
        relay.relay.take_untrusted(source, Relayed(route, 1, 0, memoryview(bytes(1000))), network.now)
    assert len(hop.queue._flows) == 1


def test_a_way_that_was_asked_for_in_time_has_no_first_frame_to_wait_for() -> None:
    """The daemon says whose other path is in doubt before it gives that up."""
    network = Network(21, hosts=3)
    network.block(0, 2)
    network.link((0, 1), (1, 2))
    network.run(1.0)
    network.hosts[0].sleeve.expect(name_of(2), network.now)
    network.wake(network.hosts[0], network.now)
    network.run(1.5)
    flow = network.flow(0, 2, UDP)
    network.send(flow, 100)
    network.run(0.01)
    assert network.ledger.missing() == 0
    network.run(30.0)
    before = network.counts["datagrams"]
    network.run(30.0)
    kept = network.counts["datagrams"] - before
    assert kept < 4 * 4 * 30.0 / 5.0, "asked on although nothing came of it"
