"""A disk that fails at the n-th operation, or stops there for good, and knows what a power cut would leave of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Crash(BaseException):
    """The machine stopped here."""


class FaultyOs:
    """`os`, in which the n-th operation fails; after a crash nothing works any more. A write that fails has written
    half. Knows what would still be there after a power cut: what was synced, under the names that were."""

    WATCHED = ("open", "pwrite", "fsync", "ftruncate", "rename", "unlink")

    def __init__(self, fail_at: int, failure: BaseException, *, only: str = "") -> None:
        self.calls: list[str] = []
        self.failed: str | None = None
        self.names: dict[str, int] = {}
        self.synced: dict[int, bytes] = {}
        self._fail_at = fail_at
        self._failure = failure
        self._only = only

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._watched(name, real) if name in self.WATCHED else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **more: Any) -> Any:
            if not self._only or name == self._only:
                self.calls.append(name)
                if len(self.calls) == self._fail_at:
                    self.failed = name
                    if name == "pwrite":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                    raise self._failure
            if self.failed and isinstance(self._failure, Crash):
                raise self._failure
            if name == "pwrite":  # a disk may take less than it was given
                arguments = (arguments[0], arguments[1][:1000], arguments[2])
            result = real(*arguments, **more)
            if name == "fsync":
                self._sync(arguments[0])
            return result

        return operation

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.names = {name: os.stat(name, dir_fd=descriptor).st_ino for name in os.listdir(descriptor)}
        else:
            self.synced[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def next_run(self) -> FaultyOs:
        """The same disk under a process that nothing befalls."""
        again = FaultyOs(0, self._failure)
        again.names, again.synced = dict(self.names), dict(self.synced)
        return again

    def after_power_cut(self, directory: Path) -> Path:
        directory.mkdir()
        for name, number in self.names.items():
            (directory / name).write_bytes(self.synced.get(number, b""))
        return directory


def failing(only: str, number: int, fail_at: int = 1) -> FaultyOs:
    """Only that operation fails, the n-th time it is called."""
    return FaultyOs(fail_at, OSError(number, os.strerror(number)), only=only)
