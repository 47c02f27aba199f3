"""One handshake of the sleeve: its three datagrams, and from them the keys of two directions.

Knows one pair of peers at a time and no policy: when to begin, whom to answer and how often is `keys`. The one idea:
Noise IKpsk2, and before it a code (a MAC) under a key that only these two peers can compute, from the Diffie-Hellman
result of their static keys. It covers the whole datagram, so that a forged, damaged or repeated one costs its receiver
a microsecond and no Diffie-Hellman, whoever sends it and from wherever: members of the mesh cannot forge it either,
so each peer has a share of our work that nobody else can use up. That is why there are no cookies.

    0   1           4               8                              16   hello, 145 bytes
    +---+-----------+---------------+-------------------------------+
    | 1 | 0   0   0 | our index     | hint                          |
    +---+-----------+---------------+---------------+---------------+---------------- - - --+--------------+
    | epoch                         | count         | Noise message 1: e, s, payload        | code (16)    |
    +-------------------------------+---------------+---------------- - - ------------------+--------------+
                                                      payload: flags u8 (1: has AES), generation u32

    0   1           4               8                                   welcome, 99 bytes
    +---+-----------+---------------+--------------------- - - ------------------+--------------+
    | 2 | 0   0   0 | hello's index | Noise message 2: e, payload                | code (16)    |
    +---+-----------+---------------+--------------------- - - ------------------+--------------+
                                      payload: flags u8, generation u32, our index u32, where the hello came
                                      from: IPv6 address (16), port u16
    0   1           4               8                                   refusal, 24 bytes: under another secret
    +---+-----------+---------------+--------------+
    | 3 | 0   0   0 | hello's index | code (16)    |   covers the hello's code too
    +---+-----------+---------------+--------------+

An index is what the other side writes on its records to us. The hint lets the responder find the pair without trying
every key; it is the same in all hellos of one host to another, so an onlooker sees when a host has moved, and no more.
(epoch, count) rises with every hello of a host, over restarts too. The hello's header and both names are Noise's
prologue. The secret is in the keys and in the code, by which a peer with another secret is told apart from a liar; the
responder goes on under the secret of the code, and a sender that has several tries them in turn.
Bytes that a payload has beyond those known here belong to later versions and are ignored.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.noise import KEY_BYTES, TAG_BYTES, HandshakeState, parse_protocol_name, public_key_of

HELLO: Final = 1
WELCOME: Final = 2
REFUSAL: Final = 3
CODE_BYTES: Final = 16
HINT_BYTES: Final = 8
ADDRESS_BYTES: Final = 18
"""16 of an IPv6 address (IPv4 as ::ffff:a.b.c.d) and 2 of the port, as the worker gives them."""

_PROTOCOL: Final = parse_protocol_name("Noise_IKpsk2_25519_AESGCM_SHA256")
_VERSION: Final = b"weft sleeve 1"
_SEALED: Final = b"sealed"
_CLEAR: Final = b"clear"

_HELLO_HEADER: Final = struct.Struct("!B3xI8sQI")
_HEADER: Final = struct.Struct("!B3xI")
_HELLO_PAYLOAD: Final = struct.Struct("!BI")
_WELCOME_PAYLOAD: Final = struct.Struct(f"!BII{ADDRESS_BYTES}s")
_HAS_AES: Final = 1

HELLO_MIN_BYTES: Final = _HELLO_HEADER.size + 2 * KEY_BYTES + _HELLO_PAYLOAD.size + 2 * TAG_BYTES + CODE_BYTES
WELCOME_MIN_BYTES: Final = _HEADER.size + KEY_BYTES + _WELCOME_PAYLOAD.size + TAG_BYTES + CODE_BYTES
REFUSAL_BYTES: Final = _HEADER.size + CODE_BYTES
DATAGRAM_MAX_BYTES: Final = 512
"""Room for later versions. What we answer is shorter than what we were asked, so nobody is amplified."""
U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Self:
    """What is ours in every handshake."""

    name: PeerName
    private_key: bytes
    public_key: bytes
    psks: tuple[bytes, ...]
    """At least one: zeros where there is no secret."""
    sealed: bool
    has_aes: bool


def make_self(name: PeerName, private_key: bytes, psks: tuple[bytes, ...], has_aes: bool) -> Self:
    return Self(name, private_key, public_key_of(private_key), psks or (bytes(KEY_BYTES),), bool(psks), has_aes)


@dataclass(frozen=True, slots=True)
class Pair:
    """Us and one other peer, and what only the two know."""

    us: Self
    peer: PeerName
    peer_key: bytes
    shared: bytes
    """Made of the Diffie-Hellman result of the static keys. For codes and hints only: sessions' keys are Noise's."""

    @property
    def hint_in(self) -> bytes:
        return _hint(self.shared, self.peer + self.us.name)

    @property
    def hint_out(self) -> bytes:
        return _hint(self.shared, self.us.name + self.peer)

    def code(self, kind: int, psk: bytes, names: bytes, body: bytes) -> bytes:
        """`names` is the speaker's, then the listener's: a datagram sent back to its author does not fit. A refusal
        has no psk, and is understood across the border between clear and sealed as well."""
        mode = (_SEALED if self.us.sealed else _CLEAR) if psk else b""
        person = b"code %d" % kind
        return hashlib.blake2s(
            psk + names + body, key=self.shared, digest_size=CODE_BYTES, salt=mode, person=person
        ).digest()

    def code_out(self, kind: int, psk: bytes, body: bytes) -> bytes:
        return self.code(kind, psk, self.us.name + self.peer, body)

    def code_in(self, kind: int, psk: bytes, body: bytes) -> bytes:
        return self.code(kind, psk, self.peer + self.us.name, body)

    def prologue(self, header: bytes, names: bytes) -> bytes:
        return b" ".join((_VERSION, _SEALED if self.us.sealed else _CLEAR, names + header))


def _hint(shared: bytes, names: bytes) -> bytes:
    return hashlib.blake2s(names, key=shared, digest_size=HINT_BYTES, person=b"hint").digest()


def make_pair_untrusted(us: Self, peer: PeerName, peer_key: bytes) -> Pair:
    """Raises `ProtocolError` `bad-key` for a key that proves nothing (its owner published it)."""
    try:
        theirs = X25519PublicKey.from_public_bytes(peer_key)
        shared = X25519PrivateKey.from_private_bytes(us.private_key).exchange(theirs)
    except ValueError:
        raise ProtocolError("bad-key", "the peer published a sleeve key that is none") from None
    return Pair(us, peer, peer_key, hashlib.blake2s(shared, person=b"pair").digest())


@dataclass(frozen=True, slots=True)
class Result:
    """What both ends of a finished handshake agree on."""

    key_out: bytes
    key_in: bytes
    local_index: int
    remote_index: int
    generation: int
    aes: bool
    observed: bytes
    """Our address as the other side saw it (`ADDRESS_BYTES`); empty at the responder."""


class Opening:
    """The initiator's side: made with the hello it sends, good for one welcome."""

    __slots__ = ("_code", "_pair", "_psk", "_state", "datagram", "index")

    def __init__(
        self, pair: Pair, psk: bytes, ephemeral: bytes, index: int, stamp: tuple[int, int], generation: int
    ) -> None:
        us = pair.us
        header = _HELLO_HEADER.pack(HELLO, index, pair.hint_out, *stamp)
        self._pair, self._psk, self.index = pair, psk, index
        self._state = HandshakeState(
            _PROTOCOL,
            initiator=True,
            prologue=pair.prologue(header, us.name + pair.peer),
            s=us.private_key,
            e=ephemeral,
            rs=pair.peer_key,
            psks=(psk,),
        )
        body = header + self._state.write_message(_HELLO_PAYLOAD.pack(_HAS_AES * us.has_aes, generation))
        self._code = pair.code_out(HELLO, psk, body)
        self.datagram = body + self._code

    def finish_untrusted(self, datagram: bytes) -> Result:
        """What a welcome brings. Raises `ProtocolError`; with reason `bad-code` it was not our peer's, and another
        one may still come."""
        body, code = datagram[:-CODE_BYTES], datagram[-CODE_BYTES:]
        if not hmac.compare_digest(code, self._pair.code_in(WELCOME, self._psk, body)):
            raise ProtocolError("bad-code", "a welcome that is not from the peer that was asked")
        if self._state.failed:
            raise ProtocolError("bad-handshake", "the handshake has failed before")
        payload = self._state.read_message_untrusted(body[_HEADER.size :])
        if len(payload) < _WELCOME_PAYLOAD.size:
            raise ProtocolError("bad-handshake", "the welcome's payload is too short")
        flags, generation, remote_index, observed = _WELCOME_PAYLOAD.unpack_from(payload)
        aes = bool(flags & _HAS_AES) and self._pair.us.has_aes
        return Result(*self._state.transport_keys(), self.index, remote_index, generation, aes, observed)

    def check_refusal_untrusted(self, datagram: bytes) -> None:
        """Returns if it is the peer's own word about this very hello. Raises `ProtocolError` `bad-code` otherwise."""
        body, code = datagram[:-CODE_BYTES], datagram[-CODE_BYTES:]
        if not hmac.compare_digest(code, self._pair.code_in(REFUSAL, b"", body + self._code)):
            raise ProtocolError("bad-code", "a refusal that is not from the peer that was asked")


class Hello(NamedTuple):
    """A hello in its parts; nothing of it is proven until `psk_of_untrusted` found the secret of its code. A tuple,
    as floods make many."""

    sender_index: int
    hint: bytes
    stamp: tuple[int, int]
    """(epoch, count)"""
    body: bytes
    code: bytes


def hint_of_untrusted(datagram: bytes) -> bytes:
    """Whom a hello claims to be from; all that is looked at where nobody fits it."""
    if not HELLO_MIN_BYTES <= len(datagram) <= DATAGRAM_MAX_BYTES or datagram[:4] != b"\x01\0\0\0":
        raise ProtocolError("bad-hello", "no hello has this length or beginning")
    return datagram[8:16]


def parse_hello_untrusted(datagram: bytes) -> Hello:
    hint_of_untrusted(datagram)
    _, index, hint, epoch, count = _HELLO_HEADER.unpack_from(datagram)
    return Hello(index, hint, (epoch, count), datagram[:-CODE_BYTES], datagram[-CODE_BYTES:])


def parse_welcome_untrusted(datagram: bytes) -> int:
    """The index of the hello that it answers."""
    if not WELCOME_MIN_BYTES <= len(datagram) <= DATAGRAM_MAX_BYTES or datagram[:4] != b"\x02\0\0\0":
        raise ProtocolError("bad-welcome", f"{len(datagram)} bytes that are no welcome")
    return int(_HEADER.unpack_from(datagram)[1])


def parse_refusal_untrusted(datagram: bytes) -> int:
    """The index of the hello that it answers."""
    if len(datagram) != REFUSAL_BYTES or datagram[:4] != b"\x03\0\0\0":
        raise ProtocolError("bad-refusal", f"{len(datagram)} bytes that are no refusal")
    return int(_HEADER.unpack_from(datagram)[1])


def psk_of_untrusted(pair: Pair, hello: Hello) -> bytes | None:
    """Which of our secrets the hello's code was made under; None: another one, or it is forged."""
    for psk in pair.us.psks:
        if hmac.compare_digest(hello.code, pair.code_in(HELLO, psk, hello.body)):
            return psk
    return None


def refuse(pair: Pair, hello: Hello) -> bytes:
    """The refusal to a hello under another secret."""
    body = _HEADER.pack(REFUSAL, hello.sender_index)
    return body + pair.code_out(REFUSAL, b"", body + hello.code)


def answer_untrusted(
    pair: Pair, psk: bytes, hello: Hello, ephemeral: bytes, index: int, generation: int, source: bytes
) -> tuple[Result, bytes]:
    """The responder's side, all of it: keys and the welcome to send. `generation` is the highest of this pair here."""
    assert len(source) == ADDRESS_BYTES
    us = pair.us
    state = HandshakeState(
        _PROTOCOL,
        initiator=False,
        prologue=pair.prologue(hello.body[: _HELLO_HEADER.size], pair.peer + us.name),
        s=us.private_key,
        e=ephemeral,
        psks=(psk,),
    )
    payload = state.read_message_untrusted(hello.body[_HELLO_HEADER.size :])
    if state.rs != pair.peer_key:
        raise ProtocolError("bad-handshake", "the hello names another static key than its hint")
    if len(payload) < _HELLO_PAYLOAD.size:
        raise ProtocolError("bad-handshake", "the hello's payload is too short")
    flags, theirs = _HELLO_PAYLOAD.unpack_from(payload)
    generation = min(max(generation, theirs) + 1, U32_MAX)
    sealed = state.write_message(_WELCOME_PAYLOAD.pack(_HAS_AES * us.has_aes, generation, index, source))
    body = _HEADER.pack(WELCOME, hello.sender_index) + sealed
    aes = bool(flags & _HAS_AES) and us.has_aes
    result = Result(*state.transport_keys(), index, hello.sender_index, generation, aes, b"")
    return result, body + pair.code_out(WELCOME, psk, body)
