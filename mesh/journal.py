"""A durable map of bytes to bytes whose every change costs what changed: many small commits, few waits for the disk.

The one idea is the group: while one record is being written and synced, whatever is handed in gathers, and all of it
goes out as the next record. A group is on disk whole or not at all, groups follow each other in the order in which
they were handed in, and only one thread ever touches the file:

    hand_in  a  b  c        d  e  f  g           h
    disk        [ a ]       [ b c d ]  [ e f g ]  ...          [ ] one write and one fsync

A refusal refuses everything handed in so far, the newest first: whoever undoes a change as its own refusal arrives goes
back the way it came, and what is on disk is always a beginning of what was handed in and not refused.

How it lies on disk is `mesh.journalfile`'s. What keys and values mean is not known here, nor what is in the map now:
the caller takes `contents` and keeps it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mesh.journalfile import Entry, JournalFile, encode
from mesh.logs import EventLog
from mesh.store import StoreError

BATCH_BYTES_MAX = 16 * 1024 * 1024
GROUP_BYTES = 1024 * 1024
"""A group that has so much takes no further batch."""

log = EventLog("journal")

_Batch = tuple[list[Entry], int, "asyncio.Future[None]"]
"""Its entries, their size, and who waits."""


class Journal:
    """One journal, while a daemon has it. `contents` is what was on disk when it was opened.

    journal = Journal.open(state_directory, "ipam"); await journal.commit({b"key": b"value", b"other": None})
    """

    def __init__(self, file: JournalFile) -> None:
        self.contents: dict[bytes, bytes] = file.contents
        self._file = file
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: deque[_Batch] = deque()
        self._is_busy = False
        """Is a group on its way, or about to be put together?"""
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @classmethod
    def open(cls, directory: str, name: str) -> Journal:
        """Read `NAME.journal` in a directory that is locked for us, or make it. Blocks. Raises `StoreError`."""
        return cls(JournalFile(directory, name))

    @property
    def broken(self) -> str | None:
        """Why nothing is taken until the daemon is started again, or None."""
        return self._file.broken

    async def commit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put all of `changes` on disk (None removes a key) and return when they are there. Raises `StoreError`.

        Handed in before the first wait: who is cancelled no longer hears of it, and it is written all the same."""
        await self.hand_in(changes)

    def hand_in(self, changes: Mapping[bytes, bytes | None]) -> asyncio.Future[None]:
        """As `commit`, to be awaited later or, where nobody needs to know, cancelled."""
        done = asyncio.get_running_loop().create_future()
        if self._is_closed:
            done.set_exception(StoreError(f"cannot save {self._file.path} (it is closed); start the daemon again"))
            return done
        entries = encode(changes)
        size = sum([len(entry) for _, entry, _ in entries])
        assert size <= BATCH_BYTES_MAX, f"a batch of {size} bytes"
        self._waiting.append((entries, size, done))
        if not self._is_busy:
            self._is_busy = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._next)  # what this turn of the loop still hands in comes along
        return done

    async def close(self) -> None:
        """Write what was handed in, then give the file free. Nothing is taken from now on."""
        self._is_closed = True
        await self._idle.wait()
        self._file.close()
        self._thread.shutdown()

    def _next(self) -> None:
        """Begin with the next group, or rest."""
        if not self._waiting:
            self._is_busy = False
            self._idle.set()
            return
        group = [self._waiting.popleft()]
        size = group[0][1]
        while self._waiting and size + self._waiting[0][1] <= GROUP_BYTES:
            group.append(self._waiting.popleft())
            size += group[-1][1]
        entries = [entry for batch, _, _ in group for entry in batch]
        if not entries and self._file.broken is None:
            self._acknowledge(group)
            return
        self._work(lambda: self._file.append(entries), lambda error: self._written(group, error))

    def _written(self, group: list[_Batch], error: BaseException | None) -> None:
        if error is None:
            self._acknowledge(group)
            return
        if not isinstance(error, StoreError):
            self._give_up(error)
        self._waiting.extendleft(reversed(group))
        while self._waiting:
            _, _, done = self._waiting.pop()
            if not done.done():
                done.set_exception(_alike(error))
        self._soon()

    def _acknowledge(self, group: list[_Batch]) -> None:
        for _, _, done in group:
            if not done.done():  # else its waiter was cancelled
                done.set_result(None)
        if self._file.is_wasteful:
            self._work(self._file.compact, self._compacted)
        else:
            self._soon()

    def _compacted(self, error: BaseException | None) -> None:
        if error is not None:
            self._give_up(error)
        self._soon()

    def _soon(self) -> None:
        """Whoever was just answered may hand in at once, and goes into the next group."""
        asyncio.get_running_loop().call_soon(self._next)

    def _work(self, call: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        """`call` on the one thread, `then` here. No task: there is nothing that could be cancelled half way."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, call)
        working.add_done_callback(lambda done: then(done.exception()))

    def _give_up(self, error: BaseException) -> None:
        """Something that is no refusal of the disk: a mistake of ours, or no memory."""
        log.error("failed", path=self._file.path, error=repr(error))
        self._file.broken = self._file.broken or (
            f"cannot save {self._file.path} any more ({error!r}); what was acknowledged is kept: start the daemon again"
        )


def _alike(error: BaseException) -> BaseException:
    """One for each waiter: who raises it writes its own traceback into it."""
    return StoreError(str(error)) if isinstance(error, StoreError) else error
