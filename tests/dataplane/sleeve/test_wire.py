"""Notes and reports as bytes, and the limits that belong together."""

from __future__ import annotations

import struct

import pytest

from dataplane.sleeve import wire
from dataplane.sleeve.wire import (
    NOTE_ANSWER,
    NOTE_ASK,
    NOTE_MAX_BYTES,
    NOTE_REPORT,
    Report,
    decode_note_untrusted,
    decode_relayed_untrusted,
    decode_report_untrusted,
    encode_note,
    encode_relayed,
    encode_report,
)
from gossip.errors import ProtocolError
from gossip.names import PeerName


def test_notes_follow_each_other_and_say_what_was_said() -> None:
    data = memoryview(b"....." + encode_note(NOTE_ASK, b"") + encode_note(NOTE_ANSWER, b"x" * NOTE_MAX_BYTES))
    kind, body, position = decode_note_untrusted(data, 5)
    assert (kind, body) == (NOTE_ASK, b"")
    assert decode_note_untrusted(data, position) == (NOTE_ANSWER, b"x" * NOTE_MAX_BYTES, len(data))


def test_a_report_comes_out_as_it_went_in() -> None:
    report = Report(2**32 - 1, 2**64 - 1, 2**63, 7, 2**32 - 1)
    kind, body, _ = decode_note_untrusted(memoryview(encode_report(report)), 0)
    assert kind == NOTE_REPORT
    assert decode_report_untrusted(body) == report
    assert decode_report_untrusted(body + b"later versions say more") == report


@pytest.mark.parametrize("cut", range(1, len(encode_note(NOTE_ASK, b"abc"))))
def test_a_note_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        decode_note_untrusted(memoryview(encode_note(NOTE_ASK, b"abc")[:-cut]), 0)


def test_a_note_that_says_too_much_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_note_untrusted(memoryview(b"\xff\xff\x02" + bytes((NOTE_MAX_BYTES + 1,)) + bytes(200)), 0)


@pytest.mark.parametrize("size", range(wire._REPORT.size))
def test_a_report_that_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        decode_report_untrusted(bytes(size))


def relayed(names: tuple[PeerName, ...], at: int, waits_kib: int, datagram: bytes) -> bytes:
    return encode_relayed(names, at, waits_kib, len(datagram)) + datagram


NAMES = tuple(PeerName(bytes([number]) * 8) for number in range(1, 7))


def test_a_relayed_datagram_comes_out_as_it_went_in_and_the_next_entry_after_it() -> None:
    data = memoryview(b"....." + relayed(NAMES, 5, 70_000, b"x" * 1000) + encode_note(NOTE_ASK, b""))
    found, position = decode_relayed_untrusted(data, 5)
    assert (found.names, found.at, found.waits_kib, bytes(found.datagram)) == (NAMES, 5, 0xFFFF, b"x" * 1000)
    assert decode_note_untrusted(data, position)[0] == NOTE_ASK


@pytest.mark.parametrize("cut", [1, 40, 100, 1000, 1050, 1055])
def test_a_relayed_datagram_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        decode_relayed_untrusted(memoryview(relayed(NAMES, 1, 0, b"x" * 1000)[:-cut]), 0)


@pytest.mark.parametrize(("many", "at"), [(7, 1), (255, 1), (3, 3), (0, 0), (3, 255)])
def test_a_route_that_is_none_is_refused(many: int, at: int) -> None:
    head = struct.pack("<HBBHH", wire.RELAYED, many, at, 0, 0)
    with pytest.raises(ProtocolError):
        decode_relayed_untrusted(memoryview(head + bytes(4000)), 0)


def test_the_largest_relayed_datagram_fits_one_send_with_the_longest_route() -> None:
    head = encode_relayed(NAMES, 1, 0, wire.RELAYED_MAX_BYTES)
    around = wire.HEADER_BYTES + len(head) + wire.TAG_BYTES + wire.LENGTH_BYTES
    assert around + wire.RELAYED_MAX_BYTES == wire.SEND_MAX_BYTES
    assert wire.LENGTH.unpack_from(head)[0] not in (wire.NOTE, *range(wire.FRAME_MAX_BYTES + 1))


def test_a_note_can_never_be_taken_for_a_frame() -> None:
    assert wire.LENGTH.unpack_from(encode_note(NOTE_ASK, b""))[0] > wire.FRAME_MAX_BYTES


def test_the_largest_frame_its_report_and_all_that_is_around_fit_one_send() -> None:
    report = encode_report(Report(0, 0, 0, 0, 0))
    around = wire.HEADER_BYTES + wire.LENGTH_BYTES + len(report) + wire.LENGTH_BYTES + wire.TAG_BYTES
    assert wire.FRAME_MAX_BYTES + around <= wire.SEND_MAX_BYTES


def test_nonces_are_twelve_bytes_and_all_different() -> None:
    counters = [0, 1, 255, 256, 2**32, 2**64 - 1]
    assert len({wire.nonce(each) for each in counters}) == len(counters)
    assert {len(wire.nonce(each)) for each in counters} == {12}
