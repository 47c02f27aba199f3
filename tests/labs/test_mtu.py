"""One MTU for the whole network: as large as the smallest underlay allows, inside running containers too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

VXLAN_OVERHEAD = 50
"""Over IPv4: outer Ethernet is not part of an MTU, the inner one is: 20 + 8 + 8 + 14."""


def _mtu(lab: Lab, node: str, device: str) -> int:
    words = lab.run(node, ["ip", "-o", "link", "show", device]).stdout.split()
    return int(words[words.index("mtu") + 1])


def _passes(lab: Lab, node: str, address: str, size: int) -> bool:
    """Does an IPv4 packet of `size` bytes pass in one piece?"""
    command = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - 28), address]
    return lab.run(node, command, check=False).returncode == 0


def test_jumbo_where_all_have_it_and_small_where_one_has_not(make_lab: Callable[..., Lab]) -> None:
    """Two hosts with 9000 carry 8950; a third with 1400 shrinks everybody to 1350, at once and inside containers."""
    lab = make_lab(hosts=3, containers=1, mtu=9000, host_mtus={3: 1400})
    lab.build()
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    wait_until(lambda: lab.connected_peers("h1") == 1 and lab.connected_peers("h2") == 1, 15, "h1 and h2 had a path")
    lab.attach("c1.1")
    lab.attach("c2.1")
    large = 9000 - VXLAN_OVERHEAD
    assert [_mtu(lab, node, "ethwe") for node in ("c1.1", "c2.1")] == [large, large]
    assert [row["mtu"] for row in lab.weft_json("h1", "status", "connections")] == [large]
    assert _passes(lab, "c1.1", lab.address("c2.1"), large)
    assert not _passes(lab, "c1.1", lab.address("c2.1"), large + 1)

    lab.launch("h3", [lab.underlay(1)])
    lab.wait_connected()
    lab.attach("c3.1")
    small = 1400 - VXLAN_OVERHEAD
    wait_until(lambda: _mtu(lab, "c1.1", "ethwe") == small, 5, "the container of h1 had shrunk")
    wait_until(lambda: _mtu(lab, "c2.1", "ethwe") == small, 5, "the container of h2 had shrunk")
    assert [_mtu(lab, node, "weft") for node in lab.host_nodes()] == [small] * 3
    assert lab.weft_json("h2", "status")["mtu"] == small
    assert _passes(lab, "c1.1", lab.address("c3.1"), small)
    assert _passes(lab, "c3.1", lab.address("c2.1"), small)


def test_a_given_mtu_counts(make_lab: Callable[..., Lab]) -> None:
    """`--mtu` on one host is what the network has."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    lab.launch("h1", ["--mtu", "1300"])
    lab.launch("h2", [lab.underlay(1)])
    lab.wait_connected()
    lab.attach("c2.1")
    wait_until(lambda: _mtu(lab, "c2.1", "ethwe") == 1300, 5, "the container of h2 had the smaller MTU")
