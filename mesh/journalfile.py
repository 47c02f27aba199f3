"""The file under a journal: records appended and synced, read again at a start, and written anew without what is old.

The one idea: a record counts whole or not at all, and only one can ever be incomplete, the last, because each is synced
before the next is begun. So a tail that is no record was never acknowledged and is cut off, while anything wrong that
a good record follows is damage, and refused with the file left as it is. Integers are big-endian:

    header    0        8        12           20       24
              | magic  | format | generation | CRC-32 |
    record    0        4        8        12
              | marker | length | CRC-32 | entries, `length` bytes in all, at least one |
    entry     0            4              8
              | key length | value length | key | value |      value length 2^32-1: the key is removed, no value

The generation is random and new with every file; its first four bytes are the marker, so a record can be looked for
behind damage, and none of another file, nor bytes that a value happens to hold, passes for one. The CRC of a record
covers its length and its entries, and begins with the generation and the record's place in the file.

Calls block until the disk has it. This module knows nothing of what keys and values mean, of threads or of who waits;
the directory is somebody else's to lock (`mesh.store`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from zlib import crc32

from mesh import directories
from mesh.logs import EventLog
from mesh.store import StoreError

FORMAT = 1
MAGIC = b"weftjrnl"
COMPACT_BYTES_MIN = 1024 * 1024
"""A file of less than this is never written anew."""
COMPACT_FACTOR = 2
"""Above this many times what is needed it is."""
RECORD_BYTES = 1024 * 1024
"""About as much goes into one record of a file written anew."""
ENTRIES_AT_ONCE = 256

Entry = tuple[bytes, bytes, bool]
"""A key, its entry as it stands in the file, and whether that gives it a value."""

_HEADER = struct.Struct("!8sI8s")
_CRC = struct.Struct("!I")
_RECORD = struct.Struct("!4sII")
_ENTRY = struct.Struct("!II")
_PLACE = struct.Struct("!8sQI")
_REMOVED = 0xFFFFFFFF
HEADER_BYTES = _HEADER.size + _CRC.size
RECORD_HEAD_BYTES = _RECORD.size

log = EventLog("journal")


def encode(changes: Mapping[bytes, bytes | None]) -> list[Entry]:
    """Changes as they will stand in the file; None removes a key."""
    return [
        (key, _ENTRY.pack(len(key), _REMOVED) + key, False)
        if value is None
        else (key, b"".join((_ENTRY.pack(len(key), len(value)), key, value)), True)
        for key, value in changes.items()
    ]


class JournalFile:
    """One journal on disk. `contents` is what it held when it was opened; `broken` says why nothing is taken any more.

    Not for two threads at once.
    """

    def __init__(self, directory: str, name: str) -> None:
        """Open or make it. Raises `StoreError`; the file is left as it is then."""
        assert name.replace("-", "").isalnum(), name
        self._name = name + directories.JOURNAL_SUFFIX
        self._pending = name + directories.JOURNAL_PENDING_SUFFIX
        self.path = os.path.join(directory, self._name)
        self.broken: str | None = None
        self._entries: dict[bytes, bytes] = {}
        """Every key that has a value, with its entry: what a file written anew is made of."""
        self._live_bytes = 0
        self._size = 0
        self._generation = b""
        self._compact_from = COMPACT_BYTES_MIN
        self._descriptor = -1
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise refused(self.path, error.strerror or str(error)) from None
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise refused(self.path, error.strerror or str(error)) from None
            raise
        self.contents = {key: entry[_ENTRY.size + len(key) :] for key, entry in self._entries.items()}

    def close(self) -> None:
        """Give the descriptors back; nothing is written any more."""
        self.broken = f"cannot save {self.path} (it is closed); start the daemon again"
        for descriptor in (self._descriptor, self._directory):
            if descriptor >= 0:
                with contextlib.suppress(OSError):  # what is acknowledged is synced
                    os.close(descriptor)
        self._descriptor = self._directory = -1

    # -- appending -----------------------------------------------------------------------------------

    def append(self, entries: list[Entry]) -> None:
        """One record with all of it, on the disk on return. Raises `StoreError`: then none of it is in the file, or,
        where that cannot be known, the journal is `broken`."""
        if self.broken is not None:
            raise StoreError(self.broken)
        record = _record(self._generation, self._size, b"".join([entry for _, entry, _ in entries]))
        try:
            _write_all(self._descriptor, record, self._size)
        except OSError as error:
            self._cut_back()
            raise self._not_saved(error) from None
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            # Pages that could not be written may count as clean from now on: another fsync would prove nothing.
            self._break(error)
            self._cut_back()
            raise self._not_saved(error) from None
        self._size += len(record)
        self._keep(entries)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self._break(error)

    def _keep(self, entries: Iterable[Entry]) -> None:
        for key, entry, has_value in entries:
            self._live_bytes -= len(self._entries.pop(key, b""))
            if has_value:
                self._entries[key] = entry
                self._live_bytes += len(entry)

    def _break(self, error: OSError) -> None:
        if self.broken is None:
            self.broken = (
                f"cannot save {self.path} any more ({error.strerror}); what was acknowledged is kept: check the disk, "
                "then start the daemon again"
            )
            log.error("broken", path=self.path, error=error)

    def _not_saved(self, error: OSError) -> StoreError:
        if self.broken is not None:
            return StoreError(self.broken)
        return StoreError(
            f"cannot save {self.path} ({error.strerror}); what was there before is kept: free some space or check the "
            "disk, then try again"
        )

    # -- writing anew --------------------------------------------------------------------------------

    @property
    def is_wasteful(self) -> bool:
        """Is it time to write the file anew?"""
        return (
            self.broken is None
            and self._size > self._compact_from
            and self._size > COMPACT_FACTOR * (HEADER_BYTES + RECORD_HEAD_BYTES + self._live_bytes)
        )

    def compact(self) -> None:
        """Put a file in this one's place that holds what is live and nothing else. Where that fails, this one goes on;
        it is tried again when much more has been written."""
        if self.broken is not None:
            return
        try:
            self._replace()
            self._compact_from = COMPACT_BYTES_MIN
        except OSError as error:
            self._compact_from = self._size + COMPACT_BYTES_MIN
            with contextlib.suppress(OSError):
                os.unlink(self._pending, dir_fd=self._directory)
            log.warning("not-compacted", path=self.path, error=error)

    def _replace(self) -> None:
        """Raises `OSError` while the old file is still the one of this name. What fails later breaks the journal: after
        a power cut the old file could be back, without what would be appended to the new one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._pending, dir_fd=self._directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._pending, flags, 0o600, dir_fd=self._directory)
        try:
            generation = os.urandom(8)
            size = _write_all(descriptor, _header(generation), 0)
            for body in self._bodies():
                size += _write_all(descriptor, _record(generation, size, body), size)
            os.fsync(descriptor)
            os.rename(self._pending, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            os.close(descriptor)
            raise
        old, self._descriptor = self._descriptor, descriptor
        self._generation, self._size = generation, size
        try:
            os.fsync(self._directory)
        except OSError as error:
            self._break(error)
        if old >= 0:
            with contextlib.suppress(OSError):
                os.close(old)

    def _bodies(self) -> Iterator[bytes]:
        """All live entries, about `RECORD_BYTES` at a time."""
        entries = iter(self._entries.values())
        parts: list[bytes] = []
        size = 0
        while part := b"".join(islice(entries, ENTRIES_AT_ONCE)):
            parts.append(part)
            size += len(part)
            if size >= RECORD_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
        if parts:
            yield b"".join(parts)

    # -- reading -------------------------------------------------------------------------------------

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # what a crash left half written
            os.unlink(self._pending, dir_fd=self._directory)
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(self._name, flags, dir_fd=self._directory)
        except FileNotFoundError:
            self._make()
            return
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise refused(self.path, "it is not a file")
        content = _read_all(self._descriptor)
        start = MAGIC + _CRC.pack(FORMAT)
        if len(content) < HEADER_BYTES and content[: len(start)] == start[: len(content)]:
            self._make()
            return
        self._generation = _generation(content, self.path)
        self._size = HEADER_BYTES
        while (body := _body(content, self._generation, self._size)) is not None:
            self._keep(_entries(body, self.path))
            self._size += RECORD_HEAD_BYTES + len(body)
        if self._size < len(content):
            if _has_record(content, self._generation, self._size):
                raise refused(self.path, f"it is damaged at byte {self._size}, before its last record")
            log.warning("tail-cut-off", path=self.path, bytes=len(content) - self._size)
            os.ftruncate(self._descriptor, self._size)
        # Whoever wrote this may have been killed before an fsync: what is built upon from now on must be on the disk.
        os.fsync(self._descriptor)
        os.fsync(self._directory)

    def _make(self) -> None:
        """The first file, empty. It comes by a rename as later ones do, and so is never there without its header."""
        try:
            self._replace()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._pending, dir_fd=self._directory)
            raise self._not_saved(error) from None
        if self.broken is not None:
            raise StoreError(self.broken)


def refused(path: str, cause: str) -> StoreError:
    """What is there cannot be used, and was not touched."""
    return StoreError(
        f"cannot use {path} ({cause}); it was left as it is: run `weft reset`, which gives this host a new identity "
        "(an older copy of the file would not know what was given since)"
    )


def _header(generation: bytes) -> bytes:
    start = _HEADER.pack(MAGIC, FORMAT, generation)
    return start + _CRC.pack(crc32(start))


def _generation(content: bytes, path: str) -> bytes:
    if len(content) < _HEADER.size or content[: len(MAGIC)] != MAGIC:
        raise refused(path, "it is not a journal of Weft")
    _, number, generation = _HEADER.unpack_from(content)
    if number > FORMAT:
        raise StoreError(
            f"{path} was written by a newer Weft (format {number}, this one reads {FORMAT}); it was left as it is: "
            "install that version, or run `weft reset`, which gives this host a new identity"
        )
    if content[:HEADER_BYTES] != _header(generation):
        raise refused(path, "its first bytes are damaged")
    return bytes(generation)


def _crc(generation: bytes, offset: int, body: bytes | memoryview) -> int:
    return crc32(body, crc32(_PLACE.pack(generation, offset, len(body))))


def _record(generation: bytes, offset: int, body: bytes) -> bytes:
    return _RECORD.pack(generation[:4], len(body), _crc(generation, offset, body)) + body


def _body(content: bytes, generation: bytes, offset: int) -> bytes | None:
    """The entries of the record at `offset`, or None where there is none."""
    start = offset + RECORD_HEAD_BYTES
    if start > len(content):
        return None
    marker, length, crc = _RECORD.unpack_from(content, offset)
    if marker != generation[:4] or not 0 < length <= len(content) - start:
        return None
    body = memoryview(content)[start : start + length]
    return bytes(body) if crc == _crc(generation, offset, body) else None


def _has_record(content: bytes, generation: bytes, offset: int) -> bool:
    """Is there a good record anywhere behind `offset`?"""
    while (offset := content.find(generation[:4], offset + 1)) >= 0:
        if _body(content, generation, offset) is not None:
            return True
    return False


def _entries(body: bytes, path: str) -> Iterator[Entry]:
    """What a record of ours says. Its CRC fits, so anything wrong in it was written that way."""
    offset = 0
    while offset < len(body):
        key_length, value_length = _ENTRY.unpack_from(body, offset) if len(body) - offset >= _ENTRY.size else (0, 0)
        has_value = value_length != _REMOVED
        end = offset + _ENTRY.size + key_length + (value_length if has_value else 0)
        if end > len(body):
            raise refused(path, "a record of it does not fit together")
        key = body[offset + _ENTRY.size : offset + _ENTRY.size + key_length]
        yield key, body[offset:end], has_value
        offset = end


def _read_all(descriptor: int) -> bytes:
    parts = []
    size = 0
    while part := os.pread(descriptor, 1 << 20, size):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _write_all(descriptor: int, content: bytes, offset: int) -> int:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
    return len(content)
