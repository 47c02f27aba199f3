"""What is given and what is attached, made one again: at start, in the background, and when a person asks.

A daemon that ends between two writes leaves an address given that nobody has; one of an older version, or a journal
that was lost, leaves one attached that was never given. The one idea: what runs is right. What is attached is claimed,
what is given to nothing is released. Knows nothing of how either is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_interface
from typing import Any

from mesh.attach import Attachments
from mesh.endpoints import Address, Interface
from mesh.expose import OWNER, Exposures
from mesh.ipam.wants import Claim
from mesh.logs import EventLog
from mesh.requests import ApiError

RETRY_MIN_S = 5.0
RETRY_MAX_S = 300.0

log = EventLog("ipam")


class Mending:
    """Of one daemon."""

    def __init__(
        self, attachments: Attachments, exposures: Exposures, others: Callable[[], Mapping[Interface, str]]
    ) -> None:
        """`others`: owners of addresses that are attached by other means."""
        self._others = others
        self._attachments = attachments
        self._exposures = exposures
        self._ipam = attachments.keeper.ipam

    def attached(self) -> dict[Interface, str]:
        """The owner of every address on this host."""
        found = {binding.interface: each.owner for each in self._attachments.all() for binding in each.bindings}
        return {**found, **{held.binding.interface: OWNER for held in self._exposures.all()}, **self._others()}

    async def begin(self) -> None:
        """Release what was given to owners that are not there any more."""
        try:
            await self._ipam.keep_only(set(self.attached().values()))
        except ApiError as error:
            log.warning("not-released", error=error)

    async def run(self) -> None:
        """Until all that is attached is given: others may have to be asked first, and may be out of reach."""
        delay_s = RETRY_MIN_S
        while not await self.mend():
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)

    async def mend(self) -> bool:
        """Once. Whether all that is attached is given now."""
        is_done = True
        for finding in await self._ipam.check(self.attached(), False):
            why = await self._mend(finding)
            is_done = is_done and why is None
        return is_done

    async def check(self, repair: bool) -> list[dict[str, Any]]:
        """What differs, and whether it was repaired. Raises `ApiError`."""
        findings = await self._ipam.check(self.attached(), repair)
        for finding in findings if repair else ():
            why = await self._mend(finding)
            finding |= {"repaired": True} if why is None else {"repaired": False, "why": why}
        if repair:
            await self.mend()  # what was attached in between
        return findings

    async def _mend(self, finding: dict[str, Any]) -> str | None:
        """By what is attached now, which may be more or less than when this was found; why it could not be done."""
        interface, owner = ip_interface(finding["address"]), finding["owner"]
        try:
            if self._owner_of(interface.ip) == owner:
                await self._claim(interface, owner)
            else:
                await self._release(interface, owner)
        except ApiError as error:
            log.warning("not-mended", owner=owner, address=interface, error=error)
            return str(error)
        return None

    async def _claim(self, interface: Interface, owner: str) -> None:
        await self._ipam.obtain(owner, (Claim(interface),))
        log.info("claimed-again", owner=owner, address=interface)
        await self._release(interface, owner)

    async def _release(self, interface: Interface, owner: str) -> None:
        """Unless it is attached by now."""
        async with self._attachments.changing():
            self._attachments.refuse_closed()
            if self._owner_of(interface.ip) != owner:
                await self._attachments.keeper.release_saved(owner, [interface.ip])

    def _owner_of(self, address: Address) -> str | None:
        return next((owner for interface, owner in self.attached().items() if interface.ip == address), None)
