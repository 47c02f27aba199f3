"""One control connection as a machine: bytes and time in, events and bytes out.

What it deliberately does not know: sockets (the shell reads, writes, closes and calls `handle_timeout`), what messages
mean, and who the other side is beyond its static key: the upper layer proves identities by signing `handshake_hash`.
The one idea: a link is a stream of frames that goes through five stages and never back, and in each stage exactly one
function says which frames may come and how long they may be, before a byte of a body is kept.

    PREFACE -> HANDSHAKE -> (initiator: CONFIRM) -> OPEN        each of them -> FINISHED

Each side sends its preface at once. Both prefaces, the initiator's first, are the Noise prologue of
Noise_XXpsk3_25519_AESGCM_SHA256, so nobody between can talk the two into an older version:

     0   1   2   3     4         5
    +---+---+---+---+---------+---------+
    |  W  E  F  T   | version | version |        the version spoken is the smaller of the two newest
    |               | oldest  | newest  |
    +---------------+---------+---------+

then frames:

     0        1        2        3
    +--------+--------+--------+---------------------+
    | type   | length (big e.) | body, length bytes  |
    +--------+-----------------+---------------------+
      1 handshake   a Noise message with empty payload, 48 / 96 / 64 bytes: initiator, responder, initiator
      2 transport   a Noise transport message: sealed(kind, content), see below
      3 refusal     a reason in clear: a hint only, since anybody on the way can write it. Only before the stage OPEN

    sealed, then the tag:   +--------+-----------------------------+----------+
                            | kind   | content, 0 to 16384 bytes   | tag (16) |
                            +--------+-----------------------------+----------+
      0 confirm     empty; the responder's first, so that the initiator knows that its password was accepted
      1 message     one message of the upper layer
      2 refusal     a reason, like the frame above but authentic; the last frame

A reason is 1 to 32 bytes of a-z, 0-9 and -. In either direction the key is replaced (Noise rekey) after every 2^20th
transport frame. A frame's body is authenticated whole before anything looks at it.

`ProtocolError` reasons raised here: bad-magic bad-version bad-frame too-long bad-handshake wrong-password bad-seal
handshake-timeout too-slow.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gossip.errors import ProtocolError
from gossip.noise import KEY_BYTES, TAG_BYTES, CipherState, HandshakeState, parse_protocol_name

# Of the protocol.
MAGIC: Final = b"WEFT"
VERSION_OLDEST: Final = 1
VERSION_NEWEST: Final = 1
PREFACE: Final = MAGIC + bytes([VERSION_OLDEST, VERSION_NEWEST])
NOISE_PROTOCOL: Final = parse_protocol_name("Noise_XXpsk3_25519_AESGCM_SHA256")
HANDSHAKE_MESSAGE_BYTES: Final = (
    KEY_BYTES + TAG_BYTES,  # e, empty payload (sealed already: a psk pattern mixes e into the key)
    KEY_BYTES + KEY_BYTES + TAG_BYTES + TAG_BYTES,  # e, s, empty payload
    KEY_BYTES + TAG_BYTES + TAG_BYTES,  # s, empty payload
)
FRAME_HEADER_BYTES: Final = 3
KIND_BYTES: Final = 1
MESSAGE_MAX_BYTES: Final = 16384
REFUSAL_MAX_BYTES: Final = 32
HANDSHAKE_FRAME_MAX_BYTES: Final = max(HANDSHAKE_MESSAGE_BYTES)
"""The longest body anybody can make us wait for before it has shown that it knows the secret."""
TRANSPORT_FRAME_MIN_BYTES: Final = KIND_BYTES + TAG_BYTES
TRANSPORT_FRAME_MAX_BYTES: Final = KIND_BYTES + MESSAGE_MAX_BYTES + TAG_BYTES
REKEY_AFTER_FRAMES: Final = 2**20
"""Far below AES-GCM's bound of 2^24.5 full records a key (RFC 8446, 5.5); links live for months."""

# Of this implementation.
HANDSHAKE_TIMEOUT_S: Final = 10.0
SEND_QUEUE_MAX_BYTES: Final = 4 * 1024 * 1024
"""More than this waiting to be taken by the shell means that the other side does not read: the link ends."""

_REASON = re.compile(rb"[a-z0-9-]{1,%d}" % REFUSAL_MAX_BYTES)
_REASONS_BEFORE_COMMON_LANGUAGE = frozenset({"bad-magic", "bad-version"})


class FrameType(enum.IntEnum):
    HANDSHAKE = 1
    TRANSPORT = 2
    REFUSAL = 3


class Kind(enum.IntEnum):
    CONFIRM = 0
    MESSAGE = 1
    REFUSAL = 2


class Stage(enum.Enum):
    PREFACE = "preface"
    HANDSHAKE = "handshake"
    CONFIRM = "confirm"
    OPEN = "open"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class LinkEstablished:
    """Both sides hold the same secret and the static keys they claim."""

    remote_static: bytes
    handshake_hash: bytes


@dataclass(frozen=True, slots=True)
class MessageReceived:
    message: bytes


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """The other side ended the link and says why. Not `authenticated`: anybody on the way may have said it."""

    reason: str
    authenticated: bool


LinkEvent = LinkEstablished | MessageReceived | LinkRefused


class Link:
    """One end of one connection. After a `ProtocolError`, a `LinkRefused` or `close_refused` it is `finished`: it takes
    and sends nothing more, but `data_to_send` may still hold a refusal, which the shell flushes before it closes.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static_private: bytes,
        ephemeral_private: bytes,
        psks: Sequence[bytes],
        now: float,
    ) -> None:
        """Keys are raw 32 bytes; `ephemeral_private` must be new for each link. The initiator uses `psks[0]`, the
        responder takes whichever of `psks` opens the third message; `NO_SECRET_PSK` stands for no secret.
        """
        assert len(static_private) == len(ephemeral_private) == KEY_BYTES
        assert psks and all(len(psk) == KEY_BYTES for psk in psks)
        self.handshake_hash: bytes | None = None
        self.remote_static: bytes | None = None
        self.established = False
        self._initiator = initiator
        self._static_private = static_private
        self._ephemeral_private = ephemeral_private
        self._psks = tuple(psks)
        self._deadline = now + HANDSHAKE_TIMEOUT_S
        self._stage = Stage.PREFACE
        self._handshake: HandshakeState | None = None
        self._sender: CipherState | None = None
        self._receiver: CipherState | None = None
        self._inbox = bytearray()
        self._outbox = bytearray(PREFACE)

    @property
    def finished(self) -> bool:
        return self._stage is Stage.FINISHED

    @property
    def queued_bytes(self) -> int:
        """What `data_to_send` would return now, in bytes."""
        return len(self._outbox)

    # --- time ---

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        return None if self.established or self.finished else self._deadline

    def handle_timeout(self, now: float) -> None:
        """Raises `ProtocolError` `handshake-timeout` where the handshake has taken too long; else does nothing."""
        if self.established or self.finished or now < self._deadline:
            return
        self.close_refused("handshake-timeout")
        raise ProtocolError("handshake-timeout", f"the handshake was not done within {HANDSHAKE_TIMEOUT_S:g} s")

    # --- receiving, in the order in which bytes come by ---

    def receive_data(self, data: bytes, now: float) -> list[LinkEvent]:
        """Take bytes from the network, in pieces of any size.

        Raises `ProtocolError`, and drops what the same piece held before the offence with it. A finished link ignores
        whatever was still on its way.
        """
        self.handle_timeout(now)
        try:
            return self._receive_untrusted(data)
        except ProtocolError as error:
            if error.reason in _REASONS_BEFORE_COMMON_LANGUAGE:
                self._finish()  # it could not read our refusal; our preface has told it what it can know
            else:
                self.close_refused(error.reason)
            raise

    def _receive_untrusted(self, data: bytes) -> list[LinkEvent]:
        if self.finished:
            return []
        events: list[LinkEvent] = []
        inbox = self._inbox
        inbox += data
        start = 0
        while not self.finished:
            if self._stage is Stage.PREFACE:
                end = self._preface_end_untrusted(start)
                if end > len(inbox):
                    break
                self._begin_handshake_untrusted(bytes(inbox[start:end]))
            else:
                if len(inbox) - start < FRAME_HEADER_BYTES:
                    break
                body_start = start + FRAME_HEADER_BYTES
                end = body_start + int.from_bytes(inbox[start + 1 : body_start], "big")
                self._admit_frame_untrusted(inbox[start], end - body_start)
                if end > len(inbox):
                    break
                events += self._receive_frame_untrusted(inbox[start], bytes(inbox[body_start:end]))
            start = end
        del inbox[:start]
        return events

    def _preface_end_untrusted(self, start: int) -> int:
        if not MAGIC.startswith(self._inbox[start : start + len(MAGIC)]):
            raise ProtocolError("bad-magic", "the other side does not speak Weft's link protocol")
        return start + len(PREFACE)

    def _begin_handshake_untrusted(self, preface: bytes) -> None:
        oldest, newest = preface[len(MAGIC) :]
        if min(newest, VERSION_NEWEST) < max(oldest, VERSION_OLDEST):
            raise ProtocolError(
                "bad-version",
                f"the other side speaks link versions {oldest} to {newest}, "
                f"we speak {VERSION_OLDEST} to {VERSION_NEWEST}; update the older one",
            )
        self._handshake = HandshakeState(
            NOISE_PROTOCOL,
            initiator=self._initiator,
            prologue=PREFACE + preface if self._initiator else preface + PREFACE,
            s=self._static_private,
            e=self._ephemeral_private,
            psks=self._psks[:1] if self._initiator else (),
        )
        self._stage = Stage.HANDSHAKE
        if self._initiator:
            self._queue_frame(FrameType.HANDSHAKE, self._handshake.write_message())

    def _admit_frame_untrusted(self, frame_type: int, length: int) -> None:
        """May a frame of this type and length come now? Asked as soon as its header is there."""
        opened = self._stage is Stage.OPEN
        if length > (TRANSPORT_FRAME_MAX_BYTES if opened else HANDSHAKE_FRAME_MAX_BYTES):
            raise ProtocolError("too-long", f"a frame of {length} bytes is more than this stage of a link allows")
        if frame_type == FrameType.HANDSHAKE and self._stage is Stage.HANDSHAKE:
            assert self._handshake is not None
            if length != HANDSHAKE_MESSAGE_BYTES[self._handshake.message_index]:
                raise ProtocolError("bad-handshake", f"{length} bytes is not the size of this handshake message")
        elif frame_type == FrameType.TRANSPORT and self._receiver is not None:
            if length < TRANSPORT_FRAME_MIN_BYTES:
                raise ProtocolError("bad-frame", f"a transport frame of {length} bytes is too short to be one")
        elif frame_type == FrameType.REFUSAL and not opened:
            if not 1 <= length <= REFUSAL_MAX_BYTES:
                raise ProtocolError("bad-frame", f"a refusal of {length} bytes is not one")
        else:
            raise ProtocolError("bad-frame", f"frame type {frame_type} does not belong in stage {self._stage.value}")

    def _receive_frame_untrusted(self, frame_type: int, body: bytes) -> list[LinkEvent]:
        if frame_type == FrameType.HANDSHAKE:
            return self._receive_handshake_untrusted(body)
        if frame_type == FrameType.TRANSPORT:
            return self._receive_transport_untrusted(body)
        return [self._receive_refusal_untrusted(body, authenticated=False)]

    def _receive_handshake_untrusted(self, message: bytes) -> list[LinkEvent]:
        assert self._handshake is not None
        if self._handshake.message_index == 2:
            self._handshake = self._read_last_message_untrusted(self._handshake, message)
            self._hold_transport_keys(self._handshake)
            self._queue_sealed(Kind.CONFIRM, b"")
            return [self._establish()]
        try:
            self._handshake.read_message_untrusted(message)
            self._queue_frame(FrameType.HANDSHAKE, self._handshake.write_message())
        except ProtocolError as error:
            # No psk is in play yet, so an unopened payload is no different from any other damage.
            raise ProtocolError("bad-handshake", f"the handshake failed: {error}") from error
        if self._handshake.complete:
            # Not established: the responder may refuse the password in what we just sent.
            self._hold_transport_keys(self._handshake)
            self._stage = Stage.CONFIRM
        return []

    def _read_last_message_untrusted(self, handshake: HandshakeState, message: bytes) -> HandshakeState:
        for psk in self._psks:
            attempt = handshake.fork(psks=(psk,))
            try:
                attempt.read_message_untrusted(message)
            except ProtocolError as error:
                if error.reason != "bad-seal":
                    raise
            else:
                return attempt
        raise ProtocolError("wrong-password", "the password of the side that dialled is none of ours")

    def _receive_transport_untrusted(self, body: bytes) -> list[LinkEvent]:
        assert self._receiver is not None
        plaintext = self._receiver.decrypt_with_ad_untrusted(b"", body)
        _rekey_when_due(self._receiver)
        kind, content = plaintext[0], plaintext[KIND_BYTES:]
        if kind == Kind.MESSAGE and self._stage is Stage.OPEN:
            return [MessageReceived(content)]
        if kind == Kind.CONFIRM and self._stage is Stage.CONFIRM and not content:
            return [self._establish()]
        if kind == Kind.REFUSAL:
            return [self._receive_refusal_untrusted(content, authenticated=True)]
        raise ProtocolError("bad-frame", f"content of kind {kind} does not belong in stage {self._stage.value}")

    def _receive_refusal_untrusted(self, reason: bytes, *, authenticated: bool) -> LinkRefused:
        if not _REASON.fullmatch(reason):
            raise ProtocolError("bad-frame", "the other side refused with a reason that is no word")
        self._finish()
        return LinkRefused(reason.decode("ascii"), authenticated)

    def _hold_transport_keys(self, handshake: HandshakeState) -> None:
        self._sender, self._receiver = handshake.transport()
        self._psks = ()  # nothing needs the secrets from here on
        self._static_private = self._ephemeral_private = b""

    def _establish(self) -> LinkEstablished:
        assert self._handshake is not None and self._handshake.rs is not None
        self.remote_static = self._handshake.rs
        self.handshake_hash = self._handshake.get_handshake_hash()
        self._handshake = None
        self._stage = Stage.OPEN
        self.established = True
        return LinkEstablished(self.remote_static, self.handshake_hash)

    # --- sending ---

    def send(self, message: bytes) -> None:
        """Seal and queue one message. On a finished link it is dropped, since a message may cross the end on its way.

        Raises `ProtocolError` `too-slow` when `SEND_QUEUE_MAX_BYTES` would be exceeded; the link is then finished.
        """
        assert len(message) <= MESSAGE_MAX_BYTES
        if self.finished:
            return
        assert self.established
        size = FRAME_HEADER_BYTES + KIND_BYTES + len(message) + TAG_BYTES
        if len(self._outbox) + size > SEND_QUEUE_MAX_BYTES:
            self._outbox.clear()  # so no refusal can be sent: behind missing frames it would not open
            self._finish()
            raise ProtocolError("too-slow", f"the other side left more than {SEND_QUEUE_MAX_BYTES} bytes unread")
        self._queue_sealed(Kind.MESSAGE, message)

    def data_to_send(self) -> bytes:
        """Everything queued, which is then the shell's."""
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    def close_refused(self, reason: str) -> None:
        """Queue a refusal that tells the other side why (1 to 32 characters of a-z, 0-9 and -), and finish."""
        word = reason.encode("ascii")
        assert _REASON.fullmatch(word), reason
        if self.finished:
            return
        if self._sender is None:
            self._queue_frame(FrameType.REFUSAL, word)
        else:
            self._queue_sealed(Kind.REFUSAL, word)
        self._finish()

    def _finish(self) -> None:
        self._stage = Stage.FINISHED
        self._inbox.clear()
        self._handshake = self._sender = self._receiver = None
        self._psks = ()
        self._static_private = self._ephemeral_private = b""

    def _queue_sealed(self, kind: Kind, content: bytes) -> None:
        assert self._sender is not None
        self._queue_frame(FrameType.TRANSPORT, self._sender.encrypt_with_ad(b"", bytes([kind]) + content))
        _rekey_when_due(self._sender)

    def _queue_frame(self, frame_type: FrameType, body: bytes) -> None:
        self._outbox.append(frame_type)
        self._outbox += len(body).to_bytes(2, "big")
        self._outbox += body


def _rekey_when_due(cipher: CipherState) -> None:
    if cipher.n % REKEY_AFTER_FRAMES == 0:
        cipher.rekey()
