"""Attach and detach: the one workflow behind every door.

An attachment is written to disk first, then the kernel is asked for it (by publishing a desired state that has one more
port), then the mesh is told, then the caller. A step that fails takes the earlier ones back. Attachments outlive the
daemon: what is on disk at launch is simply desired again, and the kernel already has it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import Any

from dataplane.desired import Port
from dataplane.kernel import Fault
from dataplane.linux.netns import find_namespace
from gossip.names import PeerName
from mesh import arguments, requests
from mesh.endpoints import Address, Binding, Endpoint, EndpointTable, Interface, derive_mac
from mesh.logs import EventLog
from mesh.requests import ApiError
from mesh.store import Store, StoreError

GUEST_IFNAME = "ethwe"
KERNEL_TIMEOUT_S = 10.0
DOCUMENT = "attachments"

log = EventLog("attach")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface on this host, as it is kept on disk."""

    id: str
    ifname: str
    namespace: str
    namespace_id: tuple[int, int]
    mac: bytes
    bindings: tuple[Binding, ...]
    names: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    network: str

    @property
    def port(self) -> Port:
        interfaces = tuple(binding.interface for binding in self.bindings)
        return Port(self.ifname, GUEST_IFNAME, self.namespace, self.namespace_id, self.mac, interfaces)

    def endpoint(self, owner: PeerName) -> Endpoint:
        return Endpoint(owner, self.id, self.mac, self.bindings, self.names, self.labels, self.network)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "ifname": self.ifname,
            "namespace": self.namespace,
            "namespace_id": list(self.namespace_id),
            "mac": self.mac.hex(":"),
            "bindings": [[str(binding.interface), binding.claim] for binding in self.bindings],
            "names": list(self.names),
            "labels": [list(label) for label in self.labels],
            "network": self.network,
        }


def attachment_from_json(value: dict[str, Any]) -> Attachment:
    """The inverse of `to_json`. Its input has passed the store's checksum, so it is as we wrote it."""
    device, inode = value["namespace_id"]
    return Attachment(
        id=value["id"],
        ifname=value["ifname"],
        namespace=value["namespace"],
        namespace_id=(device, inode),
        mac=bytes.fromhex(value["mac"].replace(":", "")),
        bindings=tuple(Binding(ip_interface(text), claim) for text, claim in value["bindings"]),
        names=tuple(value["names"]),
        labels=tuple((key, text) for key, text in value["labels"]),
        network=value["network"],
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the workflow asks of the daemon around it."""

    store: Store
    own: PeerName
    table: EndpointTable
    nickname_of: Callable[[PeerName], str]
    is_reachable: Callable[[PeerName], bool]
    wait_settled: Callable[[], Awaitable[None]]
    """Returns when a neighbour's state is in, or soon after when there is none to wait for."""
    publish: Callable[[], Awaitable[dict[str, Fault]]]
    """Publish the desired state with the attachments as they now are; the faults of ports, by ifname, once it is done.
    Raises `TimeoutError`."""
    tell: Callable[[str, Endpoint | None], None]
    """Publish or withdraw one of our endpoints, by ifname."""


class Attachments:
    """What is attached on this host. One change at a time."""

    def __init__(self, around: Surroundings) -> None:
        """Loads what the last life of this daemon had. Raises `StoreError`."""
        self._around = around
        self._lock = asyncio.Lock()
        document = around.store.read(DOCUMENT) or {"attachments": []}
        loaded = [attachment_from_json(value) for value in document["attachments"]]
        self._held: dict[str, Attachment] = {attachment.ifname: attachment for attachment in loaded}

    def all(self) -> list[Attachment]:
        return sorted(self._held.values(), key=lambda attachment: attachment.id)

    # -- attach ------------------------------------------------------------------------------------

    async def attach(self, request: requests.Attach) -> Attachment:
        """Raises `ApiError`; then nothing has changed."""
        async with self._lock:
            await self._around.wait_settled()
            before, wanted = self._plan(request)
            if wanted == before:
                return wanted
            await self._save(self._held | {wanted.ifname: wanted})
            faults = await self._publish()
            if faults is None or wanted.ifname in faults:
                await self._take_back(before, wanted)
                if faults is None:
                    slow = f"the kernel did not take {wanted.id} in {KERNEL_TIMEOUT_S:g} s; try again"
                    raise ApiError("kernel-slow", slow)
                raise ApiError("attach-failed", faults[wanted.ifname].text)
            self._around.tell(wanted.ifname, wanted.endpoint(self._around.own))
            log.info("attached", id=wanted.id, addresses=",".join(_texts(wanted)))
            return wanted

    def _plan(self, request: requests.Attach) -> tuple[Attachment | None, Attachment]:
        """What is there for this target, and what should be."""
        try:
            namespace = find_namespace(request.target)
        except ValueError as error:
            raise ApiError("bad-target", str(error)) from None
        before = self._of_namespace(namespace.id)
        bindings = list(before.bindings) if before else []
        for interface in request.addresses:
            self._refuse_taken(interface, before)
            held = [binding for binding in bindings if binding.interface.ip == interface.ip]
            if held and held[0].interface == interface:
                continue
            bindings = [binding for binding in bindings if binding not in held]
            claim = held[0].claim if held else self._around.table.next_claim(interface.ip)
            bindings.append(Binding(interface, claim))
        if len(bindings) > arguments.ADDRESSES_MAX:
            most = arguments.ADDRESSES_MAX
            raise ApiError("too-many", f"{request.target} would have {len(bindings)} addresses; at most {most}")
        if before is not None:
            labels = tuple(sorted((dict(before.labels) | dict(request.labels)).items()))
            names = tuple(dict.fromkeys((*before.names, *request.names)))
            return before, replace(before, bindings=tuple(bindings), names=names, labels=labels)
        ifname = "vw" + hashlib.sha256(f"{namespace.id} {request.network}".encode()).hexdigest()[:11]
        mac = self._free_mac(request.network, bindings[0].interface.ip)
        return None, Attachment(
            request.target, ifname, namespace.path, namespace.id, mac, tuple(bindings), request.names,
            request.labels, request.network,
        )  # fmt: skip

    def _of_namespace(self, namespace_id: tuple[int, int]) -> Attachment | None:
        return next((held for held in self._held.values() if held.namespace_id == namespace_id), None)

    def _refuse_taken(self, interface: Interface, ours: Attachment | None) -> None:
        """An address moves after `detach`, or when its owner is out of reach; else it stays where it is."""
        for held in self._held.values():
            if held is not ours and any(binding.interface.ip == interface.ip for binding in held.bindings):
                raise ApiError(
                    "address-taken",
                    f"{interface.ip} is held by {held.id} on this host; detach it there first, or take another address",
                )
        holder = self._around.table.holder(interface.ip)
        if holder is None or holder.owner == self._around.own or not self._around.is_reachable(holder.owner):
            return
        host = self._around.nickname_of(holder.owner)
        raise ApiError(
            "address-taken",
            f"{interface.ip} is held by {holder.id} on host {host}; detach it there first (weft detach {interface} "
            f"{holder.id}), or take another address",
        )

    def _free_mac(self, network: str, first: Address) -> bytes:
        """The MAC that belongs to `first`, unless an endpoint that holds other addresses uses it already."""
        for salt in range(256):
            mac = derive_mac(network, first, salt)
            users = self._around.table.mac_users(mac)
            local = any(held.mac == mac for held in self._held.values())
            if not local and not any(self._around.is_reachable(user.owner) for user in users):
                return mac
        raise ApiError("no-mac", f"no free MAC for {first}; detach what still uses it")

    async def _take_back(self, before: Attachment | None, wanted: Attachment) -> None:
        held = dict(self._held)
        if before is None:
            held.pop(wanted.ifname)
        else:
            held[wanted.ifname] = before
        try:
            await self._save(held)
        except ApiError as error:
            # The disk has filled up meanwhile; memory is right, and the next change writes all of it.
            log.error("attachments-not-saved", error=error)
            self._held = held
        await self._publish()

    # -- detach ------------------------------------------------------------------------------------

    async def detach(self, request: requests.Detach) -> tuple[Binding, ...]:
        """Take addresses away, all of them where none are named; those that were taken. Raises `ApiError`."""
        async with self._lock:
            attachment = self._find(request.target)
            wanted = {interface.ip for interface in request.addresses}
            gone = tuple(b for b in attachment.bindings if not wanted or b.interface.ip in wanted)
            missing = sorted(str(ip) for ip in wanted - {binding.interface.ip for binding in gone})
            if missing:
                have = ", ".join(_texts(attachment))
                raise ApiError("not-attached", f"{attachment.id} does not have {', '.join(missing)}; it has {have}")
            kept = tuple(binding for binding in attachment.bindings if binding not in gone)
            held = dict(self._held)
            if kept:
                held[attachment.ifname] = replace(attachment, bindings=kept)
            else:
                del held[attachment.ifname]
            await self._save(held)
            rest = held.get(attachment.ifname)
            self._around.tell(attachment.ifname, rest.endpoint(self._around.own) if rest else None)
            await self._publish()
            log.info("detached", id=attachment.id, addresses=",".join(str(b.interface) for b in gone))
            return gone

    def _find(self, target: str) -> Attachment:
        try:
            found = self._of_namespace(find_namespace(target).id)
        except ValueError:
            # The namespace is gone; what was attached under this name can still be taken away.
            found = next((held for held in self._held.values() if target in (held.id, held.namespace)), None)
        if found is None:
            have = ", ".join(held.id for held in self.all()) or "nothing is"
            raise ApiError("not-attached", f"{target} is not attached on this host (attached: {have})")
        return found

    async def drop_vanished(self, ifnames: set[str]) -> None:
        """The namespaces of these ports have ended, and their interfaces with them: free the addresses."""
        async with self._lock:
            gone = [self._held[ifname] for ifname in sorted(ifnames & set(self._held))]
            if not gone:
                return
            try:
                await self._save({name: held for name, held in self._held.items() if held not in gone})
            except ApiError as error:
                log.error("attachments-not-saved", error=error)
                return
            for attachment in gone:
                log.info("namespace-gone", id=attachment.id, addresses=",".join(_texts(attachment)))
                self._around.tell(attachment.ifname, None)
            await self._publish()

    # -- both --------------------------------------------------------------------------------------

    async def _save(self, held: dict[str, Attachment]) -> None:
        """On disk first; only then do we believe it ourselves."""
        document = {"attachments": [held[name].to_json() for name in sorted(held)]}
        try:
            await asyncio.to_thread(self._around.store.write, DOCUMENT, document)
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None
        self._held = held

    async def _publish(self) -> dict[str, Fault] | None:
        try:
            async with asyncio.timeout(KERNEL_TIMEOUT_S):
                return await self._around.publish()
        except TimeoutError:
            return None


def _texts(attachment: Attachment) -> list[str]:
    return [str(binding.interface) for binding in attachment.bindings]
