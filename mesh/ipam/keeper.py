"""Between the workflows and the allocator: what was given and is not used after all goes back, whoever comes between.

Giving may take seconds, so it happens before a workflow takes its lock; what is released is released under that lock.
The one idea: whoever has been given addresses and waits for the lock is told when some of its owner's were released
meanwhile, and asks again. So nothing is used that is not given, and nothing stays given that nobody uses. Knows nothing
of attachments or of the host's own addresses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mesh.endpoints import Address, Interface
from mesh.ipam.allocator import Allocator
from mesh.ipam.wants import Want
from mesh.logs import EventLog
from mesh.requests import ApiError

TRIES = 4
"""Each one more after a release that came between."""

log = EventLog("ipam")


@dataclass(slots=True, eq=False)
class Watch:
    """Somebody who was given addresses and does not hold the lock yet."""

    owner: str
    is_stale: bool = False
    """Some of the owner's were released since."""


class Keeper:
    """Obtains and releases for the workflows of one daemon."""

    def __init__(self, ipam: Allocator) -> None:
        self.ipam = ipam
        self._watches: set[Watch] = set()

    @contextlib.contextmanager
    def watch(self, owner: str) -> Iterator[Watch]:
        """To be begun before addresses are asked for, and looked at under the lock."""
        watch = Watch(owner)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def obtain(self, owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        """Raises `ApiError`; then nothing is given."""
        return await self.ipam.obtain(owner, wants) if wants else ()

    async def release(self, owner: str, addresses: Collection[Address] | None) -> None:
        """These are not used any more, or none of that owner's. To be called under the lock. A disk that refuses holds
        nobody up: the allocator does it as soon as it can."""
        try:
            await self.release_saved(owner, addresses)
        except ApiError as error:
            log.warning("not-released", owner=owner, error=error)

    async def release_saved(self, owner: str, addresses: Collection[Address] | None) -> None:
        """The same for who wants to know whether it is on disk. Raises `ApiError` where the disk refuses; released it
        is all the same."""
        if addresses is not None and not addresses:
            return
        try:
            if addresses is None:
                await self.ipam.release_all(owner)
            else:
                await self.ipam.release(owner, addresses)
        finally:
            for watch in self._watches:
                if watch.owner == owner:
                    watch.is_stale = True


def busy(what: str) -> ApiError:
    """After `TRIES` of them."""
    return ApiError("busy", f"addresses of {what} are being taken away at the same time; try again")
