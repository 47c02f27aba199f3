"""The daemon's door: a unix socket that takes one request a connection and answers in lines of JSON.

    -> {"verb": "attach", "args": {...}}
    <- {"row": ...}                     any number, while a verb streams
    <- {"ok": ...}  or  {"error": {"code": "...", "message": "one line"}}

The shell around `requests.parse_request`: it reads, hands the parsed request to the one handler it was given, and
writes. It knows nothing of what requests do. A client that goes away in the middle does not cancel what it asked for:
an attach is finished rather than left in half; a streaming handler notices when its next row has nobody to go to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mesh import client, directories, logs, requests
from mesh.errors import UserError
from mesh.requests import ApiError, Request

REQUEST_BYTES_MAX = 1024 * 1024
"""A GC names all containers that this host has."""
CONNECTIONS_MAX = 64
REQUEST_TIMEOUT_S = 10.0
"""For a client to send its one line."""
WRITE_TIMEOUT_S = 10.0
"""For a client to take what it asked for; a stopped `weft report | less` must not keep a place for ever."""
LINGER_TIMEOUT_S = 1.0
"""For a client to close after its answer; what it still sends in this time is thrown away."""
FAREWELL_TIMEOUT_S = 1.0
"""For answers under way when the daemon ends, that of `stop` itself among them."""

SendRow = Callable[[object], Awaitable[None]]
Handler = Callable[[Request, SendRow], Awaitable[object]]
"""Answers one request: returns the value of "ok", or raises `ApiError`. Rows go out through the second argument, which
raises `ClientGone` when nobody takes them any more; a handler lets that through."""

_log = logs.EventLog("api")


class ClientGone(Exception):
    """Whoever asked has closed the connection, or does not take the answer."""


@contextlib.asynccontextmanager
async def serve(path: str, handle: Handler) -> AsyncIterator[None]:
    """Serve on the unix socket `path` inside the block. Its directory must exist.

    Raises `UserError` where somebody else answers on it, or it cannot be made.
    """
    listener = _listen(path)
    door = _Door(handle)
    server = await asyncio.start_unix_server(door.welcome, sock=listener, limit=REQUEST_BYTES_MAX)
    inode = os.stat(path).st_ino
    try:
        yield
    finally:
        server.close()
        await door.close()
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:  # not the socket of a successor
                os.unlink(path)


def _listen(path: str) -> socket.socket:
    """A listening socket of mode 0600, in the place of a dead daemon's if there is one."""
    if len(os.fsencode(path)) > directories.SOCKET_PATH_BYTES_MAX:
        raise UserError(
            f"the socket path {path} is longer than the {directories.SOCKET_PATH_BYTES_MAX} bytes the kernel allows; "
            "set WEFT_RUN_DIR to a shorter one"
        )
    listener = socket.socket(socket.AF_UNIX)
    # Never open to others, not even between bind and a chmod.
    umask = os.umask(0o177)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {path} ({error.strerror}); check the directory and free space") from None
    except UserError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _remove_stale(path: str) -> None:
    try:
        client.connect(path, timeout_s=1.0).close()
    except client.DaemonDown:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise UserError(f"{path} is there and is no socket; move it away") from None
            os.unlink(path)
        return
    except client.DaemonSilent:
        pass
    raise UserError(f"another daemon serves {path}; stop it first, or set WEFT_RUN_DIR to another directory")


class _Door:
    """The connections being served."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._serving: dict[asyncio.Task[None], None] = {}

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from start to end."""
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._serving) >= CONNECTIONS_MAX:
                raise ApiError("busy", f"the daemon serves {CONNECTIONS_MAX} requests already; try again")
            self._serving[task] = None
            await self._serve(reader, writer)
        except ApiError as error:
            with contextlib.suppress(ClientGone):
                await _write(writer, _encode({"error": {"code": error.code, "message": str(error)}}))
                await _linger(reader, writer)
        except ClientGone:
            pass
        finally:
            self._serving.pop(task, None)
            await _close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = peer_user(writer)
        if not may_ask(user, os.geteuid()):
            raise ApiError("forbidden", f"user {user} may not ask this daemon; try again as root")
        verb, request = requests.parse_request(await _read_line(reader))

        async def send_row(row: object) -> None:
            await _write(writer, _encode({"row": row}))

        try:
            line = _encode({"ok": await self._handle(request, send_row)})
        except (ApiError, ClientGone):
            raise
        except UserError as error:
            raise ApiError("failed", str(error)) from None
        except Exception as error:
            # The outermost shell of a request: a mistake of ours costs this answer, not the daemon.
            _log.exception("request-crashed", verb=verb)
            raise ApiError(
                "internal", f"{verb} failed inside the daemon ({type(error).__name__}); its log has the details"
            ) from None
        await _write(writer, line)

    async def close(self) -> None:
        """Let what is being answered go out, then cut the rest off."""
        serving = [task for task in self._serving if task is not asyncio.current_task()]
        if not serving:
            return
        _, late = await asyncio.wait(serving, timeout=FAREWELL_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def peer_user(writer: asyncio.StreamWriter) -> int:
    """The user id of the process at the other end, from the kernel."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _pid, user, _group = struct.unpack("3i", credentials)
    return int(user)


def may_ask(user: int, own_user: int) -> bool:
    """Root and the daemon's own user only: whoever may ask may attach containers."""
    return user in (0, own_user)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await reader.readuntil(b"\n")
    except TimeoutError:
        raise ApiError("too-slow", f"no request came within {REQUEST_TIMEOUT_S:.0f} s") from None
    except asyncio.LimitOverrunError:
        raise ApiError("too-long", f"the request is longer than {REQUEST_BYTES_MAX} bytes") from None
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise ClientGone from None  # a launch that looked whether we are here
        raise ApiError("bad-request", "the request ends in the middle of its line") from None
    except ConnectionError:
        raise ClientGone from None


def _encode(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False).encode() + b"\n"


async def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            writer.write(line)
            await writer.drain()
    except (ConnectionError, TimeoutError):
        raise ClientGone from None


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client close first. Closing over bytes it sent and we never read would reset the connection, and the
    reset can overtake the answer that says what was wrong with them."""
    with contextlib.suppress(ConnectionError, TimeoutError, RuntimeError):
        async with asyncio.timeout(LINGER_TIMEOUT_S):
            writer.write_eof()
            while await reader.read(REQUEST_BYTES_MAX):
                pass


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close after what is still buffered has gone out, and do not wait for ever for that."""
    writer.close()
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except ConnectionError:
        pass
