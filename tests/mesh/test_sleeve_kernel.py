"""Whole daemons with their workers over the real kernel: paths that move, workers that die, daemons that come back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

PASSWORD = "correct-horse-battery-staple"
BLOCK_VXLAN = (
    "add table inet block; add chain inet block in { type filter hook input priority 0; };"
    "add rule inet block in udp dport 6784 drop"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two hosts with a container each; nothing launched."""
    lab = Lab(f"wt{os.getpid()}s", hosts=2, containers=1)
    try:
        lab.build()
        yield lab
    finally:
        lab.down()


def launch_pair(lab: Lab, *flags: str) -> None:
    lab.launch("h1", list(flags))
    lab.launch("h2", [*flags, lab.underlay(1)])
    lab.wait_connected()
    for container in lab.container_nodes():
        lab.attach(container)


def connection(lab: Lab, node: str = "h1") -> Any:
    """The row of the other host; of nobody, where a daemon that has just started knows nobody."""
    rows = lab.weft_json(node, "status", "connections")
    return rows[0] if rows else {"link": False, "path": None, "reason": None, "sleeve": None}


def worker_pid(lab: Lab, node: str = "h1") -> int:
    return int(lab.weft_json(node, "report")["counters"]["sleeve"]["pid"])


def workers(lab: Lab, node: str) -> list[str]:
    done = subprocess.run(
        ["pgrep", "-f", f"dataplane.sleeve {lab.run_dir(node)}"], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def pinging(lab: Lab, seconds: float) -> subprocess.Popen[str]:
    count = str(int(seconds / 0.05))
    return lab.popen("c1.1", ["ping", "-n", "-c", count, "-i", "0.05", "-W", "1", lab.address("c2.1")])


def missing(ping: subprocess.Popen[str], seconds: float) -> list[int]:
    """The numbers of pings that nobody answered."""
    stdout, _ = ping.communicate(timeout=seconds + 30)
    answered = {int(line.split("icmp_seq=")[1].split()[0]) for line in stdout.splitlines() if "ttl=" in line}
    return sorted(set(range(1, int(seconds / 0.05) + 1)) - answered)


def test_a_path_that_vxlan_loses_moves_to_the_sleeve_and_comes_back(lab: Lab) -> None:
    """With its reason; a daemon that is restarted meanwhile costs nothing and remembers."""
    launch_pair(lab)
    assert (connection(lab)["path"], connection(lab)["reason"]) == ("vxlan", "best")
    lab.run("h2", ["nft", BLOCK_VXLAN])
    wait_until(lambda: connection(lab)["path"] == "sleeve", 10, "the path moved")
    wait_until(lambda: connection(lab, "h2")["path"] == "sleeve", 10, "it moved there too")
    row = connection(lab)
    assert (row["reason"], row["encrypted"]) == ("vxlan-silent", False)
    pid, ping = worker_pid(lab), pinging(lab, 6.0)
    time.sleep(1.0)
    lab.weft("h1", ["stop"])
    lab.launch("h1")
    wait_until(lambda: connection(lab)["link"], 5, "they had a link again")
    assert (connection(lab)["path"], connection(lab)["reason"]) == ("sleeve", "vxlan-silent")
    assert worker_pid(lab) == pid
    assert missing(ping, 6.0) == []
    assert connection(lab)["sleeve"]["state"] == "up"
    lab.run("h2", ["nft", "delete table inet block"])
    ping = pinging(lab, 6.0)
    wait_until(lambda: connection(lab)["path"] == "vxlan", 10, "the path came back")
    assert len(missing(ping, 6.0)) <= 2


def test_a_killed_worker_is_back_within_a_second(lab: Lab) -> None:
    """Frames go through again, links and containers are as they were."""
    launch_pair(lab, "--password", PASSWORD)
    ping = pinging(lab, 5.0)
    wait_until(lambda: (connection(lab)["sleeve"] or {}).get("state") == "up", 5, "the sleeve carried frames")
    os.kill(worker_pid(lab), signal.SIGKILL)
    assert len(missing(ping, 5.0)) <= 1.0 / 0.05
    assert connection(lab)["link"] is True
    assert lab.weft_json("h1", "report")["counters"]["sleeve"]["started"] == 2


def test_a_password_ends_what_was_in_clear_first(lab: Lab) -> None:
    """Over a host that carried plain VXLAN and a worker in clear: both are gone when the launch returns."""
    launch_pair(lab)
    pids = {node: worker_pid(lab, node) for node in ("h1", "h2")}
    for node in ("h1", "h2"):
        lab.weft(node, ["stop"])
        assert workers(lab, node) == [str(pids[node])]
    lab.launch("h1", ["--password", PASSWORD])
    lab.launch("h2", ["--password", PASSWORD, lab.underlay(1)])
    for node in ("h1", "h2"):
        assert "weft-vx" not in lab.run(node, ["ip", "-br", "link"]).stdout
        assert workers(lab, node) == [str(worker_pid(lab, node))] != [str(pids[node])]
    lab.wait_connected()
    row = connection(lab)
    assert (row["path"], row["reason"], row["encrypted"]) == ("sleeve", "no-wireguard", True)
    assert missing(pinging(lab, 1.0), 1.0) == []


@pytest.mark.parametrize("daemon", ["running", "stopped", "killed"])
def test_reset_leaves_no_worker(lab: Lab, daemon: str) -> None:
    """Whatever became of the daemon."""
    lab.launch("h1")
    assert len(workers(lab, "h1")) == 1
    if daemon == "stopped":
        lab.weft("h1", ["stop"])
    elif daemon == "killed":
        pid = lab.daemon_pid("h1")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    lab.weft("h1", ["reset", "--force"])
    assert workers(lab, "h1") == []
    assert "weft" not in lab.run("h1", ["ip", "-br", "link"]).stdout
    assert list(lab.state_dir("h1").glob("*")) == []


def test_a_udp_port_in_use_is_one_line_and_leaves_nothing(lab: Lab) -> None:
    """Another program has the sleeve's."""
    program = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 6783));"
        "print(flush=True); sys.stdin.read()"
    )
    argv = lab.argv("h1", ["python3", "-c", program])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        done = lab.launch("h1", check=False)
        assert done.returncode == 1 and "UDP port 6783 is in use" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert workers(lab, "h1") == []
        assert "weft" not in lab.run("h1", ["ip", "-br", "link"]).stdout
        other.stdin.close()
    lab.launch("h1")
