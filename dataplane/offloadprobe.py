"""Frames that find out whether offloads lie: what to send, and what must be seen of it on the other side.

A network card, its driver or a kernel may say that it finishes checksums, or cuts what is too large, and do it wrong
for packets inside a tunnel. Nobody notices but TCP, which stalls. So real UDP and TCP packets are sent between two
bridges with that work left to the device, and beside them plain ones, alike in all but that nothing is left to do; the
other host says of every piece whether it arrived right or wrong. This module lays out bytes and judges them; it knows
nothing of sockets, peers, or what follows from a verdict.

The one idea: every piece carries its own description, so that it does not matter how pieces were cut, or joined again,
on the way, and the host that answers remembers nothing.

      0               6              12      14
      +---------------+---------------+-------+------------------------------+---------------+------------ - -
      |  destination  |    source     | 08 00 | IPv4 0.0.0.0 -> 192.0.2.1    | UDP or TCP    | piece, piece, ...
      |  bridge MAC   |  bridge MAC   | 86 DD | IPv6 ff0e::1 -> 2001:db8::1  |               |
      |               |               +-------+------------------------------+---------------+------------ - -
      |               |               | 88 B6 | V | K | nonce (8) | right (2) | wrong (2)       a report
      +---------------+---------------+-------+---+---+-----------+-----------+----------- - -

      piece:   "weft" | nonce (8) | index (1) | 0 (1) | size (2) | filler up to size
      right, wrong: a bit for each index.  V version (1), K kind (1)

No packet to one receiver may come from 0.0.0.0 (RFC 1122, 3.2.1.3) or from a multicast address (RFC 4291, 2.7), and
the destinations are for documentation (RFC 5737, RFC 3849): whatever the receiving host's stack is told to do, it drops
such a packet before it looks for a route, for a socket, or for whom to complain to. 88 B6 is "local experimental
ethertype 2".

A packet with pieces is sent and received with the virtio header before it that packet sockets and TAPs share
(`dataplane.sleeve.frames` has its layout). A received one that says "checksum not finished" never crossed a wire, and
is right as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

ETHERTYPE: Final = 0x88B6
PORT: Final = 9
"""Destination: discard. The source port is made from the nonce, so that rounds differ where paths are chosen by it."""
VERSION: Final = 1
REPORT: Final = 1
NONCE_BYTES: Final = 8
PIECES_MAX: Final = 16
"""Of one round, plain ones and all: they are bits of a mask."""
VNET_BYTES: Final = 10
"""The virtio header before every frame."""

_VNET: Final = struct.Struct("<BBHHHH")
_NEEDS_CHECKSUM: Final = 1
_GSO_NONE: Final = 0
_NO_WORK: Final = bytes(VNET_BYTES)

_ETHERNET: Final = struct.Struct("!6s6sH")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_UDP: Final = struct.Struct("!HHHH")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_PSEUDO: Final = struct.Struct("!HH")
"""Protocol and length, after the addresses. IPv6 has them wider and in the other order; the sum is the same."""
_PIECE: Final = struct.Struct("!4s8sBxH")
_CONTROL: Final = struct.Struct("!BB")
_MASKS: Final = struct.Struct("!8sHH")
_MAGIC: Final = b"weft"
_PROTOCOL_TCP: Final = 6
_PROTOCOL_UDP: Final = 17
_DONT_FRAGMENT: Final = 0x4000
_TTL_HOPS: Final = 1
_WINDOW: Final = 1024
_TCP_FLAGS: Final = 0x18
"""ACK and PSH: data in the middle of a connection that nobody has."""
_PSH: Final = 0x08
_ONES: Final = 0xFFFF
_U16: Final = struct.Struct("!H")

PACKET_MIN_BYTES: Final = 128
"""Smallest packet used: every piece has room for some filler, and no device pads the frame."""
FRAME_MAX_BYTES: Final = VNET_BYTES + 65_550


class Family(NamedTuple):
    """What IPv4 and IPv6 differ in."""

    version: int
    ethertype: int
    source: bytes
    destination: bytes
    header_bytes: int
    gso: int
    """Of TCP, in the virtio header."""


IPV4: Final = Family(4, 0x0800, bytes(4), bytes((192, 0, 2, 1)), _IPV4.size, 1)
IPV6: Final = Family(
    6, 0x86DD, bytes.fromhex("ff0e0000000000000000000000000001"), bytes.fromhex("20010db8000000000000000000000001"),
    _IPV6.size, 4,
)  # fmt: skip
FAMILIES: Final = (IPV4, IPV6)


class Drop(Enum):
    """Why a frame is no offload probe, or none that can be answered. For counters."""

    SHORT = "offload-short"
    FOREIGN = "offload-foreign"
    VERSION = "offload-version"
    KIND = "offload-kind"
    GARBLED = "offload-garbled"


@dataclass(frozen=True, slots=True)
class Round:
    """What the pieces that are sent together have in common."""

    family: Family
    destination: bytes
    source: bytes
    nonce: bytes
    packet_bytes: int
    """Of every packet when it travels: the MTU."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet of pieces as it was received: bit N of a mask is the piece with index N."""

    destination: bytes
    source: bytes
    nonce: bytes
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the other side says of one packet that arrived there."""

    destination: bytes
    source: bytes
    nonce: bytes
    right: int
    wrong: int


# -- what is sent ----------------------------------------------------------------------------------------------------


def report(arrived: Arrived, source: bytes) -> bytes:
    """The answer to one packet. `source` is our own bridge MAC."""
    head = _NO_WORK + _ETHERNET.pack(arrived.source, source, ETHERTYPE) + _CONTROL.pack(VERSION, REPORT)
    return head + _MASKS.pack(arrived.nonce, arrived.right, arrived.wrong)


def udp(sent: Round, index: int) -> bytes:
    """One piece in a UDP packet whose checksum is left to the device."""
    payload = _piece(sent.nonce, index, _payload_bytes(sent) - _UDP.size)
    length = _UDP.size + len(payload)
    unfinished = _sum(_pseudo(sent.family, _PROTOCOL_UDP, length))
    header = _UDP.pack(_source_port(sent.nonce), PORT, length, unfinished)
    return _unfinished(sent, _PROTOCOL_UDP, header + payload, checksum_at=6, segment_bytes=0)


def tcp(sent: Round, indices: Sequence[int]) -> bytes:
    """Pieces that follow each other in one TCP packet whose checksum is left to the device; of several, the cutting
    too."""
    segment_bytes = _payload_bytes(sent) - _TCP.size
    payload = b"".join(_piece(sent.nonce, index, segment_bytes) for index in indices)
    ports = (_source_port(sent.nonce), PORT)
    sequence = _sequence(sent.nonce, indices[0], segment_bytes)
    unfinished = _sum(_pseudo(sent.family, _PROTOCOL_TCP, _TCP.size + len(payload)))
    header = _TCP.pack(*ports, sequence, 1, _TCP.size // 4 << 4, _TCP_FLAGS, _WINDOW, unfinished, 0)
    cut = segment_bytes if len(indices) > 1 else 0
    return _unfinished(sent, _PROTOCOL_TCP, header + payload, checksum_at=16, segment_bytes=cut)


def _unfinished(sent: Round, protocol: int, body: bytes, checksum_at: int, segment_bytes: int) -> bytes:
    """The frame around a UDP or TCP packet, and before it the virtio header that says what is left to do."""
    family = sent.family
    start = _ETHERNET.size + family.header_bytes
    headers, kind = (start + _TCP.size, family.gso) if segment_bytes else (0, _GSO_NONE)
    left = _VNET.pack(_NEEDS_CHECKSUM, kind, headers, segment_bytes, start, checksum_at)
    ethernet = _ETHERNET.pack(sent.destination, sent.source, family.ethertype)
    return left + ethernet + _network_header(family, protocol, len(body)) + body


def _network_header(family: Family, protocol: int, length: int) -> bytes:
    if family.version == 6:
        return _IPV6.pack(6 << 28, length, protocol, _TTL_HOPS, family.source, family.destination)
    fields = (0x45, 0, _IPV4.size + length, 1, _DONT_FRAGMENT, _TTL_HOPS, protocol)
    checksum = _ONES - _sum(_IPV4.pack(*fields, 0, family.source, family.destination))
    return _IPV4.pack(*fields, checksum, family.source, family.destination)


def finished(frame: bytes) -> bytes:
    """A UDP or TCP packet of one piece with nothing left to do: a plain one, whose only difference is that."""
    *_, start, checksum_at = _VNET.unpack_from(frame)
    packet = bytearray(frame)
    packet[:VNET_BYTES] = _NO_WORK
    at = VNET_BYTES + start + checksum_at
    # The sum over what was left unfinished; never 0, which in UDP means that there is none.
    _U16.pack_into(packet, at, (_ONES - _sum(packet[VNET_BYTES + start :])) or _ONES)
    return bytes(packet)


def _payload_bytes(sent: Round) -> int:
    """Of each IP packet."""
    return max(sent.packet_bytes, PACKET_MIN_BYTES) - sent.family.header_bytes


# -- what is received ------------------------------------------------------------------------------------------------


def decode_untrusted(data: bytes) -> Arrived | Report | Drop:
    """A received frame with its virtio header: what is right and wrong with it, or why it is none. Never raises."""
    body_at = VNET_BYTES + _ETHERNET.size
    if len(data) < body_at + _CONTROL.size:
        return Drop.SHORT
    destination, source, ethertype = _ETHERNET.unpack_from(data, VNET_BYTES)
    if source[0] & 1:
        return Drop.FOREIGN  # answering a multicast source would send the answer to everybody
    body = data[body_at:]
    for family in FAMILIES:
        if ethertype == family.ethertype:
            return _packet_untrusted(family, destination, source, data[:VNET_BYTES], body)
    if ethertype != ETHERTYPE:
        return Drop.FOREIGN
    version, kind = _CONTROL.unpack_from(body)
    if version != VERSION:
        return Drop.VERSION
    if kind != REPORT:
        return Drop.KIND
    if len(body) < _CONTROL.size + _MASKS.size:
        return Drop.SHORT
    return Report(destination, source, *_MASKS.unpack_from(body, _CONTROL.size))


def _packet_untrusted(
    family: Family, destination: bytes, source: bytes, left: bytes, packet: bytes
) -> Arrived | Drop:
    """A UDP or TCP packet: one of ours as it was sent, one segment of it, or segments that were joined again."""
    if len(packet) < family.header_bytes + _UDP.size:
        return Drop.SHORT
    if family.version == 6:
        first, length, protocol, _, source_ip, destination_ip = _IPV6.unpack_from(packet)
        is_plain = first >> 28 == 6
        is_sound = length == len(packet) - _IPV6.size
    else:
        first, _, total, _, _, _, protocol, _, source_ip, destination_ip = _IPV4.unpack_from(packet)
        is_plain = first == 0x45
        is_sound = total == len(packet) and _sum(packet[: _IPV4.size]) == _ONES
    if (source_ip, destination_ip) != (family.source, family.destination):
        return Drop.FOREIGN
    transport_bytes = {_PROTOCOL_UDP: _UDP.size, _PROTOCOL_TCP: _TCP.size}.get(protocol, 0)
    body = packet[family.header_bytes :]
    payload = body[transport_bytes:]
    if not is_plain or not transport_bytes or len(payload) < _PIECE.size:
        return Drop.GARBLED
    if not _VNET.unpack(left)[0] & _NEEDS_CHECKSUM:
        is_sound = is_sound and _sum(_pseudo(family, protocol, len(body)) + body) == _ONES
    is_as_sent = _is_udp_as_sent if protocol == _PROTOCOL_UDP else _is_tcp_as_sent
    return _pieces_untrusted(destination, source, payload, is_sound and is_as_sent(body, payload))


def _is_udp_as_sent(body: bytes, payload: bytes) -> bool:
    """Whether a UDP header is the one that the piece behind it was sent with."""
    source_port, port, length, checksum = _UDP.unpack_from(body)
    _, nonce, *_ = _PIECE.unpack_from(payload)
    return (source_port, port, length) == (_source_port(nonce), PORT, len(body)) and checksum != 0


def _is_tcp_as_sent(body: bytes, payload: bytes) -> bool:
    """Whether a TCP header is the one that the first piece behind it was sent with."""
    source_port, port, sequence, acknowledged, offset, flags, window, _, _ = _TCP.unpack_from(body)
    _, nonce, index, size = _PIECE.unpack_from(payload)
    return (
        (source_port, port, acknowledged) == (_source_port(nonce), PORT, 1)
        and (offset, window) == (_TCP.size // 4 << 4, _WINDOW)
        and flags | _PSH == _TCP_FLAGS  # of several segments only the last one has PSH
        and sequence == _sequence(nonce, index, size)
    )


def _pieces_untrusted(destination: bytes, source: bytes, payload: bytes, is_sound: bool) -> Arrived | Drop:
    """Every piece in a frame. All are wrong where the headers before them are (`is_sound` says)."""
    right = wrong = at = 0
    nonce = b""
    while at < len(payload):
        if len(payload) - at < _PIECE.size:
            return Drop.GARBLED
        magic, said, index, size = _PIECE.unpack_from(payload, at)
        if magic != _MAGIC or index >= PIECES_MAX or size < _PIECE.size or (at and said != nonce):
            return Drop.GARBLED
        nonce = said
        if is_sound and payload[at : at + size] == _piece(nonce, index, size):
            right |= 1 << index
        else:
            wrong |= 1 << index
        at += size
    return Arrived(destination, source, nonce, right & ~wrong, wrong) if at else Drop.SHORT


# -- small parts -----------------------------------------------------------------------------------------------------


def _piece(nonce: bytes, index: int, size: int) -> bytes:
    return _PIECE.pack(_MAGIC, nonce, index, size) + _filler(index)[: size - _PIECE.size]


@lru_cache(maxsize=PIECES_MAX)
def _filler(index: int) -> bytes:
    """Bytes that look different in every piece; repeated at a prime distance, so that what was shifted shows."""
    return bytes((index * 37 + position * 7) & 0xFF for position in range(251)) * 262


def _source_port(nonce: bytes) -> int:
    """One of those that are for passing use (RFC 6335)."""
    return 0xC000 | int.from_bytes(nonce[-2:])


def _sequence(nonce: bytes, index: int, segment_bytes: int) -> int:
    """TCP sequence number of a piece: those of one frame follow each other."""
    return (int.from_bytes(nonce[:4], "big") + index * segment_bytes) & 0xFFFFFFFF


def _pseudo(family: Family, protocol: int, length: int) -> bytes:
    """What the checksum is about besides the packet itself. Its sum stands in the checksum's place until the device
    finishes that."""
    return family.source + family.destination + _PSEUDO.pack(protocol, length)


def _sum(data: bytes | bytearray) -> int:
    """The one's complement sum of 16-bit words (RFC 1071); 0xFFFF over what has its checksum in it."""
    total = int.from_bytes(data + bytes(len(data) % 2), "big") % _ONES
    return total or _ONES
