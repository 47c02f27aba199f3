"""Offload probes: whatever a device may do to a frame, the pieces in it are known for right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.offloadprobe import (
    FAMILIES,
    IPV4,
    IPV6,
    PIECES_MAX,
    VNET_BYTES,
    Arrived,
    Drop,
    Family,
    Report,
    Round,
    decode_untrusted,
    finished,
    report,
    tcp,
    udp,
)
from dataplane.sleeve import frames

ASKER, ASKED = bytes.fromhex("02aa00000001"), bytes.fromhex("02aa00000002")
NONCE = b"12345678"
ROUND = Round(IPV4, ASKED, ASKER, NONCE, 1450)
SIZES = (0, 576, 1450, 9000, 65_000)
NO_WORK = bytes(VNET_BYTES)
SEGMENTS = (6, 7, 8, 9)


def of_size(packet_bytes: int, family: Family = IPV4) -> Round:
    return Round(family, ASKED, ASKER, NONCE, packet_bytes)


def cut(frame: bytes) -> list[bytes]:
    """What an honest device makes of a frame that leaves it the cutting too."""
    return [frames.finish_checksum(piece) for piece in frames.split(frame, 1)]


def masks(data: bytes) -> tuple[int, int]:
    found = decode_untrusted(data)
    assert isinstance(found, Arrived)
    assert (found.destination, found.source, found.nonce) == (ASKED, ASKER, NONCE)
    return found.right, found.wrong


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("make", [udp, lambda sent, index: tcp(sent, (index,))], ids=["udp", "tcp"])
def test_a_checksum_left_to_a_device_is_finished_or_never_needed(
    make: Callable[[Round, int], bytes], family: Family, size: int
) -> None:
    """Finished by an honest one, or unfinished and said to be: that did not cross a wire."""
    frame = make(of_size(size, family), 4)
    assert frames.check_untrusted(frame) is None
    assert masks(frame) == (1 << 4, 0)
    assert masks(finished(frame)) == (1 << 4, 0)
    assert finished(frame) == frames.finish_checksum(frame)
    assert finished(frame)[:VNET_BYTES] == NO_WORK
    assert len(frame) == VNET_BYTES + 14 + max(size, 128)


@pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("make", [udp, lambda sent, index: tcp(sent, (index,))], ids=["udp", "tcp"])
def test_a_checksum_that_nobody_finished_is_wrong(make: Callable[[Round, int], bytes], family: Family) -> None:
    """The device dropped the header that said so."""
    frame = make(of_size(1450, family), 4)
    assert masks(NO_WORK + frame[VNET_BYTES:]) == (0, 1 << 4)


@pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])
def test_a_large_packet_arrives_whole_in_parts_or_joined_again(family: Family) -> None:
    """Every segment is a packet of the round's size, and right however many are together."""
    frame = tcp(of_size(1450, family), SEGMENTS)
    assert frames.check_untrusted(frame) is None
    everything = sum(1 << index for index in SEGMENTS)
    assert masks(frame) == (everything, 0)
    pieces = cut(frame)
    assert [len(piece) - VNET_BYTES - 14 for piece in pieces] == [1450] * 4
    assert [masks(piece) for piece in pieces] == [(1 << index, 0) for index in SEGMENTS]
    assert [masks(piece) for piece in frames.split(frame, 2)] == [(0b11 << 6, 0), (0b11 << 8, 0)]


HEADER = VNET_BYTES + 14
TCP_AT = HEADER + 20
PIECE_AT = TCP_AT + 8
"""In a UDP packet."""


def with_bytes(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def refinished(frame: bytes) -> bytes:
    """The same with checksums that fit what it has become."""
    left = struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 16)
    length = struct.pack("!H", len(frame) - TCP_AT)
    pseudo = bytes(4) + bytes((192, 0, 2, 1)) + b"\0\6" + length
    total = int.from_bytes(pseudo, "big") % 0xFFFF
    return frames.finish_checksum(left + with_bytes(frame, TCP_AT + 16, struct.pack("!H", total))[VNET_BYTES:])


LIES: dict[str, Callable[[list[bytes]], bytes]] = {
    "the first segment's sequence in all": lambda s: with_bytes(s[1], TCP_AT + 4, s[0][TCP_AT + 4 : TCP_AT + 8]),
    "another segment's payload": lambda s: s[1][: TCP_AT + 20] + s[2][TCP_AT + 20 :],
    "flags of a SYN": lambda s: with_bytes(s[1], TCP_AT + 13, b"\x02"),
    "another port": lambda s: with_bytes(s[1], TCP_AT, b"\x00\x50"),
    "a byte changed": lambda s: with_bytes(s[1], TCP_AT + 700, b"\xff\xff"),
    "shifted by two": lambda s: s[1][: TCP_AT + 60] + s[1][TCP_AT + 62 :] + b"\0\0",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_segment_that_was_cut_wrongly_is_wrong_although_its_checksum_fits(lie: str) -> None:
    """A device computes the checksum of whatever it made."""
    pieces = cut(tcp(ROUND, SEGMENTS))
    assert masks(refinished(pieces[1])) == (1 << 7, 0)
    right, wrong = masks(refinished(LIES[lie](pieces)))
    assert right == 0 and wrong in (1 << 7, 1 << 8)


def test_a_wrong_header_is_wrong_whatever_follows() -> None:
    """Length and checksum of IPv4, length and lack of a checksum in UDP."""
    whole = finished(udp(ROUND, 4))
    for at in (HEADER + 2, HEADER + 10, TCP_AT + 4, TCP_AT + 6):
        assert masks(with_bytes(whole, at, b"\0\0")) == (0, 1 << 4)


def test_a_report_says_what_arrived_and_to_whom() -> None:
    """It goes back to the asker, from us, with the asker's nonce."""
    answer = report(Arrived(ASKED, ASKER, NONCE, 0b101, 0b10), ASKED)
    assert decode_untrusted(answer) == Report(ASKER, ASKED, NONCE, 0b101, 0b10)
    assert len(answer) < 64


def test_what_is_no_probe_is_told_apart() -> None:
    """By a word for a counter."""
    answer = report(Arrived(ASKED, ASKER, NONCE, 1, 0), ASKED)
    packet, ipv6 = udp(ROUND, 4), udp(of_size(1450, IPV6), 4)
    kinds = {
        b"": Drop.SHORT,
        answer[:20]: Drop.SHORT,
        with_bytes(answer, VNET_BYTES + 6, b"\x01"): Drop.FOREIGN,
        with_bytes(answer, VNET_BYTES + 12, b"\x08\x06"): Drop.FOREIGN,
        with_bytes(answer, HEADER, b"\x02"): Drop.VERSION,
        with_bytes(answer, HEADER + 1, b"\x07"): Drop.KIND,
        answer[:-1]: Drop.SHORT,
        with_bytes(packet, HEADER + 12, b"\x0a"): Drop.FOREIGN,
        with_bytes(packet, HEADER + 9, b"\x01"): Drop.GARBLED,
        with_bytes(packet, HEADER, b"\x46"): Drop.GARBLED,
        with_bytes(packet, PIECE_AT, b"nope"): Drop.GARBLED,
        with_bytes(packet, PIECE_AT + 12, bytes((PIECES_MAX,))): Drop.GARBLED,
        with_bytes(packet, PIECE_AT + 14, b"\0\1"): Drop.GARBLED,
        packet[: TCP_AT + 4]: Drop.SHORT,
        packet[: TCP_AT + 8]: Drop.GARBLED,
        packet[: TCP_AT + 12]: Drop.GARBLED,
        ipv6[: TCP_AT + 8]: Drop.SHORT,
        with_bytes(ipv6, HEADER + 8, b"\xfe\x80"): Drop.FOREIGN,
        with_bytes(ipv6, HEADER + 6, b"\x3a"): Drop.GARBLED,
        with_bytes(ipv6, HEADER, b"\x40"): Drop.GARBLED,
    }
    assert {data: decode_untrusted(data) for data in kinds} == kinds


@given(st.binary(max_size=200))
def test_anything_is_decoded_or_dropped(data: bytes) -> None:
    """It comes from the network."""
    assert isinstance(decode_untrusted(data), Arrived | Report | Drop)


@given(st.integers(0, 2**32))
def test_a_changed_packet_is_never_right(seed: int) -> None:
    """One byte of it, anywhere behind the Ethernet header: the checksum or the piece itself tells."""
    rng = Random(seed)
    sent = of_size(1450, rng.choice(FAMILIES))
    frame = rng.choice([finished(udp(sent, 4)), finished(tcp(sent, (5,))), cut(tcp(sent, SEGMENTS))[2]])
    # What is not looked at, because devices on the way may change it: class and flow of IPv6, and its hop limit.
    first = HEADER + 4 if sent.family is IPV6 else HEADER
    at = rng.choice([at for at in range(first, len(frame)) if sent.family is IPV4 or at != HEADER + 7])
    found = decode_untrusted(with_bytes(frame, at, bytes((frame[at] ^ rng.randrange(1, 256),))))
    assert isinstance(found, Drop) or (isinstance(found, Arrived) and found.right == 0)
