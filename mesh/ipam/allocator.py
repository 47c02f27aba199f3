"""The allocator as workflows and verbs see it: a shape, and nothing of how addresses are shared out between hosts.

`mesh.ipam.service` has this shape; tests have a small one of their own. An *owner* is a text for what has addresses on
this host: an attachment (`mesh.attachment.owner_of`), or the host itself (`mesh.expose.OWNER`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Protocol

from gossip.names import PeerName
from mesh.endpoints import Address, EndpointTable, Interface
from mesh.ipam.wants import Want

READY = frozenset({"ready", "idle", "split"})
"""States in which an address is given when one is asked for; `idle`: the first request makes the ring."""


class Allocator(Protocol):
    """Gives addresses. Whatever is refused raises `ApiError`, and has changed nothing then."""

    async def obtain(self, owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        """Addresses for `owner`, durable and ours to give when this returns; what it was given for the same want before
        is found again. Claims outside the range are returned as they are. May wait for seconds."""

    async def release(self, owner: str, addresses: Collection[Address]) -> None:
        """These addresses of this owner are given no more. Unknown ones are fine."""

    async def release_all(self, owner: str) -> None:
        """Whatever it has."""

    async def keep_only(self, owners: Collection[str]) -> None:
        """Release what was given to others than these."""

    async def prime(self, timeout_s: float | None, tell: Callable[[str], Awaitable[None]]) -> None:
        """Return when this host may give addresses; `tell` hears what is waited for."""

    async def remove_peers(self, names: Sequence[PeerName]) -> dict[str, Any]:
        """These are gone for good: `removed`, and how many `addresses` are ours by that."""

    async def join(self, ring: str | None, force: bool, table: EndpointTable) -> dict[str, Any]:
        """This host's ring joins another: which was `joined`, and what `conflicts` there are."""

    def export(self) -> dict[str, Any]:
        """What is given here, for `import_`."""

    async def import_(self, document: dict[str, Any], force: bool) -> dict[str, Any]:
        """Claim again what was exported: how many were `taken`, and what was `refused`."""

    async def check(self, attached: Mapping[Interface, str], repair: bool) -> list[dict[str, Any]]:
        """What is given differently from what is `attached`, by owner: `address`, `owner`, `problem`, `repaired`, which
        is not done here. `repair`: a conflict is over."""

    def status(self) -> dict[str, Any]:
        """Everything, for `weft status ipam`."""

    def summary(self) -> dict[str, Any]:
        """In which `state` it is, how many are `given` here, and why the `disk` takes nothing, where it does not: for
        whoever asks often."""

    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Where addresses come from unless a subnet is named, then all that they may come from."""

    def interface_of(self, address: Address) -> Interface:
        """An address with the length that those of its subnet have here. Raises `ApiError` where it is of none."""

    def warnings(self) -> list[dict[str, str]]:
        """What somebody should act on: `code`, `text`, `cure`."""
