"""The only sockets of this package: listens, dials, feeds `Link`s, runs one `Node`, keeps one timer.

Everything is decided in the node; here bytes become calls and effects become bytes. It runs on the event loop that is
current at `start`; all methods are called on that loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

from gossip.errors import ProtocolError
from gossip.events import CloseLink, Dial, DialKey, Event, Outcome, Send, StoreEpoch
from gossip.link import Link, LinkEstablished, LinkRefused, MessageReceived
from gossip.node import Node
from gossip.peers import split_address, with_port

UNFINISHED_MAX = 256
"""Inbound connections whose handshake is not done; beyond it the oldest is closed."""
SEGMENT_BYTES = 1220
"""The longest TCP segment: what fits 1280 bytes, which every path takes that carries IPv6. Longer ones would be lost
without a word where two hosts have jumbo frames and something between them has not, and no link would stay up there."""
CONNECT_TIMEOUT_S = 4.0
RESOLVE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 20.0
"""For all addresses of a target or peer together: dials at once are few, and one must not hold its place for ever."""
CLOSE_TIMEOUT_S = 2.0
"""How long a closed link may take to flush its last words."""
WRITE_HIGH_BYTES = 128 * 1024
"""More than this unsent, and pages wait in the node."""
WRITE_MAX_BYTES = 8 * 1024 * 1024
"""More than this unsent, and the other side does not read at all: the connection is cut."""
MESSAGES_PER_S = 2000
MESSAGES_BURST = 2000
"""A neighbour that says more is read no faster, so that no member can keep everybody else waiting."""
LAST_ADDRESSES = 8
TIMER_SLACK_S = 0.001
"""A timer that fires a moment early would only be set again."""

log = logging.getLogger("weft.gossip")


@dataclass(slots=True)
class Refusals:
    """Inbound connections that never became links, for one reason."""

    count: int = 0
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_ADDRESSES))


class Transport:
    """Sockets around a node. `on_event` gets every event of the node, in order, on the loop."""

    def __init__(
        self,
        node: Node,
        link_private: bytes,
        psks: list[bytes],
        port: int,
        host: str | None,
        on_event: Callable[[Event], None],
        store_epoch: Callable[[int], Awaitable[None]],
    ) -> None:
        self.node = node
        self.refusals: dict[str, Refusals] = {}
        self.link_private = link_private
        self.psks = psks
        self._port = port
        self._host = host
        self._on_event = on_event
        self._store_epoch = store_epoch
        self._connections: dict[int, _Connection] = {}
        self._unfinished: dict[_Connection, None] = {}
        self._open: set[_Connection] = set()
        self._next_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: deque[Outcome] = deque()
        self._performing = False
        self._epoch_wanted: int | None = None
        self._server: asyncio.Server | None = None
        self._stopped = False

    async def start(self) -> None:
        """Listen. Raises `OSError` where the port is taken or the address is not ours."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            lambda: _Connection(self, None), self._host, self._port, backlog=UNFINISHED_MAX
        )
        for listening in self._server.sockets:  # said by one end, and kept by both
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        self.perform([])

    async def stop(self) -> None:
        """Give the last words up to `CLOSE_TIMEOUT_S` to leave, then close everything."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        deadline = self.now() + CLOSE_TIMEOUT_S
        for connection in list(self._open):
            connection.close()
        while self._open and self.now() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._open):
            connection.abort()

    def listening_on(self) -> list[tuple[str, int]]:
        """Hosts and ports, as the kernel has them."""
        assert self._server is not None
        return [each.getsockname()[:2] for each in self._server.sockets]

    def now(self) -> float:
        """Monotonic seconds. The loop's own clock may tick in milliseconds, too coarse for a round trip."""
        return time.monotonic()

    def perform(self, outcomes: list[Outcome]) -> None:
        """Do what the node asked for, then set the timer anew. Whoever hears an event may call this again: what it
        brings is done after what is there already."""
        self._outcomes += outcomes
        if self._performing:
            return
        self._performing = True
        written: dict[_Connection, None] = {}
        try:
            while self._outcomes:
                self._perform_one(self._outcomes.popleft(), written)
        finally:
            self._performing = False
            for connection in written:
                connection.flush()
            self._arm()

    def _perform_one(self, outcome: Outcome, written: dict[_Connection, None]) -> None:
        match outcome:
            case Send(link, data):
                connection = self._connections.get(link)
                if connection is not None:
                    connection.seal(data)
                    written[connection] = None
            case CloseLink(link, reason):
                connection = self._connections.pop(link, None)
                if connection is not None:
                    written.pop(connection, None)
                    connection.count_end(reason)
                    connection.close()
            case Dial(key, addresses):
                self._spawn(self._dial(key, addresses))
            case StoreEpoch(epoch):
                self._want_epoch(epoch)
            case _:
                self._on_event(outcome)

    def drop_from(self, addresses: Collection[str]) -> None:
        """End the connections that begin at addresses which this host does not have any more: nothing will come back
        on them, and finding that out by silence would take seconds."""
        for connection in list(self._open):
            if connection.local in addresses:
                connection.abort()

    # -- time --------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.node.next_timeout()
        if due is not None and not self._stopped:
            self._timer = self._loop.call_later(max(0.0, due - self.now()) + TIMER_SLACK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.perform(self.node.handle_timeout(self.now()))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Ours, not the network's: nothing may fail in silence.
            self._loop.call_exception_handler({"message": "gossip task failed", "exception": task.exception()})

    def _want_epoch(self, epoch: int) -> None:
        """One write at a time, always of the latest: two at once could reach the disk in the wrong order."""
        is_storing = self._epoch_wanted is not None
        self._epoch_wanted = max(epoch, self._epoch_wanted or 0)
        if not is_storing:
            self._spawn(self._store_epochs())

    async def _store_epochs(self) -> None:
        stored = 0
        try:
            while self._epoch_wanted is not None and stored < self._epoch_wanted:
                stored = self._epoch_wanted
                await self._store_epoch(stored)
        finally:
            self._epoch_wanted = None
        self.perform(self.node.epoch_stored(stored, self.now()))

    # -- dialling ----------------------------------------------------------------------------------

    async def _dial(self, key: DialKey, addresses: tuple[str, ...]) -> None:
        """Until one address gives a link; whatever happens, the node hears of it."""
        errors = ["no address"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                for address in addresses:
                    for host, port in await self._resolve(key, address, errors):
                        failed = await self._try(key, host, port)
                        if failed is None:
                            return
                        errors.append(failed)
        self.perform(self.node.dial_failed(key, errors[-1], self.now()))

    async def _resolve(self, key: DialKey, address: str, errors: list[str]) -> list[tuple[str, int]]:
        """What `address` means now. Only users may name hosts; what peers say of themselves is looked up nowhere."""
        parts = split_address(with_port(address, self._port))
        if parts is None:
            errors.append(f"{address!r} is not a host or host:port")
            return []
        host, port = parts
        if ":" in host and "%" in host:
            return _zoned(host, port, errors)
        flags = 0 if isinstance(key, str) else socket.AI_NUMERICHOST
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        except TimeoutError:
            errors.append(f"cannot resolve {host}: no answer from the name servers in {RESOLVE_TIMEOUT_S:g} s")
        except OSError as failure:
            errors.append(f"cannot resolve {host}: {failure.strerror or failure}")
        except UnicodeError:
            errors.append(f"cannot resolve {host}: this is no host name")
        else:
            return [(str(sockaddr[0]), port) for *_, sockaddr in found]
        return []

    async def _try(self, key: DialKey, host: str, port: int) -> str | None:
        """One address: None once the node has the link, else why not."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if "%" in host:
                    opened = await _connect_zoned(self._loop, host, port)
                    _, connection = await self._loop.create_connection(lambda: _Connection(self, key), sock=opened)
                else:
                    _, connection = await self._loop.create_connection(lambda: _Connection(self, key), host, port)
        except TimeoutError:
            return f"{host} port {port}: no answer in {CONNECT_TIMEOUT_S:g} s (is TCP {port} open in its firewall?)"
        except OSError as failure:
            if failure.errno == errno.ECONNREFUSED:
                return f"{host} port {port}: connection refused (is weft running there?)"
            return f"{host} port {port}: {os.strerror(failure.errno) if failure.errno else failure}"
        try:
            return await asyncio.shield(connection.outcome)
        except asyncio.CancelledError:
            connection.abort()
            raise

    # -- what connections report -------------------------------------------------------------------

    def connection_made(self, connection: _Connection) -> None:
        self._open.add(connection)
        if connection.key is None:
            self._unfinished[connection] = None
            if len(self._unfinished) > UNFINISHED_MAX:
                oldest = next(iter(self._unfinished))
                self.refuse(oldest, "handshake-flood")
                oldest.abort()

    def established(self, connection: _Connection, handshake_hash: bytes) -> None:
        self._unfinished.pop(connection, None)
        self._next_id += 1
        connection.link_id = self._next_id
        self._connections[connection.link_id] = connection
        self.perform(
            self.node.link_up(
                connection.link_id, connection.key is not None, handshake_hash, connection.remote, connection.key,
                self.now(),
            )
        )  # fmt: skip

    def connection_lost(self, connection: _Connection, error: str) -> None:
        self._open.discard(connection)
        self._unfinished.pop(connection, None)
        link_id = connection.link_id
        if link_id is not None and self._connections.pop(link_id, None) is not None:
            self.perform(self.node.link_down(link_id, error, self.now()))

    def broken(self, connection: _Connection, error: ProtocolError) -> None:
        """The other side broke the rules of the link: it is counted, and the node has one link less at once."""
        self.refuse(connection, error.reason)
        if connection.link_id is not None and self._connections.pop(connection.link_id, None) is not None:
            self.perform(self.node.link_down(connection.link_id, str(error), self.now()))

    def refuse(self, connection: _Connection, reason: str) -> None:
        """Count an inbound connection that broke the rules or did not know the secret."""
        self._unfinished.pop(connection, None)
        if connection.key is None:
            refusals = self.refusals.setdefault(reason, Refusals())
            refusals.count += 1
            refusals.last.append(connection.remote)
            log.info("refused reason=%s remote=%s", reason, connection.remote)


class _Connection(asyncio.Protocol):
    """One TCP connection: a `Link` and where its bytes go."""

    def __init__(self, owner: Transport, key: DialKey | None) -> None:
        self._owner = owner
        self.key = key
        self.link_id: int | None = None
        self.remote = "?"
        self.local = "?"
        """The address of this host's end."""
        self.outcome: asyncio.Future[str | None] = owner._loop.create_future()
        """For a dialled connection: None once it is a link, else why it is not."""
        self._socket: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._allowance = float(MESSAGES_BURST)
        self._allowance_at = owner.now()
        self._link = Link(
            initiator=key is not None,
            static_private=owner.link_private,
            ephemeral_private=os.urandom(32),
            psks=owner.psks,
            now=owner.now(),
        )

    # -- asyncio's side ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        peer = transport.get_extra_info("peername")
        if peer:  # None where the other side has left again before we looked.
            host = _host_of(peer)
            self.remote = f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
        own = transport.get_extra_info("sockname")
        if own:
            self.local = str(own[0])
        self._socket.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        due = self._link.next_timeout()
        assert due is not None
        self._timer = self._owner._loop.call_later(due - self._owner.now() + TIMER_SLACK_S, self._handshake_late)
        self._owner.connection_made(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        now = self._owner.now()
        try:
            events = self._link.receive_data(data, now)
        except ProtocolError as error:
            self._broken(error)
            return
        for event in events:
            match event:
                case LinkEstablished(_, handshake_hash):
                    self._settle(None)
                    self._owner.established(self, handshake_hash)
                case MessageReceived(message) if self.link_id is not None:
                    self._owner.perform(self._owner.node.receive(self.link_id, message, now))
                case LinkRefused(reason, _):
                    self._settle(_explain(reason, self.remote))
                    self.close()
        self.flush()
        self._slow_down(len(events), now)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self.link_id is not None:
            self._owner.node.link_full(self.link_id)

    def resume_writing(self) -> None:
        if self.link_id is not None:
            self._owner.perform(self._owner.node.link_ready(self.link_id, self._owner.now()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        text = "closed by the other side" if exc is None else str(exc)
        self._settle(f"{self.remote}: {text} during the handshake")
        self._owner.connection_lost(self, text)

    # -- the owner's side --------------------------------------------------------------------------

    def seal(self, message: bytes) -> None:
        try:
            self._link.send(message)
        except ProtocolError as error:
            self._broken(error)

    def flush(self) -> None:
        data = self._link.data_to_send()
        if not data or self._socket is None or self._socket.is_closing():
            return
        self._socket.write(data)
        if self._socket.get_write_buffer_size() > WRITE_MAX_BYTES:
            text = f"the other side left more than {WRITE_MAX_BYTES} bytes unread"
            self._owner.broken(self, ProtocolError("too-slow", text))
            self.abort()

    def count_end(self, reason: str) -> None:
        """The node ended this link; if the other side broke the rules, say so in the counters."""
        if reason.startswith("bad-") or reason in ("name-in-use", "no-hello", "full"):
            self._owner.refuse(self, reason)

    def close(self) -> None:
        """Flush what is queued, then close; a receiver that does not read is cut off after a while."""
        if self._socket is not None and not self._socket.is_closing():
            self.flush()
            self._socket.close()
            self._owner._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def _broken(self, error: ProtocolError) -> None:
        self._settle(f"{self.remote}: {error}")
        self._owner.broken(self, error)
        self.close()

    def _slow_down(self, messages: int, now: float) -> None:
        """Stop reading for as long as a neighbour that says too much would have had to wait."""
        earned = (now - self._allowance_at) * MESSAGES_PER_S
        self._allowance = min(MESSAGES_BURST, self._allowance + earned) - messages
        self._allowance_at = now
        if self._allowance < 0 and self._socket is not None and not self._socket.is_closing():
            self._socket.pause_reading()
            self._owner._loop.call_later(-self._allowance / MESSAGES_PER_S, self._read_on)

    def _read_on(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()

    def _handshake_late(self) -> None:
        try:
            self._link.handle_timeout(self._owner.now())
        except ProtocolError as error:
            self._broken(error)

    def _settle(self, error: str | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(error)


def _zoned(host: str, port: int, errors: list[str]) -> list[tuple[str, int]]:
    """A link-local address with its interface by number. uvloop's resolver would forget the interface."""
    address, _, interface = host.partition("%")
    try:
        index = int(interface) if interface.isdigit() else socket.if_nametoindex(interface)
    except OSError:
        errors.append(f"{host}: this host has no interface {interface}")
        return []
    return [(f"{address}%{index}", port)]


async def _connect_zoned(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket connected through that very interface, which uvloop would choose by itself. Raises OSError."""
    address, _, index = host.partition("%")
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        failed = made.connect_ex((address, port, 0, int(index)))
        if failed == errno.EINPROGRESS:
            writable = asyncio.Event()
            loop.add_writer(made, writable.set)
            try:
                await writable.wait()
            finally:
                loop.remove_writer(made)
            failed = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        made.close()
        raise
    return made


def _host_of(address: tuple[Any, ...]) -> str:
    """The host part of a socket's address; a link-local one with the number of our interface, without which it says
    nothing."""
    host = str(address[0]).partition("%")[0]
    return f"{host}%{address[3]}" if len(address) == 4 and address[3] else host


def _explain(reason: str, remote: str) -> str:
    if reason == "wrong-password":
        return f"wrong password: {remote} does not accept ours (launch both with the same --password)"
    return f"{remote} refused the link: {reason}"
