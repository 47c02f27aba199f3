"""Addresses that nobody chose, in whole daemons: given at once, kept through deaths, taken back, joined."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

LEASE_S = 30


def attach(lab: Lab, node: str, *wants: str, host: str | None = None) -> list[str]:
    """The addresses that were given, without their lengths."""
    lines = lab.attach(node, host, addresses=wants).split()
    return [line.partition("/")[0] for line in lines]


def status(lab: Lab, node: str) -> dict[str, Any]:
    answer = lab.weft_json(node, "status", "ipam")
    assert isinstance(answer, dict)
    return answer


def refused(lab: Lab, node: str, *words: str) -> str:
    done = lab.weft(node, list(words), check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    return done.stderr


def kill(lab: Lab, node: str) -> None:
    pid = lab.daemon_pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.daemon_pid(node) is None, 5, "the daemon had died")


@pytest.fixture(scope="module")
def three(make_lab: Callable[..., Lab]) -> Lab:
    """Three hosts launched at once with each other's names, nothing attached."""
    lab = make_lab(hosts=3, containers=3)
    lab.build()
    names = [lab.underlay(host) for host in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        for each in [
            pool.submit(lab.launch, f"h{host}", [name for name in names if name != lab.underlay(host)])
            for host in (1, 2, 3)
        ]:
            each.result()
    lab.wait_connected()
    return lab


def test_everybody_attaches_at_once_and_all_of_them_talk(three: Lab) -> None:
    """Nine containers on three hosts in one moment: nine pairs of addresses, and a ring."""
    nodes = three.container_nodes()
    with ThreadPoolExecutor(9) as pool:
        given = dict(zip(nodes, pool.map(lambda node: attach(three, node), nodes), strict=True))
    assert all(len(pair) == 2 for pair in given.values()), given
    low, high = zip(*given.values(), strict=True)
    assert len(set(low)) == 9 and len(set(high)) == 9
    assert all(ipaddress.ip_address(each) in ipaddress.ip_network("10.32.0.0/12") for each in low)
    assert all(ipaddress.ip_address(each) in ipaddress.ip_network("fd00::/8") for each in high)
    for address in given["c3.1"]:
        assert ping(three, "c1.1", address).lost == []
    rings = {status(three, node)["ring"] for node in three.host_nodes()}
    assert len(rings) == 1 and None not in rings
    assert sum(row["addresses"] for row in status(three, "h1")["peers"]) == 1 << 20


def test_what_a_host_gave_is_found_again_after_its_daemon_died(three: Lab) -> None:
    before = attach(three, "c1.1")
    kill(three, "h1")
    three.launch("h1")
    wait_until(lambda: status(three, "h1")["state"] == "ready", 10, "h1 may give again")
    assert attach(three, "c1.1") == before
    three.weft("h1", ["detach", three.namespace("c1.1")])
    assert attach(three, "c1.1") == before  # while it rests it is its own


def test_an_address_of_a_subnet_and_one_that_was_chosen(three: Lab) -> None:
    """Whichever host owns them; and who has one is said."""
    for host in ("h1", "h2", "h3"):
        node = f"c{host[1]}.2"
        three.weft(host, ["detach", three.namespace(node)])
        (address,) = attach(three, node, "net:10.34.5.0/24")
        assert ipaddress.ip_address(address) in ipaddress.ip_network("10.34.5.0/24")
    three.weft("h2", ["detach", three.namespace("c2.3")])
    assert attach(three, "c2.3", "10.40.1.7/16") == ["10.40.1.7"]
    said = refused(three, "h1", "attach", "10.40.1.7/16", three.namespace("c1.1"))
    assert "10.40.1.7 is held by" in said and "on host h2" in said
    assert "is not inside the range" in refused(three, "h1", "attach", "net:192.168.9.0/24", three.namespace("c1.1"))


def test_the_host_is_exposed_with_a_free_address(three: Lab) -> None:
    low, high = three.weft("h1", ["expose"]).stdout.split()
    assert ping(three, "c2.1", low.partition("/")[0]).lost == []
    assert three.weft("h1", ["expose"]).stdout.split() == [low, high]
    assert three.weft("h1", ["hide"]).stdout.split() == [low, high]


def test_what_is_given_can_be_saved_checked_and_compared(three: Lab) -> None:
    document = three.weft("h1", ["ipam", "export"]).stdout
    assert '"entries"' in document
    assert three.weft("h1", ["ipam", "check"]).returncode == 0
    path = three.directory / "saved.json"
    path.write_text(document)
    assert three.weft("h1", ["ipam", "import", "--force", str(path)]).returncode == 0
    assert three.weft("h1", ["ipam", "check"]).returncode == 0


def test_a_reset_gives_everything_to_the_others_at_once(three: Lab) -> None:
    assert "does not end" not in three.weft("h3", ["reset", "--force"]).stderr

    def all_owned() -> bool:
        rows = status(three, "h1")["peers"]
        return sum(row["addresses"] for row in rows if row["nickname"] != "h3") == 1 << 20

    wait_until(all_owned, 10, "the others own all of it")
    three.weft("h1", ["prime"])


def test_a_dead_host_is_taken_over_and_rmpeer_does_it_at_once(make_lab: Callable[..., Lab]) -> None:
    """Four hosts and a lease of 30 s: one dies and is taken over by itself, one is removed by word."""
    lab = make_lab(hosts=4, containers=2)
    lab.build()
    for host in range(1, 5):
        peers = [lab.underlay(other) for other in range(1, host)]
        lab.launch(f"h{host}", ["--ipalloc-lease", str(LEASE_S), *peers])
    lab.wait_connected()
    given = {f"c{host}.1": attach(lab, f"c{host}.1") for host in range(1, 5)}
    wait_until(lambda: len(status(lab, "h1")["voters"]) == 4, 15, "all four vote")
    kill(lab, "h4")

    def free_of(node: str) -> bool:
        rows = [row for row in status(lab, "h1")["peers"] if row["nickname"] != node]
        return sum(row["addresses"] for row in rows) == 1 << 20

    wait_until(lambda: free_of("h4"), LEASE_S + 30, "what was h4's is somebody else's")
    kill(lab, "h3")
    wait_until(lambda: not [row for row in lab.weft_json("h1", "status", "peers")
                            if row["nickname"] == "h3" and row["reachable"]], 10, "h3 is out of reach")  # fmt: skip
    assert "gone for good" in (status(lab, "h1")["advice"] or "")
    lab.weft("h1", ["rmpeer", "--force", "h3"])
    lab.launch("h4", ["--ipalloc-lease", str(LEASE_S)])
    wait_until(lambda: status(lab, "h4")["state"] == "ready", 20, "h4 is back")
    assert attach(lab, "c4.1") == given["c4.1"]  # what ran goes on
    assert any(row["code"] == "ipam-lost" for row in lab.weft_json("h4", "status")["warnings"])
    del given["c3.1"]  # by the operator's word nothing of it is in use any more
    assert attach(lab, "c4.2") not in given.values()


def test_two_that_began_apart_say_so_and_are_joined_by_word(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, containers=2)
    lab.build()
    for host in (1, 2):
        lab.launch(f"h{host}")
        assert len(attach(lab, f"c{host}.1")) == 2
    lab.weft("h2", ["connect", lab.underlay(1)])
    wait_until(lambda: status(lab, "h1")["state"] == status(lab, "h2")["state"] == "split", 15, "both say so")
    assert attach(lab, "c1.2") and attach(lab, "c2.2")  # apart, both go on
    said = refused(lab, "h2", "ipam", "join")
    assert "in use in both rings" in said and "--force" in said
    lab.weft("h2", ["detach", lab.namespace("c2.1")])
    wait_until(lambda: lab.weft("h2", ["ipam", "join"], check=False).returncode == 0, 10, "there is no conflict left")
    assert status(lab, "h1")["ring"] == status(lab, "h2")["ring"]
    assert attach(lab, "c2.1")
    for node in ("h1", "h2"):
        assert lab.weft(node, ["ipam", "check"]).returncode == 0


def test_a_range_that_collides_is_refused_with_the_route_or_another_is_chosen(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, containers=1)
    lab.build()
    lab.run("h1", ["ip", "route", "add", "10.32.0.0/16", "dev", "eth0"])
    done = lab.launch("h1", ["--ipalloc-range", "10.32.0.0/12"], check=False)
    assert done.returncode != 0 and "10.32.0.0/16" in done.stderr
    lab.launch("h1")
    assert status(lab, "h1")["range"] != "10.32.0.0/12"
    assert attach(lab, "c1.1")


def test_of_a_copied_state_directory_both_stop_giving_until_one_is_reset(make_lab: Callable[..., Lab]) -> None:
    """h3 starts with a copy of h1's state: the mesh refuses it, both are told, and both say what to do."""
    lab = make_lab(hosts=3, containers=2)
    lab.build()
    lab.launch("h2")
    lab.launch("h1", [lab.underlay(2)])
    assert attach(lab, "c1.1")
    lab.weft("h1", ["stop"])
    shutil.copytree(lab.state_dir("h1"), lab.state_dir("h3"), dirs_exist_ok=True)
    lab.launch("h1", [lab.underlay(2)])
    wait_until(lambda: status(lab, "h1")["state"] == "ready", 15, "h1 gives")
    lab.launch("h3", [lab.underlay(2)])
    for node in ("h1", "h3"):
        wait_until(lambda node=node: status(lab, node)["state"] == "conflict", 15, f"{node} knows")
        said = refused(lab, node, "attach", lab.namespace(f"c{node[1]}.2"))
        assert "state directory was copied" in said and "weft reset" in said
    assert attach(lab, "c1.1")  # what it gave before is still there
    lab.weft("h3", ["reset", "--force"])
    lab.weft("h1", ["ipam", "check", "--repair"])
    lab.launch("h3", [lab.underlay(2)])
    wait_until(lambda: status(lab, "h1")["state"] == "ready", 15, "h1 gives again")
    assert attach(lab, "c1.2") and attach(lab, "c3.2")
