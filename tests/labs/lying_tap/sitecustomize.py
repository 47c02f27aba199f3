"""A TAP that lies: it takes frames with work left to do, and forgets the work.

The interpreter imports this module by itself where its directory is on PYTHONPATH; in a sleeve worker every frame that
is written to the TAP then loses the virtio header that says what is unfinished, as in a kernel that ignores it.
"""

from __future__ import annotations

import os
import sys

_VNET_BYTES = 10

if "dataplane.sleeve" in sys.orig_argv:
    _write = os.write

    def _forgetful(descriptor: int, data: bytes | memoryview) -> int:
        is_frame = isinstance(data, memoryview) and len(data) > _VNET_BYTES
        return _write(descriptor, bytes(_VNET_BYTES) + bytes(data[_VNET_BYTES:]) if is_frame else data)

    os.write = _forgetful
