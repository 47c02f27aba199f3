"""What this kernel or this host refuses: one fault each, in one line that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from dataplane.desired import Desired
from dataplane.linux import links
from tests.linux.hosts import Lab, peer, port, remote

pytestmark = pytest.mark.root


def test_a_kernel_without_vxlan_gives_one_fault_and_containers_of_this_host_still_talk(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is really asked for a device type that it does not have."""
    real = links.new_vxlan
    monkeypatch.setattr(links, "new_vxlan", lambda name, wanted: real(name, wanted).replace(b"vxlan\0", b"vxlam\0"))
    host, one, two = lab.host(1), lab.space("c1"), lab.space("c2")
    host.start()
    ports = (port(one, 1, 1), port(two, 1, 2))
    report = host.publish(Desired(host.segment(), ports, (peer(2),), (tuple(remote(2, n) for n in range(1, 100)),)))
    assert [fault.text for fault in report.faults] == [
        "cannot make VXLAN device weft-vx: Unknown device type; "
        "this kernel has no VXLAN: load it with 'modprobe vxlan', or launch with --no-vxlan"
    ]
    assert dict(report.port_faults) == {} and one.ping("10.32.1.2")


def test_a_udp_port_in_use_is_told_and_taken_once_it_is_free(lab: Lab) -> None:
    """The device is made, but cannot come up."""
    host = lab.host(1)

    def bind() -> socket.socket:
        taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taker.bind(("", 6784))
        return taker

    taker = host.inside(bind)
    host.start()
    report = host.publish(Desired(host.segment()))
    assert [fault.text for fault in report.faults] == [
        "cannot bring up weft-vx: Address already in use; its UDP port is in use: stop what 'ss -ulnp' shows there, "
        "or change --port"
    ]
    taker.close()
    host.wait(lambda report: not report.faults)


def test_another_vxlan_device_with_our_vni_is_told(lab: Lab) -> None:
    """The kernel allows one device for a VNI and port."""
    host = lab.host(1)
    host.run("ip", "link", "add", "theirs", "type", "vxlan", "id", "7", "dstport", "6784")
    host.start()
    report = host.publish(Desired(host.segment()))
    assert len(report.faults) == 1 and "another VXLAN device has its VNI and port" in report.faults[0].text
    host.run("ip", "link", "del", "theirs")
    host.wait(lambda report: not report.faults)


def unusable_mac(lab: Lab) -> str:
    space, host = lab.space("c1"), lab.host(1)
    host.start()
    report = host.publish(Desired(host.segment(), (port(space, 1, 1, mac=b"\xff" * 6),)))
    return report.port_faults["vw1x1"].text


def too_small_an_mtu(lab: Lab) -> str:
    host = lab.host(1)
    host.start()
    return host.publish(Desired(host.segment(mtu=10))).faults[0].text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (unusable_mac, "cannot make container interface vw1x1: Cannot assign requested address"),
        (too_small_an_mtu, "weft"),
    ],
)
def test_other_refusals_are_one_line_too(lab: Lab, make: Callable[[Lab], str], text: str) -> None:
    """They name the thing, and pass on what the kernel said."""
    found = make(lab)
    assert text in found and "\n" not in found


def test_a_broken_port_does_not_keep_the_others_from_being_complete(lab: Lab) -> None:
    """Each port has its own fault or none."""
    host, good, bad = lab.host(1), lab.space("c1"), lab.space("c2")
    bad.run("ip", "link", "add", "ethwe", "type", "bridge")
    host.start()
    report = host.publish(Desired(host.segment(), (port(bad, 1, 2), port(good, 1, 1))))
    assert list(report.port_faults) == ["vw1x2"] and report.faults == ()
    assert "10.32.1.1/16" in good.run("ip", "address")
