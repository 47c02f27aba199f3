"""A daemon that goes and comes back: containers do not notice, the other hosts do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from bench.traffic import Pinger, ping
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

UNREACHABLE_WITHIN_S = 5.0


def _kill(lab: Lab, node: str) -> None:
    pid = lab.daemon_pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.daemon_pid(node) is None, 5, "the daemon had died")


def _stop(lab: Lab, node: str) -> None:
    lab.weft(node, ["stop"])
    assert lab.daemon_pid(node) is None


def _sees(lab: Lab, node: str, other: str) -> bool:
    rows = lab.weft_json(node, "status", "peers")
    return next(bool(row["reachable"]) for row in rows if row["nickname"] == other)


@pytest.mark.parametrize("end", [_kill, _stop], ids=["kill -9", "stop"])
def test_running_containers_lose_no_packet(mesh: Lab, end: Callable[[Lab, str], None]) -> None:
    """Both directions, both families, across hosts and on one: while the daemon is away and when it is back."""
    streams = [
        ("c1.1", mesh.address("c2.1")),
        ("c2.1", mesh.address6("c1.1")),
        ("c3.1", mesh.address("c1.2")),
        ("c1.1", mesh.address("c1.2")),
    ]
    for source, address in streams:
        assert ping(mesh, source, address).lost == []
    pingers = [Pinger(mesh, source, address) for source, address in streams]

    end(mesh, "h1")
    for node in ("h2", "h3"):
        wait_until(lambda node=node: not _sees(mesh, node, "h1"), UNREACHABLE_WITHIN_S, f"{node} saw h1 unreachable")  # type: ignore[misc]
    time.sleep(1.5)
    mesh.launch("h1")
    mesh.wait_connected()
    time.sleep(1.5)

    seen = [pinger.stop() for pinger in pingers]
    assert [pings.lost for pings in seen] == [[]] * len(streams)
    assert all(pings.sent > 200 and pings.duplicates == 0 for pings in seen)


def test_what_was_attached_is_still_there_after_a_restart(mesh: Lab) -> None:
    """Endpoints, targets and the peer's name survive; a new endpoint can be attached at once."""
    name = mesh.weft_json("h2", "status")["peer"]
    before = mesh.weft_json("h2", "ps")
    _kill(mesh, "h2")
    mesh.launch("h2")
    assert mesh.weft_json("h2", "status")["peer"] == name
    assert mesh.weft_json("h2", "ps") == before
    assert [row["target"] for row in mesh.weft_json("h2", "status", "targets")] == [mesh.underlay(1)]
    mesh.add_namespaces(["c2.9"])
    mesh.attach("c2.9")
    mesh.wait_connected()
    assert ping(mesh, "c3.2", mesh.address("c2.9"), count=5, interval_s=0.2).times_ms


def test_a_whole_mesh_comes_back_after_every_daemon_died(mesh: Lab) -> None:
    """Nobody is introduced again: targets and what was known suffice."""
    pinger = Pinger(mesh, "c1.1", mesh.address("c3.1"))
    for node in mesh.host_nodes():
        _kill(mesh, node)
    mesh.launch_all()
    mesh.wait_connected()
    assert pinger.stop().lost == []
    assert all(_sees(mesh, node, other) for node in mesh.host_nodes() for other in mesh.host_nodes())


def test_a_host_that_is_cut_off_and_healed_is_found_again(mesh: Lab) -> None:
    """Unreachable within the time a killed one takes, and a path again without anybody's help."""
    mesh.cut("h3")
    wait_until(lambda: not _sees(mesh, "h1", "h3"), UNREACHABLE_WITHIN_S, "h1 saw h3 unreachable")
    wait_until(lambda: not _sees(mesh, "h2", "h3"), UNREACHABLE_WITHIN_S, "h2 saw h3 unreachable")
    mesh.heal()
    mesh.wait_connected(timeout_s=30)
    assert ping(mesh, "c3.1", mesh.address("c1.1"), count=3).lost == []
