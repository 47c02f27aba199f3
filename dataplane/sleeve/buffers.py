"""Room for records and the frames they are made of, used again and again: nothing large is allocated for a frame."""

from __future__ import annotations

from typing import Final

from dataplane.sleeve.wire import FRAME_MAX_BYTES, HEADER_BYTES, LENGTH_BYTES, VNET_BYTES

FRAME_AT: Final = HEADER_BYTES + LENGTH_BYTES
"""Where in a buffer a frame is read to, so that it can be sealed in its place."""
ETHERNET_AT: Final = FRAME_AT + VNET_BYTES
BUFFER_BYTES: Final = FRAME_AT + FRAME_MAX_BYTES + 2048
"""A read that fills it found a frame that is too large."""
BUFFERS_KEPT: Final = 64


class Buffer:
    """Room for one record, and for the frame it may be made of."""

    __slots__ = ("end", "for_frame", "view")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER_BYTES))
        self.for_frame = [self.view[FRAME_AT:]]
        """For `readv`."""
        self.end = HEADER_BYTES
        """Behind the last entry; of a buffer with a frame alone, behind that frame."""


class Pool:
    """Buffers that nobody uses now."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self) -> Buffer:
        return self._free.pop() if self._free else Buffer()

    def give(self, buffer: Buffer) -> None:
        if len(self._free) < BUFFERS_KEPT:
            self._free.append(buffer)
