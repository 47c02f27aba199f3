"""Raw frames on the bridge and its ports: probes of the data path, and gratuitous announcements to our containers.

Knows AF_PACKET and how an announcement is laid out; knows nothing of when one is due. The one idea: a frame sent on
the bridge device by a packet socket reaches the containers of this host like any other, while the overlay ports
(neigh_suppress) keep announcements from leaving it. Frames: RFC 826 with RFC 5227 section 1.1 (ARP announcement) and
RFC 4861 section 4.4 (neighbour advertisement).

    ARP   ff:ff:ff:ff:ff:ff | mac | 0806 | 1 0800 6 4 | op 1 | mac | ip | 000000000000 | ip
    NA    33:33:00:00:00:01 | mac | 86DD | IPv6 ip -> ff02::1, hop limit 255 | 136 0 sum | flags O | ip | 2 1 mac
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from dataplane import offloadprobe
from dataplane.linux.netlink import Instruction, attach_filter
from dataplane.offloadprobe import IPV4, IPV6
from dataplane.probe import ETHERTYPE

_BROADCAST: Final = b"\xff" * 6
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
_ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")
_ETH_ARP: Final = 0x0806
_ETH_IPV6: Final = 0x86DD
_OVERRIDE: Final = 0x20000000
PROBE_BUFFER_BYTES: Final = 1 << 20
"""Receive buffer of the probe socket: probes of several hundred peers at full size may arrive together."""


_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
_ETH_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_PROBES_ONLY: Final[tuple[Instruction, ...]] = (
    (0x28, 0, 0, 12),  # load the half word at 12: the ethertype
    (0x15, 0, 1, ETHERTYPE),  # unlike: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
    (0x06, 0, 0, 0),  # drop
)
_OFFLOAD_PROBES_ONLY: Final[tuple[Instruction, ...]] = (
    (0x28, 0, 0, 12),  # load the half word at 12: the ethertype
    (0x15, 10, 0, offloadprobe.ETHERTYPE),  # accept
    (0x15, 0, 4, IPV4.ethertype),
    (0x20, 0, 0, 26),  # load the word at 26: the source address
    (0x15, 0, 8, int.from_bytes(IPV4.source)),
    (0x20, 0, 0, 30),  # load the word at 30: the destination address
    (0x15, 5, 6, int.from_bytes(IPV4.destination)),
    (0x15, 0, 5, IPV6.ethertype),
    (0x20, 0, 0, 22),  # the beginning of the source address
    (0x15, 0, 3, int.from_bytes(IPV6.source[:4])),
    (0x20, 0, 0, 38),  # the beginning of the destination address
    (0x15, 0, 1, int.from_bytes(IPV6.destination[:4])),
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
    (0x06, 0, 0, 0),  # drop
)


def open_probe_socket(device: str) -> socket.socket:
    """A non-blocking socket that receives the probes which arrive at this device and sends on it. Raises OSError.

    On the bridge that is every probe to this host, by whatever path, and what is sent follows the forwarding table. On
    an overlay port it is what came by that path alone, and what is sent goes there past the forwarding table; a probe
    that arrives there goes on to the bridge, so it is seen on both. On the VXLAN device only destinations that it has
    an entry for may be sent to: others would go to every peer.

    It belongs to the device: when that is removed and made again, the socket reports ENETDOWN once and must be opened
    anew.
    """
    return _open(device, _PROBES_ONLY, with_virtio_header=False)


def open_offload_socket(bridge: str) -> socket.socket:
    """The same for offload probes (`dataplane.offloadprobe`), every frame with its virtio header before it: what it
    leaves to devices when it is sent, and what is still left to do when it is received. Raises OSError.

    On the bridge alone: no packet of a container meets its filter there, on an overlay port every one would."""
    return _open(bridge, _OFFLOAD_PROBES_ONLY, with_virtio_header=True)


def _open(device: str, accepted: tuple[Instruction, ...], with_virtio_header: bool) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PROBE_BUFFER_BYTES)
        if with_virtio_header:
            opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        # A bridge takes a port's frames before anybody sees them who asks for one ethertype, not before those who ask
        # for all. What this device sends is not copied to us, and what is no probe is turned away by its ethertype.
        attach_filter(opened, accepted)
        opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        opened.bind((device, _ETH_ALL))
    except OSError:
        opened.close()
        raise
    return opened


def open_outer_socket(ipv6: bool) -> socket.socket:
    """A non-blocking UDP socket whose datagrams are cut nowhere: what does not fit is refused here (EMSGSIZE) or lost
    on the way. What the kernel learned of a path's MTU is not believed, since that is what is to be found out. Receives
    nothing that matters. Raises OSError."""
    opened = socket.socket(
        socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        level, option = (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER) if ipv6 else (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
        opened.setsockopt(level, option, _PMTUDISC_PROBE)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PROBE_BUFFER_BYTES)
    except OSError:
        opened.close()
        raise
    return opened


def open_announcer() -> socket.socket:
    """To be kept: closing one waits for every processor to have passed by, 10 ms and more. Raises OSError."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # of protocol 0: it hears nothing


def announce(announcer: socket.socket, bridge: str, rows: list[tuple[bytes, bytes]]) -> None:
    """Send an announcement for each (packed address, MAC) on the bridge. Raises OSError."""
    for address, mac in rows:
        announcer.sendto(announcement(address, mac), (bridge, 0))


def announcement(address: bytes, mac: bytes) -> bytes:
    """The frame by which the owner of `address` says that its MAC is `mac`."""
    if len(address) == 4:
        arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, address, bytes(6), address)
        return _BROADCAST + mac + struct.pack("!H", _ETH_ARP) + arp
    body = struct.pack("!BBHI16sBB6s", 136, 0, 0, _OVERRIDE, address, 2, 1, mac)
    pseudo = address + _ALL_NODES + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack("!H", _internet_checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB16s16s", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255, address, _ALL_NODES)
    return _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_IPV6) + header + body


def _internet_checksum(data: bytes) -> int:
    """RFC 1071. `data` is of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
