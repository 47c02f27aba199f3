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
from dataplane.sleeve.assembly import Assembly, Burst
from dataplane.sleeve.partner import Address, Partner, Tally
from dataplane.sleeve.session import Session
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
    SEND_MAX_BYTES,
    TAG_BYTES,
    decode_note_untrusted,
    nonce,
)
from gossip.errors import ProtocolError

HANDSHAKE_TYPE_MAX: Final = 3
_NUMBERS: Final = bytes(range(256))
Frames = list[memoryview]


def _run(data: memoryview, start: int, segment: int) -> int:
    """How many datagrams from `start` on are consecutive pieces of one record, as far as the low bytes of their headers
    tell; 1 where they are no pieces. If they lie, the seal will not open."""
    if data[start] != PIECES:
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
        authenticated: Callable[[Session, Partner, Address, float], None],
        note: Callable[[Partner, int, bytes, float], None],
        handshake: Callable[[bytes, Address, float], None],
        stranger: Callable[[Address, float], None],
    ) -> None:
        """`find`: a session by our index. `authenticated`: a record was opened. `stranger`: a record of no session."""
        self.counters = counters
        self.assembly = Assembly()
        self._find = find
        self._authenticated = authenticated
        self._note = note
        self._handshake = handshake
        self._stranger = stranger

    def datagrams(self, data: memoryview, segment: int, address: Address, now: float) -> Frames:
        """What one `recvmsg` gave: datagrams of `segment` bytes each, the last one perhaps shorter. The frames are
        parts of `data` or of buffers of their own, with virtio headers, checked."""
        size = len(data)
        if size == 0:
            self._count("datagram-empty")
            return []
        kind = data[0]
        if kind == BURST and size >= HEADER_BYTES:
            _, datagrams, last, index, counter = BURST_HEADER.unpack_from(data)
            found = self._find(index)
            if found is not None:
                return self._burst(data, min(segment, size), datagrams, last, counter, found, address, now)
        if address in self.assembly.bursts and not self._begins_anew(data):
            return self._continue(data, address, now)
        if size <= segment:
            return self._single(data, address, now)
        out: Frames = []
        start = 0
        while start < size:
            many = _run(data, start, segment)
            if many > 1:
                out += self._pieces(data, start, segment, many, address, now)
            else:
                out += self._single(data[start : start + segment], address, now)
            start += many * segment
        return out

    def _begins_anew(self, data: memoryview) -> bool:
        """Whether pieces with a header of a known session follow, not the rest of a burst."""
        return (
            data[0] == PIECES and len(data) > HEADER_BYTES and self._find(PIECE_HEADER.unpack_from(data)[4]) is not None
        )

    def _single(self, data: memoryview, address: Address, now: float) -> Frames:
        """One datagram that is not part of a burst that came whole."""
        kind, size = data[0], len(data)
        if kind == PIECES and size > HEADER_BYTES:
            return self._pieces(data, 0, size, 1, address, now)
        if kind == BURST and size >= HEADER_BYTES:
            _, datagrams, last, index, counter = BURST_HEADER.unpack_from(data)
            found = self._find(index)
            if found is not None:
                return self._burst(data, size, datagrams, last, counter, found, address, now)
            self._count("unknown-session")
            self._stranger(address, now)
        elif 0 < kind <= HANDSHAKE_TYPE_MAX:
            self._handshake(bytes(data), address, now)
        else:
            self._count("unknown-type")
        return []

    # Bursts.

    def _burst(
        self, data: memoryview, segment: int, datagrams: int, last: int, counter: int,
        found: tuple[Session, Partner], address: Address, now: float,
    ) -> Frames:  # fmt: skip
        session, partner = found
        if not session.window.is_new(counter):
            self._count("replayed")
            return []
        total = (datagrams - 1) * segment + last
        size = len(data)
        if size < total:
            if partner.address != address or not 0 < datagrams <= DATAGRAMS_MAX or total > SEND_MAX_BYTES:
                self._count("burst-cut")
                return []
            if address in self.assembly.bursts:
                self._give_up(address)
            burst = Burst(bytes(data[:HEADER_BYTES]), session.local_index, counter, datagrams, total, segment, now)
            self.assembly.begin_burst(address, burst, data)
            return []
        if size > total:
            self._count("burst-long")
            return []
        return self._open(data, data[:HEADER_BYTES].tobytes(), counter, datagrams, found, address, now)

    def _continue(self, data: memoryview, address: Address, now: float) -> Frames:
        held = self.assembly.bursts[address]
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

    def _give_up(self, address: Address) -> None:
        burst = self.assembly.bursts[address]
        self.assembly.give_up_burst(address)
        self._count("burst-broken")
        self._tally_lost(burst)

    def _tally_lost(self, burst: Burst) -> None:
        """Of a burst that stays incomplete, what did arrive counts as arrived."""
        found = self._find(burst.index)
        if found is not None:
            self._tally(*found).received += burst.have // burst.segment

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
        if address != partner.address and count > 1:
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
        end = len(data)
        opener = session.open
        if opener is not None:
            end -= TAG_BYTES
            if end < HEADER_BYTES:
                self._count("record-short")
                return []
            try:
                opener.decrypt_into(nonce(counter), data[HEADER_BYTES:], header, data[HEADER_BYTES:end])
            except InvalidTag:
                self._count("bad-seal")
                return []
        if not session.window.accept(counter):
            self._count("replayed")
            return []
        tally = self._tally(session, partner)
        if header[0] == BURST:
            tally.received += datagrams
        if counter + datagrams > tally.seen:
            tally.seen = counter + datagrams
            self._authenticated(session, partner, address, now)
        else:
            self._authenticated(session, partner, partner.address or address, now)
        return self._entries(data[:end], partner, now)

    @staticmethod
    def _tally(session: Session, partner: Partner) -> Tally:
        """What arrived under the newest session; records of an older one that are late are nobody's concern."""
        tally = partner.tally
        if tally.index != session.local_index:
            fresh = Tally(session.local_index, session.rank)
            if session.rank < tally.rank:
                return fresh
            tally = partner.tally = fresh
        return tally

    def _entries(self, data: memoryview, partner: Partner, now: float) -> Frames:
        out: Frames = []
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
        if out:
            partner.received(end, now)
        return out

    def _count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1
