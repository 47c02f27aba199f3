"""The composition root: opens everything, wires it together, and closes in order.

Three things run: the event loop with gossip and the API, the engine's thread with the kernel, and the sleeve worker, a
process. Events of the node come in; a desired state goes out to the engine, and peers to the worker; reports come back.
Changes that arrive together lead to one desired state, so a burst of gossip costs one comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from random import SystemRandom
from typing import Any

from dataplane.desired import Desired
from dataplane.engine import Report
from dataplane.kernel import Fault
from dataplane.linux.underlay import Survey
from dataplane.objects import tap_name
from dataplane.sleeve.control import Configure
from gossip.events import Event, NameConflict, NameContested, OwnerForgotten, PageChanged, PeerChanged, Settled
from gossip.names import PeerName, format_name
from gossip.node import Node, NodeConfig
from gossip.pages import TablePager
from gossip.peers import LIVE, PeerRecord
from gossip.secret import NO_SECRET_PSK, derive_psk, warning_for
from gossip.transport import Transport
from mesh import api, directories, requests, status
from mesh.attach import Attachments, Surroundings, boot_id
from mesh.cni.door import CniDoor
from mesh.config import LaunchConfig
from mesh.dns import service
from mesh.dns.service import Dns
from mesh.docker import Docker
from mesh.dockernet import driver as docker_driver
from mesh.dockernet.service import DockerNetworks
from mesh.endpoints import ENDPOINTS_TABLE, Endpoint, bridge_mac, encode_row
from mesh.errors import UserError
from mesh.expose import Exposures
from mesh.forwarding import UNDERLAY_MTU, Local, Path
from mesh.handover import Handover
from mesh.heap import Heap
from mesh.identity import SLEEVE_KEY, Keys, document_of, keys_of
from mesh.ipam.build import build
from mesh.ipam.mending import Mending
from mesh.ipam.service import Mesh
from mesh.ipam.statement import IPAM_TABLE
from mesh.logs import EventLog
from mesh.offloadguard import DOCUMENT as OFFLOADS
from mesh.offloadguard import OffloadGuard
from mesh.pinger import Pinger
from mesh.probes import DOCUMENT as PROBES
from mesh.probes import Probes
from mesh.returns import Returns
from mesh.router import BRIDGE, VNI, Router, Seen
from mesh.sleeve import Supervisor
from mesh.store import Store, StoreError
from mesh.targets import Targets
from mesh.udpreach import UDP_TABLE, own_page
from mesh.underlay import Underlay
from mesh.verbs import TARGETS, Facts, Verbs
from mesh.version import VERSION

SETTLE_LIMIT_S = 60.0
"""What an earlier life left in the kernel of remote endpoints stays this long at most without news of them."""
ATTACH_SETTLE_S = 2.0
COPIED = (
    "something else speaks with this host's identity: its state directory was copied, or restored from a backup. Run "
    "`weft reset` on all but one of those hosts"
)
SAVE_RETRY_S = 5.0
IDENTITY = "identity"

log = EventLog("daemon")


class Daemon:
    """One host's router, from launch to stop."""

    def __init__(self, config: LaunchConfig, store: Store, survey: Survey) -> None:
        self._config = config
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self._psks = [derive_psk(password) for password in config.passwords] or [NO_SECRET_PSK]
        weak = (warning_for(password) for password in config.passwords[:1])
        self._weak_password = next(iter(weak), None)
        self._stop = asyncio.Event()
        self._has_started = False
        self._gone = False
        self._closed = False
        self._refresh_due: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handover = Handover(self._on_report)
        self._transport: Transport | None = None
        self._verbs: Verbs | None = None
        self._pager = TablePager()
        self._underlay = Underlay(BRIDGE, config.host, config.advertise, survey)
        self._had_bridge = bool(survey.bridge_mtu)
        self._disk = asyncio.Lock()

        self._keys, epoch = _load_identity(store)
        identity = self._keys.identity
        self._first_targets = _load_targets(store, config)
        node_config = NodeConfig(port=config.port, discovery=config.discovery)
        record = PeerRecord(config.nickname, secrets.token_bytes(16), LIVE, VERSION, (), {})
        self.node = Node(identity, record, epoch, node_config, SystemRandom(), self._started)
        self._router = Router(self.node, self._underlay.mtu, self._started, survey.bridge_mtu)
        self._router.own_mtu_over_ipv6 = self._underlay.mtu_over_ipv6
        self._told_mtu = self._underlay.mtu
        if config.ipalloc.instead:
            log.warning("range", text=config.ipalloc.instead, instead=config.ipalloc.range4)
        self._heap = Heap()
        targets = Targets(Docker(config.docker_socket))
        self._ipam = build(
            config.ipalloc, store.directory, identity.name, config.nickname, epoch, boot_id(), self._router.table,
            Mesh(
                self._publish_ipam,
                lambda: self.node.replica.reachable,
                lambda peer: status.nickname(self._router, peer),
                lambda: len(self.node.targets(time.monotonic())) + 1,
            ),
        )  # fmt: skip
        around = self._around_attachments(targets)
        self._attachments = Attachments(around)
        self._exposures = Exposures(around, self._attachments)
        self._docker = DockerNetworks(
            config.docker_plugin, targets.docker, store.read(docker_driver.DOCUMENT), around, self._attachments.keeper,
            config.dns,
        )  # fmt: skip
        self._mending = Mending(self._attachments, self._exposures, self._docker.owners)
        self._returns = Returns(self._attachments, targets)
        self._dns = Dns(config, self._around_dns(), store.read(service.DOCUMENT), SystemRandom())
        own_mac = bridge_mac(identity.name)
        self._cni = CniDoor(
            self._attachments, self._exposures, self._ipam, self._dns.accept, self._publish_ports,
            self._dns.for_runtimes, lambda: {"bridge": BRIDGE, "bridge_mac": own_mac.hex(":"), "mtu": self._router.mtu},
            store.check_room,
        )  # fmt: skip
        self._pinger = Pinger(BRIDGE, own_mac, lambda mac: mac in self._router.peer_macs)
        self._probes = Probes(
            BRIDGE, VNI, config.port + 1, identity.name, store.read(PROBES), self._router.owner_of,
            lambda version, mac: mac in (self._router.peer_macs if version == 4 else self._router.macs_over_ipv6),
            self._write, self._spawn, self._refresh_soon, lambda peers: self._sleeve.expect(peers),
        )  # fmt: skip
        self._router.path_mtus = self._path_mtus()
        self._router.mtu = min(self._router.mtu, self._router.told_mtu)
        self._offloads = OffloadGuard(
            BRIDGE, own_mac, os.uname().release, store.read(OFFLOADS), config.offloads_off, SystemRandom(),
            lambda mac: mac in self._router.peer_macs, self._on_offloads,
        )  # fmt: skip
        self._sleeve = Supervisor(
            config.run_dir, config.state_dir, self._sleeve_settings(), epoch, on_news=self._refresh_soon
        )

    def _around_attachments(self, targets: Targets) -> Surroundings:
        return Surroundings(
            store=self._store,
            write=self._write,
            own=self._keys.identity.name,
            table=self._router.table,
            targets=targets,
            ipam=self._ipam,
            nickname_of=lambda peer: status.nickname(self._router, peer),
            is_reachable=lambda peer: peer in self.node.replica.reachable,
            wait_settled=self._wait_settled,
            publish=self._publish_ports,
            tell=self._tell,
        )

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the port, then the kernel, then dial. What fails undoes itself in `close`. Raises `UserError`.

        A worker under another configuration has ended, and a VXLAN device that must not be is gone, before a worker of
        ours starts: what was in clear has stopped when the first sealed record goes out."""
        transport = Transport(
            self.node, self._keys.identity.link_private, self._psks, self._config.port, self._config.host or None,
            self._on_event, self._store_epoch,
        )  # fmt: skip
        for attachment in self._attachments.all():
            self._tell(attachment.ifname, attachment.endpoint(self.node.name))
        if (host := self._exposures.endpoint()) is not None:
            self._tell(BRIDGE, host)
        for ifname, endpoint in self._docker.endpoints().items():
            self._tell(ifname, endpoint)
        self._describe()
        try:
            await transport.start()
        except OSError as error:
            raise _cannot_listen(self._config, error) from None
        self._transport = transport
        if self._config.peers is not None:  # they replace those of the last launch
            await self._write(TARGETS, {"targets": self._first_targets})
        await self._sleeve.prepare()
        self._handover.open(directories.forwarding_path(self._config.state_dir))
        await self._dns.open(self._sleeve.pid if self._config.dns else None)
        self._sleeve.keeps = self._dns.held
        await self._handover.first(self._decide())
        await self._sleeve.start()
        self._open_probe_sockets()
        self._spawn(self._underlay.watch(self._on_survey))
        self._spawn(self._returns.run())
        self._spawn(self._dns.run())
        self._ipam.start()
        await self._mending.begin()
        self._spawn(self._mending.run())
        self._spawn(self._docker.run())
        transport.perform(self.node.connect(self._first_targets, time.monotonic()))
        self._verbs = Verbs(
            self.node, self._router, self._attachments, self._exposures, transport, self._pinger,
            Facts(
                self._started, bool(self._config.passwords), self._weak_password, lambda: self._handover.report,
                self._sleeve_view, self._returns, self._dns, self._ipam, self._mending, self._cni, self._docker,
                self._config.ipalloc,
            ),
            self._write, self._end,
        )  # fmt: skip
        self._has_started = True

    def stop(self) -> None:
        self._end(False)

    def _end(self, gone: bool) -> None:
        """`gone`: for good, leaving nothing behind."""
        self._gone = self._gone or gone
        self._stop.set()

    async def wait_stopped(self) -> None:
        await self._stop.wait()

    async def close(self) -> None:
        """Leave the mesh and end every part. The kernel is left as it is, except after `reset`, and after a start that
        failed where there was nothing of ours before."""
        self._closed = True
        self._handover.abandon()
        await self._attachments.close()
        if self._gone and self._has_started:
            await self._ipam.resign()
        if self._transport is not None:
            self._transport.perform(self.node.leave(self._gone, time.monotonic()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._docker.close()
        await self._ipam.close()
        self._pinger.close()
        self._probes.close()
        self._offloads.close()
        self._dns.close(self._gone)
        if self._transport is not None:
            await self._transport.stop()
        await self._sleeve.close(end=self._gone or (not self._has_started and self._sleeve.started > 0))
        await self._handover.close(remove=self._gone or not (self._has_started or self._had_bridge))
        log.info("stopped", removed=self._gone)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("task-failed", error=repr(failure))
            self._stop.set()

    # -- from the node to the kernel ---------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case PeerChanged(peer):
                record = self.node.replica.peers.get(peer)
                reachable = peer in self.node.replica.reachable
                log.info("peer", peer=format_name(peer), nickname=record and record.nickname, reachable=reachable)
                if self._transport is not None:
                    self._describe()
                self._ipam.look_around()
            case PageChanged(owner, table, index) if table == IPAM_TABLE and owner != self.node.name:
                page = self.node.replica.store.get((owner, table, index))
                if page is not None:
                    self._ipam.hear_untrusted(owner, index, page.body)
            case OwnerForgotten(owner):
                self._ipam.forget(owner)
            case Settled():
                log.info("settled")
            case NameConflict(text):
                log.error("name-in-use", text=text)
                self._ipam.copied(COPIED)
            case NameContested(text):
                log.error("name-contested", text=text)
                self._ipam.copied(COPIED)
        if self._router.take(event):
            self._refresh_soon()
        if isinstance(event, PageChanged) and event.table == ENDPOINTS_TABLE:
            self._dns.endpoints_changed(event.owner, event.index)
        else:
            self._dns.take(event)

    def _refresh_soon(self) -> None:
        if self._refresh_due is None and self._handover.is_open and not self._closed:
            self._refresh_due = self._loop.call_soon(self._refresh)

    def _refresh(self) -> None:
        """Publish the desired state if it has changed."""
        self._refresh_due = None
        self._handover.offer(self._decide())

    def _decide(self) -> Desired:
        """The desired state as it now is."""
        now = time.monotonic()
        local = Local(
            name=self.node.name,
            has_secret=bool(self._config.passwords),
            vxlan=self._config.vxlan,
            vxlan_port=self._config.port + 1,
            networks=self._underlay.survey.networks,
            addresses=self._underlay.addresses,
            nat=self._is_behind_nat(),
            vxlan6=self._underlay.has_ipv6,
            zones=self._underlay.survey.zones,
            offloads_off=self._offloads.vxlan_off,
        )
        attached = tuple(attachment.port for attachment in self._attachments.here())
        ports = self._dns.ports((*attached, *self._docker.ports()))
        settled = self._router.is_settled(now, SETTLE_LIMIT_S)
        self._router.path_mtus = self._path_mtus()
        desired = self._router.refresh(
            local, ports, self._config.mtu, now, time.time(), settled, self._seen(), self._log_path,
            tuple(held.wanted for held in self._exposures.all()),
        )  # fmt: skip
        desired = replace(desired, beside=self._dns.beside)
        if self._router.told_mtu != self._told_mtu:
            self._describe()
        sizes = {version: self._router.probe_bytes(version) for version in self._router.probed}
        known = self._router.paths if settled else None
        self._probes.watch(self._router.ways(self._underlay.mtu_over_ipv4), self._router.lost, sizes, known)
        self._offloads.watch(self._router, self._sleeve.peers, self._underlay.survey)
        self._sleeve.tell(self._router.sleeve_peers, self._router.graph, settled)
        self._say_who_passes_udp()
        lost = frozenset(endpoint.mac for endpoint in self._router.lost_macs(now))
        if lost and not self._closed:
            self._spawn(self._attachments.give_way(lost))
        return desired

    def _seen(self) -> Seen:
        return Seen(self._probes.verdicts, self._probes.has_answered, self._sleeve.known)

    def _log_path(self, peer: PeerName, path: Path) -> None:
        log.info("path", peer=format_name(peer), path=path.kind, reason=path.reason, address=path.destination,
                 via=[format_name(name) for name in path.between] or None)  # fmt: skip

    async def _publish(self) -> Report:
        """Publish the desired state as it now is, and wait until the kernel has it. Raises `TimeoutError`."""
        if self._refresh_due is not None:
            self._refresh_due.cancel()
            self._refresh_due = None
        return await self._handover.publish(self._decide())

    async def _publish_ports(self) -> dict[str, Fault]:
        self._returns.wake()
        return dict((await self._publish()).port_faults)

    def _on_report(self, report: Report) -> None:
        if self._closed:
            return
        self._open_probe_sockets()
        vanished = frozenset(name for name, fault in report.port_faults.items() if fault.code == "namespace-gone")
        if vanished:
            self._spawn(self._returns.vanished(vanished))

    # -- the sleeve, and whether VXLAN gets through ------------------------------------------------

    def _sleeve_settings(self) -> Configure:
        """What the worker is configured with, but for its epoch."""
        return Configure(
            version=VERSION,
            name=self._keys.identity.name,
            private_key=self._keys.sleeve_private,
            psks=tuple(self._psks) if self._config.passwords else (),
            tap=tap_name(BRIDGE),
            hosts=(self._config.host,) if self._config.host else (),
            port=self._config.port,
            offloads_off=self._offloads.sleeve_off,
        )

    def _sleeve_view(self) -> status.SleeveView:
        paths = self._router.paths.items()
        serving = {name: path.destination.version for name, path in paths if path.destination is not None}
        measured = {name: size for name in serving if (size := self._router.path_mtu(name)) is not None}
        return status.SleeveView(
            self._sleeve.peers, self._sleeve.status, self._sleeve.started, self._sleeve.trouble(time.monotonic()),
            self._probes.rtts_s(serving), self._probes.counters, measured, self._offloads.view,
        )  # fmt: skip

    def _open_probe_sockets(self) -> None:
        self._pinger.open()
        if self._config.vxlan and not self._config.passwords:
            self._probes.open()
        self._offloads.open()

    def _path_mtus(self) -> Mapping[int, Mapping[PeerName, int]]:
        """What was measured, where it matters."""
        return self._probes.path_mtus if self._config.vxlan and not self._config.passwords else {}

    def _on_offloads(self) -> None:
        """What lies has changed: the kernel and the worker must do without other offloads than before."""
        faults = self._offloads.view.faults
        log.warning("offloads", lying=", ".join(f"{each.offload}: {each.device}" for each in faults) or "none")
        self._sleeve.reconfigure(self._sleeve_settings())
        self._refresh_soon()
        if not self._closed:
            self._spawn(self._save_offloads())

    async def _save_offloads(self) -> None:
        try:
            await self._write(OFFLOADS, self._offloads.document)
        except StoreError as error:
            log.warning("offloads-not-saved", error=error)

    # -- what we say of ourselves ------------------------------------------------------------------

    def _tell(self, ifname: str, endpoint: Endpoint | None) -> None:
        """Publish or withdraw one of our endpoints: one page of the table changes."""
        changed = self._pager.put(ifname, encode_row(endpoint)) if endpoint else self._pager.remove(ifname)
        now = time.monotonic()
        for index in sorted(changed):
            body = self._pager.body(index)
            outcomes = self.node.publish(ENDPOINTS_TABLE, index, body, now)
            self._router.malformed_rows += self._router.table.replace_page(self.node.name, index, body)
            self._dns.endpoints_changed(self.node.name, index)
            if self._transport is not None:
                self._transport.perform(outcomes)
        self._dns.told(ifname)
        self._refresh_soon()

    def _describe(self) -> None:
        """Our own `peer` document: addresses, best first, and what others need to reach us."""
        record = self.node.replica.peers[self.node.name]
        if record.state != LIVE:
            return
        self._told_mtu = self._router.told_mtu
        port = self._config.port
        attributes: dict[str, int | str | bool | bytes] = {
            "mtu": self._config.mtu or self._told_mtu,
            UNDERLAY_MTU: self._underlay.mtu_over_ipv4,
            "vxlan": self._config.vxlan and not self._config.passwords,
            "vxlan_port": port + 1,
            "advertise": bool(self._config.advertise),
            SLEEVE_KEY: self._keys.sleeve_public,
        }
        if self._is_behind_nat():
            attributes["nat"] = True
        described = replace(record, addresses=self._underlay.told_addresses(port), attributes=attributes)
        outcomes = self.node.describe(described, time.monotonic())
        if self._transport is not None:
            self._transport.perform(outcomes)

    def _publish_ipam(self, index: int, body: bytes) -> None:
        self._publish_page(IPAM_TABLE, index, body)

    def _around_dns(self) -> service.Around:
        store, own = self.node.replica.store, self.node.name
        return service.Around(
            own=own,
            table=self._router.table,
            reachable=lambda: frozenset(self.node.replica.reachable),
            rtts_s=self._rtts_s,
            nickname_of=lambda peer: status.nickname(self._router, peer),
            page_body=lambda owner, table, index: page.body if (page := store.get((owner, table, index))) else None,
            publish=self._publish_page,
            write=self._write,
            attachments=lambda: self._attachments.all(),
            attachment=lambda ifname: self._attachments.at(ifname),
        )

    def _rtts_s(self) -> Mapping[PeerName, float]:
        """To peers, as far as links and workers have measured."""
        by_sleeve = {name: peer.rtt_ms / 1000 for name, peer in self._sleeve.peers.items() if peer.rtt_ms is not None}
        return by_sleeve | {link.peer: link.rtt_s for link in self.node.links() if link.rtt_s is not None}

    def _publish_page(self, table: str, index: int, body: bytes) -> None:
        outcomes = self.node.publish(table, index, body, time.monotonic())
        if self._transport is not None:
            self._transport.perform(outcomes)

    def _say_who_passes_udp(self) -> None:
        """One page that says with which link neighbours our worker exchanges datagrams: others find ways by it."""
        body = own_page((link.peer for link in self.node.links()), self._sleeve.known)
        outcomes = self.node.publish(UDP_TABLE, 0, body, time.monotonic())
        self._router.reach.take_untrusted(self.node.name, body)
        if self._transport is not None:
            self._transport.perform(outcomes)

    def _is_behind_nat(self) -> bool:
        return self._underlay.is_behind_nat(link.observed for link in self.node.links())

    def _on_survey(self, left: frozenset[str] | None) -> None:
        """After each look at the underlay: tell what is new, let holds expire, keep the probe sockets open and the
        heap still. `left`: addresses that are not ours any more, or None where nothing has changed."""
        if left is not None:
            if self._transport is not None:
                self._transport.drop_from(left)
            self._router.own_mtu = self._underlay.mtu
            self._router.own_mtu_over_ipv6 = self._underlay.mtu_over_ipv6
            self._describe()
        self._open_probe_sockets()
        self._refresh_soon()
        self._heap.settle(len(self._router.table))

    async def _store_epoch(self, epoch: int) -> None:
        """Somebody saw a later epoch of ours: on disk first, however long that takes."""
        self._ipam.copied(COPIED)
        while True:
            try:
                await self._write(IDENTITY, document_of(self._keys, epoch))
                self._sleeve.renew(epoch)
                return
            except StoreError as error:
                log.error("epoch-not-saved", error=error)
                await asyncio.sleep(SAVE_RETRY_S)

    async def _write(self, name: str, payload: dict[str, Any]) -> None:
        """Put a document on disk, one at a time. Raises `StoreError`. A thread that has begun cannot be stopped, so it
        is waited for, whoever is cancelled: the next one must not write beside it."""
        async with self._disk:
            writing = asyncio.ensure_future(asyncio.to_thread(self._store.write, name, payload))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])
                raise

    async def handle(self, request: requests.Request, send_row: api.SendRow) -> object:
        """Answer one request from the socket. Raises `ApiError`."""
        assert self._verbs is not None, "the socket is served only after the start"
        return await self._verbs.handle(request, send_row)

    # -- small things ------------------------------------------------------------------------------

    async def _wait_settled(self) -> None:
        """With links up, what others hold is known in a moment: wait for it rather than take an address twice."""
        deadline = time.monotonic() + ATTACH_SETTLE_S
        while not (self.node.settled or self._closed) and self.node.links() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def _load_identity(store: Store) -> tuple[Keys, int]:
    """The host's keys, made where they are missing, and the epoch of this start, already on disk."""
    document = store.read(IDENTITY)
    keys, epoch = keys_of(document, os.urandom), int(document["epoch"]) + 1 if document else 1
    store.write(IDENTITY, document_of(keys, epoch))
    return keys, epoch


def _load_targets(store: Store, config: LaunchConfig) -> list[str]:
    """Those named at launch; without any, those of the last one, which must be readable in either case."""
    document = store.read(TARGETS) or {"targets": []}
    return [str(target) for target in document["targets"]] if config.peers is None else list(config.peers)


def _cannot_listen(config: LaunchConfig, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"TCP port {config.port} is in use by another program; end that (ss -ltnp 'sport = :{config.port}' names "
            "it), or launch with --port on every host"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{config.host} is not an address of this host; give one of `ip address` with --host")
    with contextlib.suppress(ValueError):
        return UserError(f"cannot listen on TCP port {config.port}: {os.strerror(error.errno or 0)}")
    return UserError(f"cannot listen on TCP port {config.port}: {error}")
