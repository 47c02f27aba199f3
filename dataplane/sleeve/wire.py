"""What travels over UDP between two workers: datagrams, records, and the entries in a record.

Lays out bytes; knows no keys, no sockets and no policy. The one idea: a *record* is sealed once, whatever it holds, and
goes out as a number of datagrams that are all of one size but for the last; its counter is the sequence number of its
first datagram, so that one number orders records, tells lost datagrams, and is the nonce of the seal.

A burst: the header is on the first datagram only. It costs nothing per datagram, and arrives whole or not at all.

    0        1          2          4                8                               16
    +--------+----------+----------+----------------+-------------------------------+-------- - -
    | 4      | datagrams| last: u16| receiver's     | counter (u64)                 | sealed
    | (u8)   | (u8)     |          | index (u32)    |                               |
    +--------+----------+----------+----------------+-------------------------------+-------- - -

`last`: bytes of the last datagram, always fewer than of the others where there are others, so that a receiving kernel
that joins equal datagrams (UDP_GRO) joins a burst with the next one only where its last datagram was lost.

Pieces: the header is on each datagram, and `parity` of them may be lost. All pieces are equally long.

    0        1          2        3        4                8                               16
    +--------+----------+--------+--------+----------------+-------------------------------+-------- - -
    | 5      | this     | data   | parity | receiver's     | counter (u64)                 | piece
    | (u8)   | piece    | pieces | pieces | index (u32)    |                               |
    +--------+----------+--------+--------+----------------+-------------------------------+-------- - -

The seal (AES-256-GCM or ChaCha20-Poly1305, 16 bytes of tag at the end) covers the header of the first datagram as
associated data; its nonce is four zero bytes and the counter. Without a secret nothing is encrypted, and the tag is
that of no text with all before it as associated data: it proves that the parts of a record belong together.
Numbers are big-endian, but in a record's entries, which are laid out for the kernel's side of the worker:

    0           2                                        what the length says
    +-----------+--------------------------------- - -   10 .. 65,430: virtio_net_hdr (10 bytes) and an Ethernet frame
    | length    | ...                                    65,535:       a note: kind (u8), size (u8), body
    +-----------+--------------------------------- - -   65,534:       a datagram for somebody else, to be passed on
                                                         0:            padding: nothing more in this record

A datagram that travels by a route has all names on it, from the first host to the last. `at` is the number of the one
that the record around it goes to, `waits` how many KiB stood before it in the queues of those who passed it on:

    0           2        3        4           6            8                  8 + 8n
    +-----------+--------+--------+-----------+------------+-------------- - -+---------- - -
    | 65,534    | n (u8) | at(u8) | size: u16 | waits: u16 | n names          | datagram
    +-----------+--------+--------+-----------+------------+-------------- - -+---------- - -

Types 1 to 3 are the handshake's (`handshake`).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from gossip.errors import ProtocolError
from gossip.names import PEER_NAME_BYTES, PeerName

BURST: Final = 4
PIECES: Final = 5
HEADER_BYTES: Final = 16
TAG_BYTES: Final = 16
BURST_HEADER: Final = struct.Struct("!BBHIQ")
PIECE_HEADER: Final = struct.Struct("!BBBBIQ")
LENGTH: Final = struct.Struct("<H")
LENGTH_BYTES: Final = 2
VNET_BYTES: Final = 10
ETHERNET_BYTES: Final = 14
FRAME_MIN_BYTES: Final = VNET_BYTES + ETHERNET_BYTES
FRAME_MAX_BYTES: Final = 65_430
"""With its virtio header. Leaves room for a record's header, length and tag within one send of 65,507 bytes."""
SEND_MAX_BYTES: Final = 65_507
"""Payload of one UDP datagram over IPv4, and so of one UDP_SEGMENT send."""
DATAGRAMS_MAX: Final = 64
"""In one record: what UDP_SEGMENT takes on every kernel that has it (UDP_MAX_SEGMENTS was 64 before Linux 6.0)."""

NOTE: Final = 0xFFFF
_NOTE_HEAD: Final = struct.Struct("<HBB")
NOTE_REPORT: Final = 1
NOTE_ASK: Final = 2
"""Answer with NOTE_ANSWER and the same body."""
NOTE_ANSWER: Final = 3
NOTE_PROBE: Final = 4
"""The only entry of its record, which may come another way than those with frames: answer with NOTE_PROOF, there."""
NOTE_PROOF: Final = 5
"""What a probe said, and the address that it came from (zeros where that was a route)."""
NOTE_CALL: Final = 6
"""Addresses at which others see us: send a probe to each, as we do to yours, and what stands between lets them in."""
NOTE_MAX_BYTES: Final = 64
_REPORT: Final = struct.Struct("!IQQQII")

RELAYED: Final = 0xFFFE
_RELAYED_HEAD: Final = struct.Struct("<HBBHH")
_WAITS_MAX: Final = 0xFFFF
RELAYED_NAMES_MAX: Final = 6
RELAYED_MAX_BYTES: Final = (
    SEND_MAX_BYTES - HEADER_BYTES - _RELAYED_HEAD.size - RELAYED_NAMES_MAX * PEER_NAME_BYTES - TAG_BYTES - LENGTH_BYTES
)
"""A datagram that fits whatever its route is, in a record of its own."""


class Report(NamedTuple):
    """What arrived, from the one who receives to the one who sends."""

    session: int
    """The receiver's index in the records that this is about."""
    seen: int
    """One more than the highest datagram number seen."""
    received: int
    """How many datagrams below it arrived."""
    recovered: int
    """How many records parity saved."""
    backlog_bytes: int
    """What waits in the receiver's socket: it cannot keep up."""
    forged: int = 0
    """How many records whose seal did not open came from the sender's address, modulo 2**32: somebody else speaks from
    there, and his datagrams come between those of bursts."""


def encode_note(kind: int, body: bytes) -> bytes:
    assert len(body) <= NOTE_MAX_BYTES
    return _NOTE_HEAD.pack(NOTE, kind, len(body)) + body


def encode_report(report: Report) -> bytes:
    return encode_note(NOTE_REPORT, _REPORT.pack(*report))


def decode_note_untrusted(data: memoryview, position: int) -> tuple[int, bytes, int]:
    """The note at `position`: its kind, its body, and where the next entry begins."""
    if position + _NOTE_HEAD.size > len(data):
        raise ProtocolError("bad-record", "a note is cut short")
    _, kind, size = _NOTE_HEAD.unpack_from(data, position)
    end = position + _NOTE_HEAD.size + size
    if size > NOTE_MAX_BYTES or end > len(data):
        raise ProtocolError("bad-record", "a note is longer than its record")
    return kind, bytes(data[end - size : end]), end


def is_search(data: memoryview) -> bool:
    """Whether an opened record only looks for a way: it tells nothing of where frames should go, nor that any do."""
    return (
        len(data) >= HEADER_BYTES + _NOTE_HEAD.size
        and LENGTH.unpack_from(data, HEADER_BYTES)[0] == NOTE
        and data[HEADER_BYTES + LENGTH_BYTES] in (NOTE_PROBE, NOTE_PROOF, NOTE_CALL)
    )


class Relayed(NamedTuple):
    """A datagram that goes by a route."""

    names: tuple[PeerName, ...]
    at: int
    """The number of the one that the record around it goes to."""
    waits_kib: int
    """What stood before it in the queues so far."""
    datagram: memoryview


def encode_relayed(names: tuple[PeerName, ...], at: int, waits_kib: int, size: int) -> bytes:
    """What stands in front of a datagram of `size` bytes."""
    assert size <= RELAYED_MAX_BYTES and len(names) <= RELAYED_NAMES_MAX
    return _RELAYED_HEAD.pack(RELAYED, len(names), at, size, min(waits_kib, _WAITS_MAX)) + b"".join(names)


def decode_relayed_untrusted(data: memoryview, position: int) -> tuple[Relayed, int]:
    """The entry at `position`, and where the next one begins."""
    if position + _RELAYED_HEAD.size > len(data):
        raise ProtocolError("bad-record", "a relayed datagram is cut short")
    _, many, at, size, waits_kib = _RELAYED_HEAD.unpack_from(data, position)
    start = position + _RELAYED_HEAD.size
    begin = start + many * PEER_NAME_BYTES
    if many > RELAYED_NAMES_MAX or at >= many or begin + size > len(data):
        raise ProtocolError("bad-record", "a relayed datagram is longer than its record, or its route is none")
    names = (PeerName(bytes(data[each : each + PEER_NAME_BYTES])) for each in range(start, begin, PEER_NAME_BYTES))
    return Relayed(tuple(names), at, waits_kib, data[begin : begin + size]), begin + size


def decode_report_untrusted(body: bytes) -> Report:
    if len(body) < _REPORT.size:
        raise ProtocolError("bad-record", "a report is cut short")
    return Report(*_REPORT.unpack_from(body))


def nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")
