"""A network card that corrupts what VXLAN leaves to it: found, named, done without; and containers' TCP just works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs import liar
from tests.labs.chatter import PORT, exchange, listen

pytestmark = pytest.mark.root

FOUND_WITHIN_S = 10
"""About a second on an idle machine."""
FILE_BYTES = 3_000_000
OFFLOADS = {
    liar.CHECKSUM: "vxlan-checksum",
    liar.CHANGED: "vxlan-checksum",
    liar.SEGMENT: "vxlan-segment",
    liar.SEGMENT6: "vxlan-segment",
}


def offloads_off(lab: Lab, node: str) -> list[str]:
    rows = lab.weft_json(node, "status", "connections")
    return list(rows[0]["offloads_off"]) if rows else []


def warnings(lab: Lab, node: str) -> list[Any]:
    return [each for each in lab.weft_json(node, "status")["warnings"] if each["code"].startswith("offload")]


def in_effect(lab: Lab, node: str) -> set[str]:
    return set(re.findall(r"^\s*(\S+): on", lab.run(node, ["ethtool", "-k", "weft-vx"]).stdout, re.MULTILINE))


def connects(lab: Lab, source: str, address: str) -> bool:
    """Whether a TCP connection comes about."""
    command = f"exec 3<>/dev/tcp/{address}/{PORT}"
    return lab.run(source, ["timeout", "1.5", "bash", "-c", command], check=False).returncode == 0


def start(lab: Lab, lie: str) -> None:
    """Two hosts, the first one with such a card, and a container on each."""
    lab.build()
    liar.plug(lab, 1, lie)
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)


@pytest.mark.parametrize("lie", OFFLOADS)
def test_a_lying_card_is_found_and_tcp_works(make_lab: Callable[..., Lab], lie: str) -> None:
    """No user had to know `ethtool -K`. The host with the honest card goes on as before."""
    lab = make_lab(hosts=2, containers=1)
    start(lab, lie)
    offload = OFFLOADS[lie]
    wait_until(lambda: offloads_off(lab, "h1") == [offload], FOUND_WITHIN_S, f"{offload} was off")
    sent, came = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), FILE_BYTES, seed=1)
    assert sent["there"] == came["there"] and (came["missing"], came["strange"]) == (0, 0)
    sent, came = exchange(lab, "c2.1", "c1.1", lab.address6("c1.1"), FILE_BYTES, seed=2)
    assert sent["back"] == sent["there"] == came["there"]

    (warning,) = warnings(lab, "h1")
    assert warning["code"] == "offload-lies"
    assert "h2" in warning["text"] and "eth0 (veth" in warning["text"] and offload in warning["text"]
    assert ("tx-checksum-ip-generic" in in_effect(lab, "h1")) == (offload == "vxlan-segment")
    assert "tx-tcp-segmentation" not in in_effect(lab, "h1")
    assert (offloads_off(lab, "h2"), warnings(lab, "h2")) == ([], [])
    assert {"tx-checksum-ip-generic", "tx-tcp-segmentation"} <= in_effect(lab, "h2")
    assert [row["path"] for row in lab.weft_json("h1", "status", "connections")] == ["vxlan"]


def test_what_was_found_is_not_suffered_again(make_lab: Callable[..., Lab]) -> None:
    """After a restart the offload is off before the first packet, whatever became of it meanwhile; after `reset` there
    is nothing to remember."""
    lab = make_lab(hosts=2, containers=1)
    start(lab, liar.CHECKSUM)
    wait_until(lambda: offloads_off(lab, "h1"), FOUND_WITHIN_S, "it was found")
    with listen(lab, "c2.1"):
        wait_until(lambda: connects(lab, "c1.1", lab.address("c2.1")), 5, "TCP came through")
        lab.weft("h1", ["stop"])
        assert connects(lab, "c1.1", lab.address("c2.1"))
        lab.run("h1", ["ethtool", "-K", "weft-vx", "tx-checksum-ip-generic", "on"])
        assert not connects(lab, "c1.1", lab.address("c2.1")), "the card does not lie"
        lab.launch("h1")
        assert connects(lab, "c1.1", lab.address("c2.1"))
        lab.wait_connected()
        assert offloads_off(lab, "h1") == ["vxlan-checksum"] and len(warnings(lab, "h1")) == 1
        document = lab.state_dir("h1") / "offloads.weft"
        kept = json.loads(document.read_text())["payload"]
        assert [row["offload"] for row in kept["faults"]] == ["vxlan-checksum"]
    lab.weft("h1", ["reset", "--force"])
    assert not document.exists()


def test_an_offload_is_switched_off_by_hand(make_lab: Callable[..., Lab]) -> None:
    """For whoever knows; it is no fault, so nothing is warned of."""
    lab = make_lab(hosts=2, containers=1)
    lab.up(["--without-offload", "vxlan-segment,vxlan-checksum"])
    assert offloads_off(lab, "h1") == offloads_off(lab, "h2") == ["vxlan-checksum", "vxlan-segment"]
    assert "tx-checksum-ip-generic" not in in_effect(lab, "h1")
    assert warnings(lab, "h1") == []
    sent, came = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), FILE_BYTES, seed=3)
    assert sent["there"] == came["there"]


@pytest.mark.parametrize("flags", [["--password", "correct-horse-battery"], ["--no-vxlan"]], ids=["sealed", "clear"])
def test_a_lying_tap_is_found_from_the_other_side(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """What h2's TAP forgets, h1's worker no longer leaves to it; h2, whose frames arrive well, changes nothing."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    lab.launch("h1", flags)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("lying_tap")))
    lab.launch("h2", [*flags, lab.underlay(1)])
    monkeypatch.delenv("PYTHONPATH")
    lab.wait_connected()
    for node in lab.container_nodes():
        lab.attach(node)
    with listen(lab, "c2.1"):
        wait_until(lambda: offloads_off(lab, "h1") == ["tap"], FOUND_WITHIN_S, "it was found")
        wait_until(lambda: connects(lab, "c1.1", lab.address("c2.1")), 5, "TCP came through")
    sent, came = exchange(lab, "c1.1", "c2.1", lab.address("c2.1"), FILE_BYTES, seed=4)
    assert sent["there"] == came["there"] == sent["back"] and (came["missing"], came["strange"]) == (0, 0)
    (warning,) = warnings(lab, "h1")
    assert warning["code"] == "offload-lies" and "(tap)" in warning["text"] and "h2" in warning["text"]
    assert (offloads_off(lab, "h2"), warnings(lab, "h2")) == ([], [])
