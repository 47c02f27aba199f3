"""Docker's own commands, on two hosts with an engine each: Weft is their network and gives their addresses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs.real_docker import RealDocker

pytestmark = pytest.mark.root

Docker = RealDocker


class Pair:
    """Two hosts, a daemon and an engine on each."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folders = {node: folder / node for node in ("h1", "h2")}
        self.plugins = {node: folder / node / "plugins" for node in self.folders}
        self.engines: dict[str, RealDocker] = {}

    def start(self) -> None:
        for node, plugins in self.plugins.items():
            plugins.mkdir(parents=True)
            self.engines[node] = RealDocker(self.lab, node, self.folders[node], plugins)
        for node in self.folders:
            self.launch(node, ["--ipalloc-range", "10.32.0.0/12"])
        self.lab.wait_connected()
        for engine in self.engines.values():
            engine.__enter__()

    def launch(self, node: str, more: list[str] | None = None) -> None:
        peers = [self.lab.underlay(1)] if node == "h2" else []
        plugin = str(self.plugins[node] / "weft.sock")
        self.lab.run(
            node, ["env", f"WEFT_DOCKER_SOCKET={self.folders[node] / 'docker.sock'}", "weft", "launch",
                   "--docker-plugin", plugin, *(more or []), *peers]
        )  # fmt: skip

    def meet(self) -> None:
        """Wait until the hosts talk to each other again, and do not wait for a dial that comes late."""
        self.lab.weft("h2", ["connect", self.lab.underlay(1)])

        def are_in_reach() -> bool:
            rows = [row for node in self.folders for row in self.lab.weft_json(node, "status", "peers")]
            return len(rows) == 4 and all(row["reachable"] for row in rows)

        wait_until(are_in_reach, 20, "the hosts were in reach of each other")

    def __call__(self, node: str, *words: str) -> str:
        return self.engines[node](*words)

    def refused(self, node: str, *words: str) -> str:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            self(node, *words)
        return str(caught.value.stderr)

    def create(self, name: str, *options: str, nodes: tuple[str, ...] = ("h1", "h2")) -> None:
        for node in nodes:
            self(node, "network", "create", "-d", "weft", "--ipam-driver", "weft", *options, name)

    def run(self, node: str, name: str, network: str, *options: str) -> None:
        """As a user does: what cannot be given within a second is there when it is asked for again."""

        def runs() -> bool:
            try:
                self.engines[node].run(name, "--network", network, *options)
            except subprocess.CalledProcessError as error:
                assert "try again" in error.stderr, error.stderr
                self(node, "rm", "-f", name)
                return False
            return True

        wait_until(runs, 20, f"{name} runs")

    def connect(self, node: str, network: str, name: str) -> None:
        """As patiently as `run`."""

        def is_on() -> bool:
            try:
                self(node, "network", "connect", network, name)
            except subprocess.CalledProcessError as error:
                assert "try again" in error.stderr, error.stderr
                return False
            return True

        wait_until(is_on, 20, f"{name} is on {network}")

    def inside(self, node: str, name: str, *words: str) -> str:
        done = self.engines[node].inside(name, *words)
        return done.stdout + done.stderr

    def address(self, node: str, name: str, network: str, key: str = "IPAddress") -> str:
        shown = json.loads(self(node, "inspect", name))[0]["NetworkSettings"]["Networks"][network]
        return str(shown[key])

    def reaches(self, node: str, name: str, address: str) -> bool:
        return "1 received" in self.inside(node, name, "ping", "-c", "1", "-W", "2", address)

    def rows(self, node: str) -> dict[str, Any]:
        return {row["id"]: row for row in self.lab.weft_json(node, "ps") if row.get("docker_network")}


@pytest.fixture(scope="module")
def pair(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    lab = make_lab(hosts=2, containers=0)
    lab.build()
    pair = Pair(lab, tmp_path_factory.mktemp("docker"))
    try:
        pair.start()
        yield pair
    finally:
        for engine in pair.engines.values():
            engine.__exit__()


@pytest.fixture(autouse=True)
def nothing_left(pair: Pair) -> Iterator[None]:
    """Each test's containers and networks go, and then nothing of them is left anywhere."""
    yield
    for node in ("h1", "h2"):
        if names := pair(node, "ps", "-aq").split():
            pair(node, "rm", "-f", *names)
        if networks := pair(node, "network", "ls", "-q", "--filter", "driver=weft").split():
            pair(node, "network", "rm", *networks)
        assert pair.rows(node) == {}
        links = pair.lab.run(node, ["ip", "-br", "link"]).stdout
        assert not [line for line in links.splitlines() if line.startswith(("vw", "vg"))], links
        assert json.loads(pair.lab.weft(node, ["ipam", "export"]).stdout)["entries"] == []


def test_containers_of_two_engines_talk_and_have_names(pair: Pair) -> None:
    pair.create("shop")
    pair.run("h1", "web", "shop", "--network-alias", "www")
    args = pair.lab.weft("h2", ["dns-args"]).stdout.split()
    pair.run("h2", "db", "shop", *args)
    web, db = pair.address("h1", "web", "shop"), pair.address("h2", "db", "shop")
    assert web.startswith("10.") and web != db
    assert pair.reaches("h1", "web", db) and pair.reaches("h2", "db", web)
    wait_until(lambda: web in pair.lab.weft("h2", ["dns-lookup", "web"], check=False).stdout, 10, "web has a name")
    wait_until(
        lambda: web in pair("h2", "exec", "db", "busybox", "nslookup", "-type=a", "web.weft.local"), 10, "db finds it"
    )
    assert pair.rows("h1")["web"]["addresses"][0].startswith(web)
    assert web in pair.lab.weft("h2", ["dns-lookup", "www"]).stdout
    said = pair.lab.weft("h1", ["detach", "web"], check=False).stderr
    assert "docker network disconnect" in said
    pair("h1", "rename", "web", "front")
    wait_until(lambda: web in pair.lab.weft("h2", ["dns-lookup", "front"], check=False).stdout, 10, "it is renamed")


def test_addresses_and_macs_that_a_user_chooses(pair: Pair) -> None:
    pair.create("fixed", "--subnet", "10.41.0.0/24", "--gateway", "10.41.0.1")
    pair.run("h1", "first", "fixed", "--ip", "10.41.0.7", "--mac-address", "02:aa:bb:cc:dd:01")
    assert pair.address("h1", "first", "fixed") == "10.41.0.7"
    assert "02:aa:bb:cc:dd:01" in pair.inside("h1", "first", "ip", "link")
    pair.run("h2", "other", "fixed")
    assert pair.address("h2", "other", "fixed").startswith("10.41.0.")
    assert pair.reaches("h2", "other", "10.41.0.7")
    said = pair.refused("h1", "run", "-d", "--network", "fixed", "--ip", "10.41.0.7", "lab:busybox", "sleep", "9")
    assert "10.41.0.7/24 is that of first on this host" in said
    said = pair.refused("h2", "run", "-d", "--network", "fixed", "--ip", "10.41.0.7", "lab:busybox", "sleep", "9")
    assert "10.41.0.7 is held by first on" in said
    said = pair.refused("h1", "run", "-d", "--network", "fixed", "--mac-address", "02:aa:bb:cc:dd:01", "lab:busybox",
                        "sleep", "9")  # fmt: skip
    assert "02:aa:bb:cc:dd:01" in said


def test_ipv6_several_networks_internal_ones_and_published_ports(pair: Pair) -> None:
    pair.lab.weft("h1", ["prime"])
    six = pair.lab.weft_json("h1", "status", "ipam")["range6"]
    pair.create("six", "--ipv6", "--subnet", "10.46.0.0/24", "--subnet", six)
    pair.create("inner", "--internal", "--subnet", "10.42.0.0/24")
    pair.run("h1", "multi", "six", "-p", "8099:80")
    pair.connect("h1", "inner", "multi")
    pair.run("h2", "six", "six")
    pair.run("h2", "inner", "inner")
    assert pair.reaches("h1", "multi", pair.address("h2", "six", "six", "GlobalIPv6Address"))
    assert pair.reaches("h1", "multi", pair.address("h2", "inner", "inner"))
    assert not pair.inside("h2", "inner", "ip", "route", "show", "default")
    assert pair.reaches("h2", "six", pair.lab.underlay(1))  # by Docker's own bridge
    pair("h1", "exec", "-d", "multi", "busybox", "nc", "-l", "-p", "80", "-e", "busybox", "sh", "-c", "echo here")
    fetch = ["python3", "-c", f"import socket; s = socket.create_connection(('{pair.lab.underlay(1)}', 8099), 2); "
             "assert b'here' in s.recv(99)"]  # fmt: skip
    wait_until(lambda: pair.lab.run("h2", fetch, check=False).returncode == 0, 10, "the published port answers")
    pair("h1", "network", "disconnect", "inner", "multi")
    assert not pair.reaches("h1", "multi", pair.address("h2", "inner", "inner"))


def test_what_docker_picks_itself_is_refused_where_another_has_it(pair: Pair) -> None:
    """Without our address plugin each engine counts for itself: never two holders, and the cure is said."""
    for node in ("h1", "h2"):
        pair(node, "network", "create", "-d", "weft", "--subnet", "10.43.0.0/24", "plain")
    pair.run("h1", "one", "plain")
    said = pair.refused("h2", "run", "-d", "--network", "plain", "lab:busybox", "sleep", "9")
    assert pair.address("h1", "one", "plain") in said and "--ipam-driver weft" in said
    pair("h2", "rm", "-f", *pair("h2", "ps", "-aq").split())
    pair.run("h2", "two", "plain", "--ip", "10.43.0.9")
    assert pair.reaches("h2", "two", pair.address("h1", "one", "plain"))


@pytest.mark.parametrize("order", ["docker", "weft", "docker then weft", "weft then docker"])
def test_restarts_in_either_order(pair: Pair, order: str) -> None:
    pair.create("again", "--subnet", "10.44.0.0/24")
    pair.run("h1", "kept", "again", "--restart", "always", "--ip", "10.44.0.5")
    pair.run("h2", "far", "again")
    far = pair.address("h2", "far", "again")
    steps = order.split(" then ")
    for step in steps:
        (pair.engines["h1"].stop if step == "docker" else lambda: pair.lab.weft("h1", ["stop"]))()
    for step in reversed(steps):
        (pair.engines["h1"].start if step == "docker" else lambda: pair.launch("h1"))()
    wait_until(lambda: pair("h1", "inspect", "-f", "{{.State.Running}}", "kept") == "true", 20, "it runs again")
    wait_until(lambda: pair.reaches("h1", "kept", far), 20, "it talks again")
    assert pair.address("h1", "kept", "again") == "10.44.0.5"
    wait_until(lambda: list(pair.rows("h1")) == ["kept"], 10, "it is known, once, by its name")
    pair.meet()


def test_docker_never_hangs_while_we_are_away(pair: Pair) -> None:
    pair.create("away", "--subnet", "10.45.0.0/24", nodes=("h1",))
    pair.lab.weft("h1", ["stop"])
    socket = pair.plugins["h1"] / "weft.sock"
    assert not socket.exists()
    assert pair("h1", "ps", "-q") == ""
    socket.write_text("what somebody left there")
    pair.launch("h1")
    wait_until(lambda: "docker-plugin" in str(pair.lab.weft_json("h1", "status")["warnings"]), 15, "it is said")
    socket.unlink()
    wait_until(socket.is_socket, 15, "it is served")
    socket.unlink()
    wait_until(socket.is_socket, 15, "it is served again")
    pair.run("h1", "later", "away")
    pair.meet()


def test_bad_words_have_their_line(pair: Pair) -> None:
    for options, says in (
        (["--opt", "speed=high"], "speed"),
        (["--opt", "mtu=12"], "mtu=12"),
        (["--subnet", "192.168.7.0/24"], "192.168.7.0/24 is not inside the range"),
        (["--ipam-opt", "x=y"], "x is not supported"),
    ):
        said = pair.refused("h1", "network", "create", "-d", "weft", "--ipam-driver", "weft", *options, "bad")
        assert says in said, said


def test_a_container_on_two_networks_with_a_part_of_them_each(pair: Pair) -> None:
    """Both have a way out and to the DNS server; hosts that give a part each of one subnet are in one network."""
    for node in ("h1", "h2"):
        pair.lab.weft(node, ["prime"])
    for number, node in enumerate(("h1", "h2")):
        parts = ("--ip-range", f"10.46.0.{128 * number}/25")
        pair.create("split", "--subnet", "10.46.0.0/24", *parts, nodes=(node,))
    pair.create("second", "--subnet", "10.47.0.0/24")
    pair.run("h1", "left", "split")
    pair.connect("h1", "second", "left")
    args = pair.lab.weft("h2", ["dns-args"]).stdout.split()
    pair.run("h2", "right", "split", *args)
    pair.connect("h2", "second", "right")
    assert pair.address("h2", "right", "split") >= "10.46.0.128"
    for network in ("split", "second"):
        assert pair.reaches("h2", "right", pair.address("h1", "left", network))
    pair("h2", "network", "disconnect", "split", "right")
    asks = ("exec", "right", "busybox", "nslookup", "-type=a", "left.weft.local")
    wait_until(lambda: "10.47.0." in pair("h2", *asks), 10, "it asks by the other")
