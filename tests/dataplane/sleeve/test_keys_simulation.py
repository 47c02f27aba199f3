"""Keyrings on a bad network under a virtual clock: whatever happens to their datagrams, they find a key and keep it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random

import pytest

from dataplane.sleeve.control import CONNECTING, IDLE, SILENT, UP, WRONG_SECRET
from dataplane.sleeve.keys import SESSIONS_PER_PEER_MAX
from tests.dataplane.sleeve.rings import OTHER_SECRET, SECRET, Network, Weather, name_of

BAD = Weather(loss=0.2, repeat=0.2, delay_s=(0.001, 0.4))


def check_bounds(network: Network) -> None:
    for host in network.hosts:
        others = len(network.hosts) - 1
        assert len(host.ring.sessions) <= SESSIONS_PER_PEER_MAX * others
        assert len(host.ring._openings) <= others
        assert len(host.ring._heap) <= 50 * others
        assert set(host.ring._confirming) <= set(host.ring.sessions)


@pytest.mark.parametrize("seed", range(12))
def test_rolls_under_traffic_lose_no_record(seed: int) -> None:
    """On a network that only delays and reorders, every record offered arrives once, over many rolls."""
    network = Network(seed)
    network.weather = Weather(repeat=0.1, delay_s=(0.001, 0.3))
    until = 700.0
    network.traffic(0, 1, 0.1, until)
    if seed % 3:
        network.traffic(1, 0, 0.1 if seed % 3 == 1 else 2.0, until)
    network.run(until + 10)
    counts = Counter(network.delivered)
    assert set(counts.values()) == {1}
    assert len(counts) == network.counts["offered"]
    welcomes = sum(host.ring.counters["welcomes"] for host in network.hosts if "welcomes" in host.ring.counters)
    assert 5 <= welcomes <= 8
    check_bounds(network)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_arrives_is_lost_on_a_bad_network(seed: int) -> None:
    """Loss, repetition and reordering: what the network delivers opens (checked at each arrival), nothing twice."""
    network = Network(seed, hosts=3)
    network.weather = BAD
    for source, target in ((0, 1), (1, 0), (0, 2), (2, 1)):
        network.traffic(source, target, 0.25, 400.0)
    network.run(420.0)
    assert set(Counter(network.delivered).values()) == {1}
    assert len(network.delivered) > 0.7 * network.counts["offered"]
    check_bounds(network)


@pytest.mark.parametrize("seed", range(10))
def test_restarts_are_got_over_in_seconds(seed: int) -> None:
    network = Network(seed, hosts=3)
    network.weather = Weather(loss=0.05, repeat=0.1, delay_s=(0.001, 0.1))
    for source, target in ((0, 1), (1, 0), (1, 2), (2, 0)):
        network.traffic(source, target, 0.1, 200.0)
    for number in range(6):
        when = network.random.uniform(1.0, 150.0)
        network.at(when, lambda number=number: network.restart(number % 3))  # type: ignore[misc]
    network.run(170.0)
    start = len(network.delivered)
    offered = network.counts["offered"]
    network.run(205.0)
    assert len(network.delivered) - start > 0.9 * (network.counts["offered"] - offered)
    assert network.agreed(0, 1)
    assert network.agreed(1, 2)
    assert network.agreed(0, 2)
    check_bounds(network)


@pytest.mark.parametrize("seed", range(5))
def test_a_restarted_host_is_reached_again_within_a_second_on_a_good_network(seed: int) -> None:
    network = Network(seed)
    network.traffic(0, 1, 0.05, 40.0)
    network.run(20.0 + seed / 10)
    network.restart(1)
    network.run(network.now + 1.0)
    last = network.delivered[-1]
    network.run(network.now + 0.2)
    assert network.delivered[-1] != last
    assert network.agreed(0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_hosts_that_begin_at_once_end_up_under_one_session(seed: int) -> None:
    network = Network(seed)
    network.weather = BAD if seed % 2 else Weather(delay_s=(0.05, 0.06))
    network.traffic(0, 1, 0.5, 60.0)
    network.traffic(1, 0, 0.5, 60.0)
    network.run(60.0)
    assert network.agreed(0, 1)
    assert network.state(0, 1) == network.state(1, 0) == UP


def test_an_idle_pair_sends_nothing_and_forgets_its_keys() -> None:
    network = Network(1)
    network.traffic(0, 1, 1.0, 20.0)
    network.run(60.0)
    sent = network.counts["records"], len(network.seen_on_wire)
    network.run(1000.0)
    assert (network.counts["records"], len(network.seen_on_wire)) == sent
    assert network.state(0, 1) == network.state(1, 0) == IDLE
    assert [len(host.ring.sessions) for host in network.hosts] == [0, 0]
    assert [host.ring.next_due() for host in network.hosts] == [None, None]


def test_a_dead_peer_costs_a_few_hellos_while_traffic_wants_it() -> None:
    network = Network(2)
    network.blocked = {(0, 1)}
    network.traffic(0, 1, 0.01, 100.0)
    network.run(1.0)
    assert network.state(0, 1) == CONNECTING
    network.run(100.0)
    assert network.state(0, 1) == SILENT
    assert 20 <= len(network.seen_on_wire) <= 30
    hellos = len(network.seen_on_wire)
    network.run(125.0)
    assert len(network.seen_on_wire) <= hellos + 3
    assert network.state(0, 1) == SILENT
    network.run(300.0)
    assert network.state(0, 1) == IDLE
    assert network.hosts[0].ring.next_due() is None


@pytest.mark.parametrize("ways", [{(0, 1)}, {(1, 0)}, {(0, 1), (1, 0)}])
def test_a_break_is_seen_and_got_over(ways: set[tuple[int, int]]) -> None:
    """Either direction, or both: silent within seconds, and up soon after it is healed, without a lost session."""
    network = Network(3)
    network.traffic(0, 1, 0.1, 200.0)
    network.traffic(1, 0, 0.1, 200.0)
    network.run(10.0)
    network.blocked = ways
    network.run(30.0)
    assert SILENT in {network.state(0, 1), network.state(1, 0)}
    network.blocked = set()
    network.run(40.0)
    assert network.state(0, 1) == network.state(1, 0) == UP
    assert network.agreed(0, 1)


@pytest.mark.parametrize("traffic", ["one way", "both ways"])
def test_one_way_traffic_survives_the_loss_of_every_confirmation_for_a_while(traffic: str) -> None:
    """The initiator's records do not arrive for 20 s just after a roll: the responder goes on under the old session,
    and the initiator still has it."""
    network = Network(4)
    network.traffic(0, 1, 1.0, 5.0)
    network.run(6.0)
    assert network.hosts[0].ring.sessions
    network.traffic(1, 0, 0.1, 400.0)
    if traffic == "both ways":
        network.traffic(0, 1, 0.1, 400.0)
    while network.hosts[0].ring.counters["welcomes"] < 2:
        network.run(network.now + 0.01)
    network.blocked = {(0, 1)}
    network.run(network.now + 20.0)
    network.blocked = set()
    network.run(400.0)
    sent_back = [data for source, _, data in network.delivered if source == 1]
    assert len(sent_back) == len(set(sent_back)) == 3940


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((SECRET,), (SECRET, OTHER_SECRET)),
        ((SECRET,), (OTHER_SECRET, SECRET)),
        ((SECRET, OTHER_SECRET), (SECRET,)),
        ((OTHER_SECRET, SECRET), (SECRET,)),
        ((OTHER_SECRET, SECRET), (SECRET, OTHER_SECRET)),
        ((b"1" * 32, b"2" * 32, SECRET), (b"3" * 32, b"4" * 32, SECRET)),
        ((), ()),
    ],
)
@pytest.mark.parametrize("initiator", [0, 1])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_one_secret_in_common_is_enough(
    one: tuple[bytes, ...], other: tuple[bytes, ...], initiator: int, loss: float
) -> None:
    network = Network(5, psks=(one, other))
    network.weather.loss = loss
    network.traffic(initiator, 1 - initiator, 0.2, 30.0)
    network.run(1.0)
    if not loss:
        assert network.state(initiator, 1 - initiator) == UP
    network.run(30.0)
    assert network.state(0, 1) == network.state(1, 0) == UP
    expected = "none" if one == () else "aes-256-gcm"
    session = network.hosts[0].ring.current(name_of(1))
    assert session is not None
    assert session.cipher == expected
    assert (session.seal is None) == (session.open is None) == (one == ())


@pytest.mark.parametrize(
    ("one", "other"), [((SECRET,), (OTHER_SECRET,)), ((), (SECRET,)), ((SECRET, b"1" * 32), (OTHER_SECRET, b"2" * 32))]
)
def test_a_wrong_secret_is_said_and_found_corrected(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    network = Network(6, psks=(one, other))
    network.traffic(0, 1, 0.1, 100.0)
    network.run(1.0)
    assert network.state(0, 1) == WRONG_SECRET
    network.run(60.0)
    assert network.state(0, 1) == WRONG_SECRET
    assert network.state(1, 0) == IDLE
    assert network.counts["records"] == 0
    assert len(network.seen_on_wire) < 80
    network.restart(1, one)
    network.run(70.0)
    assert network.state(0, 1) == UP
    assert network.delivered


def test_a_wrong_secret_whose_host_goes_away_becomes_silent() -> None:
    network = Network(7, psks=((SECRET,), (OTHER_SECRET,)))
    network.traffic(0, 1, 0.1, 100.0)
    network.run(20.0)
    network.blocked = {(0, 1)}
    network.run(60.0)
    assert network.state(0, 1) == SILENT


@pytest.mark.parametrize("seed", range(5))
def test_repeating_everything_ever_heard_changes_nothing(seed: int) -> None:
    """All handshakes seen so far again and again, from the side, over rolls and a restart."""
    network = Network(seed)
    network.weather = Weather(loss=0.05, delay_s=(0.001, 0.1))
    network.traffic(0, 1, 0.2, 300.0)
    network.traffic(1, 0, 0.3, 300.0)

    def repeat() -> None:
        for source, target, datagram in network.random.sample(network.seen_on_wire, min(10, len(network.seen_on_wire))):
            network._arrive(source, target, datagram)

    for second in range(1, 300):
        network.at(float(second), repeat)
    network.at(150.0, lambda: network.restart(1))
    network.run(310.0)
    assert network.agreed(0, 1)
    late = {data for _, _, data in network.delivered}
    assert {b"0>1:%d" % number for number in range(800, 1480)} - late == set() or network.counts["lost"] > 0
    assert len(late) > 0.85 * network.counts["offered"]
    assert set(Counter(network.delivered).values()) == {1}
    check_bounds(network)


def history(seed: int) -> Network:
    """Hosts, secrets, weather, traffic, restarts and breaks by chance; good weather for the last 40 s."""
    random = Random(seed)
    hosts = random.choice([2, 2, 3, 4])
    secrets = [(SECRET,), (SECRET, OTHER_SECRET), (OTHER_SECRET, SECRET)]
    network = Network(seed, hosts, tuple(random.choice(secrets) for _ in range(hosts)))
    network.weather = Weather(
        loss=random.choice([0, 0, 0.05, 0.3]),
        repeat=random.choice([0, 0.2]),
        delay_s=(0.001, random.choice([0.02, 0.3, 1.5])),
    )
    until = random.choice([150.0, 450.0])
    for source in range(hosts):
        for target in range(hosts):
            if source != target and random.random() < 0.6:
                network.traffic(source, target, random.choice([0.1, 0.5, 3.0, 20.0]), until + 60)
    for _ in range(random.choice([0, 0, 3, 8])):
        network.at(random.uniform(1, until), partial(network.restart, random.randrange(hosts)))
    for _ in range(random.choice([0, 2, 5])):
        begin = random.uniform(1, until)
        way = (random.randrange(hosts), random.randrange(hosts))
        length = random.uniform(0.5, 15)
        network.at(begin, partial(network.blocked.add, way))
        network.at(begin + length, partial(network.blocked.discard, way))
    network.run(until + 20)
    network.weather = Weather()
    network.blocked.clear()
    network.run(until + 40)
    return network


@pytest.mark.parametrize("seed", [*range(20), 204, 205, 328])
def test_any_history_ends_with_everything_arriving(seed: int) -> None:
    network = history(seed)
    before, offered = len(network.delivered), network.counts["offered"]
    network.run(network.now + 21)
    missing = network.counts["offered"] - offered - (len(network.delivered) - before)
    assert missing <= 2 * len(network.hosts), "more than what is under way at the end, or waits for a handshake"
    assert set(Counter(network.delivered).values()) <= {1}
    assert network.counts["bad-seal"] == network.counts["bad-handshake"] == network.counts["bad-code"] == 0
    check_bounds(network)
