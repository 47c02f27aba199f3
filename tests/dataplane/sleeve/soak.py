"""Histories of a bad network, one for each seed: `python -m tests.dataplane.sleeve.soak --seed 1 --seeds 1000`.

Faults come and go at random for some seconds; all the time the ledger checks what must never happen. Then the network
is good again, and after RECOVERY_S at the latest nothing may be lost any more; after GROWN_S records are bursts again.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from random import Random

from tests.dataplane.sleeve.network import Card, Network, Weather, name_of
from tests.dataplane.sleeve.traffic import BROADCAST, TCP, UDP

TROUBLE_S = 4.0
RECOVERY_S = 12.0
"""Two rounds of RENEW_INTERVAL_S, and what retries of handshakes that were lost can add."""
PROOF_S = 2.0
GROWN_S = 60.0
ROAMED = "10.9.9."


def run(seed: int) -> Network:
    """One history. Raises AssertionError where something happened that must not."""
    random = Random(seed)
    hosts = random.choice((2, 2, 2, 3, 4))
    card = Card(
        payload_bytes=random.choice((1472, 1472, 1452, 1372, 8972)),
        gro=random.random() < 0.8,
        may_segment=random.random() < 0.8,
        corrupts_segments=random.random() < 0.15,
    )
    sealed = random.random() < 0.85
    network = Network(seed, hosts, (b"s" * 32,) if sealed else (), card)
    network.weather = weather(random)
    network.ledger.is_ordered = network.weather.ordered and not network.weather.replay
    apart = keep_apart(network) if hosts > 2 and random.random() < 0.6 else set()
    pairs = [(a, b) for a in range(hosts) for b in range(hosts) if a != b and random.random() < 0.8] or [(0, 1), (1, 0)]
    start_traffic(network, pairs)
    for _ in range(random.randrange(5)):
        network.after(random.uniform(0.0, TROUBLE_S), lambda: trouble(network, random))
    network.run(TROUBLE_S)
    low, high = network.weather.delay_s
    network.weather = Weather(mtu=network.weather.mtu, delay_s=(low, min(high, low + 0.02)))
    network.blocked = set(apart)
    network.run(RECOVERY_S)
    since = network.ledger.mark()
    network.run(PROOF_S)
    network.run(0.5)
    for host in network.hosts:
        assert host.turns < 100 * (network.now - 1000.0) + 10 * network.counts["datagrams"], "busy for nothing"
    assert network.ledger.missing(since) == 0, f"{network.ledger.missing(since)} units lost long after the faults"
    return network


def keep_apart(network: Network) -> set[tuple[int, int]]:
    """A chain of links, and some pairs of others that no datagram ever joins: for those there are relays. Which of two
    ways a frame goes changes on the way, and so may the order."""
    random, hosts = network.random, len(network.hosts)
    network.ledger.is_ordered = False
    order = random.sample(range(hosts), hosts)
    chain = set(pairwise(order))
    for a in range(hosts):
        for b in range(a):
            if (a, b) not in chain and (b, a) not in chain and random.random() < 0.7:
                network.block(a, b)
    if random.random() < 0.3:
        network.put_behind_nat(order[0])
    network.link(*chain)
    return set(network.blocked)


def weather(random: Random) -> Weather:
    ordered = random.random() < 0.6
    low = random.choice((0.0, 0.0002, 0.02))

    def sometimes(chance: float, *values: float) -> float:
        return random.choice(values) if random.random() < chance else 0.0

    return Weather(
        loss=sometimes(0.5, 0.001, 0.01, 0.1, 0.3),
        repeat=sometimes(0.3, 0.01, 0.3),
        delay_s=(low, low + random.choice((0.0, 0.0001, 0.01, 0.1))),
        ordered=ordered,
        truncate=sometimes(0.2, 0.01),
        flip=sometimes(0.2, 0.01),
        forge=sometimes(0.3, 0.02, 0.3),
        replay=sometimes(0.3, 0.02, 0.3),
        mtu=random.choice((65_507, 65_507, 1472, 1300, 600)),
        split=sometimes(0.5, 0.02, 0.5),
        stick=sometimes(0.4, 0.01, 0.2),
    )


def start_traffic(network: Network, pairs: list[tuple[int, int]]) -> None:
    """Much while there is trouble, little while it is got over."""
    random = network.random
    quiet = RECOVERY_S + PROOF_S
    for source, target in pairs:
        kind = random.choice((TCP, UDP))
        flow = network.flow(source, target, kind)
        segment = 1396 if kind == TCP else 1000

        def small(segment: int = segment) -> tuple[int, int]:
            return random.randrange(20, segment), 0

        def large(segment: int = segment) -> tuple[int, int]:
            return min(int(2000 / random.random()), 64_000), segment

        network.traffic(flow, random.uniform(0.01, 0.1), TROUBLE_S, small)
        if random.random() < 0.7:
            network.traffic(flow, random.uniform(0.05, 0.5), TROUBLE_S, large)
        network.after(TROUBLE_S, lambda flow=flow, small=small: network.traffic(flow, 0.2, quiet, small))  # type: ignore[misc]
        network.after(TROUBLE_S, lambda flow=flow, large=large: network.traffic(flow, 0.9, quiet, large))  # type: ignore[misc]
    network.traffic(network.flow(0, 1, BROADCAST), 0.3, TROUBLE_S + quiet, lambda: (60, 0))


def trouble(network: Network, random: Random) -> None:
    """Something happens to a host, or between two."""
    index = random.randrange(len(network.hosts))
    other = random.choice([each for each in range(len(network.hosts)) if each != index])
    host = network.hosts[index]
    match random.choice(("restart", "roam", "roll", "cut", "forget", "shape", "crowd", "narrow")):
        case "restart":
            network.restart(index)
        case "roam":
            if host.nat is None:
                network.roam(index, (ROAMED + str(random.randrange(1000)), 6783))
        case "roll":
            network.roll(index)
        case "cut":
            if (index, other) not in network.blocked:
                network.blocked.add((index, other))
                network.after(random.uniform(0.1, 3.0), lambda: network.blocked.discard((index, other)))
        case "forget":
            host.sleeve.forget(name_of(other))
            network.after(random.uniform(0.0, 1.0), lambda: host.sleeve.set_peer(network.peer(other)))
        case "shape":
            network.weather.loss = random.choice((0.0, 0.01, 0.2))
        case "narrow":
            network.weather.mtu = random.choice((600, 1300, 65_507))
        case "crowd":  # more than the queue takes
            flow = network.flow(index, other, TCP)
            for _ in range(60):
                network.send(flow, 60_000, 1396)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=100)
    wanted = parser.parse_args()
    started = time.monotonic()
    for seed in range(wanted.seed, wanted.seed + wanted.seeds):
        try:
            run(seed)
        except Exception:
            print(f"seed {seed} failed: python -m tests.dataplane.sleeve.soak --seed {seed} --seeds 1", file=sys.stderr)
            raise
    print(f"{wanted.seeds} networks, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
