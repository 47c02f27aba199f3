"""A Docker Engine on a unix socket that speaks the real one's bytes, has made-up containers, and misbehaves on request.

A thread for each connection, in the test's own process: what it is asked comes from daemons in other processes too.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

HEAD = (
    "HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nDocker-Experimental: false\r\n"
    "Ostype: linux\r\nServer: Docker/20.10.24 (linux)\r\nDate: Sat, 28 Nov 2026 00:39:03 GMT\r\n"
)
_clock = itertools.count(1795826343)


@dataclass(slots=True)
class Made:
    id: str
    name: str
    pid: int = 0


class FakeDocker:
    """Use as a context manager. Set `mode` to make it misbehave in every answer from then on."""

    MODES = ("", "silent", "garbage", "cut", "slow", "refuses", "stranger", "odd", "endless", "closed")

    def __init__(self, path: str) -> None:
        self.path = path
        self.mode = ""
        self.containers: dict[str, Made] = {}
        self.requests: list[str] = []
        self._lock = threading.Condition()
        self._streams: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> FakeDocker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The engine as a process.

    def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        listener.bind(self.path)
        listener.listen(64)
        self._listener = listener
        self._run(self._accept, listener)

    def stop(self) -> None:
        """It dies: every connection ends, and the socket file stays behind, as after `kill -9`."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in (*self._connections, *self._streams):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._streams.clear()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    # Its containers.

    def create(self, name: str, pid: int = 0) -> str:
        made = Made(hashlib.sha256(name.encode()).hexdigest(), name)
        self.containers[made.id] = made
        if pid:
            self.begin(name, pid)
        return made.id

    def begin(self, name: str, pid: int) -> None:
        """`docker start`."""
        made = self.find(name)
        made.pid = pid
        self._event(made, "start")

    def end(self, name: str) -> None:
        """`docker stop`, or its process has ended."""
        made = self.find(name)
        made.pid = 0
        self._event(made, "die")

    def remove(self, name: str) -> None:
        """`docker rm`."""
        made = self.find(name)
        del self.containers[made.id]
        self._event(made, "destroy")

    def find(self, name: str) -> Made:
        return next(made for made in self.containers.values() if made.name == name)

    @property
    def listeners(self) -> int:
        """Streams of events that are open."""
        return len(self._streams)

    def events(self, data: bytes) -> None:
        """Send these bytes, as a chunk, to whoever listens."""
        self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def _event(self, made: Made, action: str) -> None:
        moment = next(_clock)
        event = {
            "status": action, "id": made.id, "from": "lab:bb", "Type": "container", "Action": action,
            "Actor": {"ID": made.id, "Attributes": {"image": "lab:bb", "name": made.name}}, "scope": "local",
            "time": moment, "timeNano": moment * 10**9,
        }  # fmt: skip
        self.events(json.dumps(event).encode() + b"\n")

    def _send(self, data: bytes) -> None:
        with self._lock:
            for stream in list(self._streams):
                try:
                    stream.sendall(data)
                except OSError:
                    self._streams.remove(stream)

    # Its socket.

    def _run(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.append(connection)
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        keep = False
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = connection.recv(4096)
                if not more:
                    return
                data += more
            path = data.split(b" ", 2)[1].decode()
            self.requests.append(path)
            keep = self._answer(connection, urlsplit(path))
        except OSError:
            pass  # whoever asked has gone
        finally:
            with self._lock:
                self._connections.remove(connection)
                if not keep:
                    connection.close()

    def _answer(self, connection: socket.socket, url: Any) -> bool:
        """Whether the connection stays open."""
        if self.mode == "silent":
            connection.recv(4096)  # until the other end gives up, or we die
            return False
        if self.mode == "closed":
            return False
        if self.mode in ("garbage", "stranger", "refuses", "endless"):
            connection.sendall(b"".join(self._bad()))
            return False
        if url.path == "/events":
            filters = json.loads(parse_qs(url.query)["filters"][0])
            assert filters == {"type": ["container"], "event": ["start", "die", "destroy", "rename"]}
            with self._lock:  # whoever has read the head is sent what happens from then on
                connection.sendall((HEAD.format(status="200 OK") + "Transfer-Encoding: chunked\r\n\r\n").encode())
                self._streams.append(connection)
            return True
        status, body = self._inspect(unquote(url.path).removeprefix("/containers/").removesuffix("/json"))
        answer = self._framed(status, body)
        if self.mode == "cut":
            answer = answer[: len(answer) // 2]
        if self.mode == "slow":
            for byte in answer:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        connection.sendall(answer)
        return False

    def _bad(self) -> Iterator[bytes]:
        match self.mode:
            case "garbage":
                yield os.urandom(500) + b"\r\n\r\n"
            case "stranger":
                yield b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 13\r\n\r\n<html></html>"
            case "refuses":
                body = b'{"message":"the engine is shutting down"}\n'
                yield (HEAD.format(status="503 Service Unavailable") + f"Content-Length: {len(body)}\r\n\r\n").encode()
                yield body
            case "endless":
                yield (HEAD.format(status="200 OK") + "Transfer-Encoding: chunked\r\n\r\n").encode()
                yield (b"10000\r\n" + bytes(65536) + b"\r\n") * 100

    def _inspect(self, reference: str) -> tuple[str, Any]:
        exact = [made for made in self.containers.values() if made.name == reference]
        found = exact or [made for made in self.containers.values() if made.id.startswith(reference)]
        if len(found) != 1:
            return "404 Not Found", {"message": f"No such container: {reference}"}
        made = found[0]
        if self.mode == "odd":
            return "200 OK", [{"Id": made.id, "State": {"Pid": "4711"}}]
        running = made.pid > 0
        state = {"Status": "running" if running else "exited", "Running": running, "Pid": made.pid, "Health": None}
        # Padded to the size that a real one has, which is more than Docker sends in one piece.
        return "200 OK", {
            "Id": made.id, "Created": "2026-11-28T00:39:03.016216431Z", "Args": ["1000"], "State": state,
            "Name": f"/{made.name}", "HostConfig": {"NetworkMode": "none"}, "Unheard": {"Of": [None, 1.5, "é" * 4000]},
        }  # fmt: skip

    @staticmethod
    def _framed(status: str, body: Any) -> bytes:
        """As Go frames it: short bodies with their length, others in chunks."""
        text = json.dumps(body, ensure_ascii=False).encode() + b"\n"
        head = HEAD.format(status=status) + "Connection: close\r\n"
        if len(text) < 2048:
            return (head + f"Content-Length: {len(text)}\r\n\r\n").encode() + text
        parts = [text[at : at + 4096] for at in range(0, len(text), 4096)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunks + b"0\r\n\r\n"
