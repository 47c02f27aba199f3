"""A few seconds of everything at once: wishes that change and somebody who meddles with all of it, at random."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import replace

import pytest

from dataplane.desired import Desired
from dataplane.reconcile import REPAIR_WINDOW_S
from tests.linux.hosts import Host, Lab, Space, differences, peer, port, remote, until
from tests.linux.test_repair import MEDDLING

pytestmark = pytest.mark.root

STORM_S = 4.0
DESTINATIONS = (None, "10.9.0.2", "10.9.0.3", "10.9.0.4")


def wish(rng: random.Random, host: Host, spaces: list[Space]) -> Desired:
    """Ports, peers and endpoints at random, other MTUs and UDP ports, settled or not."""
    return Desired(
        segment=host.segment(mtu=rng.choice([1400, 1450]), vxlan_port=rng.choice([6784, 6784, 6785, None])),
        ports=tuple(port(space, 1, number) for number, space in enumerate(spaces, 1) if rng.random() < 0.7),
        peers=tuple(peer(number) for number in range(2, 6) if rng.random() < 0.7),
        groups=tuple(
            tuple(
                remote(owner, number, destination=rng.choice(DESTINATIONS))
                for number in range(1, 40)
                if rng.random() < 0.8
            )
            for owner in (2, 3, 4)
        ),
        settled=rng.random() < 0.7,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_storm_the_kernel_is_as_wanted(lab: Lab, seed: int) -> None:
    """What was contested during the storm is given its window, everything else comes at once."""
    rng = random.Random(seed)
    host, spaces = lab.host(1), [lab.space(f"c{number}") for number in (1, 2, 3)]
    host.start()
    desired = wish(rng, host, spaces)
    host.publish(desired)
    end = time.monotonic() + STORM_S
    while time.monotonic() < end:
        if rng.random() < 0.3:
            desired = wish(rng, host, spaces)
            assert host.engine is not None
            host.engine.publish(desired)
        else:
            meddling = rng.choice(MEDDLING)
            (spaces[0] if meddling.inside else host).run(*meddling.command.split(), check=False)
    desired = replace(desired, settled=True)
    host.publish(desired)
    with contextlib.suppress(AssertionError):
        until(lambda: not differences(host, desired), REPAIR_WINDOW_S + 5.0)
    assert differences(host, desired) == []
    host.wait(lambda report: not report.faults and not report.port_faults)
