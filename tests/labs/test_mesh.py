"""A mesh of three hosts that is well: who knows whom, who reaches whom, and what the command says about it."""

from __future__ import annotations

import itertools

import pytest

from bench.traffic import ping
from mesh.lab import Lab

pytestmark = pytest.mark.root


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_every_container_reaches_every_other(mesh: Lab, family: str) -> None:
    """Each ordered pair, on the first ping, whether on one host or on two."""
    address_of = mesh.address if family == "IPv4" else mesh.address6
    silent = [
        f"{source} -> {target}"
        for source, target in itertools.permutations(mesh.container_nodes(), 2)
        if ping(mesh, source, address_of(target), wait_s=2).lost
    ]
    assert silent == []


def test_hosts_that_nobody_introduced_know_each_other(mesh: Lab) -> None:
    """h2 and h3 were told of h1 only; each sees three reachable peers, itself one of them."""
    for node in mesh.host_nodes():
        rows = mesh.weft_json(node, "status", "peers")
        assert sorted(row["nickname"] for row in rows) == ["h1", "h2", "h3"]
        assert all(row["reachable"] for row in rows)
        assert [row["nickname"] for row in rows if row["self"]] == [node]
        assert all({"name", "addresses", "version"} <= row.keys() for row in rows)


def test_connections_say_path_reason_and_mtu(mesh: Lab) -> None:
    """One row for each other peer: VXLAN in clear, for the best of reasons, 50 bytes below the underlay's 1500."""
    for node in mesh.host_nodes():
        rows = mesh.weft_json(node, "status", "connections")
        assert sorted(row["nickname"] for row in rows) == sorted(set(mesh.host_nodes()) - {node})
        for row in rows:
            assert (row["path"], row["reason"], row["encrypted"], row["mtu"]) == ("vxlan", "best", False, 1450)
            assert {"peer", "link", "rtt_ms", "since"} <= row.keys()


def test_every_host_lists_every_endpoint(mesh: Lab) -> None:
    """Six endpoints with their addresses, the same on each host, two of them local."""
    expected = sorted(sorted(mesh.addresses(node)) for node in mesh.container_nodes())
    for node in mesh.host_nodes():
        rows = mesh.weft_json(node, "status", "endpoints")
        assert sorted(sorted(row["addresses"]) for row in rows) == expected
        assert sum(row["local"] for row in rows) == 2
        assert {row["network"] for row in rows} == {"weft"}
        assert len({row["mac"] for row in rows}) == 6


def test_ps_lists_what_is_attached_here(mesh: Lab) -> None:
    """With the MAC that the container really has."""
    rows = mesh.weft_json("h2", "ps")
    assert sorted(sorted(row["addresses"]) for row in rows) == sorted(
        sorted(mesh.addresses(n)) for n in ("c2.1", "c2.2")
    )
    macs = {mesh.run(node, ["cat", "/proc/net/dev"]) and _mac(mesh, node) for node in ("c2.1", "c2.2")}
    assert {row["mac"] for row in rows} == macs


def _mac(lab: Lab, node: str) -> str:
    words = lab.run(node, ["ip", "-o", "link", "show", "ethwe"]).stdout.split()
    return words[words.index("link/ether") + 1]


def test_attach_prints_the_addresses_with_their_length(mesh: Lab) -> None:
    """One a line; labels and names are kept; detach takes them away everywhere."""
    mesh.add_namespaces(["c3.9"])
    target = mesh.namespace("c3.9")
    done = mesh.weft("h3", ["attach", "10.32.3.9/16", "fd00:32::3:9/64", "--label", "tier=web", "-h", "web", target])
    assert sorted(done.stdout.split()) == ["10.32.3.9/16", "fd00:32::3:9/64"]
    row = next(row for row in mesh.weft_json("h3", "status", "endpoints") if "10.32.3.9/16" in row["addresses"])
    assert row["labels"] == {"tier": "web"}
    assert row["names"] == ["web"]
    assert ping(mesh, "c1.1", "10.32.3.9", count=3, interval_s=0.3).times_ms

    mesh.weft("h3", ["detach", target])

    assert ping(mesh, "c1.1", "10.32.3.9", count=2, interval_s=0.3).times_ms == {}
    assert mesh.run("c3.9", ["ip", "-o", "link", "show", "ethwe"], check=False).returncode != 0


def test_ping_goes_the_way_of_the_frames(mesh: Lab) -> None:
    """`weft ping` by nickname tells the path and is answered."""
    done = mesh.weft("h3", ["ping", "h2", "-c", "3"])
    assert "vxlan" in done.stdout


def test_a_second_launch_is_refused(mesh: Lab) -> None:
    """One line that says what is already there, and the first daemon goes on."""
    pid = mesh.daemon_pid("h1")
    done = mesh.launch("h1", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "already running" in done.stderr
    assert mesh.daemon_pid("h1") == pid
    assert mesh.weft_json("h1", "status")["reachable"] == 3


def test_report_holds_all_tables(mesh: Lab) -> None:
    """Everything that the other commands show, under its name."""
    report = mesh.weft_json("h1", "report")
    assert {"status", "peers", "connections", "targets", "endpoints"} <= report.keys()
