"""The three datagrams of a handshake: what fits opens, and whatever was changed, cut, mixed up or made up does not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve import handshake
from dataplane.sleeve.handshake import (
    ADDRESS_BYTES,
    CODE_BYTES,
    DATAGRAM_MAX_BYTES,
    HELLO_MIN_BYTES,
    REFUSAL_BYTES,
    U32_MAX,
    WELCOME_MIN_BYTES,
    Hello,
    Opening,
    Pair,
    Result,
)
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.noise import public_key_of

ANNE, BERT, CARL = (PeerName(letter * 8) for letter in (b"a", b"b", b"c"))
KEYS = {name: bytes([name[0]]) * 32 for name in (ANNE, BERT, CARL)}
SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
SOURCE = bytes(range(ADDRESS_BYTES))


def pair(us: PeerName, peer: PeerName, psks: tuple[bytes, ...] = (SECRET,), has_aes: bool = True) -> Pair:
    ours = handshake.make_self(us, KEYS[us], psks, has_aes)
    return handshake.make_pair_untrusted(ours, peer, public_key_of(KEYS[peer]))


def opening(pair_of_initiator: Pair, psk: bytes = SECRET, *, generation: int = 3, ephemeral: int = 9) -> Opening:
    return Opening(pair_of_initiator, psk, bytes([ephemeral]) * 32, 0x01020304, (7, 8), generation)


def answer(pair_of_responder: Pair, datagram: bytes, generation: int = 0) -> tuple[Result, bytes]:
    hello = handshake.parse_hello_untrusted(datagram)
    psk = handshake.psk_of_untrusted(pair_of_responder, hello)
    if psk is None:
        raise ProtocolError("bad-code", "no secret fits")
    return handshake.answer_untrusted(pair_of_responder, psk, hello, b"r" * 32, 0x0A0B0C0D, generation, SOURCE)


def fields_of(hello: Hello) -> tuple[int, tuple[int, int]]:
    return hello.sender_index, hello.stamp


def test_both_ends_agree_on_everything() -> None:
    first = opening(pair(ANNE, BERT))
    theirs, welcome = answer(pair(BERT, ANNE), first.datagram)
    ours = first.finish_untrusted(welcome)
    assert (ours.key_out, ours.key_in) == (theirs.key_in, theirs.key_out)
    assert ours.key_out != ours.key_in
    assert (ours.local_index, ours.remote_index) == (0x01020304, 0x0A0B0C0D)
    assert (theirs.local_index, theirs.remote_index) == (0x0A0B0C0D, 0x01020304)
    assert ours.generation == theirs.generation == 4
    assert (ours.observed, theirs.observed) == (SOURCE, b"")


def test_datagrams_are_laid_out_as_drawn() -> None:
    first = opening(pair(ANNE, BERT))
    _, welcome = answer(pair(BERT, ANNE), first.datagram)
    hello = handshake.parse_hello_untrusted(first.datagram)
    refusal = handshake.refuse(pair(BERT, ANNE), hello)
    assert (len(first.datagram), len(welcome), len(refusal)) == (145, 99, 24)
    assert (HELLO_MIN_BYTES, WELCOME_MIN_BYTES, REFUSAL_BYTES) == (145, 99, 24)
    assert first.datagram[:8] == bytes([1, 0, 0, 0, 1, 2, 3, 4])
    assert welcome[:8] == bytes([2, 0, 0, 0, 1, 2, 3, 4])
    assert refusal[:8] == bytes([3, 0, 0, 0, 1, 2, 3, 4])
    assert fields_of(hello) == (0x01020304, (7, 8))
    assert first.datagram[8:16] == pair(BERT, ANNE).hint_in


def test_an_answer_is_never_longer_than_the_question() -> None:
    assert HELLO_MIN_BYTES > WELCOME_MIN_BYTES > REFUSAL_BYTES


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(7, 3, 8), (3, 7, 8), (U32_MAX, 0, U32_MAX), (0, U32_MAX, U32_MAX)]
)
def test_a_session_is_one_generation_above_all_before(ours: int, theirs: int, expected: int) -> None:
    first = opening(pair(ANNE, BERT), generation=ours)
    result, welcome = answer(pair(BERT, ANNE), first.datagram, theirs)
    assert result.generation == first.finish_untrusted(welcome).generation == expected


@pytest.mark.parametrize(("anne", "bert"), [(True, True), (True, False), (False, True), (False, False)])
def test_aes_is_taken_where_both_have_it(anne: bool, bert: bool) -> None:
    first = opening(pair(ANNE, BERT, has_aes=anne))
    theirs, welcome = answer(pair(BERT, ANNE, has_aes=bert), first.datagram)
    assert theirs.aes == first.finish_untrusted(welcome).aes == (anne and bert)


def test_the_responder_goes_on_under_the_secret_of_the_hello() -> None:
    first = opening(pair(ANNE, BERT, (OTHER_SECRET,)), OTHER_SECRET)
    _, welcome = answer(pair(BERT, ANNE, (SECRET, OTHER_SECRET)), first.datagram)
    first.finish_untrusted(welcome)


@pytest.mark.parametrize(
    ("anne", "bert"),
    [((SECRET,), (OTHER_SECRET,)), ((), (SECRET,)), ((SECRET,), ()), ((), (bytes(32),)), ((bytes(32),), ())],
)
def test_secret_other_secret_and_no_secret_do_not_mix(anne: tuple[bytes, ...], bert: tuple[bytes, ...]) -> None:
    """A secret of zeros is still a secret: what a clear host says does not open under it."""
    ours = pair(ANNE, BERT, anne)
    first = opening(ours, ours.us.psks[0])
    hello = handshake.parse_hello_untrusted(first.datagram)
    theirs = pair(BERT, ANNE, bert)
    assert theirs.hint_in == hello.hint
    assert handshake.psk_of_untrusted(theirs, hello) is None
    first.check_refusal_untrusted(handshake.refuse(theirs, hello))


def test_a_member_cannot_speak_for_another() -> None:
    """Carl has the secret and the public keys, and calls himself Anne."""
    carl = handshake.make_self(ANNE, KEYS[CARL], (SECRET,), True)
    first = opening(handshake.make_pair_untrusted(carl, BERT, public_key_of(KEYS[BERT])))
    hello = handshake.parse_hello_untrusted(first.datagram)
    assert hello.hint != pair(BERT, ANNE).hint_in
    assert handshake.psk_of_untrusted(pair(BERT, ANNE), hello) is None


def test_a_published_copy_of_anothers_key_makes_another_pair() -> None:
    """Carl says that Anne's key is his; Anne's hellos must not become his."""
    bert = handshake.make_self(BERT, KEYS[BERT], (SECRET,), True)
    copied = handshake.make_pair_untrusted(bert, CARL, public_key_of(KEYS[ANNE]))
    hello = handshake.parse_hello_untrusted(opening(pair(ANNE, BERT)).datagram)
    assert copied.hint_in != hello.hint
    assert handshake.psk_of_untrusted(copied, hello) is None


def test_a_hello_sent_back_to_its_author_does_not_fit() -> None:
    hello = handshake.parse_hello_untrusted(opening(pair(ANNE, BERT)).datagram)
    assert hello.hint != pair(ANNE, BERT).hint_in
    assert handshake.psk_of_untrusted(pair(ANNE, BERT), hello) is None


def test_a_code_alone_opens_nothing() -> None:
    """Whoever could compute the codes (they are no part of the keys) still has to know a private key."""
    anne = pair(ANNE, BERT)
    carl = handshake.make_self(ANNE, KEYS[CARL], (SECRET,), True)
    impostor = Pair(carl, BERT, anne.peer_key, anne.shared)
    with pytest.raises(ProtocolError) as caught:
        answer(pair(BERT, ANNE), opening(impostor).datagram)
    assert caught.value.reason == "bad-handshake"


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short", b""])
def test_a_published_key_that_proves_nothing_is_refused(key: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        handshake.make_pair_untrusted(handshake.make_self(ANNE, KEYS[ANNE], (SECRET,), True), BERT, key)
    assert caught.value.reason == "bad-key"


def damaged(datagram: bytes) -> list[bytes]:
    flipped = [
        datagram[:at] + bytes([datagram[at] ^ bit]) + datagram[at + 1 :]
        for at in range(len(datagram))
        for bit in (1, 128)
    ]
    return [*flipped, *(datagram[:size] for size in range(len(datagram))), datagram + b"\0"]


def test_any_change_of_a_hello_is_refused() -> None:
    bert = pair(BERT, ANNE)
    for datagram in damaged(opening(pair(ANNE, BERT)).datagram):
        with pytest.raises(ProtocolError):
            answer(bert, datagram)


def test_any_change_of_a_welcome_is_refused_and_the_true_one_still_counts() -> None:
    first = opening(pair(ANNE, BERT))
    _, welcome = answer(pair(BERT, ANNE), first.datagram)
    for datagram in damaged(welcome):
        with pytest.raises(ProtocolError) as caught:
            handshake.parse_welcome_untrusted(datagram)
            first.finish_untrusted(datagram)
        assert caught.value.reason in ("bad-welcome", "bad-code")
    first.finish_untrusted(welcome)


def test_any_change_of_a_refusal_is_refused() -> None:
    first = opening(pair(ANNE, BERT))
    refusal = handshake.refuse(pair(BERT, ANNE), handshake.parse_hello_untrusted(first.datagram))
    for datagram in damaged(refusal):
        with pytest.raises(ProtocolError):
            handshake.parse_refusal_untrusted(datagram)
            first.check_refusal_untrusted(datagram)
    first.check_refusal_untrusted(refusal)


def test_a_welcome_or_refusal_to_another_hello_does_not_fit() -> None:
    first, second = opening(pair(ANNE, BERT)), opening(pair(ANNE, BERT), ephemeral=10)
    _, welcome = answer(pair(BERT, ANNE), second.datagram)
    refusal = handshake.refuse(pair(BERT, ANNE), handshake.parse_hello_untrusted(second.datagram))
    with pytest.raises(ProtocolError):
        first.finish_untrusted(welcome)
    with pytest.raises(ProtocolError):
        first.check_refusal_untrusted(refusal)


def test_later_versions_may_say_more_in_their_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer:
        def __init__(self, known: object) -> None:
            self.known = known

        def pack(self, *fields: object) -> bytes:
            return bytes(self.known.pack(*fields)) + b"from a later version"  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.known, name)

    with monkeypatch.context() as later:
        later.setattr(handshake, "_HELLO_PAYLOAD", Longer(handshake._HELLO_PAYLOAD))
        first = opening(pair(ANNE, BERT))
    with monkeypatch.context() as later:
        later.setattr(handshake, "_WELCOME_PAYLOAD", Longer(handshake._WELCOME_PAYLOAD))
        theirs, welcome = answer(pair(BERT, ANNE), first.datagram)
    assert (len(first.datagram), len(welcome)) == (145 + 20, 99 + 20)
    assert first.finish_untrusted(welcome).key_in == theirs.key_out


PARSERS: list[tuple[int, Callable[[bytes], object]]] = [
    (1, handshake.parse_hello_untrusted),
    (2, handshake.parse_welcome_untrusted),
    (3, handshake.parse_refusal_untrusted),
]


@given(st.sampled_from(PARSERS), st.binary(max_size=DATAGRAM_MAX_BYTES + 50), st.booleans())
def test_parsers_raise_only_protocol_errors(
    parser: tuple[int, Callable[[bytes], object]], data: bytes, typed: bool
) -> None:
    kind, parse = parser
    try:
        parse(bytes([kind, 0, 0, 0]) + data if typed else data)
    except ProtocolError as error:
        assert error.reason in ("bad-hello", "bad-welcome", "bad-refusal")


@pytest.mark.parametrize("parser", PARSERS)
def test_parsers_refuse_what_is_longer_than_any_version_may_send(parser: tuple[int, Callable[[bytes], object]]) -> None:
    kind, parse = parser
    with pytest.raises(ProtocolError):
        parse(bytes([kind, 0, 0, 0]) + bytes(DATAGRAM_MAX_BYTES))


def forge(pair_of_author: Pair, kind: int, body: bytes) -> bytes:
    return body + pair_of_author.code_out(kind, SECRET, body)


@given(st.binary(min_size=113, max_size=300), st.integers(0, 5))
def test_nonsense_under_a_good_code_fails_in_the_handshake_only(noise: bytes, seed: int) -> None:
    """A faulty member may put anything behind a code that fits."""
    anne, bert = pair(ANNE, BERT), pair(BERT, ANNE)
    genuine = opening(anne).datagram
    random = Random(seed)
    cut = random.randrange(28, HELLO_MIN_BYTES - CODE_BYTES)
    for body in (genuine[:28] + noise, genuine[:cut] + noise[: HELLO_MIN_BYTES - CODE_BYTES - cut]):
        if HELLO_MIN_BYTES <= len(body) + CODE_BYTES <= DATAGRAM_MAX_BYTES and body != genuine[:-CODE_BYTES]:
            with pytest.raises(ProtocolError):
                answer(bert, forge(anne, 1, body))


@pytest.mark.parametrize("position", [4, 16, 27])
def test_the_header_is_part_of_the_handshake_itself(position: int) -> None:
    """Index, epoch and count cannot be changed even by who can compute the code."""
    genuine = opening(pair(ANNE, BERT)).datagram[:-CODE_BYTES]
    changed = genuine[:position] + bytes([genuine[position] ^ 1]) + genuine[position + 1 :]
    answer(pair(BERT, ANNE), forge(pair(ANNE, BERT), 1, genuine))
    with pytest.raises(ProtocolError) as caught:
        answer(pair(BERT, ANNE), forge(pair(ANNE, BERT), 1, changed))
    assert caught.value.reason == "bad-handshake"


@given(st.binary(min_size=75, max_size=300))
def test_a_nonsense_welcome_under_a_good_code_ends_the_attempt_only(noise: bytes) -> None:
    first = opening(pair(ANNE, BERT))
    _, welcome = answer(pair(BERT, ANNE), first.datagram)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            first.finish_untrusted(forge(pair(BERT, ANNE), 2, welcome[:8] + noise))
