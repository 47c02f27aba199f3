"""From frames to datagrams: who gets a frame, what waits, what goes into one record, and how it is sealed and cut.

Pure: frames come in with their buffers, lists of buffers go out. In the order in which a frame meets them: `frame`
(which peer), the peer's queue (which flow is next), `_pack` or `_cut` (which record), `_burst` or `seal_pieces`.
The one idea: a large frame is sealed where the TAP wrote it, so its bytes are never copied in Python; small frames are
copied into a record that goes out at the end of the turn, so nothing ever waits for company.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

from dataplane.sleeve import frames
from dataplane.sleeve import parity as code
from dataplane.sleeve.buffers import ETHERNET_AT, FRAME_AT, Buffer, Pool
from dataplane.sleeve.partner import REPORT_RIDE_BYTES, Partner
from dataplane.sleeve.session import Session
from dataplane.sleeve.trial import Way
from dataplane.sleeve.whereabouts import Address
from dataplane.sleeve.wire import (
    BURST,
    BURST_HEADER,
    DATAGRAMS_MAX,
    FRAME_MAX_BYTES,
    FRAME_MIN_BYTES,
    HEADER_BYTES,
    LENGTH,
    LENGTH_BYTES,
    PIECE_HEADER,
    PIECES,
    RELAYED,
    SEND_MAX_BYTES,
    TAG_BYTES,
    encode_report,
    nonce,
)

Send = tuple[Sequence[bytes | memoryview], int, Address]
"""What goes into one `sendmsg`: buffers, the size of each datagram but the last (0: it is one datagram), whereto."""

SMALL_BYTES: Final = 3000
"""Up to this size a frame is copied into a record shared with others; beyond, it has one to itself."""
SLICE_MIN_BYTES: Final = 64 * 1024
SLICE_MAX_BYTES: Final = 192 * 1024
SLICE_S: Final = 0.0006
"""Sent to one peer before the next has its turn, and before what arrived meanwhile is looked at: what goes out in so
long. Larger turns cost less, and pings wait for them."""
PROTECT_FROM: Final = 2
"""A record of one datagram has a parity datagram only where the path needs that much parity for large ones."""


Item = bytes | Buffer
"""An entry with its length in front; a large one in the buffer that it will be sealed in, at HEADER_BYTES."""
_DESTINATION: Final = struct.Struct("6s")


class Sender:
    """All that goes out."""

    def __init__(self, counters: dict[str, int], backlog_bytes: Callable[[], int]) -> None:
        """`backlog_bytes`: what waits in our own socket, for the reports to those who sent it."""
        self.backlog_bytes = backlog_bytes
        self.macs: dict[bytes, Partner] = {}
        self.flooded: tuple[Partner, ...] = ()
        self.counters = counters
        self.backlog: dict[Partner, None] = {}
        """Partners with frames waiting, in the order of their turns."""
        self.filling: dict[Partner, None] = {}
        """Partners with a record begun."""
        self.pool = Pool()

    # Frames, as the TAP gives them.

    def frame(self, buffer: Buffer, size: int) -> bool:
        """A frame of `size` bytes with its virtio header, at FRAME_AT. Whether the buffer is kept."""
        if not FRAME_MIN_BYTES <= size <= FRAME_MAX_BYTES:
            self._count("tap-frame-size")
            return False
        view = buffer.view
        (destination,) = _DESTINATION.unpack_from(view, ETHERNET_AT)
        partner = self.macs.get(destination)
        if partner is None:
            if destination[0] & 1:
                LENGTH.pack_into(view, HEADER_BYTES, size)
                copy = bytes(view[HEADER_BYTES : FRAME_AT + size])
                for each in self.flooded:
                    self._push(each, copy, size, b"")
            else:
                self._count("tap-unknown-destination")
            return False
        end = FRAME_AT + size
        LENGTH.pack_into(view, HEADER_BYTES, size)
        if size > SMALL_BYTES:
            buffer.end = end
            for dropped in partner.queue.push(frames.flow_key(view[ETHERNET_AT:end]), buffer, size):
                self._drop(dropped, "queue-full")
            self.backlog[partner] = None
            return True
        if partner.direct and partner not in self.backlog:
            record = partner.filling or self._record(partner)
            at = record.end
            filled = at + LENGTH_BYTES + size
            if filled <= partner.limit:
                record.view[at:filled] = view[HEADER_BYTES:end]
                record.end = filled
                return False
        self._push(partner, bytes(view[HEADER_BYTES:end]), size, frames.flow_key(view[ETHERNET_AT:end]))
        return False

    def _push(self, partner: Partner, item: Item, size: int, flow: Hashable) -> None:
        for dropped in partner.queue.push(flow, item, size):
            self._drop(dropped, "queue-full")
        self.backlog[partner] = None

    def pass_on(self, hop: Partner, head: bytes, parts: Sequence[bytes | memoryview], flow: Hashable) -> None:
        """A datagram that goes by a route, behind its head: an entry like any other for the next one on it."""
        size = len(head) + sum(map(len, parts))
        if size <= SMALL_BYTES:
            self._push(hop, b"".join((head, *parts)), size, flow)
            return
        buffer = self.pool.take()
        at = HEADER_BYTES
        for part in (head, *parts):
            buffer.view[at : at + len(part)] = part
            at += len(part)
        buffer.end = at
        for dropped in hop.queue.push(flow, buffer, size):
            self._drop(dropped, "queue-full")
        self.backlog[hop] = None

    def _drop(self, item: Item, reason: str) -> None:
        self._count(reason)
        if isinstance(item, Buffer):
            self.pool.give(item)

    def clear(self, partner: Partner, reason: str) -> None:
        """Whatever waits for it goes nowhere."""
        self.backlog.pop(partner, None)
        while (item := partner.queue.pop()) is not None:
            self._drop(item, reason)
        if self.filling.pop(partner, ...) is None and partner.filling is not None:
            self.pool.give(partner.filling)
            partner.filling = None

    # Records.

    def serve(self, partner: Partner, session: Session, now: float) -> Iterator[Send]:
        """Some of what waits for it. What is yielded must be sent before the next is asked for."""
        left = min(SLICE_MAX_BYTES, max(SLICE_MIN_BYTES, int(partner.rate * SLICE_S)))
        pop = partner.queue.pop
        assert partner.trial is not None
        way = partner.trial.way
        _, parity, guarded = partner.meter.shape
        whole = HEADER_BYTES + partner.capacity() if way.segmented and not (parity or guarded) else 0
        while left > 0:
            item = pop()
            if item is None:
                self.backlog.pop(partner, None)  # it may have been forgotten meanwhile
                break
            if isinstance(item, bytes):
                left -= len(item)
                yield from self._pack(partner, session, item, now)
                continue
            size = item.end
            left -= size
            if partner.filling is not None:
                yield from self.flush(partner, session, now)  # frames of one flow stay in order
            if size <= whole:
                if partner.notes or partner.unreported_bytes >= REPORT_RIDE_BYTES:
                    self._write_notes(partner, item)
                yield self._burst(partner, session, item, way.datagram_bytes)
                partner.sent(session.counter, size, now)
            elif size <= HEADER_BYTES + partner.capacity():
                yield from self._seal(partner, session, item, now)
            elif LENGTH.unpack_from(item.view, HEADER_BYTES)[0] != RELAYED:
                yield from self._cut(partner, session, item, now)
            elif size + TAG_BYTES <= DATAGRAMS_MAX * (partner.datagram_bytes - HEADER_BYTES):
                yield from self._seal(partner, session, item, now)  # nobody but its origin can cut it
            else:
                self._count("relayed-too-large")  # its origin tries smaller ones
            self.pool.give(item)
        if partner.filling is not None:
            yield from self.flush(partner, session, now)

    def _pack(self, partner: Partner, session: Session, entry: bytes, now: float) -> Iterator[Send]:
        """A small entry, into the record that is being filled."""
        size = len(entry)
        record = self._record(partner)
        if record.end + size > partner.limit and record.end > HEADER_BYTES:
            yield from self.flush(partner, session, now)
            record = self._record(partner)
        start = record.end
        record.end = start + size
        record.view[start : record.end] = entry

    def _record(self, partner: Partner) -> Buffer:
        record = partner.filling
        if record is None:
            record = partner.filling = self.pool.take()
            record.end = HEADER_BYTES
            partner.limit = HEADER_BYTES + partner.capacity()
            self.filling[partner] = None
        return record

    def flush(self, partner: Partner, session: Session, now: float) -> Iterator[Send]:
        """The record that was being filled, if it holds anything, and notes that wait."""
        record = partner.filling
        if record is None:
            if not partner.notes:
                return
            record = self._record(partner)
        partner.filling = None
        del self.filling[partner]
        if record.end > HEADER_BYTES or partner.notes:
            yield from self._seal(partner, session, record, now)
        self.pool.give(record)

    def _cut(self, partner: Partner, session: Session, buffer: Buffer, now: float) -> Iterator[Send]:
        """A large frame on a path that wants smaller records."""
        data = buffer.view[FRAME_AT : buffer.end]
        segments = frames.segments_within(data, partner.capacity() - LENGTH_BYTES)
        parts = frames.split(data, max(1, segments))
        if not parts:
            self._count("tap-frame-odd")  # its headers contradict each other
        for part in parts:
            yield from self._pack(partner, session, LENGTH.pack(len(part)) + part, now)

    def _seal(self, partner: Partner, session: Session, record: Buffer, now: float) -> Iterator[Send]:
        is_reported = record.end > HEADER_BYTES
        if partner.notes or partner.unreported_bytes >= REPORT_RIDE_BYTES:
            self._write_notes(partner, record)
        trial = partner.trial
        assert trial is not None
        way = trial.way
        _, parity, guarded = partner.meter.shape
        size = record.end
        if partner.is_relayed:
            yield self._burst(partner, session, record, SEND_MAX_BYTES)
        elif size + TAG_BYTES > DATAGRAMS_MAX * (way.datagram_bytes - HEADER_BYTES):
            self._count("record-too-large")  # it was filled for larger datagrams than pass now
            return
        elif (parity or guarded) and (size + TAG_BYTES > way.datagram_bytes or parity >= PROTECT_FROM):
            yield from self.seal_pieces(partner, session, record, parity)
        elif way.segmented:
            yield self._burst(partner, session, record, way.datagram_bytes)
        else:
            yield from self.seal_burst(partner, session, record, way)
        partner.sent(session.counter, size, now, is_reported)

    def _write_notes(self, partner: Partner, record: Buffer) -> None:
        if partner.unreported_bytes >= REPORT_RIDE_BYTES:
            partner.notes.append(encode_report(partner.make_report(self.backlog_bytes())))
        for note in partner.notes:
            if record.end + len(note) + TAG_BYTES + LENGTH_BYTES <= SEND_MAX_BYTES:
                record.view[record.end : record.end + len(note)] = note
                record.end += len(note)
        partner.notes.clear()

    def _burst(self, partner: Partner, session: Session, record: Buffer, datagram_bytes: int) -> Send:
        """The record sealed with one header, for one send that the kernel cuts."""
        view, end, counter = record.view, record.end, session.counter
        total = end + TAG_BYTES
        datagrams, last = 1, total
        if total > datagram_bytes:
            datagrams = -(-total // datagram_bytes)
            last = total - (datagrams - 1) * datagram_bytes
            if last == datagram_bytes:  # the last one has to be shorter
                view[end : end + LENGTH_BYTES] = b"\0\0"
                end += LENGTH_BYTES
                total += LENGTH_BYTES
                datagrams += 1
                last = LENGTH_BYTES
        header = BURST_HEADER.pack(BURST, datagrams, last, session.remote_index, counter)
        view[:HEADER_BYTES] = header
        if session.seal is not None:
            session.seal.encrypt_into(nonce(counter), view[HEADER_BYTES:end], header, view[HEADER_BYTES:total])
        else:
            _sign(session, view, end)
        session.counter = counter + datagrams
        session.sent_bytes += total
        assert partner.address is not None
        return (view[:total],), datagram_bytes if datagrams > 1 else 0, partner.address

    def seal_burst(self, partner: Partner, session: Session, record: Buffer, way: Way) -> Iterator[Send]:
        """The same, sent in the way that is asked for."""
        send = self._burst(partner, session, record, SEND_MAX_BYTES if partner.is_relayed else way.datagram_bytes)
        (whole,), segment, address = send
        if way.segmented or not segment:
            yield send
            return
        for start in range(0, len(whole), segment):
            yield (whole[start : start + segment],), 0, address

    def seal_pieces(self, partner: Partner, session: Session, record: Buffer, parity: int) -> Iterator[Send]:
        """The record in pieces, each with its header, and with parity pieces."""
        assert partner.trial is not None
        way = partner.trial.way
        view, end, counter = record.view, record.end, session.counter
        room = way.datagram_bytes - HEADER_BYTES
        sealed = end - HEADER_BYTES + TAG_BYTES
        count = -(-sealed // room)
        if count == 1:
            parity = 1
        piece = -(-sealed // count)
        padding = count * piece - sealed
        if padding:
            view[end : end + padding] = bytes(padding)
            end += padding
        total = end + TAG_BYTES
        header = PIECE_HEADER.pack(PIECES, 0, count, parity, session.remote_index, counter)
        if session.seal is not None:
            session.seal.encrypt_into(nonce(counter), view[HEADER_BYTES:end], header, view[HEADER_BYTES:total])
        else:
            view[:HEADER_BYTES] = header
            _sign(session, view, end)
        pieces: list[bytes | memoryview] = [view[start : start + piece] for start in range(HEADER_BYTES, total, piece)]
        if parity:
            pieces += code.encode(pieces, parity)
        session.counter = counter + len(pieces)
        session.sent_bytes += total
        address = partner.address
        assert address is not None
        headers = bytearray(header * len(pieces))
        headers[1::HEADER_BYTES] = bytes(range(len(pieces)))
        view = memoryview(headers)
        buffers: list[bytes | memoryview] = []
        for number, each in enumerate(pieces):
            buffers.append(view[number * HEADER_BYTES : (number + 1) * HEADER_BYTES])
            buffers.append(each)
        size = HEADER_BYTES + piece
        if way.segmented:
            at_once = min(DATAGRAMS_MAX, max(1, SEND_MAX_BYTES // size)) * 2
            for start in range(0, len(buffers), at_once):
                yield buffers[start : start + at_once], size, address
        else:
            for start in range(0, len(buffers), 2):
                yield buffers[start : start + 2], 0, address

    def _count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1


def _sign(session: Session, view: memoryview, end: int) -> None:
    """The tag of a record that travels in clear, over all before it, header included."""
    assert session.sign is not None
    view[end : end + TAG_BYTES] = session.sign.encrypt(nonce(session.counter), b"", view[:end])
