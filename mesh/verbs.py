"""What the API's verbs do: one request in, one JSON value or one `ApiError` out.

Stands between the socket (`mesh.api`) and the parts of a running daemon, which it is given; it makes none of them and
ends none of them. Reading verbs are views from `mesh.status`; attach and detach are the workflow in `mesh.attach`,
expose and hide that in `mesh.expose`; those about given addresses are in `mesh.ipam.verbs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dataplane.engine import Report
from gossip.names import PeerName, format_name
from gossip.node import Node
from gossip.transport import Transport
from mesh import arguments, requests, status
from mesh.api import SendRow
from mesh.attach import Attachments
from mesh.cni.door import CniDoor
from mesh.cni.words import CniAdd, CniCheck, CniDel, CniGc, CniStatus
from mesh.dns.service import Dns
from mesh.dns.words import DnsChange, DnsLookup
from mesh.dockernet.service import DockerNetworks
from mesh.endpoints import bridge_mac
from mesh.expose import Exposures
from mesh.forwarding import NONE, UNREACHABLE, Path
from mesh.ipam import verbs as ipam_verbs
from mesh.ipam.allocator import Allocator
from mesh.ipam.mending import Mending
from mesh.ipam.ranges import Allocation
from mesh.pinger import Pinger
from mesh.requests import ApiError
from mesh.returns import Returns
from mesh.router import Router
from mesh.store import StoreError
from mesh.version import VERSION

PING_TIMEOUT_S = 1.0
TARGETS = "targets"
"""The document that keeps them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the daemon knows of itself."""

    started: float
    """Monotonic seconds."""
    encrypted: bool
    weak_password: str | None
    report: Callable[[], Report | None]
    """The kernel side's last one."""
    sleeve: Callable[[], status.SleeveView]
    returns: Returns
    dns: Dns
    ipam: Allocator
    mending: Mending
    cni: CniDoor
    docker: DockerNetworks
    allocation: Allocation
    """What the user said of the addresses to be given."""


class Verbs:
    """The verbs of one daemon."""

    def __init__(
        self,
        node: Node,
        router: Router,
        attachments: Attachments,
        exposures: Exposures,
        transport: Transport,
        pinger: Pinger,
        facts: Facts,
        write: Callable[[str, dict[str, Any]], Awaitable[None]],
        end: Callable[[bool], None],
    ) -> None:
        """`write` puts a document on disk and raises `StoreError`; `end` ends the daemon, with True for good."""
        self._node = node
        self._router = router
        self._attachments = attachments
        self._exposures = exposures
        self._transport = transport
        self._pinger = pinger
        self._facts = facts
        self._write = write
        self._end = end
        self._targets_changing = asyncio.Lock()
        self._ipam_verbs = ipam_verbs.IpamVerbs(facts.ipam, router, facts.mending)

    async def handle(self, request: requests.Request, send_row: SendRow) -> object:
        """Answer one request from the socket. Raises `ApiError`."""
        match request:
            case requests.Read(verb):
                return self._read(verb)
            case requests.Connect(peers, replace):
                return await self._connect(list(peers), replace)
            case requests.Forget(peers):
                return await self._forget(list(peers))
            case requests.Attach():
                # Shielded: a change is finished or taken back, also when whoever asked cannot be answered any more.
                accepted = self._facts.dns.accept(request)
                attachment = await asyncio.shield(self._attachments.attach(accepted))
                return status.ps([attachment])[0]
            case requests.Detach():
                self._facts.docker.refuse_detach(request.target)
                gone = await asyncio.shield(self._attachments.detach(request))
                return {"addresses": [str(binding) for binding in gone]}
            case requests.Expose():
                return status.exposed(await asyncio.shield(self._exposures.expose(request)))
            case requests.Hide():
                return status.exposed(await asyncio.shield(self._exposures.hide(request)))
            case requests.Ping():
                return await self._ping(request, send_row)
            case (
                requests.Prime()
                | requests.RemovePeers()
                | requests.IpamJoin()
                | requests.IpamExport()
                | requests.IpamImport()
                | requests.IpamCheck()
            ):
                return await self._ipam_verbs.handle(request, send_row)
            case CniAdd() | CniDel() | CniCheck() | CniGc() | CniStatus():
                return await asyncio.shield(self._facts.cni.handle(request))
            case DnsChange():
                return await asyncio.shield(self._change_names(request))
            case DnsLookup(name):
                return self._facts.dns.lookup(name)
            case requests.Stop():
                self._end(False)
            case requests.Reset():
                self._end(True)
        return {}

    def _read(self, verb: str) -> object:
        now = time.monotonic()
        views: dict[str, Callable[[], object]] = {
            "status": self._summary,
            "peers": lambda: status.peers(self._router),
            "connections": lambda: status.connections(self._router, self._facts.encrypted, self._facts.sleeve()),
            "targets": lambda: status.targets(self._router, now),
            "endpoints": lambda: status.endpoints(self._router, now),
            "ipam": self._facts.ipam.status,
            "dns": self._facts.dns.status,
            "ps": lambda: [
                *status.ps(self._attachments.all()),
                *self._facts.docker.rows(),
                *status.ps_host(self._exposures.endpoint()),
            ],
        }
        if verb == "report":
            return {name: view() for name, view in views.items()} | {
                "version": VERSION,
                "history": status.history(self._router),
                "counters": status.counters(
                    self._router, self._facts.report(), self._pinger.counters, self._facts.sleeve()
                ),
                "returns": self._facts.returns.report(),
            }
        return views[verb]()

    def _summary(self) -> object:
        now = time.monotonic()
        attachments = self._attachments.all()
        view = self._facts.sleeve()
        warnings = status.warnings(
            self._router, self._facts.report(), attachments, self._facts.weak_password, view, now
        )
        warnings += self._facts.returns.warnings()
        warnings += ipam_verbs.warnings(self._facts.ipam, self._facts.allocation)
        warnings += self._facts.dns.troubles()
        warnings += self._facts.docker.warnings()
        summary = status.summary(
            self._router, VERSION, now - self._facts.started, self._facts.encrypted, attachments,
            self._transport.refusals, warnings, view, now,
        )  # fmt: skip
        return summary | {"ipam": ipam_verbs.summary(self._facts.ipam)}

    async def _change_names(self, request: DnsChange) -> object:
        dns = self._facts.dns
        if request.target is None:
            return await dns.change(request)
        names = dns.relative(request.names)
        await self._attachments.rename(request.target, names if request.add else (), () if request.add else names)
        return {"names": dns.whole(names)}

    async def _connect(self, peers: list[str], replace: bool) -> object:
        async with self._targets_changing:
            known = [] if replace else [row.target for row in self._node.targets(time.monotonic())]
            wanted = [*known, *(peer for peer in peers if peer not in known)]
            if len(wanted) > arguments.PEERS_MAX:
                most = f"{len(wanted)} targets would be too many: at most {arguments.PEERS_MAX}"
                raise ApiError("too-many", f"{most}; a few are enough, the others are found through them")
            await self._save_targets(wanted)
            self._transport.perform(self._node.connect(peers, time.monotonic(), replace_all=replace))
        return {"targets": wanted}

    async def _forget(self, peers: list[str]) -> object:
        async with self._targets_changing:
            known = [row.target for row in self._node.targets(time.monotonic())]
            unknown = [peer for peer in peers if peer not in known]
            if unknown:
                have = ", ".join(known) or "there are none"
                raise ApiError("not-a-target", f"{', '.join(unknown)} is not a target (targets: {have})")
            left = [target for target in known if target not in peers]
            await self._save_targets(left)
            self._node.forget(peers)
        return {"targets": left}

    async def _save_targets(self, targets: list[str]) -> None:
        try:
            await self._write(TARGETS, {"targets": targets})
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None

    async def _ping(self, request: requests.Ping, send_row: SendRow) -> object:
        name = self._resolve(request.peer)
        who = status.nickname(self._router, name)
        path = self._path(name, who)
        times: list[float] = []
        for sequence in range(1, request.count + 1):
            begun = time.monotonic()
            path = self._path(name, who)
            rtt_s = await self._pinger.ping(bridge_mac(name), self._router.mtu, PING_TIMEOUT_S)
            rtt_ms = None if rtt_s is None else round(rtt_s * 1000, 3)
            times += [] if rtt_ms is None else [rtt_ms]
            address = status.frames_go_to(path, self._facts.sleeve().peers.get(name))
            await send_row({"seq": sequence, "path": path.kind, "rtt_ms": rtt_ms, "address": address, "peer": who})
            if sequence < request.count:
                await asyncio.sleep(max(0.0, request.interval_s - (time.monotonic() - begun)))
        times.sort()
        return {
            "sent": request.count,
            "received": len(times),
            "path": path.kind,
            "min_ms": times[0] if times else None,
            "median_ms": times[len(times) // 2] if times else None,
        }

    def _path(self, name: PeerName, who: str) -> Path:
        path = self._router.paths.get(name, Path(NONE, UNREACHABLE))
        if path.kind == NONE:
            raise ApiError("no-path", f"there is no path to {who} ({path.reason}); see `weft status connections`")
        return path

    def _resolve(self, text: str) -> PeerName:
        found = [name for name in self._router.find_peer(text) if name in self._router.paths]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(format_name, found))
            raise ApiError("ambiguous-peer", f"{text} is the nickname of several peers; give a name: {names}")
        known = ", ".join(status.nickname(self._router, name) for name in self._router.paths) or "there are none"
        raise ApiError("unknown-peer", f"no other peer is called {text} (known: {known})")
