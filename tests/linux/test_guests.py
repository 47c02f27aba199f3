"""The inner end: made as wanted, changed while it runs, and never the reason why a namespace stays."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from dataplane.desired import Desired, Route
from dataplane.linux import links
from tests.linux.hosts import Lab, Pair, Space, differences, port, run, until

pytestmark = pytest.mark.root


def shown(space: Space) -> str:
    return space.run("ip", "-d", "address", "show", "dev", "ethwe")


def test_an_interface_is_complete_when_the_report_says_so(pair: Pair) -> None:
    """Name, MAC, MTU, addresses usable at once, no router advertisements."""
    text = shown(pair.ca)
    assert "link/ether 02:00:00:00:01:01" in text and "mtu 1450" in text and ",UP" in text
    assert "inet 10.32.1.1/16" in text and "inet6 fd00:32::1:1/64 scope global nodad" in text
    assert pair.ca.run("sysctl", "-n", "net.ipv6.conf.ethwe.accept_ra").strip() == "0"


def test_the_mtu_shrinks_and_grows_inside_running_containers(pair: Pair) -> None:
    """At every device on the way, without losing the connection."""
    for mtu in (1300, 8950, 1450):
        for host, desired in ((pair.a, pair.desired_a), (pair.b, pair.desired_b)):
            assert host.publish(replace(desired, segment=host.segment(mtu=mtu))).faults == ()
        assert f"mtu {mtu} " in shown(pair.ca)
        for device in ("weft", "weft-vx", "vw1x1"):
            assert f"mtu {mtu} " in pair.a.run("ip", "link", "show", device)
        assert pair.ca.ping("10.32.2.1", "-M", "do", "-s", str(min(mtu, 1450) - 28))


def test_an_mtu_below_what_ipv6_needs_carries_ipv4_and_a_larger_one_both_again(pair: Pair) -> None:
    """One warning says why; afterwards everything is as before, with no address that the kernel made up by itself."""
    small = replace(pair.desired_a, segment=pair.a.segment(mtu=1000))
    report = pair.a.publish(small)
    assert [warning.code for warning in report.warnings] == ["mtu-below-ipv6"]
    assert report.faults == () and dict(report.port_faults) == {}
    assert pair.ca.ping("10.32.2.1") and differences(pair.a, small) == []
    pair.a.stop()
    pair.a.tear_down()
    pair.a.start()
    assert [warning.code for warning in pair.a.publish(small).warnings] == ["mtu-below-ipv6"]
    report = pair.a.publish(pair.desired_a)
    assert report.faults == () and dict(report.port_faults) == {}
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    assert differences(pair.a, pair.desired_a) == []
    for device in ("weft", "weft-vx", "vw1x1"):
        assert "fe80" not in pair.a.run("ip", "address", "show", "dev", device)


def test_a_kernel_without_ipv6_on_its_devices_is_no_fault(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses settings for an address family that it does not have, which is told by asking for another one."""
    monkeypatch.setattr(links, "_AF_INET6", 44)
    host, space = lab.host(1), lab.space("c1")
    host.start()
    report = host.publish(Desired(host.segment(), (port(space, 1, 1, addresses=("10.32.1.1/16",)),)))
    assert report.faults == () and dict(report.port_faults) == {}


def test_addresses_come_and_go_without_touching_the_others(pair: Pair) -> None:
    """One more, then the first one less; and what leaves is no longer answered for."""
    more = replace(pair.port_a, addresses=(*pair.port_a.addresses, ip_interface("10.33.1.1/24")))
    pair.a.publish(replace(pair.desired_a, ports=(more,)))
    assert "inet 10.33.1.1/24" in shown(pair.ca)
    fewer = replace(pair.port_a, addresses=more.addresses[1:])
    report = pair.a.publish(replace(pair.desired_a, ports=(fewer,)))
    assert "10.32.1.1" not in shown(pair.ca) and "10.32.1.1 " not in pair.a.run("ip", "neigh", "show", "dev", "weft")
    assert "inet 10.33.1.1/24" in shown(pair.ca) and dict(report.port_faults) == {}
    assert pair.ca.ping("fd00:32::2:1")


@pytest.mark.parametrize("new", ["10.32.1.1/24", "fd00:32::1:1/80"])
def test_an_address_may_change_its_length(pair: Pair, new: str) -> None:
    """The kernel takes a second length of one IPv6 address for a change of the first; it must not be lost over that."""
    changed = ip_interface(new)
    others = tuple(address for address in pair.port_a.addresses if address.ip != changed.ip)
    report = pair.a.publish(replace(pair.desired_a, ports=(replace(pair.port_a, addresses=(*others, changed)),)))
    assert dict(report.port_faults) == {} and f"{new} " in shown(pair.ca)
    assert shown(pair.ca).count(str(changed.ip) + "/") == 1


def test_an_address_that_is_no_longer_wanted_goes_after_a_restart_too(pair: Pair) -> None:
    """It bears our mark, so a new engine knows whose it was."""
    pair.a.stop()
    pair.a.start()
    pair.a.publish(replace(pair.desired_a, ports=(replace(pair.port_a, addresses=pair.port_a.addresses[:1]),)))
    assert "fd00:32::1:1" not in shown(pair.ca) and "10.32.1.1/16" in shown(pair.ca)


def test_ipv6_is_switched_on_where_docker_switched_it_off(lab: Lab) -> None:
    """Only for containers that get an IPv6 address."""
    host, with_ipv6, without = lab.host(1), lab.space("c1"), lab.space("c2")
    for space in (with_ipv6, without):
        space.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    host.start()
    ports = (port(with_ipv6, 1, 1), port(without, 1, 2, addresses=("10.32.1.2/16",)))
    report = host.publish(Desired(host.segment(), ports))
    assert dict(report.port_faults) == {}
    assert with_ipv6.run("sysctl", "-n", "net.ipv6.conf.ethwe.disable_ipv6").strip() == "0"
    assert without.run("sysctl", "-n", "net.ipv6.conf.ethwe.disable_ipv6").strip() == "1"


def test_a_namespace_that_vanishes_is_not_kept_and_is_told(pair: Pair) -> None:
    """The container's end: its interface goes at once, and the port says why it is not complete."""
    pair.ca.delete()
    until(lambda: "vw1x1" not in pair.a.links())
    report = pair.a.wait(lambda report: report.port_faults)
    fault = report.port_faults["vw1x1"]
    assert fault.code == "namespace-gone" and report.faults == ()
    assert f"{pair.ca.path} is gone; detach it" in fault.text
    assert pair.a.publish(replace(pair.desired_a, ports=())).port_faults == {}


def test_another_namespace_under_the_same_path_is_not_plumbed(pair: Pair) -> None:
    """The container was made anew: whoever attached the old one did not mean this one."""
    pair.ca.delete()
    run("ip", "netns", "add", pair.ca.name)
    stranger = replace(pair.port_a, namespace_id=(pair.port_a.namespace_id[0], 1))
    report = pair.a.publish(replace(pair.desired_a, ports=(stranger,)))
    assert report.port_faults["vw1x1"].code == "namespace-gone"
    assert "leads to another namespace now" in report.port_faults["vw1x1"].text
    assert "ethwe" not in pair.ca.links()


def test_a_path_that_vanished_while_the_container_lives_is_told_and_the_container_goes_on(pair: Pair) -> None:
    """`ip netns del` with a process still inside: traffic passes, but nothing can be changed there."""
    sleeper = subprocess.Popen(["nsenter", f"--net={pair.ca.path}", "sleep", "30"])
    try:
        until(lambda: run("ip", "netns", "pids", pair.ca.name) != "")
        run("ip", "netns", "del", pair.ca.name)
        pair.a.stop()
        pair.a.start()
        report = pair.a.publish(pair.desired_a)
        assert report.port_faults["vw1x1"].code == "namespace-gone"
        assert "vw1x1" in pair.a.links()
        assert pair.cb.ping("10.32.1.1")
    finally:
        sleeper.kill()
        sleeper.wait()


def test_an_interface_name_that_is_taken_inside_is_told(lab: Lab) -> None:
    """And put right as soon as it is free."""
    host, space = lab.host(1), lab.space("c1")
    space.run("ip", "link", "add", "ethwe", "type", "bridge")
    host.start()
    report = host.publish(Desired(host.segment(), (port(space, 1, 1),)))
    assert report.port_faults["vw1x1"].code == "name-taken"
    assert f"{space.path} has an interface ethwe already" in report.port_faults["vw1x1"].text
    space.run("ip", "link", "del", "ethwe")
    host.wait(lambda report: not report.port_faults)
    assert "10.32.1.1/16" in shown(space)


def test_a_pair_whose_inner_end_was_moved_elsewhere_is_made_anew(pair: Pair) -> None:
    """Into another namespace, where it does not belong."""
    elsewhere = pair.lab.space("e")
    pair.ca.run("ip", "link", "set", "ethwe", "netns", elsewhere.name)
    until(lambda: "10.32.1.1/16" in pair.ca.run("ip", "address"), 2.0)
    assert pair.ca.ping("10.32.2.1") and "ethwe" not in elsewhere.links()


def test_detach_removes_the_pair_and_all_that_was_known_of_it(pair: Pair) -> None:
    """Nothing of the container is left on the host."""
    pair.a.publish(replace(pair.desired_a, ports=()))
    assert "ethwe" not in pair.ca.links() and "vw1x1" not in pair.a.links()
    assert "02:00:00:00:01:01" not in pair.a.run("bridge", "fdb", "show") + pair.a.run("ip", "neigh")


def test_a_route_straight_through_the_interface_comes_stays_and_goes(pair: Pair) -> None:
    """Also after the interface was down, which makes the kernel forget it; a new engine finds it, and takes it away."""
    route = "169.254.6.53 dev ethwe proto 87 scope link"
    led = replace(pair.desired_a, ports=(replace(pair.port_a, routes=(Route(ip_network("169.254.6.53/32")),)),))
    assert dict(pair.a.publish(led).port_faults) == {}
    assert route in pair.ca.run("ip", "route")
    pair.ca.run("ip", "link", "set", "ethwe", "down")
    pair.ca.run("ip", "link", "set", "ethwe", "up")
    until(lambda: route in pair.ca.run("ip", "route"))
    pair.a.stop()
    pair.a.start()
    assert pair.a.publish(led).counters.applied == 0
    pair.a.publish(pair.desired_a)
    until(lambda: route not in pair.ca.run("ip", "route"))


def test_an_isolated_port_and_other_hosts_exchange_nothing(pair: Pair) -> None:
    """Containers of its own host reach it as before."""
    space = pair.lab.space("c1b")
    beside = port(space, 1, 2)
    isolated = replace(pair.port_a, isolated=True)
    pair.a.publish(replace(pair.desired_a, ports=(isolated, beside)))
    assert space.ping("10.32.1.1") and not pair.cb.ping("10.32.1.1") and not pair.ca.ping("10.32.2.1")
