"""Frames with a virtual network card's header: what is cut and finished here is what scapy makes of the same segments.

The same against the kernel: tests/linux/test_frames.py.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from dataplane.sleeve.frames import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    HEADER_BYTES,
    NEEDS_CHECKSUM,
    TCP_GSO_SIZE_MIN,
    UDP_SEGMENTS_MAX,
    check_untrusted,
    finish_checksum,
    flow_key,
    segments_within,
    split,
)
from tests.dataplane.sleeve.shapes import (
    ACK,
    ANY_UDP,
    BARE_TCP,
    CWR,
    ETHER,
    EVERY,
    FIN,
    HEADER,
    IN4,
    IN6,
    NETWORKS,
    OPTIONS4,
    PLAIN,
    PSH,
    STAMPED_TCP,
    TRANSPORTS,
    Super,
    some,
    super_frame,
)


def by_scapy(shape: Packet, body: bytes, segment: int) -> list[bytes]:
    """The frames on the wire, as whoever wrote scapy understands the standards."""
    found = []
    for number, first in enumerate(range(0, len(body), segment)):
        packet = shape.copy() / Raw(body[first : first + segment])
        last = first + segment >= len(body)
        if IP in packet:
            packet[IP].id = (shape[IP].id + number) & 0xFFFF
        if TCP in packet:
            packet[TCP].seq = (shape[TCP].seq + first) & 0xFFFFFFFF
            flags = int(shape[TCP].flags)
            packet[TCP].flags = flags & ~(0 if first == 0 else CWR) & ~(0 if last else FIN | PSH)
        found.append(packet.build())
    return found


@pytest.mark.parametrize(("network", "transport"), EVERY)
@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 5000, 5003])
def test_plain_frames_are_what_scapy_makes_of_the_segments(network: str, transport: str, size: int) -> None:
    """Cut to single segments and finished: lengths, identification, sequence, flags and both checksums."""
    shape = NETWORKS[network] / TRANSPORTS[transport]
    whole = super_frame(shape, some(size), 1000)
    assert check_untrusted(whole.data) is None
    pieces = split(memoryview(whole.data), 1)
    assert [check_untrusted(piece) for piece in pieces] == [None] * len(pieces)
    assert [HEADER.unpack_from(piece)[:2] for piece in pieces] == [(NEEDS_CHECKSUM, GSO_NONE)] * len(pieces)
    finished = [finish_checksum(piece) for piece in pieces]
    assert [piece[:HEADER_BYTES] for piece in finished] == [PLAIN] * len(pieces)
    assert [piece[HEADER_BYTES:] for piece in finished] == by_scapy(shape, some(size), 1000)


@pytest.mark.parametrize(("network", "transport"), EVERY)
@pytest.mark.parametrize("segments", [1, 2, 3, 5, 9])
def test_cut_in_two_steps_is_cut_in_one(network: str, transport: str, segments: int) -> None:
    """Super-frames of some segments are proper super-frames: cut further they give the same frames."""
    whole = super_frame(NETWORKS[network] / TRANSPORTS[transport], some(7777), 1000)
    pieces = split(whole.data, segments)
    assert len(pieces) == -(-8 // segments)
    assert all(check_untrusted(piece) is None for piece in pieces)
    assert all(len(piece) <= HEADER_BYTES + whole.payload + segments * 1000 for piece in pieces)
    assert [frame for piece in pieces for frame in split(piece, 1)] == split(whole.data, 1)


def test_what_fits_comes_back_as_it_was() -> None:
    """A super-frame of no more segments than asked for, and every frame that is none."""
    whole = super_frame(ETHER / IN4 / STAMPED_TCP, some(5000), 1000)
    assert split(whole.data, 5) == split(whole.data, 100) == [whole.data]
    plain = PLAIN + (ETHER / ARP()).build()
    assert split(memoryview(plain), 1) == [plain]


def test_only_the_first_super_frame_reduces_the_window() -> None:
    """CWR, and the bit of the header that announces it; FIN and PSH are for the last."""
    pieces = split(super_frame(ETHER / IN4 / BARE_TCP, some(5000), 1000, ecn=True).data, 2)
    kinds = [HEADER.unpack_from(piece)[1] for piece in pieces]
    assert kinds == [GSO_TCPV4 | GSO_ECN, GSO_TCPV4, GSO_NONE]
    assert [Ether(piece[HEADER_BYTES:])[TCP].flags for piece in pieces] == [CWR | ACK, ACK, ACK | PSH | FIN]


@pytest.mark.parametrize(("network", "transport"), EVERY)
def test_as_many_segments_fit_as_were_said_to(network: str, transport: str) -> None:
    """Neither does one more."""
    whole = super_frame(NETWORKS[network] / TRANSPORTS[transport], some(20_000), 1000)
    for limit in (1, 1100, 3000, 3200, 9000):
        segments = segments_within(whole.data, limit)
        sizes = [len(piece) for piece in split(whole.data, segments)]
        assert segments == 1 or max(sizes) <= limit
        assert HEADER_BYTES + whole.payload + (segments + 1) * 1000 > limit


def test_a_plain_frame_is_one_segment() -> None:
    """And so is a header without its frame."""
    assert segments_within(PLAIN + b"x" * 60, 9000) == 1
    assert segments_within(HEADER.pack(1, 1, 54, 1000, 34, 16), 9000) == 1


@pytest.mark.parametrize(("network", "transport"), EVERY)
@pytest.mark.parametrize("size", [0, 1, 2, 63, 1400])
def test_a_finished_checksum_is_what_scapy_computes(network: str, transport: str, size: int) -> None:
    """Of an unfinished frame that is no super-frame, whatever its length."""
    shape = NETWORKS[network] / TRANSPORTS[transport] / Raw(some(size))
    made = super_frame(NETWORKS[network] / TRANSPORTS[transport], some(size), 1)
    offset = 16 if TCP in shape else 6
    unfinished = HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, made.start, offset) + made.data[HEADER_BYTES:]
    assert check_untrusted(unfinished) is None
    assert finish_checksum(memoryview(unfinished)) == PLAIN + shape.build()


def test_a_udp_checksum_is_never_nought() -> None:
    """Which would say that there is none: what sums up to all ones is written as all ones."""
    shape = ETHER / IN4 / ANY_UDP
    right = struct.unpack_from("!H", (shape / Raw(bytes(2))).build(), 40)[0]
    whole = super_frame(shape, struct.pack("!H", right), 1000)
    unfinished = HEADER.pack(NEEDS_CHECKSUM, GSO_NONE, 0, 0, 34, 6) + whole.data[HEADER_BYTES:]
    assert finish_checksum(unfinished)[HEADER_BYTES + 40 :][:2] == b"\xff\xff"


def ipv4_header(identification: int) -> bytes:
    """After a super-frame of one segment was cut."""
    network = ETHER / IP(src="10.32.1.1", dst="10.32.2.1", id=identification)
    data = super_frame(network / ANY_UDP, some(1000), 1000).data
    (frame,) = split(data, 1)
    assert frame[HEADER_BYTES + 14 : HEADER_BYTES + 34] == data[HEADER_BYTES + 14 : HEADER_BYTES + 34]
    return frame[HEADER_BYTES + 14 : HEADER_BYTES + 34]


def test_an_ip_checksum_may_be_nought() -> None:
    """As the kernel writes it, where all ones would do as well."""
    (checksum,) = struct.unpack_from("!H", ipv4_header(0), 10)
    assert ipv4_header(checksum)[10:12] == bytes(2)


@pytest.mark.parametrize("flags", [0, 2])
def test_a_finished_frame_is_only_rid_of_its_header(flags: int) -> None:
    """Nothing of it is for the far end, the verdict of our own kernel least of all."""
    frame = (ETHER / IN4 / ANY_UDP / Raw(b"hello")).build()
    assert finish_checksum(HEADER.pack(flags, 0, 0, 0, 34, 6) + frame) == PLAIN + frame


def test_a_checksum_outside_the_frame_gives_nothing() -> None:
    """Whoever sent that."""
    frame = (ETHER / IN4 / ANY_UDP).build()
    assert finish_checksum(HEADER.pack(1, 0, 0, 0, 34, 7) + frame) == b""
    assert finish_checksum(HEADER.pack(1, 0, 0, 0, 34, 6) + frame) != b""


# What comes from the network

TCP4 = super_frame(ETHER / IN4 / STAMPED_TCP, some(5000), 1000)
TCP6 = super_frame(ETHER / IN6 / STAMPED_TCP, some(5000), 1000)
UDP4 = super_frame(ETHER / IN4 / ANY_UDP, some(5000), 1000)
EXTENDED = super_frame(NETWORKS["ipv6 with extension headers"] / BARE_TCP, some(5000), 1000)
SHORT = super_frame(NETWORKS["ipv6 with extension headers"] / BARE_TCP, some(20), 10)
FLAGS, GSO, LENGTH, SIZE, START, OFFSET = range(6)


def changed(made: Super, fields: dict[int, int] | None = None, at: int = 0, to: str = "", cut: int = 0) -> bytes:
    """With other fields in the header, other bytes in the frame, or fewer at the end."""
    header = list(HEADER.unpack_from(made.data))
    for field, value in (fields or {}).items():
        header[field] = value
    frame = bytearray(made.data[HEADER_BYTES:])
    new = bytes.fromhex(to)
    frame[at : at + len(new)] = new
    return HEADER.pack(*header) + bytes(frame[: len(frame) - cut])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "frame-short"),
        (PLAIN + bytes(13), "frame-short"),
        (changed(TCP4, {FLAGS: 3}), "frame-flags"),
        (changed(TCP4, {FLAGS: 5}), "frame-flags"),
        (changed(TCP4, {LENGTH: len(TCP4.data) - 9}), "frame-header-length"),
        (changed(TCP4, {LENGTH: 13}), "frame-header-length"),
        (changed(TCP4, {GSO: GSO_NONE, START: 33}), "frame-checksum"),
        (changed(TCP4, {GSO: GSO_NONE, OFFSET: len(TCP4.data) - 45}), "frame-checksum"),
        (changed(TCP4, {START: 65_535}), "frame-checksum"),
        (changed(TCP4, {FLAGS: 0}), "frame-checksum"),
        (changed(TCP4, {FLAGS: 2}), "frame-checksum"),
        (changed(TCP4, {GSO: 2}), "frame-gso-type"),
        (changed(TCP4, {GSO: 3}), "frame-gso-type"),
        (changed(TCP4, {GSO: GSO_ECN}), "frame-gso-type"),
        (changed(TCP4, {GSO: GSO_TCPV6}), "frame-gso-type"),
        (changed(TCP6, {GSO: GSO_TCPV4}), "frame-gso-type"),
        (changed(UDP4, {GSO: GSO_UDP | GSO_ECN}), "frame-gso-type"),
        (changed(TCP4, {GSO: GSO_UDP}), "frame-gso-protocol"),
        (changed(UDP4, {GSO: GSO_TCPV4}), "frame-gso-protocol"),
        (changed(TCP4, {OFFSET: 6}), "frame-gso-protocol"),
        (changed(TCP4, {START: 38}), "frame-gso-protocol"),
        (changed(TCP4, at=12, to="0806"), "frame-gso-protocol"),
        (changed(TCP4, at=12, to="86dd"), "frame-gso-protocol"),
        (changed(TCP6, at=12, to="0800"), "frame-length"),
        (changed(TCP4, at=14, to="65"), "frame-gso-protocol"),
        (changed(TCP4, at=14, to="46"), "frame-gso-protocol"),
        (changed(TCP4, at=20, to="2000"), "frame-gso-protocol"),
        (changed(TCP4, at=20, to="0001"), "frame-gso-protocol"),
        (changed(TCP4, at=23, to="11"), "frame-gso-protocol"),
        (changed(TCP6, at=14, to="40"), "frame-gso-protocol"),
        (changed(TCP6, at=20, to="00"), "frame-gso-protocol"),
        (changed(EXTENDED, at=54, to="2c"), "frame-gso-protocol"),
        (changed(EXTENDED, at=55, to="ff"), "frame-gso-protocol"),
        (changed(EXTENDED, at=63, to="01"), "frame-gso-protocol"),
        (changed(SHORT, at=54, to="00ff"), "frame-gso-protocol"),
        (changed(TCP6, {START: 58}), "frame-gso-protocol"),
        (
            super_frame(ETHER / Dot1Q() / Dot1Q() / Dot1Q() / IN4 / BARE_TCP, some(5000), 1000).data,
            "frame-gso-protocol",
        ),
        (changed(TCP4, cut=1), "frame-length"),
        (changed(TCP6, cut=1), "frame-length"),
        (changed(UDP4, at=38, to="138f"), "frame-length"),
        (changed(TCP4, at=46, to="40"), "frame-length"),
        (super_frame(ETHER / IN4 / STAMPED_TCP, b"", 1000).data, "frame-length"),
        (super_frame(ETHER / IN4 / BARE_TCP, b"", 1000).data, "frame-gso-protocol"),
        (super_frame(ETHER / IN4 / ANY_UDP, b"", 1000).data, "frame-gso-protocol"),
        (changed(TCP4, {SIZE: 0}), "frame-gso-size"),
        (changed(TCP4, {SIZE: TCP_GSO_SIZE_MIN - 1}), "frame-gso-size"),
        (changed(TCP4, {SIZE: 65_535}), "frame-gso-size"),
        (changed(UDP4, {SIZE: 0}), "frame-gso-size"),
        (changed(UDP4, {SIZE: 65_535}), "frame-gso-size"),
        (changed(UDP4, {SIZE: 5000 // UDP_SEGMENTS_MAX}), "frame-gso-size"),
    ],
)
def test_what_contradicts_itself_does_not_go_into_the_tap(data: bytes, reason: str) -> None:
    """Each with its reason; and cutting it gives nothing."""
    assert check_untrusted(memoryview(data)) == reason
    if len(data) >= HEADER_BYTES and HEADER.unpack_from(data)[GSO] != GSO_NONE:
        assert split(data, 1) == []


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + bytes(14),
        PLAIN + (ETHER / ARP()).build(),
        TCP4.data,
        changed(TCP4, {LENGTH: 0}),
        changed(TCP4, {SIZE: TCP_GSO_SIZE_MIN}),
        changed(UDP4, {SIZE: 5000 // UDP_SEGMENTS_MAX + 1}),
        changed(TCP4, {FLAGS: 2, GSO: GSO_NONE}),
        changed(TCP4, {GSO: GSO_NONE, OFFSET: len(TCP4.data) - HEADER_BYTES - 34 - 2}),
    ],
)
def test_what_is_at_the_limits_passes(data: bytes) -> None:
    """The limits are what is still allowed."""
    assert check_untrusted(data) is None


@given(st.binary(max_size=120))
def test_random_bytes_raise_nothing(data: bytes) -> None:
    """From the network and from containers, who can say anything."""
    assert check_untrusted(memoryview(data)) is None or isinstance(check_untrusted(data), str)
    assert isinstance(flow_key(memoryview(data)), bytes)
    if len(data) >= HEADER_BYTES:
        assert segments_within(data, 5000) >= 1
        if data[1] == GSO_NONE:
            assert len(finish_checksum(data)) in (0, len(data))
        split(data, 3)


@given(st.sampled_from([TCP4, TCP6, UDP4, EXTENDED]), st.data())
def test_what_passes_can_be_cut_and_finished(made: Super, data: st.DataObject) -> None:
    """A good super-frame with some bits turned: refused, or cut into frames that pass in their turn."""
    hurt = bytearray(made.data)
    for place in data.draw(st.lists(st.integers(0, made.payload + HEADER_BYTES - 1), min_size=1, max_size=3)):
        hurt[place] ^= 1 << data.draw(st.integers(0, 7))
    assume(bytes(hurt) != made.data)
    segments = data.draw(st.integers(1, 9))
    pieces = split(hurt, segments)
    if check_untrusted(hurt) is not None:
        assert pieces == [] or hurt[1] == GSO_NONE
        return
    assert all(check_untrusted(piece) is None for piece in pieces)
    frames = [frame for piece in pieces for frame in split(piece, 1)]
    assert all(finish_checksum(frame) for frame in frames)
    if hurt[1] != GSO_NONE:
        assert b"".join(frame[_behind(frame) :] for frame in frames) == bytes(hurt[_behind(hurt) :])


def _behind(data: bytes | bytearray) -> int:
    """Where the payload begins."""
    _, _, _, _, start, offset = HEADER.unpack_from(data)
    at = HEADER_BYTES + int(start)
    return at + (data[at + 12] >> 4) * 4 if offset == 16 else at + 8


# Flows


def key(packet: Packet) -> bytes:
    return flow_key(memoryview(packet.build()))


@pytest.mark.parametrize(("network", "transport"), EVERY)
def test_frames_of_a_flow_have_one_key(network: str, transport: str) -> None:
    """Whatever their lengths, flags and numbers; another port or address is another flow."""
    shape = NETWORKS[network] / TRANSPORTS[transport]
    layer = TCP if TCP in shape else UDP
    longer = shape.copy()
    longer[layer].remove_payload()
    if layer is TCP:
        longer[TCP].seq = 77
    else:
        longer[UDP].len = None
    assert key(shape) == key(longer / Raw(bytes(900)))
    elsewhere = shape.copy()
    elsewhere[layer].dport = 81
    assert key(elsewhere) != key(shape)
    if IP in shape:
        elsewhere = shape.copy()
        elsewhere[IP].src = "10.32.1.2"
        assert key(elsewhere) != key(shape)


def test_tcp_and_udp_between_the_same_ports_are_two_flows() -> None:
    """In both families, tagged or not."""
    for shape in NETWORKS.values():
        assert key(shape / TCP(sport=1, dport=2)) != key(shape / UDP(sport=1, dport=2))


def test_options_do_not_make_another_flow() -> None:
    """Nor do extension headers: frames of one flow with and without must not overtake each other."""
    assert key(ETHER / OPTIONS4 / BARE_TCP) == key(ETHER / IN4 / BARE_TCP)
    assert key(NETWORKS["ipv6 with extension headers"] / ANY_UDP) == key(ETHER / IN6 / ANY_UDP)


def test_the_same_addresses_in_another_vlan_are_another_flow() -> None:
    """They may be other machines."""
    tagged = key(ETHER / Dot1Q(vlan=5) / IN4 / BARE_TCP)
    assert len({tagged, key(ETHER / Dot1Q(vlan=6) / IN4 / BARE_TCP), key(ETHER / IN4 / BARE_TCP)}) == 3


def test_ports_too_deep_in_a_frame_are_not_looked_for() -> None:
    """Behind more tags than anybody nests the MACs must do, behind kilobytes of extension headers the addresses."""
    tags = Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3)
    assert key(ETHER / tags / IN4 / BARE_TCP) == ETHER.build()[:12] + b"\x81\x00"
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))])
    deep = ETHER / IN6 / options / TCP(sport=1, dport=2)
    assert key(deep) == key(ETHER / IN6 / options / TCP(sport=3, dport=4))
    assert IN6.build()[8:40] in key(deep)


def test_fragments_of_a_datagram_have_one_key() -> None:
    """Only the first has ports."""
    first = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / ANY_UDP / Raw(bytes(64))
    other = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=9, proto=17) / Raw(some(64))
    assert key(first) == key(other)
    first6 = ETHER / IN6 / IPv6ExtHdrFragment(m=1, nh=17) / ANY_UDP / Raw(bytes(64))
    other6 = ETHER / IN6 / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(some(64))
    assert key(first6) == key(other6)


def test_a_ping_is_one_flow() -> None:
    """Whatever its number."""
    first = ETHER / IN4 / ICMP(id=1, seq=1) / Raw(bytes(56))
    assert key(first) == key(ETHER / IN4 / ICMP(id=1, seq=2) / Raw(bytes(9)))
    assert key(first) != key(ETHER / IP(src="10.32.1.1", dst="10.32.2.2") / ICMP(id=1, seq=1))


def test_what_is_not_ip_is_told_apart_by_its_macs() -> None:
    """Short ones too, and frames that only say they were IP."""
    assert key(ETHER / ARP()) == ETHER.build()[:12] + b"\x08\x06"
    assert flow_key(b"") == b""
    assert flow_key(ETHER.build()[:12] + b"\x08\x00" + b"E") == ETHER.build()[:12] + b"\x08\x00"
    assert flow_key(ETHER.build()[:12] + b"\x86\xdd" + b"`") == ETHER.build()[:12] + b"\x86\xdd"
