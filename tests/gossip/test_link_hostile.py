"""One link machine against everything else that can come down a wire."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

import gossip.link as link_module
import gossip.noise as noise_module
from gossip.link import (
    HANDSHAKE_FRAME_MAX_BYTES,
    PREFACE,
    REFUSAL_MAX_BYTES,
    TRANSPORT_FRAME_MAX_BYTES,
    LinkEstablished,
    LinkRefused,
    MessageReceived,
)
from gossip.noise import SymmetricState
from tests.gossip.ends import (
    HEADER_BYTES,
    INITIATOR_STATIC,
    PSK,
    REASONS,
    RESPONDER_STATIC,
    End,
    LinkPair,
    inbox_bytes,
    make_link,
)

# --- hostile streams ---


def recorded() -> tuple[bytes, bytes]:
    """What the initiator and what the responder said on one good connection with messages both ways."""
    pair = LinkPair().run()
    for number in range(3):
        pair.initiator.link.send(b"there" * number)
        pair.responder.link.send(b"back" * number)
    pair.run()
    return bytes(pair.initiator.sent), bytes(pair.responder.sent)


def test_a_replayed_connection_is_refused_by_either_side() -> None:
    there, back = recorded()
    responder = End(make_link(initiator=False, seed=1))
    responder.take(there)
    assert responder.reason == "bad-handshake"
    assert responder.events == []
    initiator = End(make_link(initiator=True, seed=1))
    initiator.take(back)
    assert initiator.reason == "bad-handshake"
    assert initiator.events == []


def test_a_replayed_or_reordered_or_dropped_frame_breaks_the_seal() -> None:
    for order in ([0, 0], [1, 0], [1]):
        pair = LinkPair().run()
        frames = []
        for number in range(2):
            pair.initiator.link.send(bytes([number]))
            frames.append(pair.initiator.give())
        pair.responder.take(b"".join(frames[index] for index in order))
        assert pair.responder.reason == "bad-seal"


def test_a_member_with_a_low_order_static_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a key agrees with everybody, so whoever holds the secret could pass for any other holder of one."""
    own_key = noise_module._public_of

    def lie_about_the_static_key(private: X25519PrivateKey) -> bytes:
        return bytes(32) if private.private_bytes_raw() == INITIATOR_STATIC else own_key(private)

    monkeypatch.setattr(noise_module, "_public_of", lie_about_the_static_key)
    pair = LinkPair().run()
    assert pair.responder.reason == "bad-handshake"
    assert "low-order" in str(pair.responder.error)
    assert pair.responder.events == []


def test_own_bytes_reflected_establish_nothing() -> None:
    for initiator in (True, False):
        end = End(make_link(initiator=initiator))
        for _ in range(10):
            end.take(end.give())
        assert end.events == []
        assert not end.link.established


def test_frames_of_the_other_direction_do_not_open() -> None:
    pair = LinkPair().run()
    pair.initiator.link.send(b"mine")
    pair.initiator.take(pair.initiator.give())
    assert pair.initiator.reason == "bad-seal"


@pytest.mark.parametrize("low_order", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_low_order_ephemeral_keys_are_refused(low_order: bytes) -> None:
    # The payload's seal covers the key, so an attacker makes its own; all it needs is public before the first secret.
    symmetric = SymmetricState(link_module.NOISE_PROTOCOL)
    symmetric.mix_hash(PREFACE + PREFACE)
    symmetric.mix_hash(low_order)
    symmetric.mix_key(low_order)
    message = low_order + symmetric.encrypt_and_hash(b"")
    responder = End(make_link(initiator=False))
    responder.take(PREFACE + b"\x01\x00\x30" + message)
    assert responder.reason == "bad-handshake"
    assert "low-order" in str(responder.error)


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_every_flipped_bit_of_a_connection_is_refused_or_waits_for_more(side: str) -> None:
    """Whatever byte changes, nothing is reported that the good connection would not have reported by then."""
    there, back = recorded()
    stream = there if side == "responder" else back
    for position in range(len(stream)):
        pair = LinkPair()
        end = pair.responder if side == "responder" else pair.initiator
        pair.initiator.give(), pair.responder.give()
        damaged = bytearray(stream)
        damaged[position] ^= 1 << position % 8
        end.take(stream[:position])
        before = list(end.events)
        end.take(bytes(damaged[position:]))
        assert end.reason in REASONS or not end.link.finished
        assert end.events == before


@pytest.mark.parametrize("side", ["initiator", "responder"])
def test_a_stream_cut_anywhere_reports_what_was_whole_and_no_error(side: str) -> None:
    there, back = recorded()
    stream = there if side == "responder" else back
    for size in range(len(stream)):
        pair = LinkPair()
        end = pair.responder if side == "responder" else pair.initiator
        end.take(stream[:size])
        assert end.error is None
        assert len(end.messages) < 3


@settings(max_examples=300)
@given(
    initiator=st.booleans(),
    start=st.sampled_from([b"", PREFACE, PREFACE + b"\x01\x00\x30", PREFACE + b"\x01\x00\x60", PREFACE + b"\x03\x00"]),
    chunks=st.lists(st.binary(max_size=300), max_size=10),
)
def test_garbage_before_the_handshake_raises_only_protocol_errors(
    initiator: bool, start: bytes, chunks: list[bytes]
) -> None:
    end = End(make_link(initiator=initiator))
    for chunk in [start, *chunks]:
        end.take(chunk)
        assert inbox_bytes(end.link) < HEADER_BYTES + HANDSHAKE_FRAME_MAX_BYTES
        assert end.link.queued_bytes < 300
    assert end.reason is None or end.reason in REASONS
    assert not end.link.established


@settings(max_examples=200)
@given(rounds=st.integers(1, 4), initiator=st.booleans(), chunks=st.lists(st.binary(max_size=300), max_size=6))
def test_garbage_at_any_stage_raises_only_protocol_errors(rounds: int, initiator: bool, chunks: list[bytes]) -> None:
    pair = LinkPair()
    for _ in range(rounds):
        pair.deliver(pair.initiator, pair.responder)
        pair.deliver(pair.responder, pair.initiator)
    end = pair.initiator if initiator else pair.responder
    for chunk in chunks:
        end.take(chunk)
        assert inbox_bytes(end.link) < HEADER_BYTES + TRANSPORT_FRAME_MAX_BYTES
    assert end.reason is None or end.reason in REASONS
    assert end.messages == []


@settings(max_examples=200)
@given(data=st.data())
def test_spliced_and_shuffled_recordings_never_pass_for_another_connection(data: st.DataObject) -> None:
    there, back = recorded()
    end = End(make_link(initiator=data.draw(st.booleans()), seed=2))
    for _ in range(data.draw(st.integers(1, 5))):
        source = data.draw(st.sampled_from([there, back]))
        start = data.draw(st.integers(0, len(source)))
        end.take(source[start : data.draw(st.integers(start, len(source)))])
    assert not any(isinstance(event, LinkEstablished | MessageReceived) for event in end.events)


# --- content that only somebody with the secret can send ---


@pytest.mark.parametrize("content", [b"\x00", b"\x00x", b"\x03", b"\xff", b"\x02", b"\x02Not a word"])
def test_sealed_nonsense_from_a_member_is_a_bad_frame(content: bytes) -> None:
    pair = LinkPair().run()
    sender = pair.initiator.link._sender
    assert sender is not None
    sealed = sender.encrypt_with_ad(b"", content)
    pair.responder.take(b"\x02" + len(sealed).to_bytes(2, "big") + sealed)
    assert pair.responder.reason == "bad-frame"


@pytest.mark.parametrize("content", [b"\x01early message", b"\x00confirmation with content"])
def test_what_comes_before_the_empty_confirmation_is_a_bad_frame(content: bytes) -> None:
    pair = LinkPair()
    for _ in range(2):
        pair.deliver(pair.initiator, pair.responder)
        pair.deliver(pair.responder, pair.initiator)
    pair.deliver(pair.initiator, pair.responder)
    sender = pair.responder.link._sender
    assert sender is not None
    sender.set_nonce(0)  # take the confirmation's place
    sealed = sender.encrypt_with_ad(b"", content)
    pair.initiator.take(b"\x02" + len(sealed).to_bytes(2, "big") + sealed)
    assert pair.initiator.reason == "bad-frame"
    assert pair.initiator.events == []


def test_handshake_messages_carry_no_payload() -> None:
    handshake = noise_module.HandshakeState(
        link_module.NOISE_PROTOCOL, initiator=True, prologue=PREFACE + PREFACE, e=bytes([7]) * 32
    )
    message = handshake.write_message(b"early data")
    responder = End(make_link(initiator=False))
    responder.take(PREFACE + b"\x01" + len(message).to_bytes(2, "big") + message)
    assert responder.reason == "bad-handshake"


@pytest.mark.parametrize("length", [0, REFUSAL_MAX_BYTES + 1])
def test_refusal_of_an_impossible_length_is_refused_at_its_header(length: int) -> None:
    end = End(make_link(initiator=True))
    end.take(PREFACE + b"\x03" + length.to_bytes(2, "big"))
    assert end.reason == "bad-frame"


def test_nothing_behind_a_refusal_is_read() -> None:
    end = End(make_link(initiator=True))
    end.take(PREFACE + b"\x03\x00\x04busy" + b"\x09\xff\xff" + bytes(500))
    assert end.events == [LinkRefused("busy", authenticated=False)]
    assert end.error is None


def test_links_drop_the_keys_that_they_need_no_more() -> None:
    pair = LinkPair().run()
    for link in (pair.initiator.link, pair.responder.link):
        held = [value for value in vars(link).values() if value]
        assert INITIATOR_STATIC not in held
        assert RESPONDER_STATIC not in held
        assert (PSK,) not in held
        assert not any(isinstance(value, noise_module.HandshakeState) for value in held)


def test_transport_frame_too_short_to_hold_a_kind_is_a_bad_frame() -> None:
    pair = LinkPair().run()
    pair.responder.take(b"\x02\x00\x10")
    assert pair.responder.reason == "bad-frame"
