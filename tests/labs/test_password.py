"""With a password: who may join, what a refusal says on either side, and that no frame is ever sent in clear."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

RIGHT, WRONG = "correct-horse-battery", "incorrect-donkey-staple"


@pytest.fixture(scope="module")
def guarded(make_lab: Callable[..., Lab]) -> Lab:
    """h1 and h2 share a password, h3 has another one."""
    lab = make_lab(hosts=3, containers=1)
    lab.build()
    lab.launch("h1", ["--password", RIGHT])
    lab.launch("h2", ["--password", RIGHT, lab.underlay(1)])
    lab.launch("h3", ["--password", WRONG, lab.underlay(1)])
    wait_until(lambda: lab.weft_json("h1", "status")["reachable"] == 2, 15, "h1 and h2 knew each other")
    for node in lab.container_nodes():
        lab.attach(node)
    return lab


def test_a_wrong_password_is_told_to_whoever_has_it(guarded: Lab) -> None:
    """The dialler's `status targets` names the reason, and it never becomes a peer."""
    rows: list[dict[str, str]] = []

    def refused() -> bool:
        rows[:] = guarded.weft_json("h3", "status", "targets")
        return bool(rows[0]["error"])

    wait_until(refused, 10, "the refusal was known to h3")
    assert "password" in rows[0]["error"]
    assert rows[0]["target"] == guarded.underlay(1)
    assert [row["nickname"] for row in guarded.weft_json("h3", "status", "peers")] == ["h3"]


def test_a_wrong_password_is_counted_with_its_address(guarded: Lab) -> None:
    """The other side's `status` says how often and from where."""
    wait_until(lambda: guarded.weft_json("h1", "status")["refused"], 10, "h1 had refused somebody")
    refused = guarded.weft_json("h1", "status")["refused"]
    assert [reason for reason in refused if "password" in reason]
    row = next(refused[reason] for reason in refused if "password" in reason)
    assert row["count"] >= 1
    assert any(address.startswith(guarded.underlay(3) + ":") for address in row["last"])
    assert guarded.underlay(3) in guarded.weft("h1", ["status"]).stdout


def test_members_reach_each_other_by_the_encrypted_sleeve(guarded: Lab) -> None:
    """And the reason says why not by something faster."""
    row = guarded.weft_json("h1", "status", "connections")[0]
    assert (row["nickname"], row["path"], row["reason"]) == ("h2", "sleeve", "no-wireguard")
    assert row["encrypted"] is True
    assert row["link"] is True
    assert guarded.weft_json("h1", "status")["encryption"] is True


def test_no_frame_of_a_container_leaves_in_clear(guarded: Lab, tmp_path: Path) -> None:
    """What containers say, pings and broadcasts, is in no packet on the wire; what the hosts say is."""
    capture = tmp_path / "wire.pcap"
    watcher = guarded.popen("h1", ["tcpdump", "-i", "eth0", "-U", "-w", str(capture), "--immediate-mode"])
    wait_until(lambda: capture.exists() and capture.stat().st_size >= 24, 5, "tcpdump listened")
    in_clear, secret = "636c6561722d746578742d21", "7365637265742d746578742d"  # "clear-text-!", "secret-text-"
    heard = ["ping", "-n", "-c", "3", "-i", "0.05", "-W", "1", "-p"]
    guarded.run("h1", [*heard, in_clear, guarded.underlay(2)])
    guarded.run("c1.1", [*heard, secret, guarded.address("c2.1")], check=False)
    guarded.run("c1.1", [*heard, secret, guarded.address6("c2.1")], check=False)
    guarded.run("c1.1", [*heard, secret, "-b", "10.32.255.255"], check=False)
    time.sleep(0.3)
    watcher.terminate()
    watcher.communicate(timeout=10)
    wire = capture.read_bytes()
    assert bytes.fromhex(in_clear) in wire
    assert bytes.fromhex(secret) not in wire
    ports = guarded.run("h1", ["tcpdump", "-n", "-r", str(capture), "udp port 6784"]).stdout
    assert ports == ""


def test_containers_of_one_host_talk_with_a_password_too(guarded: Lab) -> None:
    """Their frames never leave the host."""
    guarded.add_namespaces(["c1.2"])
    guarded.attach("c1.2")
    assert ping(guarded, "c1.1", guarded.address("c1.2"), count=3, interval_s=0.3).times_ms


def test_a_host_without_a_password_is_refused_too(guarded: Lab) -> None:
    """And learns that a password is what it lacks."""
    guarded.weft("h3", ["reset", "--force"])
    guarded.launch("h3", [guarded.underlay(1)])
    rows: list[dict[str, str]] = []

    def refused() -> bool:
        rows[:] = guarded.weft_json("h3", "status", "targets")
        return bool(rows[0]["error"])

    wait_until(refused, 10, "the refusal was known to h3")
    assert "password" in rows[0]["error"]


def test_the_password_is_in_no_command_line(guarded: Lab) -> None:
    """Every user of a host can read those."""
    pid = guarded.daemon_pid("h1")
    assert RIGHT.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"launch" in Path(f"/proc/{pid}/cmdline").read_bytes()
