"""HTTP/1.1 as Docker speaks it to a plugin: the head of a request taken apart, an answer put together. Pure.

Sources: RFC 9112; Docker's plugin protocol (docs.docker.com/engine/extend/plugin_api).
"""

from __future__ import annotations

import json
from typing import Any

from gossip.errors import ProtocolError

HEAD_MAX_BYTES = 16 * 1024
BODY_MAX_BYTES = 1024 * 1024
END_OF_HEAD = b"\r\n\r\n"


def head_untrusted(head: bytes) -> tuple[str, int]:
    """The method called (`NetworkDriver.Join`) and the length of the body. Raises `ProtocolError`."""
    first, *lines = head.removesuffix(END_OF_HEAD).split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[0] != b"POST" or not words[1].startswith(b"/") or not words[2].startswith(b"HTTP/1."):
        raise ProtocolError("no-post", "what a plugin is asked is a POST of HTTP/1.1")
    fields = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ProtocolError("bad-field", "a line of the head is no field")
        fields[name.strip().lower()] = value.strip()
    if b"transfer-encoding" in fields:
        raise ProtocolError("chunked", "a request is not expected in chunks")
    length = fields.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 9 or int(length) > BODY_MAX_BYTES:
        raise ProtocolError("bad-length", f"a request has from 0 to {BODY_MAX_BYTES} bytes")
    return words[1][1:].decode("ascii", "replace"), int(length)


def body_untrusted(body: bytes) -> dict[str, Any]:
    """Empty counts as no fields. Raises `ProtocolError`."""
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        value = {} if body.strip() == b"null" else value
    if not isinstance(value, dict):
        raise ProtocolError("bad-body", "the request is not an object of JSON")
    return value


def answer(status: int, value: dict[str, Any], *, ends: bool = False) -> bytes:
    body = json.dumps(value).encode()
    word = {200: "OK", 400: "Bad Request", 404: "Not Found"}.get(status, "Error")
    head = f"HTTP/1.1 {status} {word}\r\nContent-Type: application/vnd.docker.plugins.v1.2+json\r\n"
    head += f"Content-Length: {len(body)}\r\n" + ("Connection: close\r\n" if ends else "")
    return head.encode() + b"\r\n" + body


def refusal(text: str) -> dict[str, Any]:
    """Network plugins say it in one field, address plugins in the other."""
    return {"Err": text, "Error": text}
