"""Whatever somebody else changes is put back at once: well under a second, with nothing but an event to go by."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dataplane.reconcile import REPAIR_BURST
from tests.linux.hosts import Pair, differences, until

pytestmark = pytest.mark.root

AT_ONCE_S = 0.5
"""Half of what is promised, because this machine is busy; commonly it takes some milliseconds."""


@dataclass(frozen=True)
class Meddling:
    name: str
    command: str
    inside: bool = False
    """In the container instead of on the host."""


MEDDLING = [
    Meddling("vxlan-entry-deleted", "bridge fdb del 02:00:00:00:02:01 dev weft-vx self"),
    Meddling("vxlan-entry-redirected", "bridge fdb replace 02:00:00:00:02:01 dev weft-vx dst 10.9.0.77 self"),
    Meddling("bridge-entry-deleted", "bridge fdb del 02:00:00:00:02:01 dev weft-vx master"),
    Meddling("bridge-entry-moved", "bridge fdb replace 02:00:00:00:02:01 dev vw1x1 master static"),
    Meddling("bridge-entry-extern-learn", "bridge fdb replace 02:00:00:00:02:01 dev weft-vx master extern_learn"),
    Meddling("local-entry-deleted", "bridge fdb del 02:00:00:00:01:01 dev vw1x1 master"),
    Meddling("flood-entry-deleted", "bridge fdb del 00:00:00:00:00:00 dev weft-vx dst 10.9.0.2 self"),
    Meddling("foreign-flood-entry", "bridge fdb append 00:00:00:00:00:00 dev weft-vx dst 10.9.0.99 self"),
    Meddling("foreign-neighbour", "ip neigh replace 10.32.7.7 lladdr 02:00:00:00:07:07 dev weft nud permanent"),
    Meddling("neighbour-deleted", "ip neigh del 10.32.2.1 dev weft"),
    Meddling("neighbour6-deleted", "ip neigh del fd00:32::2:1 dev weft"),
    Meddling("neighbour-changed", "ip neigh replace 10.32.2.1 lladdr 02:00:00:00:09:09 dev weft nud permanent"),
    Meddling("neighbour-not-permanent", "ip neigh replace 10.32.2.1 lladdr 02:00:00:00:02:01 dev weft nud stale"),
    Meddling("neighbours-flushed", "ip neigh flush dev weft nud permanent"),
    Meddling("port-flags", "bridge link set dev vw1x1 learning on flood on locked off"),
    Meddling("overlay-flags", "bridge link set dev weft-vx neigh_suppress off isolated off"),
    Meddling("port-leaves", "ip link set vw1x1 nomaster"),
    Meddling("overlay-leaves", "ip link set weft-vx nomaster"),
    Meddling("port-down", "ip link set vw1x1 down"),
    Meddling("overlay-down", "ip link set weft-vx down"),
    Meddling("bridge-down", "ip link set weft down"),
    Meddling("bridge-mac", "ip link set weft address 02:aa:00:00:00:99"),
    Meddling("bridge-mtu", "ip link set weft mtu 1300"),
    Meddling("bridge-snooping", "ip link set weft type bridge mcast_snooping 1"),
    Meddling("bridge-ipv6-off", "sysctl -qw net.ipv6.conf.weft.disable_ipv6=1"),
    Meddling("port-mtu", "ip link set vw1x1 mtu 1300"),
    Meddling("overlay-mtu", "ip link set weft-vx mtu 1300"),
    Meddling("port-deleted", "ip link del vw1x1"),
    Meddling("overlay-offloads", "ethtool -K weft-vx tx-checksum-ip-generic off"),
    Meddling("overlay-segmentation", "ethtool -K weft-vx tx-tcp-segmentation off"),
    Meddling("overlay-deleted", "ip link del weft-vx"),
    Meddling("overlay-renamed", "ip link set weft-vx down name foo"),
    Meddling("port-renamed", "ip link set vw1x1 down name foo"),
    Meddling("bridge-renamed", "ip link set weft down name foo"),
    Meddling("bridge-deleted", "ip link del weft"),
    Meddling("tap-flags", "bridge link set dev weft-tap neigh_suppress off isolated off"),
    Meddling("tap-leaves", "ip link set weft-tap nomaster"),
    Meddling("tap-down", "ip link set weft-tap down"),
    Meddling("tap-mtu", "ip link set weft-tap mtu 1300"),
    Meddling("tap-queue", "ip link set weft-tap txqueuelen 10"),
    Meddling("tap-deleted", "ip link del weft-tap"),
    Meddling("tap-renamed", "ip link set weft-tap name foo"),
    Meddling("tap-guard-deleted", "nft delete chain netdev weft guard-weft-tap"),
    Meddling("guard-deleted", "nft delete table netdev weft"),
    Meddling("guard-flushed", "nft flush table netdev weft"),
    Meddling("guest-address-deleted", "ip address del 10.32.1.1/16 dev ethwe", inside=True),
    Meddling("guest-address6-deleted", "ip address del fd00:32::1:1/64 dev ethwe", inside=True),
    Meddling("guest-down", "ip link set ethwe down", inside=True),
    Meddling("guest-mac", "ip link set ethwe address 02:00:00:00:09:09", inside=True),
    Meddling("guest-mtu", "ip link set ethwe mtu 1300", inside=True),
    Meddling("guest-renamed", "ip link set ethwe name other", inside=True),
    Meddling("guest-ipv6-off", "sysctl -qw net.ipv6.conf.ethwe.disable_ipv6=1", inside=True),
    Meddling("guest-deleted", "ip link del ethwe", inside=True),
]


@pytest.mark.parametrize("meddling", MEDDLING, ids=lambda meddling: meddling.name)
def test_a_foreign_change_is_repaired_at_once(pair: Pair, meddling: Meddling) -> None:
    """By its event: no listing is due within the next minute."""
    assert differences(pair.a, pair.desired_a) == []
    before = pair.a.report.counters
    # Unchecked: a flush gives up when it finds everything back ten times.
    (pair.ca if meddling.inside else pair.a).run(*meddling.command.split(), check=False)
    until(lambda: pair.a.report.counters.applied > before.applied, AT_ONCE_S)
    until(lambda: not differences(pair.a, pair.desired_a), AT_ONCE_S)
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    report = pair.a.report
    assert (dict(report.port_faults), report.faults, report.counters.reconciles) == ({}, (), before.reconciles)


def test_an_address_that_comes_and_goes_on_the_bridge_takes_no_neighbour_along(pair: Pair) -> None:
    """With the last IPv4 address of a device the kernel forgets all its IPv4 neighbours, permanent or not."""
    pair.a.run("ip", "address", "add", "10.32.99.1/16", "dev", "weft")
    pair.a.run("ip", "address", "del", "10.32.99.1/16", "dev", "weft")
    until(lambda: not differences(pair.a, pair.desired_a), AT_ONCE_S)


def test_everything_at_once_is_repaired_too(pair: Pair) -> None:
    """Somebody who removes all our devices in one go."""
    pair.a.run("bash", "-c", "ip link del weft-vx; ip link del vw1x1; ip link del weft; nft flush ruleset")
    until(lambda: not differences(pair.a, pair.desired_a), 2 * AT_ONCE_S)
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")


def test_what_others_add_inside_the_container_is_left_alone(pair: Pair) -> None:
    """An address of somebody else on our interface, and another interface."""
    pair.ca.run("ip", "address", "add", "192.0.2.1/24", "dev", "ethwe")
    pair.ca.run("ip", "link", "add", "other", "type", "bridge")
    pair.a.publish(pair.desired_a)
    pair.ca.run("ip", "address", "del", "10.32.1.1/16", "dev", "ethwe")
    until(lambda: not differences(pair.a, pair.desired_a), AT_ONCE_S)
    assert "192.0.2.1/24" in pair.ca.run("ip", "address", "show", "dev", "ethwe")
    assert "other" in pair.ca.links()


def test_what_others_attach_to_the_bridge_is_left_alone(pair: Pair) -> None:
    """A device that an administrator put there, with what the bridge learns behind it."""
    pair.a.run("ip", "link", "add", "mine", "up", "master", "weft", "type", "veth", "peer", "mine2")
    pair.a.run("bridge", "fdb", "add", "02:00:00:00:88:88", "dev", "mine", "master", "static")
    before = pair.a.report.counters.applied
    pair.a.run("ip", "neigh", "del", "10.32.2.1", "dev", "weft")
    until(lambda: pair.a.report.counters.applied > before)
    assert pair.a.publish(pair.desired_a).counters.applied == before + 1
    assert "02:00:00:00:88:88" in pair.a.run("bridge", "fdb", "show", "dev", "mine")


def test_one_that_keeps_undoing_is_told_and_held_off(pair: Pair) -> None:
    """A fight over one entry ends in a fault that says so, instead of in two busy programs."""
    for _ in range(200):
        pair.a.run("ip", "neigh", "del", "10.32.2.1", "dev", "weft", check=False)
        if any(fault.code == "contested" for fault in pair.a.report.faults):
            break
    assert "something else on this host keeps changing it" in pair.a.report.faults[0].text
    assert pair.a.report.counters.repaired <= REPAIR_BURST + 1
