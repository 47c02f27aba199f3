"""The probe socket, the search for namespaces, and the survey of the underlay, each against the kernel."""

from __future__ import annotations

import os
import select
import subprocess
from dataclasses import replace

import pytest

from dataplane import probe
from dataplane.desired import SLEEVE
from dataplane.linux import find_namespace, open_probe_socket, underlay
from dataplane.linux.netns import open_namespace, run_inside
from dataplane.linux.packet import open_outer_socket
from tests.linux.hosts import Lab, Pair, bridge_mac, until

pytestmark = pytest.mark.root


@pytest.mark.parametrize("packet", [64, 1450])
def test_a_probe_travels_the_real_path_and_comes_back_at_full_size(pair: Pair, packet: int) -> None:
    """Over VXLAN to the other bridge; containers do not see it."""
    mine = pair.a.inside(lambda: open_probe_socket("weft"))
    theirs = pair.b.inside(lambda: open_probe_socket("weft"))
    with mine, theirs:
        asked = probe.request(bridge_mac(1), bridge_mac(2), b"12345678", packet)
        mine.send(probe.encode(asked))
        assert select.select([theirs], [], [], 2.0)[0]
        heard = probe.decode_untrusted(theirs.recv(65535))
        assert heard == asked
        theirs.send(probe.encode(probe.reply(heard, bridge_mac(2))))
        assert select.select([mine], [], [], 2.0)[0]
        answer = probe.decode_untrusted(mine.recv(65535))
        assert isinstance(answer, probe.Probe)
        assert (answer.kind, answer.nonce, answer.size) == (probe.REPLY, b"12345678", packet + 14)


def test_a_probe_socket_on_an_overlay_port_hears_that_path_alone_and_sends_past_the_bridge(pair: Pair) -> None:
    """Though the forwarding table points elsewhere; a ping of containers, and what the device sends, is not heard."""
    mine, theirs = (host.inside(lambda: open_probe_socket("weft-vx")) for host in (pair.a, pair.b))
    beside = pair.a.inside(lambda: open_probe_socket("weft"))
    asked = probe.request(bridge_mac(1), bridge_mac(2), b"12345678", 1450)
    with mine, theirs, beside:
        via = replace(pair.desired_a, peers=(replace(pair.desired_a.peers[0], via=SLEEVE),))
        assert pair.a.publish(via).faults == ()
        beside.send(probe.encode(asked))
        assert pair.ca.ping("10.32.2.1")
        mine.send(probe.encode(replace(asked, nonce=b"87654321")))
        assert select.select([theirs], [], [], 2.0)[0]
        heard = probe.decode_untrusted(theirs.recv(65535))
        assert isinstance(heard, probe.Probe) and heard.nonce == b"87654321"
        theirs.send(probe.encode(probe.reply(heard, bridge_mac(2))))
        assert select.select([mine], [], [], 2.0)[0] and select.select([beside], [], [], 2.0)[0]
        assert mine.recv(65535) == beside.recv(65535)
        assert select.select([mine, theirs, beside], [], [], 0.2)[0] == []


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_frame_put_into_vxlan_by_hand_arrives_whole_or_not_at_all(lab: Lab, ipv6: bool) -> None:
    """Larger than any of our devices takes; never cut, whatever the kernel knows of the path; not above the interface's
    MTU."""
    pair = Pair(lab)
    for host in (pair.a, pair.b):
        host.run("ip", "link", "set", "eth0", "mtu", "3000")
        assert lab.hub is not None
        lab.hub.run("ip", "link", "set", f"h{host.number}", "mtu", "3000")
    pair.desired_a, pair.desired_b = (
        replace(each, segment=replace(each.segment, vxlan6=True)) for each in (pair.desired_a, pair.desired_b)
    )
    pair.start()
    theirs = pair.b.inside(lambda: open_probe_socket("weft-vx6" if ipv6 else "weft-vx"))
    mine = pair.a.inside(lambda: open_outer_socket(ipv6))
    destination = ("fd00:9::2" if ipv6 else "10.9.0.2", 6784)
    largest = 3000 - (70 if ipv6 else 50)
    # A route's MTU stands for what a router said of the path.
    pair.a.run("ip", "route", "change", "10.9.0.0/24", "dev", "eth0", "src", "10.9.0.1", "mtu", "1400")
    with mine, theirs:

        def send(packet_bytes: int) -> None:
            asked = probe.request(bridge_mac(1), bridge_mac(2), b"12345678", packet_bytes, probe.SIZE_REQUEST)
            mine.sendto(probe.encapsulate(probe.encode(asked), 7), destination)

        for size in (1450, largest):
            send(size)
            assert select.select([theirs], [], [], 2.0)[0], size
            heard = probe.decode_untrusted(theirs.recv(65535))
            assert isinstance(heard, probe.Probe) and heard.size == size + 14
        with pytest.raises(OSError, match="too long"):
            send(largest + 1)


def test_a_probe_socket_needs_a_device(lab: Lab) -> None:
    """And says so as the kernel does."""
    with pytest.raises(OSError, match="No such device"):
        lab.host(1).inside(lambda: open_probe_socket("weft"))


def test_a_namespace_is_found_by_name_path_and_pid(lab: Lab) -> None:
    """All three lead to the same one."""
    space = lab.space("c1")
    sleeper = subprocess.Popen(["nsenter", f"--net={space.path}", "sleep", "30"])
    try:
        by_name = find_namespace(space.name)
        while os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != by_name.id[1]:
            assert sleeper.poll() is None
        assert find_namespace(space.path) == by_name
        assert find_namespace(str(sleeper.pid)).id == by_name.id
        assert find_namespace(str(sleeper.pid)).path == f"/proc/{sleeper.pid}/ns/net"
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("wt-no-such", "network namespace 'wt-no-such' does not exist; 'ip netns' lists the named ones"),
        ("/run/netns/wt-no-such", "'/run/netns/wt-no-such' does not exist"),
        ("4194304000", "process 4194304000 does not exist"),
        ("/proc/self/ns/uts", "'/proc/self/ns/uts' is not a network namespace"),
        ("/etc/hostname", "'/etc/hostname' is not a network namespace"),
        ("/tmp", "'/tmp' is not a network namespace"),
        ("/proc/self/ns/net", "is the host's own network namespace"),
        (str(os.getpid()), "is the host's own network namespace"),
        ("", "'' is not a target"),
        ("..", "'..' is not a target"),
        ("a\0b", "is not a target"),
    ],
)
def test_a_target_that_is_none_is_refused_in_one_line(target: str, text: str) -> None:
    """Naming it and what would do."""
    with pytest.raises(ValueError) as refused:
        find_namespace(target)
    assert text in str(refused.value) and "\n" not in str(refused.value)


def test_work_inside_leaves_the_callers_namespace_alone_and_passes_errors_on(lab: Lab) -> None:
    """The thread that went in is gone; its exception is the caller's."""
    space = lab.space("c1")
    before = os.readlink("/proc/thread-self/ns/net")
    descriptor, _ = open_namespace(space.path)
    try:
        assert run_inside(descriptor, lambda: os.readlink("/proc/thread-self/ns/net")) != before
        with pytest.raises(ZeroDivisionError):
            run_inside(descriptor, lambda: 1 // 0)
    finally:
        os.close(descriptor)
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_the_survey_tells_underlay_addresses_and_leaves_out_what_leads_nowhere(lab: Lab) -> None:
    """Not loopback, link-local, Docker's bridges, tentative addresses or our own devices."""
    host = lab.host(1, mtu=1400)
    host.run("ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    host.run("ip", "address", "add", "10.9.0.101/24", "dev", "eth0")
    for number, name in enumerate(("docker0", "br-1234", "weft")):
        host.run("ip", "link", "add", name, "mtu", "1300", "up", "type", "bridge")
        host.run("ip", "address", "add", f"172.17.{number}.1/24", "dev", name)
    found = host.inside(lambda: underlay.survey("weft"))
    assert [(str(each.address), each.ifname, each.mtu) for each in found.addresses] == [
        ("10.9.0.1", "eth0", 1400),
        ("10.9.0.101", "eth0", 1400),
        ("2001:db8::1", "eth0", 1400),
        ("fd00:9::1", "eth0", 1400),
    ]
    networks = ["10.9.0.0/24", "10.9.0.0/24", "2001:db8::/64", "fd00:9::/64"]
    assert [str(network) for network in found.networks] == networks
    index = host.run("ip", "-o", "link", "show", "dev", "eth0").split(":")[0]
    assert found.has_ipv6 and found.zones == {index}
    assert [(each.ifname, each.mtu, str(each.address).startswith("fe80:")) for each in found.link_local] == [
        ("eth0", 1400, True)
    ]
    assert found.bridge_mtu == 1300


def test_nothing_of_ours_keeps_a_container_alive(pair: Pair) -> None:
    """After work has been done inside, its namespace still ends with it, and the interface with the namespace."""
    pair.ca.run("ip", "address", "del", "10.32.1.1/16", "dev", "ethwe")
    pair.a.wait(lambda report: report.counters.repaired > 0)
    pair.ca.delete()
    until(lambda: "vw1x1" not in pair.a.links())
