"""Sleeves wired together in memory: what a clean network must never lose, and what a bad one must never bring about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.sleeve.loss import BURST, LADDER
from dataplane.sleeve.partner import WINDOW_MIN_BYTES
from dataplane.sleeve.trial import Way
from tests.dataplane.sleeve import soak
from tests.dataplane.sleeve.network import IDLE_TURNS_PER_S, Card, Network, name_of
from tests.dataplane.sleeve.traffic import BROADCAST, TCP, UDP


def mixed(network: Network, duration: float, pairs: tuple[tuple[int, int], ...] = ((0, 1), (1, 0))) -> None:
    """Every kind of flow both ways, plain and in super-frames."""
    random = network.random
    for source, target in pairs:
        network.traffic(network.flow(source, target, TCP), 0.01, duration, lambda: (random.randrange(1, 1396), 0))
        network.traffic(
            network.flow(source, target, TCP), 0.03, duration, lambda: (random.randrange(20_000, 64_000), 1396)
        )
        network.traffic(network.flow(source, target, UDP), 0.01, duration, lambda: (100, 0))
        network.traffic(
            network.flow(source, target, UDP), 0.05, duration, lambda: (random.randrange(4000, 30_000), 1000)
        )
        network.traffic(network.flow(source, target, BROADCAST), 0.1, duration, lambda: (60, 0))


@pytest.mark.parametrize("psks", [(b"s" * 32,), ()], ids=["sealed", "clear"])
@pytest.mark.parametrize("gro", [True, False], ids=["joined", "single"])
@pytest.mark.parametrize("may_segment", [True, False], ids=["segmented", "each-by-itself"])
def test_a_clean_network_loses_and_reorders_nothing(psks: tuple[bytes, ...], gro: bool, may_segment: bool) -> None:
    network = Network(1, psks=psks, card=Card(gro=gro, may_segment=may_segment))
    mixed(network, 1.5)
    network.run(2.0)
    assert network.ledger.missing() == 0
    assert network.counted()["queue-full"] == 0


def test_equal_records_that_the_kernel_joined_are_told_apart() -> None:
    network = Network(2)
    flow = network.flow(0, 1, UDP)
    network.send(flow, 100)
    network.run(1.0)
    network.weather.delay_s = (0.0, 0.01)  # one after the other, and there at the same time
    network.traffic(flow, 0.0001, 0.5, lambda: (100, 0))
    network.run(1.0)
    assert network.ledger.missing() == 0
    assert network.counts["joined"] > 100


@pytest.mark.parametrize("seed", range(6))
def test_joins_at_any_border_lose_nothing(seed: int) -> None:
    network = Network(seed, hosts=3)
    network.weather.split = 0.3
    network.weather.delay_s = (0.0001, 0.003)
    network.weather.stick = 0.02
    mixed(network, 1.0, ((0, 1), (2, 1), (1, 0)))
    network.run(2.0)
    assert network.ledger.missing() == 0


def test_a_peer_that_does_not_answer_costs_no_core_and_holds_no_old_frames() -> None:
    network = Network(3)
    network.blocked = {(0, 1), (1, 0)}
    flow = network.flow(0, 1, TCP)
    network.traffic(flow, 0.1, 5.0, lambda: (1000, 0))
    network.run(20.0)
    assert network.hosts[0].turns < 20 * IDLE_TURNS_PER_S
    assert len(network.partner(0, 1).queue) == 0
    assert network.counted()["peer-silent"] == 50
    hellos = network.counted()["hellos"]
    network.run(60.0)
    assert network.counted()["hellos"] == hellos, "asked on although nobody wants it any more"


@pytest.mark.parametrize("seed", range(4))
def test_peers_may_be_forgotten_while_the_socket_takes_no_more(seed: int) -> None:
    network = Network(seed, hosts=4)
    network.weather.stick = 0.5
    mixed(network, 1.0, ((0, 1), (0, 2), (0, 3), (1, 0), (2, 0)))
    for number in range(40):
        other = 1 + number % 3
        network.after(0.02 * number, lambda other=other: network.hosts[0].sleeve.forget(name_of(other)))  # type: ignore[misc]
        network.after(0.02 * number + 0.013, lambda: network.introduce(network.hosts[0]))
    network.run(3.0)
    assert network.counted()["peer-forgotten"] > 0


@pytest.mark.parametrize("seed", range(100, 125))
def test_a_bad_network_breaks_no_rule_and_is_got_over(seed: int) -> None:
    soak.run(seed)


@pytest.mark.parametrize("sent", range(10))
def test_forgetting_everybody_between_two_datagrams_raises_nothing(sent: int) -> None:
    network = Network(4, hosts=4)
    flows = [network.flow(0, other, TCP) for other in (1, 2, 3)]
    for flow in flows:
        network.send(flow, 100)
    for begin in (0.0, 6.0):  # hellos are due, and later questions
        network.run(begin)
        mind = network.hosts[0].sleeve
        network._read_tap(network.hosts[0])
        outgoing = mind.outgoing(network.now)
        for _, _ in zip(range(sent), outgoing, strict=False):
            pass
        for other in (1, 2, 3):
            mind.forget(name_of(other))
        for _ in outgoing:
            pass
        network.introduce(network.hosts[0])


def test_reports_are_understood_again_after_keys_were_rolled_and_forgotten() -> None:
    network = Network(7)
    flow = network.flow(0, 1, TCP)
    for _ in range(4):
        network.roll(0)
        network.roll(1)
        network.traffic(flow, 0.1, 10.0, lambda: (1000, 0))
        network.run(10.0)
    network.run(1000.0)
    assert not network.hosts[0].sleeve.keyring.sessions
    network.traffic(flow, 0.01, 1.0, lambda: (1000, 0))
    network.run(2.0)
    assert network.ledger.missing() == 0
    assert network.partner(0, 1).reported is not None


@pytest.mark.parametrize("mtu", [1300, 600])
def test_a_path_that_begins_to_swallow_full_datagrams_is_noticed(mtu: int) -> None:
    network = Network(8)
    mixed(network, 20.0, ((0, 1),))
    network.run(5.0)
    assert network.partner(0, 1).datagram_bytes == 1472
    network.weather.mtu = mtu
    network.run(7.0)
    since = network.ledger.mark()
    network.run(9.0)
    assert network.partner(0, 1).datagram_bytes <= mtu
    assert network.ledger.missing(since) == 0


def test_nothing_is_lost_while_keys_roll_and_records_change_their_shape() -> None:
    network = Network(9)
    mixed(network, 20.0)
    shapes = [shape for _, shape in LADDER]
    for step in range(100):
        network.after(0.2 * step, lambda: setattr(network.partner(0, 1).meter, "shape", network.random.choice(shapes)))
        network.after(0.2 * step, lambda: network.roll(network.random.randrange(2)))
    network.run(21.0)
    assert network.ledger.missing() == 0
    assert network.counted()["sessions"] > 6


@pytest.mark.parametrize("psks", [(b"s" * 32,), ()], ids=["sealed", "clear"])
def test_records_are_bursts_again_a_minute_after_the_last_loss(psks: tuple[bytes, ...]) -> None:
    network = Network(10, psks=psks)
    flow = network.flow(0, 1, TCP)
    network.traffic(flow, 0.01, 70.0, lambda: (1390, 0))
    network.weather.loss = 0.1
    network.run(5.0)
    assert network.partner(0, 1).meter.shape.parity > 0
    network.weather.loss = 0.0
    network.run(60.0)
    assert network.partner(0, 1).meter.shape == BURST


def test_a_card_that_spoils_large_sends_is_found_out() -> None:
    network = Network(11, card=Card(corrupts_segments=True))
    mixed(network, 9.0)
    network.run(10.0)
    assert network.partner(0, 1).trial is not None and network.partner(0, 1).trial.way == Way(1472, False)
    assert network.ledger.missing() == 0


def test_a_host_that_moves_takes_its_traffic_along() -> None:
    network = Network(12)
    mixed(network, 10.0)
    network.run(3.0)
    network.roam(0, ("10.9.9.9", 1024))
    network.run(1.0)
    since = network.ledger.mark()
    network.run(7.0)
    assert network.ledger.missing(since) == 0
    assert network.partner(1, 0).address == ("10.9.9.9", 1024)
    for number in range(50):
        network.roam(0, ("10.9.9.9", 2000 + number))
        network.send(network.ledger.flows[0], 100)
        network.run(0.05)
    assert len(network.hosts[1].sleeve._by_address) < 5


def test_a_receiver_that_is_slow_holds_little_and_pings_pass_the_bulk() -> None:
    network = Network(13)
    network.traffic(network.flow(0, 1, TCP), 0.1, 1.0, lambda: (1000, 0))
    network.run(1.0)
    slow = network.hosts[1]
    slow.card = replace(slow.card, turn_s=0.002, receives=1)  # 30 Mbyte/s
    bulk, ping = network.flow(0, 1, TCP), network.flow(0, 1, UDP)
    network.traffic(bulk, 0.0006, 1.0, lambda: (60_000, 1396))
    network.traffic(ping, 0.02, 1.0, lambda: (60, 0))
    most = 0
    for _ in range(100):
        network.run(0.01)
        most = max(most, slow.socket_bytes)
    assert most < 4 * WINDOW_MIN_BYTES
    assert network.counts["socket-full"] == 0 and network.counted()["queue-full"] > 100
    arrived = sum(map(len, bulk.arrived.values()))
    assert arrived * 1396 > 20_000_000, "the receiver had nothing to do"
    network.run(0.5)
    assert len(ping.arrived[1]) == ping.units, "a ping was dropped for bulk"
    assert not network.partner(0, 1).is_blocked(network.now)
    since = network.ledger.mark()
    network.traffic(bulk, 0.1, 1.0, lambda: (60_000, 1396))
    network.run(1.5)
    assert network.ledger.missing(since) == 0


@pytest.mark.parametrize("loss", [0.0004, 0.01, 0.05])
def test_loss_is_measured_as_it_is_whatever_the_shape(loss: float) -> None:
    """A burst that broke counts for the one datagram that is missing and not for all of it, or a path that loses one
    in ten thousand would be taken for one that loses one in a hundred."""
    network = Network(12)
    network.traffic(network.flow(0, 1, TCP), 0.004, 13.0, lambda: (60_000, 1396))
    network.weather.loss = loss
    measured = []
    for _ in range(48):
        network.run(0.25)
        measured.append(network.partner(0, 1).meter.loss)
    mean = sum(measured[16:]) / len(measured[16:])
    assert loss / 2 < mean < 2.5 * loss
