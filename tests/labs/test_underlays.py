"""IPv6 between the hosts: alone, beside IPv4, instead of it when that fails, and nothing but link-local addresses."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

MTU_OVER_IPV4, MTU_OVER_IPV6 = 1450, 1430


def rows(lab: Lab, node: str) -> dict[str, Any]:
    return {row["nickname"]: row for row in lab.weft_json(node, "status", "connections")}


def paths(lab: Lab, node: str) -> dict[str, tuple[str, str, str]]:
    """Path, reason and address of every other host."""
    return {name: (row["path"], row["reason"], row["address"]) for name, row in rows(lab, node).items()}


def all_pings_arrive(lab: Lab, pairs: list[tuple[str, str]]) -> None:
    for source, target in pairs:
        for address in (lab.address(target), lab.address6(target)):
            assert ping(lab, source, address, count=3, wait_s=2).lost == [], f"{source} -> {address}"


def full_packet_passes(lab: Lab, source: str, target: str, mtu: int) -> bool:
    command = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(mtu - 28), lab.address(target)]
    return lab.run(source, command, check=False).returncode == 0


def test_three_hosts_with_ipv6_alone_use_vxlan(make_lab: Callable[..., Lab]) -> None:
    """`vxlan`, `best`, and the whole of an MTU that fits; no warning."""
    lab = make_lab(hosts=3, containers=1, host_versions={1: {6}, 2: {6}, 3: {6}})
    lab.up()
    for host, node in enumerate(lab.host_nodes(), start=1):
        others = set(range(1, 4)) - {host}
        wanted = {f"h{other}": ("vxlan", "best", lab.underlay6(other)) for other in others}
        wait_until(lambda node=node, wanted=wanted: paths(lab, node) == wanted, 10, f"{node} used VXLAN over IPv6")
        assert {row["mtu"] for row in rows(lab, node).values()} == {MTU_OVER_IPV6}
        assert lab.weft_json(node, "status")["warnings"] == []
    all_pings_arrive(lab, list(itertools.permutations(lab.container_nodes(), 2)))
    assert full_packet_passes(lab, "c2.1", "c3.1", MTU_OVER_IPV6)
    lab.weft("h1", ["reset"])
    assert "vxlan" not in lab.run("h1", ["ip", "-d", "link"]).stdout


def test_each_pair_uses_what_both_have_and_a_third_where_that_is_nothing(make_lab: Callable[..., Lab]) -> None:
    """Of three hosts one has both versions, one IPv4, one IPv6: these two reach each other through the first."""
    lab = make_lab(hosts=3, containers=1, host_versions={2: {4}, 3: {6}})
    lab.build()
    lab.launch("h1")
    for host in (2, 3):
        lab.launch(f"h{host}", [str(lab.target(1, host))])
    for node in lab.container_nodes():
        lab.attach(node)
    assert lab.target(2, 3) is None
    one = {"h2": ("vxlan", "best", lab.underlay(2)), "h3": ("vxlan", "best", lab.underlay6(3))}
    wait_until(lambda: paths(lab, "h1") == one, 10, "h1 used both versions")
    for node, other in (("h2", "h3"), ("h3", "h2")):
        wait_until(lambda n=node, o=other: rows(lab, n)[o]["path"] == "relay", 20, f"{node} reached {other} through h1")  # type: ignore[misc]
        assert (rows(lab, node)[other]["reason"], rows(lab, node)[other]["via"]) == ("no-direct", ["h1"])
    all_pings_arrive(lab, list(itertools.permutations(lab.container_nodes(), 2)))
    wait_until(lambda: rows(lab, "h2")["h1"]["mtu"] == MTU_OVER_IPV6, 5, "the host with IPv4 alone had the smaller MTU")


def test_hosts_in_different_ipv4_networks_meet_over_ipv6_at_an_mtu_that_fits(make_lab: Callable[..., Lab]) -> None:
    """Both have IPv4 and neither is told of IPv6 alone: what decides is where the link is."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    lab.run("h2", ["ip", "address", "replace", "192.0.2.2/24", "dev", "eth0"])
    lab.run("h2", ["ip", "address", "delete", f"{lab.underlay(2)}/24", "dev", "eth0"])
    lab.launch("h1")
    lab.launch("h2", [lab.underlay6(1)])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    assert paths(lab, "h1")["h2"] == ("vxlan", "best", lab.underlay6(2))
    for node in lab.host_nodes():
        wait_until(lambda node=node: next(iter(rows(lab, node).values()))["mtu"] == MTU_OVER_IPV6, 5, f"{node} shrank")
    wait_until(lambda: full_packet_passes(lab, "c1.1", "c2.1", MTU_OVER_IPV6), 5, "full packets passed")
    assert paths(lab, "h1")["h2"] == ("vxlan", "best", lab.underlay6(2))


def test_a_host_that_loses_ipv4_is_reached_over_ipv6_and_may_get_it_back(make_lab: Callable[..., Lab]) -> None:
    """Its links went over IPv4 too. Pings stand still for a few seconds, and status says `vxlan` again."""
    lab = make_lab(hosts=3, containers=1)
    lab.up()
    assert rows(lab, "h1")["h2"]["address"] == lab.underlay(2)
    wait_until(lambda: rows(lab, "h1")["h2"]["rtt_ms"] is not None, 10, "probes were answered")
    running = lab.popen("c1.1", ["ping", "-n", "-i", "0.1", "-W", "1", "-w", "20", lab.address("c2.1")])
    lab.run("h2", ["ip", "address", "delete", f"{lab.underlay(2)}/24", "dev", "eth0"])
    longest_s = longest_silence_s(running)
    assert longest_s < 8.0, f"nothing came back for {longest_s:.1f} s"
    best = ("vxlan", "best", lab.underlay6(2))
    for node in ("h1", "h3"):
        wait_until(lambda node=node: paths(lab, node)["h2"] == best, 40, f"{node} reached h2 over IPv6")
    assert paths(lab, "h1")["h3"] == ("vxlan", "best", lab.underlay(3)), "nobody else had to move"
    assert {row["address"] for row in rows(lab, "h2").values()} == {lab.underlay6(1), lab.underlay6(3)}
    all_pings_arrive(lab, list(itertools.permutations(lab.container_nodes(), 2)))

    lab.run("h2", ["ip", "address", "add", f"{lab.underlay(2)}/24", "dev", "eth0"])
    lab.run("h2", ["ip", "-6", "address", "delete", f"{lab.underlay6(2)}/64", "dev", "eth0"])
    best = ("vxlan", "best", lab.underlay(2))
    for node in ("h1", "h3"):
        wait_until(lambda node=node: paths(lab, node)["h2"] == best, 60, f"{node} reached h2 over IPv4 again")
    all_pings_arrive(lab, list(itertools.permutations(lab.container_nodes(), 2)))


def longest_silence_s(running: subprocess.Popen[str]) -> float:
    """Between two answers, of a ping every 0.1 s, told by their numbers."""
    said, _ = running.communicate(timeout=40)
    numbers = [int(word[9:]) for word in said.split() if word.startswith("icmp_seq=")]
    numbers = [0, *numbers, int(said.split(" packets transmitted")[0].split()[-1])]
    return max(later - earlier for earlier, later in itertools.pairwise(numbers)) * 0.1


@pytest.mark.parametrize("password", [[], ["--password", "a long one for the test"]], ids=["vxlan", "sleeve"])
def test_link_local_addresses_are_enough_for_hosts_that_have_a_link(
    make_lab: Callable[..., Lab], password: list[str]
) -> None:
    """Dialled with their interface; remembered; told to nobody."""
    lab = make_lab(hosts=2, containers=1, host_versions={1: (), 2: ()})
    lab.up(password)
    target = str(lab.target(1, 2))
    assert target.startswith("fe80::") and target.endswith("%eth0")
    wanted = ("sleeve", "no-wireguard") if password else ("vxlan", "best")
    for node in lab.host_nodes():
        assert next(iter(paths(lab, node).values()))[:2] == wanted
        assert all(row["addresses"] == [] for row in lab.weft_json(node, "status", "peers"))
        assert {row["mtu"] for row in rows(lab, node).values()} == {MTU_OVER_IPV6}
    all_pings_arrive(lab, [("c1.1", "c2.1"), ("c2.1", "c1.1")])
    targets = lab.weft_json("h2", "status", "targets")
    assert [(row["target"], row["state"]) for row in targets] == [(target, "connected")]
    lab.weft("h2", ["stop"])
    lab.launch("h2", password)
    wait_until(lambda: rows(lab, "h2") and next(iter(paths(lab, "h2").values()))[:2] == wanted, 10, "it was remembered")
    wait_until(lambda: paths(lab, "h1")["h2"][:2] == wanted, 10, "h1 had it back")
    all_pings_arrive(lab, [("c1.1", "c2.1"), ("c2.1", "c1.1")])
    if not password:
        entries = json.loads(lab.run("h1", ["bridge", "-json", "fdb", "show", "dev", "weft-vx6"]).stdout)
        assert {entry.get("viaIf", entry.get("via_if")) for entry in entries if "dst" in entry} == {"eth0"}


def test_the_interface_of_a_link_local_address_counts(make_lab: Callable[..., Lab]) -> None:
    """h2 has two with such addresses, of which the first leads nowhere: dialled, and sent to, is through the other."""
    lab = make_lab(hosts=2, containers=1, host_versions={1: (), 2: ()})
    lab.build()
    lab.run("hub", ["ip", "link", "add", "second", "type", "veth", "peer", "eth1", "netns", lab.namespace("h2")])
    lab.run("hub", ["ip", "link", "set", "second", "master", "hub", "up"])
    lab.run("hub", ["ip", "link", "set", "h2", "nomaster"])
    lab.run("h2", ["ip", "link", "set", "eth1", "up"])
    lab.launch("h1")
    lab.launch("h2", [f"{lab.link_local(1)}%eth1"])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    assert paths(lab, "h2")["h1"][:2] == ("vxlan", "best")
    all_pings_arrive(lab, [("c2.1", "c1.1"), ("c1.1", "c2.1")])
    lab.weft("h2", ["connect", "fe80::1%nosuch0"])

    def error() -> str:
        rows = lab.weft_json("h2", "status", "targets")
        return str(next(row["error"] for row in rows if row["target"] == "fe80::1%nosuch0"))

    wait_until(lambda: "no interface nosuch0" in error(), 10, "the target's trouble was told")
