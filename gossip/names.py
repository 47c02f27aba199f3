"""The peer's name: the one word that the control plane and the data plane must spell the same.

A name is the first eight bytes of the SHA-256 of the peer's Ed25519 public key, so it cannot be claimed without the
key. It is printed like a MAC address. This module knows nothing of keys' other uses, of links or of nicknames.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

PeerName = NewType("PeerName", bytes)
"""Eight bytes. Ordered as bytes, which is the order of every tie-break."""

PEER_NAME_BYTES = 8
_PRINTED = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){7}")


def name_of_key(public_key: bytes) -> PeerName:
    """The name that belongs to a raw 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    return PeerName(hashlib.sha256(public_key).digest()[:PEER_NAME_BYTES])


def format_name(name: PeerName) -> str:
    """`aa:bb:cc:dd:ee:ff:00:11`."""
    return name.hex(":")


def parse_name(text: str) -> PeerName:
    """The inverse of `format_name`. Raises `ValueError` for anything else."""
    if not _PRINTED.fullmatch(text.lower()):
        raise ValueError(f"{text!r} is not a peer name (eight bytes as in 1a:2b:3c:4d:5e:6f:70:81)")
    return PeerName(bytes.fromhex(text.replace(":", "")))
