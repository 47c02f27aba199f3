"""The messages that two neighbours exchange inside a link, and their only decoder.

A message is a msgpack array: a small integer that says which one, then its fields in the order of the classes below.
Every limit is passed to the decoder and checked again for each field. Nothing here knows what a message leads to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from gossip.documents import BODY_MAX_BYTES, TABLE_NAME_MAX_BYTES
from gossip.errors import ProtocolError
from gossip.names import PEER_NAME_BYTES, PeerName

MESSAGE_MAX_BYTES = 16_384
ENTRIES_MAX = 192
"""Digest, have and want lists are cut into messages of at most this many entries: the largest entry, a stamp with the
longest table name, takes 74 bytes."""
NICKNAME_MAX_BYTES = 256
TEXT_MAX_BYTES = 256
INSTANCE_BYTES = 16
DIGEST_BYTES = 16
_PAGE_RAW_MAX_BYTES = BODY_MAX_BYTES + 256
_U64_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Hello:
    """First in each direction: who is speaking. The signature covers the role and the link's handshake hash."""

    public_key: bytes
    signature: bytes
    instance: bytes
    """16 random bytes of this run of the daemon: tells a restarted peer from a second one with the same key."""
    sequence: int
    """Rises with every link of this instance: of two links dialled by the same side, the later one counts."""
    nickname: str
    observed: str
    """The address that the receiver of this message has, as seen by its sender."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A heartbeat with the digest over everything that the sender holds, so that a difference is seen in one beat."""

    sequence: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    sequence: int
    root: bytes


@dataclass(frozen=True, slots=True)
class PageMessage:
    """One signed page and how long its owner has been out of the sender's reach, in seconds (0: in reach)."""

    raw: bytes
    age_s: int


@dataclass(frozen=True, slots=True)
class Digest:
    """Digests of every owner the sender knows with `first` <= name <= `last`, in order of names. Owners that differ are
    answered with a `Have`, owners missing here with their pages."""

    first: PeerName
    last: PeerName
    owners: tuple[tuple[PeerName, bytes], ...]


@dataclass(frozen=True, slots=True)
class Have:
    """Stamps of one owner's pages from position `first` to `last` (table, index), in order; answered with pages that
    are newer and a `Want` of those that are older or missing."""

    owner: PeerName
    age_s: int
    first: tuple[str, int]
    last: tuple[str, int]
    pages: tuple[tuple[str, int, int, int, bytes], ...]
    """Table, index, epoch, version, digest."""


@dataclass(frozen=True, slots=True)
class Want:
    owner: PeerName
    pages: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Bye:
    """The last message on a link: a short code and a sentence for people."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Contested:
    """To a neighbour: another live host has come with its key, and was refused."""

    text: str


Message = Hello | Ping | Pong | PageMessage | Digest | Have | Want | Bye | Contested

FIRST_NAME = PeerName(bytes(PEER_NAME_BYTES))
LAST_NAME = PeerName(b"\xff" * PEER_NAME_BYTES)
FIRST_POSITION = ("", 0)
LAST_POSITION = ("\x7f", 65535)


def encode(message: Message) -> bytes:
    """The bytes of a message, at most `MESSAGE_MAX_BYTES`."""
    match message:
        case Hello(key, signature, instance, sequence, nickname, observed):
            fields: list[Any] = [1, key, signature, instance, sequence, nickname, observed]
        case Ping(sequence, root):
            fields = [2, sequence, root]
        case Pong(sequence, root):
            fields = [3, sequence, root]
        case PageMessage(raw, age_s):
            fields = [4, raw, age_s]
        case Digest(first, last, owners):
            fields = [5, first, last, owners]
        case Have(owner, age_s, low, high, stamps):
            fields = [6, owner, age_s, low, high, stamps]
        case Want(owner, pages):
            fields = [7, owner, pages]
        case Bye(reason, text):
            fields = [8, reason, text]
        case Contested(text):
            fields = [9, text]
    data: bytes = msgpack.packb(fields, use_bin_type=True)
    assert len(data) <= MESSAGE_MAX_BYTES, f"message {fields[0]} of {len(data)} bytes"
    return data


def decode_untrusted(data: bytes) -> Message:
    """The message in `data`. Raises `ProtocolError` for anything that no honest peer sends."""
    if len(data) > MESSAGE_MAX_BYTES:
        raise ProtocolError("too-long", f"message of {len(data)} bytes")
    try:
        fields = msgpack.unpackb(
            data, raw=False, use_list=False, strict_map_key=True, max_str_len=TEXT_MAX_BYTES,
            max_bin_len=_PAGE_RAW_MAX_BYTES, max_array_len=ENTRIES_MAX, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("bad-message", f"message cannot be decoded: {error}") from None
    if not isinstance(fields, tuple) or not fields or fields[0].__class__ is not int:
        raise ProtocolError("bad-message", "message is not an array that begins with its kind")
    decoder = _DECODERS.get(fields[0])
    if decoder is None:
        raise ProtocolError("bad-message", f"message of unknown kind {fields[0]}")
    try:
        return decoder(*fields[1:])
    except (TypeError, ValueError) as error:
        raise ProtocolError("bad-message", f"message of kind {fields[0]}: {error}") from None


def _bytes(value: Any, low: int, high: int) -> bytes:
    if value.__class__ is not bytes or not low <= len(value) <= high:
        raise ValueError(f"expected {low} to {high} bytes")
    return bytes(value)


def _text(value: Any, limit: int) -> str:
    if value.__class__ is not str or len(value.encode("utf-8", "replace")) > limit or not value.isprintable():
        raise ValueError(f"expected a printable text of at most {limit} bytes")
    return str(value)


def _integer(value: Any, high: int = _U64_MAX) -> int:
    if value.__class__ is not int or not 0 <= value <= high:
        raise ValueError(f"expected an integer from 0 to {high}")
    return int(value)


def _name(value: Any) -> PeerName:
    return PeerName(_bytes(value, PEER_NAME_BYTES, PEER_NAME_BYTES))


def _position(value: Any) -> tuple[str, int]:
    if value.__class__ is not tuple or len(value) != 2:
        raise ValueError("expected a table and an index")
    table, index = value
    if table.__class__ is not str or len(table) > TABLE_NAME_MAX_BYTES:
        raise ValueError("expected a table name")
    return (table, _integer(index, 65535))


def _sequence(value: Any) -> tuple[Any, ...]:
    if value.__class__ is not tuple:
        raise ValueError("expected a list")
    return tuple(value)


def _decode_hello(key: Any, signature: Any, instance: Any, sequence: Any, nickname: Any, observed: Any) -> Message:
    return Hello(
        _bytes(key, 32, 32), _bytes(signature, 64, 64), _bytes(instance, INSTANCE_BYTES, INSTANCE_BYTES),
        _integer(sequence), _text(nickname, NICKNAME_MAX_BYTES), _text(observed, TEXT_MAX_BYTES),
    )  # fmt: skip


def _decode_digest(first: Any, last: Any, owners: Any) -> Message:
    rows = tuple((_name(owner), _bytes(digest, DIGEST_BYTES, DIGEST_BYTES)) for owner, digest in _sequence(owners))
    return Digest(_name(first), _name(last), rows)


def _decode_have(owner: Any, age_s: Any, first: Any, last: Any, stamps: Any) -> Message:
    rows = tuple(
        (*_position((table, index)), _integer(epoch), _integer(version), _bytes(digest, DIGEST_BYTES, DIGEST_BYTES))
        for table, index, epoch, version, digest in _sequence(stamps)
    )
    return Have(_name(owner), _integer(age_s), _position(first), _position(last), rows)


_DECODERS: dict[int, Callable[..., Message]] = {
    1: _decode_hello,
    2: lambda sequence, root: Ping(_integer(sequence), _bytes(root, DIGEST_BYTES, DIGEST_BYTES)),
    3: lambda sequence, root: Pong(_integer(sequence), _bytes(root, DIGEST_BYTES, DIGEST_BYTES)),
    4: lambda raw, age_s: PageMessage(_bytes(raw, 1, _PAGE_RAW_MAX_BYTES), _integer(age_s)),
    5: _decode_digest,
    6: _decode_have,
    7: lambda owner, pages: Want(_name(owner), tuple(_position(page) for page in _sequence(pages))),
    8: lambda reason, text: Bye(_text(reason, 32), _text(text, TEXT_MAX_BYTES)),
    9: lambda text: Contested(_text(text, TEXT_MAX_BYTES)),
}
