"""Stands in for the sleeve worker: the same socket, the same manners, and neither TAP nor keys.

Run as `python fake_worker.py SOCKET`. Everything it is told is a line in `SOCKET.heard`, with its process id; how it
misbehaves is in the environment variable FAKE_WORKER: `dies` at once, is `mute`, `refuses`, speaks `garbage`, `stays`
when told to end.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from dataclasses import replace

from dataplane.sleeve import control
from dataplane.sleeve.control import (
    Complete,
    Configure,
    Forget,
    Macs,
    Message,
    Peer,
    PeerStatus,
    Refused,
    Status,
    Stop,
)

STATUS_INTERVAL_S = 0.2


class Worker:
    def __init__(self, path: str) -> None:
        self.manner = os.environ.get("FAKE_WORKER", "")
        self.configuration: Configure | None = None
        self.peers: dict[bytes, Peer] = {}
        self.unsure: set[bytes] = set()
        """Known from an earlier life of the daemon, and not confirmed by this one."""
        self.heard = open(path + ".heard", "a", buffering=1)  # noqa: SIM115
        umask = os.umask(0o177)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        os.umask(umask)
        self.listener.listen()
        self.is_tired = False
        signal.signal(signal.SIGUSR1, self.tire)

    def tire(self, *_: object) -> None:
        """End the connection at the next opportunity, and serve the next one."""
        self.is_tired = True

    def write(self, text: str) -> None:
        self.heard.write(f"{os.getpid()} {text}\n")

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                self.converse(connection)

    def converse(self, connection: socket.socket) -> None:
        decoder = control.Decoder()
        self.unsure = set(self.peers)
        is_known = False
        while True:
            readable, _, _ = select.select([connection], [], [], STATUS_INTERVAL_S)
            if self.is_tired:
                self.is_tired = False
                return
            try:
                data = connection.recv(65536) if readable else None
                if data == b"":
                    return
                for message in decoder.feed(data or b""):
                    is_known |= isinstance(message, Configure)
                    self.take(connection, message)
                if is_known and self.manner not in ("mute", "garbage"):
                    connection.sendall(control.encode(self.status()))
            except ConnectionError:
                return

    def take(self, connection: socket.socket, message: Message) -> None:
        match message:
            case Configure():
                self.configure(connection, message)
            case Peer(name=name):
                self.peers[name] = message
                self.unsure.discard(name)
                self.write(f"peer {name.hex()} flood={message.flood} macs={_listed(message.macs)}")
            case Macs(name, came, went):
                known = self.peers[name]
                self.peers[name] = replace(known, macs=tuple(sorted({*known.macs, *came} - {*went})))
                self.write(f"macs {name.hex()} came={_listed(came)} went={_listed(went)}")
            case Forget(name):
                self.peers.pop(name, None)
                self.write(f"forget {name.hex()}")
            case Complete():
                for name in self.unsure:
                    self.peers.pop(name, None)
                self.write("complete")
            case Stop():
                self.write("stop")
                if self.manner != "stays":
                    sys.exit(0)

    def configure(self, connection: socket.socket, message: Configure) -> None:
        if self.manner == "refuses":
            connection.sendall(control.encode(Refused("port-in-use", "UDP port 6783 is in use by another program")))
            sys.exit(1)
        if self.manner == "garbage":
            connection.sendall(b"\x00\x00\x00\x02\xc1\xc1")
        known = self.configuration
        if known is not None and replace(known, epoch=message.epoch) != message:
            self.write("refused")
            connection.sendall(control.encode(Refused("other-configuration", "it serves another configuration")))
            if self.manner != "stays":
                sys.exit(0)
            return
        if known is None:
            self.configuration = message
        self.write(f"configure epoch={message.epoch} psks={len(message.psks)} port={message.port}")

    def status(self) -> Status:
        rows = tuple(
            PeerStatus(
                name, control.UP, "10.9.0.3:6783", True, "aes-256-gcm", time.monotonic(), 0.25, 0.001, 40, 1, ()
            )
            for name in self.peers
        )  # fmt: skip
        return Status(os.getpid(), rows, {"records_out": 7})


def _listed(macs: tuple[bytes, ...]) -> str:
    return ",".join(mac.hex() for mac in macs)


if __name__ == "__main__":
    if os.environ.get("FAKE_WORKER") == "dies":
        sys.exit(3)
    Worker(sys.argv[-1]).serve()
