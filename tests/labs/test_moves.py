"""An address that moves from one host to another, and one that may not."""

from __future__ import annotations

import time

import pytest

from bench.traffic import first_answer, ping
from mesh.lab import Lab

pytestmark = pytest.mark.root

ANSWERS_WITHIN_S = 1.0


def _mac(lab: Lab, node: str) -> str:
    words = lab.run(node, ["ip", "-o", "link", "show", "ethwe"]).stdout.split()
    return words[words.index("link/ether") + 1]


def _move(lab: Lab, source: tuple[str, str], target: tuple[str, str], addresses: list[str]) -> dict[str, float | None]:
    """Detach at one host, attach at another; seconds until a third host's container is answered at each address."""
    plain = [address.split("/")[0] for address in addresses]
    for address in plain:  # so that everybody holds an entry for where it was
        assert ping(lab, "c3.1", address, count=2).times_ms
        assert ping(lab, f"c{target[0][1:]}.1", address, count=2).times_ms
    lab.weft(source[0], ["detach", lab.namespace(source[1])])
    lab.attach(target[1], target[0], addresses)
    returned_s = time.time()
    return {address: first_answer(lab, "c3.1", address, returned_s) for address in plain}


def test_an_address_detached_here_answers_where_it_is_attached_next(mesh: Lab) -> None:
    """IPv4 and IPv6, within a second, for containers that had it in their neighbour tables; and back again."""
    mesh.add_namespaces(["c1.7", "c2.7"])
    addresses = ["10.32.9.7/16", "fd00:32::9:7/64"]
    mesh.attach("c1.7", "h1", addresses)

    there = _move(mesh, ("h1", "c1.7"), ("h2", "c2.7"), addresses)
    assert all(waited is not None and waited <= ANSWERS_WITHIN_S for waited in there.values()), there

    back = _move(mesh, ("h2", "c2.7"), ("h1", "c1.7"), addresses)
    assert all(waited is not None and waited <= ANSWERS_WITHIN_S for waited in back.values()), back


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
    assert "h1" in done.stderr


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
