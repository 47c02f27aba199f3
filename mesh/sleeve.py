"""Finds, starts, watches and ends the sleeve worker, and tells it what it should know.

The worker is a process of its own (`python -m dataplane.sleeve SOCKET`) that outlives the daemon. A new daemon adopts
one that has the configuration it would give, and sees any other to its end before it starts its own: two cannot share
the port, and one without the secret must not go on. Knows the worker by its socket, its process and `control`'s
messages, and nothing of keys or frames.

The one idea: one task, one worker at a time. Start it, speak with it until the connection ends, be sure that its
process is gone, start the next. Nothing slow stands between the end of one and the start of the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, cast

from dataplane.sleeve import control
from dataplane.sleeve.control import (
    SILENT,
    WRONG_SECRET,
    Configure,
    Decoder,
    Expect,
    Graph,
    Message,
    PeerStatus,
    Refused,
    Status,
    Stop,
)
from gossip.names import PeerName, format_name
from mesh import directories, shutdown
from mesh.errors import UserError
from mesh.logs import EventLog
from mesh.roster import Entry, Roster

COMMAND: Final = (sys.executable, "-m", "dataplane.sleeve")
"""How a worker is started; the path of its socket follows."""
START_TIMEOUT_S = 20.0
"""From the start of a worker to its first status; a fifth of a second is usual, on a machine that has time for it."""
ADOPT_TIMEOUT_S = 2.0
"""For the first status of a worker that was there before us."""
CONNECT_INTERVAL_S = 0.01
END_PATIENCE_S = 1.0
"""For a worker that was told to end, before it is killed."""
DEATH_PATIENCE_S = 0.1
"""A process whose connection has ended is nearly always gone in the same moment; one that is not is killed."""
KILL_TIMEOUT_S = 3.0
SILENCE_MAX_S = 15.0
"""A worker that says nothing for so long hangs, and is killed."""
BACKLOG_MAX_BYTES = 2 * control.MESSAGE_MAX_BYTES
"""What a worker may leave unread; beyond that it hangs."""
STEADY_S = 1.0
"""A worker that served for so long and then died is replaced at once."""
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 5.0
RESTARTS_WARNED = 3
"""So many workers in a row that died at once are worth a warning, for as long as `WARNED_S` after the last."""
WARNED_S = 60.0
LOG_BYTES_MAX = 1024 * 1024
"""The worker's log is put aside, over the one before it, when a worker starts and finds it longer."""

log = EventLog("sleeve")


class Restarts:
    """How long to wait before the next worker is started."""

    def __init__(self) -> None:
        self.in_a_row = 0
        """Workers that died without having served."""

    def after(self, served_s: float) -> float:
        """The delay after one that served so long; the first failure costs none."""
        if served_s >= STEADY_S:
            self.in_a_row = 0
        self.in_a_row += 1
        if self.in_a_row == 1:
            return 0.0
        doublings = min(self.in_a_row - 2, 16)  # a float for ever
        return float(min(RESTART_DELAY_MIN_S * 2**doublings, RESTART_DELAY_MAX_S))


class Supervisor:
    """The worker of one daemon."""

    def __init__(
        self,
        run_dir: str,
        state_dir: str,
        settings: Configure,
        epoch: int,
        command: Sequence[str] = COMMAND,
        *,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        """`settings` without their epoch, which is made from `epoch`, the daemon's own, and a count of workers.
        `on_news` is called when the way to a peer has changed, as far as a worker knows it."""
        self._on_news = on_news
        self.status: Status | None = None
        """The worker's last one; None while none serves."""
        self.peers: Mapping[PeerName, PeerStatus] = {}
        """The same by peer; empty while none serves."""
        self.known: Mapping[PeerName, PeerStatus] = {}
        """What the last one said, also while it is being replaced: mostly that is a matter of milliseconds."""
        self.started = 0
        """Workers that this daemon started."""
        self.keeps: tuple[int, ...] = ()
        """Descriptors that every worker we start holds open, and knows nothing of."""
        self._path = directories.sleeve_socket_path(run_dir)
        self._log_path = directories.sleeve_log_path(state_dir)
        self._settings = settings
        self._epoch = epoch
        self._command = command
        self._roster = Roster()
        self._restarts = Restarts()
        self._conversation: _Conversation | None = None
        self._process: _Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_adopted = False
        self._is_renewing = False
        self._trouble = ""
        self._serves_since = 0.0

    # -- life --------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Adopt the worker that is there, or end it. Raises `UserError` where it cannot be ended.

        One that serves under the very same configuration goes on without a pause, and is told of peers as soon as the
        mesh's state is in. With a secret, every other one is gone when this returns.
        """
        if len(os.fsencode(self._path)) > directories.SOCKET_PATH_BYTES_MAX:
            raise UserError(
                f"the socket path {self._path} is longer than the {directories.SOCKET_PATH_BYTES_MAX} bytes the kernel "
                "allows; set WEFT_RUN_DIR to a shorter one"
            )
        try:
            found = await self._connect()
        except OSError:
            return
        process = _Process(found.pid())
        if not shutdown.is_worker(process.pid, self._path):
            raise UserError(f"something serves {self._path} and is no sleeve worker; end it, then launch again")
        found.send(self._next_configuration())
        if await found.heard(ADOPT_TIMEOUT_S):  # a worker says nothing before it has agreed to our configuration
            log.info("worker-adopted", pid=process.pid)
            self._process, self._conversation, self._is_adopted = process, found, True
            return
        log.info("worker-ended", pid=process.pid, reason=found.refusal.code if found.refusal else "no answer")
        found.close()
        self.status, self.peers = None, {}
        if not await process.end(END_PATIENCE_S if found.refusal else 0.0):
            raise UserError(
                f"a sleeve worker of another configuration (pid {process.pid}) does not end; kill it, then launch again"
            )

    async def start(self) -> None:
        """Keep a worker running from now on. Returns when one serves; raises `UserError` where none does."""
        first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._run(first))
        if trouble := await first:
            raise UserError(f"{trouble}; its log: {self._log_path}")

    async def close(self, *, end: bool) -> None:
        """Leave the worker to the next daemon, or `end` it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        conversation, process = self._conversation, self._process
        self._conversation = self._process = None
        if conversation is not None:
            conversation.send(*([Stop()] if end else []))
            conversation.close()
        if process is None:
            return
        if end:
            if not await process.end(END_PATIENCE_S if conversation is not None else 0.0):
                log.error("worker-does-not-end", pid=process.pid)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        process.let_go()

    @property
    def pid(self) -> int | None:
        """Of the worker there is."""
        return self._process.pid if self._process is not None else None

    def renew(self, epoch: int) -> None:
        """Replace the worker by one of a later epoch: other hosts have seen later ones of ours than its own."""
        self._epoch = max(self._epoch, epoch)
        if self._process is not None:
            self._is_renewing = True
            self._process.kill()

    def reconfigure(self, settings: Configure) -> None:
        """Replace the worker, where it has other settings than these, by one that has them."""
        if settings != self._settings:
            self._settings = settings
            if self._process is not None:
                self._is_renewing = True
                self._process.kill()

    # -- what is said ------------------------------------------------------------------------------

    def tell(self, peers: Mapping[PeerName, Entry], graph: Graph, settled: bool) -> None:
        """What the worker should know of other hosts; it hears of what is different. `settled`: these are all."""
        self._roster.want(peers, graph, settled)
        if self._conversation is not None and self._task is not None:
            self._conversation.send(*self._roster.pending())

    def expect(self, peers: Collection[PeerName]) -> None:
        """Frames for these may soon go by the sleeve: it sees to keys and to a way that works."""
        if self._conversation is not None and self._task is not None:
            self._conversation.send(Expect(tuple(sorted(peers))))

    def trouble(self, now: float) -> str | None:
        """Why no worker serves, or none that stays; None while all is well."""
        if self.status is None:
            return self._trouble or None
        if self._restarts.in_a_row >= RESTARTS_WARNED and now - self._serves_since < WARNED_S:
            return f"the sleeve worker died {self._restarts.in_a_row} times in a row, the last time {self._trouble!r}"
        return None

    def _heard(self, status: Status) -> None:
        peers = {peer.name: peer for peer in status.peers}
        for name, peer in sorted(peers.items()):
            known = self.peers.get(name)
            before = known.state if known is not None else ""
            if before != peer.state and self._task is not None:
                # Coming up and falling idle is how every pair lives.
                tell = log.info if {before, peer.state} & {SILENT, WRONG_SECRET} else log.debug
                tell("sleeve", peer=format_name(name), state=peer.state, address=peer.address, cipher=peer.cipher)
        ways = {name: _way(peer) for name, peer in self.known.items()}
        self.status, self.peers = status, peers
        self.known = peers
        if ways != {name: _way(peer) for name, peer in peers.items()}:
            self._on_news()

    # -- one worker after another ------------------------------------------------------------------

    async def _run(self, first: asyncio.Future[str]) -> None:
        while True:
            begun = time.monotonic()
            if await (self._take_adopted() if self._is_adopted else self._start_one()):
                if not first.done():
                    first.set_result("")
                begun = self._serves_since = time.monotonic()
                while await self._converse() and await self._reconnect():
                    pass
            await self._bury()
            if not first.done():
                first.set_result(self._trouble)
                return
            if self._is_renewing:
                self._is_renewing, self._trouble = False, ""
                log.info("worker-replaced")
                continue
            delay_s = self._restarts.after(time.monotonic() - begun)
            log.warning("worker-gone", trouble=self._trouble, restart_in_s=f"{delay_s:g}")
            await asyncio.sleep(delay_s)

    async def _take_adopted(self) -> bool:
        assert self._conversation is not None
        self._is_adopted = False
        self._roster.begin(adopted=True)
        self._conversation.send(*self._roster.pending())
        return True

    async def _start_one(self) -> bool:
        """Start a worker. True when it has said its first status; `_trouble` says why it does not come to that."""
        try:
            child = self._spawn()
        except OSError as error:
            self._trouble = f"cannot start the sleeve worker ({error.strerror})"
            return False
        process = self._process = _Process(child.pid, child)
        deadline, trouble = time.monotonic() + START_TIMEOUT_S, ""
        while not process.is_gone and time.monotonic() < deadline:
            try:
                conversation = self._conversation = await self._connect()
            except OSError:
                await process.wait_gone(CONNECT_INTERVAL_S)
                continue
            # All at once, before it has said a word: the sooner it serves.
            self._roster.begin(adopted=False)
            conversation.send(self._next_configuration(), *self._roster.pending())
            if await conversation.heard(deadline - time.monotonic()):
                log.info("worker-started", pid=process.pid)
                return True
            trouble = conversation.refusal.text if conversation.refusal else conversation.fault
            break
        did = "hung" if time.monotonic() >= deadline else "died"
        self._trouble = trouble or f"the sleeve worker {did} while starting"
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Raises `OSError`. The worker outlives us, so nothing of ours goes with it: its log is a file (whoever reads
        our standard error must not wait for it too), and no password is in its environment."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self.started += 1
        descriptor = _open_log(self._log_path)
        try:
            return subprocess.Popen(
                [*self._command, self._path], stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
                cwd="/", env=_environment(), start_new_session=True, pass_fds=self.keeps,
            )  # fmt: skip
        finally:
            os.close(descriptor)

    async def _converse(self) -> bool:
        """Until the connection ends. Whether another one may be of use: not where it hangs, refused or raved."""
        conversation = self._conversation
        assert conversation is not None
        while not await conversation.wait_closed(SILENCE_MAX_S / 4):
            silent_s = time.monotonic() - conversation.last_heard
            if silent_s > SILENCE_MAX_S or conversation.backlog_bytes() > BACKLOG_MAX_BYTES:
                self._trouble = "the sleeve worker hung"
                return False
        refused = conversation.refusal
        self._trouble = refused.text if refused else conversation.fault or "the sleeve worker died"
        return refused is None and not conversation.fault

    async def _reconnect(self) -> bool:
        """Speak anew with a worker that has ended the connection and lives: it may have given up on a daemon that was
        too slow to read, and its keys are worth keeping. Not again and again, and a dead one costs no time."""
        process, begun = self._process, time.monotonic()
        assert process is not None
        if begun - self._serves_since < STEADY_S or await process.wait_gone(DEATH_PATIENCE_S):
            return False
        try:
            conversation = self._conversation = await self._connect()
        except OSError:
            return False
        self._serves_since = begun
        self._roster.begin(adopted=False)
        conversation.send(self._next_configuration(), *self._roster.pending())
        log.info("worker-reconnected", pid=process.pid)
        return await conversation.heard(ADOPT_TIMEOUT_S)

    async def _bury(self) -> None:
        """Be sure that the process has gone: its successor needs its port and its TAP."""
        self.status, self.peers = None, {}
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None
        if self._process is not None:
            if not await self._process.end(DEATH_PATIENCE_S):
                log.error("worker-does-not-end", pid=self._process.pid)
            self._process.let_go()
            self._process = None

    async def _connect(self) -> _Conversation:
        """Raises `OSError` where nobody listens."""
        loop = asyncio.get_running_loop()
        _, conversation = await loop.create_unix_connection(lambda: _Conversation(self._heard), self._path)
        return conversation

    def _next_configuration(self) -> Configure:
        return replace(self._settings, epoch=self._epoch << 32 | self.started)


class _Conversation(asyncio.Protocol):
    """One connection to a worker."""

    def __init__(self, heard: Callable[[Status], None]) -> None:
        loop = asyncio.get_running_loop()
        self.refusal: Refused | None = None
        self.fault = ""
        """What was wrong with what it said."""
        self.last_heard = time.monotonic()
        self._on_status = heard
        self._decoder = Decoder()
        self._serves = False
        self._news = asyncio.Event()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        self.last_heard = time.monotonic()
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except ValueError as error:
            self.fault = f"the sleeve worker said {error}"
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._news.set()
        if not self._closed.done():
            self._closed.set_result(None)

    def _take(self, message: Message) -> None:
        if isinstance(message, Refused):
            self.refusal = message
        elif isinstance(message, Status):
            self._on_status(message)
            self._serves = True
        self._news.set()

    def pid(self) -> int:
        """The process that listens there."""
        assert self._transport is not None
        raw = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", raw)[0])

    def send(self, *messages: Message) -> None:
        """In one write. What cannot be said any more need not be: the next worker hears everything."""
        if messages and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(map(control.encode, messages)))

    def backlog_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def heard(self, timeout_s: float) -> bool:
        """Whether it has said that it serves, and did not refuse."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._serves and self.refusal is None and not self._closed.done():
                    self._news.clear()
                    await self._news.wait()
        return self._serves and self.refusal is None and not self._closed.done()

    async def wait_closed(self, timeout_s: float) -> bool:
        await asyncio.wait([self._closed], timeout=timeout_s)
        return self._closed.done()

    def close(self) -> None:
        """What was sent still goes out."""
        if self._transport is not None:
            self._transport.close()


class _Process:
    """A worker as a process, our own child or an earlier daemon's, held by a pidfd."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError:
            self._gone.set_result(None)
            return
        self._loop.add_reader(self._descriptor, self._ended)

    @property
    def is_gone(self) -> bool:
        return self._gone.done()

    def _ended(self) -> None:
        self.let_go()
        if not self._gone.done():
            self._gone.set_result(None)

    async def wait_gone(self, timeout_s: float) -> bool:
        await asyncio.wait([self._gone], timeout=timeout_s)
        return self._gone.done()

    async def end(self, patience_s: float) -> bool:
        """Wait for it to end by itself, then kill it. False where not even that helps."""
        if not await self.wait_gone(patience_s):
            self.kill()
        return await self.wait_gone(KILL_TIMEOUT_S)

    def kill(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def let_go(self) -> None:
        """Watch it no more."""
        if self._child is not None:
            self._child.poll()  # whoever started it has to ask, or it stays in the table of processes
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _way(peer: PeerStatus) -> tuple[object, ...]:
    return peer.state, peer.via, peer.is_translated


def _open_log(path: str) -> int:
    """The worker's log, the one before it put aside where that has become long. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_size > LOG_BYTES_MAX:
            os.replace(path, path + ".1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _environment() -> dict[str, str]:
    """Ours, without the password, and with the place that this program was found at."""
    environment = {name: value for name, value in os.environ.items() if name != "WEFT_PASSWORD"}
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.basename(source) not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join([source, *(path for path in known if path and path != source)])
    return environment
