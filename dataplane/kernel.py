"""The port to the kernel: what the engine asks of it, as values.

`dataplane.linux` implements it with netlink, `dataplane.memory` with a dictionary. It knows objects by key and value
and says nothing of how they are found, of order, or of when to try again: that is the engine's and the reconciler's.

The one idea: a listing and the stream of observations speak of the same keys, and whatever an observation says last
about a key is what the kernel holds. An implementation that cannot promise that for a moment (its socket overflowed)
says which parts must be listed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from dataplane.objects import (
    FIREWALL_KINDS,
    GUEST_KINDS,
    HOST_KINDS,
    LINK_KINDS,
    TABLE_KINDS,
    Key,
    Scope,
    Value,
)

ADD: Final = "add"
REPLACE: Final = "replace"
DELETE: Final = "delete"
ANNOUNCE: Final = "announce"
"""Tell the containers of this host by a gratuitous ARP or neighbour advertisement that an address has a new MAC."""

LINKS: Final = "links"
TABLES: Final = "tables"
GUESTS: Final = "guests"
FIREWALL: Final = "firewall"
HOST: Final = "host"
PARTS: Final[Mapping[str, frozenset[str]]] = {
    LINKS: LINK_KINDS,
    TABLES: TABLE_KINDS,
    GUESTS: GUEST_KINDS,
    FIREWALL: FIREWALL_KINDS,
    HOST: HOST_KINDS,
}
"""What can be listed by itself, and the kinds of object each listing is complete for."""


class Operation(NamedTuple):
    """One change. `old` is what is there now: for a deletion, what goes; for a replacement, what it was."""

    verb: str
    key: Key
    value: Value | None = None
    old: Value | None = None


class KernelError(Exception):
    """The kernel (or the lack of a tool) refused. `text` is for people; `code` is for the port report."""

    def __init__(self, errno: int, operation: Operation | None, text: str, code: str = "kernel") -> None:
        super().__init__(text)
        self.errno = errno
        self.operation = operation
        self.text = text
        self.code = code


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wanted that is not there. `code` is stable; `text` is one line: the thing, the cause, the cure."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Warning:
    """Something on this host that is not ours and harms the overlay, or that we have to do without."""

    code: str
    text: str
    cure: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened since the last one, in order; and the parts of the picture that can no longer be trusted."""

    changes: Sequence[tuple[Key, Value | None]] = ()
    stale: frozenset[str] = frozenset()


class Kernel(Protocol):
    """All methods but `wake` are called on one thread, the engine's (or by whoever has no engine running)."""

    def watch(self, scope: Scope) -> None:
        """From now on listings and observations are about this. Cheap when little has changed since the last call."""

    def listing(self, part: str) -> dict[Key, Value]:
        """Everything in one of `PARTS` that is ours or stands where ours would. Raises KernelError."""

    def apply(self, operations: Sequence[Operation]) -> Sequence[KernelError]:
        """Do all of them in this order; what fails is returned with its `operation` set and does not stop the rest."""

    def wait(self, timeout_s: float | None) -> Observation:
        """Return as soon as something of ours changed, `wake` was called, or the time is up. 0 only collects."""

    def wake(self) -> None:
        """Make `wait` return. Callable from any thread."""

    def warnings(self) -> tuple[Warning, ...]:
        """What the last listings found on this host that harms us."""

    def close(self) -> None:
        """Release sockets. Leaves the kernel as it is."""
