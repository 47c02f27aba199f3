"""The TAP as a path: opened by a process, moved to and fro under traffic, held while others meddle with it."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.desired import SLEEVE, VXLAN, Desired
from dataplane.kernel import KernelError
from dataplane.linux import links, tap
from dataplane.linux.tap import VNET_HEADER_BYTES, open_tap
from dataplane.objects import Tap
from tests.linux.hosts import Cable, Host, Lab, Pair, Space, differences, peer, port, remote, until, via

pytestmark = pytest.mark.root

AT_ONCE_S = 0.5
ODDITIES = {
    "no-virtio-header": ("mode", "tap"),
    "several-queues": ("mode", "tap", "vnet_hdr", "multi_queue"),
    "packet-information": ("mode", "tap", "vnet_hdr", "pi"),
    "no-ethernet": ("mode", "tun", "vnet_hdr"),
}
RECEIVE_STREAM = """
import socket
server = socket.create_server(("10.32.2.1", 5001))
print("ready", flush=True)
connection, _ = server.accept()
total = 0
while data := connection.recv(1 << 20):
    total += len(data)
print(total)
"""
SEND_STREAM = """
import socket
stream = socket.create_connection(("10.32.2.1", 5001), 10)
stream.sendall(bytes({size}))
"""
RECEIVE_NUMBERS = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
receiver.bind(("10.32.2.1", 5002))
receiver.settimeout(20)
print("ready", flush=True)
numbers = []
while (number := int(receiver.recv(100))) >= 0:
    numbers.append(number)
    receiver.settimeout(2)
late = sum(later < earlier for earlier, later in zip(numbers, numbers[1:]))
print(len(numbers), len(set(numbers)), late)
"""
SEND_NUMBERS = """
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("10.32.2.1", 5002))
start = time.monotonic()
for number in range({count}):
    while time.monotonic() - start < number / {rate}:
        time.sleep(0.0005)
    sender.send(str(number).encode())
time.sleep(0.3)
sender.send(b"-1")
"""


@contextmanager
def program(space: Space, source: str) -> Iterator[subprocess.Popen[str]]:
    command = ["nsenter", f"--net={space.path}", "python3", "-c", source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def receiver(space: Space, source: str) -> Iterator[subprocess.Popen[str]]:
    with program(space, source) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process


@contextmanager
def held(host: Host) -> Iterator[int]:
    """The TAP as a worker has it."""
    descriptor = host.inside(lambda: open_tap("weft-tap", offload=True))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def frames(descriptor: int, seconds: float) -> list[bytes]:
    """What can be read in that time, without virtio headers."""
    found = []
    end = time.monotonic() + seconds
    while select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
        found.append(os.read(descriptor, 1 << 17)[VNET_HEADER_BYTES:])
    return found


def ifindex(host: Host) -> int:
    return int(host.run("ip", "-o", "link", "show", "weft-tap").split(":")[0])


def publish_by_sleeve(pair: Pair, vxlan_port: int | None = 6784) -> Desired:
    """Both hosts; what the first of them has now."""
    wanted = [
        via(replace(desired, segment=replace(desired.segment, vxlan_port=vxlan_port)), SLEEVE)
        for desired in (pair.desired_a, pair.desired_b)
    ]
    for host, desired in zip((pair.a, pair.b), wanted, strict=True):
        assert host.publish(desired).faults == ()
    return wanted[0]


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_containers_reach_each_other_through_the_tap_alone(pair: Pair, offload: bool) -> None:
    """As with a secret: no VXLAN device. Without offload every frame that is read is finished and fits the MTU."""
    publish_by_sleeve(pair, vxlan_port=None)
    assert "weft-vx" not in pair.a.links()
    with Cable(pair.a, pair.b, offload) as cable, receiver(pair.cb, RECEIVE_STREAM) as stream:
        assert pair.ca.ping("10.32.2.1") and pair.cb.ping("fd00:32::1:1")
        pair.ca.run("python3", "-c", SEND_STREAM.format(size=20_000_000))
        assert int(stream.communicate(timeout=30)[0]) == 20_000_000
        largest = max(cable.frames)
    assert largest > 60_000 if offload else largest <= 1450 + 14 + VNET_HEADER_BYTES


def test_offload_is_set_at_each_opening_whatever_the_last_process_wanted(pair: Pair) -> None:
    """The device itself remembers it."""
    for offload, state in ((True, "on"), (False, "off"), (True, "on")):
        os.close(pair.a.inside(lambda offload=offload: open_tap("weft-tap", offload)))
        assert f"tcp-segmentation-offload: {state}" in pair.a.run("ethtool", "-k", "weft-tap")


def test_moving_all_macs_to_and_fro_under_traffic_loses_and_doubles_nothing(pair: Pair) -> None:
    """Both hosts move again and again, each for itself, while numbered datagrams and pings pass."""
    moves = 0
    with Cable(pair.a, pair.b) as cable, receiver(pair.cb, RECEIVE_NUMBERS) as numbers:
        source = SEND_NUMBERS.format(count=4000, rate=2000)
        ping = ["nsenter", f"--net={pair.cb.path}", "ping", "-n", "-q", "-i", "0.005", "-c", "400", "10.32.1.1"]
        pinging = subprocess.Popen(ping, stdout=subprocess.PIPE, text=True)
        with program(pair.ca, source) as sender:
            while sender.poll() is None:
                path = VXLAN if moves % 2 else SLEEVE
                pair.a.publish(via(pair.desired_a, path))
                pair.b.publish(via(pair.desired_b, path))
                moves += 1
                time.sleep(0.02)
        received, different, _ = map(int, numbers.communicate(timeout=30)[0].split())
        pinged = pinging.communicate(timeout=30)[0]
        assert len(cable.frames) > 500
    assert moves > 20
    assert (received, different) == (4000, 4000)
    assert " 0% packet loss" in pinged and "duplicates" not in pinged


def test_a_broadcast_goes_by_one_path_to_each_peer_and_never_from_one_to_the_other(lab: Lab) -> None:
    """The TAP's process hears every broadcast of this host; those of VXLAN peers and its own it does not."""
    host, other, space, far = lab.host(1), lab.host(2), lab.space("c1"), lab.space("c2")
    host.start()
    other.start()
    desired = Desired(host.segment(), (port(space, 1, 1),), (peer(2), replace(peer(3), via=SLEEVE)), ((remote(2, 1),),))
    assert host.publish(desired).faults == ()
    other.publish(Desired(other.segment(), (port(far, 2, 1),), (peer(1),), ((remote(1, 1),),)))
    table = host.run("bridge", "fdb", "show", "dev", "weft-vx")
    assert "00:00:00:00:00:00 dst 10.9.0.2" in table and "00:00:00:00:00:00 dst 10.9.0.3" not in table
    with held(host) as descriptor:
        frames(descriptor, 0.2)
        for origin, copies in ((space, 1), (far, 0)):
            origin.run("ping", "-n", "-b", "-c", "1", "-W", "1", "10.32.255.255", check=False)
            assert [frame[:6] for frame in frames(descriptor, 0.3)].count(b"\xff" * 6) == copies


def test_questions_are_answered_or_dropped_before_the_tap(pair: Pair) -> None:
    """ARP and neighbour solicitation for known and for unknown addresses alike: the guard is there, too."""
    publish_by_sleeve(pair, vxlan_port=None)
    with held(pair.a) as descriptor:
        for address in ("10.32.2.1", "fd00:32::2:1", "10.32.9.9", "fd00:32::9:9"):
            pair.ca.ping(address, count=1)
        found = frames(descriptor, 0.3)
    kinds = [frame[12:14].hex() + (frame[54:55].hex() if frame[12:14] == b"\x86\xdd" else "") for frame in found]
    assert "0800" in kinds and "86dd80" in kinds and "0806" not in kinds and "86dd87" not in kinds


def test_entries_survive_the_death_of_the_process_and_frames_flow_at_the_next_opening(pair: Pair) -> None:
    """Without a carrier nothing changes that would have to be repaired."""
    wanted = publish_by_sleeve(pair, vxlan_port=None)
    before = pair.a.report.counters.applied
    for _ in range(3):
        with Cable(pair.a, pair.b):
            assert pair.ca.ping("10.32.2.1")
        assert "NO-CARRIER" in pair.a.run("ip", "link", "show", "weft-tap")
        assert differences(pair.a, wanted) == []
    assert not pair.ca.ping("10.32.2.1", count=1)
    assert pair.a.publish(wanted).counters.applied == before


def test_an_engine_that_comes_after_leaves_the_tap_and_its_process_alone(pair: Pair) -> None:
    """A daemon's restart, and a change of MTU."""
    wanted = publish_by_sleeve(pair)
    with Cable(pair.a, pair.b) as cable:
        before = ifindex(pair.a)
        pair.a.stop()
        assert pair.ca.ping("10.32.2.1")
        pair.a.start()
        assert pair.a.publish(wanted).counters.applied == 0
        smaller = replace(wanted, segment=pair.a.segment(mtu=1400))
        assert pair.a.publish(smaller).faults == () and differences(pair.a, smaller) == []
        assert ifindex(pair.a) == before and pair.ca.ping("10.32.2.1")
        assert cable.frames


def test_what_a_daemon_that_died_while_making_it_left_behind_is_completed(lab: Lab) -> None:
    """The device is there, unmarked and with the kernel's own limits."""
    host = lab.host(1)
    host.run("ip", "tuntap", "add", "weft-tap", "mode", "tap", "vnet_hdr")
    before = ifindex(host)
    host.start()
    desired = Desired(host.segment())
    assert host.publish(desired).faults == ()
    assert differences(host, desired) == [] and ifindex(host) == before
    assert "alias weft" in host.run("ip", "-d", "link", "show", "weft-tap")


@pytest.mark.parametrize("failing", range(1, 4))
def test_whichever_step_of_making_it_fails_the_next_try_completes_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Asking for the device, making it last, giving it its limits: each refused once."""
    host, steps = lab.host(1), iter(range(1, 100))
    ask, set_tap = tap._ask, links.set_tap

    def refused(descriptor: int, name: str, request: int, argument: bytes | int) -> bytes:
        if next(steps) == failing:
            raise KernelError(errno.ENOMEM, None, "refused by the test")
        return ask(descriptor, name, request, argument)

    def unfit(index: int, wanted: Tap) -> bytes:
        return set_tap(index, wanted._replace(mtu=1 << 20) if next(steps) == failing else wanted)

    monkeypatch.setattr(tap, "_ask", refused)
    monkeypatch.setattr(links, "set_tap", unfit)
    host.start()
    desired = Desired(host.segment(), (), (replace(peer(2), via=SLEEVE),))
    report = host.publish(desired)
    assert len(report.faults) <= 1 and all("TAP weft-tap" in fault.text for fault in report.faults)
    host.wait(lambda report: not report.faults)
    assert differences(host, desired) == [] and next(steps) > 4


@pytest.mark.parametrize("is_held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("options", ODDITIES.values(), ids=ODDITIES)
def test_a_tap_of_another_kind_is_replaced(lab: Lab, options: tuple[str, ...], is_held: bool) -> None:
    """Also while a process has it open, whose descriptor ends then."""
    host, space = lab.host(1), lab.space("c1")
    host.run("ip", "tuntap", "add", "weft-tap", *options)
    before = ifindex(host)
    descriptor = host.inside(lambda: attach(options)) if is_held else -1
    try:
        host.start()
        desired = Desired(host.segment(), (port(space, 1, 1),), (replace(peer(2), via=SLEEVE),))
        assert host.publish(desired).faults == ()
        assert differences(host, desired) == [] and ifindex(host) != before
        if is_held:
            with pytest.raises(OSError) as ended:
                os.read(descriptor, 100)
            assert ended.value.errno == errno.EBADFD
    finally:
        if is_held:
            os.close(descriptor)
    with held(host):
        until(lambda: "LOWER_UP" in host.run("ip", "link", "show", "weft-tap"))


def test_a_tap_that_would_die_with_its_process_is_replaced(lab: Lab) -> None:
    """Of our kind in everything else."""
    host = lab.host(1)
    descriptor = host.inside(lambda: attach(("tap", "vnet_hdr")))
    try:
        before = ifindex(host)
        host.start()
        assert host.publish(Desired(host.segment())).faults == ()
        assert ifindex(host) != before and differences(host, Desired(host.segment())) == []
    finally:
        os.close(descriptor)
    with held(host):
        pass
    assert "weft-tap" in host.links()


def attach(options: tuple[str, ...]) -> int:
    """As a stranger would, with its own idea of the device."""
    names = {"tap": 0x2, "tun": 0x1, "vnet_hdr": 0x4000, "multi_queue": 0x100}
    flags = sum(names.get(option, 0) for option in options) | (0 if "pi" in options else 0x1000)
    descriptor = os.open(tap.DEVICE, os.O_RDWR | os.O_NONBLOCK)
    tap._ask(descriptor, "weft-tap", tap._TUNSETIFF, tap._IFREQ.pack(b"weft-tap", flags))
    return descriptor


def test_a_stranger_who_changes_the_kind_of_our_tap_by_opening_it_is_undone(pair: Pair) -> None:
    """Opening without the virtio header takes it away from the device."""
    before = ifindex(pair.a)
    descriptor = pair.a.inside(lambda: attach(("tap",)))
    try:
        until(lambda: ifindex_or_none(pair.a) not in (None, before), AT_ONCE_S)
        until(lambda: not differences(pair.a, pair.desired_a), AT_ONCE_S)
    finally:
        os.close(descriptor)
    with held(pair.a):
        pass


def ifindex_or_none(host: Host) -> int | None:
    shown = host.run("ip", "-o", "link", "show", "weft-tap", check=False)
    return int(shown.split(":")[0]) if shown else None


@pytest.mark.parametrize("command", ["ip link del weft-tap", "ip link set weft-tap name foo"])
def test_a_tap_that_is_taken_from_its_process_is_made_anew_and_can_be_opened_again(pair: Pair, command: str) -> None:
    """The process learns of it at once; what was behind the TAP is there when it opens the new one."""
    wanted = publish_by_sleeve(pair, vxlan_port=None)
    with held(pair.a) as descriptor:
        frames(descriptor, 0.1)
        pair.a.run(*command.split())
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(1000)
        until(lambda: _is_gone(descriptor), AT_ONCE_S)
        until(lambda: not differences(pair.a, wanted), AT_ONCE_S)
    with Cable(pair.a, pair.b):
        assert pair.ca.ping("10.32.2.1")


def _is_gone(descriptor: int) -> bool:
    try:
        os.read(descriptor, 1 << 17)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno == errno.EBADFD
    return False


def test_a_tap_that_leaves_the_bridge_while_it_is_held_comes_back_with_its_entries(pair: Pair) -> None:
    """The process need not notice."""
    wanted = publish_by_sleeve(pair, vxlan_port=None)
    with Cable(pair.a, pair.b):
        for command in ("ip link set weft-tap nomaster", "ip link set weft-tap down"):
            before = pair.a.report.counters.repaired
            pair.a.run(*command.split())
            pair.a.wait(lambda report, before=before: report.counters.repaired > before)
            until(lambda: not differences(pair.a, wanted), AT_ONCE_S)
            assert pair.ca.ping("10.32.2.1")


def test_only_one_process_can_have_the_tap_and_the_other_is_told_at_once(pair: Pair) -> None:
    """A worker of an earlier life, say; the engine does not need it to be free."""
    with held(pair.a):
        started = time.monotonic()
        with pytest.raises(KernelError, match="another process has the TAP weft-tap open") as refused:
            pair.a.inside(lambda: open_tap("weft-tap", offload=True))
        assert refused.value.errno == errno.EBUSY and time.monotonic() - started < AT_ONCE_S
        assert pair.a.publish(replace(pair.desired_a, segment=pair.a.segment(mtu=1400))).faults == ()


def test_opening_a_tap_that_is_not_there_makes_none(lab: Lab) -> None:
    """Asking the kernel for a device makes one, so it is not asked."""
    host = lab.host(1)
    with pytest.raises(KernelError, match="there is no TAP weft-tap") as refused:
        host.inside(lambda: open_tap("weft-tap", offload=True))
    assert refused.value.errno == errno.ENODEV and "weft-tap" not in host.links()


def test_a_device_that_goes_while_it_is_opened_is_not_made_by_opening_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not persistent is not ours; it has gone with the descriptor."""
    host = lab.host(1)
    monkeypatch.setattr(tap.socket, "if_nametoindex", lambda name: 1)
    with pytest.raises(KernelError, match="there is no TAP weft-tap"):
        host.inside(lambda: open_tap("weft-tap", offload=True))
    assert "weft-tap" not in host.links()


def test_without_the_tun_device_one_fault_says_what_to_do_and_vxlan_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container that was not given it. Once it is there, the TAP is too."""
    real = tap.DEVICE
    monkeypatch.setattr(tap, "DEVICE", tmp_path / "tun")
    pair = Pair(lab)
    for host, desired in ((pair.a, pair.desired_a), (pair.b, pair.desired_b)):
        host.start()
        report = host.publish(desired)
        assert [(fault.code, fault.text) for fault in report.faults] == [
            (
                "no-tun",
                f"cannot make TAP weft-tap: {tmp_path}/tun cannot be opened: No such file or directory; load the "
                "module with 'modprobe tun', or give the container the device (docker: --device /dev/net/tun)",
            )
        ]
    assert pair.ca.ping("10.32.2.1")
    monkeypatch.setattr(tap, "DEVICE", real)
    pair.a.wait(lambda report: not report.faults, timeout_s=20.0)
    assert differences(pair.a, pair.desired_a) == []


def test_a_foreign_device_under_the_name_of_the_tap_is_left_alone_and_told(lab: Lab) -> None:
    """It is no TAP, so it cannot be an earlier one of ours."""
    host = lab.host(1)
    host.run("ip", "link", "add", "weft-tap", "type", "bridge")
    host.start()
    assert [fault.code for fault in host.publish(Desired(host.segment())).faults] == ["name-taken"]
    host.run("ip", "link", "del", "weft-tap")
    host.wait(lambda report: not report.faults)
