"""Two ends of a link with a wire between them, both driven by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from gossip.errors import ProtocolError
from gossip.link import PREFACE, Link, LinkEvent, MessageReceived

PSK = bytes([9]) * 32
OTHER_PSK = bytes([8]) * 32
INITIATOR_STATIC = bytes([1]) * 32
RESPONDER_STATIC = bytes([3]) * 32
HEADER_BYTES = 3
REASONS = {
    "bad-magic",
    "bad-version",
    "bad-frame",
    "too-long",
    "bad-handshake",
    "wrong-password",
    "bad-seal",
}


def make_link(*, initiator: bool, psks: Sequence[bytes] = (PSK,), seed: int = 0, now: float = 0.0) -> Link:
    return Link(
        initiator=initiator,
        static_private=INITIATOR_STATIC if initiator else RESPONDER_STATIC,
        ephemeral_private=random.Random(f"{initiator}{seed}").randbytes(32),
        psks=psks,
        now=now,
    )


@dataclass
class End:
    """A link, what it reported, what it said, and the error that ended it."""

    link: Link
    events: list[LinkEvent] = field(default_factory=list)
    sent: bytearray = field(default_factory=bytearray)
    error: ProtocolError | None = None

    def take(self, data: bytes, now: float = 0.0) -> None:
        try:
            self.events += self.link.receive_data(data, now)
        except ProtocolError as error:
            self.error = error

    def give(self) -> bytes:
        data = self.link.data_to_send()
        self.sent += data
        return data

    @property
    def messages(self) -> list[bytes]:
        return [event.message for event in self.events if isinstance(event, MessageReceived)]

    @property
    def reason(self) -> str | None:
        return None if self.error is None else self.error.reason


class LinkPair:
    """Two ends and the wire; `chunk_bytes` is the size of the pieces in which the wire delivers."""

    def __init__(
        self,
        *,
        initiator_psks: Sequence[bytes] = (PSK,),
        responder_psks: Sequence[bytes] = (PSK,),
        chunk_bytes: int = 1 << 20,
        seed: int = 0,
    ) -> None:
        self.initiator = End(make_link(initiator=True, psks=initiator_psks, seed=seed))
        self.responder = End(make_link(initiator=False, psks=responder_psks, seed=seed))
        self.chunk_bytes = chunk_bytes

    def run(self) -> LinkPair:
        """Deliver until both are silent."""
        while self.initiator.link.queued_bytes or self.responder.link.queued_bytes:
            self.deliver(self.initiator, self.responder)
            self.deliver(self.responder, self.initiator)
        return self

    def deliver(self, source: End, destination: End) -> None:
        data = source.give()
        for start in range(0, len(data), self.chunk_bytes):
            destination.take(data[start : start + self.chunk_bytes])


def frames_of(stream: bytes) -> list[tuple[int, bytes]]:
    """A slow, obvious reading of one side's stream: the preface, then (type, body) of each frame."""
    assert stream.startswith(PREFACE)
    rest, frames = stream[len(PREFACE) :], []
    while rest:
        size = int.from_bytes(rest[1:3], "big")
        frames.append((rest[0], rest[3 : 3 + size]))
        rest = rest[3 + size :]
    return frames


def inbox_bytes(link: Link) -> int:
    return len(link._inbox)
