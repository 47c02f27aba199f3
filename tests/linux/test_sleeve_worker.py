"""The sleeve worker as a real process in real namespaces, between two containers: traffic, faults, and what is seen."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from dataplane.desired import SLEEVE
from dataplane.sleeve import control
from gossip.names import PeerName
from gossip.noise import public_key_of
from tests.linux.hosts import Host, Pair, Space, bridge_mac, guest_mac, until, via

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
SECRET, OTHER = b"s" * 32, b"o" * 32
PORT = 6783
SAYS_WITHIN_S = 10.0
"""Of itself; where nothing happens it speaks every 5 s."""
BACK_S = 1.0
"""From the moment a new worker knows its peers."""
NOTICED_S = 10.0
"""That the underlay takes less than it did, by the loss or by a question."""
MARKER = b"the-marker-nobody-may-see"
BULK_BYTES = 20_000_000
ODD_SIZES = (0, 1, 17, 999, 1394, 1395, 1421, 1422, 1423, 2900, 8000, 40_001, 65_507)
"""UDP payloads: whole frames, frames that fill the MTU, and fragments."""

RECEIVE = """
import hashlib, socket
server = socket.create_server(("10.32.2.1", 5001))
print("ready", flush=True)
connection, _ = server.accept()
digest = hashlib.sha256()
while data := connection.recv(1 << 20):
    digest.update(data)
print(digest.hexdigest())
"""
SEND = """
import random, socket
stream = socket.create_connection(("10.32.2.1", 5001), 10)
stream.sendall(random.Random(7).randbytes({size}))
"""
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
server.bind(("10.32.2.1", 5002))
print("ready", flush=True)
while True:
    data, sender = server.recvfrom(1 << 16)
    server.sendto(data, sender)
"""
ASK = """
import os, socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.32.2.1", 5002))
client.settimeout(3)
for size in {sizes}:
    data = os.urandom(size)
    client.send(data)
    assert client.recv(1 << 16) == data, size
client.setsockopt(17, 103, 1000)  # UDP_SEGMENT
data = os.urandom(30_500)
client.send(data)
assert b"".join(client.recv(1 << 16) for _ in range(31)) == data
print("all")
"""
SAY = """
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(20):
    client.sendto({marker} * 40, ("10.32.2.1", 5003))
"""


def name_of(host: Host) -> PeerName:
    return PeerName(bytes((host.number,)) * 8)


def key_of(host: Host) -> bytes:
    return bytes((0x40 + host.number,)) * 32


class Worker:
    """A worker of one host, and the connection that a daemon has to it."""

    def __init__(self, host: Host, folder: str, psks: tuple[bytes, ...] = (SECRET,), off: tuple[str, ...] = ()) -> None:
        self.host, self.psks, self.off = host, psks, off
        self.path = f"{folder}/{host.number}.sock"
        self.peers: list[control.Peer] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None
        self.decoder = control.Decoder()
        self.heard: list[control.Message] = []
        self.log = f"{folder}/{host.number}.log"

    def start(self) -> None:
        command = ["nsenter", f"--net={self.host.path}", sys.executable, "-m", "dataplane.sleeve", self.path]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log)
        self.connect()
        self.say(self.configuration(), *self.peers, control.Complete())

    def connect(self) -> None:
        if self.connection is not None:
            self.connection.close()
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(SAYS_WITHIN_S)

        def try_to() -> bool:
            try:
                made.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        until(try_to, 10.0)
        self.connection, self.decoder = made, control.Decoder()

    def configuration(self) -> control.Configure:
        epoch = time.time_ns()
        host = self.host
        return control.Configure("1", name_of(host), key_of(host), self.psks, "weft-tap", (), PORT, self.off, epoch)

    def say(self, *messages: control.Message) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(map(control.encode, messages)))

    def next(self) -> control.Message:
        """What it said and nobody has read yet, or says next. Raises EOFError when it has hung up."""
        while not self.heard:
            self._hear()
        return self.heard.pop(0)

    def _hear(self) -> None:
        assert self.connection is not None
        data = self.connection.recv(1 << 20)
        if not data:
            raise EOFError
        self.heard += self.decoder.feed(data)

    def status(self) -> control.Status:
        """One that it says after now. It speaks every half second, and what it said meanwhile waits here to be read."""
        assert self.connection is not None
        self.connection.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._hear()
        self.connection.settimeout(SAYS_WITHIN_S)
        self.heard.clear()
        said = self.next()
        assert isinstance(said, control.Status)
        return said

    def peer(self) -> control.PeerStatus:
        [peer] = self.status().peers
        return peer

    def introduce(self, other: Host, address: str | None = None) -> None:
        macs = (bridge_mac(other.number), guest_mac(other.number, 1))
        where = ((address or f"10.9.0.{other.number}", PORT),)
        self.peers = [control.Peer(name_of(other), public_key_of(key_of(other)), where, macs, True)]

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """And whatever it complained about fails the test."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(5)
        if self.connection is not None:
            self.connection.close()
        if os.path.exists(self.log):
            assert Path(self.log).read_text() == ""


class Two:
    def __init__(self, pair: Pair, folder: str) -> None:
        self.pair = pair
        self.a, self.b = Worker(pair.a, folder), Worker(pair.b, folder)
        self.a.introduce(pair.b)
        self.b.introduce(pair.a)
        for host, desired in ((pair.a, pair.desired_a), (pair.b, pair.desired_b)):
            wanted = via(replace(desired, segment=replace(desired.segment, vxlan_port=None)), SLEEVE)
            assert host.publish(wanted).faults == ()

    def start(self) -> None:
        self.a.start()
        self.b.start()
        self.wait()

    def reach(self) -> bool:
        """Whether a ping is answered within a tenth of a second."""
        return self.pair.ca.run("ping", "-n", "-q", "-c", "1", "-W", "0.1", "10.32.2.1", check=False).count(" 0% ") == 1

    def wait(self, timeout_s: float = 5.0) -> float:
        return until(self.reach, timeout_s)


@pytest.fixture
def two(pair: Pair) -> Iterator[Two]:
    with tempfile.TemporaryDirectory(prefix="wt-") as folder:
        made = Two(pair, folder)
        try:
            yield made
        finally:
            try:
                made.a.end()
            finally:
                made.b.end()


@contextmanager
def program(space: Space, source: str) -> Iterator[subprocess.Popen[str]]:
    command = ["nsenter", f"--net={space.path}", sys.executable, "-c", source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def transfer(two: Two, size: int = BULK_BYTES) -> None:
    """A stream of TCP that arrives as it was sent."""
    with program(two.pair.cb, RECEIVE) as receiver:
        two.pair.ca.run(sys.executable, "-c", SEND.format(size=size))
        digest, _ = receiver.communicate(timeout=60)
    assert digest.strip() == hashlib.sha256(Random(7).randbytes(size)).hexdigest()


def converse(two: Two) -> None:
    """Datagrams of all sizes, there and back."""
    with program(two.pair.cb, ECHO):
        assert two.pair.ca.run(sys.executable, "-c", ASK.format(sizes=ODD_SIZES)) == "all\n"


@pytest.mark.parametrize(
    "off", [(), *((each,) for each in control.OFFLOADS), control.OFFLOADS], ids=lambda off: "+".join(off) or "none"
)
def test_everything_arrives_as_it_was_sent_whatever_offload_is_off(two: Two, off: tuple[str, ...]) -> None:
    two.a.off = two.b.off = off
    two.start()
    assert two.pair.cb.ping("10.32.1.1") and two.pair.ca.ping("fd00:32::2:1")
    assert two.pair.ca.ping("10.32.2.1", "-s", "1422") and two.pair.ca.ping("10.32.2.1", "-s", "9000")
    transfer(two)
    converse(two)
    status = two.a.peer()
    assert (status.state, status.encrypted, status.address) == (control.UP, True, f"10.9.0.2:{PORT}")
    assert status.rtt_ms is not None
    assert (control.UDP_SEGMENT in status.offloads_off) == (control.UDP_SEGMENT in off)


def test_ends_with_and_without_offloads_understand_each_other(two: Two) -> None:
    two.b.off = control.OFFLOADS
    two.start()
    transfer(two)
    converse(two)


@pytest.mark.parametrize("psks", [(SECRET,), ()], ids=["sealed", "clear"])
def test_streams_arrive_as_they_were_sent_where_datagrams_are_lost(two: Two, psks: tuple[bytes, ...]) -> None:
    two.a.psks = two.b.psks = psks
    two.start()
    for host in (two.pair.a, two.pair.b):
        host.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "off", "gso", "off")  # each datagram by itself
        host.run("nft", "add", "table", "inet", "bad")
        host.run("nft", "add", "chain", "inet", "bad", "in", "{ type filter hook input priority 0; }")
        host.run("nft", "add", "rule", "inet", "bad", "in", "udp", "dport", str(PORT), "numgen random mod 100 < 2 drop")
    transfer(two, 5_000_000)
    assert two.a.peer().parity > 0


def test_an_underlay_that_becomes_narrow_is_got_over(two: Two) -> None:
    two.pair.a.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "off", "gso", "off")
    two.start()
    until(lambda: two.pair.ca.ping("10.32.2.1", "-s", "1400"), 5.0)
    assert two.a.peer().rtt_ms is not None  # by now full datagrams are proven
    assert two.pair.lab.hub is not None
    two.pair.lab.hub.run("ip", "link", "set", "h2", "mtu", "1300")  # the hub swallows without a word what is larger
    until(lambda: two.pair.ca.ping("10.32.2.1", "-s", "1400"), NOTICED_S)


def test_traffic_is_back_at_once_after_a_worker_was_killed(two: Two) -> None:
    two.start()
    for worker in (two.a, two.b):
        worker.kill()
        assert not two.reach()
        worker.start()
        assert two.wait() < BACK_S
        transfer(two, 1_000_000)


def test_a_daemon_may_come_again_with_the_same_configuration_only(two: Two) -> None:
    two.start()
    two.a.connect()
    two.a.say(two.a.configuration(), *two.a.peers, control.Complete())
    assert two.a.peer().state == control.UP
    assert two.reach()
    two.a.connect()
    two.a.say(replace(two.a.configuration(), psks=(OTHER,)))
    said = two.a.next()
    while isinstance(said, control.Status):
        said = two.a.next()
    assert isinstance(said, control.Refused) and said.code == "other-configuration"
    with pytest.raises(EOFError):
        two.a.next()
    assert two.a.process is not None and two.a.process.wait(2) == 0
    assert not os.path.exists(two.a.path)


def test_a_peer_that_a_new_daemon_does_not_name_is_forgotten(two: Two) -> None:
    two.start()
    two.a.connect()
    two.a.say(two.a.configuration(), control.Complete())
    assert two.a.status().peers == ()
    assert not two.reach()


def test_stop_ends_the_worker_and_leaves_the_tap(two: Two) -> None:
    two.start()
    two.a.say(control.Stop())
    assert two.a.process is not None and two.a.process.wait(2) == 0
    assert not os.path.exists(two.a.path)
    assert "weft-tap" in two.pair.a.links()
    assert not two.reach()


def test_a_port_that_is_taken_is_named_in_one_line(two: Two) -> None:
    def hold() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", PORT))
        return made

    with two.pair.a.inside(hold):
        two.a.start()
        said = two.a.next()
    assert isinstance(said, control.Refused) and said.code == "port-in-use"
    assert str(PORT) in said.text and "\n" not in said.text


def test_garbage_on_the_control_socket_ends_the_connection_and_nothing_else(two: Two) -> None:
    two.start()
    assert two.a.connection is not None
    two.a.connection.sendall(b"\xff" * 100)
    with pytest.raises(EOFError):
        while True:
            two.a.next()
    assert two.reach()


def test_the_tap_may_be_deleted_with_and_without_a_daemon(two: Two) -> None:
    two.start()
    for _ in range(3):
        two.pair.a.run("ip", "link", "delete", "weft-tap")  # the engine makes it anew
        assert two.wait() < 3.0
    assert two.a.connection is not None
    two.a.connection.close()
    two.a.connection = None
    for _ in range(3):
        two.pair.a.run("ip", "link", "delete", "weft-tap")
        assert two.wait() < 3.0


def test_another_secret_is_said_so_and_lets_nothing_through(two: Two) -> None:
    two.b.psks = (OTHER,)
    two.a.start()
    two.b.start()
    assert not two.reach()
    until(lambda: two.reach() or two.a.peer().state == control.WRONG_SECRET, 5.0)
    assert not two.reach()


def test_secrets_change_one_host_after_the_other(two: Two) -> None:
    two.a.psks, two.b.psks = (SECRET, OTHER), (OTHER, SECRET)
    two.start()
    assert two.pair.cb.ping("10.32.1.1")
    two.b.kill()
    two.b.psks = (OTHER,)
    two.b.start()
    assert two.wait() < 2.0
    assert two.pair.cb.ping("10.32.1.1")


def test_the_underlay_may_be_ipv6(two: Two) -> None:
    for host in (two.pair.a, two.pair.b):
        host.run("ip", "address", "add", f"fd09::{host.number}/64", "dev", "eth0", "nodad")
    two.a.introduce(two.pair.b, "fd09::2")
    two.b.introduce(two.pair.a, "fd09::1")
    two.start()
    assert two.a.peer().address == f"[fd09::2]:{PORT}"
    transfer(two)
    converse(two)


@pytest.mark.parametrize("psks", [(SECRET,), ()], ids=["sealed", "clear"])
def test_nothing_that_is_sealed_can_be_read_on_the_way(two: Two, psks: tuple[bytes, ...], tmp_path: Path) -> None:
    """In clear it can, which shows that the capture sees what there is to see."""
    two.a.psks = two.b.psks = psks
    two.start()
    assert two.a.peer().encrypted == bool(psks)
    capture = tmp_path / "capture"
    command = ["nsenter", f"--net={two.pair.a.path}", "tcpdump", "-i", "eth0", "-U", "-Z", "root", "-w", str(capture)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tcpdump:
        try:
            until(capture.exists, 5.0)  # it is made once the device is open
            two.pair.ca.run(sys.executable, "-c", SAY.format(marker=MARKER))
            until(lambda: capture.stat().st_size > 20 * 40 * len(MARKER), 5.0)
        finally:
            tcpdump.terminate()
            tcpdump.wait(5)
    assert (MARKER in capture.read_bytes()) == (not psks)
