"""Attach and detach: the one workflow behind every door.

An attachment is written to disk first, then the kernel is asked for it (by publishing a desired state that has one more
port), then the mesh is told, then the caller. A step that fails takes the earlier ones back. Attachments outlive the
daemon: what is on disk at launch is simply desired again, and the kernel already has it. They do not outlive the boot,
as no container does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import Any

from dataplane.desired import Port
from dataplane.kernel import Fault
from dataplane.linux.netns import Namespace, find_namespace, is_there
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import ROW_MAX_BYTES
from mesh import arguments, requests
from mesh.endpoints import (
    Address,
    Binding,
    Endpoint,
    EndpointTable,
    Interface,
    decode_row_untrusted,
    derive_mac,
    encode_row,
)
from mesh.logs import EventLog
from mesh.requests import ApiError
from mesh.store import Store, StoreError

GUEST_IFNAME = "ethwe"
KERNEL_TIMEOUT_S = 10.0
DOCUMENT = "attachments"
MAC_TRIES = 256
BOOT_ID = "/proc/sys/kernel/random/boot_id"

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
            "bindings": [[str(binding), binding.claim] for binding in self.bindings],
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
        bindings=tuple(_binding(ip_interface(text), claim) for text, claim in value["bindings"]),
        names=tuple(value["names"]),
        labels=tuple((key, text) for key, text in value["labels"]),
        network=value["network"],
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the workflow asks of the daemon around it."""

    store: Store
    write: Callable[[str, dict[str, Any]], Awaitable[None]]
    """Write a document into the store and return when it is on disk. Raises `StoreError`."""
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
    """Publish or withdraw one of our endpoints, by ifname. Raises `ValueError` where no more of them can be told."""


class Attachments:
    """What is attached on this host. One change at a time."""

    def __init__(self, around: Surroundings) -> None:
        """Loads what the last life of this daemon had. Raises `StoreError`."""
        self._around = around
        self._lock = asyncio.Lock()
        self._closed = False
        self._boot = _boot_id()
        document = around.store.read(DOCUMENT) or {"boot": self._boot, "attachments": []}
        loaded = [attachment_from_json(value) for value in document["attachments"]]
        if document["boot"] != self._boot:
            # Namespaces are told apart by numbers that another boot gives to others.
            for attachment in loaded:
                log.info("gone-with-the-last-boot", id=attachment.id, addresses=",".join(_texts(attachment)))
            loaded = []
        self._held: dict[str, Attachment] = {attachment.ifname: attachment for attachment in loaded}

    def all(self) -> list[Attachment]:
        return sorted(self._held.values(), key=lambda attachment: (attachment.id, attachment.ifname))

    async def close(self) -> None:
        """Let the change that is under way come to its end, and begin no other."""
        self._closed = True
        async with self._lock:
            pass

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """While this is held nothing else changes here; for who must not take an address at the same time. Raises
        `ApiError` when the daemon is stopping."""
        async with self._lock:
            self._refuse_closed()
            yield

    # -- attach ------------------------------------------------------------------------------------

    async def attach(self, request: requests.Attach) -> Attachment:
        """Raises `ApiError`; then nothing has changed."""
        async with self._lock:
            self._refuse_closed()
            await self._around.wait_settled()
            namespace = _find(request.target)
            await self._drop(self._strangers(namespace))
            before, wanted = self._plan(request, namespace)
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
            try:
                self._around.tell(wanted.ifname, wanted.endpoint(self._around.own))
            except ValueError as error:
                await self._take_back(before, wanted)
                raise ApiError("too-many", f"{wanted.id} cannot be told to other hosts ({error})") from None
            log.info("attached", id=wanted.id, addresses=",".join(_texts(wanted)))
            return wanted

    def _plan(self, request: requests.Attach, namespace: Namespace) -> tuple[Attachment | None, Attachment]:
        """What is there for this target, and what should be."""
        before = self._of_namespace(namespace.id)
        bindings = list(before.bindings) if before else []
        for interface in request.addresses:
            self._refuse_taken(interface, before)
            at = next((i for i, binding in enumerate(bindings) if binding.ip == interface.ip), None)
            if at is None:
                bindings.append(_binding(interface, self._around.table.next_claim(interface.ip)))
            else:
                bindings[at] = _binding(interface, bindings[at].claim)
        if before is not None:
            labels = tuple(sorted((dict(before.labels) | dict(request.labels)).items()))
            names = tuple(dict.fromkeys((*before.names, *request.names)))
            wanted = replace(before, bindings=tuple(bindings), names=names, labels=labels)
        else:
            ifname = "vw" + hashlib.sha256(f"{namespace.id} {request.network}".encode()).hexdigest()[:11]
            mac = self._free_mac(request.network, bindings[0].ip, takes_over=True)
            wanted = Attachment(
                request.target, ifname, namespace.path, namespace.id, mac, tuple(bindings), request.names,
                request.labels, request.network,
            )  # fmt: skip
        self._refuse_unpublishable(wanted)
        return before, wanted

    def _of_namespace(self, namespace_id: tuple[int, int]) -> Attachment | None:
        return next((held for held in self._held.values() if held.namespace_id == namespace_id), None)

    def _strangers(self, namespace: Namespace) -> list[Attachment]:
        """Attachments of a namespace that ended and whose number the kernel has given to this one since."""
        held = self._of_namespace(namespace.id)
        return [] if held is None or is_there(held.namespace, held.namespace_id) else [held]

    def _refuse_taken(self, interface: Interface, ours: Attachment | None) -> None:
        """An address moves after `detach`, or when its owner is out of reach; else it stays where it is."""
        for held in self._held.values():
            if held is not ours and any(binding.ip == interface.ip for binding in held.bindings):
                raise ApiError(
                    "address-taken",
                    f"{interface.ip} is held by {held.id} on this host; detach it there first, or take another address",
                )
        for holder in self._around.table.claimants(interface.ip):
            if holder.owner == self._around.own:
                if holder.is_host:
                    text = f"{interface.ip} is an address of this host itself; hide it first"
                    raise ApiError("address-taken", f"{text} ({holder.release(interface)}), or take another address")
                return
            if self._around.is_reachable(holder.owner):
                host = self._around.nickname_of(holder.owner)
                raise ApiError(
                    "address-taken",
                    f"{interface.ip} is held by {holder.id} on host {host}; detach it there first "
                    f"({holder.release(interface)}), or take another address",
                )

    def _refuse_unpublishable(self, wanted: Attachment) -> None:
        """What others would not take must not get as far as the kernel. Re-attaching adds up."""
        for what, there, most in (
            ("addresses", wanted.bindings, arguments.ADDRESSES_MAX),
            ("names", wanted.names, arguments.NAMES_MAX),
            ("labels", wanted.labels, arguments.LABELS_MAX),
        ):
            if len(there) > most:
                raise ApiError("too-many", f"{wanted.id} would have {len(there)} {what}; at most {most}")
        row = encode_row(wanted.endpoint(self._around.own))
        if len(row) > ROW_MAX_BYTES:
            sum_up = f"its id, names and labels come to {len(row)} bytes, and {ROW_MAX_BYTES} are the most"
            raise ApiError("too-many", f"{wanted.id} cannot be told to other hosts: {sum_up}; give fewer or shorter")
        try:
            decode_row_untrusted(self._around.own, row)
        except ProtocolError as error:
            raise ApiError("bad-request", f"{wanted.id} cannot be told to other hosts ({error})") from None

    def _free_mac(self, network: str, first: Address, takes_over: bool) -> bytes:
        """The MAC that belongs to `first`, unless an endpoint that holds other addresses uses it already. `takes_over`:
        that of a host out of reach is taken, as `first` is, so that everybody's neighbour tables stay true."""
        for salt in range(MAC_TRIES):
            mac = derive_mac(network, first, salt)
            users = [user for user in self._around.table.mac_users(mac) if user.owner != self._around.own]
            local = any(held.mac == mac for held in self._held.values())
            if not local and not any(not takes_over or self._around.is_reachable(user.owner) for user in users):
                return mac
        raise ApiError("no-mac", f"no free MAC for {first}; detach what still uses it")

    async def give_way(self, macs: frozenset[bytes]) -> None:
        """These MACs of ours belong to endpoints of other hosts: take new ones, so that those can be reached from here.

        So it is when two hosts attach one address at once, or when an address moved while its host was away."""
        async with self._lock:
            losers = [held for held in self.all() if held.mac in macs]
            for before in losers:
                try:
                    mac = self._free_mac(before.network, before.bindings[0].ip, takes_over=False)
                    wanted = replace(before, mac=mac)
                    await self._save(self._held | {wanted.ifname: wanted})
                except ApiError as error:
                    log.error("mac-not-changed", id=before.id, error=error)
                    continue
                log.warning("mac-changed", id=before.id, before=before.mac.hex(":"), after=mac.hex(":"))
                self._around.tell(wanted.ifname, wanted.endpoint(self._around.own))
            if losers:
                await self._publish()

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
            self._refuse_closed()
            attachment = self._named(request.target)
            wanted = {interface.ip for interface in request.addresses}
            gone = tuple(binding for binding in attachment.bindings if not wanted or binding.ip in wanted)
            missing = sorted(str(ip) for ip in wanted - {binding.ip for binding in gone})
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
            log.info("detached", id=attachment.id, addresses=",".join(map(str, gone)))
            return gone

    def _named(self, target: str) -> Attachment:
        """What is attached under this name, be it the namespace that bears it now or one that is gone."""
        try:
            found = self._of_namespace(find_namespace(target).id)
        except ValueError:
            found = None
        if found is None:
            found = next((held for held in self.all() if target in (held.id, held.namespace)), None)
        if found is None:
            have = ", ".join(held.id for held in self.all()) or "nothing is"
            raise ApiError("not-attached", f"{target} is not attached on this host (attached: {have})")
        return found

    async def drop_vanished(self, ifnames: frozenset[str]) -> None:
        """The namespaces of these ports have ended, and their interfaces with them: free the addresses."""
        async with self._lock:
            gone = [self._held[ifname] for ifname in sorted(ifnames & set(self._held))]
            try:
                await self._drop([held for held in gone if not is_there(held.namespace, held.namespace_id)])
            except ApiError as error:
                log.error("attachments-not-saved", error=error)

    async def _drop(self, gone: list[Attachment]) -> None:
        if not gone:
            return
        await self._save({name: held for name, held in self._held.items() if held not in gone})
        for attachment in gone:
            log.info("namespace-gone", id=attachment.id, addresses=",".join(_texts(attachment)))
            self._around.tell(attachment.ifname, None)
        await self._publish()

    # -- both --------------------------------------------------------------------------------------

    async def _save(self, held: dict[str, Attachment]) -> None:
        """On disk first; only then do we believe it ourselves."""
        document = {"boot": self._boot, "attachments": [held[name].to_json() for name in sorted(held)]}
        try:
            await self._around.write(DOCUMENT, document)
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None
        self._held = held

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ApiError("stopping", "the daemon is stopping; try again when it has been launched anew")

    async def _publish(self) -> dict[str, Fault] | None:
        try:
            async with asyncio.timeout(KERNEL_TIMEOUT_S):
                return await self._around.publish()
        except TimeoutError:
            return None


def _texts(attachment: Attachment) -> list[str]:
    return [str(binding) for binding in attachment.bindings]


def _binding(interface: Interface, claim: int) -> Binding:
    return Binding(interface.ip, interface.network.prefixlen, claim)


def _find(target: str) -> Namespace:
    try:
        return find_namespace(target)
    except ValueError as error:
        raise ApiError("bad-target", str(error)) from None


def _boot_id() -> str:
    """What tells this boot of the machine from any other."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
