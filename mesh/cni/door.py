"""What the daemon does for the CNI plugin: each verb by the workflows that every door ends in.

An ADD is an attachment that its runtime knows by container and interface; where a way out is asked for, this host is
exposed in the container's network first. One thing at a time happens to one container, so a DEL that overtakes a slow
ADD waits for it and then takes away what it made. Knows nothing of CNI's versions, results or error numbers (plugin).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from dataplane.desired import Address
from dataplane.kernel import Fault
from dataplane.linux.netns import find_namespace
from mesh.attach import Attachments
from mesh.attachment import Attachment, Sandbox, owner_of
from mesh.cni.words import CniAdd, CniCheck, CniDel, CniGc, CniRequest, CniStatus
from mesh.endpoints import Interface
from mesh.expose import Exposures, Held
from mesh.ipam.allocator import READY, Allocator
from mesh.ipam.space import Network
from mesh.ipam.wants import Claim, FromSubnet, Want
from mesh.logs import EventLog
from mesh.requests import ApiError, Attach, Expose
from mesh.store import StoreError

log = EventLog("cni")


@dataclass(slots=True)
class _Turns:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class CniDoor:
    """Of one daemon."""

    def __init__(
        self,
        attachments: Attachments,
        exposures: Exposures,
        ipam: Allocator,
        accept: Callable[[Attach], Attach],
        publish: Callable[[], Any],
        dns: Callable[[], dict[str, Any] | None],
        bridge: Callable[[], dict[str, Any]],
        check_room: Callable[[], None],
    ) -> None:
        """`accept` makes names relative to the mesh's domain; `publish` brings the kernel up to date and returns the
        faults of ports, by ifname; `dns` and `bridge` are what results say of these; `check_room` raises `StoreError`
        where the disk is full."""
        self._attachments = attachments
        self._exposures = exposures
        self._ipam = ipam
        self._accept = accept
        self._publish = publish
        self._dns = dns
        self._bridge = bridge
        self._check_room = check_room
        self._busy: dict[str, _Turns] = {}
        """By container, while somebody is busy with it or waits to be."""

    async def handle(self, request: CniRequest) -> object:
        """Raises `ApiError`; then nothing has changed, but for a DEL or GC, which may be asked for again."""
        match request:
            case CniAdd():
                async with self._alone(request.sandbox.container):
                    return await self._add(request)
            case CniDel(sandbox):
                async with self._alone(sandbox.container):
                    await self._delete(sandbox)
            case CniCheck():
                await self._check(request)
            case CniGc():
                return await self._collect(request)
            case CniStatus(gives):
                self._refuse_unready(gives)
        return {}

    @contextlib.asynccontextmanager
    async def _alone(self, container: str) -> AsyncIterator[None]:
        turns = self._busy.setdefault(container, _Turns())
        turns.count += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.count -= 1
            if not turns.count:
                del self._busy[container]

    # -- ADD ---------------------------------------------------------------------------------------

    async def _add(self, request: CniAdd) -> dict[str, Any]:
        wants = (*request.wants, *(Claim(self._ipam.interface_of(address)) for address in request.bare))
        attach = Attach(
            request.netns, wants, request.overlay, request.labels, request.names,
            mac=request.mac, inside=request.inside, sandbox=request.sandbox, called=request.called,
        )  # fmt: skip
        attachment = await self._attachments.attach(self._accept(attach))
        try:
            if request.is_gateway:
                await self._lead_out(request, attachment)
        except ApiError:
            await self._attachments.remove(lambda sandbox: sandbox == request.sandbox)
            raise
        return self._result(attachment)

    async def _lead_out(self, request: CniAdd, attachment: Attachment) -> None:
        """Expose this host in every network of the container in which it is not yet."""
        wants: list[Want] = [Claim(each) for each in request.bridge]
        choices = [each for want in request.wants if isinstance(want, FromSubnet) for each in want.choices]
        for binding in attachment.bindings if not wants else ():
            if _host_in(binding.interface, self._exposures.all()) is None:
                networks = (each.network for each in choices)
                wants.append(FromSubnet(next((each for each in networks if _is_in(binding.interface, each)), None)))
        held = {each.binding.interface for each in self._exposures.all()}
        missing = [want for want in dict.fromkeys(wants) if not (isinstance(want, Claim) and want.interface in held)]
        if missing:
            await self._exposures.expose(Expose(tuple(missing), request.masquerade))

    def _result(self, attachment: Attachment) -> dict[str, Any]:
        held, inside, bridge = self._exposures.all(), attachment.inside, self._bridge()
        by_version = {gateway.version: gateway for gateway in inside.gateways}
        rows, out = [], []
        for binding in attachment.bindings:
            host = _host_in(binding.interface, held)
            gateway = by_version.get(binding.ip.version, host)
            rows.append({"address": str(binding), "gateway": None if gateway is None else str(gateway)})
            if gateway is not None and (gateway in inside.gateways or inside.leads_out):
                out.append({"dst": "::/0" if binding.ip.version == 6 else "0.0.0.0/0", "gw": str(gateway)})
        routes = [
            {"dst": str(each.network)} | ({"gw": str(each.gateway)} if each.gateway is not None else {})
            for each in inside.routes
        ]
        return {
            "host_ifname": attachment.ifname,
            "mac": attachment.mac.hex(":"),
            "addresses": rows,
            "routes": [*({each["dst"]: each for each in reversed(out)}.values()), *routes],
            "dns": self._dns(),
            **bridge,
            "mtu": min(inside.mtu or bridge["mtu"], bridge["mtu"]),
        }

    # -- the others --------------------------------------------------------------------------------

    async def _delete(self, sandbox: Sandbox) -> None:
        """Whatever is there of it."""
        owner = owner_of("", (0, 0), None, "", sandbox=sandbox)
        await self._attachments.remove(lambda held: held.key == sandbox.key, owner)

    async def _check(self, request: CniCheck) -> None:
        held = next((each for each in self._attachments.all() if each.sandbox == request.sandbox), None)
        if held is None:
            what = f"{request.sandbox.ifname} of container {request.sandbox.container}"
            raise ApiError("not-attached", f"{what} is not on the network {request.sandbox.network}")
        try:
            is_elsewhere = find_namespace(request.netns).id != held.namespace_id
        except ValueError as error:
            raise ApiError("namespace-gone", str(error)) from None
        if is_elsewhere:
            raise ApiError("check-failed", f"{held.id} is attached in {held.namespace}, not in {request.netns}")
        if missing := sorted(request.addresses - set(held.texts())):
            have = ", ".join(held.texts())
            raise ApiError("check-failed", f"{', '.join(missing)} is not given to {held.id}; it has {have}")
        found: dict[str, Fault] = await self._publish()
        if held.ifname in found:
            raise ApiError("check-failed", found[held.ifname].text)

    async def _collect(self, request: CniGc) -> dict[str, Any]:
        """Take away what the runtime does not know of any more, of this network only."""
        gone = await self._attachments.remove(
            lambda held: held.network == request.network and held.key not in request.valid
        )
        for each in gone:
            log.info("collected", id=each.id, addresses=",".join(each.texts()))
        return {"removed": [each.id for each in gone]}

    def _refuse_unready(self, gives: bool) -> None:
        self._attachments.refuse_closed()
        told = self._ipam.summary()
        try:
            self._check_room()
        except StoreError as error:
            raise ApiError("ipam-unavailable", str(error)) from None
        if told["disk"]:
            raise ApiError("ipam-unavailable", told["disk"])
        state = str(told["state"])
        if gives and state not in READY:
            text = f"no addresses can be given now ({state}); `weft status ipam` says what is missing"
            raise ApiError("ipam-unavailable", text)


def _host_in(interface: Interface, held: Held) -> Address | None:
    """This host's address in the network of a container's."""
    own = (each.binding.interface for each in held)
    return next((each.ip for each in own if each.ip in interface.network and interface.ip in each.network), None)


def _is_in(interface: Interface, network: Network | None) -> bool:
    return network is not None and interface.ip in network
