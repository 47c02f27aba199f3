"""Passwords as people write them, and the psk that comes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.secret import (
    NO_SECRET_PSK,
    PASSWORD_MAX_BYTES,
    PASSWORDS_MAX,
    WARN_BELOW_CHARACTERS,
    derive_psk,
    parse_passwords,
    warning_for,
)


def test_one_password_a_line_the_first_is_sent() -> None:
    assert parse_passwords("new one\nold one\n", "file") == ("new one", "old one")


def test_invisible_differences_make_no_other_password() -> None:
    assert parse_passwords("\ufeff  caf\u00e9 \r\n\n\t\ncafe\u0301\n", "file") == ("caf\u00e9",)
    assert derive_psk("caf\u00e9") == derive_psk("cafe\u0301")


@pytest.mark.parametrize("text", ["", "\n \n\t\r\n", "\ufeff"])
def test_an_empty_file_is_an_error_and_never_an_open_cluster(text: str) -> None:
    with pytest.raises(ValueError, match="/etc/weft/pw holds no password"):
        parse_passwords(text, "/etc/weft/pw")


@pytest.mark.parametrize("text", ["good\nwith\0nul", "good\nwith\rreturn", "good\nlone \ud800 surrogate"])
def test_what_cannot_be_a_password_is_named_by_its_line(text: str) -> None:
    with pytest.raises(ValueError, match="pw, line 2") as caught:
        parse_passwords(text, "pw")
    assert "\n" not in str(caught.value)


def test_password_length_limit() -> None:
    assert parse_passwords("x" * PASSWORD_MAX_BYTES, "pw")
    with pytest.raises(ValueError, match="line 1: longer"):
        parse_passwords("\u00e9" * (PASSWORD_MAX_BYTES // 2 + 1), "pw")


def test_password_count_limit() -> None:
    lines = [f"password number {n}" for n in range(PASSWORDS_MAX + 1)]
    assert len(parse_passwords("\n".join(lines[:-1]), "pw")) == PASSWORDS_MAX
    with pytest.raises(ValueError, match="remove the old ones"):
        parse_passwords("\n".join(lines), "pw")


@given(st.text())
def test_any_text_is_passwords_or_one_line_of_error(text: str) -> None:
    try:
        passwords = parse_passwords(text, "pw")
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert passwords
        assert parse_passwords("\n".join(passwords), "pw") == passwords


def test_the_derivation_is_part_of_the_protocol_and_never_changes() -> None:
    # From the same parameters given to another implementation (cryptography's Scrypt).
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    expected = Scrypt(salt=b"weft link secret 1", length=32, n=32768, r=8, p=1).derive(b"correct horse")
    assert derive_psk("correct horse") == expected
    assert expected.hex() == "65eb55f067f2d2ffc727384033d19426b6cf076c8b6857b19bb7cff8c5b85152"
    assert derive_psk("correct horses") != expected
    assert len(NO_SECRET_PSK) == len(expected)


@pytest.mark.parametrize("password", ["secret", "x" * (WARN_BELOW_CHARACTERS - 1), "abab" * 10])
def test_a_guessable_password_gets_a_warning_that_does_not_hold_it(password: str) -> None:
    warning = warning_for(password)
    assert warning is not None
    assert password not in warning
    assert len(warning.splitlines()) == 1
    assert "openssl" in warning


def test_a_long_random_password_gets_no_warning() -> None:
    assert warning_for("q7Zb1LxV0rT+9sKdM2pYwA3u") is None
