"""The two underlays are what they are called, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bench.contestants import Raw
from bench.processes import Meter, overlay_processes
from bench.traffic import ping
from bench.underlay import CLIENT, MTU, PASS_THROUGH, SERVER, WIRE, World, sweep
from mesh.namespaces import NAMESPACES_DIR, wait_until

pytestmark = pytest.mark.root


def built(name: str, underlay: str) -> World:
    return World(f"wt{os.getpid()}{name}", underlay)


def container_cpu_s(world: World) -> float:
    return sum(process.cpu_s for process in overlay_processes([world.lab.namespace(CLIENT)]))


def stream(world: World) -> None:
    world.serve().stream(CLIENT, world.lab.address(SERVER), 1)


def test_on_the_wire_every_packet_is_cut_to_the_mtu() -> None:
    """Counted in the switch: not one above it, and nearly all of them full."""
    with built("cut", WIRE) as world:
        Raw().build(world)
        Raw().wait(world)
        seen = world.crossing(lambda: stream(world))
    assert seen.packets > 1000
    assert seen.large == 0
    assert seen.mean_bytes <= MTU


def test_the_switch_would_tell_of_larger_packets() -> None:
    """The same count with the segmentation of one host left on: so it can fail."""
    with built("big", WIRE) as world:
        Raw().build(world)
        Raw().wait(world)
        world.lab.run("h1", ["ethtool", "-K", "eth0", "tso", "on", "gso", "on"])
        seen = world.crossing(lambda: stream(world))
    assert seen.large is not None and seen.large > 100


def test_pass_through_hands_large_packets_on_whole() -> None:
    """A veth as it comes."""
    with built("pass", PASS_THROUGH) as world:
        Raw().build(world)
        Raw().wait(world)
        seen = world.crossing(lambda: stream(world))
    assert seen.mean_bytes > 4 * MTU


def test_the_switch_drops_the_share_that_it_was_told_and_stops_when_told() -> None:
    """Of two thousand packets each way at 20 %, within five standard deviations."""
    with built("lose", WIRE) as world:
        Raw().build(world)
        Raw().wait(world)
        world.lose(20)
        lossy = ping(world.lab, CLIENT, world.lab.address(SERVER), count=1000, interval_s=0.002)
        seen, dropped = world.lost()
        world.lose(0)
        clean = ping(world.lab, CLIENT, world.lab.address(SERVER), count=100, interval_s=0.002)
    assert 0.15 < dropped / seen < 0.25
    assert 0.28 < len(lossy.lost) / lossy.sent < 0.44  # there and back: 36 %
    assert clean.lost == []


def test_an_overlay_is_charged_for_what_it_burns_and_not_for_what_containers_burn() -> None:
    """Everything on the two hosts is the overlay; the traffic's own cost is not its fault."""
    burn = "import time\nwhile time.process_time() < {}: pass\ntime.sleep(30)"
    with built("cpu", PASS_THROUGH) as world:
        world.start("h1", [sys.executable, "-c", burn.format(0.3)])
        wait_until(lambda: [process.what for process in world.processes()] != [], 5, "the process ran")
        meter = Meter([process.pid for process in world.processes()], [])
        in_container = world.lab.popen(CLIENT, [sys.executable, "-c", burn.format(0.6)])
        wait_until(lambda: container_cpu_s(world) >= 0.5, 20, "the container had burnt its share")
        wait_until(lambda: world.processes()[0].cpu_s >= 0.25, 20, "the overlay had burnt its share")
        usage = meter.read()
        in_container.kill()
        in_container.communicate(timeout=20)
    assert 0.1 < usage.overlay_s < 0.5
    assert usage.machine_s >= 0.5


def test_what_a_killed_bench_left_is_swept() -> None:
    """And what belongs to a living one is not."""
    build = (
        "import os, time\nfrom bench.underlay import World, WIRE\n"
        "world = World(f'wb{os.getpid()}x', WIRE).__enter__()\nprint('built', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", build], stdout=subprocess.PIPE, text=True, env=_environment())
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"
    name = f"wb{process.pid}x"
    assert name not in sweep()
    assert (NAMESPACES_DIR / f"{name}-h1").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert name in sweep()
    assert not (NAMESPACES_DIR / f"{name}-h1").exists()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
