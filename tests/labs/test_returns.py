"""What was attached comes back: names that are deleted and added again, a host that reboots, a daemon that dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from bench.traffic import ping
from mesh.lab import Lab
from mesh.namespaces import ip_batch, processes_in, wait_until
from tests.mesh.fake_docker import FakeDocker

pytestmark = pytest.mark.root

BACK_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts, two containers each, connected and attached."""
    lab = make_lab(hosts=2, containers=2)
    lab.up()
    return lab


@pytest.fixture
def host(make_lab: Callable[..., Lab]) -> Lab:
    """One host with a daemon and three containers, for tests that do it violence."""
    lab = make_lab(hosts=1, containers=3)
    lab.build()
    lab.launch("h1")
    for node in lab.container_nodes():
        lab.attach(node)
    return lab


def delete(lab: Lab, *nodes: str) -> None:
    ip_batch([f"netns delete {lab.namespace(node)}" for node in nodes])


def add(lab: Lab, *nodes: str) -> None:
    """Names that the lab has had before."""
    ip_batch([f"netns add {lab.namespace(node)}" for node in nodes])


def seen(lab: Lab, node: str) -> tuple[str, list[str]] | None:
    """MAC and addresses of `ethwe` inside; None where there is none."""
    link = lab.run(node, ["ip", "-br", "link", "show", "dev", "ethwe"], check=False).stdout.split()
    words = lab.run(node, ["ip", "-br", "address", "show", "dev", "ethwe"], check=False).stdout.split()
    return (link[2], sorted(word for word in words[2:] if not word.startswith("fe80"))) if link else None


def ports(lab: Lab, node: str = "h1") -> set[str]:
    """Host ends of containers' interfaces."""
    lines = lab.run(node, ["ip", "-br", "link"]).stdout.splitlines()
    return {line.split("@")[0] for line in lines if line.startswith("vw")}


def away(lab: Lab, node: str = "h1") -> dict[str, bool]:
    return {row["id"].split("-")[-1]: row["away"] for row in lab.weft_json(node, "ps")}


def kill(lab: Lab, node: str = "h1") -> None:
    pid = lab.daemon_pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.daemon_pid(node) is None, 5, "the daemon had died")


def reboot(lab: Lab, node: str = "h1", *containers: str) -> None:
    """Nothing is left but the disk: no process, no device, no namespace, no run directory."""
    kill(lab, node)
    for pid in processes_in([lab.namespace(node)]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_in([lab.namespace(node)]), 5, "everything had ended")
    delete(lab, *containers)
    for name in ("weft", "weft-vx", "weft-tap"):
        lab.run(node, ["ip", "link", "delete", name], check=False)
    lab.run(node, ["nft", "flush", "ruleset"])
    wait_until(lambda: not ports(lab, node), 5, "the pairs had gone with their namespaces")
    shutil.rmtree(lab.run_dir(node))
    lab.run_dir(node).mkdir(mode=0o700)


def test_a_name_that_is_there_again_has_what_it_had(pair: Lab) -> None:
    """Interface, MAC and addresses within two seconds, and the other host reaches it as before."""
    before, names = seen(pair, "c1.1"), ports(pair)
    assert before is not None
    for _ in range(3):
        delete(pair, "c1.1")
        wait_until(lambda: away(pair) == {"c1.1": True, "c1.2": False}, 5, "it was away")
        assert len(ports(pair)) == 1
        assert ping(pair, "c2.1", pair.address("c1.2"), count=2).lost == []
        add(pair, "c1.1")
        wait_until(lambda: seen(pair, "c1.1") == before, BACK_WITHIN_S, "it was back")
        assert ports(pair) == names
        assert away(pair) == {"c1.1": False, "c1.2": False}
        assert ping(pair, "c2.1", pair.address("c1.1"), count=3, interval_s=0.2).times_ms
        assert ping(pair, "c1.1", pair.address6("c2.1"), count=3, interval_s=0.2).times_ms


def test_a_name_that_is_gone_for_a_moment_only(pair: Lab) -> None:
    """Deleted and added again before anybody could look."""
    before = seen(pair, "c1.2")
    for _ in range(5):
        ip_batch([f"netns delete {pair.namespace('c1.2')}", f"netns add {pair.namespace('c1.2')}"])
        wait_until(lambda: seen(pair, "c1.2") == before, BACK_WITHIN_S, "it was back")
    assert ping(pair, "c2.2", pair.address("c1.2"), count=3, interval_s=0.2).times_ms


def test_a_name_that_moves_to_another_namespace_takes_its_interface_along(pair: Lab) -> None:
    """The old one lives on, as a process is in it; it has nothing of ours any more."""
    before = seen(pair, "c1.2")
    sleeper = pair.popen("c1.2", ["sleep", "100"])
    try:
        wait_until(lambda: processes_in([pair.namespace("c1.2")]) == [sleeper.pid], 5, "it ran")
        delete(pair, "c1.2")
        add(pair, "c1.2")
        wait_until(lambda: seen(pair, "c1.2") == before, BACK_WITHIN_S, "the new one had it")
        inside = ["nsenter", f"--net=/proc/{sleeper.pid}/ns/net", "ip", "-br", "link"]
        assert "ethwe" not in subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    finally:
        sleeper.kill()
        sleeper.communicate()


@pytest.mark.parametrize("first", ["daemon", "namespaces"])
def test_after_a_reboot_everything_named_is_back(pair: Lab, first: str) -> None:
    """Whichever comes up first. The mesh hears of the host again without anybody's help."""
    nodes = ["c1.1", "c1.2"]
    before, names = [seen(pair, node) for node in nodes], ports(pair)
    reboot(pair, "h1", *nodes)
    if first == "daemon":
        pair.launch("h1")
        assert away(pair) == {"c1.1": True, "c1.2": True}
        add(pair, *nodes)
    else:
        add(pair, *nodes)
        pair.launch("h1")
    wait_until(lambda: [seen(pair, node) for node in nodes] == before, BACK_WITHIN_S, "all were back")
    assert ports(pair) == names
    pair.wait_connected(timeout_s=30)
    assert ping(pair, "c2.1", pair.address("c1.1"), count=3, interval_s=0.3).times_ms


def test_a_name_that_went_and_came_while_no_daemon_ran(host: Lab) -> None:
    """The next daemon finds it; one that is still gone is away, and keeps its address."""
    before = {node: seen(host, node) for node in host.container_nodes()}
    kill(host)
    delete(host, "c1.1", "c1.2")
    add(host, "c1.1")
    host.launch("h1")
    wait_until(lambda: seen(host, "c1.1") == before["c1.1"], BACK_WITHIN_S, "it was back")
    wait_until(lambda: away(host) == {"c1.1": False, "c1.2": True, "c1.3": False}, 5, "the other was away")
    kill(host)
    add(host, "c1.2")
    host.launch("h1")
    wait_until(lambda: seen(host, "c1.2") == before["c1.2"], BACK_WITHIN_S, "the other was back too")
    assert host.weft_json("h1", "status")["away_endpoints"] == 0


def test_whenever_the_daemon_is_killed_the_next_one_completes_it(host: Lab) -> None:
    """At any moment of a namespace's end and return."""
    before = {node: seen(host, node) for node in host.container_nodes()}
    random = Random(7)
    for _ in range(8):
        delete(host, *host.container_nodes())
        time.sleep(random.uniform(0.0, 0.1))
        add(host, *host.container_nodes())
        time.sleep(random.uniform(0.0, 0.15))
        kill(host)
        host.launch("h1")
        wait_until(lambda: {n: seen(host, n) for n in before} == before, BACK_WITHIN_S, "all were back")
        assert set(away(host).values()) == {False}


def test_an_interface_that_is_in_the_way_is_a_warning(host: Lab) -> None:
    """Somebody made an `ethwe` of his own in it. It is said, and the others are not held up."""
    before = seen(host, "c1.2")
    delete(host, "c1.1", "c1.2")
    wait_until(lambda: away(host)["c1.1"] and away(host)["c1.2"], 5, "both were away")
    ready = f"{host.namespace('c1.1')}new"
    subprocess.run(["ip", "netns", "add", ready], check=True)
    try:
        ip_batch(["link add ethwe type bridge"], ready)
        path = f"/run/netns/{host.namespace('c1.1')}"
        with open(path, "w"):
            subprocess.run(["mount", "--bind", f"/run/netns/{ready}", path], check=True)
        add(host, "c1.2")
        wait_until(lambda: seen(host, "c1.2") == before, BACK_WITHIN_S, "the other was back")

        def warned() -> bool:
            return any("ethwe already" in row["text"] for row in host.weft_json("h1", "status")["warnings"])

        wait_until(warned, 5, "the warning was there")
        ip_batch(["link delete ethwe"], ready)
        wait_until(lambda: seen(host, "c1.1") is not None, 40, "it was tried again")
    finally:
        subprocess.run(["ip", "netns", "delete", ready], check=False)


def test_a_link_to_a_process_is_a_name_too(host: Lab) -> None:
    """As many make one by hand for a container: no mount tells of it, so it takes a few seconds."""
    name = host.namespace("c1.9")
    path = f"/run/netns/{name}"
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: os.path.lexists(path) and os.unlink(path))

        def process() -> Any:
            made = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
            stack.callback(made.wait)
            stack.callback(made.kill)
            wait_until(lambda: os.readlink(f"/proc/{made.pid}/ns/net") != os.readlink("/proc/self/ns/net"), 5, "it ran")
            return made

        first = process()
        os.symlink(f"/proc/{first.pid}/ns/net", path)
        host.attach("c1.9", addresses=["10.32.1.9/16"])
        before = seen(host, "c1.9")
        first.kill()
        first.wait()
        os.unlink(path)
        wait_until(lambda: away(host)["c1.9"], 5, "it was away")
        os.symlink(f"/proc/{process().pid}/ns/net", path)
        wait_until(lambda: seen(host, "c1.9") == before, 8, "it was back")


@pytest.fixture
def docker(host: Lab) -> Iterator[FakeDocker]:
    """A daemon whose Docker is ours, and processes in namespaces of their own for containers."""
    with FakeDocker(str(host.directory / "docker.sock")) as engine:
        host.weft("h1", ["stop"])
        launch_with(host, engine.path)
        yield engine


def launch_with(lab: Lab, docker_socket: str) -> None:
    variables = ["env", f"WEFT_DOCKER_SOCKET={docker_socket}"]
    lab.run("h1", [*variables, sys.executable, "-m", "mesh", *lab._launch_argv("h1", [])])


def test_containers_of_a_docker_that_dies_are_back_when_it_is(host: Lab, docker: FakeDocker) -> None:
    """Real namespaces and a real daemon; the engine's deaths, silences and lies are made up."""
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            made = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
            stack.callback(made.wait)
            stack.callback(made.kill)
            wait_until(lambda: os.readlink(f"/proc/{made.pid}/ns/net") != os.readlink("/proc/self/ns/net"), 5, "it ran")
            return made

        def inside(pid: int) -> list[str]:
            words = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-br", "address", "show", "dev", "ethwe"]
            found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
            return [word for word in found[2:] if not word.startswith("fe80")]

        process = start()
        container = docker.create("web", process.pid)
        host.weft("h1", ["attach", "10.32.1.9/16", "web"])
        names = ports(host)
        for mode in ("", "silent", "garbage"):
            docker.stop()
            docker.mode = mode
            if mode:
                docker.start()
            process.kill()
            process.wait()
            wait_until(lambda: {r["id"]: r["away"] for r in host.weft_json("h1", "ps")}["web"], 5, "it was away")
            process = start()
            docker.find("web").pid = process.pid
            wait_until(lambda: "docker-silent" in {w["code"] for w in warnings(host)}, 8, "status said what is wrong")
            docker.mode = ""
            if not mode:
                docker.start()
            wait_until(lambda pid=process.pid: inside(pid) == ["10.32.1.9/16"], 8, "it was back")  # type: ignore[misc]
            assert ports(host) == names
            wait_until(lambda: not warnings(host), 5, "there was nothing to warn of")
        kill(host)
        launch_with(host, docker.path)
        (row,) = [row for row in host.weft_json("h1", "ps") if row["container"]]
        assert (row["id"], row["container"], row["away"], row["comes_back"]) == ("web", container, False, True)
        wait_until(lambda: docker.listeners, 5, "events were listened to")
        docker.remove("web")
        wait_until(lambda: "web" not in {row["id"] for row in host.weft_json("h1", "ps")}, 5, "it was forgotten")


def warnings(lab: Lab) -> list[dict[str, str]]:
    return list(lab.weft_json("h1", "status")["warnings"])
