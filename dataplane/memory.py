"""A kernel in a dictionary, for tests and simulations: it obeys the same port and fails when told to.

Knows objects as values only. It enforces what the real one enforces and a test could get wrong without noticing: no
table entry without its device, nothing added twice, entries vanish with their device, the neighbour table is emptied
when the bridge changes. The one idea: besides refusing, it remembers every moment at which the order of operations
would have harmed traffic (`harm`), so that a test of order is one assertion.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from dataplane.kernel import ADD, ANNOUNCE, DELETE, PARTS, KernelError, Observation, Operation, Warning
from dataplane.objects import (
    ACCEPT,
    BRIDGE_FDB,
    GUARD,
    LINK,
    NEIGHBOUR,
    PORT,
    UNHOOKED,
    UP,
    VXLAN_FDB,
    Bridge,
    Key,
    PortFlags,
    Scope,
    Value,
    Vxlan,
)


class MemoryKernel:
    """`objects` is the whole state. `fail` is asked before each operation and may return an error number."""

    def __init__(self) -> None:
        self.objects: dict[Key, Value] = {}
        self.operations: list[Operation] = []
        """Every operation asked for, those that failed too."""
        self.harm: list[str] = []
        self.fail: Callable[[int, Operation], int] = lambda number, operation: 0
        """Called with the count of operations so far (from 1) and the operation."""
        self.notices: tuple[Warning, ...] = ()
        self.listings: list[str] = []
        self.scope: Scope | None = None
        self._changes: list[tuple[Key, Value | None]] = []
        self._stale: set[str] = set()

    # The port.

    def watch(self, scope: Scope) -> None:
        self.scope = scope

    def listing(self, part: str) -> dict[Key, Value]:
        self.listings.append(part)
        return {key: value for key, value in self.objects.items() if key.kind in PARTS[part]}

    def apply(self, operations: Sequence[Operation]) -> Sequence[KernelError]:
        errors = []
        for operation in operations:
            self.operations.append(operation)
            number = self.fail(len(self.operations), operation) or self._refusal(operation)
            if number:
                errors.append(KernelError(number, operation, errno.errorcode[number]))
            elif operation.verb != ANNOUNCE:
                self._look_for_harm(operation)
                self._set(operation.key, None if operation.verb == DELETE else operation.value)
        return errors

    def wait(self, timeout_s: float | None) -> Observation:
        """Never waits: whoever runs a thread on this kernel wraps it."""
        observation = Observation(self._changes, frozenset(self._stale))
        self._changes, self._stale = [], set()
        return observation

    def wake(self) -> None:
        pass

    def warnings(self) -> tuple[Warning, ...]:
        return self.notices

    def close(self) -> None:
        pass

    # What tests do to it.

    def meddle(self, key: Key, value: Value | None) -> None:
        """A change by somebody else, seen as an event."""
        self._set(key, value)

    def meddle_unseen(self, key: Key, value: Value | None) -> None:
        """A change whose event is lost."""
        before, self._changes = self._changes, []
        self._set(key, value)
        self._changes = before

    def overrun(self) -> None:
        """Events were lost, and the kernel says so."""
        self._changes.clear()
        self._stale |= set(PARTS)

    # Inside.

    def _set(self, key: Key, value: Value | None) -> None:
        old = self.objects.get(key)
        if value is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = value
        self._changes.append((key, value))
        if key.kind == LINK and value is None and old is not None:
            for other in [k for k, v in self.objects.items() if k.device == key.device or v == key.device]:
                if other.kind == GUARD:
                    self._set(other, UNHOOKED)
                elif other.kind != ACCEPT:
                    self._set(other, None)
        if key.kind == LINK and isinstance(old, Bridge) and isinstance(value, Bridge) and old.mac != value.mac:
            for other in [k for k in self.objects if k.kind == NEIGHBOUR]:
                del self.objects[other]  # without a word

    def _refusal(self, operation: Operation) -> int:
        """The error number the real kernel would give."""
        key, value, verb = operation.key, operation.value, operation.verb
        there = key in self.objects
        if verb == DELETE:
            return 0 if there else errno.ENOENT
        if verb == ADD and there:
            return errno.EEXIST
        if key.kind not in (LINK, ACCEPT) and Key(LINK, key.device) not in self.objects:
            return errno.ENODEV
        if key.kind == BRIDGE_FDB and (not isinstance(value, str) or Key(PORT, value) not in self.objects):
            return errno.EINVAL
        if key.kind == PORT and (not isinstance(value, PortFlags) or Key(LINK, value.master) not in self.objects):
            return errno.ENODEV
        return 0

    def _look_for_harm(self, operation: Operation) -> None:
        """Called before an operation takes effect."""
        key, value = operation.key, operation.value
        adds = operation.verb != DELETE
        mac = key.item.hex(":")
        if key.kind == BRIDGE_FDB and adds and isinstance(value, str) and self._is_vxlan(value):
            self._harmed(Key(VXLAN_FDB, value, key.item) not in self.objects, f"{mac} goes to every peer: added first")
        if key.kind == VXLAN_FDB and not adds:
            entries = ((k, v) for k, v in self.objects.items() if k.kind == BRIDGE_FDB and k.item == key.item)
            self._harmed(any(v == key.device for _, v in entries), f"{mac} goes to every peer: deleted first")
        if key.kind == UP and adds and not isinstance(self.objects.get(Key(LINK, key.device)), Bridge):
            self._harmed(Key(PORT, key.device) not in self.objects, f"{key.device} is up without its flags")

    def _harmed(self, harmed: bool, text: str) -> None:
        if harmed:
            self.harm.append(text)

    def _is_vxlan(self, name: str) -> bool:
        return isinstance(self.objects.get(Key(LINK, name)), Vxlan)
