"""The lab itself: it makes what it says, removes exactly that, and several of them do not meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.traffic import ping
from mesh.lab import LABS_DIR, Lab
from mesh.namespaces import NAMESPACES_DIR, LabError, end_processes_in, ip_batch, namespace_of, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that no other lab has; whatever a failed test left of it is removed."""
    unique = f"wt{os.getpid()}n{abs(hash(request.node.name)) % 10**6}"
    yield unique
    Lab(unique).down()
    strays = [path.name for path in NAMESPACES_DIR.glob(f"{unique}*")] if NAMESPACES_DIR.exists() else []
    end_processes_in(strays)
    if strays:
        ip_batch([f"netns delete {stray}" for stray in strays])


def _namespaces(name: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES_DIR.glob(f"{name}-*")) if NAMESPACES_DIR.exists() else []


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mesh", "lab", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_hosts_reach_each_other_and_a_cut_host_nobody(name: str) -> None:
    """The underlay carries IPv4 and IPv6; cut and heal work by host, by direction and by pair."""
    with Lab(name, hosts=3, containers=1) as lab:
        lab.build()
        assert ping(lab, "h1", lab.underlay(2)).lost == []
        assert ping(lab, "h3", lab.underlay6(1)).lost == []
        lab.cut("h2")
        assert ping(lab, "h1", lab.underlay(2)).lost == [1]
        assert ping(lab, "h1", lab.underlay(3)).lost == []
        lab.heal()
        lab.cut_pair("h1", "h3")
        assert ping(lab, "h1", lab.underlay(3)).lost == [1]
        assert ping(lab, "h2", lab.underlay(3)).lost == []
        lab.heal()
        assert ping(lab, "h1", lab.underlay(3)).lost == []


def test_an_underlay_carries_its_mtu_and_no_more(name: str) -> None:
    """Jumbo frames pass between hosts that have them, and are dropped on the way to one that has not.

    (A bridge leaves room for a VLAN tag: four bytes more still pass there.)
    """
    with Lab(name, hosts=3, containers=0, mtu=9000, host_mtus={3: 1400}) as lab:
        lab.build()
        whole = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do"]
        assert lab.run("h1", [*whole, "-s", "8972", lab.underlay(2)], check=False).returncode == 0
        assert lab.run("h1", [*whole, "-s", "8973", lab.underlay(2)], check=False).returncode != 0
        assert lab.run("h1", [*whole, "-s", "1372", lab.underlay(3)], check=False).returncode == 0
        assert lab.run("h1", [*whole, "-s", "1377", lab.underlay(3)], check=False).returncode != 0


def test_nothing_is_left_and_running_processes_end(name: str) -> None:
    """Namespaces, processes in them and the lab's directory go; going down twice is fine."""
    lab = Lab(name, hosts=2, containers=2)
    with lab:
        lab.build()
        stubborn = lab.popen("c1.1", ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"])
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "deaf\n"
        assert len(_namespaces(name)) == 1 + 2 + 4
    assert stubborn.wait(timeout=5) == -signal.SIGKILL
    assert _namespaces(name) == []
    assert not lab.directory.exists()
    lab.down()


def test_a_namespace_of_somebody_else_is_refused_and_survives(name: str) -> None:
    """A name that is taken stops the build before anything is made, and down does not touch it."""
    ip_batch([f"netns add {name}-c1.1"])
    with pytest.raises(LabError, match="exists already"), Lab(name, hosts=1, containers=1) as lab:
        lab.build()
    assert _namespaces(name) == [f"{name}-c1.1"]


def test_a_lab_of_a_killed_process_is_removed_by_another(name: str) -> None:
    """What an `up` that was killed half-way has made, `down` in a later process removes."""
    program = (
        "import os\n"
        "from mesh.lab import Lab\n"
        f"lab = Lab({name!r}, hosts=2, containers=1)\n"
        "lab._plug_host = lambda host: os.kill(os.getpid(), 9)\n"
        "lab.build()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(_namespaces(name)) == 1 + 2 + 2

    assert _command("down", "--name", name).returncode == 0

    assert _namespaces(name) == []
    assert not (LABS_DIR / name).exists()


def test_an_unfinished_lab_does_not_stand_in_the_way_of_the_next(name: str) -> None:
    """Building where a killed process left something starts from scratch."""
    first = Lab(name, hosts=2, containers=2)
    first.build()
    first._unlock()
    with Lab(name, hosts=1, containers=1) as lab:
        lab.build()
        assert len(_namespaces(name)) == 1 + 1 + 1
    assert _namespaces(name) == []


def test_two_processes_cannot_change_one_lab(name: str) -> None:
    """The second is told so in one line and leaves the lab alone."""
    with Lab(name, hosts=1, containers=0) as lab:
        lab.build()
        done = _command("down", "--name", name)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "another process" in done.stderr
        assert len(_namespaces(name)) == 2


def test_a_damaged_state_file_is_refused_and_kept(name: str) -> None:
    """Nobody guesses what a lab consisted of."""
    directory = LABS_DIR / name
    directory.mkdir(parents=True)
    state = directory / "state.json"
    state.write_text("{")
    try:
        done = _command("down", "--name", name)
        assert done.returncode == 1
        assert "damaged" in done.stderr
        assert state.read_text() == "{"
    finally:
        state.unlink()


def test_exec_runs_in_the_namespace_and_finds_that_hosts_daemon(name: str) -> None:
    """The environment of a host leads `weft` to its own daemon; the exit status is the command's."""
    with Lab(name, hosts=2, containers=1) as lab:
        lab.build()
        done = _command("exec", "--name", name, "h2", "sh", "-c", "echo $WEFT_RUN_DIR; ip -j address show eth0; exit 7")
        first, addresses = done.stdout.split("\n", 1)
        assert done.returncode == 7
        assert Path(first) == lab.run_dir("h2")
        assert json.loads(addresses)[0]["addr_info"][0]["local"] == "10.9.0.2"
        assert _command("exec", "--name", name, "c1.1", "true").returncode == 0
        missing = _command("exec", "--name", name, "c9.9", "true")
        assert missing.returncode == 1
        assert "c9.9" in missing.stderr


def test_status_of_no_lab_is_one_line(name: str) -> None:
    """It names the lab and what builds one."""
    done = _command("status", "--name", name)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert "weft lab up" in done.stderr


def test_up_gives_a_mesh_that_outlives_the_command_and_down_ends_it(name: str) -> None:
    """The command line's way: up, status, exec, a second up refused, down."""
    up = _command("up", "--name", name, "--hosts", "2", "--containers", "1")
    assert up.returncode == 0, up.stderr
    status = json.loads(_command("status", "--name", name, "--json").stdout)
    assert [host["node"] for host in status["hosts"]] == ["h1", "h2"]
    assert all(host["daemon_pid"] for host in status["hosts"])
    reached = _command("exec", "--name", name, "h1", "weft", "status", "--json")
    assert json.loads(reached.stdout)["nickname"] == "h1"
    answered = _command("exec", "--name", name, "c1.1", "ping", "-c", "1", "-W", "2", "10.32.2.1")
    assert answered.returncode == 0, answered.stdout
    again = _command("up", "--name", name)
    assert again.returncode == 1
    assert "up already" in again.stderr

    assert _command("down", "--name", name).returncode == 0

    assert _namespaces(name) == []
    assert [namespace_of(host["daemon_pid"]) for host in status["hosts"]] == [None, None]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(name: str, signum: signal.Signals) -> None:
    """Ctrl-C and SIGTERM while it builds: what was made is removed before the command ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh", "lab", "up", "--name", name, "--hosts", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: f"{name}-h3" in _namespaces(name), 10, "the lab was being built")
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signum, stderr
    assert "Traceback" not in stderr
    assert _namespaces(name) == []
    assert not (LABS_DIR / name).exists()
