"""The cluster's secret: from what people type to the 32-byte psk of a link.

What it deliberately does not know: files, environment and where the result is cached (the caller reads and caches; the
derivation burns a tenth of a second on purpose). The one idea: a joiner knows nothing but the password, so the salt is
a constant, and whoever a peer dials learns enough in the handshake to test guesses offline. The price of one guess is
all that protects a short password, hence scrypt and the warning; a long random one needs neither.
"""

from __future__ import annotations

import hashlib
import unicodedata

PSK_BYTES = 32
NO_SECRET_PSK = bytes(PSK_BYTES)
"""What a cluster without a password uses: links are sealed, but anybody may join."""

# scrypt's price for one guess, RFC 7914: memory is 128 * N * r = 32 MiB, which is what makes graphics cards slow at it,
# and still fits beside a small host's other daemons for the 0.1 s that it takes. p = 1: more would cost us as much as
# it costs the guesser. These and the salt are part of the wire protocol: changing one is a new cluster secret.
SCRYPT_N = 2**15
SCRYPT_R = 8
SCRYPT_P = 1
SCRYPT_MEMORY_MAX_BYTES = 64 * 1024 * 1024
SCRYPT_SALT = b"weft link secret 1"

PASSWORDS_MAX = 8
"""Rotation needs two. Each one costs a responder a derivation at start and a trial at every refused handshake."""
PASSWORD_MAX_BYTES = 1024
WARN_BELOW_CHARACTERS = 16
WARN_BELOW_DISTINCT_CHARACTERS = 6


def parse_passwords(text: str, source: str) -> tuple[str, ...]:
    """The passwords in a password file or variable, one a line: the first is sent, all are accepted.

    Space around a line and blank lines are ignored (they are invisible, and would show only as peers refusing each
    other), and so is a repetition. `source` names the file or variable in errors. Raises `ValueError` with one line for
    users where a line cannot be a password or no line is one: an empty password file must not open the cluster.
    """
    passwords: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        password = unicodedata.normalize("NFC", line.strip())
        if not password or password in passwords:
            continue
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
            raise ValueError(f"{source}, line {number}: a password cannot hold control characters; use plain text")
        if len(password.encode("utf-8")) > PASSWORD_MAX_BYTES:
            raise ValueError(f"{source}, line {number}: longer than {PASSWORD_MAX_BYTES} bytes; use a shorter password")
        passwords.append(password)
    if not passwords:
        raise ValueError(f"{source} holds no password; write one a line, or leave it out to run without a secret")
    if len(passwords) > PASSWORDS_MAX:
        raise ValueError(f"{source} holds {len(passwords)} passwords, more than {PASSWORDS_MAX}; remove the old ones")
    return tuple(passwords)


def derive_psk(password: str) -> bytes:
    """32 bytes, the same on every host for the same password. Burns about 0.1 s and 32 MiB."""
    assert password
    return hashlib.scrypt(
        unicodedata.normalize("NFC", password).encode("utf-8"),
        salt=SCRYPT_SALT,
        n=SCRYPT_N,
        r=SCRYPT_R,
        p=SCRYPT_P,
        maxmem=SCRYPT_MEMORY_MAX_BYTES,
        dklen=PSK_BYTES,
    )


def warning_for(password: str) -> str | None:
    """One line for the user where the password looks guessable, else None. Never holds the password itself."""
    if len(password) >= WARN_BELOW_CHARACTERS and len(set(password)) >= WARN_BELOW_DISTINCT_CHARACTERS:
        return None
    fault = (
        f"is shorter than {WARN_BELOW_CHARACTERS} characters"
        if len(password) < WARN_BELOW_CHARACTERS
        else "repeats a few characters"
    )
    return f"the password {fault}: any host that is dialled can guess it offline; make one with openssl rand -base64 18"
