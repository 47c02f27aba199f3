"""Attach and detach: the one workflow behind every door.

An attachment is written to disk first, then the kernel is asked for it (by publishing a desired state that has one more
port), then the mesh is told, then the caller. A step that fails takes the earlier ones back. Attachments outlive the
daemon: what is on disk at launch is simply desired again, and the kernel already has it.

They outlive their namespaces too, where it can be known which one is the next (`mesh.attachment`): such an attachment
is *away* then. It keeps its addresses and its MAC, the mesh goes on hearing of them, and only the kernel is not asked
for it. Others tell this module what ended and what is there again; it looks for neither.

Addresses are obtained before anything else, and without the lock, since others may have to be asked for them; what ends
releases its own (`mesh.ipam.keeper`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dataplane.kernel import Fault
from dataplane.linux.netns import is_there
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import ROW_MAX_BYTES
from mesh import arguments, requests
from mesh.attachment import (
    AWAY_MAX,
    Attachment,
    Sandbox,
    after_boot,
    attachment_from_json,
    canonical,
    ifname_of,
    make_binding,
    owner_of,
    too_long_away,
    with_owners,
)
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
from mesh.ipam.allocator import Allocator
from mesh.ipam.keeper import TRIES, Keeper, busy
from mesh.ipam.wants import Claim, FromSubnet, Want
from mesh.logs import EventLog
from mesh.removals import Removal, Removals
from mesh.requests import ApiError
from mesh.store import Store, StoreError
from mesh.targets import Place, Targets

KERNEL_TIMEOUT_S = 10.0
DOCUMENT = "attachments"
MAC_TRIES = 256
TELLING = frozenset({"name-taken", "namespace-gone"})
"""Codes of faults that say more than that it failed."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"

log = EventLog("attach")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the workflow asks of the daemon around it."""

    store: Store
    write: Callable[[str, dict[str, Any]], Awaitable[None]]
    """Write a document into the store and return when it is on disk. Raises `StoreError`."""
    own: PeerName
    table: EndpointTable
    targets: Targets
    nickname_of: Callable[[PeerName], str]
    is_reachable: Callable[[PeerName], bool]
    wait_settled: Callable[[], Awaitable[None]]
    """Returns when a neighbour's state is in, or soon after when there is none to wait for."""
    publish: Callable[[], Awaitable[dict[str, Fault]]]
    """Publish the desired state with the attachments as they now are; the faults of ports, by ifname, once it is done.
    Raises `TimeoutError`."""
    tell: Callable[[str, Endpoint | None], None]
    """Publish or withdraw one of our endpoints, by ifname. Raises `ValueError` where no more of them can be told."""
    ipam: Allocator


class Attachments:
    """What is attached on this host. One change at a time."""

    def __init__(self, around: Surroundings) -> None:
        """Loads what the last life of this daemon had. Raises `StoreError`."""
        self._around = around
        self.keeper = Keeper(around.ipam)
        self._lock = asyncio.Lock()
        self._closed = False
        self._removals = Removals(self._lock, self._remove)
        self._boot = boot_id()
        document = around.store.read(DOCUMENT) or {"boot": self._boot, "attachments": []}
        loaded = with_owners(map(attachment_from_json, document["attachments"]), document["boot"])
        if document["boot"] != self._boot:
            loaded, gone = after_boot(loaded, int(time.time()))
            for attachment in gone:
                log.info("gone-with-the-last-boot", id=attachment.id, addresses=",".join(attachment.texts()))
        self._held: dict[str, Attachment] = {attachment.ifname: attachment for attachment in loaded}

    def all(self) -> list[Attachment]:
        return sorted(self._held.values(), key=lambda attachment: (attachment.id, attachment.ifname))

    def at(self, ifname: str) -> Attachment | None:
        return self._held.get(ifname)

    def here(self) -> list[Attachment]:
        """Those whose namespaces are there."""
        return [attachment for attachment in self.all() if attachment.away_since is None]

    async def close(self) -> None:
        """Let the change that is under way come to its end, and begin no other."""
        self._closed = True
        async with self._lock:
            pass

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """While this is held nothing else changes here; for who must not take an address at the same time."""
        async with self._lock:
            yield

    def refuse_closed(self) -> None:
        """Raises `ApiError` when the daemon is stopping."""
        if self._closed:
            raise ApiError("stopping", "the daemon is stopping; try again when it has been launched anew")

    # -- attach ------------------------------------------------------------------------------------

    async def attach(self, request: requests.Attach) -> Attachment:
        """Raises `ApiError`; then nothing has changed."""
        targets = self._around.targets
        place = targets.at_path(request.target) if request.sandbox else await targets.find(request.target)
        await self._around.wait_settled()
        for _ in range(TRIES):
            self.refuse_closed()
            owner, wants = self._asked(request, place)
            with self.keeper.watch(owner) as watch:
                given = await self.keeper.obtain(owner, wants)
                async with self._lock:
                    try:
                        self.refuse_closed()
                        await self._retire(self._strangers(request, place))
                        if not watch.is_stale and self._asked(request, place) == (owner, wants):
                            return await self._attach(request, place, owner, given)
                    finally:
                        await self._let_go(owner, given)
        raise busy(request.target)

    def _asked(self, request: requests.Attach, place: Place) -> tuple[str, tuple[Want, ...]]:
        """Who is to have which addresses. Raises `ApiError` where others have them."""
        before = self._before(request, place)
        if before is not None and not _is_there(before):
            before = self._awaited(place) if request.sandbox is None else None
        for want in request.addresses:
            if isinstance(want, Claim):
                self._refuse_taken(want.interface, before)
        if before is not None:
            return before.owner, request.addresses
        found = place.namespace
        taken = {held.owner for held in self._held.values()}
        owner = owner_of(found.path, found.id, place.container, self._boot, taken, request.sandbox)
        return owner, request.addresses or (FromSubnet(None),)

    def _before(self, request: requests.Attach, place: Place) -> Attachment | None:
        """What is there already for whoever asks. A runtime asks once for each interface, and gets it or an error."""
        if request.sandbox is None:
            return self._of_namespace(place.namespace.id) or self._awaited(place)
        held = self._of_sandbox(request.sandbox)
        if held is not None and _is_there(held):
            text = f"container {request.sandbox.container} has {request.sandbox.ifname} already"
            raise ApiError("name-taken", f"{text}, with {', '.join(held.texts())}; delete it first")
        return held

    async def _let_go(self, owner: str, given: tuple[Interface, ...]) -> None:
        """Of what was given, whatever is not attached."""
        used = {binding.ip for held in self._held.values() if held.owner == owner for binding in held.bindings}
        await self.keeper.release(owner, {interface.ip for interface in given} - used)

    async def _attach(
        self, request: requests.Attach, place: Place, owner: str, given: tuple[Interface, ...]
    ) -> Attachment:
        """With these addresses."""
        before, wanted = self._plan(request, place, owner, given)
        if wanted == before:
            return wanted
        await self._save(self._held | {wanted.ifname: wanted})
        faults = await self._publish()
        if faults is None or wanted.ifname in faults:
            await self._take_back(before, wanted)
            if faults is None:
                slow = f"the kernel did not take {wanted.id} in {KERNEL_TIMEOUT_S:g} s; try again"
                raise ApiError("kernel-slow", slow)
            fault = faults[wanted.ifname]
            raise ApiError(fault.code if fault.code in TELLING else "attach-failed", fault.text)
        try:
            self._around.tell(wanted.ifname, wanted.endpoint(self._around.own))
        except ValueError as error:
            await self._take_back(before, wanted)
            raise ApiError("too-many", f"{wanted.id} cannot be told to other hosts ({error})") from None
        log.info("attached", id=wanted.id, addresses=",".join(wanted.texts()))
        return wanted

    def _plan(
        self, request: requests.Attach, place: Place, owner: str, given: tuple[Interface, ...]
    ) -> tuple[Attachment | None, Attachment]:
        """What is there for this target, and what should be."""
        before = self._before(request, place)
        bindings = list(before.bindings) if before else []
        for interface in given:
            self._refuse_taken(interface, before)
            at = next((i for i, binding in enumerate(bindings) if binding.ip == interface.ip), None)
            if at is None:
                bindings.append(make_binding(interface, self._around.table.next_claim(interface.ip)))
            else:
                bindings[at] = make_binding(interface, bindings[at].claim)
        if before is not None:
            _refuse_untold(before, request.names)
            labels = tuple(sorted((dict(before.labels) | dict(request.labels)).items()))
            names = tuple(dict.fromkeys((*before.names, *request.names)))
            dns = before.dns and request.dns
            wanted = replace(_moved(before, place), bindings=tuple(bindings), names=names, labels=labels, dns=dns)
        else:
            found = place.namespace
            sandbox = request.sandbox
            ifname = ifname_of(found.path, found.id, place.container, request.network, self._held, sandbox)
            mac = self._mac(request, bindings[0].ip)
            name = place.name if sandbox is None else request.called
            wanted = Attachment(
                name or sandbox.container if sandbox else request.target,
                ifname, found.path, found.id, mac, tuple(bindings), request.names, request.labels,
                request.network, place.container, owner=owner, dns=request.dns, container_name=name,
                inside=request.inside, sandbox=sandbox,
            )  # fmt: skip
        self._refuse_unpublishable(wanted)
        return before, wanted

    def _of_namespace(self, namespace_id: tuple[int, int]) -> Attachment | None:
        here = (held for held in self._held.values() if held.away_since is None and held.sandbox is None)
        return next((held for held in here if held.namespace_id == namespace_id), None)

    def _of_sandbox(self, sandbox: Sandbox) -> Attachment | None:
        asked = (held for held in self._held.values() if held.sandbox is not None)
        return next((held for held in asked if held.sandbox and held.sandbox.key == sandbox.key), None)

    def _awaited(self, place: Place) -> Attachment | None:
        """The attachment that this is the next namespace of."""
        for held in self._held.values():
            if held.container is not None and held.container == place.container:
                return held
            if held.is_named and held.namespace == place.namespace.path:
                return held
        return None

    def _strangers(self, request: requests.Attach | None, place: Place) -> list[Attachment]:
        """Attachments of a namespace that ended and whose number the kernel has given to this one since; and what a
        runtime had asked for under the same name in a sandbox that is gone."""
        before = self._of_sandbox(request.sandbox) if request is not None and request.sandbox is not None else None
        numbered = (held for held in self.here() if held.namespace_id == place.namespace.id or held is before)
        return [held for held in numbered if not _is_there(held)]

    def _refuse_taken(self, interface: Interface, ours: Attachment | None) -> None:
        """An address moves after `detach`, or when its owner is out of reach; else it stays where it is."""
        for held in self._held.values():
            if held is not ours and any(binding.ip == interface.ip for binding in held.bindings):
                away = ", away now" if held.away_since is not None else ""
                raise ApiError(
                    "address-taken",
                    f"{interface.ip} is held by {held.id} on this host{away}; detach it there first (weft detach "
                    f"{interface} {held.id}), or take another address",
                )
        for holder in self._around.table.claimants(interface.ip):
            if holder.owner == self._around.own:
                if holder.is_host:
                    text = f"{interface.ip} is an address of this host itself; hide it first"
                    raise ApiError("address-taken", f"{text} ({holder.release(interface)}), or take another address")
                return
            if self._around.is_reachable(holder.owner):
                host = self._around.nickname_of(holder.owner)
                away = ", away there" if holder.away else ""
                raise ApiError(
                    "address-taken",
                    f"{interface.ip} is held by {holder.id} on host {host}{away}; detach it there first "
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
        row = encode_row(replace(wanted.endpoint(self._around.own), away=True))  # the longest that it will have
        if len(row) > ROW_MAX_BYTES:
            sum_up = f"its id, names and labels come to {len(row)} bytes, and {ROW_MAX_BYTES} are the most"
            raise ApiError("too-many", f"{wanted.id} cannot be told to other hosts: {sum_up}; give fewer or shorter")
        try:
            decode_row_untrusted(self._around.own, row)
        except ProtocolError as error:
            raise ApiError("bad-request", f"{wanted.id} cannot be told to other hosts ({error})") from None

    def _mac(self, request: requests.Attach, first: Address) -> bytes:
        """That of a new attachment."""
        if request.mac is None:
            return self._free_mac(request.network, first, takes_over=True)
        users = [user.id for user in self._around.table.mac_users(request.mac)]
        users += [held.id for held in self._held.values() if held.mac == request.mac]
        if users:
            raise ApiError("mac-taken", f"the MAC {request.mac.hex(':')} is that of {users[0]} already; take another")
        return request.mac

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
        container = await self._container_named(request.target)
        async with self._lock:
            self.refuse_closed()
            attachment = self._named(request.target, container)
            wanted = {interface.ip for interface in request.addresses}
            gone = tuple(binding for binding in attachment.bindings if not wanted or binding.ip in wanted)
            missing = sorted(str(ip) for ip in wanted - {binding.ip for binding in gone})
            if missing:
                have = ", ".join(attachment.texts())
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
            await self.keeper.release(attachment.owner, {binding.ip for binding in gone} if kept else None)
            log.info("detached", id=attachment.id, addresses=",".join(map(str, gone)))
            return gone

    async def remove(self, is_wanted: Callable[[Sandbox], bool], owner: str | None = None) -> list[Attachment]:
        """Take away what runtimes asked for through CNI, and whatever else is given to `owner`. Raises `ApiError`; then
        nothing has changed."""
        return await self._removals.ask(is_wanted, owner)

    async def _remove(self, together: list[Removal]) -> None:
        self.refuse_closed()
        for each in together:
            each.gone = [held for held in self.all() if held.sandbox is not None and each.is_wanted(held.sandbox)]
        gone = {held.ifname for each in together for held in each.gone}
        if gone:
            await self._replace({ifname: held for ifname, held in self._held.items() if ifname not in gone}, "detached")
        owners = {each.owner for each in together if each.owner is not None and not each.gone}
        await asyncio.gather(*(self.keeper.release(owner, None) for owner in sorted(owners)))

    async def rename(self, target: str, add: Collection[str], drop: Collection[str]) -> Attachment:
        """Give it more host names, or fewer. Raises `ApiError`; then nothing has changed."""
        container = await self._container_named(target)
        async with self._lock:
            self.refuse_closed()
            before = self._named(target, container)
            if missing := sorted(set(drop) - {*before.names}):
                have = ", ".join(before.names) or "none"
                raise ApiError("no-such-name", f"{', '.join(missing)} was not added to {before.id} (added: {have})")
            _refuse_untold(before, add)
            names = (name for name in (*before.names, *add) if name not in drop)
            wanted = replace(before, names=tuple(dict.fromkeys(names)))
            self._refuse_unpublishable(wanted)
            held = dict(self._held)
            await self._save(held | {wanted.ifname: wanted})
            try:
                self._around.tell(wanted.ifname, wanted.endpoint(self._around.own))
            except ValueError as error:
                await self._save(held)
                raise ApiError("too-many", f"{wanted.id} cannot be told to other hosts ({error})") from None
            return wanted

    async def _container_named(self, target: str) -> str | None:
        """Docker is asked only where it can matter."""
        if self._of_target(target) is not None or not any(held.container for held in self._held.values()):
            return None
        return await self._around.targets.container(target)

    def _named(self, target: str, container: str | None) -> Attachment:
        """What is attached under this name, be it what bears it now or what is gone. `container`: what Docker says."""
        found = self._of_target(target)
        if found is None:
            containers = [held for held in self.all() if held.container is not None]
            found = next((held for held in containers if container is not None and held.container == container), None)
            if found is None:
                found = next((held for held in containers if held.id == target), None)
            alike = [held for held in containers if str(held.container).startswith(target)]
            if found is None and len(alike) == 1:
                found = alike[0]
        if found is None:
            have = ", ".join(held.id for held in self.all()) or "nothing is"
            raise ApiError("not-attached", f"{target} is not attached on this host (attached: {have})")
        return found

    def _of_target(self, target: str) -> Attachment | None:
        """What is attached to the namespace of that name, or was to one that is gone."""
        namespace = self._around.targets.namespace(target)
        found = self._of_namespace(namespace.id) if namespace is not None else None
        if found is not None:
            return found
        others = (held for held in self.all() if held.container is None)
        return next((held for held in others if target == held.id or canonical(target) == held.namespace), None)

    # -- what ends, and what comes back ------------------------------------------------------------

    async def vanished(self, ifnames: frozenset[str]) -> None:
        """The namespaces of these ports are said to have ended, and their interfaces with them."""
        async with self._lock:
            said = [held for held in self.here() if held.ifname in ifnames]
            await self._unasked(self._retire([held for held in said if not _is_there(held)]))

    async def come_back(self, places: Mapping[str, Place]) -> None:
        """By ifname: where attachments that were away, or elsewhere, are now."""
        async with self._lock:
            await self._unasked(self._restore(places))

    async def forget(self, containers: frozenset[str]) -> None:
        """These containers have been removed and will not come back."""
        async with self._lock:
            held = {name: each for name, each in self._held.items() if each.container not in containers}
            if len(held) < len(self._held):
                await self._unasked(self._replace(held, "container-removed"))

    async def _retire(self, gone: list[Attachment]) -> None:
        """Their namespaces have ended: those that can come back are away from now on."""
        if not gone:
            return
        now_unix_s = int(time.time())
        held = dict(self._held)
        for each in gone:
            if each.comes_back:
                held[each.ifname] = replace(each, away_since=now_unix_s)
                log.info("away", id=each.id, addresses=",".join(each.texts()))
            else:
                del held[each.ifname]
        for each in too_long_away(held, AWAY_MAX):
            del held[each.ifname]
        await self._replace(held, "namespace-gone")

    async def _restore(self, places: Mapping[str, Place]) -> None:
        back: list[Attachment] = []
        for ifname, place in sorted(places.items()):
            found = place.namespace
            await self._retire(self._strangers(None, place))
            before = self._held.get(ifname)
            if before is None or not is_there(found.path, found.id):
                continue  # what was looked at is old news by now
            there = self._of_namespace(found.id) or next((each for each in back if each.namespace_id == found.id), None)
            if there is None:
                back.append(_moved(before, place))
            elif there is not before:
                log.info("cannot-come-back", id=before.id, attached_as=there.id)
        if back:
            await self._replace(self._held | {each.ifname: each for each in back}, "")
            for each in back:
                log.info("came-back", id=each.id, addresses=",".join(each.texts()))

    async def _replace(self, held: dict[str, Attachment], why: str) -> None:
        """Save, tell and publish what nobody asked for. `why`: what is missing in it is."""
        before = self._held
        await self._save(held)
        for ifname in sorted(before.keys() - held.keys()):
            log.info(why, id=before[ifname].id, addresses=",".join(before[ifname].texts()))
            self._around.tell(ifname, None)
        for ifname, each in sorted(held.items()):
            if each.endpoint(self._around.own) != before[ifname].endpoint(self._around.own):
                self._tell_again(each)
        # Both at once: what is released rests before anybody else gets it.
        owners = [before[ifname].owner for ifname in sorted(before.keys() - held.keys())]
        await asyncio.gather(self._publish(), *(self.keeper.release(owner, None) for owner in owners))

    def _tell_again(self, attachment: Attachment) -> None:
        try:
            self._around.tell(attachment.ifname, attachment.endpoint(self._around.own))
        except ValueError as error:
            # One byte more did not fit. What is told already is true but for that.
            log.warning("not-told", id=attachment.id, error=error)

    async def _unasked(self, work: Awaitable[None]) -> None:
        """Do what nobody waits for. With a full disk it stays undone until it is said again."""
        try:
            await work
        except ApiError as error:
            log.error("attachments-not-saved", error=error)

    # -- both --------------------------------------------------------------------------------------

    async def _save(self, held: dict[str, Attachment]) -> None:
        """On disk first; only then do we believe it ourselves."""
        document = {"boot": self._boot, "attachments": [held[name].to_json() for name in sorted(held)]}
        try:
            await self._around.write(DOCUMENT, document)
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None
        self._held = held

    async def _publish(self) -> dict[str, Fault] | None:
        try:
            async with asyncio.timeout(KERNEL_TIMEOUT_S):
                return await self._around.publish()
        except TimeoutError:
            return None


def _is_there(attachment: Attachment) -> bool:
    return is_there(attachment.namespace, attachment.namespace_id)


def _refuse_untold(there: Attachment, names: Collection[str]) -> None:
    """A name that is never told would seem to be one."""
    if names and not there.dns:
        text = f"{there.id} was attached --without-dns, so no name of it is told; detach it and attach it without that"
        raise ApiError("no-names", text)


def _moved(attachment: Attachment, place: Place) -> Attachment:
    """The same, where it is now. What it belongs to is kept, but a container is the better thing to belong to than a
    name, and a name than nothing."""
    found = place.namespace
    stays = attachment.namespace_id == found.id and attachment.away_since is None and not place.container
    path = attachment.namespace if stays and attachment.comes_back else found.path
    container = attachment.container or place.container
    name = place.name or attachment.container_name
    return replace(
        attachment, namespace=path, namespace_id=found.id, container=container, away_since=None, container_name=name
    )


def boot_id() -> str:
    """What tells this boot of the machine from any other."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
