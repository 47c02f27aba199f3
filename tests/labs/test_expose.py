"""Whole daemons and exposed hosts: who talks to whom, the way out, what others do to it, what is left in the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mesh.lab import Lab
from mesh.namespaces import CommandFailed, wait_until
from tests.labs.snapshot import snapshot

pytestmark = pytest.mark.root

EXPOSED = ("10.32.1.200", "fd00:32::1:200")
WORDS = ["10.32.1.200/16", "ip:fd00:32::1:200/64"]
PRINTED = ["10.32.1.200/16", "fd00:32::1:200/64"]
OUTSIDE = ("192.0.2.9", "2001:db8:9::9")
RESTORED_WITHIN_S = 1.0


def _outside(lab: Lab) -> None:
    """A namespace behind h1 that knows h1 and nothing of the overlay."""
    lab.add_namespaces(["out"])
    lab.run("h1", ["ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", lab.namespace("out")])
    for node, device, number in (("h1", "wan", 1), ("out", "eth0", 9)):
        lab.run(node, ["ip", "address", "add", f"192.0.2.{number}/24", "dev", device])
        lab.run(node, ["ip", "address", "add", f"2001:db8:9::{number}/64", "dev", device, "nodad"])
        lab.run(node, ["ip", "link", "set", device, "up"])


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(hosts=2, containers=2)
    made.up()
    _outside(made)
    return made


@pytest.fixture
def exposed(lab: Lab) -> Iterator[Lab]:
    lab.weft("h1", ["expose", *WORDS])
    wait_until(lambda: len(_hosts(lab, "h2")) == 1, 5, "h2 had heard of it")
    yield lab
    lab.weft("h1", ["hide"])


def _hosts(lab: Lab, node: str) -> list[dict[str, Any]]:
    return [row for row in lab.weft_json(node, "status", "endpoints") if row["id"] == "weft:expose"]


def _answers(lab: Lab, node: str, *addresses: str) -> bool:
    ping = ["ping", "-n", "-c", "1", "-W", "0.5"]
    return all(lab.run(node, [*ping, address], check=False).returncode == 0 for address in addresses)


def test_expose_and_hide_print_addresses_and_may_be_repeated(lab: Lab) -> None:
    """`expose` prints all there are, `hide` what it took."""
    for _ in range(2):
        assert lab.weft("h1", ["expose", *WORDS]).stdout.split() == PRINTED
    assert lab.weft("h1", ["expose"]).stdout.split() == PRINTED
    assert lab.weft("h1", ["hide", WORDS[0]]).stdout.split() == PRINTED[:1]
    assert lab.weft("h1", ["hide", WORDS[0]]).stdout == ""
    assert json.loads(lab.weft("h1", ["hide", "--json"]).stdout)["addresses"] == PRINTED[1:]
    assert lab.weft("h1", ["hide"]).stdout == ""


def test_the_host_is_an_endpoint_everywhere_and_talks_to_all(exposed: Lab) -> None:
    """Owner h1, the MAC of its bridge, both families, both ways; other hosts answer ARP for it at home."""
    lab = exposed
    (row,) = _hosts(lab, "h2")
    bridge = json.loads(lab.run("h1", ["ip", "-j", "link", "show", "weft"]).stdout)[0]["address"]
    assert (row["addresses"], row["mac"], row["nickname"], row["local"]) == (PRINTED, bridge, "h1", False)
    here = [lab.namespace("c1.1"), lab.namespace("c1.2"), "weft:expose"]
    assert [each["id"] for each in lab.weft_json("h1", "ps")] == here
    for node in ("c1.1", "c2.1"):
        assert _answers(lab, "h1", lab.address(node), lab.address6(node)), node
        assert _answers(lab, node, *EXPOSED), node
    neighbours = lab.run("h2", ["ip", "neighbour", "show", "dev", "weft", "nud", "permanent"]).stdout
    assert all(f"{address} lladdr {bridge}" in neighbours for address in EXPOSED)


def test_an_address_that_somebody_has_is_refused_with_who(exposed: Lab) -> None:
    """A container here or there, a host; an address or route of the host's own."""
    lab = exposed
    for node, words, says in (
        ("h1", ["expose", f"{lab.address('c1.1')}/16"], f"held by {lab.namespace('c1.1')} on this host"),
        ("h1", ["expose", f"{lab.address('c2.1')}/16"], f"held by {lab.namespace('c2.1')} on host h2"),
        ("h2", ["expose", WORDS[0]], "held by weft:expose on host h1.*weft hide 10.32.1.200/16"),
        ("h2", ["attach", WORDS[0], lab.namespace("c2.1")], "held by weft:expose on host h1.*weft hide 10.32.1.200/16"),
        ("h1", ["attach", WORDS[0], lab.namespace("c1.1")], "address of this host itself.*weft hide 10.32.1.200/16"),
        ("h1", ["expose", "192.0.2.77/24"], "collides with the route 192.0.2.0/24 dev wan"),
        ("h1", ["expose", "192.0.2.1/32"], "collides with the address 192.0.2.1 of wan"),
        ("h1", ["expose", "2001:db8::5/32"], "collides with the route 2001:db8:9::/64 dev wan"),
    ):
        with pytest.raises(CommandFailed, match=says):
            lab.weft(node, words)
    assert lab.weft("h1", ["expose"]).stdout.split() == PRINTED


def test_containers_reach_the_outside_and_nothing_comes_in_unasked(exposed: Lab) -> None:
    """Through their own host; a container elsewhere too, where its user names the exposed address as gateway."""
    lab = exposed
    assert _answers(lab, "c1.1", *OUTSIDE) and _answers(lab, "c1.2", *OUTSIDE)
    assert not _answers(lab, "c2.1", OUTSIDE[0])
    for family, gateway, address in (("-4", EXPOSED[0], OUTSIDE[0]), ("-6", EXPOSED[1], OUTSIDE[1])):
        lab.run("c2.1", ["ip", family, "route", "add", "default", "via", gateway])
        assert _answers(lab, "c2.1", address)
        lab.run("c2.1", ["ip", family, "route", "del", "default"])
    lab.run("out", ["ip", "route", "add", "10.32.0.0/16", "via", "192.0.2.1"])
    assert not _answers(lab, "out", lab.address("c1.1"))
    lab.run("out", ["ip", "route", "del", "10.32.0.0/16"])


def test_a_flushed_ruleset_is_back_within_a_second(exposed: Lab) -> None:
    """And once more at once: the second flush comes while the first is being repaired."""
    lab = exposed
    for _ in range(3):
        lab.run("h1", ["nft", "flush", "ruleset"])
        wait_until(lambda: _answers(lab, "c1.1", *OUTSIDE), RESTORED_WITHIN_S, "the way out was back")


def test_a_restart_and_a_stop_keep_it(exposed: Lab) -> None:
    """Without a daemon the way out stays; the next one finds everything as it wants it, and others know again."""
    lab = exposed
    lab.weft("h1", ["stop"])
    assert _answers(lab, "c1.1", *OUTSIDE) and _answers(lab, "h1", lab.address("c2.1"))
    lab.launch("h1")
    assert lab.weft("h1", ["expose"]).stdout.split() == PRINTED
    assert lab.weft_json("h1", "report")["counters"]["kernel"]["applied"] == 0
    assert _answers(lab, "c1.1", *OUTSIDE)
    wait_until(lambda: lab.connected_peers("h1") == 1 and len(_hosts(lab, "h2")) == 1, 15, "h2 had heard of it again")


def test_a_reboot_brings_it_back(exposed: Lab) -> None:
    """All that the kernel held is gone, and the containers; addresses, rules and forwarding come back with the
    daemon."""
    lab = exposed
    lab.weft("h1", ["stop"])
    for command in ("ip link del weft", "nft flush ruleset", "sysctl -qw net.ipv4.ip_forward=0",
                    "sysctl -qw net.ipv6.conf.all.forwarding=0"):  # fmt: skip
        lab.run("h1", command.split())
    lab.launch("h1")
    assert lab.weft("h1", ["expose"]).stdout.split() == PRINTED
    wait_until(lambda: _answers(lab, "h1", lab.address("c2.1"), lab.address6("c2.1")), 15, "h1 reached h2's containers")
    assert _answers(lab, "c1.1", *OUTSIDE)
    assert lab.weft_json("h1", "status")["warnings"] == []


_FIREWALLD = """
table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority filter + 10; policy accept;
  ct state established,related accept
  jump filter_FORWARD_ZONES
  reject with icmpx type admin-prohibited
 }
 chain filter_FORWARD_ZONES {
  reject with icmpx type admin-prohibited
 }
}
"""


def test_beside_docker_and_ufw_packets_pass_and_firewalld_is_named(exposed: Lab) -> None:
    """The first two drop what is forwarded and is none of theirs; what the third rejects nobody else can let pass."""
    lab = exposed
    for iptables, prefix in (("iptables", "ufw"), ("ip6tables", "ufw6")):
        for rule in ("-P FORWARD DROP", "-N DOCKER-USER", "-I FORWARD -j DOCKER-USER",
                     f"-N {prefix}-before-forward", f"-A FORWARD -j {prefix}-before-forward"):  # fmt: skip
            lab.run("h1", [iptables, *rule.split()])
    wait_until(lambda: _answers(lab, "c1.1", *OUTSIDE), 3, "packets passed")
    assert _answers(lab, "h1", lab.address("c2.1"), lab.address6("c2.1"))
    saved = lab.run("h1", ["iptables-save"]).stdout
    assert saved.count("--comment weft ") == 1 and saved.count('--comment "weft ') == 2
    lab.run("h1", ["nft", "-f", "-"], stdin=_FIREWALLD)
    try:
        wait_until(lambda: "firewalld" in _warnings(lab), 10, "status named firewalld")
        assert "firewall-cmd --permanent --zone=trusted --add-interface=weft" in _warnings(lab)
    finally:
        lab.run("h1", ["nft", "delete", "table", "inet", "firewalld"])
    wait_until(lambda: "firewalld" not in _warnings(lab), 10, "status had forgotten it")


def _warnings(lab: Lab) -> str:
    return json.dumps(lab.weft_json("h1", "status")["warnings"])


def test_hide_leaves_the_host_as_it_was(lab: Lab) -> None:
    """Addresses, routes, rules, sysctls of the host and of its containers, and what other hosts know."""
    nodes = ("h1", "c1.1", "h2")
    wait_until(lambda: not _hosts(lab, "h2"), 5, "h2 had forgotten the host")
    before = {node: snapshot(lab, node) for node in nodes}
    lab.weft("h1", ["expose", *WORDS])
    wait_until(lambda: _hosts(lab, "h2") and _answers(lab, "c1.1", *OUTSIDE), 5, "it was exposed")
    assert snapshot(lab, "h1") != before["h1"] and snapshot(lab, "c1.1") != before["c1.1"]
    assert lab.weft("h1", ["hide"]).stdout.split() == PRINTED
    wait_until(lambda: not _hosts(lab, "h2"), 5, "h2 had forgotten the host")
    for node in nodes:
        after = snapshot(lab, node)
        for part in ("addresses", "routes", "rules", "fdb", "nft", "sysctls"):  # devices have timers
            assert after[part] == before[node][part], f"{part} of {node}"
    assert _answers(lab, "c1.1", lab.address("c2.1"), lab.address6("c2.1"))


def test_with_a_password_the_host_talks_by_the_sleeve(make_lab: Callable[..., Lab]) -> None:
    """The worker of the other host knows where the host itself is."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    password = ["--password", "correct horse battery staple"]
    lab.launch("h1", password)
    lab.launch("h2", [*password, lab.underlay(1)])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    lab.weft("h1", ["expose", *WORDS])
    wait_until(lambda: _answers(lab, "c2.1", *EXPOSED), 15, "the host answered by the sleeve")
    assert _answers(lab, "h1", lab.address("c2.1"), lab.address6("c2.1"))
    assert {row["path"] for row in lab.weft_json("h1", "status", "connections")} == {"sleeve"}
