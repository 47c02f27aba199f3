"""The sockets that containers ask: UDP and TCP, for both IP versions, in a network namespace of their own.

The shell of `mesh.dns.resolver`. What makes an address "the server's" (the namespace, its port on the bridge, its
routes) is wanted of the kernel by `mesh.dns.service`; here are sockets that were opened in there. The one idea: a flood
must not starve the mesh, so what waits is read in batches, and the loop does everything else between two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from mesh.dns.message import QUERY_MAX_BYTES, Query
from mesh.dns.resolver import Forward, Resolver

PORT: Final = 53
BATCH: Final = 32
"""Queries read before the loop looks at anything else: about a millisecond."""
BUFFER_BYTES: Final = 1 << 20
CONNECTIONS_MAX: Final = 64
"""Beyond them the one that has been idle the longest is closed."""
IDLE_S: Final = 10.0
PENDING_MAX: Final = 32
"""Questions of one connection that others are asked for; more of them wait in the connection."""
_LENGTH: Final = struct.Struct("!H")

Ask = Callable[[Query, str, bool, Callable[[bytes | None], None]], None]
"""Have somebody else asked: the query, who wants to know, whether by TCP, and what is called with the answer."""


def open_sockets() -> list[socket.socket]:
    """Those of this thread's network namespace, in which nothing else uses the port. Raises OSError where there is not
    even IPv4. What is bound hears on every address, also on those that come later."""
    opened = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            try:
                opened.append(_open(family, kind))
            except OSError:
                if family == socket.AF_INET6:
                    continue  # this kernel has no IPv6
                for each in opened:
                    each.close()
                raise
    return opened


def _open(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", PORT))
        if kind == socket.SOCK_STREAM:
            made.listen(CONNECTIONS_MAX)
    except OSError:
        made.close()
        raise
    return made


class Server:
    """Serves sockets that were opened for it."""

    def __init__(self, resolver: Resolver, ask: Ask) -> None:
        self.counters: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._ask = ask
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[_Connection, None] = {}
        """Those that said something last at the end."""

    async def serve(self, sockets: list[socket.socket]) -> None:
        for each in sockets:
            if each.type == socket.SOCK_DGRAM:
                self._sockets.append(each)
                self._loop.add_reader(each.fileno(), partial(self._readable, each))
            else:
                make = partial(_Connection, self)
                self._listeners.append(await self._loop.create_server(make, sock=each, backlog=CONNECTIONS_MAX))

    def close(self) -> None:
        for each in self._sockets:
            self._loop.remove_reader(each.fileno())
            each.close()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.abort()
        self._sockets, self._listeners = [], []

    # -- UDP ---------------------------------------------------------------------------------------

    def _readable(self, opened: socket.socket) -> None:
        answer_to, receive, send = self._resolver.answer_untrusted, opened.recvfrom, opened.sendto
        for _ in range(BATCH):
            try:
                data, source = receive(QUERY_MAX_BYTES + 1)
            except OSError:
                return
            answer = answer_to(data)
            if type(answer) is bytes:
                try:
                    send(answer, source)
                except OSError:
                    self.counters["unsent"] += 1
            elif answer is not None:
                assert isinstance(answer, Forward)
                reply = partial(self._reply, opened, source, answer.query)
                self._ask(answer.query, source[0].partition("%")[0], False, reply)

    def _reply(self, opened: socket.socket, source: Any, query: Query, answer: bytes | None) -> None:
        try:
            opened.sendto(self._resolver.failed(query, False) if answer is None else answer, source)
        except OSError:
            self.counters["unsent"] += 1

    # -- TCP ---------------------------------------------------------------------------------------

    def came(self, connection: _Connection) -> None:
        self.counters["connections"] += 1
        if len(self._connections) >= CONNECTIONS_MAX:
            self.counters["connections-pushed-out"] += 1
            idlest = next(iter(self._connections))
            del self._connections[idlest]
            idlest.abort()
        self._connections[connection] = None

    def said_something(self, connection: _Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    def went(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    def later(self, work: Callable[[], None]) -> None:
        self._loop.call_soon(work)

    def after(self, delay_s: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay_s, work)

    def answer_tcp(self, data: bytes, source: str, reply: Callable[[bytes | None], None]) -> None:
        """`reply` is called once: None where nothing is to be said."""
        answer = self._resolver.answer_untrusted(data, tcp=True)
        if isinstance(answer, Forward):
            query = answer.query
            self._ask(query, source, True, lambda got: reply(got or self._resolver.failed(query, True)))
        else:
            reply(answer)


class _Connection(asyncio.Protocol):
    """Queries with their lengths before them, one after the other (RFC 7766)."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._source = ""
        self._buffer = bytearray()
        self._pending = 0
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        peer = transport.get_extra_info("peername")
        self._source = str(peer[0]).partition("%")[0] if peer else ""
        self._server.came(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._transport = None
        self._server.went(self)

    def data_received(self, data: bytes) -> None:
        self._server.said_something(self)
        self._wait()
        self._buffer += data
        self._take()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        """Who asks and does not read gets no more answers."""
        self.abort()

    def _take(self) -> None:
        while self._transport is not None and self._pending < PENDING_MAX and len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > QUERY_MAX_BYTES:
                self._server.counters["too-long"] += 1
                self.abort()
                return
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            query = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            self._pending += 1
            self._server.answer_tcp(query, self._source, self._reply)
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                (self._transport.pause_reading if self._pending >= PENDING_MAX else self._transport.resume_reading)()

    def _reply(self, answer: bytes | None) -> None:
        self._pending -= 1
        if self._transport is None or self._transport.is_closing():
            return
        if answer is None:
            self.abort()
            return
        self._transport.write(_LENGTH.pack(len(answer)) + answer)
        if self._pending == PENDING_MAX - 1:  # it was paused
            self._server.later(self._take)

    def _wait(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._server.after(IDLE_S, self.abort)
