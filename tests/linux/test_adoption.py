"""A restart is a normal start: what fits is left alone, what may belong to others is kept until they have spoken."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.desired import Desired
from tests.linux.hosts import Lab, Pair, Space, differences, peer, port, remote

pytestmark = pytest.mark.root


class SteadyPing:
    """A ping every five milliseconds, for as long as it is open."""

    def __init__(self, space: Space, address: str) -> None:
        command = ["nsenter", f"--net={space.path}", "ping", "-n", "-q", "-i", "0.005", "-W", "1", address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.1)

    def close(self) -> tuple[int, int]:
        """Packets sent and answered, duplicates counted as answers."""
        self._process.send_signal(2)
        output, _ = self._process.communicate(timeout=10)
        found = re.search(r"(\d+) packets transmitted, (\d+) received(?:, \+(\d+) duplicates)?", output)
        assert found is not None, output
        return int(found[1]), int(found[2]) + int(found[3] or 0)


def test_a_new_engine_with_the_same_desired_state_changes_nothing(pair: Pair) -> None:
    """Zero operations, and no ping lost or doubled over the restart of both ends."""
    pings = [SteadyPing(pair.ca, "10.32.2.1"), SteadyPing(pair.cb, "fd00:32::1:1")]
    for host, desired in ((pair.a, pair.desired_a), (pair.b, pair.desired_b)):
        host.stop()
        host.start()
        report = host.publish(desired)
        assert (report.counters.applied, report.counters.refused, report.faults) == (0, 0, ())
    time.sleep(0.2)
    for ping in pings:
        sent, answered = ping.close()
        assert sent > 20 and answered == sent


ONE_LIFE = """
import pickle, sys, time
from dataplane.engine import Engine
from dataplane.linux import open_kernel
engine = Engine(open_kernel(), lambda report: print("done", flush=True))
engine.start()
engine.publish(pickle.load(sys.stdin.buffer))
print("go", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.02, 0.05, 0.1])
def test_whatever_a_killed_process_left_undone_the_next_one_completes(pair: Pair, delay_s: float) -> None:
    """Killed while it makes a container's interface and a thousand entries."""
    pair.a.stop()
    pair.a.tear_down()
    many = tuple(remote(2, 1, mac=bytes((2, 9, 0, 0, n // 256, n % 256))) for n in range(1000))
    desired = replace(pair.desired_a, groups=(*pair.desired_a.groups, tuple(many)))
    root = str(Path(__file__).parents[2])
    command = ["nsenter", f"--net={pair.a.path}", "env", f"PYTHONPATH={root}", sys.executable, "-c", ONE_LIFE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(pickle.dumps(desired))
        process.stdin.close()
        assert process.stdout.readline() == b"go\n"
        time.sleep(delay_s)
        process.kill()
    pair.a.start()
    report = pair.a.publish(desired)
    assert (report.faults, dict(report.port_faults)) == ((), {})
    assert differences(pair.a, desired) == []
    assert pair.ca.ping("10.32.2.1") and pair.ca.ping("fd00:32::2:1")


def test_what_belongs_to_hosts_not_heard_from_is_kept(pair: Pair) -> None:
    """Until settled, then it goes; what is ours alone goes at once."""
    gone = port(pair.lab.space("c3"), 1, 2)
    pair.a.publish(replace(pair.desired_a, ports=(pair.port_a, gone)))
    pair.a.stop()
    pair.a.start()
    unsettled = Desired(pair.a.segment(), (pair.port_a,), settled=False)
    pings = SteadyPing(pair.ca, "10.32.2.1")
    pair.a.publish(unsettled)
    assert "vw1x2" not in pair.a.links()
    assert pair.a.report.counters.applied > 0
    sent, answered = pings.close()
    assert answered == sent
    pair.a.publish(replace(unsettled, settled=True))
    assert "10.9.0.2" not in pair.a.run("bridge", "fdb", "show", "dev", "weft-vx")
    assert "10.32.2.1" not in pair.a.run("ip", "neigh", "show", "dev", "weft")
    assert not pair.ca.ping("10.32.2.1", count=1)


def test_before_it_is_settled_entries_are_still_added_and_redirected(pair: Pair) -> None:
    """Only deleting waits."""
    moved = replace(remote(2, 1), destination=remote(2, 1).addresses[0])
    pair.a.publish(Desired(pair.a.segment(), (pair.port_a,), (peer(3),), ((moved, remote(3, 1)),), settled=False))
    entries = pair.a.run("bridge", "fdb", "show", "dev", "weft-vx")
    assert "02:00:00:00:02:01 dst 10.32.2.1 self" in entries and "02:00:00:00:03:01 dst 10.9.0.3 self" in entries
    assert "00:00:00:00:00:00 dst 10.9.0.2 self" in entries and "00:00:00:00:00:00 dst 10.9.0.3 self" in entries


def test_without_vxlan_the_plain_device_is_removed_first_even_when_unsettled(pair: Pair) -> None:
    """With a secret no frame may leave in clear, whatever else is unknown."""
    pair.a.stop()
    pair.a.start()
    segment = pair.a.segment(vxlan_port=None)
    pair.a.publish(Desired(segment, (pair.port_a,), (peer(2),), ((remote(2, 1),),), settled=False))
    assert "weft-vx" not in pair.a.links()
    assert "6784" not in pair.a.run("ss", "-uln")


@pytest.mark.parametrize(
    "made",
    [
        "vxlan id 7 dstport 6784 nolearning local 10.9.0.1",
        "vxlan id 7 dstport 6784",
        "vxlan id 8 dstport 6784 nolearning",
        "vxlan id 7 dstport 6799 nolearning",
        "vxlan id 7 dstport 6784 nolearning df set",
        "vxlan id 7 dstport 6784 nolearning remote 10.9.0.9",
        "vxlan id 7 dstport 6784 nolearning dev eth0",
        "vxlan id 7 dstport 6784 nolearning proxy",
        "vxlan dstport 6784 external",
    ],
)
def test_a_vxlan_device_that_does_not_fit_is_replaced(lab: Lab, made: str) -> None:
    """An option that ours never has would send frames elsewhere."""
    host = lab.host(1)
    host.run("ip", "link", "add", "weft-vx", "up", "type", *made.split())
    before = host.run("ip", "-o", "link", "show", "weft-vx").split(":")[0]
    host.start()
    assert host.publish(Desired(host.segment())).faults == ()
    assert host.run("ip", "-o", "link", "show", "weft-vx").split(":")[0] != before


def test_a_vxlan_device_that_fits_is_kept(lab: Lab) -> None:
    """One made by hand the same way: only its membership and flags are added."""
    host = lab.host(1)
    options = "vxlan id 7 dstport 6784 nolearning ttl 32"
    host.run("ip", "link", "add", "weft-vx", "mtu", "1450", "up", "type", *options.split())
    before = host.run("ip", "-o", "link", "show", "weft-vx").split(":")[0]
    host.start()
    assert host.publish(Desired(host.segment())).faults == ()
    after = host.run("ip", "-o", "link", "show", "weft-vx")
    assert after.split(":")[0] == before and "master weft" in after


@pytest.mark.parametrize("name", ["weft", "weft-vx", "vw1x1"])
def test_a_foreign_device_under_one_of_our_names_is_told_and_not_touched(lab: Lab, name: str) -> None:
    """One fault that names it; nothing of what needs it is tried."""
    host, space = lab.host(1), lab.space("c1")
    host.run("ip", "tuntap", "add", name, "mode", "tap")
    host.start()
    report = host.publish(Desired(host.segment(), (port(space, 1, 1),), (peer(2),), ((remote(2, 1),),)))
    texts = [fault.text for fault in (*report.faults, *report.port_faults.values())]
    assert len([text for text in texts if "there already, of type tun; remove or rename it" in text]) == 1
    assert len(texts) == 1
    assert "tun type tap" in host.run("ip", "-d", "link", "show", name)
    host.run("ip", "link", "del", name)
    host.wait(lambda report: not report.faults and not report.port_faults)
