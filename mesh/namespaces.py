"""Network namespaces seen from outside: made and removed in batches, what runs in them, and how to end it in order.

What `mesh/lab.py` stands on. It knows the names it is given and nothing of labs or of Weft. The one idea needed to
read it: a namespace is its inode, so a process is known to live in one by comparing two numbers, never by its name or
command line. The standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mesh.errors import UserError

NAMESPACES_DIR = Path("/run/netns")
COMMAND_TIMEOUT_S = 60.0
"""No single command takes longer, unless something is wrong."""
POLL_INTERVAL_S = 0.02
STOP_TIMEOUT_S = 2.0
"""How long processes have to end by themselves before they are killed."""
RAISE_AGAIN_S = 0.5
"""Longer than the quarter of a second that `subprocess` gives a child which gets the same Ctrl-C."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LabError(UserError):
    """One line for people: what could not be done, why, and where it is known, what helps."""


class CommandFailed(LabError):
    """A command in the lab ended with an error; `output` is what it printed on both streams."""

    def __init__(self, command: str, returncode: int, stdout: str, stderr: str) -> None:
        said = (stderr.strip() or stdout.strip()).splitlines()
        super().__init__(f"{command}: {said[-1] if said else 'nothing was said'} (exit {returncode})")
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Poll until `condition` is true; the seconds it took. Raises `LabError` naming `what` after `timeout_s`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            raise LabError(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(POLL_INTERVAL_S)
    return time.monotonic() - start


def identity(namespace: str) -> tuple[int, int] | None:
    """Device and inode of a named namespace; None where there is none."""
    try:
        found = (NAMESPACES_DIR / namespace).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def namespace_of(pid: int) -> tuple[int, int] | None:
    """Device and inode of the namespace a process lives in; None where it has ended."""
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:  # it has ended, or is a zombie
        return None
    return found.st_dev, found.st_ino


def processes_in(namespaces: Iterable[str]) -> list[int]:
    """Every process that lives in one of these namespaces, except ourselves."""
    wanted = {found for name in namespaces if (found := identity(name)) is not None}
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
    return [pid for pid in pids if pid != os.getpid() and namespace_of(pid) in wanted]


def end_processes_in(namespaces: Sequence[str]) -> None:
    """End what runs in these namespaces: asked to first, then killed."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes_in(namespaces):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while processes_in(namespaces) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)


def ip_batch(commands: Sequence[str], namespace: str | None = None) -> None:
    """Several `ip` commands in one process. Their words are our own: names checked above, and numbers."""
    # Not `ip -netns`: that mounts /sys anew, which is slower and does not work in every container.
    inside = ["nsenter", f"--net={NAMESPACES_DIR / namespace}", "--"] if namespace else []
    argv = [*inside, "ip", "-batch", "-"]
    done = subprocess.run(
        argv, input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise CommandFailed(" ".join(argv), done.returncode, done.stdout, done.stderr.split("\nCommand failed")[0])


def need_root_and_tools() -> None:
    """Raises `LabError` where namespaces cannot be made here."""
    if os.geteuid() != 0:
        raise LabError("a lab is made of network namespaces, and those need root: run this as root, or with sudo")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise LabError(f"the command {tool} is missing: install the package {package}")


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program through every `finally`, so that nothing is left behind.

    What a handler raises is swallowed where the interpreter happens to run a weak reference's callback or a `__del__`.
    So it is raised again until it has arrived here, or at `uninterrupted`.
    """
    received = signal.SIGINT

    def end(signum: int, frame: object) -> None:
        nonlocal received
        if signum != signal.SIGALRM:
            received = signal.Signals(signum)
        signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_S)
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

    before = {signum: signal.signal(signum, end) for signum in (*_ENDING, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """The same signals wait while this is held: what is being cleaned up is cleaned up to the end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    came: list[int] = []
    held = (*_ENDING, signal.SIGALRM)
    # Two ways, as each misses something: children inherit a mask, but another thread may take the signal for us.
    before = {signum: signal.signal(signum, lambda signum, frame: came.append(signum)) for signum in held}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for number in came:
            if number in _ENDING:
                signal.raise_signal(number)
