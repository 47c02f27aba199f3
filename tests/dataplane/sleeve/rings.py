"""Two or more keyrings that a test drives by hand, and a whole network of them under a virtual clock.

The network loses, repeats, delays and reorders; hosts restart, change their secret and fall silent. Each host has the
least that a worker does: it asks for keys when something waits, seals real records, and reports strangers. After every
delivery it is checked that no record was lost for want of a key: what arrives must open, unless its session belonged to
a life that is over.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from cryptography.exceptions import InvalidTag

from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.session import Session
from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.noise import public_key_of

RECORD = 4
_RECORD = struct.Struct("!B3xIQ")
SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
SOURCE = bytes(18)
QUEUE_MAX = 1000
DEAF_AFTER_S = 2.0
"""A worker that sends and hears nothing back for so long doubts the session."""

REPORT_EVERY_S = 0.5
"""How often it says to a sender that its records arrive."""


def name_of(index: int) -> PeerName:
    return PeerName(bytes([0x10 + index]) * 8)


def private_key(index: int) -> bytes:
    return bytes([0x40 + index]) * 32


def make_ring(
    index: int, psks: tuple[bytes, ...] = (SECRET,), *, epoch: int = 1, has_aes: bool = True, hosts: int = 2
) -> Keyring:
    """A keyring that knows all other hosts."""
    rng = Random(f"{index} {epoch}")
    ring = Keyring(name_of(index), private_key(index), psks, epoch, has_aes, rng.randbytes)
    for other in range(hosts):
        if other != index:
            ring.set_peer(name_of(other), public_key_of(private_key(other)))
    return ring


def seal(session: Session, data: bytes) -> bytes:
    header = _RECORD.pack(RECORD, session.remote_index, session.counter)
    nonce = bytes(4) + session.counter.to_bytes(8, "big")
    session.counter += 1
    session.sent_bytes += len(data)
    return header + (data if session.seal is None else session.seal.encrypt(nonce, data, header))


def open_untrusted(ring: Keyring, datagram: bytes, now: float) -> bytes | None:
    """What is in a record; None for a repeated one. Raises `ProtocolError`."""
    _, index, counter = _RECORD.unpack_from(datagram)
    session = ring.sessions.get(index)
    if session is None:
        raise ProtocolError("stranger", "a record of no session")
    if not session.window.is_new(counter):
        return None
    data = datagram[_RECORD.size :]
    if session.open is not None:
        try:
            data = session.open.decrypt(bytes(4) + counter.to_bytes(8, "big"), data, datagram[: _RECORD.size])
        except InvalidTag:
            raise ProtocolError("bad-seal", "a record that does not open") from None
    assert session.window.accept(counter)
    if not session.confirmed:
        ring.authenticated(session, now)
    return data


def hello_of(ring: Keyring, peer: int, now: float, *, renew: bool = False) -> bytes:
    ring.want(name_of(peer), now, renew)
    [(name, hello)] = ring.due(now)
    assert name == name_of(peer)
    return hello


def connect(one: Keyring, other: Keyring, now: float, *, peer: int = 1, renew: bool = False) -> tuple[Session, Session]:
    """A handshake from `one` to `other` (host `peer`) with all that belongs to it: both ends of the new session."""
    name, welcome = other.hello_untrusted(hello_of(one, peer, now, renew=renew), SOURCE, now)
    assert name is not None
    assert one.welcome_untrusted(welcome, now) == name_of(peer)
    [ours] = one.confirmations(now)
    open_untrusted(other, seal(ours, b""), now)
    [theirs] = other.confirmations(now)
    open_untrusted(one, seal(theirs, b""), now)
    return ours, theirs


def two(first: tuple[bytes, ...] = (SECRET,), second: tuple[bytes, ...] = (SECRET,)) -> tuple[Keyring, Keyring]:
    return make_ring(0, first), make_ring(1, second)


def refused(ring: Keyring, datagram: bytes, now: float) -> str:
    """Why a hello is dropped; it must be counted too."""
    before = dict(ring.counters)
    with pytest.raises(ProtocolError) as caught:
        ring.hello_untrusted(datagram, SOURCE, now)
    assert ring.counters[caught.value.reason] == before.get(caught.value.reason, 0) + 1
    return caught.value.reason


@dataclass
class Weather:
    """What happens to a datagram on its way."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: tuple[float, float] = (0.01, 0.02)


@dataclass
class Host:
    index: int
    psks: tuple[bytes, ...]
    ring: Keyring
    epoch: int = 1
    queues: dict[int, deque[bytes]] = field(default_factory=dict)
    heard_s: dict[int, float] = field(default_factory=dict)
    sent_s: dict[int, float] = field(default_factory=dict)
    """The first record since something was heard."""
    reported_s: dict[int, float] = field(default_factory=dict)
    timer_at: float | None = None


class Network:
    def __init__(self, seed: int, hosts: int = 2, psks: tuple[tuple[bytes, ...], ...] = ()) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.weather = Weather()
        self.blocked: set[tuple[int, int]] = set()
        """(from, to): everything on this way is lost."""
        self.hosts = []
        for index in range(hosts):
            secrets = psks[index] if psks else (SECRET,)
            self.hosts.append(Host(index, secrets, make_ring(index, secrets, hosts=hosts)))
        self.delivered: list[tuple[int, int, bytes]] = []
        self.counts: Counter[str] = Counter()
        self.seen_on_wire: list[tuple[int, int, bytes]] = []
        """(from, to, datagram) of all handshakes, for those who want to repeat them."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._born: dict[tuple[int, int], tuple[int, int]] = {}
        """(receiver, its index) to the epochs of (receiver, sender) when the receiver made the session."""

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def traffic(self, source: int, target: int, every_s: float, until: float, label: bytes = b"") -> None:
        """A record of its own number at even intervals from now on."""
        count = 0
        when = self.now
        while when < until:
            data = label + b"%d>%d:%d" % (source, target, count)
            self.at(when, lambda data=data: self.send(source, target, data))  # type: ignore[misc]
            count += 1
            when += every_s

    def restart(self, index: int, psks: tuple[bytes, ...] | None = None) -> None:
        host = self.hosts[index]
        host.epoch += 1
        host.psks = host.psks if psks is None else psks
        host.ring = make_ring(index, host.psks, epoch=host.epoch, hosts=len(self.hosts))
        host.queues.clear()
        host.heard_s.clear()
        host.sent_s.clear()
        host.reported_s.clear()
        host.timer_at = None

    def send(self, source: int, target: int, data: bytes) -> None:
        self.counts["offered"] += 1
        host = self.hosts[source]
        queue = host.queues.setdefault(target, deque(maxlen=QUEUE_MAX))
        queue.append(data)
        host.ring.want(name_of(target), self.now)
        since = host.sent_s.setdefault(target, self.now)
        if self.now - since > DEAF_AFTER_S and self.now - host.heard_s.get(target, -1e9) > DEAF_AFTER_S:
            host.ring.want(name_of(target), self.now, renew=True)
        self.pump(source)

    def pump(self, index: int) -> None:
        """What a worker does after every event."""
        host = self.hosts[index]
        for target, queue in host.queues.items():
            session = host.ring.current(name_of(target))
            while queue and session is not None:
                self._record(host, target, session, queue.popleft())
        for name, hello in host.ring.due(self.now):
            self.transmit(index, name[0] - 0x10, hello)
        for session in host.ring.confirmations(self.now):
            self._record(host, session.peer[0] - 0x10, session, b"")
        due = host.ring.next_due()
        if due is not None and (host.timer_at is None or due < host.timer_at):
            host.timer_at = due
            # A little late, as a real timer is; equal times must not stop the clock.
            self.at(max(due, self.now) + 0.001, lambda: self._timer(index, due))

    def _timer(self, index: int, due: float) -> None:
        if self.hosts[index].timer_at == due:
            self.hosts[index].timer_at = None
            self.pump(index)

    def _record(self, host: Host, target: int, session: Session, data: bytes) -> None:
        self.counts["records"] += 1
        self.transmit(host.index, target, seal(session, data))

    def transmit(self, source: int, target: int, datagram: bytes) -> None:
        if datagram[0] != RECORD:
            self.seen_on_wire.append((source, target, datagram))
        copies = 1 + (self.random.random() < self.weather.repeat)
        for _ in range(copies):
            if (source, target) in self.blocked or self.random.random() < self.weather.loss:
                self.counts["lost"] += 1
                continue
            when = self.now + self.random.uniform(*self.weather.delay_s)
            self.at(when, lambda: self._arrive(source, target, datagram))

    def _arrive(self, source: int, target: int, datagram: bytes) -> None:
        host = self.hosts[target]
        before = dict(host.ring.counters)
        try:
            if datagram[0] == 1:
                name, answer = host.ring.hello_untrusted(datagram, SOURCE, self.now)
                assert name in (None, name_of(source))
                self.transmit(target, source, answer)
            elif datagram[0] == 2:
                assert host.ring.welcome_untrusted(datagram, self.now) == name_of(source)
            elif datagram[0] == 3:
                assert host.ring.refusal_untrusted(datagram, self.now) == name_of(source)
            else:
                self._arrive_record(host, source, datagram)
        except ProtocolError as error:
            self.counts[error.reason] += 1
            assert datagram[0] == RECORD or host.ring.counters[error.reason] == before.get(error.reason, 0) + 1
        for index in host.ring.sessions:
            self._born.setdefault((target, index), (host.epoch, self.hosts[source].epoch))
        self.pump(target)

    def _arrive_record(self, host: Host, source: int, datagram: bytes) -> None:
        _, index, counter = _RECORD.unpack_from(datagram)
        try:
            data = open_untrusted(host.ring, datagram, self.now)
        except ProtocolError as error:
            lives = (host.epoch, self.hosts[source].epoch)
            assert self._born.get((host.index, index)) != lives, (
                f"at {self.now:.3f} s a record {counter} from {source} to {host.index} did not open: {error.reason}"
            )
            host.ring.want(name_of(source), self.now, renew=True)
            raise
        host.heard_s[source] = self.now
        host.sent_s.pop(source, None)
        if data is None:
            self.counts["repeated"] += 1
        elif data:
            self.delivered.append((source, host.index, data))
            session = host.ring.current(name_of(source))
            if session is not None and self.now - host.reported_s.get(source, -1e9) > REPORT_EVERY_S:
                host.reported_s[source] = self.now
                self._record(host, source, session, b"")

    def agreed(self, one: int, other: int) -> bool:
        """Both send under the same session."""
        ours = self.hosts[one].ring.current(name_of(other))
        theirs = self.hosts[other].ring.current(name_of(one))
        return ours is not None and theirs is not None and ours.remote_index == theirs.local_index

    def state(self, one: int, other: int) -> str:
        return self.hosts[one].ring.state(name_of(other), self.now)[0]
