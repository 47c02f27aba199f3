"""What containers say in these tests: numbered datagrams, broadcasts, TCP and files, each told apart by its contents.

Runs inside a namespace, as a program of its own, and as the test's handle on it. Knows two tools' worth of sockets and
nothing of Weft. The one idea: whatever is said contains the marker that it was given, or follows from a seed, so what
is found on a wire or at the other end is known for what it is.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from mesh.lab import Lab

PORT = 7000
INTERVAL_S = 0.005
UDP_SEGMENT = 103
SEGMENT_BYTES = 1000
DATAGRAMS = (40, 1200, 9000)
"""Sizes of the datagrams that go with a file: small, within a packet, in fragments."""


class Chatter:
    """A program that talks or listens in a container, until `stop` gives what it has to say of it."""

    def __init__(self, lab: Lab, node: str, args: Sequence[str]) -> None:
        self._what = f"{args[0]} on {node}"
        self._process = lab.popen(node, [sys.executable, "-m", "tests.labs.chatter", *args])
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", self._process.communicate()[1]

    def __enter__(self) -> Chatter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def stop(self) -> Any:
        self._process.send_signal(signal.SIGTERM)
        return self.result(10)

    def result(self, timeout_s: float) -> Any:
        """What it says at its end, which it comes to by itself."""
        try:
            stdout, stderr = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"{self._what} did not end; {self._process.communicate()}") from None
        assert self._process.returncode == 0, f"{self._what}: {stderr}"
        return json.loads(stdout)


def talk(lab: Lab, node: str, marker: str, addresses: Sequence[str]) -> Chatter:
    """Numbered datagrams to each address, and TCP and pings to the first, without a pause."""
    return Chatter(lab, node, ["talk", marker, *addresses])


def listen(lab: Lab, node: str) -> Chatter:
    """Its end: by sender and marker, how often each number came."""
    return Chatter(lab, node, ["listen"])


def exchange(lab: Lab, source: str, sink: str, address: str, size: int, seed: int) -> tuple[Any, Any]:
    """A file by TCP there and back, and datagrams of many sizes: what was sent, and what came, as digests."""
    with (
        Chatter(lab, sink, ["take", str(size), str(seed)]) as taking,
        Chatter(lab, source, ["give", address, str(size), str(seed)]) as giving,
    ):
        return giving.result(30), taking.result(10)


# The program.


def _talk(marker: str, addresses: Sequence[str]) -> None:
    for way in (_talk_tcp, _talk_ping):
        threading.Thread(target=way, args=(marker, addresses[0]), daemon=True).start()
    sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
    sockets[socket.AF_INET].setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    number = 0
    while True:
        number += 1
        for address in addresses:
            to = sockets[socket.AF_INET6 if ":" in address else socket.AF_INET]
            with suppress(OSError):
                to.sendto(f"{marker}-udp {number} {address} ".encode() * 8, (address, PORT))
        time.sleep(INTERVAL_S)


def _talk_tcp(marker: str, address: str) -> None:
    said = f"{marker}-tcp ".encode() * 50
    while True:
        with suppress(OSError), socket.create_connection((address, PORT), timeout=2.0) as stream:
            while True:
                stream.sendall(said)
                time.sleep(INTERVAL_S)
        time.sleep(0.1)


def _talk_ping(marker: str, address: str) -> None:
    pattern = f"{marker}-ping".encode()[:16].hex()
    command = ["ping", "-n", "-q", "-i", "0.02", "-w", "2", "-p", pattern, address]  # soon over, if we are killed
    while True:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        time.sleep(0.1)


def _listen(counts: Counter[tuple[str, int]]) -> None:
    server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=_listen_tcp, args=(server, counts), daemon=True).start()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as each:
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.bind(("::", PORT))
        _ready()
        while True:
            said, _ = each.recvfrom(65536)
            marker, number, address = said.decode().split()[:3]
            counts[f"{marker} {address}", int(number)] += 1


def _listen_tcp(server: socket.socket, counts: Counter[tuple[str, int]]) -> None:
    while True:
        stream, _ = server.accept()
        threading.Thread(target=_drain, args=(stream, counts), daemon=True).start()


def _drain(stream: socket.socket, counts: Counter[tuple[str, int]]) -> None:
    with suppress(OSError), stream:
        while data := stream.recv(65536):
            counts["tcp", 0] += len(data)


def _tell(counts: Counter[tuple[str, int]]) -> None:
    told: dict[str, dict[int, int]] = {}
    for (what, number), times in list(counts.items()):
        told.setdefault(what, {})[number] = times
    print(json.dumps(told))


def _datagrams(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(size) for size in DATAGRAMS for _ in range(20)]


def _give(address: str, size: int, seed: int) -> None:
    """The file, then the datagrams; the file comes back over the same connection."""
    file = random.Random(seed).randbytes(size)
    _ready()
    with socket.create_connection((address, PORT), timeout=20.0) as stream:
        back = hashlib.sha256()
        reader = threading.Thread(target=lambda: _digest(stream, back, size))
        reader.start()
        stream.sendall(file)
        reader.join()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as to:
            for datagram in _datagrams(seed):
                to.sendto(datagram, (address, PORT))
                time.sleep(0.001)
            # One send that the kernel cuts, mostly as late as at the very end of the way.
            to.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT_BYTES)
            to.sendto(file[: 20 * SEGMENT_BYTES + 7], (address, PORT))
            time.sleep(0.2)
        stream.sendall(b".")
    print(json.dumps({"there": hashlib.sha256(file).hexdigest(), "back": back.hexdigest()}))


def _take(size: int, seed: int) -> None:
    file = random.Random(seed).randbytes(size)
    cut = file[: 20 * SEGMENT_BYTES + 7]
    wanted = {*_datagrams(seed), *(cut[start : start + SEGMENT_BYTES] for start in range(0, len(cut), SEGMENT_BYTES))}
    server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    came: list[bytes] = []
    threading.Thread(target=_take_datagrams, args=(came,), daemon=True).start()
    _ready()
    stream, _ = server.accept()
    stream.settimeout(20.0)
    there = hashlib.sha256()
    writer = threading.Thread(target=stream.sendall, args=(file,))
    writer.start()
    _digest(stream, there, size)
    writer.join()
    stream.recv(1)
    good = wanted.intersection(came)
    print(json.dumps({"there": there.hexdigest(), "missing": len(wanted - good), "strange": len(set(came) - wanted)}))


def _take_datagrams(came: list[bytes]) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as each:
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.bind(("::", PORT))
        while True:
            came.append(each.recv(65536))


def _digest(stream: socket.socket, digest: Any, size: int) -> None:
    while size and (data := stream.recv(min(size, 65536))):
        digest.update(data)
        size -= len(data)


def _ready() -> None:
    print("ready", flush=True)


def main(verb: str, *args: str) -> None:
    counts: Counter[tuple[str, int]] = Counter()

    def end(*_: object) -> None:
        _tell(counts)
        sys.stdout.flush()
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    if verb == "talk":
        _ready()
        _talk(args[0], args[1:])
    elif verb == "listen":
        _listen(counts)
    elif verb == "give":
        _give(args[0], int(args[1]), int(args[2]))
    elif verb == "take":
        _take(int(args[0]), int(args[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
