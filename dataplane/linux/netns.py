"""Network namespaces: finding the one a user means, and doing something inside one.

Knows paths, pids and setns; knows nothing of containers' interfaces or netlink messages. The one idea: a thread can
enter another network namespace by itself, so what must happen inside one is done by a short-lived thread that does
nothing else. Sockets made there stay there and can be used from anywhere, but they keep the namespace alive: whoever
gets one closes it soon, or a container that ended would linger with its interface.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

NAMED_DIRECTORY: Final = Path("/run/netns")
OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h

_libc = ctypes.CDLL(None, use_errno=True)


class NoSuchNamespace(ValueError):
    """Nothing is there under that name, path or pid."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace: the path it was found at, and what tells it from another one found there later."""

    path: str
    id: tuple[int, int]
    """st_dev and st_ino."""


def find_namespace(target: str) -> Namespace:
    """TARGET of `attach` as a namespace: a path (with a slash), a pid (digits), or a name under /run/netns.

    Raises ValueError with one line that says what is wrong with the target, NoSuchNamespace where there is none.
    """
    if target in ("", ".", "..") or "\0" in target:
        raise ValueError(f"{target!r} is not a target: give a named network namespace, a path to one, or a pid")
    if "/" in target:
        path, what = target, f"{target!r}"
    elif target.isascii() and target.isdigit():
        path, what = f"/proc/{target}/ns/net", f"process {target}"
    else:
        path, what = str(NAMED_DIRECTORY / target), f"network namespace {target!r}"
    try:
        found = open_namespace(path)
    except OSError as error:
        refusal = NoSuchNamespace if error.errno in (errno.ENOENT, errno.ESRCH) else ValueError
        raise refusal(_why_not(what, target, error)) from None
    os.close(found[0])
    if found[1] == _id_of(os.stat(OWN_NAMESPACE)):
        raise ValueError(f"{what} is the host's own network namespace, not a container's; give one of its own")
    return Namespace(path=path, id=found[1])


def open_namespace(path: str, expected: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]]:
    """A file descriptor of the namespace and its id. Raises OSError: ESTALE if it is not the expected one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != _CLONE_NEWNET:
            raise OSError(errno.EINVAL, "not a network namespace")
        found = _id_of(os.fstat(descriptor))
        if expected is not None and found != expected:
            raise OSError(errno.ESTALE, "another network namespace now")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, found


def run_inside(descriptor: int, work: Callable[[], T]) -> T:
    """Call `work` on a thread that is in the namespace, and return or raise what it returns or raises."""

    def body() -> T:
        _checked(_libc.setns(descriptor, _CLONE_NEWNET))
        return work()

    return _on_a_thread(body)


def new_namespace(prepare: Callable[[], None]) -> int:
    """A descriptor of a namespace that is there as long as somebody holds one; `prepare` is called inside.

    Raises OSError. Nothing of it is on disk or mounted: with the last descriptor, wherever that is, it goes, and its
    devices with it."""

    def body() -> int:
        _checked(_libc.unshare(_CLONE_NEWNET))
        prepare()
        return os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)

    return _on_a_thread(body)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _on_a_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises. Its thread may change its namespace: it ends inside, because going back first
    would be one more thing that can fail."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="weft-netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def held_namespace(pid: int) -> int | None:
    """A descriptor of the network namespace that a process holds one of; None where it holds none."""
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            if os.readlink(f"{directory}/{name}").startswith("net:["):
                return open_namespace(f"{directory}/{name}")[0]
    except OSError:
        pass  # it has ended, or closed that very descriptor
    return None


def namespace_of(descriptor: int) -> Namespace:
    """One of our own descriptors, as something that can be found again in this process."""
    return Namespace(f"/proc/self/fd/{descriptor}", _id_of(os.fstat(descriptor)))


def is_there(path: str, expected: tuple[int, int]) -> bool:
    """Whether the path still leads to that very namespace."""
    try:
        return _id_of(os.stat(path)) == expected
    except OSError:
        return False


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _why_not(what: str, target: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        if what.startswith("process"):
            return f"{what} does not exist; give the pid of a running process in the container"
        if "/" in target:
            return f"{target!r} does not exist; give the path of a network namespace, as /run/netns/NAME"
        return f"{what} does not exist; 'ip netns' lists the named ones, and a path or a pid will do too"
    if error.errno in (errno.EINVAL, errno.ENOTTY, errno.EISDIR, errno.ENXIO):
        return f"{what} is not a network namespace; give a name that 'ip netns' lists, a path, or a pid"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{what} cannot be opened: {error.strerror}; root is needed"
    return f"{what} cannot be opened: {error.strerror}"
