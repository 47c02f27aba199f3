"""Messages out and in again, and everything else that can come down a link whose other side means harm."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import link
from gossip.documents import BODY_MAX_BYTES, TABLE_NAME_MAX_BYTES
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.wire import (
    ENTRIES_MAX,
    FIRST_NAME,
    LAST_NAME,
    LAST_POSITION,
    MESSAGE_MAX_BYTES,
    NICKNAME_MAX_BYTES,
    TEXT_MAX_BYTES,
    Bye,
    Contested,
    Digest,
    Have,
    Hello,
    Message,
    PageMessage,
    Ping,
    Pong,
    Want,
    decode_untrusted,
    encode,
)
from tests.gossip.actors import page

U64_MAX = 2**64 - 1
LONGEST_TABLE = "t" * TABLE_NAME_MAX_BYTES
u64 = st.integers(0, U64_MAX)
names = st.binary(min_size=8, max_size=8).map(PeerName)
digests = st.binary(min_size=16, max_size=16)
positions = st.tuples(st.text("abc_", max_size=TABLE_NAME_MAX_BYTES), st.integers(0, 65535))
texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=TEXT_MAX_BYTES // 4)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello, st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64), digests, u64, texts, texts
    ),
    st.builds(Ping, u64, digests),
    st.builds(Pong, u64, digests),
    st.builds(PageMessage, st.binary(min_size=1, max_size=300), u64),
    st.builds(Digest, names, names, st.lists(st.tuples(names, digests), max_size=9).map(tuple)),
    st.builds(
        Have,
        names,
        u64,
        positions,
        positions,
        st.lists(
            st.tuples(positions, u64, u64, digests).map(lambda row: (*row[0], *row[1:])),
            max_size=9,
        ).map(tuple),
    ),
    st.builds(Want, names, st.lists(positions, max_size=9).map(tuple)),
    st.builds(Bye, st.text("abc-", max_size=32), texts),
    st.builds(Contested, texts),
)


def hello(nickname: str = "h1", observed: str = "10.9.0.1:6783") -> Hello:
    return Hello(bytes(32), bytes(64), bytes(16), 1, nickname, observed)


def refusal(data: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        decode_untrusted(data)
    return error.value.reason


@given(messages)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode_untrusted(encode(message)) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    """Nothing but `ProtocolError`; and what decodes after all is a message that says what the bytes say."""
    try:
        message = decode_untrusted(data)
    except ProtocolError as error:
        assert error.reason == "bad-message"
    else:
        assert decode_untrusted(encode(message)) == message


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), U64_MAX) | st.floats() | st.text(max_size=40) | st.binary(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=300)
@given(st.integers(0, 9), st.lists(anything, max_size=7))
def test_well_formed_nonsense_is_refused(kind: int, fields: list[Any]) -> None:
    """Any kind of message with any fields at all: decoded to what it says, or a `ProtocolError`."""
    data = msgpack.packb([kind, *fields])
    try:
        message = decode_untrusted(data)
    except ProtocolError as error:
        assert error.reason in ("bad-message", "too-long")
    else:
        assert decode_untrusted(encode(message)) == message


@settings(max_examples=300)
@given(messages, st.data())
def test_one_wrong_field_is_refused_or_harmless(message: Message, data: st.DataObject) -> None:
    """A message in which one field is something else never raises anything but `ProtocolError`."""
    fields = list(msgpack.unpackb(encode(message), use_list=False))
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(anything)
    try:
        decode_untrusted(msgpack.packb(fields))
    except ProtocolError as error:
        assert error.reason in ("bad-message", "too-long")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\x93\x02",
        b"\xc1",
        encode(Ping(1, bytes(16))) + b"\x00",
        b"\x91" * 2000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x92\x02\xc7\x00\xff",
        b"\x92\x02\xd6\xff\x00\x00\x00\x00",
        msgpack.packb([True, 1, bytes(16)]),
        msgpack.packb([2.0, 1, bytes(16)]),
        msgpack.packb([99]),
        msgpack.packb([-1]),
        msgpack.packb({"kind": 2}),
    ],
)
def test_what_is_no_message_at_all_is_refused(data: bytes) -> None:
    """Empty, cut short, with a tail, nested deep, announcing gigabytes, extension types, kinds that are none."""
    assert refusal(data) == "bad-message"


def test_a_message_may_be_so_long_and_no_longer() -> None:
    """Before anything is decoded; and what a link carries is what a message may have."""
    assert refusal(bytes(MESSAGE_MAX_BYTES + 1)) == "too-long"
    assert refusal(bytes(MESSAGE_MAX_BYTES)) == "bad-message"
    assert MESSAGE_MAX_BYTES == link.MESSAGE_MAX_BYTES


# Every limit, from both sides


def fields_of(message: Message) -> list[Any]:
    fields: list[Any] = msgpack.unpackb(encode(message), use_list=True)
    return fields


HAVE_ROW = (LONGEST_TABLE, 65535, U64_MAX, U64_MAX, bytes(16))


@pytest.mark.parametrize(
    "message",
    [
        Digest(FIRST_NAME, LAST_NAME, ((LAST_NAME, bytes(16)),) * ENTRIES_MAX),
        Have(LAST_NAME, U64_MAX, (LONGEST_TABLE, 65535), (LONGEST_TABLE, 65535), (HAVE_ROW,) * ENTRIES_MAX),
        Want(LAST_NAME, ((LONGEST_TABLE, 65535),) * ENTRIES_MAX),
        PageMessage(page(table=LONGEST_TABLE, body=bytes(BODY_MAX_BYTES)).raw, U64_MAX),
        Bye("r" * 32, "t" * TEXT_MAX_BYTES),
        Contested("t" * TEXT_MAX_BYTES),
    ],
)
def test_the_longest_lists_fit_into_a_message(message: Message) -> None:
    """With the longest table names and the largest numbers, which a hostile owner is free to choose."""
    data = encode(message)
    assert len(data) <= MESSAGE_MAX_BYTES
    assert decode_untrusted(data) == message


@pytest.mark.parametrize("index", [3, 2, 5])
def test_a_list_beyond_its_limit_is_refused(index: int) -> None:
    lists: dict[int, tuple[Message, object]] = {
        3: (Digest(FIRST_NAME, LAST_NAME, ()), [bytes(8), bytes(16)]),
        2: (Want(LAST_NAME, ()), ["t", 1]),
        5: (Have(LAST_NAME, 0, ("", 0), LAST_POSITION, ()), ["t", 1, 1, 1, bytes(16)]),
    }
    message, row = lists[index]
    fields = fields_of(message)
    fields[index] = [row] * ENTRIES_MAX
    decode_untrusted(msgpack.packb(fields))
    fields[index] = [row] * (ENTRIES_MAX + 1)
    assert refusal(msgpack.packb(fields)) == "bad-message"


@pytest.mark.parametrize(
    ("message", "index", "value"),
    [
        (hello(), 1, bytes(31)),
        (hello(), 1, bytes(33)),
        (hello(), 2, bytes(63)),
        (hello(), 2, bytes(65)),
        (hello(), 3, bytes(15)),
        (hello(), 4, -1),
        (hello(), 4, True),
        (hello(), 5, "n" * (NICKNAME_MAX_BYTES + 1)),
        (hello(), 5, b"bytes"),
        (hello(), 5, "two\nlines"),
        (hello(), 5, "\x1b[2J"),
        (hello(), 6, "o" * (TEXT_MAX_BYTES + 1)),
        (Ping(1, bytes(16)), 2, bytes(15)),
        (Pong(1, bytes(16)), 2, bytes(17)),
        (Pong(1, bytes(16)), 1, None),
        (PageMessage(b"x", 0), 1, b""),
        (PageMessage(b"x", 0), 1, bytes(BODY_MAX_BYTES + 257)),
        (PageMessage(b"x", 0), 2, -1),
        (PageMessage(b"x", 0), 2, 0.5),
        (Digest(FIRST_NAME, LAST_NAME, ()), 1, bytes(7)),
        (Digest(FIRST_NAME, LAST_NAME, ()), 3, [[bytes(8)]]),
        (Digest(FIRST_NAME, LAST_NAME, ()), 3, [bytes(8)]),
        (Want(LAST_NAME, ()), 2, [["t" * (TABLE_NAME_MAX_BYTES + 1), 0]]),
        (Want(LAST_NAME, ()), 2, [["t", 65536]]),
        (Want(LAST_NAME, ()), 2, ["t"]),
        (Have(LAST_NAME, 0, ("", 0), LAST_POSITION, ()), 3, ["", 0, 0]),
        (Bye("r", "t"), 1, "r" * 33),
        (Bye("r", "t"), 2, "t\n"),
        (Contested("t"), 1, "t" * (TEXT_MAX_BYTES + 1)),
        (Contested("t"), 1, "\x1b[2J"),
    ],
)
def test_a_field_beyond_its_limits_is_refused(message: Message, index: int, value: object) -> None:
    """Lengths, signs, types and characters that a terminal would obey."""
    fields = fields_of(message)
    fields[index] = value
    assert refusal(msgpack.packb(fields)) == "bad-message"


@pytest.mark.parametrize("message", [hello(), Ping(1, bytes(16)), Want(LAST_NAME, ()), Bye("r", "t"), Contested("t")])
def test_fields_missing_or_too_many_are_refused(message: Message) -> None:
    fields = fields_of(message)
    assert refusal(msgpack.packb(fields[:-1])) == "bad-message"
    assert refusal(msgpack.packb([*fields, 0])) == "bad-message"


@pytest.mark.parametrize("character", ["ü", "日", "\N{SPIDER WEB}"])
def test_a_nickname_of_64_characters_survives_a_hello(character: str) -> None:
    """Whatever the alphabet: four bytes each is the most that UTF-8 takes."""
    nickname = character * 64
    decoded = decode_untrusted(encode(hello(nickname)))
    assert isinstance(decoded, Hello)
    assert decoded.nickname == nickname
