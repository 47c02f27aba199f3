"""What others do to the kernel beside us: deletions are repaired, firewalls passed or named, reset leaves no trace."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from bench.traffic import Pinger, ping
from mesh.lab import Lab
from mesh.namespaces import CommandFailed, wait_until
from tests.labs.snapshot import snapshot

pytestmark = pytest.mark.root

REPAIRED_WITHIN_S = 1.0


def _json(lab: Lab, node: str, *command: str) -> Any:
    return json.loads(lab.run(node, list(command)).stdout or "[]")


def _mac(lab: Lab, node: str) -> str:
    return str(_json(lab, node, "ip", "-j", "link", "show", "ethwe")[0]["address"])


def _fdb(lab: Lab, node: str, device: str, mac: str) -> list[tuple[str, str]]:
    """Where a MAC is known on a device: (`self` or `master`, destination)."""
    rows = _json(lab, node, "bridge", "-j", "fdb", "show", "dev", device)
    return sorted(
        ("self" if "self" in row.get("flags", []) else "master", row.get("dst", ""))
        for row in rows
        if row["mac"] == mac
    )


def _neighbour(lab: Lab, node: str, address: str) -> str | None:
    rows = _json(lab, node, "ip", "-j", "neighbour", "show", address, "dev", "weft")
    return next((row.get("lladdr") for row in rows), None)


def _port_of(lab: Lab, mac: str) -> str:
    """The end on h1's bridge of the container port with this MAC."""
    rows = _json(lab, "h1", "bridge", "-j", "fdb", "show", "br", "weft")
    return next(str(row["ifname"]) for row in rows if row["mac"] == mac and row["ifname"].startswith("vw"))


def _links(lab: Lab, node: str) -> list[str]:
    return sorted(row["ifname"] for row in _json(lab, node, "ip", "-j", "link"))


def _repaired(lab: Lab, node: str, command: list[str], state: Callable[[], Any], what: str) -> None:
    """Do the damage, see it undone in time; what must come back is what was there before."""
    before = state()
    assert before, f"{what} was there to begin with"
    lab.run(node, command)
    wait_until(lambda: state() == before, REPAIRED_WITHIN_S, f"{what} was repaired")


@pytest.fixture(scope="module")
def far_mac(mesh: Lab) -> str:
    """The MAC of c2.1, an endpoint that is remote for h1."""
    return _mac(mesh, "c2.1")


def test_a_deleted_vxlan_entry_comes_back(mesh: Lab, far_mac: str) -> None:
    """Where the frames of one MAC are sent to."""
    command = ["bridge", "fdb", "del", far_mac, "dev", "weft-vx", "dst", mesh.underlay(2), "self"]
    _repaired(mesh, "h1", command, lambda: _fdb(mesh, "h1", "weft-vx", far_mac), "the VXLAN entry")


def test_a_deleted_bridge_entry_comes_back(mesh: Lab, far_mac: str) -> None:
    """On which port of the bridge a MAC is."""
    command = ["bridge", "fdb", "del", far_mac, "dev", "weft-vx", "master"]
    _repaired(mesh, "h1", command, lambda: _fdb(mesh, "h1", "weft-vx", far_mac), "the bridge entry")


def test_a_deleted_broadcast_destination_comes_back(mesh: Lab) -> None:
    """The list of peers that get a copy of every broadcast."""
    zero = "00:00:00:00:00:00"
    command = ["bridge", "fdb", "del", zero, "dev", "weft-vx", "dst", mesh.underlay(3), "self"]
    _repaired(mesh, "h1", command, lambda: _fdb(mesh, "h1", "weft-vx", zero), "the broadcast destination")


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_deleted_neighbour_comes_back(mesh: Lab, family: str) -> None:
    """What ARP and neighbour discovery are answered from."""
    address = mesh.address("c2.1") if family == "IPv4" else mesh.address6("c2.1")
    command = ["ip", "neighbour", "del", address, "dev", "weft"]
    _repaired(mesh, "h1", command, lambda: _neighbour(mesh, "h1", address), "the neighbour")


@pytest.mark.parametrize(
    ("node", "command"),
    [
        ("h1", ["ip", "link", "del", "weft-vx"]),
        ("h1", ["ip", "link", "set", "weft-vx", "down"]),
        ("h1", ["ip", "link", "set", "weft-vx", "nomaster"]),
        ("h1", ["ip", "link", "set", "weft", "down"]),
        ("h1", ["ip", "link", "del", "weft"]),
        ("h1", ["bridge", "link", "set", "dev", "weft-vx", "learning", "on", "flood", "on"]),
        ("c1.1", ["ip", "address", "flush", "dev", "ethwe"]),
        ("c1.1", ["ip", "link", "set", "ethwe", "down"]),
        ("c1.1", ["ip", "link", "del", "ethwe"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_traffic_flows_again_after_foreign_hands(mesh: Lab, node: str, command: list[str]) -> None:
    """Devices, flags and addresses: within a second all is as before and pings of both families are answered."""

    def whole() -> tuple[list[str], Any, Any]:
        flags = _json(mesh, "h1", "bridge", "-d", "-j", "link", "show", "dev", "weft-vx")
        kept = [{key: row.get(key) for key in ("learning", "flood", "neigh_suppress", "isolated")} for row in flags]
        addresses = _json(mesh, "c1.1", "ip", "-j", "address", "show", "dev", "ethwe")[0]["addr_info"]
        return _links(mesh, "h1"), kept, sorted(row["local"] for row in addresses if row["scope"] == "global")

    def repaired() -> bool:
        try:
            return whole() == before and all(_answers(mesh, "c1.1", address) for address in far)
        except (CommandFailed, IndexError):
            return False  # something is missing at this moment

    far = (mesh.address("c2.1"), mesh.address6("c2.1"))
    before = whole()
    assert repaired()
    mesh.run(node, command)
    wait_until(repaired, REPAIRED_WITHIN_S, "the damage was repaired")


def _answers(lab: Lab, node: str, address: str) -> bool:
    """One ping that does not wait long."""
    return lab.run(node, ["ping", "-n", "-c", "1", "-W", "0.2", address], check=False).returncode == 0


def test_a_foreign_device_is_left_alone(mesh: Lab) -> None:
    """What the daemon did not make it neither removes nor changes."""
    mesh.run("h1", ["ip", "link", "add", "mine0", "type", "bridge"])
    mesh.run("h1", ["ip", "neighbour", "add", "10.9.0.77", "lladdr", "02:00:00:00:77:77", "dev", "eth0"])
    mesh.run("h1", ["nft", "add", "table", "inet", "mine"])
    mesh.run("h1", ["ip", "link", "set", "weft-vx", "down"])
    wait_until(lambda: ping(mesh, "c1.1", mesh.address("c2.1")).times_ms, 3, "traffic flowed again")
    assert "mine0" in _links(mesh, "h1")
    assert "02:00:00:00:77:77" in mesh.run("h1", ["ip", "neighbour"]).stdout
    assert "table inet mine" in mesh.run("h1", ["nft", "list", "tables"]).stdout


def _as_docker_does(lab: Lab, node: str) -> None:
    """What a host with Docker looks like to bridged frames."""
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        lab.run(node, ["sh", "-c", 'echo 1 > "/proc/sys/net/bridge/$1"', "sh", name])
    for iptables in ("iptables", "ip6tables"):
        for rule in (
            ["-P", "FORWARD", "DROP"],
            ["-N", "DOCKER-USER"],
            ["-A", "DOCKER-USER", "-j", "RETURN"],
            ["-I", "FORWARD", "-j", "DOCKER-USER"],
        ):
            lab.run(node, [iptables, *rule])


def test_beside_docker_traffic_passes(make_lab: Callable[..., Lab]) -> None:
    """FORWARD drop with bridge-nf-call on, before and after launch, and after Docker made its rules anew."""
    lab = make_lab(hosts=2, containers=2)
    lab.build()
    _as_docker_does(lab, "h1")
    _foreign_bridge(lab)
    assert ping(lab, "d1", "10.77.0.2").lost == [1], "the policy drops other bridged traffic, so this test can fail"
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    _as_docker_does(lab, "h2")
    for address in (lab.address("c2.1"), lab.address6("c2.1"), lab.address("c1.2"), lab.address6("c1.2")):
        wait_until(lambda address=address: ping(lab, "c1.1", address).times_ms, 5, f"{address} answered")  # type: ignore[misc]
    pinger = Pinger(lab, "c2.1", lab.address("c2.2"))
    assert ping(lab, "c2.1", lab.address("c1.1"), count=3).lost == []
    assert pinger.stop().lost == []

    for iptables in ("iptables", "ip6tables"):
        lab.run("h1", [iptables, "-F", "DOCKER-USER"])
        lab.run("h1", [iptables, "-F", "FORWARD"])
    wait_until(lambda: ping(lab, "c1.1", lab.address("c2.1")).times_ms, 3, "traffic passed the new rules")
    wait_until(lambda: ping(lab, "c1.1", lab.address6("c1.2")).times_ms, 3, "IPv6 passed the new rules")
    assert ping(lab, "d1", "10.77.0.2").lost == [1], "what is not ours is still dropped"


def _foreign_bridge(lab: Lab) -> None:
    """Two namespaces on a bridge of h1 that has nothing to do with us."""
    lab.add_namespaces(["d1", "d2"])
    lab.run("h1", ["ip", "link", "add", "foreign", "type", "bridge"])
    lab.run("h1", ["ip", "link", "set", "foreign", "up"])
    for number, node in enumerate(("d1", "d2"), start=1):
        port = f"port{number}"
        peer = ["peer", "name", "eth0", "netns", lab.namespace(node)]
        lab.run("h1", ["ip", "link", "add", port, "type", "veth", *peer])
        lab.run("h1", ["ip", "link", "set", port, "master", "foreign", "up"])
        lab.run(node, ["ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0"])
        lab.run(node, ["ip", "link", "set", "eth0", "up"])


def test_a_firewall_that_drops_is_named_in_status(mesh: Lab) -> None:
    """One that no accept rule of ours can help against: `status` says which and what to do, and forgets it after."""
    rules = "table inet fortress {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n }\n}\n"
    mesh.run("h3", ["nft", "-f", "-"], stdin=rules)
    try:
        wait_until(lambda: "fortress" in _warnings(mesh), 10, "status named the firewall")
        assert all(row["code"] and row["text"] and row["cure"] for row in mesh.weft_json("h3", "status")["warnings"])
    finally:
        mesh.run("h3", ["nft", "delete", "table", "inet", "fortress"])
    wait_until(lambda: "fortress" not in _warnings(mesh), 10, "status had forgotten it")


def _warnings(lab: Lab) -> str:
    return json.dumps(lab.weft_json("h3", "status")["warnings"])


@pytest.mark.parametrize("daemon", ["running", "killed"])
def test_reset_leaves_the_host_as_it_was(make_lab: Callable[..., Lab], daemon: str) -> None:
    """Devices, addresses, routes, rules, nftables and sysctls of host and container, with the daemon or without it."""
    lab = make_lab(hosts=2, containers=2)
    lab.build()
    _as_docker_does(lab, "h1")
    nodes = ("h1", "c1.1", "c1.2")
    wait_until(lambda: "tentative" not in lab.run("h1", ["ip", "address"]).stdout, 5, "the lab's own addresses settled")
    before = {node: snapshot(lab, node) for node in nodes}
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    lab.weft("h1", ["expose", "10.32.1.200/16", "fd00:32::1:200/64"])
    assert ping(lab, "c1.1", lab.address("c2.1"), count=3, interval_s=0.3).times_ms
    assert all(snapshot(lab, node) != before[node] for node in nodes)
    if daemon == "killed":
        pid = lab.daemon_pid("h1")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lab.daemon_pid("h1") is None, 5, "the daemon had died")

    lab.weft("h1", ["reset", "--force"])

    assert lab.daemon_pid("h1") is None
    for node in nodes:
        after = snapshot(lab, node)
        for part, value in before[node].items():
            assert after[part] == value, f"{part} of {node}"
    assert not list(lab.state_dir("h1").glob("*.weft")) if lab.state_dir("h1").exists() else True
    if daemon == "running":  # `gone` could be told: the others forget the host and its endpoints at once
        wait_until(lambda: len(lab.weft_json("h2", "status", "peers")) == 1, 5, "h2 had forgotten h1")
        assert [row["local"] for row in lab.weft_json("h2", "status", "endpoints")] == [True, True]
