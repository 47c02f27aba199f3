"""The whole worker but for its sockets: frames and datagrams in, datagrams and frames out, the clock handed in.

Composes the keyring, the sender and the receiver, and holds what concerns all three: who the partners are, where they
are, and what is due when. The one idea: whatever is to be sent is asked for (`outgoing`), so that a socket that takes
no more for a while holds everything back behind it, and whole networks of these run under a virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from dataplane.sleeve import control, handshake, view
from dataplane.sleeve.bucket import Bucket
from dataplane.sleeve.buffers import Buffer
from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.loss import LossMeter
from dataplane.sleeve.partner import REPORT_BYTES, Partner
from dataplane.sleeve.paths import SALT_BYTES, Paths
from dataplane.sleeve.receiver import Frames, Receiver
from dataplane.sleeve.relay import Relay, own_flow
from dataplane.sleeve.routes import Graph, Route
from dataplane.sleeve.sender import Send, Sender
from dataplane.sleeve.session import Session
from dataplane.sleeve.trial import DATAGRAM_BYTES, DATAGRAMS, Trial, Way
from dataplane.sleeve.whereabouts import Address
from dataplane.sleeve.wire import (
    HEADER_BYTES,
    NOTE_ANSWER,
    NOTE_ASK,
    NOTE_CALL,
    NOTE_PROBE,
    NOTE_PROOF,
    NOTE_REPORT,
    TAG_BYTES,
    decode_report_untrusted,
    encode_note,
    encode_report,
)
from gossip.errors import ProtocolError
from gossip.names import PeerName

UNANSWERED_S: Final = 1.0
"""Frames go out and nothing at all comes back for so long: the other worker is a new one, or gone. Ask it."""
RENEW_S: Final = 1.0
"""Between two such askings of one peer."""
USED_S: Final = 5.0
"""A partner was heard so lately: its way is asked after once in so long."""
KEEP_S: Final = 5.0
"""The same for one to stay in contact with."""
SILENT_AFTER_S: Final = 3.0
EXPECTED_S: Final = 10.0
"""Three times what it takes until a path in doubt is left, or is not."""
INTEREST_S: Final = 10.0
"""What was sent so long ago is not asked after any more."""
HOP_QUEUE_BYTES: Final = 256 * 1024
"""What waits at the first hop of a route at most before more is put there: the queue stands where it is fair."""
PROOFS_MAX: Final = 256
HUNTS_PER_S: Final = 400.0
HUNTS_BURST: Final = 200
RELAYED_BYTES: Final = (21_800, 10_900, 1_100)
"""A third of a record by a route: the largest that fits with its names; what fits a hop of small datagrams; safe."""
BLOCKED_S: Final = 0.01
WAITING_MAX_S: Final = 3.0
"""Frames that waited so long for keys are of no use to anybody."""
NEVER_S: Final = float("inf")
NOW_S: Final = 0.0
BUSY_S: Final = 0.05
IDLE_S: Final = 1.0
"""Between two looks at what is due, with and without traffic."""
OUTBOX_MAX: Final = 4096
NOTES_MAX: Final = 16
"""What may wait for the next record to a peer beside frames; it asks for no more at once."""
KEEPALIVE_S: Final = 25.0
"""Towards peers that see us behind a NAT; its mapping is gone after 30 s where it is short."""
_SAFE: Final = Way(DATAGRAM_BYTES[-1], False)


class Sleeve:
    """One worker's mind."""

    def __init__(
        self,
        name: PeerName,
        keyring: Keyring,
        is_clear: bool,
        may_segment: bool,
        resolve: Callable[[tuple[str, int]], Address | None],
        datagram_bytes: Callable[[Address], int],
        pack_address: Callable[[Address], bytes],
        unpack_address: Callable[[bytes], Address | None],
        own_address: Callable[[Address], bytes],
        backlog_bytes: Callable[[], int],
    ) -> None:
        """`resolve`: an address as the socket gives and takes it, None where it cannot be used here. `datagram_bytes`:
        the UDP payload that this host's underlay takes towards it. `pack_address`: 16 + 2 bytes, as others are told
        of them, and `unpack_address` the other way. `own_address`: the same of ours, as the routing table gives it,
        towards that one. `backlog_bytes`: what waits in our sockets, for the reports to those who sent it."""
        self.is_news = False
        """A partner changed between an address and a route since this was last set back."""
        self.counters: dict[str, int] = {}
        self.partners: dict[PeerName, Partner] = {}
        self.sender = Sender(self.counters, backlog_bytes)
        self.receiver = Receiver(
            self.counters, self._find, self._authenticated, self._note, self._handshake, self._stranger, self._stray,
            lambda *datagram: self.relay.take_untrusted(*datagram),
        )  # fmt: skip
        self.keyring = keyring
        self.relay = Relay(name, self.partners, self.sender, self.counters, self._arrived)
        self.paths = Paths(name, self.partners, keyring, resolve, pack_address, unpack_address, own_address)
        self._is_clear = is_clear
        self._may_segment = may_segment
        self._datagram_bytes = datagram_bytes
        self._outbox: deque[Send] = deque()
        self._by_address: dict[Address, Partner] = {}
        self._answering: dict[Partner, None] = {}
        self._proofs: dict[tuple[Partner, Address], bytes] = {}
        """Answers to probes, by where they came from."""
        self._hunts: Bucket | None = None
        self._active: dict[Partner, None] = {}
        """Those that were heard lately, or that must go on hearing us."""
        self._questioned: Partner | None = None
        """To whom a question is just going out, in a way that may not be the one in use."""
        self._timers_s = 0.0
        self._look_again_s = NEVER_S
        self.is_busy = False
        """Whether frames still wait that may go at once."""

    # What the daemon says.

    def set_peer(self, peer: control.Peer) -> None:
        partner = self.partners.get(peer.name)
        if partner is not None and partner.peer.key != peer.key:
            self.forget(peer.name)  # somebody else under that name
            partner = None
        if partner is None:
            partner = self.partners[peer.name] = Partner(peer)
        else:
            partner.peer = peer
        self.keyring.set_peer(peer.name, peer.key)
        self._move_macs(partner, peer.macs, partner.macs.difference(peer.macs))
        for address in partner.where.told:
            if self._by_address.get(address) is partner and address != partner.address:
                del self._by_address[address]
        self.paths.tell(partner)
        for address in partner.where.told:
            self._by_address[address] = partner
        if peer.keep and partner not in self._active:
            self._active[partner] = None
            self._timers_s = NOW_S
        self._flood()

    def change_macs(self, change: control.Macs) -> None:
        partner = self.partners.get(change.name)
        if partner is not None:
            self._move_macs(partner, change.came, change.went)

    def _move_macs(self, partner: Partner, came: Iterable[bytes], went: Iterable[bytes]) -> None:
        """Of two that claim one, the last has it."""
        for mac in went:
            partner.macs.discard(mac)
            if self.sender.macs.get(mac) is partner:
                del self.sender.macs[mac]
        for mac in came:
            partner.macs.add(mac)
            self.sender.macs[mac] = partner

    def set_graph(self, graph: Graph) -> None:
        """Who exchanges UDP with whom: what routes are made of from now on."""
        self.paths.set_graph(graph)

    def expect(self, name: PeerName, now: float) -> None:
        """Frames for that peer may soon come: stay in contact for a while, by whatever way there is."""
        partner = self.partners.get(name)
        if partner is not None:
            partner.expected_s = now + EXPECTED_S
            self._active[partner] = None
            self._timers_s = now

    def forget(self, name: PeerName) -> None:
        partner = self.partners.pop(name, None)
        if partner is None:
            return
        self.keyring.remove_peer(name)
        self.sender.clear(partner, "peer-forgotten")
        self._move_macs(partner, (), list(partner.macs))
        self._by_address = {address: each for address, each in self._by_address.items() if each is not partner}
        for each in (self.receiver.reporting, self._answering, self._active):
            each.pop(partner, None)
        self._flood()

    def _flood(self) -> None:
        self.sender.flooded = tuple(each for _, each in sorted(self.partners.items()) if each.peer.flood)

    # From the TAP.

    def take_buffer(self) -> Buffer:
        return self.sender.pool.take()

    def frame(self, buffer: Buffer, size: int) -> bool:
        """A frame of `size` bytes at FRAME_AT, behind its virtio header. Whether the buffer is kept."""
        return self.sender.frame(buffer, size)

    # From the socket.

    def datagrams(self, data: memoryview, segment: int, address: Address, now: float) -> Frames:
        """What one `recvmsg` gave. The frames for the TAP are valid until the next call."""
        return self.receiver.datagrams(data, segment, address, now)

    def _find(self, index: int) -> tuple[Session, Partner] | None:
        session = self.keyring.sessions.get(index)
        if session is None:
            return None
        partner = self.partners.get(session.peer)
        return None if partner is None else (session, partner)

    def _authenticated(self, session: Session, partner: Partner, address: Address | None, now: float) -> None:
        if not session.confirmed:
            self.keyring.authenticated(session, now)
            self._timers_s = now  # the other side waits for a record that confirms it
        if address is not None and partner.where.is_followed(address, now):
            self._move(partner, address, now)
        partner.heard_s = now
        partner.hellos = 0
        if partner not in self._active:
            self._active[partner] = None
            self._timers_s = now

    def _move(self, partner: Partner, address: Address, now: float) -> None:
        """Its records come from there, or were proven to arrive there: so ours go there."""
        where = partner.where
        before = where.address
        is_turn = where.move(address, now)
        if before is not None:
            self._count(("relayed" if where.route else "returned") if is_turn else "roamed")
            if before not in where.told and self._by_address.get(before) is partner:
                del self._by_address[before]
        self.is_news = self.is_news or (is_turn and (before is not None or where.route is not None))
        if where.route is None:
            self._by_address[address] = partner
        if is_turn:
            partner.meter = LossMeter()
            session = self.keyring.current(partner.peer.name)
            partner.turned_at = 0 if session is None else session.counter
        partner.unanswered_s = None
        self._begin_trial(partner)

    def _begin_trial(self, partner: Partner) -> None:
        if partner.is_relayed:
            partner.trial = Trial(RELAYED_BYTES[0], False, RELAYED_BYTES)
        else:
            assert partner.address is not None
            partner.trial = Trial(self._datagram_bytes(partner.address), self._may_segment)

    def _note(self, partner: Partner, kind: int, body: bytes, now: float) -> None:
        """Something the other worker says of itself, under the seal."""
        if kind == NOTE_REPORT:
            if partner.take_report(decode_report_untrusted(body), now) > 0 and partner.trial is not None:
                partner.trial.doubt(now)
        elif kind == NOTE_ASK:
            if len(partner.notes) < NOTES_MAX:
                partner.notes.append(encode_note(NOTE_ANSWER, body))
            self._answering[partner] = None
        elif kind == NOTE_ANSWER and partner.trial is not None:
            partner.trial.answered(body, now)
        elif kind == NOTE_PROBE:
            source = self.receiver.source
            if len(body) == SALT_BYTES and len(self._proofs) < PROOFS_MAX:  # the last of many is answered
                self._proofs[partner, source] = self.paths.take_probe(partner, source, body)
            self._look_soon(partner, now)
        elif kind == NOTE_PROOF:
            better = self.paths.take_proof(partner, self.receiver.source, body, now)
            if better is not None:
                self._move(partner, better, now)
        elif kind == NOTE_CALL:
            self.paths.take_call(partner, body)
            self._look_soon(partner, now)

    def _handshake(self, datagram: bytes, address: Address, now: float) -> None:
        try:
            if datagram[0] == handshake.HELLO:
                _, answer = self.keyring.hello_untrusted(datagram, self.paths.pack(address), now)
                self._send((answer,), address)
            elif datagram[0] == handshake.WELCOME:
                partner = self.partners[self.keyring.welcome_untrusted(datagram, now)]
                if partner.address != address:
                    self._move(partner, address, now)  # it answered from there; records would move it again
                session = self.keyring.current(partner.peer.name)
                if session is not None:
                    self.paths.see(partner, session.observed)
            else:
                self.keyring.refusal_untrusted(datagram, now)
        except ProtocolError:
            return  # the keyring has counted it
        self._timers_s = now

    def _arrived(self, datagram: memoryview, route: Route, now: float) -> Frames:
        """Of a route that ends here."""
        return self.receiver.datagrams(datagram, len(datagram), route, now)

    def _stranger(self, address: Address, now: float) -> None:
        """A record of a session we do not have, from where a peer is: it speaks to an earlier life of ours."""
        partner = self._partner_at(address)
        if partner is not None and now - partner.renewed_s >= RENEW_S:
            partner.renewed_s = now
            self.keyring.want(partner.peer.name, now, renew=True)
            self._timers_s = now

    def _stray(self, address: Address, many: int) -> None:
        """The rest of a burst whose beginning was lost: for its sender, it did arrive."""
        partner = self._partner_at(address)
        if partner is not None and partner.where.is_known(address):
            partner.tally.received += max(0, min(many, partner.tally.seen - partner.tally.received))

    def _partner_at(self, address: Address) -> Partner | None:
        return self.partners.get(address[-1]) if isinstance(address, Route) else self._by_address.get(address)

    # To the socket.

    def outgoing(self, now: float) -> Iterator[Send]:
        """What is to be sent now, in order. Each must be sent, or given up, before the next is asked for."""
        sender = self.sender
        self.is_busy = False
        self._look_again_s = NEVER_S
        if now >= self._timers_s:
            yield from self._timers(now)
        while self._outbox:
            yield from self.relay.by_route(iter((self._outbox.popleft(),)))
        if self._proofs:
            yield from self._prove(now)
        if sender.filling:
            for partner in list(sender.filling):
                session = self._session(partner, now)
                if session is None:
                    self._wait(partner, now)
                    continue
                yield from self.relay.by_route(sender.flush(partner, session, now))
                partner.direct = not self._is_blocked(partner, now)
        if sender.backlog:
            for partner in list(sender.backlog):
                session = self._session(partner, now)
                if session is None:
                    self._wait(partner, now)
                    continue
                if self._is_blocked(partner, now):
                    partner.direct = False
                    self._look_again_s = now + BLOCKED_S
                    continue
                partner.direct = True
                yield from self.relay.by_route(sender.serve(partner, session, now))
                self.is_busy = self.is_busy or partner in sender.backlog
        if self._answering:
            answering, self._answering = self._answering, {}
            for partner in answering:
                session = self._session(partner, now)
                if session is not None:
                    yield from self.relay.by_route(sender.flush(partner, session, now))
        if self.receiver.reporting:
            yield from self._report(now)
        self.is_busy, self.relay.has_given = self.is_busy or self.relay.has_given, False
        # What came while the socket took no more, behind the place that we had reached.
        is_filled = sender.filling and any(each.direct for each in sender.filling)
        if self._outbox or self._answering or self._proofs or is_filled:
            self.is_busy = True

    def _is_blocked(self, partner: Partner, now: float) -> bool:
        """Whether enough is under way to it, or waits at the first hop to it."""
        route = partner.where.route
        hop = self.partners.get(route[1]) if route is not None else None
        if route is None or hop is None:
            return partner.is_blocked(now)
        return partner.is_blocked(now) or hop.queue.held_by(own_flow(route)) > HOP_QUEUE_BYTES

    def _wait(self, partner: Partner, now: float) -> None:
        """Frames wait for keys, but not for ever."""
        if partner.waiting_s is None:
            partner.waiting_s = now
        elif now - partner.waiting_s > WAITING_MAX_S:
            partner.waiting_s = None
            self.sender.clear(partner, "peer-silent")

    def _session(self, partner: Partner, now: float) -> Session | None:
        """To send under, to an address that is known; where there is none yet, it is asked for."""
        session = self.keyring.current(partner.peer.name)
        if session is None or partner.address is None:
            partner.direct = False
            self.keyring.want(partner.peer.name, now)
            self._timers_s = min(self._timers_s, self.keyring.next_due() or NEVER_S)
            return None
        if partner.sent_index != session.remote_index:
            partner.begin_sending(session.remote_index)
            if partner.trial is None:
                self._begin_trial(partner)
        partner.used_s = now
        if partner not in self._active:
            self._active[partner] = None
            self._timers_s = min(self._timers_s, now + BUSY_S)
        return session

    def _report(self, now: float) -> Iterator[Send]:
        for partner in list(self.receiver.reporting):
            due = partner.report_due_s
            if due is None:
                self.receiver.reporting.pop(partner, None)
            elif partner.unreported_bytes >= REPORT_BYTES or now >= due:
                self.receiver.reporting.pop(partner, None)
                session = self._session(partner, now)
                if session is not None:
                    partner.notes.append(encode_report(partner.make_report(self.sender.backlog_bytes())))
                    yield from self.relay.by_route(self.sender.flush(partner, session, now))

    def _timers(self, now: float) -> Iterator[Send]:
        """Handshakes, probes, trials and what else is due. A peer may be forgotten while the socket takes no more."""
        self.receiver.expire(now)
        for name, hello in self.keyring.due(now):
            asked = self.partners.get(name)
            for address in () if asked is None else self.paths.hello_to(asked, now):
                yield from self.relay.by_route(iter((((hello,), 0, address),)))
        for session in self.keyring.confirmations(now):
            confirmed = self.partners.get(session.peer)
            if confirmed is not None and confirmed.address is not None:
                self._active[confirmed] = None
                yield from self._say(confirmed, session, encode_note(NOTE_ASK, b""), confirmed.address)
        self._timers_s = now + IDLE_S
        for partner in list(self._active):
            yield from self._look_after(partner, now)
        due = self.keyring.next_due()
        if due is not None:
            self._timers_s = min(self._timers_s, due)

    def _look_after(self, partner: Partner, now: float) -> Iterator[Send]:
        """Ask what should be known of a partner: whether its way works, what else would, how much it takes."""
        name, where = partner.peer.name, partner.where
        session = self.keyring.current(name)
        if session is None or where.address is None:
            if self._quiet_s(partner, now) is not None:
                self.keyring.want(name, now)
            else:
                self._active.pop(partner, None)
            return
        unanswered_s = partner.unanswered(now)
        if unanswered_s > UNANSWERED_S:
            self._doubt(partner, now)
        if where.is_returning(now):
            yield from self._say(partner, session, self.paths.call(partner), where.address)
        routes = self.paths.routes(partner, now) if unanswered_s > where.patience_s else ()
        for address in where.due(routes, unanswered_s, now):
            if self._may_hunt(now):
                yield from self._probe(partner, session, address, now)
        is_used = now - partner.met_s < USED_S
        if is_used and partner in self._active:
            yield from self._try(partner, session, now)
        every_s = USED_S if is_used else self._quiet_s(partner, now)
        if every_s is None and (unanswered_s == 0.0 or now - partner.used_s > INTEREST_S):
            partner.unanswered_s = None  # nobody wants to know any more
            self._active.pop(partner, None)
            return
        is_due = every_s is not None and now - partner.asked_s >= every_s
        if is_due or (is_used and self.paths.has_moved(partner, now)):
            partner.asked_s = now
            yield from self._probe(partner, session, where.address, now)
        following = now + BUSY_S if is_used else max(now + BUSY_S, where.next_s(unanswered_s))
        self._timers_s = min(self._timers_s, following)

    def _may_hunt(self, now: float) -> bool:
        """However many partners are silent at once, they are asked so often together."""
        if self._hunts is None:
            self._hunts = Bucket(HUNTS_PER_S, HUNTS_BURST, now)
        return self._hunts.take(now)

    def _look_soon(self, partner: Partner, now: float) -> None:
        """Something asks for a look at that partner, if it does."""
        if partner in self._active:
            self._timers_s = min(self._timers_s, max(now, partner.where.next_s(partner.unanswered(now))))

    def _quiet_s(self, partner: Partner, now: float) -> float | None:
        """How often one without traffic is asked after; None: not at all."""
        if partner.peer.keep or now < partner.expected_s:
            return KEEP_S
        return KEEPALIVE_S if self.paths.is_translated(partner) else None

    def _doubt(self, partner: Partner, now: float) -> None:
        """Nothing that goes there is known to arrive: perhaps it has lost our keys, or its way takes less."""
        if now - partner.renewed_s >= RENEW_S:
            partner.renewed_s = now
            self.keyring.want(partner.peer.name, now, renew=True)
            if partner.trial is not None:
                partner.trial.doubt(now)

    def _say(self, partner: Partner, session: Session, note: bytes, address: Address) -> Iterator[Send]:
        """A record with a note, under that very session, to there."""
        record = self.sender.pool.take()
        record.view[HEADER_BYTES : HEADER_BYTES + len(note)] = note
        record.end = HEADER_BYTES + len(note)
        if address != partner.address:
            partner.apart.append(session.counter)
        for buffers, segment, _ in self.sender.seal_burst(partner, session, record, _SAFE):
            yield from self.relay.by_route(iter(((buffers, segment, address),)))
        self.sender.pool.give(record)

    def _probe(self, partner: Partner, session: Session, address: Address, now: float) -> Iterator[Send]:
        """Ask whether records arrive there, and their answers here."""
        yield from self._say(partner, session, self.paths.probe(partner, address, now), address)

    def _prove(self, now: float) -> Iterator[Send]:
        """Answers to probes, each on the way that its question came."""
        while self._proofs:
            (partner, address), note = next(iter(self._proofs.items()))
            del self._proofs[partner, address]
            session = self.keyring.current(partner.peer.name)
            if session is not None and self.partners.get(partner.peer.name) is partner:
                # Small ones that pass say nothing of large ones: what of these came, a report does.
                note += encode_report(partner.make_report(self.sender.backlog_bytes()))
                yield from self._say(partner, session, note, address)

    def _try(self, partner: Partner, session: Session, now: float) -> Iterator[Send]:
        """Of a pair in use: what its path takes."""
        if partner.trial is None:
            self._begin_trial(partner)
        assert partner.trial is not None
        question = partner.trial.due(now)
        if question is None:
            return
        way, body = question
        note = encode_note(NOTE_ASK, body)
        record = self.sender.pool.take()
        record.end = DATAGRAMS * way.datagram_bytes - TAG_BYTES - 8
        record.view[HEADER_BYTES : record.end] = note + bytes(record.end - HEADER_BYTES - len(note))
        first = session.counter
        self._questioned = partner
        yield from self.relay.by_route(self.sender.seal_burst(partner, session, record, way))
        self._questioned = None
        partner.apart.extend(range(first, session.counter))
        self.sender.pool.give(record)

    def next_due(self) -> float:
        """When `outgoing` should be called again at the latest."""
        due = min(self._timers_s, self._look_again_s)
        for partner in self.receiver.reporting:
            if partner.report_due_s is not None and partner.report_due_s < due:
                due = partner.report_due_s
        return due

    def refused(self, address: Address, now: float) -> None:
        """The kernel would not send to there in the way it was asked to (EMSGSIZE, EINVAL, EIO)."""
        self._count("send-refused")
        partner = self._by_address.get(address)
        if partner is None or partner.trial is None:
            return
        if self._datagram_bytes(address) < partner.trial.way.datagram_bytes:
            self._begin_trial(partner)  # it has learned of a smaller MTU
        elif partner is not self._questioned:
            partner.trial.refused(now)

    def _send(self, buffers: tuple[bytes, ...], address: Address) -> None:
        if len(self._outbox) < OUTBOX_MAX:
            self._outbox.append((buffers, 0, address))

    def _count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1

    # What is said of it.

    def totals(self) -> dict[str, int]:
        """Counters of all parts."""
        totals = dict(self.counters)
        for each, count in self.keyring.counters.items():
            totals[each] = totals.get(each, 0) + count
        totals["records-recovered"] = self.receiver.assembly.recovered
        totals["records-incomplete"] = self.receiver.assembly.dropped
        return totals

    def status(self, now: float) -> tuple[control.PeerStatus, ...]:
        return tuple(self._status(name, partner, now) for name, partner in sorted(self.partners.items()))

    def _status(self, name: PeerName, partner: Partner, now: float) -> control.PeerStatus:
        state, since_s = self.keyring.state(name, now)
        if state == control.UP and partner.unanswered(now) > SILENT_AFTER_S:
            state, since_s = control.SILENT, now - partner.unanswered(now)  # what we hear goes one way only
        is_translated = state == control.UP and self.paths.is_translated(partner)
        session = self.keyring.current(name)
        return view.row(partner, session, state, since_s, is_translated, self._is_clear, self._may_segment)
