"""Expose and hide: the host itself on the overlay, by the same steps as a container.

An exposure is written to disk first, then the kernel is asked for it, then the mesh is told, then the caller; a step
that fails takes the earlier ones back. To the mesh the host is one more endpoint, with the MAC of its bridge, so its
addresses are claimed, refused and looked up as everybody's are. Unlike attachments it outlives the boot: a host is
what it was. Knows nothing of routes, rules or sysctls: what follows from an exposed address is the kernel side's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from dataplane.desired import Exposed
from dataplane.kernel import Fault, KernelError
from dataplane.linux.collision import collision
from mesh import requests
from mesh.arguments import ADDRESSES_MAX
from mesh.attach import KERNEL_TIMEOUT_S, Attachments, Surroundings
from mesh.endpoints import EXPOSED_ID, Binding, Endpoint, Interface, bridge_mac
from mesh.ipam.keeper import TRIES, busy
from mesh.ipam.wants import Claim, FromSubnet, Want
from mesh.logs import EventLog
from mesh.requests import ApiError
from mesh.router import BRIDGE
from mesh.store import StoreError

DOCUMENT = "exposed"
OWNER = "weft:expose"
"""What the allocator knows the host's own addresses by."""

log = EventLog("expose")


@dataclass(frozen=True, slots=True)
class Exposure:
    """One address of this host on the overlay, as it is kept on disk."""

    binding: Binding
    masquerade: bool

    @property
    def wanted(self) -> Exposed:
        return Exposed(self.binding.interface, self.masquerade)

    def to_json(self) -> dict[str, Any]:
        return {"address": str(self.binding), "claim": self.binding.claim, "masquerade": self.masquerade}


def exposure_from_json(value: dict[str, Any]) -> Exposure:
    """The inverse of `to_json`. Its input has passed the store's checksum, so it is as we wrote it."""
    return Exposure(_binding(ip_interface(value["address"]), value["claim"]), value["masquerade"])


Held = tuple[Exposure, ...]


class Exposures:
    """What this host is exposed as. One change at a time, of these and of attachments together."""

    def __init__(self, around: Surroundings, attachments: Attachments) -> None:
        """Loads what the last life of this daemon had. Raises `StoreError`."""
        self._around = around
        self._attachments = attachments
        document = around.store.read(DOCUMENT) or {"exposed": []}
        self._held: Held = tuple(map(exposure_from_json, document["exposed"]))

    def all(self) -> Held:
        return self._held

    def endpoint(self) -> Endpoint | None:
        """What the mesh is told; None where the host is hidden."""
        if not self._held:
            return None
        bindings = tuple(held.binding for held in self._held)
        return Endpoint(self._around.own, EXPOSED_ID, bridge_mac(self._around.own), bindings)

    async def expose(self, request: requests.Expose) -> Held:
        """Add addresses to what is exposed, or change how they are; all that is then. Raises `ApiError`; then nothing
        has changed."""
        keeper = self._attachments.keeper
        await self._around.wait_settled()
        for _ in range(TRIES):
            self._attachments.refuse_closed()
            wants = self._asked(request)
            with keeper.watch(OWNER) as watch:
                given = await keeper.obtain(OWNER, wants)
                async with self._attachments.changing():
                    try:
                        self._attachments.refuse_closed()
                        if not watch.is_stale and self._asked(request) == wants:
                            return await self._expose(given, request.masquerade)
                    finally:
                        unused = {interface.ip for interface in given} - {held.binding.ip for held in self._held}
                        await keeper.release(OWNER, unused)
        raise busy("this host")

    def _asked(self, request: requests.Expose) -> tuple[Want, ...]:
        """Raises `ApiError` where others have such an address."""
        for want in request.addresses:
            if isinstance(want, Claim):
                self._refuse_taken(want.interface)
        return request.addresses or (() if self._held else (FromSubnet(None),))

    async def _expose(self, given: tuple[Interface, ...], masquerade: bool) -> Held:
        """With these addresses too."""
        before, wanted = self._held, self._plan(given, masquerade)
        if wanted == before:
            return wanted
        for held in wanted:
            if held.binding.interface not in [each.binding.interface for each in before]:
                await self._refuse_collision(held.binding.interface)
        await self._save(wanted)
        faults = await self._publish()
        if faults is None or BRIDGE in faults:
            await self._take_back(before)
            if faults is None:
                raise ApiError("kernel-slow", f"the kernel did not take it in {KERNEL_TIMEOUT_S:g} s; try again")
            raise ApiError("expose-failed", faults[BRIDGE].text)
        try:
            self._around.tell(BRIDGE, self.endpoint())
        except ValueError as error:
            await self._take_back(before)
            raise ApiError("too-many", f"this host cannot be told to other hosts ({error})") from None
        log.info("exposed", addresses=",".join(_texts(wanted)))
        return wanted

    def _plan(self, given: tuple[Interface, ...], masquerade: bool) -> Held:
        wanted = list(self._held)
        for interface in given:
            self._refuse_taken(interface)
            at = next((i for i, held in enumerate(wanted) if held.binding.ip == interface.ip), None)
            if at is None:
                claim = self._around.table.next_claim(interface.ip)
                wanted.append(Exposure(_binding(interface, claim), masquerade))
            else:
                claim = wanted[at].binding.claim
                wanted[at] = Exposure(_binding(interface, claim), masquerade)
        if len(wanted) > ADDRESSES_MAX:
            text = f"this host would be exposed with {len(wanted)} addresses; at most {ADDRESSES_MAX}"
            raise ApiError("too-many", f"{text}: hide some first")
        return tuple(wanted)

    def _refuse_taken(self, interface: Interface) -> None:
        """As with `attach`: an address stays with a holder who is in reach."""
        for attachment in self._attachments.all():
            if any(binding.ip == interface.ip for binding in attachment.bindings):
                release = f"weft detach {interface} {attachment.id}"
                text = f"{interface.ip} is held by {attachment.id} on this host; detach it first ({release})"
                raise ApiError("address-taken", f"{text}, or take another address")
        for holder in self._around.table.claimants(interface.ip):
            if holder.owner == self._around.own:
                return
            if self._around.is_reachable(holder.owner):
                host = self._around.nickname_of(holder.owner)
                text = f"{interface.ip} is held by {holder.id} on host {host}; release it there first"
                raise ApiError("address-taken", f"{text} ({holder.release(interface)}), or take another address")

    async def _refuse_collision(self, interface: Interface) -> None:
        try:
            found = await asyncio.to_thread(collision, BRIDGE, interface)
        except KernelError as error:
            raise ApiError("expose-failed", error.text) from None
        if found is not None:
            text = f"{interface} collides with {found} on this host"
            raise ApiError("collision", f"{text}; take another address or length, or remove that first")

    async def hide(self, request: requests.Hide) -> Held:
        """Take these addresses off the bridge, all where none are named; those that were taken. Naming one that is not
        exposed is no error. Raises `ApiError`."""
        async with self._attachments.changing():
            self._attachments.refuse_closed()
            wanted = {interface.ip for interface in request.addresses}
            gone = tuple(held for held in self._held if not wanted or held.binding.ip in wanted)
            if gone:
                await self._save(tuple(held for held in self._held if held not in gone))
                self._around.tell(BRIDGE, self.endpoint())
                await self._publish()
                released = {held.binding.ip for held in gone} if self._held else None
                await self._attachments.keeper.release(OWNER, released)
                log.info("hidden", addresses=",".join(_texts(gone)))
            return gone

    async def _take_back(self, before: Held) -> None:
        try:
            await self._save(before)
        except ApiError as error:
            # The disk has filled up meanwhile; memory is right, and the next change writes all of it.
            log.error("exposed-not-saved", error=error)
            self._held = before
        await self._publish()

    async def _save(self, held: Held) -> None:
        """On disk first; only then do we believe it ourselves."""
        try:
            await self._around.write(DOCUMENT, {"exposed": [each.to_json() for each in held]})
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None
        self._held = held

    async def _publish(self) -> dict[str, Fault] | None:
        try:
            async with asyncio.timeout(KERNEL_TIMEOUT_S):
                return await self._around.publish()
        except TimeoutError:
            return None


def _binding(interface: Interface, claim: int) -> Binding:
    return Binding(interface.ip, interface.network.prefixlen, claim)


def _texts(held: Held) -> list[str]:
    return [str(each.binding) for each in held]
