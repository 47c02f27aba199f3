"""The plugin's socket: where Docker looks for `weft`, served for as long as the daemon runs.

A shell around `mesh.dockernet.wire`: it reads, has each call answered within a second, and writes. Docker waits for its
plugins without a limit, so an answer that takes longer is a refusal with the reason. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from gossip.errors import ProtocolError
from mesh.dockernet import wire
from mesh.errors import UserError
from mesh.logs import EventLog
from mesh.requests import ApiError

ANSWER_LIMIT_S = 1.0
CONNECTIONS_MAX = 64
IDLE_LIMIT_S = 120.0
LOOK_S = 5.0

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Method and fields in, fields out. Raises `ApiError`, `KeyError` where there is no such method."""

log = EventLog("docker")


class PluginServer:
    """On one path."""

    def __init__(self, path: str, call: Call) -> None:
        self.path = path
        self.trouble = ""
        """Why Docker cannot find us, where it cannot."""
        self._call = call
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Those who have no whole request yet, whoever has been waited for the longest first."""

    async def open(self, quiet: bool = False) -> None:
        """What fails is told in `trouble`: the daemon goes on without Docker."""
        try:
            listener = _listen(self.path)
        except (OSError, UserError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            self.trouble = f"the socket {self.path} for Docker cannot be made ({why})"
            if not quiet:
                log.warning("not-served", path=self.path, error=why)
            return
        self.trouble = ""
        self._inode = os.stat(self.path).st_ino
        self._server = await asyncio.start_unix_server(self._welcome, sock=listener, limit=wire.HEAD_MAX_BYTES)
        log.info("served", path=self.path)

    async def keep(self) -> None:
        """Make the socket anew whenever somebody has removed it, or it could not be made. Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._server is not None and not self._is_ours():
                log.warning("socket-gone", path=self.path)
                self._server.close()
                self._server = None
            if self._server is None:
                before = self.trouble
                await self.open(quiet=bool(before))

    def _is_ours(self) -> bool:
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        if self._is_ours():  # not the socket of a successor
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if len(self._serving) > CONNECTIONS_MAX:
                if not self._waiting:
                    return  # all of them are being answered
                longest = next(iter(self._waiting))
                del self._waiting[longest]
                longest.cancel()
            await self._serve(task, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, asyncio.CancelledError):
            pass  # it went, or we do
        finally:
            self._serving.discard(task)
            self._waiting.pop(task, None)
            writer.close()

    async def _serve(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            self._waiting[task] = None
            async with asyncio.timeout(IDLE_LIMIT_S):
                head = await reader.readuntil(wire.END_OF_HEAD)
                try:
                    method, length = wire.head_untrusted(head)
                    fields = wire.body_untrusted(await reader.readexactly(length))
                except ProtocolError as error:
                    writer.write(wire.answer(400, wire.refusal(f"weft: {error}"), ends=True))
                    await writer.drain()
                    return
            if self._waiting.pop(task, ...) is ...:
                return  # it had to make room
            writer.write(await self._answer(method, fields))
            await writer.drain()

    async def _answer(self, method: str, fields: dict[str, Any]) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                # Shielded: what was begun is finished, whatever Docker is told of it.
                return wire.answer(200, await asyncio.shield(self._call(method, fields)))
        except KeyError:
            return wire.answer(404, wire.refusal(f"weft has no method {method[:80]}"))
        except ApiError as error:
            log.warning("refused", method=method, error=error)
            return wire.answer(500, wire.refusal(f"weft: {error}"))
        except TimeoutError:
            log.warning("slow", method=method)
            return wire.answer(500, wire.refusal(f"weft: {method} took longer than {ANSWER_LIMIT_S:g} s; try again"))
        except Exception as error:
            log.exception("crashed")
            return wire.answer(500, wire.refusal(f"weft: a mistake inside the daemon ({type(error).__name__})"))


def _listen(path: str) -> socket.socket:
    """Mode 0600, in the place of a dead daemon's if there is one. Raises OSError or `UserError`."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise UserError("it is there and is no socket")
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise UserError("another daemon serves it")
        listener.bind(path)
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener
