"""What daemon and worker say to each other: there and back, in any portions, and garbage refused."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.control import (
    MESSAGE_MAX_BYTES,
    OFFLOADS,
    UP,
    Complete,
    Configure,
    Decoder,
    Forget,
    Macs,
    Message,
    Peer,
    PeerStatus,
    Refused,
    Status,
    Stop,
    encode,
)
from gossip.names import PeerName

NAME = PeerName(b"\xff\0name\x80!")
STATUS = PeerStatus(NAME, UP, "10.9.0.2:6783", True, "aes-256-gcm", 12.5, None, 0.01, 64, 0, OFFLOADS)
MESSAGES: list[Message] = [
    Configure("1.0", NAME, bytes(32), (b"s" * 32, b"o" * 32), "weft-tap", ("10.9.0.1", "::1"), 6783, OFFLOADS, 2**63),
    Configure("1.0", NAME, bytes(32), (), "weft-tap", (), 6783),
    Peer(NAME, b"k" * 32, (("10.9.0.2", 6783), ("fe80::1%3", 1)), (b"\x02\0\0\0\0\x01",), True),
    Peer(NAME, b"k" * 32, (), (), False),
    Macs(NAME, (b"\x02\0\0\0\0\x02",), ()),
    Forget(NAME),
    Complete(),
    Stop(),
    Refused("port-in-use", "UDP port 6783 is in use"),
    Status(17),
    Status(17, (STATUS, STATUS), {"bad-seal": 2**40, "replayed": 1}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert list(Decoder().feed(encode(message))) == [message]


@given(st.lists(st.integers(1, 200), max_size=50))
def test_messages_come_out_whole_in_whatever_portions_they_come(portions: list[int]) -> None:
    data = b"".join(map(encode, MESSAGES))
    decoder, found, position = Decoder(), [], 0
    for size in [*portions, len(data)]:
        found += decoder.feed(data[position : position + size])
        position += size
    assert found == MESSAGES


def test_a_peer_with_a_hundred_thousand_endpoints_fits() -> None:
    peer = Peer(NAME, bytes(32), (), tuple(number.to_bytes(6, "big") for number in range(100_000)), True)
    assert list(Decoder().feed(encode(peer))) == [peer]


def test_a_message_that_would_never_end_is_refused_at_its_head() -> None:
    with pytest.raises(ValueError, match="bytes"):
        list(Decoder().feed(struct.pack("!I", MESSAGE_MAX_BYTES + 1)))


@pytest.mark.parametrize(
    "body",
    [[], ["unknown"], ["stop", 1], ["forget"], ["status", 1], ["status", 1, [[1]], {}], 7, None, "stop"],
)
def test_a_message_of_another_language_is_refused(body: object) -> None:
    packed = msgpack.packb(body)
    with pytest.raises(ValueError, match="cannot be read"):
        list(Decoder().feed(struct.pack("!I", len(packed)) + packed))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more_but_never_raises_anything_else(body: bytes) -> None:
    for data in (body, struct.pack("!I", len(body)) + body):
        try:
            list(Decoder().feed(data))
        except ValueError:
            pass
