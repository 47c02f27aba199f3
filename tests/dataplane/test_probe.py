"""The data-path ping as bytes: exact, padded, and deaf to everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.probe import (
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PATH_REPLY,
    PATH_REQUEST,
    REPLY,
    REQUEST,
    Drop,
    Probe,
    decode_untrusted,
    encode,
    reply,
    request,
)

HERE, THERE = bytes.fromhex("02aa00000001"), bytes.fromhex("02aa00000002")
NONCE = bytes(range(8))


def test_the_bytes_are_these() -> None:
    """A golden frame: another version of the program must still understand it."""
    frame = encode(request(HERE, THERE, NONCE, 30))
    assert frame.hex() == (
        "02aa00000002" "02aa00000001" "88b5" "01" "01" "0001020304050607" "002c" + "00" * 18
    )  # fmt: skip


@given(st.binary(min_size=8, max_size=8), st.integers(0, 70_000), st.booleans())
def test_what_is_encoded_is_decoded(nonce: bytes, packet: int, answered: bool) -> None:
    """Of any size, which is kept within what a frame can be; the answer is as large as the question."""
    asked = request(HERE, THERE, nonce, packet)
    assert MIN_FRAME_BYTES <= asked.size <= MAX_FRAME_BYTES
    probe = reply(asked, THERE) if answered else asked
    frame = encode(probe)
    assert len(frame) == asked.size and decode_untrusted(frame) == probe
    assert (probe.kind, probe.destination) == ((REPLY, HERE) if answered else (REQUEST, THERE))


def test_a_probe_of_one_path_is_answered_as_one() -> None:
    """So that whoever listens on the bridge tells it from a ping."""
    asked = request(HERE, THERE, NONCE, 100, PATH_REQUEST)
    assert reply(asked, THERE).kind == PATH_REPLY
    assert decode_untrusted(encode(reply(asked, THERE))) == reply(asked, THERE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame[: MIN_FRAME_BYTES - 1], Drop.SHORT),
        (lambda frame: b"", Drop.SHORT),
        (lambda frame: frame[:12] + b"\x08\x00" + frame[14:], Drop.FOREIGN),
        (lambda frame: frame[:6] + b"\xff" * 6 + frame[12:], Drop.FOREIGN),
        (lambda frame: frame[:14] + b"\2" + frame[15:], Drop.VERSION),
        (lambda frame: frame[:15] + b"\7" + frame[16:], Drop.KIND),
        (lambda frame: frame[:-1], Drop.CUT),
        (lambda frame: frame + b"\0", Drop.CUT),
    ],
)
def test_what_is_no_probe_is_dropped_with_a_reason(change, reason: Drop) -> None:  # type: ignore[no-untyped-def]
    """For the counters; nothing is raised."""
    assert decode_untrusted(change(encode(request(HERE, THERE, NONCE, 100)))) is reason


@given(st.binary(max_size=200))
def test_garbage_never_raises(frame: bytes) -> None:
    """It is a drop, or by rare luck a probe of its own size."""
    found = decode_untrusted(frame)
    assert isinstance(found, Drop) or (isinstance(found, Probe) and found.size == len(frame))
