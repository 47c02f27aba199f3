"""UDP sockets of the sleeve: many datagrams in one call each way, where the kernel has that.

Makes sockets and answers questions about routes; sends and receives nothing itself. The one idea: `UDP_SEGMENT` and
`UDP_GRO` hand the kernel, and get from it, up to 64 KiB at a time that are cut into datagrams as late, and joined as
early, as can be. Numbers: linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Final

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_PMTUDISC_DO: Final = 2
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
SEND_BUFFER_BYTES: Final = 1024 * 1024
"""What a busy network card may have of ours: beyond, the queue stands with us, where it is fair."""
UDP_IPV4_BYTES: Final = 28
UDP_IPV6_BYTES: Final = 48
DATAGRAM_MIN_BYTES: Final = 548
"""Of UDP payload: what every IPv4 host must take whole (RFC 791, 576 bytes with all headers)."""
_U32: Final = struct.Struct("=I")

SocketAddress = tuple[object, ...]


def open_socket(host: str, port: int, gro: bool) -> socket.socket:
    """A non-blocking UDP socket bound there. Raises OSError: EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT."""
    version = ip_address(host).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        if version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        _set_buffer(made, _SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        _set_buffer(made, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if gro:
            with suppress(OSError):  # Linux 5.0 and newer; without it there are more calls
                made.setsockopt(SOL_UDP, UDP_GRO, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _set_buffer(made: socket.socket, force: int, ask: int, size: int) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, ask, size)


def may_segment() -> bool:
    """Whether this kernel has UDP_SEGMENT (Linux 4.18)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.setsockopt(SOL_UDP, UDP_SEGMENT, 1400)
        except OSError:
            return False
    return True


def backlog_bytes(of: socket.socket) -> int:
    """What waits in its receive queue, as the kernel counts memory."""
    return int(_U32.unpack_from(of.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])


def datagram_bytes(address: SocketAddress) -> int:
    """The largest UDP payload that goes there unfragmented, as far as the routing table knows."""
    with _towards(address) as trial:
        if trial is None:
            return DATAGRAM_MIN_BYTES
        if trial.family == socket.AF_INET:
            mtu = trial.getsockopt(socket.IPPROTO_IP, _IP_MTU) - UDP_IPV4_BYTES
        else:
            mtu = trial.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - UDP_IPV6_BYTES
        return max(DATAGRAM_MIN_BYTES, min(mtu, 65_000))


def own_address(address: SocketAddress, port: int) -> bytes:
    """The address that we would send from, packed like `pack_address`; empty where no route leads there."""
    with _towards(address) as trial:
        return b"" if trial is None else pack_address((trial.getsockname()[0], port))


class _towards:
    """A socket connected there: it sends nothing and knows what the routing table says. None without a route."""

    def __init__(self, address: SocketAddress) -> None:
        family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
        self._socket: socket.socket | None = None
        try:
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return
            raise
        try:
            made.connect(address)
        except OSError:
            made.close()
            return
        self._socket = made

    def __enter__(self) -> socket.socket | None:
        return self._socket

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()


def resolve(host: str, port: int) -> SocketAddress | None:
    """A numeric address as sockets give and take it; None for what is none."""
    plain, _, zone = host.partition("%")
    try:
        address = ip_address(plain)
    except ValueError:
        return None
    if address.version == 4:
        return (str(address), port)
    scope = 0
    if zone:
        try:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError:
            return None
    return (str(address), port, 0, scope)


def pack_address(address: SocketAddress) -> bytes:
    """16 bytes of IPv6 (IPv4 as ::ffff:a.b.c.d) and 2 of the port."""
    packed = ip_address(str(address[0]).partition("%")[0]).packed
    mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return mapped + int(str(address[1])).to_bytes(2, "big")


def unpack_address(packed: bytes) -> SocketAddress | None:
    """What `pack_address` packed; None where that is nowhere that a datagram could be sent. No zone travels with it."""
    address, port = IPv6Address(packed[:16]), int.from_bytes(packed[16:18], "big")
    mapped = address.ipv4_mapped
    found = mapped or address
    if not port or found.is_unspecified or found.is_multicast or found.is_loopback or found.is_link_local:
        return None
    return (str(mapped), port) if mapped else (str(address), port, 0, 0)
