"""`weft stop` and `weft reset`: end the daemon and be sure that it is gone; reset also removes what it made.

A daemon that answers is asked. One that hangs is killed, after making sure that the pid in its file is still the daemon
of this run directory and not a stranger who got the number later. The process is watched through a pidfd, which cannot
come to mean somebody else. State files are removed here and not by the daemon, so it happens once and in one
place, whether a daemon was there or not.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from _socket import SO_PEERCRED, SOL_SOCKET

from mesh import client, directories
from mesh.dns import resolvconf
from mesh.errors import UserError

STOP_TIMEOUT_S = 10.0
RESET_ANSWER_TIMEOUT_S = 15.0
"""A daemon that says nothing for so long during `reset` is taken for hung, and killed."""
KILL_TIMEOUT_S = 3.0
PROGRESS_INTERVAL_S = 2.0
_POLL_INTERVAL_S = 0.05


class DaemonProcess:
    """The daemon of one run directory as a process, held by a pidfd."""

    def __init__(self, pid: int, descriptor: int, state_dir: str) -> None:
        self.pid = pid
        self.state_dir = state_dir
        """Its own WEFT_STATE_DIR, which need not be that of our environment."""
        self._descriptor = descriptor

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait_gone(self, timeout_s: float) -> bool:
        return bool(select.select([self._descriptor], [], [], timeout_s)[0])

    def kill(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            pass  # it went by itself in the meantime


class NoProcess:
    """In the place of a `DaemonProcess` where no pid file leads to one: all that is left to watch is the socket."""

    pid = None
    state_dir = None

    def __init__(self, run_directory: str) -> None:
        self._run_directory = run_directory

    def __enter__(self) -> NoProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while answers(self._run_directory):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True


def find_daemon(run_directory: str) -> DaemonProcess | NoProcess:
    """The process that `weft.pid` names, if it is the daemon of this run directory."""
    pid = directories.read_pid(run_directory)
    if pid is None:
        return NoProcess(run_directory)
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return NoProcess(run_directory)
    # Only now look who it is: from here on the descriptor and the pid mean the same process as long as it lives.
    state_directory = _state_dir_of(pid, run_directory)
    if state_directory is None:
        os.close(descriptor)
        return NoProcess(run_directory)
    return DaemonProcess(pid, descriptor, state_directory)


def _state_dir_of(pid: int, run_directory: str) -> str | None:
    """The state directory of process `pid` if it is a Weft daemon of this run directory."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:
        return None
    if b"launch" not in words or not (b"mesh" in words or any(os.path.basename(word) == b"weft" for word in words)):
        return None
    environment = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
    theirs = environment.get("WEFT_RUN_DIR") or directories.DEFAULT_RUN_DIR
    if os.path.realpath(theirs) != os.path.realpath(run_directory):
        return None
    return environment.get("WEFT_STATE_DIR") or directories.DEFAULT_STATE_DIR


def answers(run_directory: str) -> bool:
    """Whether anybody listens on the socket, be it one that never says a word."""
    try:
        client.connect(directories.socket_path(run_directory)).close()
    except client.DaemonDown:
        return False
    except client.DaemonSilent:
        return True
    return True


def stop() -> None:
    """Ask the daemon to end and wait until its process is gone."""
    with find_daemon(directories.run_dir()) as process:
        client.call("stop", timeout_s=STOP_TIMEOUT_S)
        if not _wait_gone(process):
            name = f"the daemon (pid {process.pid})" if process.pid else "the daemon"
            raise UserError(
                f"{name} said it would stop and has not ended within {STOP_TIMEOUT_S:.0f} s; "
                f"see {directories.log_path(directories.state_dir())}, or kill it"
            )


def _wait_gone(process: DaemonProcess | NoProcess) -> bool:
    """Wait until the process has ended, with a sign of life for whoever waits. False where it does not end."""
    waited_s = 0.0
    while waited_s < STOP_TIMEOUT_S:
        if process.wait_gone(PROGRESS_INTERVAL_S):
            return True
        waited_s += PROGRESS_INTERVAL_S
        print(f"weft: waiting for the daemon to end ({waited_s:.0f} s)", file=sys.stderr)
    return False


def reset(*, force: bool) -> int:
    """Remove the daemon, what it made in the kernel, and its state. Works without a daemon and with a hung one."""
    if os.geteuid() != 0:
        raise UserError("reset needs root, it removes network devices; try `sudo weft reset`")
    if not force and not _confirmed():
        print("weft: nothing was removed", file=sys.stderr)
        return 1
    run_directory, state_directory = directories.run_dir(), directories.state_dir()
    with find_daemon(run_directory) as process:
        state_directory = process.state_dir or state_directory
        _end_daemon(process, run_directory)
    lock = _lock_state(state_directory)
    try:
        end_worker(run_directory)
        resolvconf.NamespaceFiles(resolvconf.NETNS_DIRECTORY, state_directory).remove_all()
        _remove_kernel_state(directories.forwarding_path(state_directory))
        directories.remove_state(state_directory)
        directories.remove_run_files(run_directory)
    finally:
        if lock is not None:
            os.close(lock)
    return 0


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return True
    print("This removes Weft's devices, endpoints and this host's identity. Containers lose the network.")
    print("Go on? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _end_daemon(process: DaemonProcess | NoProcess, run_directory: str) -> None:
    """Ask the daemon to tell the others that we leave for good, and end it one way or the other."""
    try:
        client.call("reset", timeout_s=RESET_ANSWER_TIMEOUT_S)
        if _wait_gone(process):
            return
        print("weft: the daemon does not end; removing everything without it", file=sys.stderr)
    except client.DaemonDown:
        pass
    except client.DaemonSilent:
        print("weft: the daemon does not answer; removing everything without it", file=sys.stderr)
    except UserError as error:
        print(f"weft: {error}; removing everything without the daemon", file=sys.stderr)
    if isinstance(process, DaemonProcess):
        _kill(process)
    elif answers(run_directory):
        raise UserError(
            f"something serves {directories.socket_path(run_directory)} but {directories.pid_path(run_directory)} "
            "does not name it; end that process yourself, then reset again"
        )


def _kill(process: DaemonProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.wait_gone(0):
            return
        process.kill(number)
        process.wait_gone(KILL_TIMEOUT_S)


def end_worker(run_directory: str) -> None:
    """End a sleeve worker that nobody told to end: its daemon had been stopped, or was killed."""
    path = directories.sleeve_socket_path(run_directory)
    try:
        connection = client.connect(path, timeout_s=1.0)
    except (client.DaemonDown, client.DaemonSilent):
        return
    pid, _user, _group = struct.unpack("3i", connection.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i")))
    connection.close()
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    with DaemonProcess(pid, descriptor, "") as process:
        if not is_worker(pid, path):
            raise UserError(f"something serves {path} and is no sleeve worker; end it yourself, then reset again")
        _kill(process)


def is_worker(pid: int, socket_path: str) -> bool:
    """Whether this process is the sleeve worker of that socket: so says its command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    name, real = os.fsencode(os.path.basename(socket_path)), os.path.realpath(os.fsencode(socket_path))
    return any(word.endswith(name) and os.path.realpath(word) == real for word in words)


def _lock_state(state_directory: str) -> int | None:
    """Keep a daemon from starting between the kernel's and the files' removal. One that was just killed has lost its
    name before it loses its files, so what is locked is waited for."""
    if not os.path.isdir(state_directory):
        return None
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while True:
        try:
            return directories.lock_directory(state_directory, purpose="state")
        except directories.DirectoryError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_INTERVAL_S)


def _remove_kernel_state(memory: str) -> None:
    """By this process, which only here pays for importing what it takes. Finds nothing to do after an orderly reset."""
    try:
        from dataplane import linux

        kernel = linux.open_kernel(memory)
        try:
            linux.teardown(kernel)
        finally:
            kernel.close()
    except Exception as error:
        # The outermost shell of this process: whatever the drivers raise, the state files stay for the next try.
        cause = str(error) or type(error).__name__
        raise UserError(f"cannot clean the kernel ({cause}); correct that, then reset again") from None
