"""Super-frames made with scapy, as a kernel would hand them over: what tests of frames begin with."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from dataplane.sleeve.frames import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, HEADER_BYTES, NEEDS_CHECKSUM

HEADER = struct.Struct("<BBHHHH")
PLAIN = bytes(HEADER_BYTES)
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80

ETHER = Ether(src="02:00:00:00:01:01", dst="02:00:00:00:02:01")
IN4 = IP(src="10.32.1.1", dst="10.32.2.1", id=0xFFFE, flags="DF", tos=2)
OPTIONS4 = IP(src="10.32.1.1", dst="10.32.2.1", id=7, options=[IPOption_Router_Alert()])
IN6 = IPv6(src="fd00:32::1:1", dst="fd00:32::2:1", fl=0x12345, hlim=61)
BARE_TCP = TCP(sport=40000, dport=80, seq=0xFFFFF000, ack=5, flags=CWR | ACK | PSH | FIN, window=501)
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
STAMPED_TCP = TCP(sport=40000, dport=80, seq=9, flags="PA", options=STAMPS)
ANY_UDP = UDP(sport=5000, dport=53)

NETWORKS = {
    "ipv4": ETHER / IN4,
    "ipv4 with options": ETHER / OPTIONS4,
    "ipv4 in a vlan": ETHER / Dot1Q(vlan=5) / IN4,
    "ipv4 in two vlans": ETHER / Dot1AD(vlan=9) / Dot1Q(vlan=5) / IN4,
    "ipv6": ETHER / IN6,
    "ipv6 with extension headers": ETHER / IN6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    "ipv6 in a vlan": ETHER / Dot1Q(vlan=5) / IN6,
}
TRANSPORTS = {"tcp": BARE_TCP, "tcp with options": STAMPED_TCP, "udp": ANY_UDP}
EVERY = [(network, transport) for network in NETWORKS for transport in TRANSPORTS]


@dataclass(frozen=True)
class Super:
    data: bytes
    start: int
    """Of TCP or UDP, in the frame."""
    payload: int


def some(count: int) -> bytes:
    return Random(count).randbytes(count)


def ones(data: bytes | bytearray) -> int:
    """The sum of 16-bit words with carries round, word by word."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def super_frame(shape: Packet, body: bytes, segment: int, ecn: bool = False) -> Super:
    """All of `body` behind one set of headers, with the checksum unfinished."""
    packet = shape / Raw(body)
    frame = bytearray(packet.build())
    is_tcp, is_ipv4 = TCP in packet, IP in packet
    network = len(frame) - len(packet[IP if is_ipv4 else IPv6].build())
    start = len(frame) - len(packet[TCP if is_tcp else UDP].build())
    addresses = frame[network + 12 : network + 20] if is_ipv4 else frame[network + 8 : network + 40]
    offset = 16 if is_tcp else 6
    length = struct.pack("!HH", 6 if is_tcp else 17, len(frame) - start)
    struct.pack_into("!H", frame, start + offset, ones(addresses + length))
    kind = (GSO_TCPV4 if is_ipv4 else GSO_TCPV6) if is_tcp else GSO_UDP
    payload = len(frame) - len(body)
    header = HEADER.pack(NEEDS_CHECKSUM, kind | (GSO_ECN if ecn else 0), payload, segment, start, offset)
    return Super(header + bytes(frame), start, payload)
