"""A session: the keys and counters under which two peers exchange records for two minutes or so.

Knows neither how its keys were agreed (`handshake`) nor which session is sent under (`keys`). The one idea: it is read
and written on the frame path, so it is plain attributes; the worker adds to `counter` and `sent_bytes`, and everything
else that it has to know is looked at when time passes, not when frames do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dataplane.sleeve.handshake import Result
from dataplane.sleeve.replay import Window
from gossip.names import PeerName

AES_256_GCM: Final = "aes-256-gcm"
CHACHA20_POLY1305: Final = "chacha20-poly1305"
CLEAR: Final = "none"

Aead = AESGCM | ChaCha20Poly1305


@dataclass(slots=True, eq=False)
class Session:
    peer: PeerName
    local_index: int
    """What the peer writes on records to us."""
    remote_index: int
    """What we write on records to the peer."""
    seal: Aead | None
    """For what we send; None where records travel in clear."""
    open: Aead | None
    """For what we receive."""
    sign: Aead | None
    """Makes the tag of a record that travels in clear; None where records are sealed."""
    verify: Aead | None
    cipher: str
    is_initiator: bool
    born_s: float
    generation: int
    """One more than that of any session that either side had before: the newest is sent under."""
    rank: int
    """Orders the sessions of a pair, on both sides alike: generation, then whose initiator has the lower name."""
    observed: bytes
    """Our address as the peer saw it during the handshake (16 + 2 bytes); empty where we are the responder."""
    counter: int = 0
    """Of the next datagram to send. A record takes as many as it has datagrams, and its first is its nonce."""
    sent_bytes: int = 0
    window: Window = field(default_factory=Window)
    confirmed: bool = False
    """A record has been opened under it. Until then a responder does not send under it."""
    confirmed_s: float = 0.0
    roll_at_s: float = 0.0
    """When it is old enough to be replaced."""
    heard_s: float = 0.0
    """When something new was last seen to have arrived under it, to within a look (some seconds)."""
    heard_top: int = -1
    used_counter: int = 0
    confirm_at_s: float | None = None
    """When the worker should next send a record under it, so that the peer sees that it works."""
    confirm_tries: int = 0


def make_session(peer: PeerName, result: Result, *, sealed: bool, is_initiator: bool, low: bool, now: float) -> Session:
    """`low`: our name is the lower of the two."""
    kind, cipher = (AESGCM, AES_256_GCM) if result.aes else (ChaCha20Poly1305, CHACHA20_POLY1305)
    ours, theirs = kind(result.key_out), kind(result.key_in)
    return Session(
        peer=peer,
        local_index=result.local_index,
        remote_index=result.remote_index,
        seal=ours if sealed else None,
        open=theirs if sealed else None,
        sign=None if sealed else ours,
        verify=None if sealed else theirs,
        cipher=cipher if sealed else CLEAR,
        is_initiator=is_initiator,
        born_s=now,
        generation=result.generation,
        rank=2 * result.generation + (is_initiator == low),
        observed=result.observed,
        heard_s=now,
    )
