"""Hosts on loopback, and strangers that knock there.

A `Host` is a node with its transport; a `Stranger` is a plain socket, with a `Link` driven by hand where it must know
the secret first. All of it runs on whichever event loop is current.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

from gossip.events import Event
from gossip.introduction import introduce
from gossip.link import Link, MessageReceived
from gossip.linkstate import LinkState
from gossip.node import Node, NodeConfig
from gossip.transport import Transport
from gossip.wire import Hello, decode_untrusted, encode
from tests.gossip.actors import identity, record

PSK = b"k" * 32
LIMIT_S = 8.0
"""How long a test waits for what should take milliseconds."""
Test = Callable[[], Awaitable[None]]
Run = Callable[[Test], None]


class Host:
    """A node with its transport on a free port of loopback."""

    def __init__(self, number: int, psk: bytes = PSK, **config: Any) -> None:
        now = asyncio.get_running_loop().time()
        self.node = Node(
            identity(number),
            record(number, addresses=()),
            1,
            NodeConfig(**({"discovery": False} | config)),
            Random(number),
            now,
        )
        self.events: list[Event] = []
        self.epochs: list[int] = []
        self.transport = Transport(
            self.node, identity(number).link_private, [psk], 0, "127.0.0.1", self.events.append, self.store_epoch
        )

    async def store_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    @property
    def address(self) -> str:
        host, port = self.transport.listening_on()[0]
        return f"{host}:{port}"

    @property
    def port(self) -> int:
        return self.transport.listening_on()[0][1]

    def connect(self, *targets: str) -> None:
        self.transport.perform(self.node.connect(list(targets), self.transport.now()))

    def publish(self, index: int, body: bytes) -> None:
        self.transport.perform(self.node.publish("rows", index, body, self.transport.now()))

    def target_error(self) -> str:
        return self.node.targets(self.transport.now())[0].error or ""

    def refused(self, reason: str) -> int:
        return self.transport.refusals[reason].count if reason in self.transport.refusals else 0


@contextlib.asynccontextmanager
async def hosts(*made: Host) -> AsyncIterator[None]:
    for host in made:
        await host.transport.start()
    try:
        yield
    finally:
        for host in made:
            await host.transport.stop()
        assert all(not host.transport._open for host in made)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def linked(*pair: Host) -> bool:
    return all(
        [link.peer for link in host.node.links()] == [other.node.name]
        for host, other in zip(pair, reversed(pair), strict=True)
    )


class Stranger:
    """The other end of a connection, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.link: Link | None = None
        self.sent = b""
        self.messages: list[bytes] = []

    @classmethod
    async def knock(cls, host: Host) -> Stranger:
        return cls(*await asyncio.open_connection(*host.transport.listening_on()[0]))

    async def handshake(self, psk: bytes = PSK) -> bytes:
        """Become a link; the handshake hash."""
        self.link = Link(
            initiator=True, static_private=bytes(31) + b"\x01", ephemeral_private=os.urandom(32), psks=[psk], now=0.0
        )
        self.give()
        async with asyncio.timeout(LIMIT_S):
            while not self.link.established:
                self.take(await self.reader.read(65536))
                self.give()
        assert self.link.handshake_hash is not None
        return self.link.handshake_hash

    def take(self, data: bytes) -> None:
        assert data and self.link is not None, "closed by the other side"
        events = self.link.receive_data(data, 0.0)
        self.messages += [event.message for event in events if isinstance(event, MessageReceived)]

    async def say_hello(self, number: int) -> None:
        """Become a neighbour: host `number`."""
        hash_ = await self.handshake()
        link = LinkState(0, True, hash_, "127.0.0.1:1", None, 0.0, 0.0, 0.0, hello_sequence=1)
        self.say(encode(introduce(identity(number), record(number), link)))
        await self.hear(Hello)

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                while self.messages:
                    message = decode_untrusted(self.messages.pop(0))
                    if isinstance(message, kind):
                        return message
                self.take(await self.reader.read(65536))

    def say(self, message: bytes) -> None:
        assert self.link is not None
        self.link.send(message)
        self.give()

    def give(self, data: bytes | None = None) -> None:
        if data is None:
            assert self.link is not None
            data = self.link.data_to_send()
        self.sent += data
        self.writer.write(data)

    async def closed(self) -> None:
        """Wait until the other side has closed."""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass

    def leave(self) -> None:
        self.writer.close()
