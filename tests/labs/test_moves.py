"""An address that moves from one host to another, and one that may not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.traffic import first_answer, ping
from mesh.lab import Lab
from mesh.namespaces import ip_batch, wait_until

pytestmark = pytest.mark.root

ANSWERS_WITHIN_S = 1.0


def _mac(lab: Lab, node: str) -> str:
    words = lab.run(node, ["ip", "-o", "link", "show", "ethwe"]).stdout.split()
    return words[words.index("link/ether") + 1]


@pytest.mark.parametrize("mac", ["the same MAC", "a new MAC"])
def test_an_address_detached_here_answers_where_it_is_attached_next(mesh: Lab, mac: str) -> None:
    """IPv4 and IPv6, within a second, for containers that have it in their neighbour tables; and back again.

    A MAC belongs to the first address of an interface: another one first makes it a new MAC.
    """
    number = 7 if mac == "the same MAC" else 6
    here, there = f"c1.{number}", f"c2.{number}"
    mesh.add_namespaces([here, there])
    moved = [f"10.32.9.{number}/16", f"fd00:32::9:{number}/64"]
    first = [] if mac == "the same MAC" else ["10.32.9.60/16"]
    mesh.attach(here, "h1", moved)
    before = _mac(mesh, here)

    _move(mesh, ("h1", here), ("h2", there), moved, [*first, *moved])
    assert (_mac(mesh, there) == before) == (mac == "the same MAC")
    _move(mesh, ("h2", there), ("h1", here), moved, moved)


def _move(lab: Lab, source: tuple[str, str], target: tuple[str, str], moved: list[str], attached: list[str]) -> None:
    """Detach at one host, attach at another; every other container must be answered in time."""
    plain = [address.split("/")[0] for address in moved]
    askers = ["c3.1", "c2.1", "c1.1"]
    for asker in askers:  # so that everybody holds an entry for where it was
        for address in plain:
            assert ping(lab, asker, address, count=2).times_ms
    lab.weft(source[0], ["detach", lab.namespace(source[1])])
    lab.attach(target[1], target[0], attached)
    returned_s = time.time()
    with ThreadPoolExecutor(len(askers) * len(plain)) as pool:
        running = {
            (asker, address): pool.submit(first_answer, lab, asker, address, returned_s)
            for asker in askers
            for address in plain
        }
        waited = {question: answer.result() for question, answer in running.items()}
    assert all(wait_s is not None and wait_s <= ANSWERS_WITHIN_S for wait_s in waited.values()), waited


def test_an_address_held_elsewhere_is_refused_with_the_holders_name(mesh: Lab) -> None:
    """One line, exit 1, nothing attached, and the holder keeps answering."""
    mesh.add_namespaces(["c2.8"])
    taken = f"{mesh.address('c1.1')}/16"
    done = mesh.weft("h2", ["attach", taken, mesh.namespace("c2.8")], check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "h1" in done.stderr
    assert mesh.address("c1.1") in done.stderr
    assert mesh.run("c2.8", ["ip", "-o", "link", "show", "ethwe"], check=False).returncode != 0
    assert ping(mesh, "c2.1", mesh.address("c1.1")).lost == []


def test_an_address_of_this_host_is_refused_for_a_second_container(mesh: Lab) -> None:
    """Also when the holder is ourselves."""
    mesh.add_namespaces(["c1.8"])
    done = mesh.weft("h1", ["attach", f"{mesh.address('c1.2')}/16", mesh.namespace("c1.8")], check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert mesh.namespace("c1.2") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["10.32.1.300/16", "{namespace}"], "10.32.1.300"),
        (["10.32.1.50/16", "no-such-namespace"], "no-such-namespace"),
        (["10.32.1.50/16", "999999999"], "999999999"),
        (["10.32.1.50/16", "/etc/hostname"], "/etc/hostname"),
    ],
)
def test_a_bad_address_or_target_is_one_clear_line(mesh: Lab, arguments: list[str], named: str) -> None:
    """It names what was wrong, and nothing is left of the attempt."""
    words = [word.format(namespace=mesh.namespace("c1.1")) for word in arguments]
    done = mesh.weft("h1", ["attach", *words], check=False)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert not any("10.32.1.50/16" in row["addresses"] for row in mesh.weft_json("h1", "status", "endpoints"))


def test_a_container_that_vanished_gives_its_addresses_back_when_it_is_detached(mesh: Lab) -> None:
    """Until then it may come back, so its address is refused elsewhere, and the line says what frees it."""
    mesh.add_namespaces(["c1.5", "c2.5"])
    mesh.attach("c1.5", "h1", ["10.32.9.5/16"])
    assert ping(mesh, "c3.1", "10.32.9.5", count=2).times_ms
    ip_batch([f"netns delete {mesh.namespace('c1.5')}"])
    wait_until(lambda: _is_away(mesh, "h2", "10.32.9.5/16"), 5, "h2 had heard that the container is away")
    done = mesh.weft("h2", ["attach", "10.32.9.5/16", mesh.namespace("c2.5")], check=False)
    assert done.returncode == 1 and "on host h1, away there" in done.stderr
    assert f"weft detach 10.32.9.5/16 {mesh.namespace('c1.5')}" in done.stderr
    mesh.weft("h1", ["detach", "10.32.9.5/16", mesh.namespace("c1.5")])
    wait_until(lambda: not _is_known(mesh, "h2", "10.32.9.5/16"), 5, "h2 had heard that the endpoint is gone")
    mesh.attach("c2.5", "h2", ["10.32.9.5/16"])
    waited_s = first_answer(mesh, "c3.1", "10.32.9.5", time.time())
    assert waited_s is not None and waited_s <= ANSWERS_WITHIN_S


def _is_away(lab: Lab, node: str, address: str) -> bool:
    rows = lab.weft_json(node, "status", "endpoints")
    return [row["away"] for row in rows if address in row["addresses"]] == [True]


def _is_known(lab: Lab, node: str, address: str) -> bool:
    return any(address in row["addresses"] for row in lab.weft_json(node, "status", "endpoints"))


def test_the_address_of_a_host_out_of_reach_may_be_taken_and_stays_taken(mesh: Lab) -> None:
    """A host that died does not keep its addresses; when it comes back, the newer claim counts for everybody."""
    pid = mesh.daemon_pid("h1")
    assert pid is not None
    mesh.cut("h1")
    wait_until(lambda: mesh.weft_json("h2", "status")["reachable"] == 2, 10, "h2 saw h1 unreachable")
    mesh.add_namespaces(["c2.4"])
    taken = mesh.address("c1.2")
    mesh.attach("c2.4", "h2", ["10.32.9.4/16", f"{taken}/16"])
    new_mac = _mac(mesh, "c2.4")
    assert new_mac != _mac(mesh, "c1.2")
    assert ping(mesh, "c3.1", taken, count=3, interval_s=0.3).times_ms

    mesh.heal()
    mesh.wait_connected(timeout_s=30)

    wait_until(lambda: _answering_mac(mesh, "c3.1", taken) == new_mac, 10, "the newer claim counted for h3")
    assert mesh.daemon_pid("h1") == pid
    assert ping(mesh, "c3.1", taken, count=3, interval_s=0.3).times_ms


def _answering_mac(lab: Lab, node: str, address: str) -> str | None:
    """Who a container believes an address to be, asked anew."""
    lab.run(node, ["ip", "neighbour", "flush", "to", address], check=False)
    ping(lab, node, address)
    words = lab.run(node, ["ip", "neighbour", "show", address]).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else None
