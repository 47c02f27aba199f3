"""From datagrams to frames: whose record it is, whether it is whole, genuine and new, and what is in it.

Pure: one received buffer in (several datagrams, where the kernel joined them), frames and notes out. In the order in
which a datagram meets them: `datagrams`, `_burst` or `_piece`, `_open`, `_entries`. The one idea: nothing is believed
before the seal was opened but what costs nothing to believe; whatever is wrong is dropped and counted by its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag

from dataplane.sleeve import frames
from dataplane.sleeve.assembly import AGE_MAX_S, Assembly, Burst
from dataplane.sleeve.partner import REPORT_S, Partner, Tally
from dataplane.sleeve.routes import Route
from dataplane.sleeve.session import Session
from dataplane.sleeve.whereabouts import Address
from dataplane.sleeve.wire import (
    BURST,
    BURST_HEADER,
    DATAGRAMS_MAX,
    FRAME_MIN_BYTES,
    HEADER_BYTES,
    LENGTH_BYTES,
    NOTE,
    PIECE_HEADER,
    PIECES,
    RELAYED,
    SEND_MAX_BYTES,
    TAG_BYTES,
    Relayed,
    decode_note_untrusted,
    decode_relayed_untrusted,
    is_search,
    nonce,
)
from gossip.errors import ProtocolError

HANDSHAKE_TYPE_MAX: Final = 3
HEARD_S: Final = 0.02
"""Of a peer that goes on sending it is said so often that it was heard."""
_NUMBERS: Final = bytes(range(256))
_OTHER_TYPES: Final = bytes(kind for kind in range(256) if not 0 < kind <= PIECES)
Frames = list[memoryview]


def _run(data: memoryview, start: int, segment: int) -> int:
    """How many datagrams from `start` on are consecutive pieces of one record, as far as the low bytes of their headers
    tell; 1 where they are no pieces. If they lie, the seal will not open."""
    if data[start] != PIECES or min(segment, len(data) - start) <= HEADER_BYTES:
        return 1
    number, end = data[start + 1], start + (data[start + 2] + data[start + 3] - data[start + 1]) * segment
    many = len(range(start, min(end, len(data) - HEADER_BYTES), segment))
    if many < 2:
        return 1
    numbers = bytes(data[start + 1 : start + many * segment : segment])
    counters = bytes(data[start + 15 : start + many * segment : segment])
    if numbers == _NUMBERS[number : number + many] and counters == counters[:1] * many:
        return many
    return 1


class Receiver:
    """All that comes in."""

    def __init__(
        self,
        counters: dict[str, int],
        find: Callable[[int], tuple[Session, Partner] | None],
        authenticated: Callable[[Session, Partner, Address | None, float], None],
        note: Callable[[Partner, int, bytes, float], None],
        handshake: Callable[[bytes, Address, float], None],
        stranger: Callable[[Address, float], None],
        stray: Callable[[Address, int], None],
        relayed: Callable[[Partner, Relayed, float], Frames],
    ) -> None:
        """`find`: a session by our index. `authenticated`: a record was opened, and where it came
        from if its sender means to be there. `stranger`: a record of no session.
        `stray`: so many datagrams without a header, most likely of a burst whose first one was lost. `relayed`: a
        datagram that goes by a route; the frames in it, where it ends here."""
        self.counters = counters
        self.assembly = Assembly()
        self.reporting: dict[Partner, None] = {}
        """Those to whom something has to be reported."""
        self._find = find
        self._authenticated = authenticated
        self._note = note
        self._handshake = handshake
        self._stranger = stranger
        self._stray = stray
        self._relayed = relayed
        self.source: Address = ()
        """Where the record came from whose notes are being told."""

    def datagrams(self, data: memoryview, segment: int, address: Address, now: float) -> Frames:
        """What one `recvmsg` gave: datagrams of `segment` bytes each, the last one perhaps shorter. The frames are
        parts of `data` or of buffers of their own, with virtio headers, checked."""
        size = len(data)
        if size == 0:
            self._count("datagram-empty")
            return []
        if data[0] == BURST and size >= HEADER_BYTES:
            _, datagrams, last, index, counter = BURST_HEADER.unpack_from(data)
            if size == (datagrams - 1) * segment + last:  # one burst, whole, as mostly
                found = self._find(index)
                if found is not None:
                    return self._open_burst(data, datagrams, counter, found, address, now)
        out: Frames = []
        segment = min(segment, size)
        if address not in self.assembly.bursts:
            kinds = bytes(data[::segment])
            if not kinds.strip(_OTHER_TYPES):  # none of them is anything: a flood costs little when told at one glance
                self.counters["unknown-type"] = self.counters.get("unknown-type", 0) + len(kinds)
                self._stray(address, len(kinds))
                return out
        while size:
            used = self._first(data, min(segment, size), address, now, out)
            data = data[used:]
            size -= used
        return out

    def _first(self, data: memoryview, segment: int, address: Address, now: float, out: Frames) -> int:
        """What stands first among datagrams that came joined. Equal ones are joined, whatever they are: so several
        records of one datagram each, and the end of one burst with what follows it. Its length."""
        if data[0] == BURST and len(data) >= HEADER_BYTES:
            _, datagrams, last, index, counter = BURST_HEADER.unpack_from(data)
            found = self._find(index)
            if found is not None:
                return self._burst(data, segment, datagrams, last, counter, found, address, now, out)
        held = self.assembly.bursts.get(address)
        if held is not None and not self._begins_anew(data):
            need = held.size - held.have
            if segment == min(need, held.segment):
                used = min(need, self._reach(data, segment, held.index))
                if used < need:
                    used -= used % segment
                out += self._continue(held, data[:used], address, now)
                return used
            if segment == held.size % held.segment:
                self._give_up(address)  # its end came too early
        many = _run(data, 0, segment)
        if many > 1:
            out += self._pieces(data, 0, segment, many, address, now)
        else:
            out += self._single(data[:segment], address, now)
        return min(many * segment, len(data))

    def _begins_anew(self, data: memoryview) -> bool:
        """Whether pieces with a header of a known session follow, not the rest of a burst."""
        return (
            data[0] == PIECES and len(data) > HEADER_BYTES and self._find(PIECE_HEADER.unpack_from(data)[4]) is not None
        )

    @staticmethod
    def _reach(data: memoryview, segment: int, index: int) -> int:
        """Where the next burst of that session begins, if the end of the first one was lost and they came joined."""
        for start in range(segment, len(data) - HEADER_BYTES, segment):
            if data[start] == BURST and BURST_HEADER.unpack_from(data, start)[3] == index:
                return start
        return len(data)

    def _single(self, data: memoryview, address: Address, now: float) -> Frames:
        """One datagram that is not part of a burst that came whole."""
        kind, size = data[0], len(data)
        if kind == PIECES and size > HEADER_BYTES:
            return self._pieces(data, 0, size, 1, address, now)
        if kind == BURST and size >= HEADER_BYTES:
            self._count("unknown-session")
            self._stranger(address, now)
        elif 0 < kind <= HANDSHAKE_TYPE_MAX:
            self._handshake(bytes(data), address, now)
        else:
            self._count("unknown-type")
            self._stray(address, 1)
        return []

    def expire(self, now: float) -> None:
        """Give up what waits for the rest of it for too long."""
        for address, burst in list(self.assembly.bursts.items()):
            if now - burst.began_s > AGE_MAX_S:
                self._give_up(address)
        self.assembly.expire(now)

    # Bursts.

    def _burst(
        self, data: memoryview, segment: int, datagrams: int, last: int, counter: int,
        found: tuple[Session, Partner], address: Address, now: float, out: Frames,
    ) -> int:  # fmt: skip
        """A burst's beginning, and of the rest of `data` what belongs to it. Its length."""
        session, partner = found
        total = (datagrams - 1) * segment + last
        size = self._reach(data, segment, session.local_index) if datagrams > 1 else segment
        if datagrams > 1 and size < total and size % segment != last:
            size -= size % segment  # what was joined to it is shorter, and not its end: it is somebody else's
        if size == total:
            out += self._open_burst(data[:size], datagrams, counter, found, address, now)
        elif not session.window.is_new(counter):
            self._count("replayed")
        elif size > total:
            self._count("burst-long")
        elif not partner.where.is_known(address) or not 1 < datagrams <= DATAGRAMS_MAX or total > SEND_MAX_BYTES:
            self._count("burst-cut")
        else:
            if address in self.assembly.bursts:
                self._give_up(address)
            header = data[:HEADER_BYTES].tobytes()
            burst = Burst(header, session.local_index, counter, datagrams, total, segment, now)
            self.assembly.begin_burst(address, burst, data[:size])
        return size

    def _open_burst(
        self, data: memoryview, datagrams: int, counter: int,
        found: tuple[Session, Partner], address: Address, now: float,
    ) -> Frames:  # fmt: skip
        if not found[0].window.is_new(counter):
            self._count("replayed")
            return []
        return self._open(data, data[:HEADER_BYTES].tobytes(), counter, datagrams, found, address, now)

    def _continue(self, held: Burst, data: memoryview, address: Address, now: float) -> Frames:
        done = self.assembly.continue_burst(address, data, now)
        if done is None:
            if address not in self.assembly.bursts:
                self._tally_lost(held)
                self._count("burst-broken")
            return []
        burst, whole = done
        found = self._find(burst.index)
        if found is None:
            return []
        return self._open(memoryview(whole), burst.header, burst.counter, burst.datagrams, found, address, now)

    def _give_up(self, address: object) -> None:
        burst = self.assembly.bursts[address]
        self.assembly.give_up_burst(address)
        self._count("burst-broken")
        self._tally_lost(burst)

    def _tally_lost(self, burst: Burst) -> None:
        """Of a burst that stays incomplete, what did arrive counts as arrived."""
        found = self._find(burst.index)
        if found is not None:
            self._tally(*found).received += -(-burst.have // burst.segment)

    # Pieces.

    def _pieces(self, data: memoryview, start: int, segment: int, many: int, address: Address, now: float) -> Frames:
        """Consecutive pieces of one record, as a kernel joined them: mostly all of it."""
        _, number, count, parity, index, counter = PIECE_HEADER.unpack_from(data, start)
        parts = [
            data[at + HEADER_BYTES : min(at + segment, len(data))]
            for at in range(start, start + many * segment, segment)
        ]
        found = self._find(index)
        if found is None:
            self._count("unknown-session")
            self._stranger(address, now)
            return []
        session, partner = found
        self._tally(session, partner).received += many
        if not session.window.is_new(counter):
            return []  # its record is complete already, or it is a repetition: the same to us
        if count > 1 and not partner.where.is_known(address):
            self._count("piece-elsewhere")
            return []
        before = self.assembly.recovered
        whole = self.assembly.take(index, counter, number, count, parity, parts, now)
        if not whole:
            return []
        self._tally(session, partner).recovered += self.assembly.recovered - before
        header = PIECE_HEADER.pack(PIECES, 0, count, parity, index, counter)
        record = memoryview(bytearray().join((header, *whole)))
        return self._open(record, header, counter, count + parity, found, address, now)

    # Records.

    def _open(
        self, data: memoryview, header: bytes, counter: int, datagrams: int,
        found: tuple[Session, Partner], address: Address, now: float,
    ) -> Frames:  # fmt: skip
        """A whole record behind its header: opened in its place, checked for newness, taken apart."""
        session, partner = found
        end = len(data) - TAG_BYTES
        if end < HEADER_BYTES:
            self._count("record-short")
            return []
        opener = session.open
        try:
            if opener is not None:
                opener.decrypt_into(nonce(counter), data[HEADER_BYTES:], header, data[HEADER_BYTES:end])
            else:
                assert session.verify is not None
                session.verify.decrypt(nonce(counter), data[end:], data[:end])
        except InvalidTag:
            self._count("bad-seal")
            if address == partner.address:
                partner.forged += 1
            return []
        if not session.window.accept(counter):
            self._count("replayed")
            return []
        tally, source = partner.tally, address
        if tally.index != session.local_index:
            tally = self._tally(session, partner)
        if header[0] == BURST:
            tally.received += datagrams
        if counter + datagrams > tally.seen and tally is partner.tally:
            tally.seen = counter + datagrams
        else:
            address = partner.address or address  # late: it tells nothing of where the peer is now
        if address != partner.address or not session.confirmed or now - (partner.heard_s or 0.0) > HEARD_S:
            searches = is_search(data[:end])
            if not searches:
                partner.met_s = now
            moves = address != partner.address and (partner.address is None or not searches)
            self._authenticated(session, partner, address if moves else None, now)
        return self._entries(data[:end], partner, source, now)

    def _tally(self, session: Session, partner: Partner) -> Tally:
        """What arrived under the newest session; records of an older one that are late are nobody's concern."""
        tally = partner.tally
        if tally.index != session.local_index:
            fresh = Tally(session.local_index, session.rank)
            if session.rank < tally.rank and self._find(tally.index) is not None:
                return fresh
            tally = partner.tally = fresh
        return tally

    def _entries(self, data: memoryview, partner: Partner, source: Address, now: float) -> Frames:
        out: Frames = []
        self.source = source
        is_reported = False
        check = frames.check_untrusted
        position, end = HEADER_BYTES, len(data)
        while position + LENGTH_BYTES <= end:
            size = data[position] | data[position + 1] << 8
            if size == 0:
                break
            if size == NOTE:
                try:
                    kind, body, position = decode_note_untrusted(data, position)
                    self._note(partner, kind, body, now)
                except ProtocolError as error:
                    self._count(error.reason)
                    break
                continue
            if size == RELAYED:
                try:
                    datagram, position = decode_relayed_untrusted(data, position)
                except ProtocolError as error:
                    self._count(error.reason)
                    break
                is_reported = True
                if isinstance(source, Route):
                    self._count("relayed-twice")  # a hop has no hops of its own, or there would be no end to it
                else:
                    out += self._relayed(partner, datagram, now)
                    self.source = source
                continue
            position += LENGTH_BYTES
            if size < FRAME_MIN_BYTES or position + size > end:
                self._count("bad-record")
                break
            frame = data[position : position + size]
            position += size
            fault = check(frame)
            if fault is None:
                out.append(frame)
            else:
                self._count(fault)
        if out or is_reported:
            partner.unreported_bytes += end
            if partner.report_due_s is None:
                partner.report_due_s = now + REPORT_S
                self.reporting[partner] = None
        return out

    def _count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1
