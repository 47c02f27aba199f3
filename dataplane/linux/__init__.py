"""The kernel drivers: the only code in Weft that talks to Linux.

Importing the package loads nothing heavy: the sleeve worker opens its TAP by it and pays for no netlink library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dataplane.expansion import Expansion
from dataplane.faults import text_of
from dataplane.kernel import PARTS, Kernel, KernelError
from dataplane.linux.netns import Namespace, find_namespace
from dataplane.linux.packet import open_probe_socket
from dataplane.objects import Scope
from dataplane.reconcile import Reconciler

if TYPE_CHECKING:
    from dataplane.linux.host import LinuxKernel

TEARDOWN_PASSES = 4
"""What one pass cannot remove because of what the next one does, and a device that needs a moment to go."""


def open_kernel(memory: str | None = None) -> LinuxKernel:
    """The kernel of this network namespace. Raises KernelError, with one line to show, without the rights.

    `memory`: the file that says what sysctls were before us, so that another process can put them back."""
    from dataplane.linux.host import LinuxKernel

    return LinuxKernel(memory=None if memory is None else Path(memory))


def teardown(kernel: Kernel, bridge: str = "weft") -> None:
    """Remove every trace of ours: reconcile towards nothing. No engine may be running on `kernel`.

    Raises KernelError for what could not be removed, after removing all that could.
    """
    scope = Scope(bridge)
    kernel.watch(scope)
    reconciler = Reconciler()
    reconciler.want(Expansion(objects={}, port_of={}, skipped=(), scope=scope, settled=True))
    errors: list[KernelError] = []
    for number in range(TEARDOWN_PASSES):
        errors = []
        for part in PARTS:
            reconciler.replace(PARTS[part], kernel.listing(part))
        stages = reconciler.plan(float(number))
        if not any(stages):
            return
        for stage in stages:
            operations = [operation for operation in stage if reconciler.ready(operation)]
            refused = kernel.apply(operations)
            errors += refused
            by_operation = {id(error.operation): error for error in refused}
            for operation in operations:
                reconciler.record(operation, by_operation.get(id(operation)), float(number))
    if errors:
        raise KernelError(errors[0].errno, None, text_of(errors[0]), errors[0].code)


__all__ = ["Namespace", "find_namespace", "open_kernel", "open_probe_socket", "teardown"]
