"""Durable small state: a few named JSON documents that survive crashes and power cuts.

A document is replaced whole: written beside the old one, synced, renamed over it, and the directory synced, so that
at every instant either the old one or the new one is there. Around the payload stand a format number and a checksum:

    {"format": 1, "sha256": "<hex of the canonical payload>", "payload": {...}}

What cannot be read for certain is refused and left as it is, never replaced: it may hold the host's identity. Calls
block until the disk has it; the store knows nothing of what is in a payload, and nothing of threads or time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import Any, NoReturn

from mesh import directories
from mesh.errors import UserError

FORMAT = 1
DOCUMENT_BYTES_MAX = 16 * 1024 * 1024


ROOM_MIN_BYTES = 32 * 1024


class StoreError(UserError):
    """State that cannot be read or written: the file, the cause, what to do."""


class Store:
    """The state directory while a daemon has it, locked against a second one. Names are short words: `identity`."""

    def __init__(self, directory: str) -> None:
        """Make the directory if need be and lock it. Raises `directories.DirectoryError`."""
        directories.private_directory(directory)
        self._lock: int | None = directories.lock_directory(directory, purpose="state")
        self.directory = directory

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory free for another daemon."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_room(self) -> None:
        """Raises `StoreError` where the next document may not fit, before there is one to write."""
        try:
            found = os.statvfs(self.directory)
        except OSError as error:
            raise StoreError(f"cannot look at {self.directory} ({error.strerror})") from None
        room = found.f_bfree * found.f_frsize
        if found.f_blocks and room < ROOM_MIN_BYTES:  # without blocks it has no limit
            raise StoreError(f"the disk of {self.directory} is full ({room} bytes are free): free some space")

    def path(self, name: str) -> str:
        assert name.replace("-", "").isalnum(), name
        return os.path.join(self.directory, name + directories.STATE_SUFFIX)

    def read(self, name: str) -> dict[str, Any] | None:
        """The document, or None where it was never written. Raises `StoreError` where it cannot be trusted."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                content = file.read(DOCUMENT_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from None
        return _decode(content, path)

    def write(self, name: str, payload: dict[str, Any]) -> None:
        """Replace the document and return when it is on the disk. Raises `StoreError`; the old one is kept then."""
        assert self._lock is not None, "the store is closed"
        content = _encode(payload)
        assert len(content) <= DOCUMENT_BYTES_MAX, name
        path = self.path(name)
        pending = os.path.join(self.directory, name + directories.PENDING_SUFFIX)
        try:
            _write_synced(pending, content)
            os.rename(pending, path)
            # The rename itself is only durable when the directory is. The lock's descriptor is the directory.
            os.fsync(self._lock)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(pending)
            raise StoreError(
                f"cannot save {path} ({error.strerror}); what was there before is kept: free some space or check the "
                "disk, then try again"
            ) from None


def _write_synced(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(payload: object) -> bytes:
    """One spelling for one value, whoever formatted the file in between."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(payload: object) -> str:
    return hashlib.sha256(_canonical(payload)).hexdigest()


def _encode(payload: dict[str, Any]) -> bytes:
    document = {"format": FORMAT, "sha256": _checksum(payload), "payload": payload}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def _decode(content: bytes, path: str) -> dict[str, Any]:
    if len(content) > DOCUMENT_BYTES_MAX:
        raise _refused(path, f"it is larger than {DOCUMENT_BYTES_MAX} bytes")
    try:
        document = json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _refused(path, "it is not a complete JSON document") from None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise _refused(path, "it is not a document of Weft")
    if document["format"] > FORMAT:
        raise StoreError(
            f"{path} was written by a newer Weft (format {document['format']}, this one reads {FORMAT}); it was left "
            "as it is: install that version, or run `weft reset`, which gives this host a new identity"
        )
    payload = document.get("payload")
    if not isinstance(payload, dict) or document["format"] != FORMAT or document.get("sha256") != _checksum(payload):
        raise _refused(path, "its checksum does not fit its content")
    return payload


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refused(path: str, cause: str) -> StoreError:
    return StoreError(
        f"cannot use {path} ({cause}); it was left as it is: restore it from a backup, or run `weft reset`, "
        "which gives this host a new identity"
    )
