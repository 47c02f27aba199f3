"""What the daemon and the sleeve worker say to each other: values, and their bytes on the unix socket between them.

Knows neither sockets nor what the values are good for. The one idea: the daemon says what should be (a configuration
once, then peers: whole where one is new or somewhere else, else what came and went behind it), and the worker says what
is (a status of the whole, now and then); either side may be a later life of the other, so a connection always begins
with everything.

    0               4
    +---------------+------------------ - -
    | length (u32)  | msgpack list: kind, then the fields of that kind
    +---------------+------------------ - -

Only root can open the socket, so what comes out of it is trusted, but bounded all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from gossip.names import PeerName

MESSAGE_MAX_BYTES: Final = 16 * 1024 * 1024
"""A peer with 100,000 endpoints says 1.2 MB at once."""
_LENGTH: Final = struct.Struct("!I")

TAP: Final = "tap"
UDP_SEGMENT: Final = "udp-segment"
UDP_GRO: Final = "udp-gro"
OFFLOADS: Final = (TAP, UDP_SEGMENT, UDP_GRO)
"""What can be switched off: super-frames and unfinished checksums at the TAP, many datagrams in one call."""

IDLE: Final = "idle"
"""Nothing wanted to go there lately, so there are no keys; the first frame makes some."""
CONNECTING: Final = "connecting"
UP: Final = "up"
SILENT: Final = "silent"
"""Handshakes go unanswered."""
WRONG_SECRET: Final = "wrong-secret"
"""The peer answers, under another secret."""


@dataclass(frozen=True, slots=True)
class Configure:
    """The daemon's first message. A worker that already has another configuration says so by `Refused` and ends."""

    version: str
    """Of the program: a worker of another one is replaced."""
    name: PeerName
    private_key: bytes
    """X25519, for handshakes of the sleeve only."""
    psks: tuple[bytes, ...]
    """The first is sent, all are accepted. Empty: there is no secret, and records travel in clear."""
    tap: str
    hosts: tuple[str, ...]
    """Addresses to bind; none: every address of both families."""
    port: int
    offloads_off: tuple[str, ...] = ()
    epoch: int = 0
    """Rises with every worker of this host, so that its handshakes are known for newer. Not part of a comparison."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One other host as the worker should know it; replaces what was said of it before."""

    name: PeerName
    key: bytes
    """Its X25519 public key for the sleeve."""
    addresses: tuple[tuple[str, int], ...]
    """Where its worker may listen, numeric, best first."""
    macs: tuple[bytes, ...]
    """Everything behind it: its bridge, its endpoints."""
    flood: bool
    """Whether broadcasts go to it by the sleeve; false while another path carries them."""
    keep: bool = False
    """Stay in contact also without traffic: so it is known whether UDP passes, and it can pass on for others."""


@dataclass(frozen=True, slots=True)
class Macs:
    """What is behind a peer that was said, as far as it changed."""

    name: PeerName
    came: tuple[bytes, ...]
    went: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """A peer that is no more."""

    name: PeerName


@dataclass(frozen=True, slots=True)
class Graph:
    """Who exchanges UDP directly with whom, as all hosts tell: what routes are made of. Replaces the one before."""

    edges: tuple[tuple[PeerName, tuple[PeerName, ...]], ...]


@dataclass(frozen=True, slots=True)
class Expect:
    """Frames for these may soon come, because their other path is in doubt: see which way leads there."""

    names: tuple[PeerName, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """All peers were said: forget those that were not (of an earlier life of the daemon)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End, leaving the TAP."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker will not serve this daemon (or cannot work), and ends."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class PeerStatus:
    name: PeerName
    state: str
    address: str | None
    """Where its records come from: `10.9.0.2:6783`."""
    encrypted: bool
    cipher: str
    """`aes-256-gcm`, `chacha20-poly1305`, or `none`."""
    since_s: float
    """CLOCK_MONOTONIC of the last change of state."""
    rtt_ms: float | None
    loss: float
    """Measured share of datagrams lost on the way there."""
    datagrams: int
    """How many a record to it may have now."""
    parity: int
    """How many of them may be lost."""
    offloads_off: tuple[str, ...]
    """Those that the self-test found not to work towards it, or that were switched off."""
    via: tuple[PeerName, ...] = ()
    """The hosts that pass its records on, the nearest first; none where they go straight."""
    is_translated: bool = False
    """It is reached at an address that it did not tell: something between changes addresses."""
    datagram_bytes: int = 0
    """UDP payload of a full datagram to it, as found on its path; 0 before anything is known."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the worker is doing. `counters` are totals since it started, drops by reason among them."""

    pid: int
    peers: tuple[PeerStatus, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


Message = Configure | Peer | Macs | Forget | Graph | Expect | Complete | Stop | Refused | Status
_TYPES: Final = (Configure, Peer, Macs, Forget, Graph, Expect, Complete, Stop, Refused, Status)
_KINDS: Final[dict[str, type[Any]]] = {kind.__name__.lower(): kind for kind in _TYPES}


def encode(message: Message) -> bytes:
    fields = [getattr(message, name) for name in message.__slots__]
    if isinstance(message, Status):
        peers = [[getattr(peer, name) for name in PeerStatus.__slots__] for peer in message.peers]
        fields = [message.pid, peers, dict(message.counters)]
    body: bytes = msgpack.packb([type(message).__name__.lower(), *fields])
    assert len(body) <= MESSAGE_MAX_BYTES
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Bytes as they come, messages out. Raises `ValueError` where the other side speaks another language."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > MESSAGE_MAX_BYTES:
                raise ValueError(f"a message of {size} bytes")
            if len(self._data) < _LENGTH.size + size:
                return
            body = bytes(self._data[_LENGTH.size : _LENGTH.size + size])
            del self._data[: _LENGTH.size + size]
            yield _decode(body)


def _decode(body: bytes) -> Message:
    limit = len(body)
    try:
        kind, *fields = msgpack.unpackb(
            body, use_list=False, max_array_len=limit, max_map_len=limit, max_str_len=limit, max_bin_len=limit
        )
        if kind == "status":
            pid, peers, counters = fields
            return Status(pid, tuple(PeerStatus(*peer) for peer in peers), counters)
        message: Message = _KINDS[kind](*fields)
        return message
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"a message that cannot be read: {error}") from None
