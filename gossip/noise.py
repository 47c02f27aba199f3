"""The Noise protocol framework, revision 34: the handshakes that make two strangers' keys into two sealed streams.

What it deliberately does not know: sockets, frames, time and where keys come from (the caller makes every private key,
the ephemeral one too, and must never use an ephemeral key twice). The one idea: a handshake is a list of messages, a
message is a list of tokens, and every token either sends a key or mixes one Diffie-Hellman result (or the psk) into one
running hash; two sides that mixed the same things in the same order hold the same keys, all others hold nothing.

Classes and methods have the specification's names (https://noiseprotocol.org/noise.html, sections 5, 6, 7 and 9), in
Python's spelling; those that read bytes from the network end in `_untrusted` as everywhere in Weft. Supported are the
patterns in `PATTERNS` with 25519, AESGCM or ChaChaPoly, and SHA256 or BLAKE2s.

`ProtocolError` reasons: `bad-handshake` (wrong size, low-order key, a static key that does not open), `bad-seal` (an
authentication tag that does not fit) and `nonce-exhausted`. A `HandshakeState` that raised is finished: its keys are
dropped, `failed` is true and any further use of it is our mistake. To try again with another psk, `fork` it beforehand.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from gossip.errors import ProtocolError

# Of the specification.
KEY_BYTES = 32
"""A private or public X25519 key, a cipher key and a psk are all this long; so is the output of both hashes."""
TAG_BYTES = 16
MESSAGE_MAX_BYTES = 65535
NONCE_MAX = 2**64 - 1
"""Reserved: only `rekey` uses it. A cipher state that has come this far refuses to seal or open anything more."""

Token = Literal["e", "s", "ee", "es", "se", "ss", "psk"]
CipherName = Literal["AESGCM", "ChaChaPoly"]
HashName = Literal["SHA256", "BLAKE2s"]


@dataclass(frozen=True, slots=True)
class HandshakePattern:
    """Section 7. `messages` alternate, the initiator's first."""

    name: str
    responder_static_known: bool
    messages: tuple[tuple[Token, ...], ...]

    @property
    def has_psk(self) -> bool:
        return any("psk" in tokens for tokens in self.messages)


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        HandshakePattern("XX", False, (("e",), ("e", "ee", "s", "es"), ("s", "se"))),
        HandshakePattern("XXpsk3", False, (("e",), ("e", "ee", "s", "es"), ("s", "se", "psk"))),
        HandshakePattern("IK", True, (("e", "es", "s", "ss"), ("e", "ee", "se"))),
        HandshakePattern("IKpsk2", True, (("e", "es", "s", "ss"), ("e", "ee", "se", "psk"))),
        HandshakePattern("NNpsk0", False, (("psk", "e"), ("e", "ee"))),
    )
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """One full choice of pattern and functions. Section 8."""

    pattern: HandshakePattern
    cipher: CipherName
    hash: HashName

    @property
    def name(self) -> str:
        return f"Noise_{self.pattern.name}_25519_{self.cipher}_{self.hash}"


def parse_protocol_name(name: str) -> Protocol:
    """`Noise_XXpsk3_25519_AESGCM_SHA256` as a `Protocol`. Raises `ValueError` for what is not supported here."""
    ciphers: tuple[CipherName, ...] = ("AESGCM", "ChaChaPoly")
    hashes: tuple[HashName, ...] = ("SHA256", "BLAKE2s")
    for pattern in PATTERNS.values():
        for cipher in ciphers:
            for hash_name in hashes:
                protocol = Protocol(pattern, cipher, hash_name)
                if protocol.name == name:
                    return protocol
    raise ValueError(f"{name!r} is not a Noise protocol that is supported here")


def public_key_of(private_key: bytes) -> bytes:
    """The raw X25519 public key of a raw private one."""
    return _public_of(X25519PrivateKey.from_private_bytes(private_key))


def _public_of(private_key: X25519PrivateKey) -> bytes:
    return private_key.public_key().public_bytes_raw()


def _dh_untrusted(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """X25519. A low-order public key gives zeros whatever our key is, so it proves nothing and is refused."""
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise ProtocolError("bad-handshake", "the other side sent a low-order public key") from error


class CipherState:
    """One direction's key and counter (section 5.1).

    A failed `decrypt_with_ad_untrusted` leaves the state as it was, as the specification says; over a stream the caller
    must then give up, over datagrams it may drop the forged one and go on (`set_nonce`).
    """

    def __init__(self, cipher: CipherName) -> None:
        self._cipher = cipher
        self._aead: AESGCM | ChaCha20Poly1305 | None = None
        self.n = 0

    def initialize_key(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._aead = AESGCM(key) if self._cipher == "AESGCM" else ChaCha20Poly1305(key)
        self.n = 0

    def has_key(self) -> bool:
        return self._aead is not None

    def set_nonce(self, nonce: int) -> None:
        assert 0 <= nonce <= NONCE_MAX
        self.n = nonce

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """The plaintext sealed (16 bytes longer), or as it is while there is no key."""
        if self._aead is None:
            return plaintext
        self._refuse_exhausted_nonce()
        ciphertext = self._aead.encrypt(self._nonce_bytes(self.n), plaintext, ad)
        self.n += 1
        return ciphertext

    def decrypt_with_ad_untrusted(self, ad: bytes, ciphertext: bytes) -> bytes:
        """The inverse. Raises `ProtocolError` `bad-seal`; nothing has changed then."""
        if self._aead is None:
            return ciphertext
        self._refuse_exhausted_nonce()
        try:
            plaintext = self._aead.decrypt(self._nonce_bytes(self.n), ciphertext, ad)
        except InvalidTag as error:
            raise ProtocolError("bad-seal", "a sealed message was changed or is under other keys") from error
        self.n += 1
        return plaintext

    def rekey(self) -> None:
        """Replace the key by one that cannot be computed backwards. The counter goes on. Section 4.2 and 11.3."""
        assert self._aead is not None
        sealed = self._aead.encrypt(self._nonce_bytes(NONCE_MAX), bytes(KEY_BYTES), b"")
        nonce = self.n
        self.initialize_key(sealed[:KEY_BYTES])
        self.n = nonce

    def copy(self) -> CipherState:
        twin = CipherState(self._cipher)
        twin._aead, twin.n = self._aead, self.n  # the AEAD object holds a key and no state, so it can be shared
        return twin

    def _refuse_exhausted_nonce(self) -> None:
        if self.n >= NONCE_MAX:
            raise ProtocolError("nonce-exhausted", "this key has sealed all the messages it may")

    def _nonce_bytes(self, n: int) -> bytes:
        # Section 12: four zero bytes, then the counter; the two ciphers differ in its byte order.
        return bytes(4) + n.to_bytes(8, "big" if self._cipher == "AESGCM" else "little")


class SymmetricState:
    """The running hash `h`, the chaining key `ck` and the cipher they feed (section 5.2)."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._cipher_state = CipherState(protocol.cipher)
        name = protocol.name.encode("ascii")
        self._h = name.ljust(KEY_BYTES, b"\0") if len(name) <= KEY_BYTES else self._hash(name)
        self._ck = self._h

    def mix_key(self, input_key_material: bytes) -> None:
        self._ck, temp_k = self._hkdf(input_key_material, 2)
        self._cipher_state.initialize_key(temp_k)

    def mix_hash(self, data: bytes) -> None:
        self._h = self._hash(self._h + data)

    def mix_key_and_hash(self, input_key_material: bytes) -> None:
        self._ck, temp_h, temp_k = self._hkdf(input_key_material, 3)
        self.mix_hash(temp_h)
        self._cipher_state.initialize_key(temp_k)

    def get_handshake_hash(self) -> bytes:
        return self._h

    def has_key(self) -> bool:
        return self._cipher_state.has_key()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher_state.encrypt_with_ad(self._h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash_untrusted(self, ciphertext: bytes) -> bytes:
        plaintext = self._cipher_state.decrypt_with_ad_untrusted(self._h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split_keys(self) -> tuple[bytes, bytes]:
        """Two fresh raw keys: the first seals what the initiator sends, the second what the responder sends."""
        key_1, key_2 = self._hkdf(b"", 2)
        return key_1, key_2

    def split(self) -> tuple[CipherState, CipherState]:
        """The same keys in ciphers."""
        first, second = CipherState(self._protocol.cipher), CipherState(self._protocol.cipher)
        for state, key in zip((first, second), self.split_keys(), strict=True):
            state.initialize_key(key)
        return first, second

    def copy(self) -> SymmetricState:
        twin = SymmetricState(self._protocol)
        twin._h, twin._ck, twin._cipher_state = self._h, self._ck, self._cipher_state.copy()
        return twin

    def _hash(self, data: bytes) -> bytes:
        return (hashlib.sha256(data) if self._protocol.hash == "SHA256" else hashlib.blake2s(data)).digest()

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, hashlib.sha256 if self._protocol.hash == "SHA256" else hashlib.blake2s)

    def _hkdf(self, input_key_material: bytes, count: int) -> list[bytes]:
        """Section 4.3: `count` keys out of the chaining key and the new material."""
        temp_key = self._hmac(self._ck, input_key_material)
        outputs: list[bytes] = []
        previous = b""
        for number in range(1, count + 1):
            previous = self._hmac(temp_key, previous + bytes([number]))
            outputs.append(previous)
        return outputs


class HandshakeState:
    """One side of one handshake (section 5.3): `write_message` and `read_message_untrusted` by turns until `complete`.

    Keys are raw 32 bytes: `s` and `e` our private ones, `rs` the other side's public static key where the pattern wants
    it known. `psks` may come late, by `fork`, as long as they are there when the pattern's `psk` token is met.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        initiator: bool,
        prologue: bytes = b"",
        s: bytes | None = None,
        e: bytes | None = None,
        rs: bytes | None = None,
        psks: Sequence[bytes] = (),
    ) -> None:
        assert all(key is None or len(key) == KEY_BYTES for key in (s, e, rs))
        assert all(len(psk) == KEY_BYTES for psk in psks)
        self._pattern = protocol.pattern
        self._initiator = initiator
        # Loading a raw private key multiplies by the base point, which is half of a Diffie-Hellman: once is enough.
        self._s = None if s is None else X25519PrivateKey.from_private_bytes(s)
        self._e = None if e is None else X25519PrivateKey.from_private_bytes(e)
        self.rs: bytes | None = rs
        """The other side's static key: proven to be its own only when the handshake is `complete`."""
        self._re: bytes | None = None
        self._psks = tuple(psks)
        self._message_index = 0
        self._transport: tuple[CipherState, CipherState] | None = None
        self._symmetric: SymmetricState | None = SymmetricState(protocol)
        self._symmetric.mix_hash(prologue)
        if self._pattern.responder_static_known:
            known = rs if initiator else _public_of(self._own(self._s))
            assert known is not None, f"{self._pattern.name} wants the responder's static key beforehand"
            self._symmetric.mix_hash(known)

    @property
    def failed(self) -> bool:
        """An error ended this handshake; nothing more can be done with it."""
        return self._symmetric is None

    @property
    def complete(self) -> bool:
        """All messages went; `transport` and `get_handshake_hash` may be asked."""
        return self._transport is not None

    @property
    def message_index(self) -> int:
        """The number, from 0, of the message that comes next."""
        return self._message_index

    def transport(self) -> tuple[CipherState, CipherState]:
        """The ciphers for (what we send, what we receive)."""
        assert self._transport is not None, "the handshake is not complete"
        first, second = self._transport
        return (first, second) if self._initiator else (second, first)

    def transport_keys(self) -> tuple[bytes, bytes]:
        """The raw keys of the same two directions, for a transport whose counters are its own (datagrams that may be
        lost) or whose cipher is. Never use them beside `transport`: two counters under one key repeat nonces."""
        assert self._symmetric is not None and self.complete, "the handshake is not complete"
        first, second = self._symmetric.split_keys()
        return (first, second) if self._initiator else (second, first)

    def get_handshake_hash(self) -> bytes:
        """32 bytes that only the two ends of this very handshake have in common; not a secret. Section 11.2."""
        assert self._symmetric is not None and self.complete, "the handshake is not complete"
        return self._symmetric.get_handshake_hash()

    def fork(self, *, psks: Sequence[bytes]) -> HandshakeState:
        """A twin at the same point that will go on with these psks; whatever becomes of it, this one stays as it is."""
        assert self._symmetric is not None and not self.complete, "the handshake is finished"
        assert all(len(psk) == KEY_BYTES for psk in psks)
        twin = HandshakeState.__new__(HandshakeState)
        twin.__dict__.update(self.__dict__)
        twin._symmetric = self._symmetric.copy()
        twin._psks = tuple(psks)
        return twin

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message. Raises `ProtocolError` `bad-handshake` where the keys read before turn out worthless."""
        symmetric = self._take_turn(writing=True)
        try:
            parts: list[bytes] = []
            for token in self._pattern.messages[self._message_index]:
                if token == "e":
                    public = _public_of(self._own(self._e))
                    parts.append(public)
                    self._mix_ephemeral(symmetric, public)
                elif token == "s":
                    parts.append(symmetric.encrypt_and_hash(_public_of(self._own(self._s))))
                else:
                    self._mix_token_untrusted(symmetric, token)
            parts.append(symmetric.encrypt_and_hash(payload))
        except ProtocolError:
            self._symmetric = None
            raise
        message = b"".join(parts)
        assert len(message) <= MESSAGE_MAX_BYTES
        self._finish_message(symmetric)
        return message

    def read_message_untrusted(self, message: bytes) -> bytes:
        """The payload of the other side's next message.

        Raises `ProtocolError`: `bad-handshake`, or `bad-seal` where only the payload does not open (which is how a
        wrong psk shows when its token comes last).
        """
        symmetric = self._take_turn(writing=False)
        try:
            payload = self._read_untrusted(symmetric, message)
        except ProtocolError:
            self._symmetric = None
            raise
        self._finish_message(symmetric)
        return payload

    def _read_untrusted(self, symmetric: SymmetricState, message: bytes) -> bytes:
        if len(message) > MESSAGE_MAX_BYTES:
            raise ProtocolError("bad-handshake", f"a handshake message of {len(message)} bytes is too long")
        position = 0
        for token in self._pattern.messages[self._message_index]:
            if token == "e":
                self._re = self._slice_untrusted(message, position, KEY_BYTES)
                position += KEY_BYTES
                self._mix_ephemeral(symmetric, self._re)
            elif token == "s":
                size = KEY_BYTES + (TAG_BYTES if symmetric.has_key() else 0)
                sealed = self._slice_untrusted(message, position, size)
                position += size
                try:
                    self.rs = symmetric.decrypt_and_hash_untrusted(sealed)
                except ProtocolError as error:
                    raise ProtocolError("bad-handshake", "the static key of the other side does not open") from error
            else:
                self._mix_token_untrusted(symmetric, token)
        return symmetric.decrypt_and_hash_untrusted(message[position:])

    def _mix_ephemeral(self, symmetric: SymmetricState, public: bytes) -> None:
        symmetric.mix_hash(public)
        if self._pattern.has_psk:  # section 9.2: in psk handshakes an ephemeral key is also keying material
            symmetric.mix_key(public)

    def _mix_token_untrusted(self, symmetric: SymmetricState, token: Token) -> None:
        """`psk`, or the Diffie-Hellman of the two keys the token names, the initiator's letter first."""
        if token == "psk":
            assert self._psks, "the pattern needs a psk that was not given"
            symmetric.mix_key_and_hash(self._psks[0])
            self._psks = self._psks[1:]
            return
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = self._own(self._e if ours == "e" else self._s)
        public = self._re if theirs == "e" else self.rs
        assert public is not None
        symmetric.mix_key(_dh_untrusted(private, public))

    def _take_turn(self, *, writing: bool) -> SymmetricState:
        assert self._symmetric is not None, "this handshake failed and is finished"
        assert not self.complete, "this handshake is complete"
        ours = (self._message_index % 2 == 0) == self._initiator
        assert ours == writing, "it is the other side's turn"
        return self._symmetric

    def _finish_message(self, symmetric: SymmetricState) -> None:
        self._message_index += 1
        if self._message_index == len(self._pattern.messages):
            self._transport = symmetric.split()

    @staticmethod
    def _own(key: X25519PrivateKey | None) -> X25519PrivateKey:
        assert key is not None, "the pattern needs a private key that was not given"
        return key

    @staticmethod
    def _slice_untrusted(message: bytes, start: int, size: int) -> bytes:
        if len(message) < start + size:
            raise ProtocolError("bad-handshake", f"a handshake message of {len(message)} bytes is too short")
        return message[start : start + size]
