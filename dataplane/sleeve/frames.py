"""Frames as the TAP gives and takes them: an Ethernet frame behind the header of a virtual network card.

Knows neither the TAP nor where frames go. The one idea: the kernel hands over work it has not done yet, and this header
says which. A *super-frame* is up to 64 KiB of one TCP or UDP flow, to be cut into segments of `gso size` bytes of
payload, each under a copy of the same headers; and a checksum may be *unfinished*: the field holds the sum of the
pseudo header only, and what lies from `checksum start` on is still to be added. The far end's kernel takes both as they
are. Where it cannot, `split` and `finish_checksum` do the work here.

     0       1       2               4               6                8                 10
    +-------+-------+---------------+---------------+----------------+-----------------+---------- - -
    | flags |  gso  | header length |   gso size    | checksum start | checksum offset | Ethernet frame
    +-------+-------+---------------+---------------+----------------+-----------------+---------- - -

Little-endian; lengths and starts count from the frame's first byte, the offset from checksum start. (struct
virtio_net_hdr: OASIS virtio 1.2, 5.1.6.) Every `data` here is such a header with its frame; a `frame` is without.
"""

from __future__ import annotations

import struct
from typing import Final

Data = bytes | bytearray | memoryview

HEADER_BYTES: Final = 10
ETHERNET_BYTES: Final = 14
_HEADER: Final = struct.Struct("<BBHHHH")
_PLAIN: Final = bytes(HEADER_BYTES)
"""Nothing left to do."""

NEEDS_CHECKSUM: Final = 1
CHECKSUM_VALID: Final = 2
"""Seen to be right by the kernel that hands the frame over; no other kernel believes it."""
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP: Final = 5
GSO_ECN: Final = 0x80
"""Beside one of the TCP types: the first segment alone carries CWR."""

# Limits of the kernel, beyond which it refuses a frame or worse, takes it.
TCP_GSO_SIZE_MIN: Final = 8
"""TCP_MIN_GSO_SIZE; fewer bytes a segment would make thousands of frames of one."""
UDP_SEGMENTS_MAX: Final = 128
"""UDP_MAX_SEGMENTS"""
_GSO_BY_FRAGMENTS: Final = 0xFFFF
"""A mark of the kernel's own, never a size."""
_CHECKSUM_START_MIN: Final = ETHERNET_BYTES + 20
"""No finished checksum may write into the addresses, which were checked where the frame was sent."""
_TAGS_MAX: Final = 2
_FLOW_BYTES: Final = 256
"""How far into a frame we look for ports."""

_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_VLAN_TAGS: Final = (0x8100, 0x88A8)
_TCP: Final = 6
_UDP: Final = 17
_UDP_MARK: Final = bytes((_UDP,))
_EXTENSIONS: Final = (0, 43, 60)
"""IPv6 headers that may stand before TCP or UDP: hop-by-hop options, routing, destination options."""
_FRAGMENT_BITS: Final = 0x3FFF
"""Of an IPv4 header's seventh and eighth byte: more fragments, and the offset."""
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_SEQUENCES: Final = 1 << 32
_ONES: Final = 0xFFFF
"""Sums of 16-bit words, as IP does them, are residues modulo this: 65536 leaves 1, so carries come round by themselves,
and the sum of any number of bytes is one division of one long integer."""

_U16: Final = struct.Struct("!H")
_TWO_U16: Final = struct.Struct("!HH")
_U32: Final = struct.Struct("!I")
_IPV4_HEADER: Final = struct.Struct("!BxHxxHxB")
"""Version and header length, total length, fragment, protocol."""
_IPV6_HEADER: Final = struct.Struct("!BxxxHB")
"""Version, payload length, next header."""
_FLOW4: Final = struct.Struct("!12xHB5xHxB2x12s")
"""Ethertype, version and header length, fragment, protocol, then addresses and ports as they follow each other."""
_FLOW6: Final = struct.Struct("!20xBx36s")


def check_untrusted(data: Data) -> str | None:
    """Why this must not go into our TAP, as a word for a counter; None where it may.

    It came from another host, whose kernel may have been told lies by a container. What our kernel checks itself is
    checked here too, since the answer to a write says nothing; and what it does not check, and would act upon.
    """
    size = len(data) - HEADER_BYTES
    if size < ETHERNET_BYTES:
        return "frame-short"
    flags, kind, header, segment, start, offset = _HEADER.unpack_from(data)
    if flags > CHECKSUM_VALID:
        return "frame-flags"
    if header and not ETHERNET_BYTES <= header <= size:
        return "frame-header-length"
    if flags == NEEDS_CHECKSUM and (start < _CHECKSUM_START_MIN or start + offset + 2 > size):
        return "frame-checksum"
    if kind == GSO_NONE:
        return None
    if flags != NEEDS_CHECKSUM:
        return "frame-checksum"
    outline = _outline(data, kind, segment, start, offset)
    return outline if isinstance(outline, str) else None


def finish_checksum(data: Data) -> bytes:
    """The same frame with nothing left to do, for a TAP without offload. Empty where the header points outside it.

    Not for super-frames: each of their segments has a checksum of its own.
    """
    flags, kind, _, _, start, offset = _HEADER.unpack_from(data)
    assert kind == GSO_NONE
    finished = bytearray(data)
    finished[:HEADER_BYTES] = _PLAIN
    if flags & NEEDS_CHECKSUM:
        first = HEADER_BYTES + start
        if first + offset + 2 > len(data):
            return b""
        total = int.from_bytes(finished[first:], "big")
        if (len(data) - first) % 2:
            total <<= 8
        # Never 0, which in UDP means that there is none.
        _U16.pack_into(finished, first + offset, _ONES - total % _ONES)
    return bytes(finished)


def split(data: Data, segments: int) -> list[bytes]:
    """A super-frame cut into super-frames of at most so many segments each; with 1, into plain frames.

    Checksums stay unfinished. A plain frame comes back as it is; nothing where the headers contradict each other.
    """
    assert segments > 0
    _, kind, _, segment, start, offset = _HEADER.unpack_from(data)
    if kind == GSO_NONE:
        return [bytes(data)]
    if check_untrusted(data) is not None:
        return []
    outline = _outline(data, kind, segment, start, offset)
    assert not isinstance(outline, str)
    network, payload = outline
    is_tcp = kind != GSO_UDP
    size = len(data) - HEADER_BYTES
    body = memoryview(data)[HEADER_BYTES:]
    head = bytearray(body[:payload])
    # The unfinished checksum counts the length of TCP or UDP: taken out here, and that of the piece put in below.
    unfinished = _U16.unpack_from(head, start + offset)[0] - (size - start)
    flags = head[start + 13] if is_tcp else 0
    sequence = _U32.unpack_from(head, start + 4)[0] if is_tcp else 0
    is_ipv4 = head[network] >> 4 == 4
    identification, header_sum = _ipv4_start(head, network, start) if is_ipv4 else (0, 0)
    pieces = []
    for first in range(payload, size, segments * segment):
        last = min(first + segments * segment, size)
        length = payload + last - first
        if is_ipv4:
            # One more for each segment before it, whoever cuts them in the end: ours, then the kernel's own.
            numbered = (identification + (first - payload) // segment) & 0xFFFF
            total = length - network
            _TWO_U16.pack_into(head, network + 2, total, numbered)
            _U16.pack_into(head, network + 10, (_ONES - (header_sum + total + numbered) % _ONES) % _ONES)
        else:
            _U16.pack_into(head, network + 4, length - network - 40)
        if is_tcp:
            _U32.pack_into(head, start + 4, (sequence + first - payload) % _SEQUENCES)
            kept = flags if first == payload else flags & ~_CWR
            head[start + 13] = kept if last == size else kept & ~_FIN_PSH
        else:
            _U16.pack_into(head, start + 4, length - start)
        _U16.pack_into(head, start + offset, (unfinished + length - start) % _ONES)
        if last - first > segment:
            ours = kind if first == payload else kind & ~GSO_ECN
            before = _HEADER.pack(NEEDS_CHECKSUM, ours, payload, segment, start, offset)
        else:
            before = _HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, start, offset)
        pieces.append(b"".join((before, head, body[first:last])))
    return pieces


def segments_within(data: Data, limit_bytes: int) -> int:
    """How many segments of a super-frame, with all headers, fit into so many bytes; 1 also where none does."""
    _, _, _, segment, start, offset = _HEADER.unpack_from(data)
    behind = HEADER_BYTES + start + 12
    if not segment or behind >= len(data):
        return 1
    headers = HEADER_BYTES + start + ((data[behind] >> 4) * 4 if offset == 16 else 8)
    fit: int = (limit_bytes - headers) // segment
    return max(1, fit)


def _ipv4_start(head: bytearray, network: int, start: int) -> tuple[int, int]:
    """Identification, and the sum of the IPv4 header without it, the total length and the checksum."""
    header = head[network:start]
    (identification,) = _U16.unpack_from(header, 4)
    header[2:6] = bytes(4)
    header[10:12] = bytes(2)
    return identification, int.from_bytes(header, "big") % _ONES


def _outline(data: Data, kind: int, segment: int, start: int, offset: int) -> tuple[int, int] | str:
    """Where in a super-frame the IP header begins and where the payload; or what is wrong with it.

    That the checksum's field lies inside the frame, behind the room for an IPv4 header, is known.
    """
    size = len(data) - HEADER_BYTES
    network = ETHERNET_BYTES
    (ethertype,) = _U16.unpack_from(data, HEADER_BYTES + network - 2)
    while ethertype in _VLAN_TAGS and network < ETHERNET_BYTES + 4 * _TAGS_MAX:
        network += 4
        (ethertype,) = _U16.unpack_from(data, HEADER_BYTES + network - 2)
    found = _protocol(data, ethertype, network, start)
    if isinstance(found, str):
        return found
    transport = HEADER_BYTES + start
    if kind == GSO_UDP:
        if found != _UDP or offset != 6 or start + 8 >= size:
            return "frame-gso-protocol"
        if _U16.unpack_from(data, transport + 4)[0] != size - start:
            return "frame-length"
        if segment == _GSO_BY_FRAGMENTS or size - start - 8 > segment * UDP_SEGMENTS_MAX:
            return "frame-gso-size"
        return network, start + 8
    if kind & ~GSO_ECN != (GSO_TCPV4 if ethertype == _IPV4 else GSO_TCPV6):
        return "frame-gso-type"
    if found != _TCP or offset != 16 or start + 20 >= size:
        return "frame-gso-protocol"
    if not TCP_GSO_SIZE_MIN <= segment < _GSO_BY_FRAGMENTS:
        return "frame-gso-size"
    payload = start + (data[transport + 12] >> 4) * 4
    if not start + 20 <= payload < size:
        return "frame-length"
    return network, payload


def _protocol(data: Data, ethertype: int, network: int, start: int) -> int | str:
    """What the IP header says to follow it at `start`; or what is wrong with it."""
    size = len(data) - HEADER_BYTES
    at = HEADER_BYTES + network
    if ethertype == _IPV4 and start >= network + 20:
        first, total, fragment, protocol = _IPV4_HEADER.unpack_from(data, at)
        if total != size - network:
            return "frame-length"
        if first >> 4 != 4 or network + (first & 15) * 4 != start or fragment & _FRAGMENT_BITS:
            return "frame-gso-protocol"
        return int(protocol)
    if ethertype == _IPV6 and start >= network + 40:
        first, length, protocol = _IPV6_HEADER.unpack_from(data, at)
        if length != size - network - 40:
            return "frame-length"
        behind = network + 40
        while protocol in _EXTENSIONS and behind < start:
            protocol = data[HEADER_BYTES + behind]
            behind += (data[HEADER_BYTES + behind + 1] + 1) * 8
        if first >> 4 != 6 or behind != start:
            return "frame-gso-protocol"
        return int(protocol)
    return "frame-gso-protocol"


def flow_key(frame: Data) -> bytes:
    """What is alike in all frames of one flow: addresses and ports; without ports, addresses; without IP, the MACs.

    Of the Ethernet frame alone, without the header before it.
    """
    ends: bytes
    try:
        ethertype, version, fragment, protocol, ends = _FLOW4.unpack_from(frame)
        if ethertype == _IPV4:
            if version == 0x45 and not fragment & _FRAGMENT_BITS:
                if protocol == _TCP:
                    return ends
                if protocol == _UDP:
                    return ends + _UDP_MARK
        elif ethertype == _IPV6:
            protocol, ends = _FLOW6.unpack_from(frame)
            if protocol == _TCP:
                return ends
            if protocol == _UDP:
                return ends + _UDP_MARK
    except struct.error:
        pass
    return _rare_flow_key(bytes(frame[:_FLOW_BYTES]))


def _rare_flow_key(frame: bytes) -> bytes:
    """Tags, options, fragments, short frames, everything that is neither TCP nor UDP."""
    network = ETHERNET_BYTES
    ethertype = int.from_bytes(frame[network - 2 : network], "big")
    while ethertype in _VLAN_TAGS and network < ETHERNET_BYTES + 4 * _TAGS_MAX:
        network += 4
        ethertype = int.from_bytes(frame[network - 2 : network], "big")
    tags = frame[ETHERNET_BYTES - 2 : network - 2]
    packet = frame[network:]
    if ethertype == _IPV4 and len(packet) >= 20:
        ends, protocol, behind = packet[12:20], packet[9], (packet[0] & 15) * 4
        if _U16.unpack_from(packet, 6)[0] & _FRAGMENT_BITS:
            behind = len(packet)  # of a datagram's fragments only the first has ports, and they belong together
    elif ethertype == _IPV6 and len(packet) >= 40:
        ends, protocol, behind = packet[8:40], packet[6], 40
        while protocol in _EXTENSIONS and behind + 2 <= len(packet):
            protocol, behind = packet[behind], behind + (packet[behind + 1] + 1) * 8
    else:
        return frame[:ETHERNET_BYTES]
    if protocol in (_TCP, _UDP):
        ends += packet[behind : behind + 4]
    return tags + ends + (b"" if protocol == _TCP else bytes((protocol,)))
