"""Docker's answers taken apart: however their bytes arrive, and whatever bytes they are."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import ProtocolError
from mesh import dockerwire
from mesh.dockerwire import Container, Events, Response

ID = "5bd6563c6d8a584236bcda4a90944e6f75dd2699eca35be01dc1b2f8f2913c09"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nWeft\r\nB;name=value\r\n joins two \r\n6\r\nchunks\r\n0\r\nTrailer: x\r\n\r\n"
)
LONG = b"HTTP/1.1 404 Not Found\r\nContent-Length: 38\r\n\r\n" + b'{"message":"No such container: nope"}\n'
TO_THE_END = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nuntil it ends"
EVENT = json.dumps({"Type": "container", "Action": "start", "Actor": {"ID": ID, "Attributes": {}}, "id": "x"}).encode()


def read(data: bytes, cuts: list[int]) -> tuple[int | None, bytes]:
    """Status and body of a response that arrives in pieces; then the connection ends."""
    response, body = Response(), b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        body += response.feed_untrusted(data[start:end])
    response.finish_untrusted()
    assert response.ended
    return response.status, body


@given(st.sampled_from([CHUNKED, LONG, TO_THE_END]), st.lists(st.integers(0, 400), max_size=12))
def test_a_response_is_the_same_however_it_arrives(data: bytes, cuts: list[int]) -> None:
    """Chunks, a length, or the end of the connection say where it ends."""
    expected = {
        CHUNKED: (200, b"Weft joins two chunks"),
        LONG: (404, b'{"message":"No such container: nope"}\n'),
        TO_THE_END: (200, b"until it ends"),
    }
    assert read(data, cuts) == expected[data]


@pytest.mark.parametrize("data", [CHUNKED, LONG])
def test_a_response_that_is_cut_off_is_none(data: bytes) -> None:
    """At any byte but the last."""
    for length in range(len(data)):
        with pytest.raises(ProtocolError, match="cut off"):
            read(data[:length], [])


def test_a_response_may_come_after_a_word_in_between_or_have_no_body() -> None:
    assert read(b"HTTP/1.1 100 Continue\r\n\r\n" + LONG, [])[0] == 404
    assert read(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", []) == (204, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000,
    ],
)
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Response().feed_untrusted(data)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_at_all_are_taken_or_refused(data: bytes, headed: bool) -> None:
    """Nothing else ever comes of them."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if headed else b""
    for parse in (
        lambda: Response().feed_untrusted(head + data),
        lambda: Events().feed_untrusted(data + b"\n"),
        lambda: dockerwire.container_untrusted(data),
        lambda: dockerwire.message_untrusted(data),
    ):
        try:
            parse()
        except ProtocolError:
            pass


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(ID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["Id", "Name", "State", "Pid", "Actor", "ID", "id", "message", "new"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_any_json_at_all_is_understood_or_refused(value: Any) -> None:
    """Fields we do not know are passed over; those that we know must be what they are."""
    text = json.dumps(value).encode()
    try:
        found = dockerwire.container_untrusted(text)
        assert dockerwire.is_id(found.id) and found.pid >= 0
    except ProtocolError:
        pass
    message = dockerwire.message_untrusted(text)
    assert message is None or message.isprintable()
    try:
        assert all(map(dockerwire.is_id, Events().feed_untrusted(text + b"\n")))
    except ProtocolError:
        assert not isinstance(value, dict)


def test_a_container_is_its_id_its_name_and_its_process() -> None:
    found = {"Id": ID, "Name": "/web", "State": {"Pid": 4711, "Status": "running"}, "New": [1, 2]}
    assert dockerwire.container_untrusted(json.dumps(found).encode()) == Container(ID, "web", 4711)
    for wrong in ({"Id": ID[:12]}, {"Name": None}, {"State": None}, {"State": {"Pid": True}}, {"State": {"Pid": -1}}):
        with pytest.raises(ProtocolError):
            dockerwire.container_untrusted(json.dumps(found | wrong).encode())


@given(st.lists(st.integers(0, 400), max_size=6))
def test_events_are_told_by_their_container_however_they_arrive(cuts: list[int]) -> None:
    """In the form of old engines too; others' and those without a container are passed over."""
    old = json.dumps({"status": "die", "id": "a" * 64}).encode()
    data = b"\n".join([EVENT, old, b"", b'{"Type":"network","Actor":{"ID":"eth"}}', EVENT, b""])
    events, ids = Events(), set()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        ids |= events.feed_untrusted(data[start:end])
    assert ids == {ID, "a" * 64}


def test_an_event_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dockerwire, "EVENT_MAX_BYTES", 1000)
    events = Events()
    with pytest.raises(ProtocolError, match="does not end"):
        for _ in range(11):
            events.feed_untrusted(b"x" * 100)


def test_a_name_cannot_lead_to_another_question() -> None:
    assert dockerwire.inspect_path("../info?x=1#") == "/containers/..%2Finfo%3Fx%3D1%23/json"
