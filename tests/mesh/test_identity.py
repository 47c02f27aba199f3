"""The host's keys: made once, completed where an older document lacks one, told only by their public half."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mesh.identity import document_of, keys_of, sleeve_key_of


def test_keys_come_back_as_they_were_kept() -> None:
    """Three independent ones."""
    made = keys_of(None, Random(1).randbytes)
    assert keys_of(document_of(made, 4), Random(2).randbytes) == made
    private = {made.identity.signing_seed, made.identity.link_private, made.sleeve_private}
    assert len(private) == 3 and all(len(each) == 32 for each in private)


def test_a_document_from_before_the_sleeve_gets_that_key_alone() -> None:
    """The name must not change under those who know it."""
    old = document_of(keys_of(None, Random(1).randbytes), 4)
    del old["sleeve_private"]
    new = keys_of(old, Random(2).randbytes)
    assert document_of(new, 4) == {**old, "sleeve_private": Random(2).randbytes(32).hex()}


def test_the_public_half_fits_and_nothing_private_is_shown() -> None:
    """A handshake of two strangers agrees."""
    keys = keys_of(None, Random(1).randbytes)
    other = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    mine = X25519PrivateKey.from_private_bytes(keys.sleeve_private)
    assert other.exchange(X25519PublicKey.from_public_bytes(keys.sleeve_public)) == mine.exchange(other.public_key())
    assert keys.sleeve_private.hex() not in repr(keys) and repr(keys.sleeve_private) not in repr(keys)


@pytest.mark.parametrize("told", [None, b"", b"\x01" * 31, b"\x01" * 33, "x" * 32, 7, True])
def test_what_is_no_key_is_none(told: object) -> None:
    """Any member may say anything."""
    assert sleeve_key_of({"sleeve_key": told}) is None
    assert sleeve_key_of({}) is None
    assert sleeve_key_of({"sleeve_key": b"\x01" * 32}) == b"\x01" * 32
