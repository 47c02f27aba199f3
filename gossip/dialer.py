"""Whom to dial and when: the user's targets, each with its own back-off, and peers that nobody named.

Only decides; the shell dials and reports back. Links are few: a target whose peer is in reach through others needs no
link of its own once there are enough. Delays grow by 1.6 to a cap and are drawn between half and one and a half times
their value, so that a whole cluster restarting does not beat in time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from gossip.events import DialKey
from gossip.names import PeerName
from gossip.peers import GONE, PeerRecord, with_port
from gossip.routes import links_wanted

FIRST_DELAY_S = 0.5
DELAY_FACTOR = 1.6
TARGET_DELAY_MAX_S = 30.0
PEER_DELAY_MAX_S = 120.0
DIALS_AT_ONCE = 3
"""To targets."""
PEER_DIALS_AT_ONCE = 2
"""To peers that nobody named: of their own, so that dead ones cannot keep us from what the user asked for."""
SPARE_DIAL_INTERVAL_S = 1.0
"""With links enough, targets are tried one at a time: a hundred hosts that all name each other never form a full mesh.
"""
HEAL_INTERVAL_S = 2.0
HEAL_INTERVAL_PER_PEER_S = 0.1
"""Between dials to peers out of reach, growing with the mesh: a dead host is not dialled by everybody every second."""


@dataclass(frozen=True, slots=True)
class TargetStatus:
    target: str
    state: str
    """connected | meshed | connecting | waiting | self | refused"""
    error: str | None
    next_try_s: float | None
    peer: PeerName | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the dialer looks at when it decides."""

    peers: Mapping[PeerName, PeerRecord]
    neighbours: Collection[PeerName]
    reachable: frozenset[PeerName]
    lost: Collection[PeerName]
    """Peers out of reach."""
    own_addresses: Collection[str]
    """Dialling these leads nowhere new, whoever else claims them: an earlier life of this host, or another network."""

    @property
    def links_low(self) -> int:
        return links_wanted(1 + len(self.reachable))[0]


@dataclass(slots=True)
class Attempts:
    """The history of dialling one address or peer."""

    next_try: float
    delay_s: float = FIRST_DELAY_S
    dialling: bool = False
    failures: int = 0
    error: str | None = None
    peer: PeerName | None = None
    """Who answered last; for a discovered peer, the peer itself."""
    ourselves: bool = False
    """It led to this very daemon: never dialled again."""
    refused: bool = False


class Dialer:
    """Back-off for every target (keyed by its text) and every discovered peer (keyed by its name)."""

    def __init__(self, port: int, discovery: bool, rng: Random, now: float) -> None:
        """`port` is where a target that names none listens; without `discovery` only targets are dialled."""
        self._port = port
        self._discovery = discovery
        self._rng = rng
        self._heal_due = now + HEAL_INTERVAL_S * rng.random()
        self._spare_due = now
        self.targets: dict[str, Attempts] = {}
        self.peers: dict[PeerName, Attempts] = {}

    def connect(self, targets: list[str], now: float) -> None:
        """Add targets; one that is already there is tried again at once."""
        for target in targets:
            known = self.targets.get(target, Attempts(now))
            self.targets[target] = Attempts(now, dialling=known.dialling, peer=known.peer)

    def forget(self, targets: list[str]) -> None:
        for target in targets:
            self.targets.pop(target, None)

    def attempts(self, key: DialKey) -> Attempts | None:
        return self.targets.get(key) if isinstance(key, str) else self.peers.get(key)

    def _begin(self, key: DialKey, now: float) -> None:
        if not isinstance(key, str) and key not in self.peers:
            self.peers[key] = Attempts(now, peer=key)
        attempts = self.attempts(key)
        assert attempts is not None and not attempts.dialling
        attempts.dialling = True

    def failed(self, key: DialKey, error: str, now: float, refused: bool = False) -> None:
        """The dial failed, or the link it gave was refused: wait longer."""
        attempts = self.attempts(key)
        if attempts is None:
            return
        cap = TARGET_DELAY_MAX_S if isinstance(key, str) else PEER_DELAY_MAX_S
        attempts.dialling = False
        attempts.failures += 1
        attempts.error = error
        attempts.refused = refused
        attempts.next_try = now + attempts.delay_s * (0.5 + self._rng.random())
        attempts.delay_s = min(attempts.delay_s * DELAY_FACTOR, cap)

    def succeeded(self, key: DialKey, peer: PeerName) -> None:
        """A link stands and the other side has shown who it is."""
        attempts = self.attempts(key)
        if attempts is None:
            return
        attempts.dialling = False
        attempts.failures = 0
        attempts.error = None
        attempts.refused = False
        attempts.peer = peer

    def link_lost(self, peer: PeerName, lived_s: float, now: float) -> None:
        """A link with `peer` ended: whoever leads there is due soon; a link that had lasted forgives old failures."""
        candidates = [attempts for attempts in self.targets.values() if attempts.peer == peer]
        if peer in self.peers:
            candidates.append(self.peers[peer])
        for attempts in candidates:
            if lived_s > 10.0:
                attempts.delay_s = FIRST_DELAY_S
            attempts.next_try = max(attempts.next_try, now + attempts.delay_s * (0.5 + self._rng.random()))

    def led_to_ourselves(self, key: DialKey) -> None:
        attempts = self.attempts(key)
        if attempts is not None:
            attempts.dialling = False
            attempts.ourselves = True
            attempts.error = None

    # -- deciding ----------------------------------------------------------------------------------

    def due(self, around: Surroundings, now: float) -> list[tuple[DialKey, tuple[str, ...]]]:
        """What to dial now: keys with their addresses, already marked as under way."""
        self._guess_peers(around)
        room = DIALS_AT_ONCE - _under_way(self.targets.values())
        if self._has_enough(around):
            room = min(room, 1) if now >= self._spare_due else 0
        dials: list[tuple[DialKey, tuple[str, ...]]] = []
        for target, attempts in sorted(self.targets.items()):
            if len(dials) < room and attempts.next_try <= now and self._state(attempts, around) == "waiting":
                dials.append((target, (target,)))
        if dials:
            self._spare_due = now + SPARE_DIAL_INTERVAL_S * (0.5 + self._rng.random())
        if self._discovery:
            dials += self._discover(around, PEER_DIALS_AT_ONCE - _under_way(self.peers.values()), now)
        for key, _ in dials:
            self._begin(key, now)
        return dials

    def _discover(self, around: Surroundings, room: int, now: float) -> list[tuple[DialKey, tuple[str, ...]]]:
        chosen: list[PeerName] = []
        if len(around.neighbours) < around.links_low and room > 0:
            candidates = [name for name in sorted(around.reachable) if self._may_dial(name, around, now)]
            chosen += [self._rng.choice(candidates)] if candidates else []
        if now >= self._heal_due:
            spread_s = max(HEAL_INTERVAL_S, HEAL_INTERVAL_PER_PEER_S * len(around.peers))
            self._heal_due = now + spread_s * (0.5 + self._rng.random())
            lost = [name for name in sorted(around.lost) if self._may_dial(name, around, now)]
            chosen += [self._rng.choice(lost)] if lost and len(chosen) < room else []
        return [(name, self._addresses(name, around)) for name in chosen]

    def _may_dial(self, name: PeerName, around: Surroundings, now: float) -> bool:
        record = around.peers.get(name)
        attempts = self.peers.get(name)
        if record is None or record.state == GONE or name in around.neighbours:
            return False
        if attempts is not None and (attempts.dialling or attempts.next_try > now):
            return False
        return bool(self._addresses(name, around))

    def _addresses(self, name: PeerName, around: Surroundings) -> tuple[str, ...]:
        """Where to look for a peer. Each failure begins with another address: the first may be somebody else's."""
        addresses = [each for each in around.peers[name].addresses if each not in around.own_addresses]
        turn = self.peers[name].failures % len(addresses) if addresses and name in self.peers else 0
        return (*addresses[turn:], *addresses[:turn])

    def next_due(self, around: Surroundings) -> float | None:
        """When the next dial may be due. Discovery is looked at with every heartbeat; a target's own time is exact."""
        due = [self._heal_due] if self._discovery else []
        if _under_way(self.targets.values()) < DIALS_AT_ONCE:
            earliest = self._spare_due if self._has_enough(around) else 0.0
            for attempts in self.targets.values():
                if self._state(attempts, around) == "waiting":
                    due.append(max(attempts.next_try, earliest))
        return min(due, default=None)

    def status(self, around: Surroundings, now: float) -> list[TargetStatus]:
        self._guess_peers(around)
        rows = []
        for target, attempts in self.targets.items():
            state = self._state(attempts, around)
            next_try_s = max(0.0, attempts.next_try - now) if state == "waiting" else None
            if state == "waiting" and attempts.refused:
                state = "refused"
            rows.append(TargetStatus(target, state, attempts.error, next_try_s, attempts.peer))
        return rows

    def _guess_peers(self, around: Surroundings) -> None:
        """A target that was never dialled may be the address of a peer in reach: then it need not be."""
        unknown = {with_port(target, self._port): each for target, each in self.targets.items() if each.peer is None}
        if unknown:
            for name in sorted(around.reachable):
                for address in around.peers[name].addresses if name in around.peers else ():
                    if address in unknown and unknown[address].peer is None:
                        unknown[address].peer = name

    def _state(self, attempts: Attempts, around: Surroundings) -> str:
        if attempts.ourselves:
            return "self"
        if attempts.peer in around.neighbours:
            return "connected"
        if attempts.dialling:
            return "connecting"
        if attempts.peer in around.reachable and self._has_enough(around):
            return "meshed"
        return "waiting"

    def _has_enough(self, around: Surroundings) -> bool:
        """As many links as a mesh of this size needs, or one with everybody."""
        return len(around.neighbours) >= max(1, min(around.links_low, len(around.reachable)))


def _under_way(attempts: Iterable[Attempts]) -> int:
    return sum(each.dialling for each in attempts)
