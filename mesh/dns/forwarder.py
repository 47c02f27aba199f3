"""The sockets of questions to other servers: a fresh one for every try, at a port that nobody can guess (RFC 5452).

The shell of `mesh.dns.upstream`, which decides everything. Sockets are connected, so the kernel lets in only what comes
from the server that was asked, and tells when nobody is there. They belong to the host's own network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from mesh.dns.message import TCP_MAX_BYTES, Query
from mesh.dns.upstream import Asker, Effect, End, Server, Tell, Try, Upstreams

PORT_MIN: Final = 1024
PORT_TRIES: Final = 8
_LENGTH: Final = struct.Struct("!H")


class Forwarder:
    """Asks for others."""

    def __init__(self, random: Random) -> None:
        self._loop = asyncio.get_running_loop()
        self._random = random
        self._machine = Upstreams(random)
        self._replies: dict[int, Callable[[bytes | None], None]] = {}
        self._next = 0
        self._sockets: dict[int, socket.socket] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def counters(self) -> Counter[str]:
        return self._machine.counters

    @property
    def servers(self) -> tuple[Server, ...]:
        return self._machine.servers

    def __len__(self) -> int:
        """Questions on their way."""
        return len(self._machine)

    def use(self, servers: Sequence[Server]) -> None:
        self._machine.use(servers)

    def ask(self, query: Query, source: str, tcp: bool, reply: Callable[[bytes | None], None]) -> None:
        """`reply` is called once, perhaps at once: with the answer, or None where there is none to be had."""
        self._next += 1
        self._replies[self._next] = reply
        self._perform(self._machine.ask(Asker(self._next, query, tcp, source), self._loop.time()))

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for token in [*self._sockets, *self._tasks]:
            self._end(token)
        self._replies.clear()

    def _perform(self, effects: list[Effect]) -> None:
        waiting = list(effects)
        for effect in waiting:  # grows while it is gone through
            match effect:
                case Try(token, server, data, True):
                    self._tasks[token] = asyncio.ensure_future(self._ask_tcp(token, server, data))
                case Try(token, server, data, False):
                    if not self._ask_udp(token, server, data):
                        waiting += self._machine.refused(token, self._loop.time())
                case End(token):
                    self._end(token)
                case Tell(asker, answer):
                    assert isinstance(asker.key, int)
                    if (reply := self._replies.pop(asker.key, None)) is not None:
                        reply(answer)
        self._set_timer()

    def _end(self, token: int) -> None:
        if (opened := self._sockets.pop(token, None)) is not None:
            self._loop.remove_reader(opened.fileno())
            opened.close()
        if (task := self._tasks.pop(token, None)) is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _ask_udp(self, token: int, server: Server, data: bytes) -> bool:
        try:
            opened = self._open_udp(server)
        except OSError:
            return False
        try:
            opened.send(data)
        except OSError:
            opened.close()
            return False
        self._sockets[token] = opened
        self._loop.add_reader(opened.fileno(), partial(self._readable, token, opened))
        return True

    def _open_udp(self, server: Server) -> socket.socket:
        """Raises OSError. The kernel's own choice of ports is from a smaller range, and only for want of a better."""
        family, _, _, _, address = _resolve(server, socket.SOCK_DGRAM)
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            for _ in range(PORT_TRIES):
                with contextlib.suppress(OSError):
                    opened.bind(("", self._random.randrange(PORT_MIN, 65_536)))
                    break
            opened.connect(address)
        except OSError:
            opened.close()
            raise
        return opened

    def _readable(self, token: int, opened: socket.socket) -> None:
        try:
            data = opened.recv(TCP_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._perform(self._machine.refused(token, self._loop.time()))
            return
        self._perform(self._machine.answered_untrusted(token, data, self._loop.time()))

    async def _ask_tcp(self, token: int, server: Server, data: bytes) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(server[0], server[1])
            writer.write(_LENGTH.pack(len(data)) + data)
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            answer = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self._perform(self._machine.refused(token, self._loop.time()))
            return
        finally:
            if writer is not None:
                writer.transport.abort()
        self._perform(self._machine.answered_untrusted(token, answer, self._loop.time()))
        self._perform(self._machine.refused(token, self._loop.time()))  # where that was no answer: nothing more comes

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.due()
        if due is not None and not self._closed:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._machine.tick(self._loop.time()))


def _resolve(server: Server, kind: socket.SocketKind) -> tuple[int, int, int, str, tuple[object, ...]]:
    """A numeric address, perhaps with a zone, as the socket calls want it. Raises OSError."""
    found = socket.getaddrinfo(server[0], server[1], type=kind, flags=socket.AI_NUMERICHOST)[0]
    return int(found[0]), int(found[1]), found[2], found[3], tuple(found[4])
