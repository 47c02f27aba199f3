"""The worker's loop: the TAP on one side, UDP on the other, the daemon on a unix socket.

The only module of the sleeve with a clock and sockets; decides nothing that `sleeve` can decide. The one idea: one
thread, one turn after another. A turn takes what has arrived from the network, takes what containers have sent, and
sends some of what waits; each part is bounded, so that none starves the others, and while a socket takes no more,
nothing is read that would only have to be kept.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from dataplane.kernel import KernelError
from dataplane.linux import datagram
from dataplane.linux.tap import open_tap
from dataplane.sleeve import control, frames
from dataplane.sleeve.buffers import Buffer
from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.sender import Send
from dataplane.sleeve.sleeve import Sleeve

RECEIVES_PER_TURN: Final = 64
RECEIVE_BYTES_PER_TURN: Final = 192 * 1024
READS_PER_TURN: Final = 256
READ_BYTES_PER_TURN: Final = 256 * 1024
WAIT_MAX_S: Final = 1.0
TICK_S: Final = 0.001
"""Nothing is due more exactly than that, so that whatever is always due costs little."""
STATUS_S: Final = 0.5
QUIET_STATUS_S: Final = 5.0
NEWS_S: Final = 0.2
"""Between two statuses, while something happens and while nothing does: of a thousand idle peers, one costs 10 ms."""
LONELY_S: Final = 10.0
"""A worker that is not told what to do for so long ends."""
TAP_RETRY_S: Final = 0.05
LISTEN_RETRY_S: Final = 0.25
_SEGMENT: Final = struct.Struct("=H")
_GRO: Final = struct.Struct("=i")
_ANCILLARY_BYTES: Final = 64
_GSO_TYPE_AT: Final = 1
_RECEIVE_BYTES: Final = 65_536
_CREDENTIALS: Final = struct.Struct("=3i")
_CONTROL_BYTES: Final = 1 << 20


class Worker:
    """See the module. Runs until told to stop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._epoll = select.epoll()
        self._listener = _listen(path)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._daemon: socket.socket | None = None
        self._decoder = control.Decoder()
        self._said: set[bytes] = set()
        self._configured: control.Configure | None = None
        self._sleeve: Sleeve | None = None
        self._tap = -1
        self._tap_retry_s = 0.0
        self._sockets: dict[int, socket.socket] = {}
        self._by_length: dict[int, socket.socket] = {}
        """The socket for an address by how many parts it has: 2 for IPv4, 4 for IPv6."""
        self._data = memoryview(bytearray(_RECEIVE_BYTES))
        self._buffer: Buffer | None = None
        self._sending: Iterator[Send] | None = None
        self._stuck: Send | None = None
        self._stuck_on = -1
        self._is_agreed = False
        """The daemon that is connected has said its configuration, and it is ours."""
        self._unsaid = b""
        """What it has not yet read of the last message."""
        self._status_s = 0.0
        self._said_s = 0.0
        """When the next status is due, and when the last one was said."""
        self._was_used = True
        """Something was sent since the last status."""
        self._began_s = time.monotonic()
        self._running = True
        # How many to take in the next turn: to find out that there is no more costs a lone ping more than to be called
        # again, so it is found out only as often as the number doubles.
        self._receives = 1
        self._reads = 1
        self._wrote = False
        self._happened = False
        self._segments: dict[int, list[tuple[int, int, bytes]]] = {0: []}

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        try:
            while self._running:
                self._turn()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _end(self) -> None:
        self._running = False

    def _turn(self) -> None:
        events = self._epoll.poll(self._patience())
        self._happened = bool(events)
        readable = self._wrote = False
        for descriptor, what in events:
            if descriptor == self._tap:
                readable = True
            elif descriptor in self._sockets:
                if what & select.EPOLLIN:
                    self._receive(self._sockets[descriptor])
                elif what & select.EPOLLERR:
                    _clear_error(self._sockets[descriptor])
                if what & select.EPOLLOUT:
                    self._unstick(descriptor)
            elif descriptor == self._listener.fileno():
                self._accept()
            elif self._daemon is not None and descriptor == self._daemon.fileno():
                if what & select.EPOLLOUT:
                    self._go_on_saying()
                if what & ~select.EPOLLOUT:
                    self._hear()
            # Else it was closed by what happened before it.
        now = time.monotonic()
        if self._sleeve is None:
            if now - self._began_s > LONELY_S:
                self._end()  # whoever started us has died before it said what for
            return
        if self._tap < 0 and now >= self._tap_retry_s:
            self._open_tap(now)
        if self._stuck is None:
            # What was written to the TAP is often answered within the write (pings, acknowledgements).
            if (readable or self._wrote) and self._tap >= 0:
                self._read()
            self._send(now)
        if self._sleeve.is_news:
            self._sleeve.is_news = False
            self._status_s = min(self._status_s, max(now, self._said_s + NEWS_S))
        elif events and self._status_s > now + STATUS_S:
            self._status_s = now + STATUS_S
        if now >= self._status_s and self._is_agreed and not self._unsaid:
            self._status_s = now + (STATUS_S if self._was_used else QUIET_STATUS_S)
            self._was_used, self._said_s = False, now
            self._say(control.Status(os.getpid(), self._sleeve.status(now), self._sleeve.totals()))

    def _patience(self) -> float:
        """How long to wait for something to happen."""
        if self._sleeve is None:
            return WAIT_MAX_S
        if self._stuck is None and self._sleeve.is_busy:
            return 0.0
        if self._happened:
            return TICK_S  # when to wake up exactly is worth finding out only when nothing more comes
        until = min(self._sleeve.next_due(), self._tap_retry_s if self._tap < 0 else float("inf"))
        if self._is_agreed:
            until = min(until, self._status_s)
        return max(TICK_S, min(WAIT_MAX_S, until - time.monotonic()))

    # From the network to the TAP.

    def _receive(self, source: socket.socket) -> None:
        assert self._sleeve is not None
        take, data, write, tap = self._sleeve.receiver.datagrams, self._data, os.write, self._tap
        left = RECEIVE_BYTES_PER_TURN
        for number in range(self._receives):
            try:
                size, ancillary, _, address = source.recvmsg_into((data,), _ANCILLARY_BYTES)
            except OSError:  # nothing more, or an ICMP error of something sent earlier
                self._receives = max(1, number)
                return
            segment = size
            for level, kind, value in ancillary:
                if level == datagram.SOL_UDP and kind == datagram.UDP_GRO:
                    segment = _GRO.unpack(value)[0] or size
            for frame in take(data[:size], segment, address, time.monotonic()):
                self._wrote = True
                try:
                    write(tap, frame)
                except OSError as error:
                    self._not_written(frame, error)
            left -= size
            if left <= 0:
                return
        self._receives = min(2 * self._receives, RECEIVES_PER_TURN)

    def _not_written(self, frame: memoryview, error: OSError) -> None:
        """The TAP did not take a frame. One that a broken kernel does not like is finished by hand."""
        assert self._sleeve is not None
        counters = self._sleeve.counters
        if error.errno == errno.EINVAL and frame[_GSO_TYPE_AT]:
            counters["tap-offload-refused"] = counters.get("tap-offload-refused", 0) + 1
            for part in frames.split(frame, 1):
                with suppress(OSError):
                    os.write(self._tap, frames.finish_checksum(memoryview(part)))
            return
        if error.errno == errno.EBADFD:
            self._close_tap()
        reason = "tap-full" if error.errno in (errno.EAGAIN, errno.ENOBUFS) else "tap-write-failed"
        counters[reason] = counters.get(reason, 0) + 1

    # From the TAP to the network.

    def _read(self) -> None:
        assert self._sleeve is not None
        sender, tap, readv = self._sleeve.sender, self._tap, os.readv
        give, pool = sender.frame, sender.pool
        buffer = self._buffer or pool.take()
        left = READ_BYTES_PER_TURN
        for number in range(self._reads):
            try:
                size = readv(tap, buffer.for_frame)
            except BlockingIOError:
                self._reads = max(1, number)
                break
            except OSError:  # somebody removed it
                self._close_tap()
                break
            if give(buffer, size):
                buffer = pool.take()
            left -= size
            if left <= 0:
                break
        else:
            self._reads = min(2 * self._reads, READS_PER_TURN)
        self._buffer = buffer

    def _send(self, now: float) -> None:
        sleeve = self._sleeve
        assert sleeve is not None
        if self._sending is None:
            self._sending = sleeve.outgoing(now)
        segments = self._segments
        for item in self._sending:
            self._was_used = True
            buffers, segment, address = item
            ancillary = segments.get(segment)
            if ancillary is None:
                ancillary = segments[segment] = [(datagram.SOL_UDP, datagram.UDP_SEGMENT, _SEGMENT.pack(segment))]
            by = self._by_length.get(len(address))
            if by is None:
                continue
            try:
                by.sendmsg(buffers, ancillary, 0, address)
            except BlockingIOError:
                self._stick(item, by)
                return
            except OSError as error:
                self._not_sent(error, address, now)
        self._sending = None

    def _backlog(self) -> int:
        total = 0
        for each in self._by_length.values():
            total += datagram.backlog_bytes(each)
        return total

    def _not_sent(self, error: OSError, address: tuple[object, ...], now: float) -> None:
        assert self._sleeve is not None
        if error.errno in (errno.EMSGSIZE, errno.EINVAL, errno.EIO):
            self._sleeve.refused(address, now)
        else:
            counters = self._sleeve.counters
            counters["send-failed"] = counters.get("send-failed", 0) + 1

    def _stick(self, item: Send, by: socket.socket) -> None:
        """The socket takes no more: wait until it does, and read no frames meanwhile."""
        self._stuck, self._stuck_on = item, by.fileno()
        self._epoll.modify(by, select.EPOLLIN | select.EPOLLOUT)
        if self._tap >= 0:
            self._epoll.modify(self._tap, 0)

    def _unstick(self, descriptor: int) -> None:
        if self._stuck is None or descriptor != self._stuck_on:
            return
        buffers, segment, address = self._stuck
        by = self._sockets[descriptor]
        try:
            by.sendmsg(buffers, self._segments[segment], 0, address)
        except BlockingIOError:
            return
        except OSError as error:
            self._not_sent(error, address, time.monotonic())
        self._stuck = None
        self._epoll.modify(by, select.EPOLLIN)
        if self._tap >= 0:
            self._epoll.modify(self._tap, select.EPOLLIN)

    # The TAP.

    def _open_tap(self, now: float) -> None:
        assert self._configured is not None
        try:
            self._tap = open_tap(self._configured.tap, control.TAP not in self._configured.offloads_off)
        except KernelError:
            self._tap_retry_s = now + TAP_RETRY_S  # the daemon's engine makes it, or somebody else still has it
            return
        self._epoll.register(self._tap, select.EPOLLIN if self._stuck is None else 0)

    def _close_tap(self) -> None:
        if self._tap >= 0:
            with suppress(OSError):
                self._epoll.unregister(self._tap)
            os.close(self._tap)
            self._tap = -1
            self._tap_retry_s = time.monotonic() + TAP_RETRY_S

    # The daemon.

    def _accept(self) -> None:
        """A new connection: the daemon's, of whatever life. An older one is of a daemon that has ended."""
        connection, _ = self._listener.accept()
        if not _is_trusted(connection):
            connection.close()
            return
        self._hang_up()
        connection.setblocking(False)
        self._daemon = connection
        self._decoder = control.Decoder()
        self._said.clear()
        self._epoll.register(connection, select.EPOLLIN)

    def _hang_up(self) -> None:
        if self._daemon is not None:
            self._epoll.unregister(self._daemon)
            self._daemon.close()
            self._daemon = None
            self._is_agreed, self._unsaid = False, b""

    def _hear(self) -> None:
        assert self._daemon is not None
        try:
            data = self._daemon.recv(_CONTROL_BYTES)
            if not data:
                self._hang_up()
                return
            for message in self._decoder.feed(data):
                self._take(message)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._hang_up()

    def _take(self, message: control.Message) -> None:
        match message:
            case control.Configure():
                self._configure(message)
            case control.Peer() if self._sleeve is not None:
                self._said.add(message.name)
                self._sleeve.set_peer(message)
            case control.Macs() if self._sleeve is not None:
                self._sleeve.change_macs(message)
            case control.Forget(name) if self._sleeve is not None:
                self._sleeve.forget(name)
            case control.Graph(edges) if self._sleeve is not None:
                self._sleeve.set_graph(dict(edges))
            case control.Expect(names) if self._sleeve is not None:
                for name in names:
                    self._sleeve.expect(name, time.monotonic())
            case control.Complete() if self._sleeve is not None:
                for name in [each for each in self._sleeve.partners if each not in self._said]:
                    self._sleeve.forget(name)
            case control.Stop():
                self._end()
            case _:
                raise ValueError(f"{type(message).__name__} does not belong here")

    def _configure(self, wanted: control.Configure) -> None:
        known = self._configured
        if known is not None:
            if _but_for_epoch(known) != _but_for_epoch(wanted):
                self._refuse("other-configuration", "this worker serves another configuration")
                return
            self._is_agreed, self._status_s = True, 0.0
            return
        off = wanted.offloads_off
        try:
            self._open_sockets(wanted.hosts, wanted.port, control.UDP_GRO not in off)
        except OSError as error:
            self._refuse("port-in-use" if error.errno == errno.EADDRINUSE else "no-socket", _why(error, wanted))
            return
        self._configured = wanted
        self._is_agreed = True
        keyring = Keyring(wanted.name, wanted.private_key, wanted.psks, wanted.epoch, has_aes(), os.urandom)
        self._sleeve = Sleeve(
            wanted.name,
            keyring,
            is_clear=not wanted.psks,
            may_segment=control.UDP_SEGMENT not in off and datagram.may_segment(),
            resolve=lambda each: datagram.resolve(*each),
            datagram_bytes=datagram.datagram_bytes,
            pack_address=datagram.pack_address,
            unpack_address=datagram.unpack_address,
            own_address=lambda address: datagram.own_address(address, wanted.port),
            backlog_bytes=self._backlog,
        )

    def _open_sockets(self, hosts: tuple[str, ...], port: int, gro: bool) -> None:
        for host in hosts or ("0.0.0.0", "::"):
            try:
                made = datagram.open_socket(host, port, gro)
            except OSError as error:
                if not hosts and host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a host without IPv6
                raise
            self._sockets[made.fileno()] = made
            self._by_length[2 if made.family == socket.AF_INET else 4] = made
            self._epoll.register(made, select.EPOLLIN)

    def _refuse(self, code: str, text: str) -> None:
        self._say(control.Refused(code, text))
        self._end()

    def _say(self, message: control.Message) -> None:
        """To the daemon. One that does not listen misses it: the next status says the same and more."""
        self._unsaid += control.encode(message)
        self._go_on_saying()

    def _go_on_saying(self) -> None:
        if self._daemon is None:
            return
        try:
            self._unsaid = self._unsaid[self._daemon.send(self._unsaid) :]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()
            return
        self._epoll.modify(self._daemon, select.EPOLLIN | (select.EPOLLOUT if self._unsaid else 0))


def has_aes() -> bool:
    """Whether the CPU has instructions for AES; without them ChaCha20 is several times faster."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return "aes" in line.split()
    return False


def _but_for_epoch(configure: control.Configure) -> tuple[object, ...]:
    return tuple(getattr(configure, name) for name in configure.__slots__ if name != "epoch")


def _why(error: OSError, wanted: control.Configure) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"UDP port {wanted.port} is in use by another program; end that, or launch with --port on every host"
    return f"cannot open UDP port {wanted.port}: {error.strerror}"


def _listen(path: str) -> socket.socket:
    """The unix socket, for root alone. One left by a worker that was killed is replaced."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        made.bind(path)
    finally:
        os.umask(before)
    made.listen(4)
    made.setblocking(False)
    return made


def _is_trusted(connection: socket.socket) -> bool:
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (0, os.geteuid())


def _clear_error(of: socket.socket) -> None:
    of.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
