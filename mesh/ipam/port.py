"""What attaching a container, or exposing the host, asks of address allocation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from mesh.endpoints import Address, Interface
from mesh.ipam.wants import Want

EXPOSE_OWNER = "weft:expose"


class Allocator(Protocol):
    """Addresses by owner: a short text that is the same for the same container, whenever it comes back."""

    async def obtain(self, owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        """Addresses for `owner`, on disk and ours to give when this returns. Raises `ApiError`."""

    async def release(self, owner: str, addresses: Collection[Address]) -> None:
        """These rest from now on. Unknown ones are fine. Raises `ApiError` where the disk refuses."""

    async def release_all(self, owner: str) -> None:
        """Whatever it has."""
