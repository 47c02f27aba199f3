"""Asking the daemon: one request on one connection to its unix socket, one line of JSON each way.

    -> {"verb": "attach", "args": {...}}
    <- {"row": ...}                     any number, from verbs that stream
    <- {"ok": ...}  or  {"error": {"code": "...", "message": "one line"}}

This module knows nothing of what the verbs mean. It is imported by every command, so it imports nothing that takes time
but `json`.
"""

from __future__ import annotations

import json
import os

# Not `socket`, which spends as long on building enumerations of constants as the whole request takes.
from _socket import AF_UNIX, socket

from mesh import directories
from mesh.errors import UserError

TYPE_CHECKING = False  # instead of typing's, whose import alone would take longer than the request
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ANSWER_TIMEOUT_S = 30.0
"""Longer than the daemon takes for anything, attach with a busy kernel included."""
READ_TIMEOUT_S = 10.0
"""For questions that change nothing: only a daemon that hangs takes so long."""

LINE_BYTES_MAX = 256 * 1024 * 1024
"""A report of a million endpoints; beyond it whoever answers is not our daemon."""

_READ_BYTES = 256 * 1024


class DaemonDown(UserError):
    """Nobody listens on the socket."""


class DaemonSilent(UserError):
    """Somebody listens, but no answer comes."""


class DaemonError(UserError):
    """The daemon answered that it cannot do it. `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def call(
    verb: str,
    args: dict[str, Any] | None = None,
    *,
    on_row: Callable[[Any], None] | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Any:
    """Ask the daemon and return its answer; rows of a streaming verb go to `on_row` as they come.

    `timeout_s` is the longest silence that is waited out. Raises `DaemonDown`, `DaemonSilent` or `DaemonError`.
    """
    path = directories.socket_path(directories.run_dir())
    connection = connect(path, timeout_s)
    try:
        try:
            connection.sendall(json.dumps({"verb": verb, "args": args or {}}).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it did not want to read all of it; what it said about that may still be waiting for us
        received = b""
        while True:
            line, received = _read_line(connection, received, path)
            answer = _decode(line, path)
            if "row" in answer:
                if on_row is not None:
                    on_row(answer["row"])
                continue
            if "error" in answer:
                error = answer["error"]
                raise DaemonError(str(error.get("code")), str(error.get("message")))
            return answer["ok"]
    except TimeoutError:
        pid = directories.read_pid(directories.run_dir())
        raise DaemonSilent(
            f"the daemon{f' (pid {pid})' if pid else ''} does not answer on {path} (waited {timeout_s:.0f} s for "
            f"`{verb}`); see {directories.log_path(directories.state_dir())}, or kill it and launch again: running "
            "containers keep their network meanwhile"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        raise _broken_off(path) from None
    finally:
        connection.close()


def connect(path: str, timeout_s: float = ANSWER_TIMEOUT_S) -> socket:
    """A connection to whoever listens on `path`. Raises `DaemonDown`, `DaemonSilent` or `UserError`."""
    if len(os.fsencode(path)) > directories.SOCKET_PATH_BYTES_MAX:
        raise UserError(
            f"the socket path {path} is longer than the {directories.SOCKET_PATH_BYTES_MAX} bytes the kernel allows; "
            "set WEFT_RUN_DIR to a shorter one"
        )
    connection = socket(AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise DaemonDown(
            f"the daemon is not running (no answer on {path}); start it with `sudo weft launch`"
        ) from None
    except PermissionError:
        connection.close()
        raise UserError(f"no permission on {path}: root is needed; try again with sudo") from None
    except (BlockingIOError, TimeoutError):
        # A unix socket refuses at once when the queue of unaccepted connections is full.
        connection.close()
        raise DaemonSilent(f"the daemon does not accept connections on {path}; it may hang: see its log") from None
    except OSError as error:
        connection.close()
        raise UserError(f"cannot connect to {path} ({error.strerror}); check WEFT_RUN_DIR") from None
    return connection


def _read_line(connection: socket, received: bytes, path: str) -> tuple[bytes, bytes]:
    """One line, and what came after it."""
    chunks = [received]
    size = len(received)
    while b"\n" not in chunks[-1]:
        chunk = connection.recv(_READ_BYTES)
        if not chunk:
            raise _broken_off(path)
        size += len(chunk)
        if size > LINE_BYTES_MAX:
            raise _stranger(path)
        chunks.append(chunk)
    line, _, rest = b"".join(chunks).partition(b"\n")
    return line, rest


def _decode(line: bytes, path: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise _stranger(path) from None
    if not isinstance(answer, dict) or not ("row" in answer or "ok" in answer or isinstance(answer.get("error"), dict)):
        raise _stranger(path)
    return answer


def _broken_off(path: str) -> UserError:
    log = directories.log_path(directories.state_dir())
    return UserError(f"the daemon broke off without an answer on {path}: it stopped or crashed; see {log}")


def _stranger(path: str) -> UserError:
    return UserError(f"what answers on {path} is not a Weft daemon of this kind; check WEFT_RUN_DIR and the versions")
