"""Keys, and the signatures that they did not make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import signature_is_valid
from gossip.names import format_name, name_of_key, parse_name
from tests.gossip.actors import identity


def test_an_identity_is_a_function_of_its_seed() -> None:
    """RFC 8032, section 7.1, test 1: the key that belongs to this seed; the name is the beginning of its hash."""
    from gossip.identity import Identity

    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    made = Identity(seed, bytes(32))
    assert made.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert made.name == name_of_key(made.public_key)
    assert made.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


def test_only_the_owner_signs() -> None:
    signature = identity(1).sign(b"message")
    assert signature_is_valid(identity(1).public_key, signature, b"message")
    assert not signature_is_valid(identity(2).public_key, signature, b"message")
    assert not signature_is_valid(identity(1).public_key, signature, b"another")


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=20))
def test_malformed_keys_and_signatures_are_not_valid(key: bytes, signature: bytes, message: bytes) -> None:
    assert not signature_is_valid(key, signature, message)
    assert not signature_is_valid(identity(1).public_key, signature, message)


ORDER = 2**252 + 27742317777372353535851937790883648493


def test_a_signature_cannot_be_written_in_another_way() -> None:
    """Adding the group's order to its second half gives no second signature, so no second page with the same text."""
    signature = identity(1).sign(b"message")
    other = signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
    assert not signature_is_valid(identity(1).public_key, other, b"message")


PRIME = 2**255 - 19
EIGHTH = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", [0, 1, PRIME - 1, PRIME, PRIME + 1, int.from_bytes(bytes.fromhex(EIGHTH), "little")])
def test_keys_under_which_anybody_can_sign_are_refused(y: int, sign: int) -> None:
    """The points of small order: a signature of zeros is good for one message in eight or for every one."""
    for value in (y, -y % PRIME if y < PRIME else y):
        key = (value | sign << 255).to_bytes(32, "little")
        for message in range(32):
            for signature in (bytes(64), b"\x01" + bytes(63)):
                assert not signature_is_valid(key, signature, bytes([message]))


def test_names_are_printed_and_read() -> None:
    name = identity(1).name
    assert parse_name(format_name(name)) == name
    for text in ("", "aa", format_name(name)[:-1], format_name(name) + ":00", "g" + format_name(name)[1:]):
        with pytest.raises(ValueError, match="is not a peer name"):
            parse_name(text)
