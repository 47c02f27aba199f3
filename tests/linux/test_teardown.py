"""Reset leaves the host as it was, with or without an engine before it, as often as one likes."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from dataplane.desired import Desired
from dataplane.linux.tap import open_tap
from tests.linux.hosts import Host, Lab, Space, peer, port, remote

pytestmark = pytest.mark.root


def everything(host: Host, space: Space) -> tuple[str, ...]:
    return (
        host.links(),
        host.run("nft", "list", "ruleset"),
        host.run("ip", "neigh", "show", "nud", "permanent"),
        space.links(),
    )


def test_teardown_leaves_links_and_rules_as_they_were(lab: Lab) -> None:
    """Also the guest's side, and the accept rule in another one's chain."""
    host, space = lab.host(1), lab.space("c1")
    host.run("iptables", "-P", "FORWARD", "DROP")
    host.run("ip6tables", "-A", "FORWARD", "-i", "x", "-j", "ACCEPT")
    host.run("ip", "link", "add", "mine", "type", "bridge")
    before = everything(host, space)
    host.start()
    desired = Desired(host.segment(), (port(space, 1, 1),), (peer(2),), ((remote(2, 1), remote(2, 2)),))
    assert host.publish(desired).faults == ()
    assert all(now != then for now, then in zip(everything(host, space), before, strict=True))
    host.stop()
    host.tear_down()
    assert everything(host, space) == before
    host.tear_down()
    assert everything(host, space) == before


def test_teardown_finds_ports_that_lost_their_bridge(lab: Lab) -> None:
    """They are known by what was written on them."""
    host, space = lab.host(1), lab.space("c1")
    before = host.links()
    host.start()
    host.publish(Desired(host.segment(), (port(space, 1, 1),)))
    host.stop()
    host.run("ip", "link", "del", "weft")
    host.run("ip", "link", "set", "weft-vx", "down", "name", "renamed")
    host.tear_down()
    assert host.links() == before and "ethwe" not in space.links()


def test_teardown_takes_the_tap_from_a_process_that_has_it_open(lab: Lab) -> None:
    """A worker that will not end; also under another name. Its descriptor is dead then."""
    host = lab.host(1)
    before = host.links()
    for command in (("ip", "link", "set", "weft-tap", "mtu", "1400"), ("ip", "link", "set", "weft-tap", "name", "foo")):
        host.start()
        assert host.publish(Desired(host.segment())).faults == ()
        descriptor = host.inside(lambda: open_tap("weft-tap", offload=True))
        try:
            host.stop()
            host.run(*command)
            host.tear_down()
            assert host.links() == before
            with pytest.raises(OSError) as ended:
                os.read(descriptor, 100)
            assert ended.value.errno == errno.EBADFD
        finally:
            os.close(descriptor)


def test_teardown_touches_nothing_that_is_not_ours(lab: Lab) -> None:
    """Devices that look alike, and a table of the same name in another family."""
    host = lab.host(1)
    host.run("ip", "link", "add", "vwmine", "type", "veth", "peer", "vwmine2")
    host.run("ip", "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
    host.run("ip", "link", "add", "vx0", "type", "vxlan", "id", "9", "dstport", "4789")
    host.run("nft", "add", "table", "ip", "weft")
    before = host.links(), host.run("nft", "list", "ruleset")
    host.tear_down()
    assert (host.links(), host.run("nft", "list", "ruleset")) == before


def test_without_the_rights_one_line_says_so(lab: Lab) -> None:
    """No traceback, and what to do."""
    program = "from dataplane.linux import open_kernel\ntry:\n open_kernel()\nexcept Exception as error: print(error)"
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534")
    path = f"PYTHONPATH={Path(__file__).parents[2]}"
    text = lab.host(1).run("env", path, *drop, sys.executable, "-c", program)
    assert text.strip().endswith("run weft as root, with CAP_NET_ADMIN and CAP_NET_RAW")
    assert len(text.strip().splitlines()) == 1
