"""The host's keys as they are kept on disk, and the public half that other hosts are told.

Gossip's identity signs and opens links; the sleeve has a key pair of its own, so that a worker that is taken over by
somebody hostile cannot speak as this host in gossip. Knows neither the disk nor where random bytes come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gossip.identity import PUBLIC_KEY_BYTES, Identity

SLEEVE_KEY = "sleeve_key"
"""The attribute of the `peer` document that holds the public key of the host's sleeve."""
PRIVATE_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything in the document `identity` but its epoch."""

    identity: Identity
    sleeve_private: bytes = field(repr=False)
    """32 random bytes: the X25519 private key of the sleeve's handshakes."""
    sleeve_public: bytes = field(init=False)

    def __post_init__(self) -> None:
        public = X25519PrivateKey.from_private_bytes(self.sleeve_private).public_key().public_bytes_raw()
        object.__setattr__(self, "sleeve_public", public)


def keys_of(document: Mapping[str, Any] | None, random_bytes: Callable[[int], bytes]) -> Keys:
    """The keys that a document holds; those that it lacks (all, at the first launch) are made."""
    known = document or {}

    def private(name: str) -> bytes:
        return bytes.fromhex(known[name]) if document is not None else random_bytes(PRIVATE_KEY_BYTES)

    sleeve = known.get("sleeve_private")  # an identity from before the sleeve has none
    return Keys(
        Identity(private("signing_seed"), private("link_private")),
        bytes.fromhex(sleeve) if sleeve else random_bytes(PRIVATE_KEY_BYTES),
    )


def document_of(keys: Keys, epoch: int) -> dict[str, Any]:
    return {
        "signing_seed": keys.identity.signing_seed.hex(),
        "link_private": keys.identity.link_private.hex(),
        "sleeve_private": keys.sleeve_private.hex(),
        "epoch": epoch,
    }


def sleeve_key_of(attributes: Mapping[str, Any]) -> bytes | None:
    """The sleeve's public key among what a peer tells of itself; None where it tells none or nonsense."""
    key = attributes.get(SLEEVE_KEY)
    return key if isinstance(key, bytes) and len(key) == PUBLIC_KEY_BYTES else None
