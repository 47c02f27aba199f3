"""Whole networks of sleeves under a virtual clock: one seed, one history.

A host is what `worker` is, without its sockets: in each turn it takes what arrived, joined as UDP_GRO joins it, reads
its TAP, and sends until its socket takes no more. The underlay loses, repeats, delays, reorders, cuts and changes
datagrams, repeats old ones and makes some up. The ledger of `traffic` checks every frame that comes out of it.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from dataplane.sleeve import assembly, buffers, control, sleeve
from dataplane.sleeve.buffers import FRAME_AT
from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.partner import QUEUE_BYTES
from dataplane.sleeve.routes import Route
from dataplane.sleeve.sender import Send
from dataplane.sleeve.sleeve import Sleeve
from dataplane.sleeve.wire import DATAGRAMS_MAX, SEND_MAX_BYTES
from gossip.names import PeerName
from gossip.noise import public_key_of
from tests.dataplane.sleeve.traffic import BROADCAST, MARKER, Flow, Ledger, mac_of

Address = tuple[object, ...]
SECRET = b"s" * 32
PORT = 6783
ROOM = 65_536
"""Bytes that one receive may give."""
SOCKET_BYTES = 4 * 1024 * 1024
TAP_FRAMES = 1000
TURN_S = 0.00002
IDLE_TURNS_PER_S = 250
"""More turns than that without anything to do, and a core is busy for nothing."""
JOINED_MAX = 64
TOLD_S = 3.0
"""Gossip says where a host is now."""
NAT_KEEPS_S = 30.0
GRAPH_EVERY_S = 0.25
"""Gossip tells everybody who passes UDP to whom."""
KEPT_MAX = 400
"""Datagrams that the attacker keeps to send them again."""


@dataclass
class Weather:
    """What happens on the way. Chances are per datagram."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: tuple[float, float] = (0.0002, 0.0002)
    ordered: bool = True
    truncate: float = 0.0
    flip: float = 0.0
    forge: float = 0.0
    """How often somebody who sees all datagrams sends one of his own."""
    replay: float = 0.0
    mtu: int = 65_507
    """Larger UDP payloads vanish."""
    split: float = 0.0
    """How often two datagrams that could be joined are not."""
    stick: float = 0.0
    """How often a socket takes no more for a while."""


@dataclass
class Card:
    """Of one host's network card."""

    payload_bytes: int = 1472
    gro: bool = True
    may_segment: bool = True
    corrupts_segments: bool = False
    """It claims to cut large sends and spoils them."""
    turn_s: float = TURN_S
    """What a turn of the worker costs at least, and how often it may receive in one."""
    receives: int = 64


@dataclass
class Nat:
    """Before a host: one mapping for all destinations, and only who was sent to may answer."""

    address: Address
    permitted: dict[tuple[Address, Address], float] = field(default_factory=dict)
    """When a datagram last left, by what it seemed to come from and where it went."""
    is_symmetric: bool = False
    """Another port towards everybody: nothing to be punched."""


@dataclass
class Host:
    index: int
    address: Address
    card: Card
    psks: tuple[bytes, ...]
    sleeve: Sleeve
    epoch: int = 1
    tap: deque[bytes] = field(default_factory=deque)
    socket: deque[tuple[bytes, Address]] = field(default_factory=deque)
    socket_bytes: int = 0
    sending: Iterator[Send] | None = None
    stuck: tuple[Send, bytes] | None = None
    wake_at: float = float("inf")
    busy_until: float = 0.0
    turns: int = 0
    nat: Nat | None = None
    is_dead: bool = False


def name_of(index: int) -> PeerName:
    return PeerName(bytes((0x10 + index,)) * 8)


def private_key(index: int) -> bytes:
    return bytes((0x40 + index,)) * 32


def pack(address: Address) -> bytes:
    text = f"{address[0]}:{address[1]}".encode()
    return text.ljust(18, b"\0")[:18]


def unpack(packed: bytes) -> Address | None:
    host, colon, port = packed.rstrip(b"\0").decode().partition(":")
    return (host, int(port)) if colon else None


class Network:
    def __init__(
        self, seed: int, hosts: int = 2, psks: tuple[bytes, ...] = (SECRET,), card: Card | None = None
    ) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.weather = Weather()
        self.blocked: set[tuple[int, int]] = set()
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger()
        self.sealed = bool(psks)
        self.where: dict[Address, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._last: dict[tuple[int, int], float] = {}
        """By (from, to): when the last datagram arrives, so that order can be kept."""
        self._kept: list[tuple[bytes, Address, int]] = []
        self._rooms = memoryview(bytearray(ROOM))
        self.hosts: list[Host] = []
        self._hosts = hosts
        self.kept: set[tuple[int, int]] = set()
        """Pairs with a link: they stay in contact without traffic."""
        for index in range(hosts):
            address: Address = (f"10.0.0.{index}", PORT)
            self.where[address] = index
            own = card or Card()
            self.hosts.append(Host(index, address, own, psks, self._make(index, psks, 1, own)))
        for host in self.hosts:
            self.introduce(host)

    def _make(self, index: int, psks: tuple[bytes, ...], epoch: int, card: Card) -> Sleeve:
        rng = Random(f"{self.random.random()} {index} {epoch}")
        ring = Keyring(name_of(index), private_key(index), psks, epoch, True, rng.randbytes)
        return Sleeve(
            name_of(index),
            ring,
            is_clear=not psks,
            may_segment=card.may_segment,
            resolve=lambda each: each,
            datagram_bytes=lambda _: card.payload_bytes,
            pack_address=pack,
            unpack_address=unpack,
            own_address=lambda _: pack(self.hosts[index].address),
            backlog_bytes=lambda: self.hosts[index].socket_bytes,
        )

    def introduce(self, host: Host) -> None:
        """The daemon says who there is."""
        for other in range(self._hosts):
            if other != host.index:
                host.sleeve.set_peer(replace(self.peer(other), keep=(host.index, other) in self.kept))
        self.wake(host, self.now)

    def peer(self, index: int) -> control.Peer:
        key = public_key_of(private_key(index))
        host, port = self.hosts[index].address
        return control.Peer(name_of(index), key, ((str(host), int(str(port))),), (mac_of(index),), True)

    def link(self, *pairs: tuple[int, int]) -> None:
        """These have links: they stay in contact, and everybody hears which of them pass UDP."""
        if not self.kept:
            self.after(GRAPH_EVERY_S, self._tell_graph)
        for a, b in pairs:
            self.kept |= {(a, b), (b, a)}
        self._tell()

    def _tell_graph(self) -> None:
        graph = {}
        for host in self.hosts:
            rows = [] if host.is_dead else host.sleeve.status(self.now)
            graph[name_of(host.index)] = tuple(row.name for row in rows if row.state == control.UP and not row.via)
        for host in self.hosts:
            host.sleeve.set_graph(graph)
            self.wake(host, self.now)
        self.after(GRAPH_EVERY_S, self._tell_graph)

    def block(self, a: int, b: int) -> None:
        self.blocked |= {(a, b), (b, a)}

    def unblock(self, a: int, b: int) -> None:
        self.blocked -= {(a, b), (b, a)}

    def put_behind_nat(self, index: int, *, is_symmetric: bool = False) -> None:
        """Nobody reaches it at the address it tells; it dials out from another."""
        host = self.hosts[index]
        del self.where[host.address]
        host.nat = Nat((f"198.51.100.{index}", 40_000 + index), is_symmetric=is_symmetric)
        self.where[host.nat.address] = index

    def via(self, host: int, other: int) -> tuple[int, ...]:
        """Who passes on what one host sends to another."""
        route = self.partner(host, other).where.route
        return () if route is None else tuple(name[0] - 0x10 for name in route.between)

    # Time.

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what))

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay, what)

    def run(self, duration: float) -> None:
        until = self.now + duration
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def wake(self, host: Host, when: float) -> None:
        """Let it have a turn then, or sooner."""
        when = max(when, host.busy_until)
        if when < host.wake_at:
            host.wake_at = when

            def turn() -> None:
                if host.wake_at == when:
                    host.wake_at = float("inf")
                    self.turn(host)

            self.at(when, turn)

    # Traffic.

    def flow(self, source: int, target: int, kind: str) -> Flow:
        return self.ledger.flow(source, target, kind)

    def send(self, flow: Flow, size: int, segment: int = 0) -> None:
        """A container's kernel hands a frame to the bridge."""
        host = self.hosts[flow.source]
        copies = self._hosts - 1 if flow.kind == BROADCAST else 1
        data = self.ledger.offer(flow, size, segment, copies)
        if len(host.tap) < TAP_FRAMES:
            host.tap.append(data)
        else:
            self.counts["tap-dropped"] += 1
        self.wake(host, self.now)

    def traffic(self, flow: Flow, every_s: float, duration: float, size: Callable[[], tuple[int, int]]) -> None:
        """Frames at even intervals; `size` gives payload and segment."""
        for number in range(int(duration / every_s)):
            self.after(number * every_s, lambda: self.send(flow, *size()))

    # A host.

    def turn(self, host: Host) -> None:
        mind = host.sleeve
        host.turns += 1
        host.busy_until = self.now + host.card.turn_s
        for _ in range(host.card.receives):
            if not host.socket:
                break
            size, segment, address = self._read_socket(host)
            for frame in mind.datagrams(self._rooms[:size], segment, address, self.now):
                self.ledger.arrived(host.index, bytes(frame))
                self.counts["frames"] += 1
        if host.stuck is None:
            self._read_tap(host)
            self._send(host)
        self.check(host)
        if host.socket or (host.tap and host.stuck is None) or (mind.is_busy and host.stuck is None):
            self.wake(host, self.now + TURN_S)
        elif host.stuck is None:
            self.wake(host, max(mind.next_due(), self.now + TURN_S))

    def _read_socket(self, host: Host) -> tuple[int, int, Address]:
        """One datagram, or several as GRO joins them: from one source, equal, but a shorter one ends it."""
        rooms = self._rooms
        data, address = host.socket.popleft()
        size = segment = len(data)
        rooms[:size] = data
        count = 1
        while host.card.gro and host.socket and segment and count < JOINED_MAX:
            following, other = host.socket[0]
            more = len(following)
            if other != address or more > segment or size + more > ROOM - 1 or not more:
                break
            if self.weather.split and self.random.random() < self.weather.split:
                break
            host.socket.popleft()
            rooms[size : size + more] = following
            size += more
            count += 1
            self.counts["joined"] += 1
            if more < segment:
                break
        host.socket_bytes -= size
        return size, segment, address

    def _read_tap(self, host: Host) -> None:
        mind = host.sleeve
        buffer = mind.take_buffer()
        for _ in range(256):
            if not host.tap:
                break
            data = host.tap.popleft()
            buffer.view[FRAME_AT : FRAME_AT + len(data)] = data
            if mind.frame(buffer, len(data)):
                buffer = mind.take_buffer()
        mind.sender.pool.give(buffer)

    def _send(self, host: Host) -> None:
        mind = host.sleeve
        if host.sending is None:
            host.sending = mind.outgoing(self.now)
        for item in host.sending:
            if self.weather.stick and self.random.random() < self.weather.stick:
                host.stuck = item, b"".join(item[0])
                life = host.epoch
                self.after(self.random.uniform(0.0001, 0.02), lambda life=life: self._unstick(host, life))  # type: ignore[misc]
                return
            self._transmit(host, item)
        host.sending = None

    def _unstick(self, host: Host, life: int) -> None:
        if host.stuck is None or host.epoch != life:
            return
        item, data = host.stuck
        assert b"".join(item[0]) == data, "what waits for the socket was written over"
        host.stuck = None
        self._transmit(host, item)
        self.wake(host, self.now)

    # The underlay.

    def _transmit(self, host: Host, item: Send) -> None:
        pieces, segment, address = item
        assert not isinstance(address, Route), "a route is nothing that a socket could send to"
        data = b"".join(pieces)
        assert 0 < len(data) <= SEND_MAX_BYTES
        each = segment or len(data)
        datagrams = [data[at : at + each] for at in range(0, len(data), each)]
        assert len(datagrams) <= DATAGRAMS_MAX, "more than UDP_SEGMENT takes"
        if each > host.card.payload_bytes:
            self.counts["too-large"] += 1
            host.sleeve.refused(address, self.now)
            return
        if segment and host.card.corrupts_segments and len(datagrams) > 1:
            datagrams = [bytes((each[0],)) + bytes(len(each) - 1) for each in datagrams]
        for datagram in datagrams:
            self._carry(host, datagram, address)

    def _carry(self, host: Host, data: bytes, address: Address) -> None:
        self.counts["datagrams"] += 1
        if self.sealed:
            assert MARKER not in data, "plaintext on the wire"
        weather, random = self.weather, self.random
        source = self._leave(host, address)
        target = self._enter(source, address)
        if weather.replay or weather.forge:
            self._attack(data, source, target)
        if target is None or host.is_dead or self.hosts[target].is_dead or (host.index, target) in self.blocked:
            self.counts["nowhere"] += 1
            return
        if len(data) > weather.mtu:
            self.counts["nowhere"] += 1
            return
        if random.random() < weather.loss:
            self.counts["lost"] += 1
            return
        if random.random() < weather.truncate:
            data = data[: random.randrange(len(data))]
        if random.random() < weather.flip and data:
            changed = bytearray(data)
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            data = bytes(changed)
        for _ in range(1 + (random.random() < weather.repeat)):
            when = self.now + random.uniform(*weather.delay_s)
            if weather.ordered:
                when = max(when, self._last.get((host.index, target), 0.0))
                self._last[host.index, target] = when
            self._arrive_at(when, target, data, source)

    def _leave(self, host: Host, address: Address) -> Address:
        """Where a datagram seems to come from."""
        nat = host.nat
        if nat is None:
            return host.address
        if nat.is_symmetric:
            source = (nat.address[0], 50_000 + hash(address) % 10_000)
            self.where[source] = host.index
        else:
            source = nat.address
        nat.permitted[source, address] = self.now
        return source

    def _enter(self, source: Address, address: Address) -> int | None:
        """Whose socket is there for a datagram from that source."""
        target = self.where.get(address)
        nat = None if target is None else self.hosts[target].nat
        if nat is not None and self.now - nat.permitted.get((address, source), float("-inf")) > NAT_KEEPS_S:
            return None
        return target

    def _arrive_at(self, when: float, target: int, data: bytes, source: Address) -> None:
        def arrive() -> None:
            host = self.hosts[target]
            if host.socket_bytes + len(data) > SOCKET_BYTES:
                self.counts["socket-full"] += 1
                return
            host.socket.append((data, source))
            host.socket_bytes += len(data)
            self.wake(host, self.now)

        self.at(when, arrive)

    def _attack(self, data: bytes, source: Address, target: int | None) -> None:
        """Somebody on the way keeps what he sees, repeats it later, also from elsewhere, and makes up his own."""
        random = self.random
        if target is None:
            return
        if len(self._kept) < KEPT_MAX:
            self._kept.append((data, source, target))
        else:
            self._kept[random.randrange(KEPT_MAX)] = data, source, target
        where = self.now + random.uniform(0.0, 0.5)
        if random.random() < self.weather.replay:
            old, source, target = random.choice(self._kept)
            self._arrive_at(where, target, old, source if random.random() < 0.7 else ("10.6.6.6", 666))
        if random.random() < self.weather.forge:
            old, source, target = random.choice(self._kept)
            kind = random.choice((old[0], 4, 5, random.randrange(256)))
            made = bytes((kind,)) + random.randbytes(random.choice((0, 1, 3)))
            made += old[len(made) : random.choice((8, 16, 24))] + random.randbytes(random.choice((0, 1, 40, 1456)))
            self._arrive_at(where, target, made, source if random.random() < 0.7 else ("10.6.6.6", 666))

    # What happens to hosts.

    def restart(self, index: int) -> None:
        """A worker dies; the daemon starts another."""
        host = self.hosts[index]
        host.epoch += 1
        host.sleeve = self._make(index, host.psks, host.epoch, host.card)
        host.sending = host.stuck = None
        host.socket.clear()
        host.socket_bytes = 0
        self.introduce(host)
        self.wake(host, self.now)

    def roam(self, index: int, address: Address) -> None:
        """It is elsewhere from now on, and nobody is told but some seconds later, by the daemons."""
        host = self.hosts[index]
        del self.where[host.address]
        host.address = address
        self.where[address] = index
        self.after(TOLD_S, self._tell)

    def _tell(self) -> None:
        for host in self.hosts:
            self.introduce(host)

    def roll(self, index: int) -> None:
        """All its keys have become old."""
        for session in self.hosts[index].sleeve.keyring.sessions.values():
            session.roll_at_s = self.now

    def check(self, host: Host) -> None:
        """Nothing holds more than it may."""
        mind = host.sleeve
        held = mind.receiver.assembly
        assert len(held.bursts) <= assembly.PARTIALS_MAX and len(held.pieces) <= assembly.PARTIALS_MAX
        assert 0 <= held.bytes <= assembly.BYTES_MAX
        if not held.bursts and not held.pieces:
            assert held.bytes == 0, "bytes are counted that nobody holds"
        assert len(mind._outbox) <= sleeve.OUTBOX_MAX
        assert len(mind.sender.pool._free) <= buffers.BUFFERS_KEPT
        for partner in mind.partners.values():
            assert partner.queue.held_bytes <= QUEUE_BYTES

    def counted(self) -> Counter[str]:
        """What all sleeves counted."""
        return sum((Counter(host.sleeve.totals()) for host in self.hosts), Counter())

    def partner(self, host: int, other: int) -> sleeve.Partner:
        return self.hosts[host].sleeve.partners[name_of(other)]
