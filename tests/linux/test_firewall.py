"""Beside Docker and other firewalls: one marked accept in the customary chains, a warning about every other drop."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from dataplane.desired import Desired
from dataplane.kernel import Kernel
from dataplane.linux.firewall import Firewall, NftError, run_nft
from dataplane.linux.host import LinuxKernel
from tests.linux.hosts import Lab, Pair, port, until

pytestmark = pytest.mark.root


def drop_by_default(pair: Pair) -> None:
    """What Docker does on a host: bridged frames pass these chains, as br_netfilter is on in every new namespace."""
    for command in ("iptables", "ip6tables"):
        pair.a.run(command, "-P", "FORWARD", "DROP")
        pair.a.run(command, "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")


def accepts(pair: Pair, command: str = "iptables") -> int:
    return pair.a.run(command, "-S", "FORWARD").count("-i weft -o weft -m comment --comment weft -j ACCEPT")


def test_containers_talk_although_forward_drops(pair: Pair) -> None:
    """Across hosts and within one, IPv4 and IPv6, and no warning is left."""
    neighbour = pair.lab.space("c3")
    pair.a.publish(replace(pair.desired_a, ports=(pair.port_a, port(neighbour, 1, 2))))
    assert pair.a.run("sysctl", "-n", "net.bridge.bridge-nf-call-iptables").strip() == "1"
    drop_by_default(pair)
    until(lambda: accepts(pair) == 1 and accepts(pair, "ip6tables") == 1)
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    assert pair.ca.ping("10.32.1.2") and pair.ca.ping("fd00:32::1:2")
    assert pair.a.report.warnings == () and pair.a.report.faults == ()


def test_without_the_accept_forward_would_drop(pair: Pair) -> None:
    """The check of the test above: it is that rule and nothing else which lets frames pass."""
    pair.a.stop()
    drop_by_default(pair)
    assert not pair.ca.ping("10.32.2.1", count=1) and not pair.ca.ping("fd00:32::2:1", count=1)


@pytest.mark.parametrize("command", ["iptables -F FORWARD", "nft flush ruleset", "nft flush chain ip filter FORWARD"])
def test_the_accept_comes_back_when_it_is_lost(pair: Pair, command: str) -> None:
    """A firewall that is loaded anew takes all rules away, ours too."""
    drop_by_default(pair)
    until(lambda: accepts(pair) == 1)
    pair.a.run(*command.split())
    pair.a.run("iptables", "-P", "FORWARD", "DROP")
    until(lambda: accepts(pair) == 1, 1.0)
    assert pair.ca.ping("10.32.2.1")


def test_the_accept_stays_one_over_restarts(pair: Pair) -> None:
    """It is found again by its mark."""
    drop_by_default(pair)
    until(lambda: accepts(pair) == 1)
    pair.a.stop()
    pair.a.start()
    assert pair.a.publish(pair.desired_a).counters.applied == 0
    assert accepts(pair) == 1


def test_no_rule_is_put_where_bridged_frames_are_not_seen(pair: Pair) -> None:
    """With br_netfilter off there is nothing to accept."""
    for name in ("iptables", "ip6tables"):
        pair.a.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}=0")
    drop_by_default(pair)
    until(lambda: pair.a.run("nft", "list", "chains").count("FORWARD") == 2)
    pair.a.stop()
    pair.a.start()
    pair.a.publish(pair.desired_a)
    assert accepts(pair) == 0 and pair.a.report.warnings == ()


FOREIGN = [
    ("inet fw forward", "add chain inet fw forward { type filter hook forward priority 0; policy drop; }"),
    ("inet fw f", "add chain inet fw f { type filter hook forward priority 0; }; add rule inet fw f counter drop"),
    ("ip fw f", "add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f counter log reject"),
    ("bridge fw f", "add chain bridge fw f { type filter hook forward priority 0; policy drop; }"),
]


@pytest.mark.parametrize(("chain", "script"), FOREIGN, ids=[chain for chain, _ in FOREIGN])
def test_another_firewall_that_drops_is_told_and_not_touched(pair: Pair, chain: str, script: str) -> None:
    """Naming table and chain, with a cure that works."""
    family, table, _ = chain.split()
    pair.a.run("nft", f"add table {family} {table}; {script}")
    report = pair.a.wait(lambda report: report.warnings)
    warning = report.warnings[0]
    assert (len(report.warnings), warning.code) == (1, "forward-drop")
    assert chain in warning.text and "weft" not in pair.a.run("nft", "list", "table", family, table)
    if family != "bridge":  # meta ibrname is not in every kernel
        assert not pair.ca.ping("10.32.2.1", count=1)
        pair.a.run("nft", warning.cure.removeprefix("nft "))
        assert pair.ca.ping("10.32.2.1")
        pair.a.wait(lambda report: not report.warnings)


def test_a_legacy_iptables_that_drops_is_told(lab: Lab) -> None:
    """Its chains are not seen by nft, and are not touched."""
    host = lab.host(1)
    host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    host.start()
    report = host.publish(Desired(host.segment()))
    assert [warning.code for warning in report.warnings] == ["forward-drop"]
    assert "FORWARD chain of iptables-legacy" in report.warnings[0].text
    host.run(*report.warnings[0].cure.split())
    host.stop()
    host.start()
    assert host.publish(Desired(host.segment())).warnings == ()


def test_a_firewall_that_changes_all_the_time_is_not_looked_at_all_the_time(pair: Pair) -> None:
    """Each look costs several processes."""
    looks = []

    def nft(commands: str) -> str:
        looks.append("chains" in commands)
        return run_nft(commands)

    pair.a.stop()
    pair.a.start(lambda: LinuxKernel(Firewall(nft)))
    pair.a.publish(pair.desired_a)
    looks.clear()
    pair.a.run("nft", "add table inet fw; add chain inet fw f { type filter hook forward priority 0; }")
    started = time.monotonic()
    while time.monotonic() < started + 1.0:
        pair.a.run("nft", "add rule inet fw f accept; flush chain inet fw f")
    assert 1 <= sum(looks) <= 6
    # Rules elsewhere, by the thousand on some hosts, are no reason to look.
    pair.a.run("nft", "add table inet other; add chain inet other c")
    until(lambda: time.monotonic() > started + 1.5)
    looks.clear()
    for _ in range(20):
        pair.a.run("nft", "add rule inet other c accept")
    time.sleep(0.5)
    assert sum(looks) == 0


def test_an_input_chain_that_keeps_vxlan_out_is_hinted_at(pair: Pair) -> None:
    """The cure opens the port, and the hint goes."""
    pair.a.run("nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }")
    report = pair.a.wait(lambda report: report.warnings)
    assert [warning.code for warning in report.warnings] == ["input-drop"]
    assert "no rule there accepts UDP port 6784" in report.warnings[0].text
    assert not pair.ca.ping("10.32.2.1", count=1)
    pair.a.run("nft", report.warnings[0].cure.removeprefix("nft "))
    pair.a.wait(lambda report: not report.warnings)


def test_without_nft_everything_works_and_a_warning_says_what_is_missing(lab: Lab) -> None:
    """A bare machine has no nftables."""

    def no_nft(commands: str) -> str:
        raise FileNotFoundError("nft")

    report = started_with(lab, Firewall(no_nft))
    assert [warning.code for warning in report.warnings] == ["no-nft"]
    assert report.warnings[0].cure == "install the package nftables"


def test_without_an_egress_hook_everything_works_and_a_warning_says_so(lab: Lab) -> None:
    """Kernels before 5.16, or built without it."""

    def no_egress(commands: str) -> str:
        if '"egress"' in commands:
            raise NftError("Error: Could not process rule: Operation not supported")
        return run_nft(commands)

    report = started_with(lab, Firewall(no_egress))
    assert [warning.code for warning in report.warnings] == ["no-egress-hook"]


def started_with(lab: Lab, firewall: Firewall):  # type: ignore[no-untyped-def]
    pair = Pair(lab)

    def kernel() -> Kernel:
        return LinuxKernel(firewall)

    pair.a.start(kernel)
    pair.b.start()
    report = pair.a.publish(pair.desired_a)
    pair.b.publish(pair.desired_b)
    assert (report.faults, dict(report.port_faults)) == ((), {})
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")
    assert pair.a.publish(pair.desired_a).counters.applied == report.counters.applied
    return report
