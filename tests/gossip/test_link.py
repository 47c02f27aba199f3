"""Two link machines with a wire between them: what a good connection does, and every limit of it."""

from __future__ import annotations

import pytest

import gossip.link as link_module
from gossip.errors import ProtocolError
from gossip.link import (
    HANDSHAKE_FRAME_MAX_BYTES,
    HANDSHAKE_TIMEOUT_S,
    MESSAGE_MAX_BYTES,
    PREFACE,
    SEND_QUEUE_MAX_BYTES,
    TRANSPORT_FRAME_MAX_BYTES,
    LinkEstablished,
    LinkRefused,
    MessageReceived,
)
from gossip.noise import CipherState, public_key_of
from gossip.secret import NO_SECRET_PSK
from tests.gossip.ends import (
    HEADER_BYTES,
    INITIATOR_STATIC,
    OTHER_PSK,
    PSK,
    REASONS,
    RESPONDER_STATIC,
    End,
    LinkPair,
    frames_of,
    inbox_bytes,
    make_link,
)

# --- a good connection ---


@pytest.mark.parametrize("chunk_bytes", [*range(1, 40), 64, 99, 150, 1000, 1 << 20])
def test_chunks_of_any_size_carry_the_handshake_and_messages(chunk_bytes: int) -> None:
    pair = LinkPair(chunk_bytes=chunk_bytes).run()
    there = [b"first", b"", b"x" * MESSAGE_MAX_BYTES, b"last"]
    back = [b"reply " + bytes([n]) for n in range(20)]
    for message in there:
        pair.initiator.link.send(message)
    for message in back:
        pair.responder.link.send(message)
    pair.run()
    assert pair.responder.messages == there
    assert pair.initiator.messages == back
    assert pair.initiator.error is None
    assert pair.responder.error is None


def test_both_ends_report_establishment_once_with_the_same_hash_and_the_others_key() -> None:
    pair = LinkPair().run()
    [at_initiator], [at_responder] = pair.initiator.events, pair.responder.events
    assert isinstance(at_initiator, LinkEstablished)
    assert isinstance(at_responder, LinkEstablished)
    assert at_initiator.handshake_hash == at_responder.handshake_hash == pair.initiator.link.handshake_hash
    assert len(at_initiator.handshake_hash) == 32
    assert at_initiator.remote_static == pair.initiator.link.remote_static == public_key_of(RESPONDER_STATIC)
    assert at_responder.remote_static == public_key_of(INITIATOR_STATIC)
    assert pair.initiator.link.established
    assert pair.responder.link.established


def test_every_connection_has_its_own_handshake_hash() -> None:
    hashes = {LinkPair(seed=seed).run().initiator.link.handshake_hash for seed in range(3)}
    assert len(hashes) == 3


def test_initiator_does_not_report_success_before_the_responder_confirmed() -> None:
    pair = LinkPair()
    pair.deliver(pair.initiator, pair.responder)
    pair.deliver(pair.responder, pair.initiator)  # preface; brings message 1
    pair.deliver(pair.initiator, pair.responder)
    pair.deliver(pair.responder, pair.initiator)  # message 2; brings message 3
    pair.deliver(pair.initiator, pair.responder)
    assert isinstance(pair.responder.events[0], LinkEstablished)
    assert pair.initiator.events == []
    assert not pair.initiator.link.established
    assert pair.initiator.link.next_timeout() == HANDSHAKE_TIMEOUT_S
    with pytest.raises(AssertionError):
        pair.initiator.link.send(b"too early")
    pair.deliver(pair.responder, pair.initiator)
    assert isinstance(pair.initiator.events[0], LinkEstablished)


def test_responder_may_send_right_behind_its_confirmation() -> None:
    pair = LinkPair()
    while not pair.responder.link.established:
        pair.deliver(pair.initiator, pair.responder)
        if not pair.responder.link.established:
            pair.deliver(pair.responder, pair.initiator)
    pair.responder.link.send(b"hello")
    pair.run()
    assert [type(event) for event in pair.initiator.events] == [LinkEstablished, MessageReceived]


def test_the_stream_is_laid_out_as_drawn() -> None:
    pair = LinkPair().run()
    pair.initiator.link.send(b"12345")
    pair.run()
    there, back = frames_of(bytes(pair.initiator.sent)), frames_of(bytes(pair.responder.sent))
    assert [(kind, len(body)) for kind, body in there] == [(1, 48), (1, 64), (2, 1 + 5 + 16)]
    assert [(kind, len(body)) for kind, body in back] == [(1, 96), (2, 1 + 16)]


def test_no_message_and_no_static_key_is_readable_on_the_wire() -> None:
    pair = LinkPair().run()
    pair.initiator.link.send(b"a message in the open")
    pair.run()
    wire = bytes(pair.initiator.sent + pair.responder.sent)
    assert b"in the open" not in wire
    assert public_key_of(INITIATOR_STATIC) not in wire
    assert public_key_of(RESPONDER_STATIC) not in wire


def test_keys_are_replaced_on_both_sides_after_the_same_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "REKEY_AFTER_FRAMES", 4)
    pair = LinkPair().run()
    rekeys: list[int] = []
    rekey = CipherState.rekey

    def counted_rekey(cipher: CipherState) -> None:
        rekeys.append(cipher.n)
        rekey(cipher)

    monkeypatch.setattr(CipherState, "rekey", counted_rekey)
    for number in range(10):
        pair.initiator.link.send(bytes([number]))
        pair.responder.link.send(bytes([number]))
    pair.run()
    assert pair.initiator.messages == pair.responder.messages == [bytes([number]) for number in range(10)]
    assert sorted(rekeys) == [4, 4, 4, 4, 8, 8, 8, 8]


# --- passwords ---


@pytest.mark.parametrize(
    ("initiator_psks", "responder_psks"),
    [
        ([PSK], [OTHER_PSK]),
        ([PSK], [NO_SECRET_PSK]),
        ([NO_SECRET_PSK], [PSK]),
        ([PSK, OTHER_PSK], [OTHER_PSK]),  # only the first is sent
        ([PSK], [OTHER_PSK, NO_SECRET_PSK]),
    ],
)
def test_wrong_password_is_told_to_both_and_establishes_neither(
    initiator_psks: list[bytes], responder_psks: list[bytes]
) -> None:
    pair = LinkPair(initiator_psks=initiator_psks, responder_psks=responder_psks).run()
    assert pair.responder.reason == "wrong-password"
    assert pair.initiator.events == [LinkRefused("wrong-password", authenticated=False)]
    assert pair.responder.events == []
    for end in (pair.initiator, pair.responder):
        assert end.link.finished
        assert not end.link.established
        assert end.link.remote_static is None
        assert end.link.handshake_hash is None


@pytest.mark.parametrize(
    ("initiator_psks", "responder_psks"),
    [
        ([PSK], [OTHER_PSK, PSK]),
        ([OTHER_PSK, PSK], [PSK, OTHER_PSK]),
        ([NO_SECRET_PSK], [NO_SECRET_PSK]),
        ([PSK], [bytes([n]) * 32 for n in range(10, 17)] + [PSK]),
    ],
)
def test_responder_accepts_any_of_its_passwords(initiator_psks: list[bytes], responder_psks: list[bytes]) -> None:
    pair = LinkPair(initiator_psks=initiator_psks, responder_psks=responder_psks).run()
    pair.initiator.link.send(b"joined")
    pair.run()
    assert pair.responder.messages == [b"joined"]


# --- refusals ---


@pytest.mark.parametrize("refuser", ["initiator", "responder"])
def test_refusal_after_establishment_is_sealed_and_comes_after_the_messages(refuser: str) -> None:
    pair = LinkPair().run()
    source, destination = (
        (pair.initiator, pair.responder) if refuser == "initiator" else (pair.responder, pair.initiator)
    )
    source.link.send(b"before")
    source.link.close_refused("duplicate-link")
    source.link.send(b"after the end: dropped")
    pair.run()
    assert destination.events[1:] == [MessageReceived(b"before"), LinkRefused("duplicate-link", authenticated=True)]
    assert b"duplicate" not in source.sent
    assert source.link.finished
    assert destination.link.finished
    assert destination.link.queued_bytes == 0  # a refusal is never answered


@pytest.mark.parametrize("refuser", ["initiator", "responder"])
@pytest.mark.parametrize("rounds", range(3))
def test_refusal_during_the_handshake_arrives_from_every_stage(refuser: str, rounds: int) -> None:
    pair = LinkPair()
    for _ in range(rounds):
        pair.deliver(pair.initiator, pair.responder)
        pair.deliver(pair.responder, pair.initiator)
    source, destination = (
        (pair.initiator, pair.responder) if refuser == "initiator" else (pair.responder, pair.initiator)
    )
    source.link.close_refused("too-many")
    pair.run()
    # Behind the initiator's third message its refusal is sealed already, and the responder established.
    sealed = refuser == "initiator" and rounds == 2
    assert destination.events[-1] == LinkRefused("too-many", authenticated=sealed)
    assert source.error is None


@pytest.mark.parametrize("reason", sorted(REASONS | {"too-slow", "handshake-timeout", "refused"}))
def test_the_upper_layer_may_refuse_with_any_reason(reason: str) -> None:
    pair = LinkPair().run()
    pair.initiator.link.close_refused(reason)
    pair.run()
    assert pair.responder.events[-1] == LinkRefused(reason, authenticated=True)


def test_clear_refusal_on_an_open_link_is_a_forgery() -> None:
    pair = LinkPair().run()
    pair.initiator.take(b"\x03\x00\x07refused")
    assert pair.initiator.reason == "bad-frame"


@pytest.mark.parametrize("reason", [b"", b"Upper", b"line\nbreak", b"\x1b[31m", b"\xff", b"a" * 33])
def test_refusal_that_is_no_word_is_a_bad_frame(reason: bytes) -> None:
    end = End(make_link(initiator=True))
    end.take(PREFACE + b"\x03" + len(reason).to_bytes(2, "big") + reason)
    assert end.reason == "bad-frame"


@pytest.mark.parametrize("reason", ["", "two words", "x" * 33, "Upper"])
def test_our_own_reasons_must_be_words(reason: str) -> None:
    with pytest.raises(AssertionError):
        make_link(initiator=True).close_refused(reason)


def test_an_error_on_an_open_link_is_told_to_the_other_side() -> None:
    pair = LinkPair().run()
    pair.initiator.take(b"\x02" + (17).to_bytes(2, "big") + bytes(17))
    assert pair.initiator.reason == "bad-seal"
    pair.run()
    assert pair.responder.events[-1] == LinkRefused("bad-seal", authenticated=True)


# --- prefaces ---


@pytest.mark.parametrize("initiator", [True, False])
@pytest.mark.parametrize("garbage", [b"G", b"GET / HTTP/1.1\r\n", b"WEFS", b"\x16\x03\x01", b"weft", b"WEFF\x01\x01"])
def test_another_protocol_is_noticed_at_its_first_wrong_byte_and_not_answered(initiator: bool, garbage: bytes) -> None:
    end = End(make_link(initiator=initiator))
    assert end.give() == PREFACE
    end.take(garbage)
    assert end.reason == "bad-magic"
    assert end.give() == b""


@pytest.mark.parametrize("versions", [(2, 9), (0, 0), (5, 1), (2, 0)])
def test_disjoint_versions_are_refused(versions: tuple[int, int]) -> None:
    end = End(make_link(initiator=True))
    end.give()
    end.take(b"WEFT" + bytes(versions))
    assert end.reason == "bad-version"
    assert end.give() == b""


def test_a_newer_peer_that_still_speaks_our_version_is_welcome() -> None:
    end = End(make_link(initiator=True))
    end.give()
    end.take(b"WEFT" + bytes([1, 7]))
    assert end.error is None
    assert len(end.give()) == HEADER_BYTES + 48


def test_a_preface_changed_on_the_way_breaks_the_handshake() -> None:
    pair = LinkPair()
    pair.responder.take(b"WEFT" + bytes([1, 7]))  # the initiator said 1 to 1
    pair.initiator.give()
    pair.run()
    assert pair.responder.reason == "bad-handshake"
    assert pair.initiator.events == [LinkRefused("bad-handshake", authenticated=False)]


# --- time ---


@pytest.mark.parametrize("initiator", [True, False])
def test_a_handshake_that_takes_too_long_ends(initiator: bool) -> None:
    link = make_link(initiator=initiator, now=100.0)
    assert link.next_timeout() == 100.0 + HANDSHAKE_TIMEOUT_S
    link.handle_timeout(100.0 + HANDSHAKE_TIMEOUT_S - 0.001)
    with pytest.raises(ProtocolError) as caught:
        link.handle_timeout(100.0 + HANDSHAKE_TIMEOUT_S)
    assert caught.value.reason == "handshake-timeout"
    assert link.finished
    assert link.next_timeout() is None
    assert link.data_to_send() == PREFACE + b"\x03\x00\x11handshake-timeout"
    link.handle_timeout(1000.0)


def test_bytes_that_drip_do_not_extend_the_deadline() -> None:
    end = End(make_link(initiator=False))
    for tick, byte in enumerate(PREFACE + b"\x01\x00\x30" + bytes(48)):
        end.take(bytes([byte]), now=tick * 0.5)
    assert end.reason == "handshake-timeout"


def test_initiator_without_confirmation_times_out() -> None:
    pair = LinkPair()
    for _ in range(2):
        pair.deliver(pair.initiator, pair.responder)
        pair.deliver(pair.responder, pair.initiator)
    with pytest.raises(ProtocolError) as caught:
        pair.initiator.link.handle_timeout(HANDSHAKE_TIMEOUT_S)
    assert caught.value.reason == "handshake-timeout"
    assert pair.initiator.events == []


def test_an_open_link_has_no_timeout() -> None:
    pair = LinkPair().run()
    assert pair.initiator.link.next_timeout() is None
    pair.initiator.link.handle_timeout(1e9)
    assert not pair.initiator.link.finished


# --- limits ---


@pytest.mark.parametrize("initiator", [True, False])
@pytest.mark.parametrize("frame_type", [0, 1, 2, 3, 255])
def test_before_the_handshake_an_announced_length_is_refused_at_its_header(initiator: bool, frame_type: int) -> None:
    end = End(make_link(initiator=initiator))
    end.take(PREFACE + bytes([frame_type]) + (HANDSHAKE_FRAME_MAX_BYTES + 1).to_bytes(2, "big"))
    assert end.reason == "too-long"
    assert inbox_bytes(end.link) == 0


def test_on_an_open_link_a_longer_frame_than_the_longest_is_refused_at_its_header() -> None:
    pair = LinkPair().run()
    pair.responder.take(b"\x02" + TRANSPORT_FRAME_MAX_BYTES.to_bytes(2, "big"))
    assert pair.responder.error is None
    pair = LinkPair().run()
    pair.responder.take(b"\x02" + (TRANSPORT_FRAME_MAX_BYTES + 1).to_bytes(2, "big"))
    assert pair.responder.reason == "too-long"


def test_initiator_awaiting_confirmation_still_has_the_small_limit() -> None:
    pair = LinkPair()
    for _ in range(2):
        pair.deliver(pair.initiator, pair.responder)
        pair.deliver(pair.responder, pair.initiator)
    pair.initiator.take(b"\x02" + (HANDSHAKE_FRAME_MAX_BYTES + 1).to_bytes(2, "big"))
    assert pair.initiator.reason == "too-long"


def test_unfinished_frames_never_hold_more_than_one_frame() -> None:
    pair = LinkPair().run()
    for _ in range(50):
        pair.initiator.link.send(bytes(MESSAGE_MAX_BYTES))
    stream = pair.initiator.give()
    for start in range(0, len(stream), 10_000):
        pair.responder.take(stream[start : start + 10_000])
        assert inbox_bytes(pair.responder.link) < HEADER_BYTES + TRANSPORT_FRAME_MAX_BYTES
    assert len(pair.responder.messages) == 50


def test_a_finished_link_keeps_and_says_nothing_more() -> None:
    end = End(make_link(initiator=False))
    end.take(PREFACE + b"\x07\x00\x00")
    assert end.reason == "bad-frame"
    end.give()
    assert end.link.receive_data(bytes(1 << 20), 0.0) == []
    assert inbox_bytes(end.link) == 0
    end.link.send(b"dropped")
    end.link.close_refused("dropped")
    assert end.give() == b""


def test_message_longer_than_the_limit_is_our_own_mistake() -> None:
    pair = LinkPair().run()
    with pytest.raises(AssertionError):
        pair.initiator.link.send(bytes(MESSAGE_MAX_BYTES + 1))


def test_a_peer_that_does_not_read_ends_the_link_at_the_queue_limit() -> None:
    link = LinkPair().run().initiator.link
    with pytest.raises(ProtocolError) as caught:
        for _ in range(SEND_QUEUE_MAX_BYTES // MESSAGE_MAX_BYTES + 1):
            link.send(bytes(MESSAGE_MAX_BYTES))
            assert link.queued_bytes <= SEND_QUEUE_MAX_BYTES
    assert caught.value.reason == "too-slow"
    assert link.finished
    assert link.queued_bytes == 0


class CountingBuffer(bytearray):
    """Counts the bytes that are taken out of it, since that is what a quadratic reader does too often."""

    copied = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        part = super().__getitem__(index)
        if isinstance(index, slice):
            CountingBuffer.copied += len(part)
        return part


def test_reading_many_frames_from_one_chunk_is_linear() -> None:
    pair = LinkPair().run()
    for _ in range(20_000):
        pair.initiator.link.send(b"x" * 30)
    stream = pair.initiator.give()
    assert len(stream) == 1_000_000
    pair.responder.link._inbox = CountingBuffer()
    CountingBuffer.copied = 0
    pair.responder.take(stream)
    assert len(pair.responder.messages) == 20_000
    assert 0 < CountingBuffer.copied < 2 * len(stream)
