"""The keyring: which session to send to each peer under, and the handshakes that make one before it is needed.

Knows neither sockets nor frames nor clocks; the worker gives it the handshake datagrams that arrive and asks it what to
send. The one idea: any number of sessions of a pair may be received under, and one is sent under, the highest by `rank`
of those that the other side is known to have. The rank is the same on both sides, so handshakes that cross, repeat or
come late settle by themselves, and nothing is lost on the way: a session is forgotten only when the other side has
shown that it holds a better one, and nothing came under the old one for a while.

    want -> due: hello ---------------------------> hello_untrusted: session made, received under
            welcome_untrusted: sent under <-------- welcome
            confirmations: a record --------------> authenticated: sent under
            authenticated: old ones may go <------- confirmations: a record

Work for others is bounded before any Diffie-Hellman by a share of each peer (`handshake` says why nobody else can use
it up) and a limit for all. Nothing is sent where nothing is wanted: a pair without traffic has no keys after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from dataplane.sleeve import handshake
from dataplane.sleeve.bucket import Bucket
from dataplane.sleeve.control import IDLE
from dataplane.sleeve.handshake import Opening, Pair, Result
from dataplane.sleeve.session import Session, make_session
from dataplane.sleeve.standing import Attempt, Standing
from gossip.errors import ProtocolError
from gossip.names import PeerName

ROLL_AFTER_S: Final = 120.0
ROLL_SPREAD_S: Final = 12.0
"""Sessions that were made together do not roll together."""
ROLL_PATIENCE_S: Final = 30.0
"""The initiator of a session rolls it; only when it has not for so long does the responder."""
SESSIONS_PER_PEER_MAX: Final = 5

RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 5.0
RETRY_JITTER: Final = 0.2
INTEREST_S: Final = 10.0
"""Hellos are repeated while traffic wanted the peer so lately."""
CROSSING_WAIT_S: Final = 0.5
"""A peer that has just been answered is about to confirm; only then is a hello of our own worth sending."""
RENEW_INTERVAL_S: Final = 5.0
"""Doubts about a session that works (`want` with `renew`) cost at most one handshake in this time."""
CONFIRM_TRIES_MAX: Final = 8
LOOK_INTERVAL_S: Final = 5.0
"""How often a session is looked at for its age, its bytes and whether it is in use."""

HELLOS_PER_PEER_PER_S: Final = 1.0
HELLOS_PER_PEER_BURST: Final = 8
HELLOS_PER_S: Final = 200.0
HELLOS_BURST: Final = 100
"""Of all peers together: 200 answers are about a tenth of a core's second."""
REFUSALS_PER_PEER_PER_S: Final = 0.5
REFUSALS_PER_PEER_BURST: Final = 4
OPENINGS_PER_S: Final = 200.0
OPENINGS_BURST: Final = 50
OPENINGS_PER_CALL_MAX: Final = 8
LOOKS_PER_CALL_MAX: Final = 64
"""`due` stands between frames: it does at most so much at a time (some milliseconds), the rest when called again."""
OPENING_DELAY_S: Final = 0.1
"""A hello beyond the limit waits so long, or up to twice."""


class Keyring:
    """All pairs of this host. `counters` are totals: what was done, and what was dropped by reason."""

    def __init__(
        self,
        name: PeerName,
        private_key: bytes,
        psks: tuple[bytes, ...],
        epoch: int,
        has_aes: bool,
        rng: Callable[[int], bytes],
    ) -> None:
        """`psks` empty: records travel in clear. `epoch` must be higher than in any earlier life. `rng` is the
        system's: keys are made of it."""
        self._us = handshake.make_self(name, private_key, psks, has_aes)
        self._epoch = epoch
        self._rng = rng
        self._count = 0
        self._peers: dict[PeerName, Standing] = {}
        self._hints: dict[bytes, Standing] = {}
        self._openings: dict[int, Standing] = {}
        """By the index of the hello that may be answered."""
        self._current: dict[PeerName, Session] = {}
        self._confirming: dict[int, Session] = {}
        self._confirm_at_s = float("inf")
        self._heap: list[tuple[float, int, Standing]] = []
        self._heap_count = 0
        self._answers: Bucket | None = None
        self._hellos_out: Bucket | None = None
        self.sessions: dict[int, Session] = {}
        """By `local_index`: everything that may still be received under."""
        self.counters: dict[str, int] = {}
        self.current: Final[Callable[[PeerName], Session | None]] = self._current.get
        """The session to send to a peer under; None: there is none, say `want`. A dict's own method: it is asked for
        every record."""

    # Peers

    def set_peer(self, name: PeerName, key: bytes) -> None:
        """A peer and its public key. Another key than before is another peer: its sessions end."""
        known = self._peers.get(name)
        if known is not None:
            if known.key == key:
                return
            self.remove_peer(name)
        pair: Pair | None = None
        try:
            pair = handshake.make_pair_untrusted(self._us, name, key)
        except ProtocolError as error:
            self._tally(error.reason)
        peer = self._peers[name] = Standing(name, key, pair)
        if pair is not None:
            self._hints[pair.hint_in] = peer

    def remove_peer(self, name: PeerName) -> None:
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        self._end_attempt(peer)
        for session in tuple(peer.sessions):
            self._drop(peer, session)
        self._select(peer, 0.0)
        peer.look_at_s = None
        if peer.pair is not None:
            del self._hints[peer.pair.hint_in]

    def state(self, name: PeerName, now: float) -> tuple[str, float]:
        """One of `control.IDLE`, `CONNECTING`, `UP`, `SILENT`, `WRONG_SECRET`, and since when."""
        peer = self._peers.get(name)
        if peer is None:
            return IDLE, now
        peer.observe(now)
        peer.judge(len(self._us.psks), now)
        return peer.state, peer.since_s

    # What the worker asks for

    def want(self, name: PeerName, now: float, renew: bool = False) -> None:
        """Traffic waits for this peer: see to a session if there is none. Call it as often as you like while it does.

        `renew`: the session there is seems dead (nothing comes back, or the peer sends under one that we do not have).
        It stays in use until there is a better one. Either way `due` has the hello.
        """
        peer = self._peers.get(name)
        if peer is None or peer.pair is None:
            return
        peer.wanted_s = now
        if peer.attempt is not None:
            return
        current = peer.current
        if current is not None:
            if not renew or now < max(current.born_s, peer.renewed_s) + RENEW_INTERVAL_S:
                return
            peer.renewed_s = now
        self._begin(peer, now)

    def due(self, now: float) -> list[tuple[PeerName, bytes]]:
        """Hellos to send now, to every address where the peer may be. Also where time passes for the keyring: call it
        when `next_due` says so, and after `want`."""
        hellos: list[tuple[PeerName, bytes]] = []
        looks = 0
        while self._heap and self._heap[0][0] <= now:
            if looks >= LOOKS_PER_CALL_MAX or len(hellos) >= OPENINGS_PER_CALL_MAX:
                break
            at_s, _, peer = heappop(self._heap)
            if peer.look_at_s != at_s:
                continue
            peer.look_at_s = None
            looks += 1
            hello = self._look(peer, now)
            if hello is not None:
                hellos.append((peer.name, hello))
        return hellos

    def confirmations(self, now: float) -> list[Session]:
        """Sessions under which a record should go now, an empty one if nothing waits: the peer needs to see one before
        it sends under the session (we were the initiator) or forgets the older ones (we were the responder). Ask after
        `welcome_untrusted`, after `authenticated`, and when `next_due` says so."""
        if now < self._confirm_at_s:
            return []
        ready: list[Session] = []
        following = float("inf")
        for session in tuple(self._confirming.values()):
            assert session.confirm_at_s is not None
            if session.confirm_at_s <= now:
                ready.append(session)
                session.confirm_tries += 1
                if not session.is_initiator or session.confirm_tries >= CONFIRM_TRIES_MAX:
                    self._end_confirming(session)
                    continue
                session.confirm_at_s = now + min(RETRY_FIRST_S * 2 ** (session.confirm_tries - 1), RETRY_MAX_S)
            following = min(following, session.confirm_at_s)
        self._confirm_at_s = following
        return ready

    def next_due(self) -> float | None:
        """When `due` and `confirmations` have something to do next; None: only after an event."""
        heap = self._heap
        while heap and heap[0][2].look_at_s != heap[0][0]:
            heappop(heap)
        at_s = min(heap[0][0] if heap else float("inf"), self._confirm_at_s)
        return None if at_s == float("inf") else at_s

    def authenticated(self, session: Session, now: float) -> None:
        """A record was opened under it (and its window accepted it). Only needed while `session.confirmed` is false."""
        if session.confirmed or self.sessions.get(session.local_index) is not session:
            return
        peer = self._peers[session.peer]
        session.confirmed = True
        session.confirmed_s = peer.heard_s = session.heard_s = now
        if session.is_initiator:
            self._end_confirming(session)
        else:
            self._confirm(session, now)
            attempt = peer.attempt
            if attempt is not None and (attempt.opening is None or session.born_s >= attempt.first_s):
                self._end_attempt(peer)
        self._tally("sessions")
        self._select(peer, now)
        peer.judge(len(self._us.psks), now)
        self._schedule(peer, now)

    # What arrives

    def hello_untrusted(self, datagram: bytes, source: bytes, now: float) -> tuple[PeerName | None, bytes]:
        """A hello: who sent it, and what to answer. Without a name the answer is a refusal: it is of a peer with
        another secret, or forged. `source` is where it came from (16 + 2 bytes). Learn no address from it yet:
        hellos can be sent again from elsewhere, records cannot."""
        try:
            return self._answer_untrusted(datagram, source, now)
        except ProtocolError as error:
            self._tally(error.reason)
            raise

    def welcome_untrusted(self, datagram: bytes, now: float) -> PeerName:
        """The answer to a hello of ours. What waits for the peer can go; then see `confirmations`."""
        try:
            return self._finish_untrusted(datagram, now)
        except ProtocolError as error:
            self._tally(error.reason)
            raise

    def refusal_untrusted(self, datagram: bytes, now: float) -> PeerName:
        """The peer has not the secret that our hello was under. `due` may have a hello under the next one."""
        try:
            return self._take_refusal_untrusted(datagram, now)
        except ProtocolError as error:
            self._tally(error.reason)
            raise

    def _answer_untrusted(self, datagram: bytes, source: bytes, now: float) -> tuple[PeerName | None, bytes]:
        peer = self._hints.get(handshake.hint_of_untrusted(datagram))
        if peer is None:
            raise ProtocolError("unknown-peer", "a hello from a peer that is not known, or of another pair")
        hello = handshake.parse_hello_untrusted(datagram)
        if hello.stamp == peer.stamp:
            raise ProtocolError("repeated-hello", "the last hello once more, perhaps by another way")
        if hello.stamp < peer.stamp:
            raise ProtocolError("replayed-hello", "a hello older than one that was answered")
        assert peer.pair is not None
        psk = handshake.psk_of_untrusted(peer.pair, hello)
        if psk is None:
            if peer.refusals is None:
                peer.refusals = Bucket(REFUSALS_PER_PEER_PER_S, REFUSALS_PER_PEER_BURST, now)
            if not peer.refusals.take(now):
                raise ProtocolError("wrong-secret", "a hello under another secret")
            self._tally("wrong-secret")
            return None, handshake.refuse(peer.pair, hello)
        if peer.hellos is None:
            peer.hellos = Bucket(HELLOS_PER_PEER_PER_S, HELLOS_PER_PEER_BURST, now)
        if not peer.hellos.take(now):
            raise ProtocolError("hello-flood", "more hellos of one peer than its share")
        if self._answers is None:
            self._answers = Bucket(HELLOS_PER_S, HELLOS_BURST, now)
        if not self._answers.take(now):
            raise ProtocolError("hellos-busy", "more hellos of all peers than can be answered")
        result, welcome = handshake.answer_untrusted(
            peer.pair, psk, hello, self._rng(32), self._new_index(), peer.generation(), source
        )
        peer.stamp = hello.stamp
        self._add(peer, result, is_initiator=False, now=now)
        if peer.attempt is not None:
            peer.attempt.next_at_s = max(peer.attempt.next_at_s, now + CROSSING_WAIT_S)
        self._tally("hellos-answered")
        self._schedule(peer, now)
        return peer.name, welcome

    def _finish_untrusted(self, datagram: bytes, now: float) -> PeerName:
        peer, opening = self._opening_untrusted(handshake.parse_welcome_untrusted(datagram))
        result = opening.finish_untrusted(datagram)
        self._end_attempt(peer)
        session = self._add(peer, result, is_initiator=True, now=now)
        self._select(peer, now)
        self._confirm(session, now)
        peer.heard_s = now
        self._tally("welcomes")
        peer.judge(len(self._us.psks), now)
        self._schedule(peer, now)
        return peer.name

    def _take_refusal_untrusted(self, datagram: bytes, now: float) -> PeerName:
        peer, opening = self._opening_untrusted(handshake.parse_refusal_untrusted(datagram))
        opening.check_refusal_untrusted(datagram)
        attempt = peer.attempt
        assert attempt is not None
        attempt.refused_s = now
        if attempt.turn not in attempt.refused:
            attempt.refused.add(attempt.turn)
            if len(attempt.refused) < len(self._us.psks):
                attempt.next_at_s = now
        self._tally("refused")
        peer.judge(len(self._us.psks), now)
        self._schedule(peer, now)
        return peer.name

    def _opening_untrusted(self, index: int) -> tuple[Standing, Opening]:
        peer = self._openings.get(index)
        if peer is None or peer.attempt is None or peer.attempt.opening is None:
            raise ProtocolError("unasked", "an answer to no hello of ours, or to one that was repeated meanwhile")
        return peer, peer.attempt.opening

    # Sessions

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._rng(4), "big")
            if index not in self.sessions and index not in self._openings:
                return index

    def _add(self, peer: Standing, result: Result, *, is_initiator: bool, now: float) -> Session:
        session = make_session(
            peer.name,
            result,
            sealed=self._us.sealed,
            is_initiator=is_initiator,
            low=self._us.name < peer.name,
            now=now,
        )
        session.roll_at_s = now + ROLL_AFTER_S + ROLL_SPREAD_S * self._chance()
        if not is_initiator:
            session.roll_at_s += ROLL_PATIENCE_S
        if len(peer.sessions) >= SESSIONS_PER_PEER_MAX:
            self._drop(peer, peer.least())
        peer.sessions.append(session)
        self.sessions[session.local_index] = session
        return session

    def _drop(self, peer: Standing, session: Session) -> None:
        peer.sessions.remove(session)
        del self.sessions[session.local_index]
        self._end_confirming(session)

    def _select(self, peer: Standing, now: float) -> None:
        best = peer.best(now)
        if best is peer.current:
            return
        peer.current = best
        if best is None:
            del self._current[peer.name]
        else:
            self._current[peer.name] = best
            for session in peer.sessions:
                if session.rank < best.rank:
                    self._end_confirming(session)

    def _confirm(self, session: Session, now: float) -> None:
        session.confirm_at_s, session.confirm_tries = now, 0
        self._confirming[session.local_index] = session
        self._confirm_at_s = min(self._confirm_at_s, now)

    def _confirm_again(self, session: Session, now: float) -> None:
        if session.confirm_at_s is None:
            self._confirm(session, now)

    def _end_confirming(self, session: Session) -> None:
        session.confirm_at_s = None
        self._confirming.pop(session.local_index, None)
        if not self._confirming:
            self._confirm_at_s = float("inf")

    # Attempts

    def _begin(self, peer: Standing, now: float) -> None:
        peer.observe(now)
        answered_s = max((s.born_s for s in peer.sessions if not s.confirmed and not s.is_initiator), default=None)
        at_s = now if answered_s is None else max(now, answered_s + CROSSING_WAIT_S)
        peer.attempt = Attempt(next_at_s=at_s)
        peer.judge(len(self._us.psks), now)
        self._schedule(peer, now)

    def _end_attempt(self, peer: Standing) -> None:
        if peer.attempt is not None and peer.attempt.opening is not None:
            del self._openings[peer.attempt.opening.index]
        peer.attempt = None

    def _open(self, peer: Standing, attempt: Attempt, now: float) -> bytes | None:
        """The next hello of an attempt, or None: it is not its time yet, or nobody wants it any more."""
        assert peer.pair is not None
        if now < attempt.next_at_s:
            return None
        if now - max(peer.wanted_s, peer.used_s, peer.heard_s) > INTEREST_S:
            self._end_attempt(peer)
            return None
        if self._hellos_out is None:
            self._hellos_out = Bucket(OPENINGS_PER_S, OPENINGS_BURST, now)
        if not self._hellos_out.take(now):
            attempt.next_at_s = now + OPENING_DELAY_S * (1.0 + self._chance())
            return None
        if attempt.opening is not None:
            del self._openings[attempt.opening.index]
        psks = self._us.psks
        attempt.turn = attempt.next_turn(len(psks), now)
        self._count += 1
        attempt.opening = Opening(
            peer.pair,
            psks[attempt.turn],
            self._rng(32),
            self._new_index(),
            (self._epoch, self._count),
            peer.generation(),
        )
        self._openings[attempt.opening.index] = peer
        if attempt.tries == 0:
            attempt.first_s = now
        wait_s = min(RETRY_FIRST_S * 2.0 ** min(attempt.tries // len(psks), 16), RETRY_MAX_S)
        attempt.next_at_s = now + wait_s * (1.0 + RETRY_JITTER * (2.0 * self._chance() - 1.0))
        attempt.tries += 1
        peer.asked_s = now
        self._tally("hellos")
        return attempt.opening.datagram

    # Time

    def _look(self, peer: Standing, now: float) -> bytes | None:
        peer.observe(now)
        for session in tuple(peer.sessions):
            if peer.is_over(session, now):
                self._drop(peer, session)
        self._select(peer, now)
        if peer.attempt is None and peer.is_worn(now):
            self._begin(peer, now)
        current = peer.current
        if current is not None and current.is_initiator and not current.confirmed and peer.in_use():
            # All tries went unanswered, and yet there is traffic: so it is worth another.
            self._confirm_again(current, now)
        peer.looked_s = now
        hello = None if peer.attempt is None else self._open(peer, peer.attempt, now)
        peer.judge(len(self._us.psks), now)
        peer.look_at_s = None
        self._schedule(peer, now)
        return hello

    def _schedule(self, peer: Standing, now: float) -> None:
        at_s = float("inf")
        if peer.sessions:
            at_s = now + LOOK_INTERVAL_S * (1.0 + 0.2 * self._chance())
            if peer.look_at_s is not None:
                at_s = min(at_s, peer.look_at_s)
        if peer.attempt is not None:
            at_s = min(at_s, peer.attempt.next_at_s)
        if at_s == float("inf"):
            peer.look_at_s = None
        elif at_s != peer.look_at_s:
            peer.look_at_s = at_s
            self._heap_count += 1
            heappush(self._heap, (at_s, self._heap_count, peer))

    def _chance(self) -> float:
        """From 0 to 1."""
        return self._rng(1)[0] / 256.0

    def _tally(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1
