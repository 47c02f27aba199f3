"""The whole worker but for its sockets: frames and datagrams in, datagrams and frames out, the clock handed in.

Composes the keyring, the sender and the receiver, and holds what concerns all three: who the partners are, where they
are, and what is due when. The one idea: whatever is to be sent is asked for (`outgoing`), so that a socket that takes
no more for a while holds everything back behind it, and whole networks of these run under a virtual clock.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from dataplane.sleeve import control, handshake
from dataplane.sleeve.buffers import Buffer
from dataplane.sleeve.keys import Keyring
from dataplane.sleeve.partner import REPORT_BYTES, Address, Partner
from dataplane.sleeve.receiver import Frames, Receiver
from dataplane.sleeve.sender import Send, Sender
from dataplane.sleeve.session import Session
from dataplane.sleeve.trial import DATAGRAM_BYTES, DATAGRAMS, Trial, Way
from dataplane.sleeve.wire import (
    HEADER_BYTES,
    NOTE_ANSWER,
    NOTE_ASK,
    NOTE_REPORT,
    TAG_BYTES,
    decode_report_untrusted,
    encode_note,
    encode_report,
)
from gossip.errors import ProtocolError
from gossip.names import PeerName

ADDRESSES_TRIED_MAX: Final = 8
"""Of a peer's addresses, a handshake goes to so many at once."""
UNANSWERED_S: Final = 1.0
"""Frames go out and nothing at all comes back for so long: the other worker is a new one, or gone. Ask it."""
RENEW_S: Final = 1.0
"""Between two such askings of one peer."""
RTT_EVERY_S: Final = 5.0
BLOCKED_S: Final = 0.01
WAITING_MAX_S: Final = 3.0
"""Frames that waited so long for keys are of no use to anybody."""
NEVER_S: Final = float("inf")
BUSY_S: Final = 0.05
IDLE_S: Final = 1.0
"""Between two looks at what is due, with and without traffic."""
OUTBOX_MAX: Final = 4096
NOTES_MAX: Final = 16
"""What may wait for the next record to a peer beside frames; it asks for no more at once."""
KEEPALIVE_S: Final = 25.0
"""Towards peers that see us behind a NAT; its mapping is gone after 30 s where it is short."""
_SAFE: Final = Way(DATAGRAM_BYTES[-1], False)
_STAMP: Final = struct.Struct("!d")
_TRIAL: Final = b"t"
_RTT: Final = b"r"


class Sleeve:
    """One worker's mind."""

    def __init__(
        self,
        keyring: Keyring,
        is_clear: bool,
        may_segment: bool,
        resolve: Callable[[tuple[str, int]], Address | None],
        datagram_bytes: Callable[[Address], int],
        pack_address: Callable[[Address], bytes],
        own_address: Callable[[Address], bytes],
        backlog_bytes: Callable[[], int],
    ) -> None:
        """`resolve`: an address as the socket gives and takes it, None where it cannot be used here. `datagram_bytes`:
        the UDP payload that this host's underlay takes towards it. `pack_address`: 16 + 2 bytes for the handshake.
        `own_address`: the same of ours, as the routing table gives it, towards that one. `backlog_bytes`: what waits in
        our sockets, for the reports to those who sent it."""
        self.counters: dict[str, int] = {}
        self.partners: dict[PeerName, Partner] = {}
        self.sender = Sender(self.counters, backlog_bytes)
        self.receiver = Receiver(
            self.counters, self._find, self._authenticated, self._note, self._handshake, self._stranger, self._stray
        )
        self.keyring = keyring
        self._is_clear = is_clear
        self._may_segment = may_segment
        self._resolve = resolve
        self._datagram_bytes = datagram_bytes
        self._pack_address = pack_address
        self._own_address = own_address
        self._outbox: deque[Send] = deque()
        self._by_address: dict[Address, Partner] = {}
        self._answering: dict[Partner, None] = {}
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
            for mac in partner.peer.macs:
                if self.sender.macs.get(mac) is partner:
                    del self.sender.macs[mac]
            partner.peer = peer
        self.keyring.set_peer(peer.name, peer.key)
        for mac in peer.macs:
            self.sender.macs[mac] = partner
        for address in partner.candidates:
            if self._by_address.get(address) is partner and address != partner.address:
                del self._by_address[address]
        found = (self._resolve(each) for each in peer.addresses)
        partner.candidates = tuple(address for address in found if address is not None)
        for address in partner.candidates:
            self._by_address[address] = partner
        self._flood()

    def forget(self, name: PeerName) -> None:
        partner = self.partners.pop(name, None)
        if partner is None:
            return
        self.keyring.remove_peer(name)
        self.sender.clear(partner, "peer-forgotten")
        self.sender.macs = {mac: each for mac, each in self.sender.macs.items() if each is not partner}
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

    def _authenticated(self, session: Session, partner: Partner, address: Address, now: float) -> None:
        if not session.confirmed:
            self.keyring.authenticated(session, now)
            self._timers_s = now  # the other side waits for a record that confirms it
        if partner.address != address:
            self._move(partner, address)
        partner.heard_s = now
        partner.unanswered_s = None
        if partner not in self._active:
            self._active[partner] = None
            self._timers_s = now

    def _move(self, partner: Partner, address: Address) -> None:
        """Its records come from there: so ours go there."""
        before = partner.address
        if before is not None:
            self._count("roamed")
            if before not in partner.candidates and self._by_address.get(before) is partner:
                del self._by_address[before]
        partner.address = address
        self._by_address[address] = partner
        self._begin_trial(partner)

    def _begin_trial(self, partner: Partner) -> None:
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
        elif kind == NOTE_ANSWER and body[:1] == _TRIAL and partner.trial is not None:
            partner.trial.answered(body[1:], now)
        elif kind == NOTE_ANSWER and body[:1] == _RTT and len(body) == 1 + _STAMP.size:
            asked_s = _STAMP.unpack_from(body, 1)[0]
            if asked_s == partner.asked_s:
                partner.rtt_ms = max(0.0, (now - asked_s) * 1000)

    def _handshake(self, datagram: bytes, address: Address, now: float) -> None:
        try:
            if datagram[0] == handshake.HELLO:
                _, answer = self.keyring.hello_untrusted(datagram, self._pack_address(address), now)
                self._send((answer,), address)
            elif datagram[0] == handshake.WELCOME:
                partner = self.partners[self.keyring.welcome_untrusted(datagram, now)]
                if partner.address != address:
                    self._move(partner, address)  # it answered from there; records would move it again
            else:
                self.keyring.refusal_untrusted(datagram, now)
        except ProtocolError:
            return  # the keyring has counted it
        self._timers_s = now

    def _stranger(self, address: Address, now: float) -> None:
        """A record of a session we do not have, from where a peer is: it speaks to an earlier life of ours."""
        partner = self._by_address.get(address)
        if partner is not None and now - partner.renewed_s >= RENEW_S:
            partner.renewed_s = now
            self.keyring.want(partner.peer.name, now, renew=True)

    def _stray(self, address: Address, many: int) -> None:
        """The rest of a burst whose beginning was lost: for its sender, it did arrive."""
        partner = self._by_address.get(address)
        if partner is not None:
            partner.tally.received += max(0, min(many, partner.tally.seen - partner.tally.received))

    # To the socket.

    def outgoing(self, now: float) -> Iterator[Send]:
        """What is to be sent now, in order. Each must be sent, or given up, before the next is asked for."""
        sender = self.sender
        self.is_busy = False
        self._look_again_s = NEVER_S
        if now >= self._timers_s:
            yield from self._timers(now)
        while self._outbox:
            yield self._outbox.popleft()
        if sender.filling:
            for partner in list(sender.filling):
                session = self._session(partner, now)
                if session is None:
                    self._wait(partner, now)
                    continue
                yield from sender.flush(partner, session, now)
                partner.direct = not partner.is_blocked(now)
        if sender.backlog:
            for partner in list(sender.backlog):
                session = self._session(partner, now)
                if session is None:
                    self._wait(partner, now)
                    continue
                if partner.is_blocked(now):
                    partner.direct = False
                    self._look_again_s = now + BLOCKED_S
                    continue
                partner.direct = True
                yield from sender.serve(partner, session, now)
                self.is_busy = self.is_busy or partner in sender.backlog
        if self._answering:
            answering, self._answering = self._answering, {}
            for partner in answering:
                session = self._session(partner, now)
                if session is not None:
                    yield from sender.flush(partner, session, now)
        if self.receiver.reporting:
            yield from self._report(now)
        # What came while the socket took no more, behind the place that we had reached.
        if self._outbox or self._answering or (sender.filling and any(each.direct for each in sender.filling)):
            self.is_busy = True

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
        since = partner.unanswered_s
        if since is not None and now - since > UNANSWERED_S and now - partner.renewed_s >= RENEW_S:
            partner.renewed_s = now
            self.keyring.want(partner.peer.name, now, renew=True)
            if partner.trial is not None:
                partner.trial.doubt(now)
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
                    yield from self.sender.flush(partner, session, now)

    def _timers(self, now: float) -> Iterator[Send]:
        """Handshakes, trials and what else is due. A peer may be forgotten while the socket takes no more."""
        self.receiver.expire(now)
        for name, hello in self.keyring.due(now):
            asked = self.partners.get(name)
            for address in () if asked is None else self._addresses(asked):
                yield (hello,), 0, address
        for session in self.keyring.confirmations(now):
            confirmed = self.partners.get(session.peer)
            if confirmed is not None and confirmed.address is not None:
                self._active[confirmed] = None
                yield from self._say(confirmed, session, encode_note(NOTE_ASK, b""), now)
        following = now + IDLE_S
        for partner in list(self._active):
            current = self.keyring.current(partner.peer.name)
            if current is None or partner.address is None or partner.heard_s is None:
                self._active.pop(partner, None)
                continue
            if now - partner.heard_s < RTT_EVERY_S:
                following = now + BUSY_S
                yield from self._probe(partner, current, now)
            elif not self._keep_alive(current, partner.address):
                self._active.pop(partner, None)
            elif now - max(partner.heard_s, partner.asked_s) > KEEPALIVE_S:
                partner.asked_s = now
                yield from self._say(partner, current, encode_note(NOTE_ASK, b""), now)
        due = self.keyring.next_due()
        self._timers_s = following if self._active else now + IDLE_S
        if due is not None:
            self._timers_s = min(self._timers_s, due)

    def _say(self, partner: Partner, session: Session, note: bytes, now: float) -> Iterator[Send]:
        """A record with a note, under that very session."""
        record = self.sender.pool.take()
        record.view[HEADER_BYTES : HEADER_BYTES + len(note)] = note
        record.end = HEADER_BYTES + len(note)
        yield from self.sender.seal_burst(partner, session, record, _SAFE)
        self.sender.pool.give(record)

    def _probe(self, partner: Partner, session: Session, now: float) -> Iterator[Send]:
        """Of a pair in use: what its path takes, and how long it takes."""
        if partner.trial is None:
            self._begin_trial(partner)
        assert partner.trial is not None
        if (question := partner.trial.due(now)) is not None:
            way, body = question
            note = encode_note(NOTE_ASK, _TRIAL + body)
            record = self.sender.pool.take()
            record.end = DATAGRAMS * way.datagram_bytes - TAG_BYTES - 8
            record.view[HEADER_BYTES : record.end] = note + bytes(record.end - HEADER_BYTES - len(note))
            self._questioned = partner
            yield from self.sender.seal_burst(partner, session, record, way)
            self._questioned = None
            self.sender.pool.give(record)
        if now - partner.asked_s >= RTT_EVERY_S:
            partner.asked_s = now
            yield from self._say(partner, session, encode_note(NOTE_ASK, _RTT + _STAMP.pack(now)), now)

    def _keep_alive(self, session: Session, address: Address) -> bool:
        """Whether the peer sees us elsewhere than we are: a NAT lies between, and forgets us when we are silent."""
        return bool(session.observed) and session.observed != self._own_address(address)

    def _addresses(self, partner: Partner) -> list[Address]:
        """Where a handshake is sent: where the peer was last, and wherever it says it may be."""
        found: dict[Address, None] = {} if partner.address is None else {partner.address: None}
        for each in partner.peer.addresses:
            address = self._resolve(each)
            if address is not None:
                found[address] = None
        return list(found)[:ADDRESSES_TRIED_MAX]

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
        return tuple(self._status(partner, now) for _, partner in sorted(self.partners.items()))

    def _status(self, partner: Partner, now: float) -> control.PeerStatus:
        state, since = self.keyring.state(partner.peer.name, now)
        session = self.keyring.current(partner.peer.name)
        shape = partner.meter.shape
        off = [] if self._may_segment else [control.UDP_SEGMENT]
        if partner.trial is not None and partner.trial.proven is not None and not partner.trial.way.segmented:
            off = [control.UDP_SEGMENT]
        return control.PeerStatus(
            name=partner.peer.name,
            state=state,
            address=_text(partner.address),
            encrypted=not self._is_clear,
            cipher=session.cipher if session is not None else "none",
            since_s=since,
            rtt_ms=None if partner.rtt_ms is None else round(partner.rtt_ms, 3),
            loss=round(partner.meter.loss, 6),
            datagrams=shape.datagrams,
            parity=shape.parity,
            offloads_off=tuple(off),
            datagram_bytes=partner.datagram_bytes if partner.trial is not None else 0,
        )


def _text(address: Address | None) -> str | None:
    if address is None:
        return None
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
