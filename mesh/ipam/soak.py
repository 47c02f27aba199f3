"""Random histories of a ring: hosts, requests and faults from one seed, then healing, then all that was promised.

`python -m mesh.ipam.soak --seeds 1000` runs a thousand, and says of each that fails how to see it again.
"""

from __future__ import annotations

import argparse
import sys
from ipaddress import IPv4Network
from random import Random

from mesh.ipam.sim import LEASE_S, Ring, RingFailed
from mesh.ipam.wants import FromSubnet


def run_scenario(seed: int) -> Ring:
    """Random hosts, requests and faults from one seed; heal; check. Raises `RingFailed`."""
    choose = Random(seed ^ 0x1BA4)
    ring = Ring(
        seed, choose.choice([2, 3, 4, 5, 7, 8]), choose.choice(["10.32.0.0/27", "10.32.0.0/25", "10.32.0.0/23"])
    )
    ring.held_back = choose.choice([0.0, 0.02, 0.1, 0.3])
    for index in ring.hosts:
        ring.start(index)
        ring.run_for(choose.choice([0.0, 0.3, 4.0]))
    _run(ring, choose, FAULTS)
    return ring


def run_apart(seed: int) -> Ring:
    """Hosts that make rings of their own before they meet; raises `RingFailed` if anything is not as it has to be."""
    choose = Random(seed)
    ring = Ring(seed, choose.choice([2, 3, 4, 5]), choose.choice(["10.32.0.0/27", "10.32.0.0/25"]), expected=1)
    ring.replay += " --apart"
    for index in ring.hosts:
        ring.partition(set(choose.sample(sorted(ring.hosts), choose.randint(1, len(ring.hosts) - 1))))
        ring.start(index)
        if choose.random() < 0.6:
            member = ring.hosts[index].member
            assert member is not None
            member.wants_ring = True
        ring.run_for(choose.choice([0.0, 0.3, 4.0]))
    _run(ring, choose, FAULTS_APART)
    return ring


def _run(ring: Ring, choose: Random, faults: tuple[str, ...]) -> None:
    losses = (len(ring.hosts) - 1) // 2
    serial = 0
    for _ in range(choose.randint(10, 24)):
        losses -= _one_fault(ring, choose, losses, faults)
        for _ in range(choose.randint(0, 8)):
            serial += 1
            _one_change(ring, choose, serial)
            ring.run_for(choose.choice([0.0, 0.01, 0.3, 3.0]))
        ring.run_for(choose.choice([0.5, 5.0, 30.0, 90.0]))
    settle(ring)


def _one_change(ring: Ring, choose: Random, serial: int) -> None:
    index = choose.choice(sorted(ring.hosts))
    held = sorted(ring.hosts[index].held)
    what = choose.random()
    if what < 0.3 and held:
        ring.release(index, choose.choice(held))
    elif what < 0.45:
        ring.claim(index, f"c{serial}", choose.randrange(1, ring.settings.space.size - 1))
    elif what < 0.6:
        size = ring.settings.space.size // 4
        start = choose.randrange(4) * size
        subnet = IPv4Network((int(ring.settings.space.address(start, 4) or 0), 32 - (size - 1).bit_length()))
        ring.obtain(index, f"c{serial}", FromSubnet(subnet))
    else:
        ring.obtain(index, f"c{serial}")


FAULTS = (
    "partition", "heal", "heal", "kill", "kill", "start", "start", "start", "pause", "long pause", "lost", "restart",
    "restart all", "removed", "resign", "none",
)  # fmt: skip
FAULTS_APART = ("partition", "partition", "heal", "heal", "kill", "start", "pause", "long pause", "restart", "join")


def _one_fault(ring: Ring, choose: Random, losses: int, faults: tuple[str, ...]) -> int:
    indexes = sorted(ring.hosts)
    index = choose.choice(indexes)
    host = ring.hosts[index]
    # Before all know of the ring, those who do not may make another when too many who do are gone.
    may_lose = losses > 0 and all(b"c" in each.disk for each in ring.hosts.values())
    fault = choose.choice(faults)
    if fault == "partition":
        ring.partition(set(choose.sample(indexes, choose.randint(1, len(indexes) - 1))))
    elif fault == "heal":
        ring.heal()
    elif fault == "kill" and host.member is not None:
        ring.kill(index)
    elif fault == "start" and host.member is None:
        ring.start(index)
    elif fault == "pause":
        ring.pause(index, choose.uniform(1.0, 30.0))
    elif fault == "long pause":
        ring.pause(index, choose.uniform(1.0, 4.0) * LEASE_S)
    elif fault == "restart" and host.member is not None and not host.paused:
        ring.kill(index)
        ring.run_for(choose.choice([0.0, 0.1, 6.0, 1.2 * LEASE_S]))
        if ring.hosts[index].member is None:
            ring.start(index)
    elif fault == "restart all":
        for each in indexes:
            if ring.hosts[each].member is not None:
                ring.kill(each)
        ring.run_for(choose.choice([0.0, 1.0, 1.7 * LEASE_S]))
        for each in indexes:
            if ring.hosts[each].member is None:
                ring.start(each)
                ring.run_for(choose.choice([0.0, 0.1, 2.0]))
    elif fault == "removed" and ring.gone and host.member is not None and not host.paused:
        gone = choose.choice(ring.gone)
        ring.remove(index, gone.name)
        ring.run_for(choose.choice([0.1, 3.0, 15.0]))
        gone.held.clear()
    elif fault == "join" and host.member is not None and host.member.splits:
        ring.join(index, choose.choice(sorted(host.member.splits)))
    elif fault == "resign" and may_lose and host.member is not None:
        ring.resign(index)
        return 1
    elif fault == "lost" and may_lose:
        ring.kill(index, disk=False)
        if choose.random() < 0.7:
            ring.start(index)
        return 1
    return 0


def settle(ring: Ring) -> None:
    """Everything heals; the dead are removed; then all that was promised holds."""
    ring.held_back = 0.0
    ring.heal()
    ring.run_for(5 * LEASE_S)  # pauses end, and pages that were held back arrive
    for index in sorted(ring.hosts):
        if ring.hosts[index].member is None:
            ring.start(index)
    ring.heal()
    ring.run_for(10.0)
    _join_all(ring)
    while ring.gone:
        lost = ring.gone.pop()
        ring.remove(min(ring.hosts), lost.name)
        ring.run_for(15.0)
    ring.run_for(2 * LEASE_S)
    if ring.hosts and ring.given == 0:
        ring.obtain(min(ring.hosts), "first")
        ring.run_for(20.0)
    ring.run_for(2 * LEASE_S)
    ring.check_whole()
    for index, host in sorted(ring.hosts.items()):
        for slot in sorted(host.held)[2:]:
            ring.release(index, slot)
    ring.run_for(90.0)
    for index in sorted(ring.hosts):
        request = ring.obtain(index, f"last{index}")
        ring.run_for(12.0)
        if request is None or request.answer is None:
            why = request.refused if request is not None else "the host is down"
            ring.fail(f"h{index} gets no address after healing: {why}")
    ring.check_whole()


def _join_all(ring: Ring) -> None:
    """Whatever is still apart when everybody sees everybody."""
    for _ in range(len(ring.hosts)):
        apart = {other: index for index, host in ring.hosts.items() if host.member for other in host.member.splits}
        if not apart:
            break
        other = min(apart)
        ring.join(apart[other], other)
        ring.run_for(15.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mesh.ipam.soak", description="Rings with faults, by seed.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other (default 1)")
    parser.add_argument("--apart", action="store_true", help="with hosts that make rings of their own before they meet")
    options = parser.parse_args()
    scenario = run_apart if options.apart else run_scenario
    failed = given = 0
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            given += scenario(seed).given
        except RingFailed as failure:
            failed += 1
            print(failure, file=sys.stderr, flush=True)
    print(f"rings: {options.seeds - failed} passed, {failed} failed; {given} addresses given")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
