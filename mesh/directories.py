"""The two directories a daemon owns, and the names of the files in them.

The run directory (`WEFT_RUN_DIR`) holds what dies with the process: the socket and the pid. The state directory
(`WEFT_STATE_DIR`) holds what survives it: documents, keys, journals, the log. Each is locked as a whole by the daemon
that uses it; the lock is on the directory itself, so there is no lock file to be left behind, and the kernel drops it
when the process ends, however it ends.

This module knows nothing of what the files contain. It imports next to nothing because every command does.
"""

from __future__ import annotations

import os

from mesh.errors import UserError

DEFAULT_RUN_DIR = "/run/weft"
DEFAULT_STATE_DIR = "/var/lib/weft"

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` in `struct sockaddr_un` has 108 bytes, the last one a zero."""

STATE_SUFFIX = ".weft"
PENDING_SUFFIX = ".weft.new"
JOURNAL_SUFFIX = ".journal"
JOURNAL_PENDING_SUFFIX = ".journal.new"
LOG_NAME = "weft.log"
SLEEVE_LOG_NAME = "sleeve.log"
SLEEVE_SOCKET_NAME = "sleeve.sock"


class DirectoryError(UserError):
    """A directory cannot be used: what is wrong with it and what to do."""


def run_dir() -> str:
    """The run directory of this environment, absolute."""
    return os.path.abspath(os.environ.get("WEFT_RUN_DIR") or DEFAULT_RUN_DIR)


def state_dir() -> str:
    """The state directory of this environment, absolute."""
    return os.path.abspath(os.environ.get("WEFT_STATE_DIR") or DEFAULT_STATE_DIR)


def socket_path(run_directory: str) -> str:
    return os.path.join(run_directory, "weft.sock")


def sleeve_socket_path(run_directory: str) -> str:
    """Where the sleeve worker listens for the daemon."""
    return os.path.join(run_directory, SLEEVE_SOCKET_NAME)


def pid_path(run_directory: str) -> str:
    return os.path.join(run_directory, "weft.pid")


def forwarding_path(state_directory: str) -> str:
    """Where is written what the host's forwarding was before us."""
    return os.path.join(state_directory, "forwarding" + STATE_SUFFIX)


def log_path(state_directory: str) -> str:
    return os.path.join(state_directory, LOG_NAME)


def sleeve_log_path(state_directory: str) -> str:
    return os.path.join(state_directory, SLEEVE_LOG_NAME)


def private_directory(path: str) -> None:
    """Make `path` (0700, parents as usual) or check that the one that is there is ours alone to write.

    A directory that exists keeps its mode: somebody chose it, and a mistyped `WEFT_RUN_DIR=/tmp` must not lock
    everybody else out of it.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
            _sync(os.path.dirname(path))
        except FileExistsError:
            pass
        status = os.stat(path)
    except OSError as error:
        raise DirectoryError(
            f"cannot make the directory {path} ({error.strerror}); make it yourself or name another one"
        ) from None
    if status.st_mode & 0o170000 != 0o040000:
        raise DirectoryError(f"{path} is not a directory; move it away or name another one")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise DirectoryError(
            f"{path} is not ours alone (owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}); "
            "Weft needs a directory that only its own user can write"
        )


def _sync(directory: str) -> None:
    """Make durable what was created in a directory: a host must not lose its identity's directory in a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(path: str, *, purpose: str) -> int:
    """Lock `path` for this process and return the descriptor that holds the lock until it is closed."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DirectoryError(f"cannot open the directory {path} ({error.strerror}); check its owner and mode") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DirectoryError(
            f"the {purpose} directory {path} is in use by another Weft daemon; stop that one, or name another directory"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise DirectoryError(f"cannot lock the directory {path} ({error.strerror})") from None
    return descriptor


class RunDirectory:
    """The run directory while a daemon has it: locked, with our pid in `weft.pid`.

    with RunDirectory(config.run_dir): ... serve ...
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> RunDirectory:
        private_directory(self.path)
        self._lock = lock_directory(self.path, purpose="run")
        try:
            descriptor = os.open(pid_path(self.path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, f"{os.getpid()}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._unlock()
            raise DirectoryError(
                f"cannot write {pid_path(self.path)} ({error.strerror}); free space or check the directory"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.unlink(pid_path(self.path))
        except OSError:
            pass  # it is gone already, or it stays as a stale file that the next launch overwrites
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def read_pid(run_directory: str) -> int | None:
    """The pid in `weft.pid`, or None where there is none to read. Says nothing about whether it is still alive."""
    try:
        with open(pid_path(run_directory), "rb") as file:
            text = file.read(32)
    except OSError:
        return None
    return int(text) if text.strip().isdigit() and int(text) > 0 else None


def remove_state(state_directory: str) -> None:
    """Remove from the state directory what Weft wrote there, and the directory where nothing else is left in it."""
    try:
        names = sorted(os.listdir(state_directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DirectoryError(f"cannot list {state_directory} ({error.strerror}); check its owner and mode") from None
    _remove(state_directory, [name for name in names if _is_state(name)])


def remove_run_files(run_directory: str) -> None:
    """Remove the sockets and the pid file of processes that are gone, and the directory where it is empty then."""
    _remove(run_directory, ["weft.sock", "weft.pid", SLEEVE_SOCKET_NAME])


def _is_state(name: str) -> bool:
    if name.endswith((STATE_SUFFIX, PENDING_SUFFIX, JOURNAL_SUFFIX, JOURNAL_PENDING_SUFFIX)):
        return True
    log, _, number = name.rpartition(".")
    return name in (LOG_NAME, SLEEVE_LOG_NAME) or (log in (LOG_NAME, SLEEVE_LOG_NAME) and number.isdigit())


def _remove(directory: str, names: list[str]) -> None:
    for name in names:
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DirectoryError(
                f"cannot remove {os.path.join(directory, name)} ({error.strerror}); remove it by hand"
            ) from None
    try:
        os.rmdir(directory)
    except OSError:
        pass  # somebody else keeps something in it, or it is a mount point
