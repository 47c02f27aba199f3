"""Interfaces that several runtimes want taken away at the same time are taken away as one change.

The kernel takes as long to delete one link as to delete a hundred, and the disk as long to write one list as another.
So whoever gets the lock does it for all who wait for it. Knows nothing of what is taken away, or how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.attachment import Attachment, Sandbox
from mesh.ipam.keeper import busy
from mesh.requests import ApiError


@dataclass(slots=True, eq=False)
class Removal:
    """What somebody wants taken away."""

    is_wanted: Callable[[Sandbox], bool]
    owner: str | None
    """Whatever else is given to it goes too."""
    gone: list[Attachment] = field(default_factory=list)
    refused: ApiError | None = field(default_factory=lambda: busy("a container"))
    """None once it is done."""


class Removals:
    """Those of one daemon that are waiting."""

    def __init__(self, lock: asyncio.Lock, perform: Callable[[list[Removal]], Awaitable[None]]) -> None:
        """`perform` is called under the lock; it raises `ApiError`, and then nothing has changed."""
        self._lock = lock
        self._perform = perform
        self._waiting: list[Removal] = []

    async def ask(self, is_wanted: Callable[[Sandbox], bool], owner: str | None) -> list[Attachment]:
        """What was taken away. Raises `ApiError`."""
        removal = Removal(is_wanted, owner)
        self._waiting.append(removal)
        async with self._lock:
            if removal in self._waiting:  # else somebody has done it who had waited less long
                self._waiting, together = [], self._waiting
                await self._together(together)
        if removal.refused is not None:
            raise removal.refused
        return removal.gone

    async def _together(self, together: list[Removal]) -> None:
        outcome: ApiError | None = None
        try:
            await self._perform(together)
        except ApiError as error:
            outcome = error
        for each in together:
            each.refused = outcome
