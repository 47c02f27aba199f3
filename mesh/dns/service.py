"""DNS on one host, put together: the zone and who fills it, the server, the forwarder, the files of namespaces.

What the daemon has to do with. Its answers come from the replica alone, so no question about a container ever waits for
another host. Whatever is missing here (a namespace, a socket, a file) is told by `status dns`, and the network goes on
without it.
"""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, ip_address
from pathlib import Path
from random import Random
from typing import Any

from dataplane.desired import Port
from gossip.events import Event, OwnerForgotten, PageChanged, PeerChanged
from gossip.names import PeerName, format_name
from gossip.pages import TablePager
from mesh.attachment import Attachment
from mesh.config import LaunchConfig
from mesh.dns import resolvconf
from mesh.dns.forwarder import Forwarder
from mesh.dns.message import text_name
from mesh.dns.names import ADDRESSES_MAX, FAR, NAMES_TABLE, Zone, encode_bare
from mesh.dns.namespace import HOST_ADDRESS, DnsNamespace
from mesh.dns.resolvconf import HostFile, NamespaceFiles
from mesh.dns.resolver import OWN_V4, OWN_V6, Resolver
from mesh.dns.server import Server
from mesh.dns.words import DNS_PORT, SHOWN_MAX, DnsChange
from mesh.endpoints import Address, EndpointTable
from mesh.ipam.wants import Claim
from mesh.logs import EventLog
from mesh.requests import ApiError, Attach
from mesh.store import StoreError

DOCUMENT = "names"
LOOK_S = 5.0
"""Between two looks at the host's resolv.conf, and at who is near."""
BARE_NAMES_MAX = 10_000
NEAR_MS = 2.0
"""Hosts within this are all equally near: a local network."""

log = EventLog("dns")


@dataclass(frozen=True, slots=True)
class Around:
    """What DNS asks of the daemon around it."""

    own: PeerName
    table: EndpointTable
    reachable: Callable[[], frozenset[PeerName]]
    rtts_s: Callable[[], Mapping[PeerName, float]]
    """By peer, where known."""
    nickname_of: Callable[[PeerName], str]
    page_body: Callable[[PeerName, str, int], bytes | None]
    """What a page of the replica says."""
    publish: Callable[[str, int, bytes], None]
    """Tell a page of one of our tables."""
    write: Callable[[str, dict[str, Any]], Awaitable[None]]
    attachments: Callable[[], Sequence[Attachment]]
    attachment: Callable[[str], Attachment | None]
    """By ifname."""


class Dns:
    """One host's names."""

    def __init__(self, config: LaunchConfig, around: Around, document: dict[str, Any] | None, random: Random) -> None:
        """`document`: what was kept on disk of names for bare addresses."""
        self.enabled = config.dns
        self.domain = config.dns_domain
        self._upstreams = config.dns_upstreams
        self._around = around
        self._rtts_s: Mapping[PeerName, float] = {}
        self.zone = Zone(self.domain, around.own, around.table, self._rank)
        self._resolver = Resolver(self.zone, random)
        self._forwarder = Forwarder(random)
        self._server = Server(self._resolver, self._forwarder.ask)
        self._host = HostFile(resolvconf.HOST_FILE)
        self._files = NamespaceFiles(resolvconf.NETNS_DIRECTORY, config.state_dir)
        self._namespace: DnsNamespace | None = None
        self._trouble = ""
        self._names_of_files: dict[str, str] = {}
        """By ifname, the named namespace whose file is ours to write."""
        self._bare: dict[str, tuple[Address, ...]] = {}
        for name, addresses in (document or {"names": []})["names"]:
            self._bare[name] = tuple(ip_address(address) for address in addresses)
        self._pager = TablePager()
        self._changing = asyncio.Lock()

    # -- life --------------------------------------------------------------------------------------

    async def open(self, worker_pid: int | None) -> None:
        """Serve as soon as the kernel has the port. `worker_pid`: a sleeve worker of an earlier life."""
        self._tell(self._bare)
        if not self.enabled:
            self._files.remove_all()
            return
        self._host.look()
        self._use_servers()
        try:
            self._namespace = DnsNamespace(worker_pid)
            await self._server.serve(self._namespace.open_sockets())
        except OSError as error:
            self._trouble = f"the server cannot be opened ({error.strerror or error})"
            log.error("dns-not-opened", error=error)
            return
        log.info("dns-serves", address=OWN_V4, domain=self.domain, adopted=self._namespace.is_adopted)
        self._files.remove_all(but=[_named(each) for each in self._around.attachments() if _has_file(each)])
        self._write_files()

    async def run(self) -> None:
        """Keep what is outside of us in sight."""
        while True:
            self._rtts_s = self._around.rtts_s()
            self.zone.measure_again()
            self._look_at_host()
            await asyncio.sleep(LOOK_S)

    def close(self, gone: bool) -> None:
        """`gone`: for good."""
        self._server.close()
        self._forwarder.close()
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None
        if gone and self.enabled:
            self._files.remove_all()

    @property
    def held(self) -> tuple[int, ...]:
        """Descriptors that a worker which outlives us should hold too."""
        return (self._namespace.descriptor,) if self._namespace is not None else ()

    @property
    def beside(self) -> tuple[IPv4Interface, ...]:
        """The host's own addresses on the bridge, to ask its server by."""
        return (HOST_ADDRESS,) if self._namespace is not None else ()

    def ports(self, containers: tuple[Port, ...]) -> tuple[Port, ...]:
        """With the server's, and with the way to it."""
        return self._namespace.ports(containers) if self._namespace is not None else containers

    def _look_at_host(self) -> None:
        if self._host.look():
            self._use_servers()
            self._write_files()

    def _use_servers(self) -> None:
        named = self._upstreams or [(text, DNS_PORT) for text in self._host.content.servers]
        self._forwarder.use([(text, port) for text, port in named if not _is_own(text)])

    def _write_files(self) -> None:
        for attachment in self._around.attachments():
            self._write_file(attachment)

    # -- what is said ------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        match event:
            case PageChanged(owner, table, index) if table == NAMES_TABLE:
                if (body := self._around.page_body(owner, table, index)) is not None:
                    self.zone.bare_page_untrusted(owner, index, body)
            case OwnerForgotten(owner):
                self.zone.forget(owner)
            case PeerChanged():
                self.zone.set_reachable(self._around.reachable())

    def endpoints_changed(self, owner: PeerName, index: int) -> None:
        """The table of endpoints has taken a page."""
        self.zone.page_changed((owner, index))

    def told(self, ifname: str) -> None:
        """What is attached at a port, or no more, has been told to the mesh."""
        attachment = self._around.attachment(ifname)
        before = self._names_of_files.get(ifname)
        if before is not None and (attachment is None or not _has_file(attachment) or _named(attachment) != before):
            del self._names_of_files[ifname]
            self._files.remove(before)
        if attachment is not None:
            self._write_file(attachment)

    def _write_file(self, attachment: Attachment) -> None:
        if self._namespace is None or not _has_file(attachment):
            return
        has_v4 = any(binding.ip.version == 4 for binding in attachment.bindings)
        server = str(OWN_V4) if has_v4 else f"{OWN_V6}%{attachment.port.guest_ifname}"
        search, owner = self._host.content.search, self._files.owner
        name = self._names_of_files[attachment.ifname] = _named(attachment)
        self._files.write(name, resolvconf.compose(server, self.domain, search, owner))

    def _rank(self, owner: PeerName) -> int:
        """Small is near."""
        rtt_s = self._rtts_s.get(owner)
        if rtt_s is None:
            return FAR
        return max(0, math.ceil(math.log2(max(rtt_s * 1000, 1e-3) / NEAR_MS)))

    # -- what is asked through the API -------------------------------------------------------------

    def relative(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names without our domain. Raises `ApiError` for those under another."""
        found = []
        for text in names:
            name = self.zone.relative(text)
            if name is None and text.lower().removesuffix(".") == self.domain:
                raise ApiError("foreign-name", f"{text} is the domain of this mesh itself; give a name under it")
            if name is None:
                cure = f"give {text.split('.')[0]} or {text}.{self.domain}, or launch with --dns-domain"
                raise ApiError("foreign-name", f"{text} is not under the domain {self.domain} of this mesh; {cure}")
            found.append(name)
        return tuple(dict.fromkeys(found))

    def accept(self, request: Attach) -> Attach:
        """An attachment's request, its names relative to our domain. Raises `ApiError`."""
        for want in request.addresses:
            if isinstance(want, Claim) and want.interface.ip in (OWN_V4, OWN_V6, HOST_ADDRESS.ip):
                cure = "take another address"
                raise ApiError("address-taken", f"{want.interface.ip} is that of every host's DNS server; {cure}")
        return replace(request, names=self.relative(request.names)) if self.enabled else request

    def for_runtimes(self) -> dict[str, Any] | None:
        """What runtimes are told of the server, as CNI's results say it; None where there is none."""
        return {"nameservers": [str(OWN_V4)], "domain": self.domain, "search": [self.domain]} if self.enabled else None

    async def change(self, request: DnsChange) -> dict[str, Any]:
        """Add or remove names of bare addresses. Raises `ApiError`; then nothing has changed."""
        names = self.relative(request.names)
        async with self._changing:
            bare = dict(self._bare)
            for name in names:
                before = bare.pop(name, ())
                if request.add:
                    after = tuple(dict.fromkeys((*before, *request.addresses)))
                else:
                    after = tuple(each for each in before if each not in request.addresses)
                    if missing := [str(each) for each in request.addresses if each not in before]:
                        have = ", ".join(map(str, before)) or "none"
                        text = f"{', '.join(missing)} was not added to {name} on this host (added here: {have})"
                        raise ApiError("no-such-name", text)
                if len(after) > ADDRESSES_MAX:
                    raise ApiError("too-many", f"{name} would have {len(after)} addresses; at most {ADDRESSES_MAX}")
                if after:
                    bare[name] = after
            if len(bare) > BARE_NAMES_MAX:
                raise ApiError("too-many", f"{len(bare)} names would be too many; at most {BARE_NAMES_MAX}")
            kept = [[name, [str(address) for address in bare[name]]] for name in sorted(bare)]
            try:
                await self._around.write(DOCUMENT, {"names": kept})
            except StoreError as error:
                raise ApiError("not-saved", str(error)) from None
            self._bare = bare
            self._tell(names)
        return {"names": [self._whole(name) for name in names]}

    def _tell(self, names: Iterable[str]) -> None:
        """Names of bare addresses as they now are. Each page that changes is told once."""
        changed: dict[int, None] = {}
        for name in names:
            addresses = self._bare.get(name)
            pages = self._pager.put(name, encode_bare(name, addresses)) if addresses else self._pager.remove(name)
            changed.update(dict.fromkeys(pages))
        for index in changed:
            body = self._pager.body(index)
            self._around.publish(NAMES_TABLE, index, body)
            self.zone.bare_page_untrusted(self._around.own, index, body)

    def whole(self, names: Sequence[str]) -> list[str]:
        return [self._whole(name) for name in names]

    def _whole(self, name: str) -> str:
        return f"{name}.{self.domain}."

    def lookup(self, text: str) -> dict[str, Any]:
        """What this host knows of a name or an address. Raises `ApiError` where that is nothing."""
        try:
            address = ip_address(text.removeprefix("ip:").partition("/")[0])
        except ValueError:
            pass
        else:
            if names := self.zone.names_at(address):
                return {"name": str(address), "addresses": [], "names": [text_name(each) for each in names]}
            raise ApiError("no-such-name", f"no name is known here for {address}; weft status dns lists what there is")
        # A container's own name may have dots in it, and is asked for as it is written.
        wire = self.zone.qualify(text)
        entry = self.zone.lookup(wire) if wire is not None else None
        packed = [each for groups in (entry.v4, entry.v6) for group in groups for each in group] if entry else []
        if wire is None or not packed:
            name = self._whole(self.relative([text])[0])
            raise ApiError("no-such-name", f"{name} is not known; weft status dns lists what there is")
        return {"name": text_name(wire), "addresses": [str(ip_address(each)) for each in packed], "names": []}

    def status(self) -> dict[str, Any]:
        rows = self.zone.rows(SHOWN_MAX) if self.enabled else []
        counters = self._resolver.counters + self._forwarder.counters + self._server.counters
        return {
            "enabled": self.enabled,
            "serving": self._namespace is not None and not self._trouble,
            "domain": f"{self.domain}.",
            "address": str(OWN_V4),
            "address6": str(OWN_V6),
            "ttl_s": 1,
            "upstreams": [_server_text(*server) for server in self._forwarder.servers],
            "upstreams_from": "--dns-upstream" if self._upstreams else str(resolvconf.HOST_FILE),
            "forwarding": len(self._forwarder),
            "names": len(self.zone),
            "own_names": self.zone.count_of(self._around.own),
            "counters": dict(sorted(counters.items())),
            "malformed_rows": self.zone.malformed,
            "warnings": self.warnings(),
            "entries": [
                {
                    "name": text_name(row.name),
                    "address": str(row.address),
                    "peer": format_name(row.owner),
                    "nickname": self._around.nickname_of(row.owner),
                    "local": row.owner == self._around.own,
                    "target": row.target,
                }
                for row in rows
            ],
            "more": len(self.zone) - len({row.name for row in rows}) if len(rows) >= SHOWN_MAX else 0,
        }

    def troubles(self) -> list[dict[str, str]]:
        """Those warnings that concern everybody."""
        return [each for each in self.warnings() if each["code"] == "dns-down"]

    def warnings(self) -> list[dict[str, str]]:
        """What is wrong, each with what to do."""
        if not self.enabled:
            return []
        found = []
        if self._trouble:
            found.append(("dns-down", self._trouble, "launch again as root; the log says more"))
        elif not self._forwarder.servers:
            text = f"no upstream is known, so other names than {self.domain} are not answered"
            found.append(
                ("dns-no-upstream", text, f"name one in {resolvconf.HOST_FILE}, or launch with --dns-upstream")
            )
        for attachment in self._around.attachments():
            if attachment.dns and attachment.unfit_name is not None:
                text = f"{attachment.unfit_name} is no host name, so it is not answered"
                found.append(("dns-unfit-name", text, f"give one: weft dns-add {shlex.quote(attachment.id)} -h NAME"))
        for name, text in sorted(self._files.troubles.items()):
            cure = f"let it say `nameserver {OWN_V4}`, or remove it and attach {name} again"
            found.append(("dns-no-file", f"{name}: {text}", cure))
        return [{"code": code, "text": text, "cure": cure} for code, text, cure in found]


def _has_file(attachment: Attachment) -> bool:
    return attachment.dns and attachment.is_named


def _named(attachment: Attachment) -> str:
    return Path(attachment.namespace).name


def _is_own(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    return address in (OWN_V4, OWN_V6) or address.is_unspecified


def _server_text(host: str, port: int) -> str:
    if port == DNS_PORT:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
