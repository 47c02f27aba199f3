"""Who a peer is: an Ed25519 key that signs its documents and its links, and an X25519 key for link handshakes.

The two keys are independent, so that using one can never weaken the other. Keys are made from bytes handed in; where
they are kept is the daemon's affair.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gossip.names import PeerName, name_of_key

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
_SIGN_BIT = 0x80
_LOW_ORDER_Y = frozenset(
    bytes.fromhex(y)
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)
"""The points of order 1, 2, 4 and 8 and the other spellings of them, without the sign bit: public keys under which
anybody can sign (RFC 8032, section 8.9, leaves it to us to refuse them)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's private side."""

    signing_seed: bytes
    """32 random bytes: the Ed25519 private key (RFC 8032, section 5.1.5)."""
    link_private: bytes
    """32 random bytes: the X25519 private key (RFC 7748) of Noise handshakes."""
    public_key: bytes = field(init=False)
    name: PeerName = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.signing_seed) == 32 and len(self.link_private) == 32
        public = Ed25519PrivateKey.from_private_bytes(self.signing_seed).public_key().public_bytes_raw()
        object.__setattr__(self, "public_key", public)
        object.__setattr__(self, "name", name_of_key(public))

    def sign(self, message: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.signing_seed).sign(message)


def signature_is_valid(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the owner of `public_key` signed `message`. Any malformed key or signature is simply not valid, nor is
    one under a key that has no owner."""
    if len(public_key) == PUBLIC_KEY_BYTES and public_key[:-1] + bytes([public_key[-1] & ~_SIGN_BIT]) in _LOW_ORDER_Y:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
