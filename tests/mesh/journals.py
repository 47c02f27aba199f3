"""Journals for tests: some batches, what they come to, and the file written and read by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mesh.journalfile import JournalFile, encode

Changes = Mapping[bytes, bytes | None]

BATCHES: list[Changes] = [
    {b"a": b"1", b"b": b"22"},
    {b"a": None, b"c": b""},
    {b"": b"empty key", b"b": b"\xff" * 30},
    {b"c": b"3" * 9, b"never there": None},
]
NAME = "ipam.journal"


def after(batches: list[Changes]) -> dict[bytes, bytes]:
    held: dict[bytes, bytes] = {}
    for changes in batches:
        for key, value in changes.items():
            held.pop(key, None)
            if value is not None:
                held[key] = value
    return held


PREFIXES = [after(BATCHES[:count]) for count in range(len(BATCHES) + 1)]


def held(directory: Path) -> dict[bytes, bytes]:
    """What the next daemon finds."""
    file = JournalFile(str(directory), "ipam")
    file.close()
    return file.contents


def write(directory: Path, batches: list[Changes]) -> bytes:
    """One record for each; the file as it is then."""
    file = JournalFile(str(directory), "ipam")
    for changes in batches:
        file.append(encode(changes))
    file.close()
    return (directory / NAME).read_bytes()
