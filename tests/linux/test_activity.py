"""Whom frames go to by VXLAN, as the kernel notes it: unicast of containers counts, probes and broadcasts do not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from dataplane import probe
from dataplane.linux.activity import Activity
from dataplane.linux.firewall import ACTIVE_S
from dataplane.linux.packet import open_probe_socket
from tests.linux.hosts import Host, Pair, bridge_mac, guest_mac, until

pytestmark = pytest.mark.root


def noted(host: Host, *devices: str) -> frozenset[bytes] | None:
    def look() -> frozenset[bytes] | None:
        activity = Activity(devices or ("weft-vx", "weft-vx6"))
        try:
            return activity.macs()
        finally:
            activity.close()

    return host.inside(look)


def test_the_macs_that_frames_go_to_are_noted_and_forgotten_by_themselves(pair: Pair) -> None:
    """On either host, each its own view."""
    assert noted(pair.a) == frozenset()
    assert pair.ca.ping("10.32.2.1")
    assert noted(pair.a) == {guest_mac(2, 1)} and noted(pair.b) == {guest_mac(1, 1)}
    until(lambda: noted(pair.a) == frozenset(), ACTIVE_S + 2.0)


def test_probes_and_broadcasts_are_nobodys_activity(pair: Pair) -> None:
    """Else probes would keep themselves alive, and one broadcast would have every peer asked."""

    def send() -> None:
        with open_probe_socket("weft-vx") as opened:
            asked = probe.request(bridge_mac(1), bridge_mac(2), b"12345678", 1450, probe.PATH_REQUEST)
            opened.send(probe.encode(asked))

    pair.a.inside(send)
    pair.ca.ping("10.32.255.255", "-b", count=1)
    pair.ca.ping("ff02::1%ethwe", count=1)
    assert noted(pair.a) == frozenset()


@pytest.mark.parametrize("command", ["flush ruleset", "delete table netdev weft", "flush table netdev weft"])
def test_the_note_comes_back_when_somebody_takes_it_away(pair: Pair, command: str) -> None:
    """Like everything else of ours."""
    pair.a.run("nft", *command.split())
    until(lambda: noted(pair.a) is not None)
    until(lambda: "weft active macs" in pair.a.run("nft", "list", "table", "netdev", "weft"))
    assert pair.ca.ping("10.32.2.1")
    assert noted(pair.a) == {guest_mac(2, 1)}


def test_where_nobody_keeps_count_that_is_said(pair: Pair) -> None:
    """No such set: not the same as nobody. It goes with the device, and with everything else."""
    assert noted(pair.a, "weft-vx6") is None
    assert pair.a.publish(replace(pair.desired_a, segment=pair.a.segment(vxlan_port=None))).faults == ()
    assert noted(pair.a) is None
    assert "active-weft-vx" not in pair.a.run("nft", "list", "table", "netdev", "weft")
    pair.a.stop()
    pair.a.tear_down()
    assert "weft" not in pair.a.run("nft", "list", "ruleset")


def test_many_are_read_in_a_moment(pair: Pair) -> None:
    """A look at several thousand spans many messages and loses none."""
    macs = [f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}" for number in range(4000)]
    pair.a.run("nft", "add", "element", "netdev", "weft", "active-weft-vx", "{", ", ".join(macs), "}")
    started = time.monotonic()
    assert noted(pair.a) == {bytes.fromhex(mac.replace(":", "")) for mac in macs}
    assert time.monotonic() - started < 1.0
