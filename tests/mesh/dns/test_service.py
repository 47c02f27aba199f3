"""DNS on one host, put together: names for addresses, files of namespaces, what is told where something is wrong."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from random import Random
from typing import Any

import dns.message
import pytest

from mesh.attachment import Attachment
from mesh.config import LaunchConfig
from mesh.dns import resolvconf
from mesh.dns import service as service_module
from mesh.dns.forwarder import Forwarder
from mesh.dns.message import parse_query_untrusted
from mesh.dns.service import Around, Dns
from mesh.dns.words import DnsChange
from mesh.endpoints import Binding, EndpointTable
from mesh.ipam.wants import Claim
from mesh.requests import ApiError, Attach
from mesh.store import StoreError
from tests.mesh.dns.oracle import H1, H2


class FakeNamespace:
    """No namespace, and no sockets."""

    is_adopted = False
    descriptor = 99

    def __init__(self, worker_pid: int | None) -> None:
        self.worker_pid = worker_pid

    def open_sockets(self) -> list[socket.socket]:
        return []

    def close(self) -> None: ...


class Stand:
    """A daemon's place."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.path = path
        self.written: list[dict[str, Any]] = []
        self.published: list[tuple[str, int, bytes]] = []
        self.attachments: list[Attachment] = []
        self.refusal: StoreError | None = None
        around = Around(
            own=H1, table=EndpointTable(), reachable=lambda: frozenset((H2,)), rtts_s=lambda: {H2: 0.008},
            nickname_of=lambda peer: peer.hex()[:2], page_body=lambda *_: None,
            publish=lambda *page: self.published.append(page), write=self._write, attachments=lambda: self.attachments,
            attachment=lambda name: next((each for each in self.attachments if each.ifname == name), None),
        )  # fmt: skip
        document = config.pop("document", None)
        self.dns = Dns(LaunchConfig(str(path), str(path), **config), around, document, Random(1))

    async def _write(self, name: str, payload: dict[str, Any]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.written.append(payload)


def attachment(name: str, address: str = "10.32.1.1/16", **fields: Any) -> Attachment:
    found = ip_interface(address)
    binding = Binding(found.ip, found.network.prefixlen, 1)
    made = Attachment(name, f"vw{name}", f"/run/netns/{name}", (4, 1), b"\2abcde", (binding,), (), (), "weft")
    return replace(made, **fields)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    monkeypatch.setattr(resolvconf, "HOST_FILE", tmp_path / "resolv.conf")
    monkeypatch.setattr(resolvconf, "NETNS_DIRECTORY", tmp_path / "netns")
    monkeypatch.setattr(service_module, "DnsNamespace", FakeNamespace)
    (tmp_path / "resolv.conf").write_text("search corp.example\nnameserver 192.0.2.1\nnameserver 169.254.6.53\n")
    return lambda **config: Stand(tmp_path, **config)


def run(work: Awaitable[None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work, 20)

    asyncio.run(limited())


def change(*names: str, add: bool = True, addresses: tuple[str, ...] = ("10.0.0.1",)) -> DnsChange:
    return DnsChange(add, names, tuple(map(ip_address, addresses)), None)


def test_names_for_addresses_are_kept_told_and_answered(stand: Callable[..., Stand]) -> None:
    """On disk first; a daemon that starts again tells them again, each page once."""

    async def work() -> None:
        one = stand()
        await one.dns.open(None)
        assert await one.dns.change(change("nas", "b.weft.local")) == {"names": ["nas.weft.local.", "b.weft.local."]}
        await one.dns.change(change("nas", addresses=("fd00::1",)))
        assert one.dns.lookup("NAS")["addresses"] == ["10.0.0.1", "fd00::1"]
        assert one.dns.lookup("10.0.0.1")["names"] == ["b.weft.local.", "nas.weft.local."]
        again = stand(document=one.written[-1])
        await again.dns.open(None)
        assert len(again.published) == 1 and again.dns.lookup("nas.weft.local.")["addresses"] == ["10.0.0.1", "fd00::1"]
        await again.dns.change(change("nas", add=False, addresses=("10.0.0.1", "fd00::1")))
        with pytest.raises(ApiError, match=r"nas\.weft\.local\. is not known"):
            again.dns.lookup("nas")
        assert again.written[-1] == {"names": [["b", ["10.0.0.1"]]]}

    run(work())


def test_a_name_with_dots_is_looked_up_as_it_is_written(stand: Callable[..., Stand]) -> None:
    """With the domain or without; what has names below it alone has no address."""

    async def work() -> None:
        one = stand()
        await one.dns.open(None)
        await one.dns.change(change("c1.1.weft.local"))
        for text in ("c1.1", "C1.1.Weft.Local."):
            found = one.dns.lookup(text)
            assert (found["name"], found["addresses"]) == ("c1.1.weft.local.", ["10.0.0.1"])
        for text, code, says in (
            ("1", "no-such-name", r"1\.weft\.local\. is not known"),
            ("c1.2", "foreign-name", r"not under the domain weft\.local .* give c1 or c1\.2\.weft\.local"),
            ("weft.local", "foreign-name", "is the domain of this mesh itself"),
        ):
            with pytest.raises(ApiError, match=says) as refused:
                one.dns.lookup(text)
            assert refused.value.code == code

    run(work())


def test_what_is_refused_changes_nothing(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other domains, addresses that were not added, too many, a full disk."""

    async def work() -> None:
        one = stand()
        await one.dns.open(None)
        await one.dns.change(change("nas"))
        monkeypatch.setattr(service_module, "BARE_NAMES_MAX", 1)
        many = tuple(f"10.1.0.{number}" for number in range(1, 65))
        for request, code in (
            (change("www.example.org"), "foreign-name"),
            (change("nas", add=False, addresses=("10.0.0.2",)), "no-such-name"),
            (change("nas", addresses=many), "too-many"),
            (change("other"), "too-many"),
        ):
            with pytest.raises(ApiError) as refused:
                await one.dns.change(request)
            assert refused.value.code == code
        one.refusal = StoreError("the disk is full")
        with pytest.raises(ApiError, match="disk is full"):
            await one.dns.change(change("nas", addresses=("10.0.0.9",)))
        assert one.dns.lookup("nas")["addresses"] == ["10.0.0.1"] and len(one.written) == 1
        assert one.dns.lookup("10.0.0.1")["addresses"] == []
        with pytest.raises(ApiError, match=r"no name is known here for 10\.9\.9\.9"):
            one.dns.lookup("10.9.9.9")

    run(work())


def test_the_servers_address_is_nobody_elses(stand: Callable[..., Stand]) -> None:
    one = Attach("c1", (Claim(ip_interface("169.254.6.53/16")),), "weft", (), ())

    async def work() -> None:
        with pytest.raises(ApiError, match="every host's DNS server"):
            stand().dns.accept(one)
        fine = replace(one, addresses=(), names=("Web.weft.local", "web"))
        assert stand().dns.accept(fine).names == ("web",)
        with pytest.raises(ApiError, match=r"x\.org is not under the domain weft\.local"):
            stand().dns.accept(replace(fine, names=("x.org",)))

    run(work())


def test_files_follow_attachments_and_the_hosts_file(stand: Callable[..., Stand], tmp_path: Path) -> None:
    """The search list is ours before the host's; unnamed ones and those without DNS have no file."""

    async def work() -> None:
        one = stand()
        one.attachments = [attachment("c1"), attachment("c2", dns=False), attachment("c3", namespace="/proc/7/ns/net")]
        left = tmp_path / "netns" / "gone"
        resolvconf.NamespaceFiles(tmp_path / "netns", str(tmp_path)).write(
            "gone", resolvconf.compose("169.254.6.53", "weft.local", [], str(tmp_path))
        )
        await one.dns.open(None)
        assert not left.exists()
        path = tmp_path / "netns" / "c1" / "resolv.conf"
        assert "search weft.local corp.example\nnameserver 169.254.6.53\n" in path.read_text()
        assert [each.name for each in (tmp_path / "netns").iterdir()] == ["c1"]
        (tmp_path / "resolv.conf").write_text("search other.example\nnameserver 192.0.2.77\n")
        one.dns._look_at_host()
        assert "search weft.local other.example\n" in path.read_text()
        assert one.dns.status()["upstreams"] == ["192.0.2.77"]
        one.attachments = [attachment("c1", "fd00::1/64")]
        one.dns.told("vwc1")
        assert "nameserver fe80::6:53%ethwe\n" in path.read_text()
        one.attachments = []
        one.dns.told("vwc1")
        assert not path.parent.exists()

    run(work())


def test_what_is_wrong_is_told_with_what_to_do(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no upstream, names that are none, files of others. Only the first concerns everybody."""

    def refuse(_: int | None) -> FakeNamespace:
        raise OSError(errno.EPERM, "Operation not permitted")

    async def work() -> None:
        one = stand(dns_upstreams=(("192.0.2.9", 53), ("169.254.6.53", 53)))
        one.path.joinpath("resolv.conf").unlink()
        await one.dns.open(None)
        assert one.dns.status()["upstreams"] == ["192.0.2.9"] and one.dns.warnings() == []
        one = stand()
        one.attachments = [attachment("c1"), attachment("my:db")]
        theirs = one.path / "netns" / "c1" / "resolv.conf"
        theirs.parent.mkdir(parents=True)
        theirs.write_text("nameserver 9.9.9.9\n")
        await one.dns.open(None)
        one.dns.told("vwc1")
        assert [each["code"] for each in one.dns.warnings()] == ["dns-no-upstream", "dns-unfit-name", "dns-no-file"]
        assert all(each["cure"] for each in one.dns.warnings()) and one.dns.troubles() == []
        one.attachments = [attachment("my db")]
        assert "weft dns-add 'my db' -h NAME" in [each["cure"] for each in one.dns.warnings()][1], "as a shell takes it"
        monkeypatch.setattr(service_module, "DnsNamespace", refuse)
        down = stand()
        await down.dns.open(None)
        assert down.dns.troubles()[0]["code"] == "dns-down" and not down.dns.status()["serving"]
        assert down.dns.ports(()) == () and down.dns.held == ()
        off = stand(dns=False)
        await off.dns.open(None)
        assert off.dns.status()["enabled"] is False and off.dns.warnings() == []

    run(work())


def test_near_hosts_are_equals_and_far_ones_are_not(stand: Callable[..., Stand]) -> None:
    """By doublings of what a local network takes; unmeasured ones come last."""

    async def work() -> None:
        one = stand().dns
        ranks = []
        for rtt_s in (0.0, 0.0001, 0.0019, 0.003, 0.007, 0.1):
            one._rtts_s = {H2: rtt_s}
            ranks.append(one._rank(H2))
        one._rtts_s = {}
        assert ranks == [0, 0, 0, 1, 2, 6] and one._rank(H2) > 100

    run(work())


# -- the forwarder's sockets -----------------------------------------------------------------------


def test_every_try_has_a_port_of_its_own_and_a_refusal_is_heard_at_once() -> None:
    """The first server is not there, so the second is asked within the same moment."""

    async def work() -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        nobody.bind(("127.0.0.1", 0))
        absent = nobody.getsockname()
        nobody.close()
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(Random(5))
        forwarder.use([absent, server.getsockname()])
        ports = set()
        for number in range(20):
            told: asyncio.Future[bytes | None] = loop.create_future()
            query = parse_query_untrusted(dns.message.make_query(f"n{number}.org.", "A").to_wire())
            forwarder.ask(query, "10.0.0.1", False, told.set_result)
            data, source = await asyncio.wait_for(loop.sock_recvfrom(server, 4096), 1.0)
            ports.add(source[1])
            server.sendto(dns.message.make_response(dns.message.from_wire(data)).to_wire(), source)
            answer = await asyncio.wait_for(told, 1.0)
            assert answer is not None and answer[:2] == query.id.to_bytes(2, "big")
        assert len(ports) > 18 and min(ports) >= 1024 and max(ports) - min(ports) > 10_000
        assert not forwarder._sockets and len(forwarder) == 0
        forwarder.close()
        server.close()

    run(work())
