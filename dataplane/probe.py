"""The ping of the data path: one Ethernet frame that travels exactly as a container's frame would.

Sent on the bridge to the peer's bridge MAC, so it takes the path the forwarding table holds for that peer; received
beside the bridge there, and sent back by whoever serves the socket. Padded, so that it also proves that frames of a
given size get through. A probe of one path is sent on that path's own device instead, past the forwarding table, and
answered there: it has kinds of its own, since on its way it is seen on the bridge too. A probe that measures a path is
put into VXLAN by hand, since it may be larger than any of our devices takes and must not be cut on the way; it arrives
like every other. This module lays out bytes and
knows nothing of sockets, peers or what a lost probe means.

      0               6              12      14  15  16              24      26
      +---------------+---------------+-------+---+---+---------------+-------+----- - -
      |  destination  |    source     | 88 B5 | V | K |     nonce     | size  | zeros
      |  bridge MAC   |  bridge MAC   |       |   |   |               |       |
      +---------------+---------------+-------+---+---+---------------+-------+----- - -

V version (1), K kind (1 request, 2 reply; of one path: 3 request, 4 reply; measuring: 5 request, 6 reply), nonce
eight bytes chosen by the asker, size the length of the whole frame with its Ethernet header, so that a frame cut on
the way is told from a short one. 88 B5 is "local experimental ethertype 1" (IEEE Std 802, table of ethertypes reserved
for private use).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

ETHERTYPE: Final = 0x88B5
VERSION: Final = 1
REQUEST: Final = 1
REPLY: Final = 2
PATH_REQUEST: Final = 3
PATH_REPLY: Final = 4
SIZE_REQUEST: Final = 5
SIZE_REPLY: Final = 6
KINDS: Final = frozenset({REQUEST, REPLY, PATH_REQUEST, PATH_REPLY, SIZE_REQUEST, SIZE_REPLY})
NONCE_BYTES: Final = 8
ETHERNET_HEADER_BYTES: Final = 14
_LAYOUT: Final = struct.Struct("!6s6sHBB8sH")
_VXLAN: Final = struct.Struct("!II")
_VXLAN_HAS_VNI: Final = 0x08 << 24
MIN_FRAME_BYTES: Final = _LAYOUT.size
MAX_FRAME_BYTES: Final = 65_535


class Drop(Enum):
    """Why a frame is no probe. For counters."""

    SHORT = "probe-short"
    FOREIGN = "probe-foreign"
    VERSION = "probe-version"
    KIND = "probe-kind"
    CUT = "probe-cut"


@dataclass(frozen=True, slots=True)
class Probe:
    destination: bytes
    source: bytes
    kind: int
    nonce: bytes
    size: int
    """Bytes of the frame with its Ethernet header: overlay packet size plus 14."""


def encode(probe: Probe) -> bytes:
    """The frame, padded with zeros to its size."""
    assert len(probe.nonce) == NONCE_BYTES and MIN_FRAME_BYTES <= probe.size <= MAX_FRAME_BYTES
    head = _LAYOUT.pack(probe.destination, probe.source, ETHERTYPE, VERSION, probe.kind, probe.nonce, probe.size)
    return head + bytes(probe.size - len(head))


def request(source: bytes, destination: bytes, nonce: bytes, packet_bytes: int, kind: int = REQUEST) -> Probe:
    """A request that fills an overlay packet of `packet_bytes` (the MTU, for a full-size probe)."""
    size = max(MIN_FRAME_BYTES, min(packet_bytes + ETHERNET_HEADER_BYTES, MAX_FRAME_BYTES))
    return Probe(destination=destination, source=source, kind=kind, nonce=nonce, size=size)


def reply(asked: Probe, source: bytes) -> Probe:
    """The answer: as large as the question, so that both directions are proven. `source` is our own bridge MAC."""
    return Probe(destination=asked.source, source=source, kind=asked.kind + 1, nonce=asked.nonce, size=asked.size)


def encapsulate(frame: bytes, vni: int) -> bytes:
    """The payload of a UDP datagram that a VXLAN device takes for this frame (RFC 7348, section 5: flags, VNI)."""
    return _VXLAN.pack(_VXLAN_HAS_VNI, vni << 8) + frame


def decode_untrusted(frame: bytes) -> Probe | Drop:
    """A received frame as a probe, or the reason why it is none. Never raises."""
    if len(frame) < MIN_FRAME_BYTES:
        return Drop.SHORT
    destination, source, ethertype, version, kind, nonce, size = _LAYOUT.unpack_from(frame)
    if ethertype != ETHERTYPE or source[0] & 1:
        return Drop.FOREIGN  # answering a multicast source would send the answer to everybody
    if version != VERSION:
        return Drop.VERSION
    if kind not in KINDS:
        return Drop.KIND
    if size != len(frame):
        return Drop.CUT
    return Probe(destination=destination, source=source, kind=kind, nonce=nonce, size=size)
