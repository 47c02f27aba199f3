"""A network card that lies, between a host of a lab and its hub: it claims to finish packets, and does not.

Runs in the hub's namespace, as a program, with the interfaces towards the host and towards the wire. A veth claims
everything and does nothing: what it hands on still has its work before it, in the virtio header. So this takes frames
from one veth to the next, and for packets inside VXLAN forgets what is left to do. The other direction is honest: there
the kernel has finished everything before it.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from typing import Final

from mesh.lab import Lab
from mesh.namespaces import ip_batch, wait_until

CHECKSUM: Final = "checksum"
"""Checksums inside VXLAN stay unfinished. The sender's kernel has made the outer one as if they were, so the other host
drops the packet before anybody sees the inner one."""
CHANGED: Final = "changed"
"""The same without an outer checksum: what is unfinished arrives."""
SEGMENT: Final = "segment"
"""What is to be cut is lost; checksums are finished."""
SEGMENT6: Final = "segment6"
"""The same, of IPv6 alone."""

_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_RCVBUFFORCE: Final = 33
_ETH_ALL: Final = 3
_VNET: Final = struct.Struct("<BBHHHH")
_OUTER: Final = 34
"""Where the transport header of a packet that is in no tunnel begins."""
_GSO_TCPV6: Final = 4
_OUTER_CHECKSUM: Final = _VNET.size + _OUTER + 6


def plug(lab: Lab, host: int, lie: str) -> None:
    """From now on the host's packets pass this. It ends with the lab."""
    ip_batch(
        [
            f"link set dev h{host} nomaster",
            "link add name wire0 type veth peer name wire1",
            "link set dev wire0 up",
            "link set dev wire1 master hub up",
        ],
        lab.namespace("hub"),
    )
    lab.run("hub", ["ethtool", "-K", "wire1", "tx", "off", "tso", "off", "gso", "off"])
    lab.popen("hub", [sys.executable, "-m", "tests.labs.liar", f"h{host}", "wire0", lie])
    others = [lab.underlay(other) for other in range(1, lab.hosts + 1) if other != host]
    command = ["ping", "-n", "-c", "1", "-W", "1", others[0]]
    wait_until(lambda: lab.run(f"h{host}", command, check=False).returncode == 0, 10, "the card passed packets")


def _open(ifname: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    opened.bind((ifname, _ETH_ALL))
    return opened


def _lie(frame: bytes, lie: str) -> bytes | None:
    _, segmented, _, _, start, _ = _VNET.unpack_from(frame)
    if start <= _OUTER:
        return frame
    if lie in (SEGMENT, SEGMENT6):
        return None if segmented and (lie == SEGMENT or segmented == _GSO_TCPV6) else frame
    forgotten = bytearray(_VNET.size) + frame[_VNET.size :]
    if lie == CHANGED:
        forgotten[_OUTER_CHECKSUM : _OUTER_CHECKSUM + 2] = bytes(2)
    return bytes(forgotten)


def main(towards_host: str, towards_wire: str, lie: str) -> None:
    host, wire = _open(towards_host), _open(towards_wire)
    while True:
        readable, _, _ = select.select([host, wire], [], [])
        for source in readable:
            frame: bytes | None = source.recv(1 << 17)
            if source is host:
                frame = _lie(frame or b"", lie)
            try:
                if frame is not None:
                    (wire if source is host else host).send(frame)
            except OSError:
                pass  # uncut, and so too large: lost, as at any card


if __name__ == "__main__":
    main(*sys.argv[1:])
