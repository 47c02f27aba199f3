"""Removing everything, on a kernel in memory that does not let everything go."""

from __future__ import annotations

import errno

import pytest

from dataplane.kernel import KernelError
from dataplane.linux import TEARDOWN_PASSES, teardown
from dataplane.memory import MemoryKernel
from dataplane.objects import LINK, Bridge, Key, Tap, Veth, Vxlan

MAC = bytes.fromhex("02aa00000001")


def held() -> MemoryKernel:
    kernel = MemoryKernel()
    kernel.objects = {
        Key(LINK, "weft"): Bridge(MAC, 1450),
        Key(LINK, "weft-vx"): Vxlan(7, 6784, 1450),
        Key(LINK, "weft-tap"): Tap(1450),
        Key(LINK, "vw1"): Veth(1450, (0, 0)),
    }
    return kernel


def test_all_of_it_goes_and_the_bridge_last() -> None:
    """Twice is as good as once."""
    kernel = held()
    teardown(kernel)
    assert kernel.objects == {} and kernel.operations[-1].key == Key(LINK, "weft")
    teardown(kernel)


def test_what_will_not_go_is_tried_a_bounded_number_of_times_and_then_told() -> None:
    """After everything else has gone."""
    kernel = held()
    kernel.fail = lambda number, op: errno.EBUSY if op.key.device == "vw1" else 0
    with pytest.raises(KernelError, match="cannot remove container interface vw1: EBUSY"):
        teardown(kernel)
    assert list(kernel.objects) == [Key(LINK, "vw1")]
    assert len([op for op in kernel.operations if op.key.device == "vw1"]) == TEARDOWN_PASSES
