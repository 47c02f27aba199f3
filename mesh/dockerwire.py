"""What Docker's API says, taken out of the bytes of its socket: one HTTP/1.1 response as a machine, and its JSON.

The socket is local, and yet what answers there may be a proxy, an older or newer Docker, or no Docker: everything has a
limit, fields we do not know are passed over, and what cannot be understood raises `ProtocolError`. Knows nothing of
sockets and time. Sources: RFC 9112 (framing), Docker Engine API (`ContainerInspect`, `SystemEvents`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gossip.errors import ProtocolError

HEAD_MAX_BYTES = 16 * 1024
LINE_MAX_BYTES = 1024
"""Of a chunk's size and of a trailer."""
BODY_MAX_BYTES = 4 * 1024 * 1024
"""Of an answer that comes to an end; a container's is some 10 KB."""
EVENT_MAX_BYTES = 256 * 1024
"""An event brings the labels of its container along."""
_NO_BODY = (204, 304)
STRANDED = ('plugin "weft" not found', "no address could be given at once")
"""What Docker says of a container that it cannot start as we are not there, or not ready."""


@dataclass(frozen=True, slots=True)
class Container:
    """What we need to know of one."""

    id: str
    name: str
    pid: int
    """Its first process, 0 while it does not run."""


def request(path: str, method: str = "GET") -> bytes:
    """A question. Its connection is used once, so that an answer that was cut off leaves nothing behind."""
    empty = "Content-Length: 0\r\n" if method == "POST" else ""
    fields = f"Host: docker\r\nAccept: application/json\r\n{empty}Connection: close\r\n\r\n"
    return f"{method} {path} HTTP/1.1\r\n{fields}".encode()


def inspect_path(reference: str) -> str:
    return f"/containers/{quote(reference, safe='')}/json"


def networks_path(driver: str) -> str:
    return "/networks?filters=" + quote(json.dumps({"driver": [driver]}, separators=(",", ":")), safe="")


def ended_path() -> str:
    """The containers that do not run."""
    return "/containers/json?all=1&filters=" + quote(json.dumps({"status": ["exited", "created"]}), safe="")


def start_path(container: str) -> str:
    return f"/containers/{quote(container, safe='')}/start"


def network_path(reference: str) -> str:
    return f"/networks/{quote(reference, safe='')}"


def events_path() -> str:
    """The events after which a container's namespace is another one, or none."""
    filters = {"type": ["container"], "event": ["start", "die", "destroy", "rename"]}
    return "/events?filters=" + quote(json.dumps(filters, separators=(",", ":")), safe="")


class Response:
    """One response: bytes in, bytes of the body out."""

    def __init__(self) -> None:
        self.status: int | None = None
        """None until the head is in."""
        self.ended = False
        self._buffer = bytearray()
        self._left: int | None = None
        """Bytes of the body, or of the chunk, that are still to come. None: until the connection ends."""
        self._chunked = False
        self._state = self._head

    def feed_untrusted(self, data: bytes) -> bytes:
        """What of the body came with `data`. Raises `ProtocolError`."""
        self._buffer += data
        body = bytearray()
        while not self.ended and self._state(body):
            pass
        return bytes(body)

    def finish_untrusted(self) -> None:
        """The connection has ended. Raises `ProtocolError` where the response had not."""
        if self.ended or (self.status is not None and not self._chunked and self._left is None):
            self.ended = True
            return
        raise ProtocolError("docker-cut-off", "the answer was cut off")

    # One method a state: whether it got on, and so whether another may.

    def _head(self, body: bytearray) -> bool:
        head = self._take_until(b"\r\n\r\n", HEAD_MAX_BYTES)
        if head is None:
            return False
        status_line, *lines = head.split(b"\r\n")
        words = status_line.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
            raise ProtocolError("docker-not-http", "the answer is not HTTP")
        status = int(words[1])
        if status < 200:  # a word in between; the response follows
            return True
        self.status = status
        fields = dict(self._field(line) for line in lines)
        if status in _NO_BODY:
            self.ended = True
        elif fields.get(b"transfer-encoding", b"identity") != b"identity":
            if fields[b"transfer-encoding"] != b"chunked":
                raise ProtocolError("docker-encoding", "the answer is encoded in an unknown way")
            self._chunked = True
            self._state = self._chunk_size
        else:
            length = fields.get(b"content-length")
            if length is not None:
                self._left = self._number(length, 10)
            self._state = self._body
        return True

    def _body(self, body: bytearray) -> bool:
        if self._left is None:
            body += self._buffer
            self._buffer.clear()
            return False
        self._take_some(body)
        self.ended = self._left == 0
        return False

    def _chunk_size(self, body: bytearray) -> bool:
        line = self._take_until(b"\r\n", LINE_MAX_BYTES)
        if line is None:
            return False
        self._left = self._number(line.partition(b";")[0].strip(b" \t"), 16)
        self._state = self._chunk if self._left else self._trailer
        return True

    def _chunk(self, body: bytearray) -> bool:
        self._take_some(body)
        if self._left:
            return False
        self._state = self._chunk_end
        return True

    def _chunk_end(self, body: bytearray) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise ProtocolError("docker-framing", "the answer's chunks do not fit together")
        del self._buffer[:2]
        self._state = self._chunk_size
        return True

    def _trailer(self, body: bytearray) -> bool:
        line = self._take_until(b"\r\n", LINE_MAX_BYTES)
        if line is None:
            return False
        self.ended = not line
        return True

    # Small things.

    def _take_until(self, mark: bytes, most: int) -> bytes | None:
        at = self._buffer.find(mark, 0, most + len(mark))
        if at < 0:
            if len(self._buffer) >= most + len(mark):
                raise ProtocolError("docker-too-long", "a line of the answer does not end")
            return None
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found

    def _take_some(self, body: bytearray) -> None:
        assert self._left is not None
        part = self._buffer[: self._left]
        del self._buffer[: len(part)]
        self._left -= len(part)
        body += part

    @staticmethod
    def _field(line: bytes) -> tuple[bytes, bytes]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ProtocolError("docker-not-http", "the answer's head is not HTTP")
        return name.strip().lower(), value.strip().lower()

    @staticmethod
    def _number(text: bytes, base: int) -> int:
        digits = b"0123456789" if base == 10 else b"0123456789abcdefABCDEF"
        if not text or len(text) > 15 or text.strip(digits):
            raise ProtocolError("docker-framing", "the answer does not say how long it is")
        return int(text, base)


class Events:
    """The stream of events: bytes of the body in, ids of the containers that something happened to out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed_untrusted(self, data: bytes) -> frozenset[str]:
        """Raises `ProtocolError`."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > EVENT_MAX_BYTES:
            raise ProtocolError("docker-too-long", "an event does not end")
        events = [_object_untrusted(bytes(line)) for line in lines if line.strip()]
        return frozenset(filter(None, map(_container_of, events)))


def container_untrusted(body: bytes) -> Container:
    """The answer to `inspect_path`. Raises `ProtocolError`."""
    found = _object_untrusted(body)
    state = found.get("State")
    name, pid = found.get("Name"), state.get("Pid") if isinstance(state, dict) else None
    if not is_id(found.get("Id")) or not isinstance(name, str) or type(pid) is not int or pid < 0:
        raise ProtocolError("docker-unknown-form", "the answer does not describe a container")
    return Container(found["Id"], name.removeprefix("/"), pid)


def is_stranded_untrusted(body: bytes) -> bool:
    """Whether Docker was to keep a container running, and could not start it since our plugin was not there, or could
    not give it an address yet. Raises `ProtocolError`."""
    shown = _object_untrusted(body)
    state, config = shown.get("State"), shown.get("HostConfig")
    policy = config.get("RestartPolicy") if isinstance(config, dict) else None
    kept = isinstance(policy, dict) and policy.get("Name") in ("always", "unless-stopped")
    said = str(state.get("Error")) if isinstance(state, dict) else ""
    return kept and any(text in said for text in STRANDED)


def ids_untrusted(body: bytes) -> frozenset[str]:
    """Those of a list of networks or containers. Raises `ProtocolError`."""
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProtocolError("docker-no-list", "what should be a list is none")
    return frozenset(row["Id"] for row in rows if is_id(row.get("Id")))


def members_untrusted(body: bytes) -> dict[str, tuple[str, str]]:
    """Who is on a network: by endpoint, the container's id and its name. Raises `ProtocolError`."""
    rows = _object_untrusted(body).get("Containers") or {}
    if not isinstance(rows, dict):
        raise ProtocolError("docker-no-members", "the containers of a network are no object")
    found = {}
    for container, row in rows.items():
        endpoint = row.get("EndpointID") if isinstance(row, dict) else None
        if is_id(container) and is_id(endpoint) and isinstance(row.get("Name"), str):
            found[str(endpoint)] = (container, row["Name"])
    return found


def aliases_untrusted(body: bytes, endpoint: str) -> tuple[str, ...]:
    """Those of a container on one network; the beginning of its own id, which Docker adds, is none. Raises
    `ProtocolError`."""
    shown = _object_untrusted(body)
    settings = shown.get("NetworkSettings")
    networks = settings.get("Networks") if isinstance(settings, dict) else None
    for row in networks.values() if isinstance(networks, dict) else ():
        if isinstance(row, dict) and row.get("EndpointID") == endpoint:
            found = [each for each in row.get("Aliases") or [] if isinstance(each, str)]
            return tuple(each for each in found if not str(shown.get("Id")).startswith(each))
    return ()


def message_untrusted(body: bytes) -> str | None:
    """What Docker says is wrong; None where it is not Docker that speaks."""
    try:
        message = _object_untrusted(body).get("message")
    except ProtocolError:
        return None
    if not isinstance(message, str):
        return None
    return "".join(char if char.isprintable() else " " for char in message)[:LINE_MAX_BYTES]


def is_id(text: Any) -> bool:
    """Whether it is the whole id of a container."""
    return isinstance(text, str) and len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def _container_of(event: dict[str, Any]) -> str | None:
    actor = event.get("Actor")
    found = actor.get("ID") if isinstance(actor, dict) else event.get("id")
    return found if is_id(found) else None


def _object_untrusted(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("docker-not-json", "the answer is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("docker-unknown-form", "the answer is not an object")
    return value
