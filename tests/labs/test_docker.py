"""Containers of a real Docker Engine: attached by what Docker calls them, and back whenever they are started again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs.real_docker import RealDocker

pytestmark = pytest.mark.root

BACK_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts; Docker will run on h1, and c2.1 on h2 talks to its containers."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    return lab


@pytest.fixture(scope="module")
def docker(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDocker]:
    """Docker was there first, as on most hosts, with its bridge and its firewall rules."""
    with RealDocker(lab, "h1", tmp_path_factory.mktemp("docker")) as docker:
        launch(lab, docker)
        lab.launch("h2", [lab.underlay(1)])
        lab.wait_connected()
        lab.attach("c2.1")
        yield docker


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab, docker: RealDocker) -> Iterator[None]:
    """Each test begins without containers, and with a daemon and an engine that run."""
    yield
    names = docker("ps", "-aq").split()
    if names:
        docker("rm", "-f", *names)
    wait_until(lambda: lab.weft_json("h1", "ps") == [], 5, "removed containers were forgotten")


def launch(lab: Lab, docker: RealDocker) -> None:
    variables = ["env", "-u", "DOCKER_HOST", f"WEFT_DOCKER_SOCKET={docker.socket}"]
    lab.run("h1", [*variables, sys.executable, "-m", "mesh", *lab._launch_argv("h1", [])])


def states(lab: Lab) -> dict[str, bool]:
    """By id as given: whether it is away."""
    return {row["id"]: row["away"] for row in lab.weft_json("h1", "ps")}


def answers(lab: Lab, address: str) -> bool:
    return bool(ping(lab, "c2.1", address, count=2, interval_s=0.2).times_ms)


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_container_is_attached_by_name_id_or_pid(lab: Lab, docker: RealDocker) -> None:
    """Beside Docker's own network or without any; the other host reaches it, and it the other host."""
    long_id = docker.run("web")
    targets = {"web": "web", "by-id": docker.run("by-id", "--network", "none")[:12]}
    docker.run("by-pid", "--network", "none")
    targets["by-pid"] = docker("inspect", "--format", "{{.State.Pid}}", "by-pid")
    for number, (name, target) in enumerate(targets.items(), start=50):
        printed = lab.weft("h1", ["attach", f"10.32.1.{number}/16", f"fd00:32::1:{number}/64", target]).stdout
        assert printed.split() == [f"10.32.1.{number}/16", f"fd00:32::1:{number}/64"]
        assert docker.addresses(name) == sorted(printed.split())
        assert answers(lab, f"10.32.1.{number}")
        assert docker.inside(name, "ping", "-c", "1", "-W", "2", lab.address("c2.1")).returncode == 0
    rows = {row["id"]: row for row in lab.weft_json("h1", "ps")}
    assert rows["web"]["container"] == long_id
    assert all(row["comes_back"] and len(row["container"]) == 64 for row in rows.values())
    for number, name in enumerate(targets, start=50):
        found = lab.weft("h2", ["dns-lookup", name]).stdout.split()
        assert found == [f"10.32.1.{number}", f"fd00:32::1:{number}"], "its name is what Docker calls it"
    looked_up = docker.inside("web", "nslookup", "by-pid.weft.local", "169.254.6.53")
    assert "10.32.1.52" in looked_up.stdout
    for name, target in targets.items():
        lab.weft("h1", ["detach", target])
        assert docker.addresses(name) == []


def test_what_docker_does_not_have_is_one_line(lab: Lab, docker: RealDocker) -> None:
    """Where it was looked for; and a container that is stopped says that."""
    docker.run("stopped")
    docker("stop", "stopped")
    for target, says in (("nowhere", f"Docker at {docker.socket} has no container"), ("stopped", "does not run")):
        done = lab.weft("h1", ["attach", "10.32.1.50/16", target], check=False)
        assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1
    docker.run("on-the-host", "--network", "host")
    done = lab.weft("h1", ["attach", "10.32.1.50/16", "on-the-host"], check=False)
    assert done.returncode == 1 and "the host's own" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("network", ["bridge", "none"])
def test_a_container_that_is_restarted_is_as_before(lab: Lab, docker: RealDocker, network: str) -> None:
    """By Docker, by a crash of its own, by stop and start; with the same MAC."""
    docker.run("web", "--network", network, "--restart", "always")
    wanted = ["10.32.1.60/16", "fd00:32::1:60/64"]
    lab.weft("h1", ["attach", *wanted, "web"])
    mac = docker.mac("web")
    took_s = []

    docker("restart", "web")
    took_s.append(docker.back_within("web", wanted, BACK_WITHIN_S))
    pid = int(docker("inspect", "--format", "{{.State.Pid}}", "web"))
    os.kill(pid, signal.SIGKILL)  # its restart policy starts it again
    wait_until(lambda: docker("inspect", "--format", "{{.State.Pid}}", "web") not in ("0", str(pid)), 10, "it ran")
    took_s.append(docker.back_within("web", wanted, BACK_WITHIN_S))
    docker("stop", "web")
    wait_until(lambda: states(lab) == {"web": True}, 5, "it was away")
    docker("start", "web")
    took_s.append(docker.back_within("web", wanted, BACK_WITHIN_S))

    assert docker.mac("web") == mac
    assert answers(lab, "10.32.1.60")
    print("back after", [f"{seconds:.2f} s" for seconds in took_s])


def test_a_container_that_is_removed_is_forgotten_and_its_name_is_another(lab: Lab, docker: RealDocker) -> None:
    """A new container of the same name is not the old one, and has nothing of it."""
    docker.run("web")
    lab.weft("h1", ["attach", "10.32.1.61/16", "web"])
    docker("rm", "-f", "web")
    wait_until(lambda: states(lab) == {}, 5, "it was forgotten")
    docker.run("web")
    time.sleep(0.5)
    assert docker.addresses("web") == [] and states(lab) == {}
    lab.weft("h1", ["attach", "10.32.1.61/16", "web"])
    assert docker.addresses("web") == ["10.32.1.61/16"]


def test_containers_are_back_when_docker_itself_was_restarted(lab: Lab, docker: RealDocker) -> None:
    """Those that Docker starts again at once, and one that is started by hand later."""
    docker.run("always", "--restart", "always")
    docker.run("by-hand")
    lab.weft("h1", ["attach", "10.32.1.62/16", "always"])
    lab.weft("h1", ["attach", "10.32.1.63/16", "by-hand"])
    docker.stop()
    wait_until(lambda: set(states(lab).values()) == {True}, 10, "both were away")
    assert "docker-silent" in {row["code"] for row in lab.weft_json("h1", "status")["warnings"]}
    docker.start()
    docker.back_within("always", ["10.32.1.62/16"], 10)
    assert states(lab)["by-hand"]
    docker("start", "by-hand")
    docker.back_within("by-hand", ["10.32.1.63/16"], BACK_WITHIN_S)
    assert answers(lab, "10.32.1.62") and answers(lab, "10.32.1.63")
    assert "docker-silent" not in {row["code"] for row in lab.weft_json("h1", "status")["warnings"]}


@pytest.mark.parametrize("end", ["stop", "kill -9"])
def test_a_container_that_was_restarted_while_our_daemon_was_away(lab: Lab, docker: RealDocker, end: str) -> None:
    """The next daemon finds it; and forgets one that was removed meanwhile."""
    for name, address in (("web", "10.32.1.64/16"), ("gone", "10.32.1.65/16")):
        docker.run(name)
        lab.weft("h1", ["attach", address, name])
    pid = lab.daemon_pid("h1")
    assert pid is not None
    if end == "stop":
        lab.weft("h1", ["stop"])
    else:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ended(pid), 5, "the daemon had died")
    docker("restart", "web")
    docker("rm", "-f", "gone")
    launch(lab, docker)
    docker.back_within("web", ["10.32.1.64/16"], BACK_WITHIN_S)
    wait_until(lambda: states(lab) == {"web": False}, 5, "the other was forgotten")
    lab.wait_connected()
    assert answers(lab, "10.32.1.64")


def test_many_containers_restarted_at_once_are_all_back(lab: Lab, docker: RealDocker) -> None:
    """Ten of them, by one command."""
    names = [f"n{number}" for number in range(10)]
    for number, name in enumerate(names):
        docker.run(name, "--network", "none")
        lab.weft("h1", ["attach", f"10.32.3.{number + 1}/16", name])
    docker("restart", *names)
    begun = time.monotonic()
    wait_until(lambda: not any(states(lab).values()), 10, "none was away")
    for number, name in enumerate(names):
        docker.back_within(name, [f"10.32.3.{number + 1}/16"], BACK_WITHIN_S)
    print(f"all back {time.monotonic() - begun:.2f} s after the last was restarted")
