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
    """Whether the owner of `public_key` signed `message`. Any malformed key or signature is simply not valid."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
