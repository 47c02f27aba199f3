"""DNS messages: the questions that we are asked and the answers that we know (RFC 1035, 2308, 6891).

Pure; knows nothing of names that exist or of sockets. The one idea: a query that resolvers send is a header, one
question and at most an OPT record, so reading it is a few comparisons, and the bytes of its question are repeated in
the answer as they came, upper and lower case included. Everything else in the additional section is stepped over.

    0     2     4     6     8     10    12
    +-----+-----+-----+-----+-----+-----+------------------+------+-------+----------- - -
    | id  |flags| qd  | an  | ns  | ar  | labels ... 0     | type | class | records
    +-----+-----+-----+-----+-----+-----+------------------+------+-------+----------- - -
    flags: QR 1 | opcode 4 | AA TC RD RA 1 each | Z AD CD 1 each | rcode 4
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gossip.errors import ProtocolError

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16
"""Of RFC 6891: its upper bits stand in the OPT record."""

A: Final = 1
NS: Final = 2
SOA: Final = 6
PTR: Final = 12
AAAA: Final = 28
OPT: Final = 41
ANY: Final = 255
IN: Final = 1

QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
CD: Final = 0x0010
DO: Final = 0x8000
"""In the flags of OPT: the asker understands DNSSEC."""

PLAIN_MAX_BYTES: Final = 512
"""Over UDP without EDNS (RFC 1035, section 4.2.1)."""
UDP_MAX_BYTES: Final = 1232
"""What we send and take over UDP with EDNS: it fits one packet of IPv6's least MTU (the DNS flag day of 2020)."""
TCP_MAX_BYTES: Final = 65_535
QUERY_MAX_BYTES: Final = 4096
"""No honest question is longer: a name of 255 bytes and options. Longer ones are refused unread."""
NAME_MAX_BYTES: Final = 255
ADDITIONAL_MAX: Final = 8

HEADER: Final = struct.Struct("!6H")
_TYPE_CLASS: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")
"""Type, class, TTL and length of the data, after a record's name."""
_POINTER: Final = b"\xc0\x0c"
"""To the question's name, which is at 12 in every message."""
_RESPONSE_OPT: Final = struct.Struct("!BHHBBHH")


@dataclass(frozen=True, slots=True)
class Query:
    """One question, as it was asked."""

    id: int
    flags: int
    question: bytes
    """The section's bytes: name, type and class."""
    name: bytes
    """In lower case, labels with their lengths, the root's empty one last."""
    type: int
    klass: int
    edns_bytes: int | None
    """What the asker takes over UDP; None without EDNS."""
    wants_dnssec: bool = False

    @property
    def recursion_desired(self) -> bool:
        return bool(self.flags & RD)

    def most_bytes(self, tcp: bool) -> int:
        if tcp:
            return TCP_MAX_BYTES
        return PLAIN_MAX_BYTES if self.edns_bytes is None else min(max(self.edns_bytes, PLAIN_MAX_BYTES), UDP_MAX_BYTES)


class BadQueryError(ProtocolError):
    """A message that is no question we can take; `rcode` is what its sender is told, None: nothing at all."""

    def __init__(self, code: str, rcode: int | None, question: bytes = b"") -> None:
        super().__init__(code, code.replace("-", " "))
        self.rcode = rcode
        self.question = question


def parse_query_untrusted(data: bytes) -> Query:
    """Raises `BadQueryError`. What cannot even be told from an answer gets none, so that two servers never talk."""
    if len(data) < HEADER.size:
        raise BadQueryError("too-short", None)
    ident, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        raise BadQueryError("no-query", None)
    if len(data) > QUERY_MAX_BYTES:
        raise BadQueryError("too-long", FORMERR)
    if flags & 0x7800:
        raise BadQueryError("unknown-opcode", NOTIMP)
    if questions != 1 or answers or authorities or additional > ADDITIONAL_MAX:
        raise BadQueryError("not-one-question", FORMERR)
    name_end = _name_end(data, HEADER.size)
    end = name_end + _TYPE_CLASS.size
    if end > len(data):
        raise BadQueryError("cut-off", FORMERR)
    kind, klass = _TYPE_CLASS.unpack_from(data, name_end)
    question = data[HEADER.size : end]
    edns_bytes, wants_dnssec = None, False
    if additional:
        edns_bytes, wants_dnssec, end = _additional(data, end, additional, question)
    if end != len(data):
        raise BadQueryError("bytes-left-over", FORMERR)
    name = data[HEADER.size : name_end].lower()
    return Query(ident, flags, question, name, kind, klass, edns_bytes, wants_dnssec)


def _name_end(data: bytes, at: int) -> int:
    """Of a name without pointers: a question has nothing to point to."""
    start = at
    while at < len(data):
        length = data[at]
        at += 1 + length
        if not length:
            if at - start > NAME_MAX_BYTES:
                break
            return at
        if length > 63 or at - start > NAME_MAX_BYTES:
            break
    raise BadQueryError("bad-name", FORMERR)


def _additional(data: bytes, at: int, count: int, question: bytes) -> tuple[int | None, bool, int]:
    """Size and DNSSEC flag of the OPT record, and where the section ends."""
    size: int | None = None
    dnssec = False
    for _ in range(count):
        start = at
        at = _skip_name(data, at)
        if at + _RECORD.size > len(data):
            raise BadQueryError("cut-off", FORMERR)
        kind, klass, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size + length
        if at > len(data):
            raise BadQueryError("cut-off", FORMERR)
        if kind == OPT:
            if size is not None or data[start] != 0:
                raise BadQueryError("bad-opt", FORMERR)
            if ttl >> 16 & 0xFF:
                raise BadQueryError("unknown-edns", BADVERS, question)
            size, dnssec = klass, bool(ttl & DO)
    return size, dnssec, at


def _skip_name(data: bytes, at: int) -> int:
    """Past a name that may end in a pointer, which is not followed."""
    while at < len(data):
        length = data[at]
        if length & 0xC0 == 0xC0:
            return at + 2
        at += 1 + length
        if not length:
            return at
    raise BadQueryError("cut-off", FORMERR)


# -- answers ---------------------------------------------------------------------------------------


def record(kind: int, ttl_s: int, data: bytes, name: bytes = _POINTER) -> bytes:
    """One record of class IN, by default of the name that is asked for."""
    return name + _RECORD.pack(kind, IN, ttl_s, len(data)) + data


def soa(name: bytes, ttl_s: int, serial: int) -> bytes:
    """The SOA record of a zone of ours, as an answer that says "no" carries it: how long to believe that stands in its
    own TTL and in its last field (RFC 2308, sections 3 and 5)."""
    timers = struct.pack("!5I", serial & 0xFFFFFFFF, 60, 10, 600, ttl_s)
    return record(SOA, ttl_s, name + b"\x0ahostmaster" + name + timers, name)


def respond(
    query: Query, rcode: int, answers: Sequence[bytes] = (), authority: bytes = b"", *, authoritative: bool, most: int
) -> bytes:
    """An answer of at most `most` bytes. Records that do not fit are left out, and TC says so (RFC 2181, section 9)."""
    flags = QR | RA | (query.flags & (RD | CD)) | (AA if authoritative else 0) | (rcode & 0xF)
    opt = b"" if query.edns_bytes is None else opt_record(rcode, query.wants_dnssec)
    room = most - HEADER.size - len(query.question) - len(opt)
    kept = len(answers)
    total = 0
    for number, each in enumerate(answers):
        total += len(each)
        if total > room:
            kept, flags = number, flags | TC
            break
    if authority and (kept < len(answers) or total + len(authority) > room):
        authority = b""
    head = HEADER.pack(query.id, flags, 1, kept, 1 if authority else 0, 1 if opt else 0)
    return b"".join((head, query.question, *answers[:kept], authority, opt))


def opt_record(rcode: int = NOERROR, dnssec: bool = False) -> bytes:
    return _RESPONSE_OPT.pack(0, OPT, UDP_MAX_BYTES, rcode >> 4, 0, DO if dnssec else 0, 0)


def refuse(data: bytes, error: BadQueryError) -> bytes | None:
    """What a malformed query is answered with: a header, and where it was understood that far its question."""
    if error.rcode is None:
        return None
    ident, flags = struct.unpack_from("!HH", data)
    answered = QR | (flags & (0x7800 | RD)) | (error.rcode & 0xF)
    opt = opt_record(error.rcode) if error.rcode == BADVERS else b""
    head = HEADER.pack(ident, answered, 1 if error.question else 0, 0, 0, 1 if opt else 0)
    return head + error.question + opt


# -- questions of ours -----------------------------------------------------------------------------


def ask(ident: int, query: Query) -> bytes:
    """The same question as ours to another server, under another id."""
    edns = b"" if query.edns_bytes is None else opt_record(dnssec=query.wants_dnssec)
    flags = query.flags & (RD | CD | 0x0020)
    return HEADER.pack(ident, flags, 1, 0, 0, 1 if edns else 0) + query.question + edns


def answers_untrusted(data: bytes, ident: int, question: bytes) -> int:
    """The rcode of an answer to that question. Raises `ProtocolError` for whatever is not one."""
    if len(data) < HEADER.size + len(question):
        raise ProtocolError("bad-answer", "shorter than its question")
    got, flags, questions, _, _, _ = HEADER.unpack_from(data)
    if got != ident or not flags & QR or flags & 0x7800 or questions != 1:
        raise ProtocolError("bad-answer", "not an answer to what was asked")
    if data[HEADER.size : HEADER.size + len(question)].lower() != question.lower():
        raise ProtocolError("bad-answer", "another question")
    return int(flags) & 0xF


def pass_on(data: bytes, query: Query, tcp: bool) -> bytes:
    """An answer that has passed `answers_untrusted`, for somebody who asked the same: under that id, with the question
    as it was written there, and cut off where it is too long (RFC 2181, section 9: then TC alone counts)."""
    ident_and_flags = struct.pack("!H", query.id) + data[2:4]
    if len(data) <= query.most_bytes(tcp):
        return ident_and_flags + data[4:12] + query.question + data[12 + len(query.question) :]
    flags = struct.unpack_from("!H", data, 2)[0] | TC
    opt = b"" if query.edns_bytes is None else opt_record(dnssec=query.wants_dnssec)
    return HEADER.pack(query.id, flags, 1, 0, 0, 1 if opt else 0) + query.question + opt


# -- names -----------------------------------------------------------------------------------------


def wire_name(text: str) -> bytes:
    """`web.weft.local` or the same with a final dot. Raises ValueError where that is no name."""
    stripped = text.lower().removesuffix(".")
    labels = [label.encode("ascii") for label in stripped.split(".")] if stripped else []
    if any(not 1 <= len(label) <= 63 for label in labels) or sum(len(label) + 1 for label in labels) >= NAME_MAX_BYTES:
        raise ValueError(f"{text!r} is not a name")
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def text_name(wire: bytes) -> str:
    """With a final dot. What is not printable shows as a question mark."""
    labels = labels_of(wire)
    text = ".".join(label.decode("ascii", errors="replace") for label in labels) + "."
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def labels_of(wire: bytes) -> list[bytes]:
    labels, at = [], 0
    while wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]])
        at += 1 + wire[at]
    return labels
