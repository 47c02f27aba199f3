"""Ten thousand endpoints: programmed, compared without a change, and one of them changed for itself."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from dataplane.desired import Desired, RemoteEndpoint
from dataplane.linux.host import LinuxKernel
from tests.linux.hosts import Lab, peer, until

pytestmark = pytest.mark.root

MANY = 10_000
IPV6_BASE = int(IPv6Address("fd00:33::"))


def endpoints() -> list[RemoteEndpoint]:
    return [
        RemoteEndpoint(
            mac=bytes((2, 1)) + struct.pack("!I", number),
            addresses=(IPv4Address(0x0A210000 + number), IPv6Address(IPV6_BASE + number)),
            destination=ip_address(f"10.9.0.{2 + number % 200}"),
        )
        for number in range(MANY)
    ]


class CountingKernel(LinuxKernel):
    """Remembers which parts were listed."""

    def __init__(self) -> None:
        super().__init__()
        self.listings: list[str] = []

    def listing(self, part: str):  # type: ignore[no-untyped-def]
        self.listings.append(part)
        return super().listing(part)


def test_ten_thousand_endpoints_are_in_the_kernel_and_stay_unchanged(lab: Lab) -> None:
    """Each with an IPv4 and an IPv6 address; a full comparison afterwards changes nothing."""
    host = lab.host(1)
    host.start()
    host.publish(Desired(host.segment(), peers=(peer(2),)))
    many = tuple(endpoints())
    report = host.publish(Desired(host.segment(), peers=(peer(2),), groups=(many,)))
    assert report.faults == ()
    assert len(host.run("bridge", "fdb", "show", "dev", "weft-vx").splitlines()) >= 2 * MANY
    assert len(host.run("ip", "neigh", "show", "dev", "weft", "nud", "permanent").splitlines()) >= 2 * MANY
    host.stop()
    host.start()
    report = host.publish(Desired(host.segment(), peers=(peer(2),), groups=(many,)))
    assert (report.counters.applied, report.counters.refused) == (0, 0)
    assert report.counters.objects >= 4 * MANY


def test_one_change_among_ten_thousand_lists_nothing_and_touches_nothing_else(lab: Lab) -> None:
    """A new destination is one operation, a deleted entry of somebody else's is repaired by its event."""
    host = lab.host(1)
    host.start(CountingKernel)
    many = endpoints()
    host.publish(Desired(host.segment(), groups=(tuple(many),)))
    kernel = host.kernel
    assert isinstance(kernel, CountingKernel)
    kernel.listings.clear()
    before = host.report.counters.applied
    many[5000] = RemoteEndpoint(many[5000].mac, many[5000].addresses, ip_address("10.9.0.250"))
    report = host.publish(Desired(host.segment(), groups=(tuple(many),)))
    assert report.counters.applied == before + 1
    host.run("ip", "neigh", "del", "10.33.0.77", "dev", "weft")
    until(lambda: "10.33.0.77 " in host.run("ip", "neigh", "show", "10.33.0.77", "dev", "weft"), 0.5)
    assert kernel.listings == []


def test_all_of_them_come_back_when_the_overlay_device_is_deleted(lab: Lab) -> None:
    """A burst of events, heard to its end, then one repair."""
    host = lab.host(1)
    host.start()
    host.publish(Desired(host.segment(), groups=(tuple(endpoints()),)))
    host.run("ip", "link", "del", "weft-vx")
    until(lambda: len(host.run("bridge", "fdb", "show", "dev", "weft-vx", check=False).splitlines()) >= 2 * MANY, 3.0)
    assert host.report.faults == ()


def test_more_events_than_are_read_in_one_go_are_read_in_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forgotten that still waits in the socket."""
    monkeypatch.setattr("dataplane.linux.host.MAX_BUFFERS", 50)
    host = lab.host(1)
    host.start()
    host.publish(Desired(host.segment(), groups=(tuple(endpoints()[:1000]),)))
    host.run("ip", "neigh", "flush", "dev", "weft", "nud", "permanent", check=False)
    until(lambda: len(host.run("ip", "neigh", "show", "dev", "weft", "nud", "permanent").splitlines()) >= 2000, 3.0)
    assert host.report.counters.overruns == 0


def test_an_event_socket_that_overflows_leads_to_a_new_listing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a few dozen events, a burst by somebody else is lost and noticed."""
    monkeypatch.setattr("dataplane.linux.netlink.EVENT_BUFFER_BYTES", 4096)
    host = lab.host(1)
    host.start()
    host.publish(Desired(host.segment(), groups=(tuple(endpoints()[:2000]),)))
    host.run("ip", "neigh", "flush", "dev", "weft", "nud", "permanent", check=False)
    until(lambda: len(host.run("ip", "neigh", "show", "dev", "weft", "nud", "permanent").splitlines()) >= 4000, 3.0)
    host.wait(lambda report: report.counters.overruns > 0)
