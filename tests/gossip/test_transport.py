"""Real sockets on loopback, under both event loops: nodes that meet, dials that fail, epochs on their way to disk."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

import gossip.transport as transport_module
from gossip.documents import BODY_MAX_BYTES
from gossip.events import Dial, Event, Outcome, PageChanged, PeerChanged, StoreEpoch
from gossip.names import PeerName
from gossip.secret import NO_SECRET_PSK
from tests.gossip.loopback import Host, Run, hosts, linked, until

# Meeting


def test_two_hosts_link_and_share_what_they_know(run: Run) -> None:
    """Published before the link or after, in either direction; the events say so, in order."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.publish(0, b"before")
            a.connect(b.address)
            await until(lambda: linked(a, b))
            b.publish(7, b"after")
            await until(lambda: b.node.replica.store.get((a.node.name, "rows", 0)))
            await until(lambda: a.node.replica.store.get((b.node.name, "rows", 7)))
            await until(lambda: a.node.settled and b.node.settled)
            assert a.node.replica.store.root_digest() == b.node.replica.store.root_digest()
            assert PageChanged(a.node.name, "rows", 0) in b.events
            assert PeerChanged(b.node.name) in a.events
            assert a.node.links()[0].remote == b.address
            assert b.node.links()[0].observed == b.address
            await until(lambda: a.node.links()[0].rtt_s is not None)
            assert 0 < (a.node.links()[0].rtt_s or 0) < 1

    run(test)


def test_links_from_an_address_that_went_end_at_once_and_are_dialled_anew(run: Run) -> None:
    """Those from other addresses stay."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: linked(a, b))
            a.transport.drop_from({"192.0.2.1"})
            assert len(a.node.links()) == 1
            (before,) = (link.remote for link in b.node.links())
            a.transport.drop_from({"127.0.0.1"})
            await until(lambda: [link.remote for link in b.node.links()] not in ([], [before]))
            await until(lambda: linked(a, b))

    run(test)


def test_no_segment_is_longer_than_what_every_path_takes(run: Run) -> None:
    """Whatever this host's own interfaces take (loopback: 64 KiB), in both directions of a link."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: linked(a, b))
            for host in (a, b):
                (connection,) = host.transport._open
                assert connection._socket is not None
                own = connection._socket.get_extra_info("socket")
                longest = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
                assert longest <= transport_module.SEGMENT_BYTES < 1280

    run(test)


def test_a_host_that_leaves_says_so(run: Run) -> None:
    """Its last words are written before the sockets close."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(b):
            async with hosts(a):
                a.connect(b.address)
                await until(lambda: linked(a, b))
                a.transport.perform(a.node.leave(gone=True, now=a.transport.now()))
            await until(lambda: b.node.links() == [])
            assert b.node.replica.peers[a.node.name].state == "gone"

    run(test)


def test_a_thousand_pages_cross_whatever_the_sockets_take(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many times what a socket holds: the link is full, is ready again, and everything arrives."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            for index in range(1000):
                a.publish(index, bytes(BODY_MAX_BYTES))
            assert b.transport._server is not None
            for listener in b.transport._server.sockets:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            full: list[int] = []
            told = a.node.link_full

            def link_full(link_id: int) -> None:
                full.append(link_id)
                told(link_id)

            monkeypatch.setattr(a.node, "link_full", link_full)
            a.connect(b.address)
            await until(lambda: a.node.replica.store.root_digest() == b.node.replica.store.root_digest())
            assert full

    run(test)


def test_what_a_listener_causes_is_done_after_what_is_there(run: Run) -> None:
    """Whoever hears an event may publish at once: nothing is lost, and nothing is done twice."""

    async def test() -> None:
        a, b = Host(1), Host(2)

        def on_event(event: Event) -> None:
            if isinstance(event, PeerChanged) and event.peer == b.node.name:
                a.publish(0, b"hello b")

        a.transport._on_event = on_event
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: b.node.replica.store.get((a.node.name, "rows", 0)))
            assert linked(a, b)

    run(test)


# Dialling that fails


def failures_heard(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node of `host` is told of dials that failed."""
    heard: list[str] = []

    def dial_failed(key: str | PeerName, error: str, now: float) -> list[Outcome]:
        heard.append(error)
        return []

    monkeypatch.setattr(host.node, "dial_failed", dial_failed)
    return heard


def test_a_wrong_password_is_named_on_both_sides(run: Run) -> None:
    """The dialler's target says password; the other counts it, with the address that tried."""

    async def test() -> None:
        a, b = Host(1, psk=b"a" * 32), Host(2, psk=b"b" * 32)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: "wrong password" in a.target_error())
            assert b.address in a.target_error()
            assert b.refused("wrong-password") == 1
            assert b.transport.refusals["wrong-password"].last[0].startswith("127.0.0.1:")
            assert a.transport.refusals == {}
            assert a.node.links() == b.node.links() == []
            assert a.node.targets(a.transport.now())[0].state == "waiting"

    run(test)


def test_an_interface_that_is_not_there_is_named(run: Run) -> None:
    """One cause, one line; the dial ends at once."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            a.connect("[fe80::1%nosuch0]:1")
            await until(a.target_error)
            assert a.target_error() == "fe80::1%nosuch0: this host has no interface nosuch0"

    run(test)


def test_nobody_listening_is_named(run: Run) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        a = Host(1)
        async with hosts(a):
            a.connect(f"127.0.0.1:{port}")
            await until(a.target_error)
            assert a.target_error() == f"127.0.0.1 port {port}: connection refused (is weft running there?)"

    run(test)


def test_silence_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is never answered ends by our own patience, and says what to look at."""
    monkeypatch.setattr(transport_module, "CONNECT_TIMEOUT_S", 0.05)

    async def test() -> None:
        a = Host(1)
        async with hosts(a):

            async def never(*_: object, **__: object) -> None:
                await asyncio.sleep(60)

            monkeypatch.setattr(a.transport._loop, "create_connection", never)
            a.connect("127.0.0.1:9")
            await until(a.target_error)
            assert a.target_error() == "127.0.0.1 port 9: no answer in 0.05 s (is TCP 9 open in its firewall?)"

    run(test)


class NameServer:
    """In place of the loop's: answers as told, and counts."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answer: Callable[[], str] = lambda: "127.0.0.1"
        monkeypatch.setattr(host.transport._loop, "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: int, **options: int) -> list[Any]:
        self.asked.append((host, options["flags"]))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.answer(), port))]


def test_a_name_is_looked_up_again_at_each_try(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve says so; as soon as it does, the link comes up."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            names = NameServer(a, monkeypatch)

            def unknown() -> str:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            names.answer = unknown
            a.connect(f"later.example:{b.port}")
            await until(lambda: len(names.asked) == 2)
            assert a.target_error() == "cannot resolve later.example: Name or service not known"
            names.answer = lambda: "127.0.0.1"
            await until(lambda: linked(a, b))
            assert names.asked[0] == ("later.example", 0) and len(names.asked) == 3
            assert a.node.targets(a.transport.now())[0].state == "connected"

    run(test)


@pytest.mark.parametrize("name", ["a..b", "." + "a" * 70, "x" * 64 + ".example"])
def test_a_name_that_is_none_is_named(name: str, run: Run) -> None:
    """What the resolver refuses to look up at all must not end the dial without a word."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            a.connect(f"{name}:1")
            await until(a.target_error)
            assert a.target_error().startswith(f"cannot resolve {name}: ")
            assert a.node.targets(a.transport.now())[0].state == "waiting"

    run(test)


def test_name_servers_that_say_nothing_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "RESOLVE_TIMEOUT_S", 0.05)

    async def test() -> None:
        a = Host(1)
        async with hosts(a):

            async def never(*_: object, **__: object) -> None:
                await asyncio.sleep(60)

            monkeypatch.setattr(a.transport._loop, "getaddrinfo", never)
            a.connect("slow.example:1")
            await until(a.target_error)
            assert a.target_error() == "cannot resolve slow.example: no answer from the name servers in 0.05 s"

    run(test)


def test_addresses_are_tried_in_turn_for_so_long_and_no_longer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer with many dead addresses holds its place among the few dials at once for a bounded time."""
    monkeypatch.setattr(transport_module, "CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(transport_module, "DIAL_TIMEOUT_S", 0.12)

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            tried: list[object] = []

            async def never(_: object, host: str, port: int) -> None:
                tried.append(port)
                await asyncio.sleep(60)

            monkeypatch.setattr(a.transport._loop, "create_connection", never)
            failures = failures_heard(a, monkeypatch)
            addresses = tuple(f"127.0.0.1:{port}" for port in range(1, 17))
            a.transport.perform([Dial(b.node.name, addresses)])
            await until(lambda: failures)
            assert tried == [1, 2, 3]
            assert failures[0].startswith("127.0.0.1 port 2: no answer")

    run(test)


def test_the_second_address_serves_when_the_first_does_not(run: Run) -> None:
    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.transport.perform([Dial(b.node.name, ("127.0.0.1:1", b.address))])
            await until(lambda: linked(a, b))

    run(test)


def test_what_peers_call_their_address_is_never_looked_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member could have every other ask name servers for whatever it likes."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            names = NameServer(a, monkeypatch)
            a.transport.perform([Dial(b.node.name, ("victim.example:80",))])
            await until(lambda: names.asked)
            assert names.asked == [("victim.example", socket.AI_NUMERICHOST)]

    run(test)


# The disk


def test_epochs_are_stored_one_after_the_other_and_the_latest_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is slow, later wishes replace each other; the node hears of what is really stored."""

    async def test() -> None:
        a = Host(1)
        gate = asyncio.Event()
        heard: list[int] = []

        async def slow_disk(epoch: int) -> None:
            a.epochs.append(epoch)
            await gate.wait()

        def epoch_stored(epoch: int, now: float) -> list[Outcome]:
            heard.append(epoch)
            return []

        monkeypatch.setattr(a.transport, "_store_epoch", slow_disk)
        monkeypatch.setattr(a.node, "epoch_stored", epoch_stored)
        async with hosts(a):
            for epoch in (5, 7, 6):
                a.transport.perform([StoreEpoch(epoch)])
                await asyncio.sleep(0)
            gate.set()
            await until(lambda: heard)
            assert (a.epochs, heard) == ([5, 7], [7])
            a.transport.perform([StoreEpoch(9)])
            await until(lambda: len(heard) == 2)
            assert (a.epochs, heard) == ([5, 7, 9], [7, 9])

    run(test)


def test_no_secret_is_a_secret_that_everybody_has(run: Run) -> None:
    async def test() -> None:
        a, b = Host(1, psk=NO_SECRET_PSK), Host(2, psk=NO_SECRET_PSK)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: linked(a, b))

    run(test)


def test_a_port_that_is_taken_is_an_error(run: Run) -> None:
    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a):
            b.transport._port = a.port
            with pytest.raises(OSError):
                await b.transport.start()

    run(test)
