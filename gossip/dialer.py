"""Whom to dial and when: the user's targets, each with its own back-off, and peers that nobody named.

Only decides; the shell dials and reports back. Delays grow by 1.6 to a cap and are drawn between half and one and a
half times their value, so that a whole cluster restarting does not beat in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from gossip.names import PeerName

FIRST_DELAY_S = 0.5
DELAY_FACTOR = 1.6
TARGET_DELAY_MAX_S = 30.0
PEER_DELAY_MAX_S = 120.0
TARGETS_MAX = 1024


@dataclass(slots=True)
class Attempts:
    """The history of dialling one address or peer."""

    next_try: float
    delay_s: float = FIRST_DELAY_S
    dialling: bool = False
    error: str | None = None
    peer: PeerName | None = None
    """Who answered last; for a discovered peer, the peer itself."""
    ourselves: bool = False
    """It led to this very daemon: never dialled again."""
    refused: bool = False


class Dialer:
    """Back-off for every target (keyed by its text) and every discovered peer (keyed by its name)."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
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

    def dialling(self) -> int:
        """How many dials are under way."""
        return sum(attempts.dialling for attempts in (*self.targets.values(), *self.peers.values()))

    def attempts(self, key: str | PeerName) -> Attempts | None:
        return self.targets.get(key) if isinstance(key, str) else self.peers.get(key)

    def begin(self, key: str | PeerName, now: float) -> None:
        """The shell has been told to dial `key`."""
        if not isinstance(key, str) and key not in self.peers:
            self.peers[key] = Attempts(now, peer=key)
        attempts = self.attempts(key)
        assert attempts is not None and not attempts.dialling
        attempts.dialling = True

    def failed(self, key: str | PeerName, error: str, now: float, refused: bool = False) -> None:
        """The dial failed, or the link it gave was refused: wait longer."""
        attempts = self.attempts(key)
        if attempts is None:
            return
        cap = TARGET_DELAY_MAX_S if isinstance(key, str) else PEER_DELAY_MAX_S
        attempts.dialling = False
        attempts.error = error
        attempts.refused = refused
        attempts.next_try = now + attempts.delay_s * (0.5 + self._rng.random())
        attempts.delay_s = min(attempts.delay_s * DELAY_FACTOR, cap)

    def succeeded(self, key: str | PeerName, peer: PeerName) -> None:
        """A link stands and the other side has shown who it is."""
        attempts = self.attempts(key)
        if attempts is not None:
            attempts.dialling = False
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

    def led_to_ourselves(self, key: str | PeerName) -> None:
        attempts = self.attempts(key)
        if attempts is not None:
            attempts.dialling = False
            attempts.ourselves = True
            attempts.error = None

    def leads_to(self, target: str) -> PeerName | None:
        attempts = self.targets.get(target)
        return attempts.peer if attempts else None
