"""containerd and podman, the real programs, on two hosts: their containers are on the mesh by CNI."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs.real_runtimes import Containerd, Podman

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, containers=0)
    lab.build()
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    lab.wait_connected()
    return lab


def addresses(lab: Lab, node: str) -> dict[str, str]:
    """The IPv4 address of each container there, by the start of its id."""
    rows = [row for row in lab.weft_json(node, "ps") if row.get("cni")]
    return {row["cni"]["container"]: row["addresses"][0].partition("/")[0] for row in rows}


def traces(lab: Lab, node: str) -> str:
    """What containers leave on a host, if they leave anything."""
    links = lab.run(node, ["ip", "-br", "link"]).stdout
    rules = lab.run(node, ["nft", "list", "ruleset"]).stdout
    return links + "\n".join(line for line in rules.splitlines() if "10.32." in line and "weft" not in line)


@pytest.mark.parametrize("kind", [Containerd, Podman])
def test_containers_of_two_hosts_talk_reach_the_outside_and_leave_nothing(
    lab: Lab, kind: type[Containerd] | type[Podman]
) -> None:
    name = kind.__name__.lower()
    with kind(lab, "h1", lab.directory / f"h1-{name}") as one, kind(lab, "h2", lab.directory / f"h2-{name}") as two:
        two.run("far", "sleep", "600")
        (far,) = addresses(lab, "h2").values()
        one.run("first", "sleep", "600")  # makes the host's own address, which stays
        before = traces(lab, "h1")
        one.run("near", "sleep", "600")
        assert "1 packets received" in one.execute("near", "ping", "-c", "1", "-w", "5", far)
        assert "1 packets received" in one.execute("near", "ping", "-c", "1", "-w", "5", lab.underlay(2))
        shown = one.execute("near", "ip", "-o", "address", "show", "eth0")
        assert any(address in shown for address in addresses(lab, "h1").values())
        assert len(addresses(lab, "h1")) == 2
        one.remove("near")
        assert len(addresses(lab, "h1")) == 1 and traces(lab, "h1") == before
        one.remove("first")
        two.remove("far")
        for node in ("h1", "h2"):
            assert addresses(lab, node) == {}
            lab.weft(node, ["hide"])


def test_podman_publishes_ports_and_gives_names(lab: Lab) -> None:
    with Podman(lab, "h1", lab.directory / "h1-ports") as one, Podman(lab, "h2", lab.directory / "h2-ports") as two:
        one.run("shop", "sh", "-c", "mkdir -p /w && cd /w && httpd -f -p 80", publish="8088:80")
        two.run("client", "sleep", "600")
        # Not wget: a static one of glibc's crashes where it looks up hosts.
        fetch = ["sh", "-c", f"printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {lab.underlay(1)} 8088"]
        wait_until(lambda: "404" in _said(lambda: two.execute("client", *fetch)), 15, "the published port answers")
        (shop,) = addresses(lab, "h1").values()
        assert shop in two.execute("client", "nslookup", "-type=a", "shop.weft.local")
        one("restart", "--time", "0", "shop")
        wait_until(lambda: "404" in _said(lambda: two.execute("client", *fetch)), 15, "it answers again")
        assert len(addresses(lab, "h1")) == 1


def _said(call: Callable[[], str]) -> str:
    """What a command printed, whether it failed or not."""
    try:
        return call()
    except AssertionError as error:
        return str(error)
