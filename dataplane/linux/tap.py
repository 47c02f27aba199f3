"""The sleeve's TAP: the bridge port whose frames a process reads and writes.

Made here for the engine and opened here for the worker; knows nothing of bridges, netlink or what the frames are for.
The one idea: the device is persistent, so it outlives every process that had it open, and only one process at a time
can have it. Without one it has no carrier: its bridge entries stay, and what is sent there is dropped. Layouts and
numbers: linux/if_tun.h, linux/if.h.

    0                16      18                 40
    +----------------+-------+------------------+
    | name, ended    | flags | not used         |      struct ifreq, for all requests about flags
    | by zero        | (u16) |                  |
    +----------------+-------+------------------+

    0       1          2         4          6            8             10
    +-------+----------+---------+----------+------------+-------------+------------------ - -
    | flags | gso type | hdr len | gso size | csum start | csum offset | Ethernet frame        what is read and written
    +-------+----------+---------+----------+------------+-------------+------------------ - -
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from dataplane.kernel import KernelError

DEVICE: Final = Path("/dev/net/tun")
VNET_HEADER_BYTES: Final = 10
"""Of struct virtio_net_hdr, linux/virtio_net.h: without the count of merged buffers, little-endian here."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC

_IFF_TAP: Final = 0x0002
_IFF_PERSIST: Final = 0x0800
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000
_FLAGS: Final = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR

_CSUM: Final = 0x01
_TSO4: Final = 0x02
_TSO6: Final = 0x04
_TSO_ECN: Final = 0x08
_USO4: Final = 0x20
_USO6: Final = 0x40
_OFFLOADS: Final = _CSUM | _TSO4 | _TSO6 | _TSO_ECN | _USO4 | _USO6

_IFREQ: Final = struct.Struct("=16sH22x")
_INT: Final = struct.Struct("=i")
_OPEN_CURE: Final = f"load the module with 'modprobe tun', or give the container the device (docker: --device {DEVICE})"


def create(name: str) -> None:
    """Make the persistent TAP, held by nobody. Raises KernelError; EEXIST where there is a device of that name."""
    descriptor = _open()
    try:
        _ask(descriptor, name, _TUNSETIFF, _IFREQ.pack(name.encode(), _FLAGS | _IFF_TUN_EXCL))
        _ask(descriptor, name, _TUNSETPERSIST, 1)
    except KernelError as error:
        if error.errno == errno.EBUSY:  # what that means when asking for a new one
            raise KernelError(errno.EEXIST, None, os.strerror(errno.EEXIST)) from None
        raise
    finally:
        os.close(descriptor)


def open_tap(name: str, offload: bool) -> int:
    """A non-blocking file descriptor that reads and writes one frame at a time, each after a header of
    VNET_HEADER_BYTES. From now on the device has a carrier.

    With `offload` frames of up to 64 KiB are read, with their checksums and segmentation left to the reader; without,
    they are finished and cut to the MTU. It is set either way, because the device remembers what the last process
    wanted. When somebody removes the device, reading ends in EBADFD: close, and open the one made anew.

    Acts in the network namespace of the calling thread. Raises KernelError with one line to show, and errno ENODEV
    where the device is not there (the engine will make it), EBUSY where another process has it.
    """
    absent = KernelError(errno.ENODEV, None, f"there is no TAP {name}; a running daemon makes it", "no-tap")
    try:
        socket.if_nametoindex(name)
    except OSError:
        raise absent from None
    descriptor = _open()
    try:
        _ask(descriptor, name, _TUNSETIFF, _IFREQ.pack(name.encode(), _FLAGS))
        _, flags = _IFREQ.unpack(_ask(descriptor, name, _TUNGETIFF, bytes(_IFREQ.size)))
        if not flags & _IFF_PERSIST:
            raise absent  # it has gone meanwhile, and to ask for it made one, which goes again when it is closed
        _ask(descriptor, name, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_BYTES))
        _ask(descriptor, name, _TUNSETVNETLE, _INT.pack(1))
        _set_offload(descriptor, name, offload)
    except KernelError:
        os.close(descriptor)
        raise
    return descriptor


def _set_offload(descriptor: int, name: str, offload: bool) -> None:
    try:
        _ask(descriptor, name, _TUNSETOFFLOAD, _OFFLOADS if offload else 0)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        _ask(descriptor, name, _TUNSETOFFLOAD, _OFFLOADS & ~(_USO4 | _USO6))  # these came with Linux 6.2


def _open() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        text = f"{DEVICE} cannot be opened: {error.strerror}; {_OPEN_CURE}"
        raise KernelError(error.errno or errno.EIO, None, text, "no-tun") from None


def _ask(descriptor: int, name: str, request: int, argument: bytes | int) -> bytes:
    """One request; the argument as the kernel left it. A number is handed over as such, bytes by their address."""
    try:
        answer = fcntl.ioctl(descriptor, request, argument)
        return answer if isinstance(answer, bytes) else b""
    except OSError as error:
        number = error.errno or errno.EIO
        if number == errno.EBUSY:
            text = f"another process has the TAP {name} open; end that, or wait until it has ended"
        elif number == errno.EINVAL and request == _TUNSETIFF:
            text = f"{name} is a device of another kind than our TAP; a running daemon replaces it"
        elif number in (errno.EPERM, errno.EACCES):
            text = f"the TAP {name} cannot be had: {error.strerror}; run weft as root, with CAP_NET_ADMIN"
        else:
            text = f"the TAP {name} cannot be set up: {error.strerror}"
        raise KernelError(number, None, text, "no-tap") from None
