"""Everything that knocks and is no node: counted, closed, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

import gossip.transport as transport_module
from gossip.documents import BODY_MAX_BYTES
from gossip.events import Send
from gossip.transport import UNFINISHED_MAX
from gossip.wire import FIRST_NAME, LAST_NAME, Bye, Digest, PageMessage, Ping, Pong, Want, encode
from tests.gossip.actors import page
from tests.gossip.loopback import Host, Run, Stranger, hosts, linked, until

# Bytes that break the rules


GARBAGE = {
    "bad-magic": b"GET / HTTP/1.1\r\n\r\n",
    "bad-version": b"WEFT\x07\x09",
    "too-long": b"WEFT\x01\x01\x01\xff\xff",
    "bad-handshake": b"WEFT\x01\x01\x01\x00\x30" + bytes(48),
    "bad-frame": b"WEFT\x01\x01\x02\x00\x30" + bytes(48),
}


@pytest.mark.parametrize("reason", sorted(GARBAGE))
def test_garbage_is_counted_and_closed(reason: str, run: Run) -> None:
    """Before any secret is shown; the links that stand go on."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: linked(a, b))
            link = b.node.links()[0]
            stranger = await Stranger.knock(b)
            stranger.give(GARBAGE[reason])
            await stranger.closed()
            assert b.refused(reason) == 1
            assert b.transport.refusals[reason].last[0] == "{}:{}".format(*stranger.writer.get_extra_info("sockname"))
            stranger.leave()
            a.publish(0, b"still here")
            await until(lambda: b.node.replica.store.get((a.node.name, "rows", 0)))
            assert b.node.links() == [link] or b.node.links()[0].since == link.since

    run(test)


def test_a_connection_that_says_nothing_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.link.HANDSHAKE_TIMEOUT_S", 0.05)

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            stranger = await Stranger.knock(a)
            await stranger.closed()
            assert a.refused("handshake-timeout") == 1
            stranger.leave()

    run(test)


def test_a_connection_cut_short_is_no_link(run: Run) -> None:
    """At every byte of a handshake: nothing is left of it, and it is nobody's fault."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            whole = await Stranger.knock(a)
            await whole.handshake()
            first = whole.sent[: 6 + 3 + 48]
            for length in range(0, len(first), 8):
                stranger = await Stranger.knock(a)
                stranger.give(first[:length])
                await stranger.writer.drain()
                stranger.leave()
            whole.leave()
            await until(lambda: not a.transport._open)
            assert a.transport.refusals == {} and not a.transport._unfinished
            assert a.node.links() == []

    run(test)


def test_a_replayed_handshake_opens_nothing(run: Run) -> None:
    """What somebody recorded on the wire, said again word by word, is refused at the third message."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            first = await Stranger.knock(a)
            await first.say_hello(5)
            await until(lambda: a.node.links())
            replay = await Stranger.knock(a)
            replay.give(first.sent)
            await replay.closed()
            assert sum(each.count for each in a.transport.refusals.values()) == 1
            assert len(a.node.links()) == 1
            first.leave()
            replay.leave()

    run(test)


def test_replayed_and_oversized_frames_end_the_link(run: Run) -> None:
    """Of a member that knows the secret: the same sealed frame twice, or one longer than any message."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            for spoil, reason in ((b"", "bad-seal"), (b"\x02\xff\xff", "too-long")):
                stranger = await Stranger.knock(a)
                await stranger.say_hello(5)
                await until(lambda: a.node.links())
                assert stranger.link is not None
                stranger.link.send(encode(Ping(1, bytes(16))))
                frame = stranger.link.data_to_send()
                stranger.give(frame + (spoil or frame))
                await until(lambda: a.node.links() == [])
                assert a.refused(reason) == 1
                await stranger.closed()
                stranger.leave()

    run(test)


def test_a_message_that_is_none_ends_the_link_and_is_counted(run: Run) -> None:
    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            stranger = await Stranger.knock(a)
            await stranger.say_hello(5)
            stranger.say(b"\xc1")
            assert (await stranger.hear(Bye)).reason == "bad-message"
            await until(lambda: a.refused("bad-message") == 1)
            assert a.node.links() == []
            stranger.leave()

    run(test)


def test_reasons_that_others_give_fill_no_memory(run: Run) -> None:
    """What a neighbour calls its reason for leaving is its own affair: our counters have our own words."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            for number in range(20):
                stranger = await Stranger.knock(a)
                await stranger.say_hello(5)
                stranger.say(encode(Bye(f"bad-{number}", "so there")))
                await stranger.closed()
                stranger.leave()
            await until(lambda: a.node.links() == [])
            assert a.transport.refusals == {}

    run(test)


def test_a_visitor_that_has_left_before_it_is_seen_disturbs_nobody(run: Run) -> None:
    """A port scanner's connection may be gone when its address is asked for."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):

            class Gone(asyncio.Transport):
                def get_extra_info(self, name: str, default: Any = None) -> Any:
                    return default

                def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
                    pass

                def is_closing(self) -> bool:
                    return True

                def abort(self) -> None:
                    pass

            connection = transport_module._Connection(a.transport, None)
            connection.connection_made(Gone())
            connection.connection_lost(None)
            assert not a.transport._open

    run(test)


# Too many and too much


def test_beyond_so_many_unfinished_handshakes_the_oldest_is_closed(run: Run) -> None:
    """One more than the limit: the first of them is closed and counted, the others and the neighbour's link stay."""

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.connect(b.address)
            await until(lambda: linked(a, b))
            strangers = []
            for _ in range(UNFINISHED_MAX):
                strangers.append(await Stranger.knock(b))
            await until(lambda: len(b.transport._unfinished) == UNFINISHED_MAX)
            assert b.transport.refusals == {}
            strangers.append(await Stranger.knock(b))
            await strangers[0].closed()
            assert b.refused("handshake-flood") == 1
            assert len(b.transport._unfinished) == UNFINISHED_MAX
            await strangers[-1].say_hello(5)
            await until(lambda: len(b.node.links()) == 2)
            assert a.node.name in [link.peer for link in b.node.links()]
            for stranger in strangers:
                stranger.leave()

    run(test)


def small_buffers(stranger: Stranger) -> None:
    stranger.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stranger.writer.transport.pause_reading()  # type: ignore[attr-defined]


def unsent(host: Host) -> int:
    return max(
        (each._socket.get_write_buffer_size() for each in host.transport._open if each._socket is not None), default=0
    )


def test_a_neighbour_that_asks_and_does_not_read_fills_no_memory(run: Run) -> None:
    """Questions whose answers are large, and pings, again and again: what waits for it stays bounded."""

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            for index in range(200):
                a.publish(index, os.urandom(BODY_MAX_BYTES))
            stranger = await Stranger.knock(a)
            await stranger.say_hello(5)
            small_buffers(stranger)
            (connection,) = a.transport._open
            assert connection._socket is not None
            connection._socket.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            questions = [
                encode(Want(a.node.name, tuple(("rows", index) for index in range(190)))),
                encode(Digest(FIRST_NAME, LAST_NAME, ())),
                encode(Ping(1, bytes(16))),
            ]
            most = 0
            for _ in range(300):
                for question in questions:
                    stranger.say(question)
                await asyncio.sleep(0.002)
                most = max(most, unsent(a))
            assert 100_000 < most < 2_000_000
            stranger.writer.transport.abort()

    run(test)


def test_a_neighbour_that_never_reads_is_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of what may wait, whatever it consists of."""
    monkeypatch.setattr(transport_module, "WRITE_MAX_BYTES", 300_000)

    async def test() -> None:
        a = Host(1)
        async with hosts(a):
            stranger = await Stranger.knock(a)
            await stranger.say_hello(5)
            small_buffers(stranger)
            link = next(iter(a.transport._connections))
            large = encode(PageMessage(page(body=bytes(BODY_MAX_BYTES)).raw, 0))
            for _ in range(2000):
                if link not in a.transport._connections:
                    break
                a.transport.perform([Send(link, large)])
            assert a.node.links() == []
            assert a.refused("too-slow") == 1
            stranger.writer.transport.abort()

    run(test)


def test_a_neighbour_that_talks_without_end_is_read_no_faster_than_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst is taken at once; beyond it we read as fast as the limit says, and everybody else goes on."""
    monkeypatch.setattr(transport_module, "MESSAGES_PER_S", 500)
    monkeypatch.setattr(transport_module, "MESSAGES_BURST", 100)

    async def test() -> None:
        a, b = Host(1), Host(2)
        async with hosts(a, b):
            a.connect(b.address)
            stranger = await Stranger.knock(b)
            await stranger.say_hello(5)
            assert stranger.link is not None
            for _ in range(600):
                stranger.link.send(encode(Ping(1, bytes(16))))
            stranger.give()
            started = b.transport.now()
            a.publish(0, b"not kept waiting")
            await until(lambda: b.node.replica.store.get((a.node.name, "rows", 0)))
            assert b.transport.now() - started < 0.9
            stranger.say(encode(Ping(2, bytes(16))))
            while (await stranger.hear(Pong)).sequence != 2:
                pass
            assert b.transport.now() - started > 0.9
            stranger.leave()

    run(test)
