"""What a device does for packets on their way out: finish checksums, cut what is too large; and how to forbid it.

Knows the ioctls of `ethtool -K` and `ethtool -i`; knows nothing of who finds out that a device does it wrong. The one
idea: the kernel does by itself, before the packet enters the device, whatever the device may not. Without checksums no
device may cut either; the kernel sees to that itself. Layouts: linux/ethtool.h.

A feature counts as off when it is not requested: what is in effect depends on other features, and comes and goes with
them. A feature that this kernel does not have is off.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from dataplane.desired import VXLAN_CHECKSUM, VXLAN_SEGMENT

FEATURES: Final = {
    VXLAN_CHECKSUM: ("tx-checksum-ip-generic",),
    VXLAN_SEGMENT: ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-udp-segmentation"),
}
"""Names of the kernel (net/ethtool/common.c) for each of ours."""

_SIOCETHTOOL: Final = 0x8946
_GET_DRIVER: Final = 0x03
_GET_STRINGS: Final = 0x1B
_GET_COUNTS: Final = 0x37
_GET_FEATURES: Final = 0x3A
_SET_FEATURES: Final = 0x3B
_FEATURE_NAMES: Final = 4
"""ETH_SS_FEATURES"""
_NAME_BYTES: Final = 32
_FEATURES_MAX: Final = 512
"""More than any kernel has; bounds what we believe of an answer."""
_IFREQ: Final = struct.Struct("@16sP16x")
_COUNTS: Final = struct.Struct("=IIQI")
_STRINGS: Final = struct.Struct("=III")
_BLOCKS: Final = struct.Struct("=II")
_GET_BLOCK: Final = struct.Struct("=IIII")
"""available, requested, active, never changed"""
_SET_BLOCK: Final = struct.Struct("=II")
_DRIVER: Final = struct.Struct("=I32s32s32s32s32s12s5I")


def offloads_off(ifname: str) -> tuple[str, ...]:
    """Those of `FEATURES` that this device is not asked for, sorted. One that is so in part is named so: nobody wants
    that. Raises OSError; ENODEV without such a device."""
    with _ask_socket() as asker:
        bits = _bits(asker, ifname)
        requested = _requested(asker, ifname, len(bits))
    off = []
    for name, features in FEATURES.items():
        mask = _mask(bits, features)
        if not requested & mask:
            off.append(name)
        elif requested & mask != mask:
            off.append(f"{name} in part")
    return tuple(sorted(off))


def set_offloads_off(ifname: str, off: Sequence[str]) -> None:
    """From now on the device does without these, and with the others of `FEATURES`. Raises OSError."""
    with _ask_socket() as asker:
        bits = _bits(asker, ifname)
        valid = wanted = 0
        for name, features in FEATURES.items():
            mask = _mask(bits, features)
            valid |= mask
            wanted |= 0 if name in off else mask
        blocks = (len(bits) + 31) // 32
        message = _BLOCKS.pack(_SET_FEATURES, blocks)
        for block in range(blocks):
            message += _SET_BLOCK.pack(valid >> 32 * block & 0xFFFFFFFF, wanted >> 32 * block & 0xFFFFFFFF)
        _ask(asker, ifname, message)


def driver_of(ifname: str) -> str:
    """What works a device: its driver with version and firmware, as far as they are told; empty where nothing is."""
    with suppress(OSError), _ask_socket() as asker:
        answer = _ask(asker, ifname, _DRIVER.pack(_GET_DRIVER, *[b""] * 6, *[0] * 5))
        _, driver, version, firmware, *_ = _DRIVER.unpack(answer)
        told = (_text(driver), _text(version), _text(firmware))
        # A driver that is part of the kernel has its version, which is known anyway.
        return " ".join(word for word in told if word and word not in ("N/A", os.uname().release))
    return ""


def _mask(bits: Mapping[str, int], features: Sequence[str]) -> int:
    return sum(1 << bits[feature] for feature in features if feature in bits)


def _bits(asker: socket.socket, ifname: str) -> dict[str, int]:
    """The kernel's features by name. Which bit is which differs from release to release."""
    (count,) = _COUNTS.unpack(_ask(asker, ifname, _COUNTS.pack(_GET_COUNTS, 0, 1 << _FEATURE_NAMES, 0)))[3:]
    if not 0 < count <= _FEATURES_MAX:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    head = _STRINGS.pack(_GET_STRINGS, _FEATURE_NAMES, count)
    answer = _ask(asker, ifname, head + bytes(count * _NAME_BYTES))[_STRINGS.size :]
    names = (answer[at : at + _NAME_BYTES] for at in range(0, count * _NAME_BYTES, _NAME_BYTES))
    return {_text(name) or f"#{number}": number for number, name in enumerate(names)}


def _requested(asker: socket.socket, ifname: str, features: int) -> int:
    blocks = (features + 31) // 32
    answer = _ask(asker, ifname, _BLOCKS.pack(_GET_FEATURES, blocks) + bytes(blocks * _GET_BLOCK.size))
    requested = 0
    for block in range(blocks):
        _, wanted, _, _ = _GET_BLOCK.unpack_from(answer, _BLOCKS.size + block * _GET_BLOCK.size)
        requested |= wanted << 32 * block
    return requested


def _ask(asker: socket.socket, ifname: str, message: bytes) -> bytes:
    """One command; the message as the kernel left it. Acts in the network namespace that the socket was made in."""
    buffer = array.array("B", message)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(asker, _SIOCETHTOOL, _IFREQ.pack(ifname.encode(), address))
    return buffer.tobytes()


def _ask_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _text(padded: bytes) -> str:
    return padded.split(b"\0", 1)[0].decode(errors="replace")
