"""What a host says of itself and of its links, and everything else that a signed page may hold instead."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.documents import BODY_MAX_BYTES
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.node import LINKS_HARD_MAX
from gossip.peers import (
    ADDRESS_MAX,
    ADDRESSES_MAX,
    ATTRIBUTE_NAME_MAX,
    ATTRIBUTES_MAX,
    AWAY,
    GONE,
    LINKS_MAX,
    LIVE,
    PeerRecord,
    decode_links_untrusted,
    decode_peer_untrusted,
    encode_links,
    encode_peer,
    split_address,
    with_port,
)
from tests.gossip.actors import record

printable = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=16)
addresses = st.builds("{}:{}".format, st.sampled_from(["10.0.0.1", "[fd00::1]", "host.example"]), st.integers(1, 65535))
records = st.builds(
    PeerRecord,
    printable,
    st.binary(min_size=16, max_size=16),
    st.sampled_from([LIVE, AWAY, GONE]),
    printable,
    st.lists(addresses, max_size=ADDRESSES_MAX).map(tuple),
    st.dictionaries(printable, st.integers(-(2**63), 2**64 - 1) | printable | st.booleans() | st.binary(max_size=256)),
)


def refusal(body: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        decode_peer_untrusted(body)
    return error.value.reason


@given(records)
def test_a_record_comes_out_as_it_went_in(said: PeerRecord) -> None:
    assert decode_peer_untrusted(encode_peer(said)) == said


def test_the_largest_record_fits_on_one_page() -> None:
    """All addresses and attributes at their limits and a nickname of 64 characters of any alphabet."""
    said = record(
        1,
        nickname="\N{SPIDER WEB}" * 64,
        addresses=("[" + "f" * (ADDRESS_MAX - 7) + "]:6783",) * ADDRESSES_MAX,
        attributes={f"attribute {number}".ljust(20): 2**64 - 1 for number in range(ATTRIBUTES_MAX)},
    )
    body = encode_peer(said)
    assert len(body) <= BODY_MAX_BYTES
    assert decode_peer_untrusted(body) == said


@given(st.lists(st.binary(min_size=8, max_size=8).map(PeerName), max_size=20))
def test_links_come_out_as_they_went_in(names: list[PeerName]) -> None:
    assert decode_links_untrusted(encode_links(names)) == tuple(names)


def test_as_many_links_as_a_host_may_have_fit_on_one_page() -> None:
    names = [PeerName(number.to_bytes(8, "big")) for number in range(LINKS_MAX + 1)]
    body = encode_links(names)
    assert LINKS_MAX >= LINKS_HARD_MAX
    assert len(body) <= BODY_MAX_BYTES
    assert decode_links_untrusted(body) == tuple(names[:LINKS_MAX])


def test_a_links_page_that_is_used_no_more_claims_nothing() -> None:
    assert decode_links_untrusted(b"") == ()


@given(st.binary(max_size=200))
def test_garbage_is_refused(body: bytes) -> None:
    """Nothing but `ProtocolError`, whatever a member signs."""
    for decode in (decode_peer_untrusted, decode_links_untrusted):
        try:
            decode(body)
        except ProtocolError as error:
            assert error.reason == "bad-document"


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner),
    max_leaves=20,
)


@given(st.integers(0, 5), anything)
def test_one_wrong_field_is_refused_or_harmless(index: int, value: object) -> None:
    """What comes out has the types that it promises, or it does not come out."""
    fields = msgpack.unpackb(encode_peer(record(1)), use_list=True)
    fields[index] = value
    try:
        said = decode_peer_untrusted(msgpack.packb(fields))
    except ProtocolError as error:
        assert error.reason == "bad-document"
    else:
        assert isinstance(said.nickname, str) and isinstance(said.version, str)
        assert said.state in (LIVE, AWAY, GONE)
        assert all(split_address(each) for each in said.addresses)
        assert all(isinstance(name, str) for name in said.attributes)
        assert all(isinstance(each, int | str | bytes) for each in said.attributes.values())


def fields_with(index: int, value: object) -> bytes:
    fields = msgpack.unpackb(encode_peer(record(1)), use_list=True)
    fields[index] = value
    body: bytes = msgpack.packb(fields)
    return body


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, "n" * 257),
        (0, "two\nlines"),
        (0, "\x1b[31m"),
        (1, bytes(15)),
        (2, "dead"),
        (3, "v" * 65),
        (4, ["10.0.0.1:6783"] * (ADDRESSES_MAX + 1)),
        (4, ["10.0.0.1"]),
        (4, ["10.0.0.1:0"]),
        (4, ["h" * ADDRESS_MAX + ":6783"]),
        (4, ["10.0.0.1:6783\n"]),
        (4, "10.0.0.1:6783"),
        (5, {f"{number}": 1 for number in range(ATTRIBUTES_MAX + 1)}),
        (5, {"n" * (ATTRIBUTE_NAME_MAX + 1): 1}),
        (5, {b"bytes": 1}),
        (5, {"\n": 1}),
        (5, {"mtu": 1.5}),
        (5, {"mtu": None}),
        (5, {"mtu": [1450]}),
        (5, []),
    ],
)
def test_a_record_beyond_the_limits_is_refused(index: int, value: object) -> None:
    assert refusal(fields_with(index, value)) == "bad-document"


def test_a_record_of_a_later_release_may_say_more() -> None:
    """Fields are added at the end, and those who do not know them read on."""
    fields = [*msgpack.unpackb(encode_peer(record(1)), use_list=True), "news"]
    assert decode_peer_untrusted(msgpack.packb(fields)) == record(1)
    assert refusal(msgpack.packb(fields[:5])) == "bad-document"


@pytest.mark.parametrize("body", [msgpack.packb([bytes(7)]), msgpack.packb(["a" * 8]), msgpack.packb(b"x"), b"\x91"])
def test_links_that_are_no_names_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_links_untrusted(body)


def test_a_host_claims_so_many_links_and_no_more() -> None:
    with pytest.raises(ProtocolError):
        decode_links_untrusted(msgpack.packb([bytes(8)] * (LINKS_MAX + 1)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:6783", ("10.0.0.1", 6783)),
        ("[fd00::1]:6783", ("fd00::1", 6783)),
        ("host:1", ("host", 1)),
        ("host:65535", ("host", 65535)),
        ("host", None),
        ("host:", None),
        (":6783", None),
        ("[]:6783", None),
        ("fd00::1:6783", None),
        ("host:0", None),
        ("host:65536", None),
        ("host:-1", None),
        ("host:+1", None),
        ("host:٣", None),
        ("", None),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, expected: object) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("host", "host:6783"),
        ("host:7000", "host:7000"),
        ("10.0.0.1", "10.0.0.1:6783"),
        ("fd00::1", "[fd00::1]:6783"),
        ("[fd00::1]", "[fd00::1]:6783"),
        ("[fd00::1]:7000", "[fd00::1]:7000"),
    ],
)
def test_a_target_without_a_port_gets_ours(target: str, expected: str) -> None:
    assert with_port(target, 6783) == expected


def test_attributes_cannot_be_changed_by_readers() -> None:
    """A record is a value, shared by everybody who looks at it."""
    said: Any = decode_peer_untrusted(encode_peer(record(1, attributes={"mtu": 1450})))
    with pytest.raises(TypeError):
        said.attributes["mtu"] = 9000
