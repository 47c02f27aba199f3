"""A packet socket on one of our devices: a bounded number of frames at a time, opened anew when the device is.

What the pinger and the probers have in common; knows nothing of what the frames are. The one idea: a device that goes
away is noticed when reading, and whoever uses the socket hears of it before it is tried again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

FRAMES_AT_ONCE = 64
"""Frames read each time the socket is ready, so that a flood of them never starves the loop."""
REOPEN_INTERVAL_S = 1.0


class FrameSocket:
    """Closed until `open` finds its device."""

    def __init__(
        self,
        open_socket: Callable[[], socket.socket],
        frame_max_bytes: int,
        received: Callable[[bytes], None],
        count: Callable[[str], None],
        prefix: str,
        opened: Callable[[], None] = lambda: None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """`open_socket` raises OSError while there is no device. `count` hears of frames that could not be sent, as
        PREFIX-queue-full and PREFIX-send-failed. `lost`: the device went, and it is waited for; without, whoever calls
        `open` next finds the new one."""
        self._open_socket = open_socket
        self._frame_max_bytes = frame_max_bytes
        self._received = received
        self._count = count
        self._prefix = prefix
        self._opened = opened
        self._lost = lost
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Listen on the device; where it is not there (yet), the next call tries again."""
        if self._socket is not None or self._is_closed:
            return
        try:
            self._socket = self._open_socket()
        except OSError:
            return
        self._loop.add_reader(self._socket, self.read)
        self._opened()

    def close(self) -> None:
        """For good."""
        self._is_closed = True
        self._let_go()

    def send(self, frame: bytes) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(frame)
        except BlockingIOError:
            self._count(f"{self._prefix}-queue-full")
            return False
        except OSError:  # a device that went away is noticed when reading
            self._count(f"{self._prefix}-send-failed")
            return False
        return True

    def read(self) -> None:
        """What waits. Called by the loop; and by whoever is about to take silence for an answer."""
        for _ in range(FRAMES_AT_ONCE):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(self._frame_max_bytes)
            except BlockingIOError:
                return
            except OSError:  # the device went away
                self._let_go()
                if self._lost is not None:
                    self._lost()
                    self._loop.call_later(REOPEN_INTERVAL_S, self._reopen)
                return
            self._received(frame)

    def _reopen(self) -> None:
        self.open()
        if self._socket is None and not self._is_closed:
            self._loop.call_later(REOPEN_INTERVAL_S, self._reopen)

    def _let_go(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
