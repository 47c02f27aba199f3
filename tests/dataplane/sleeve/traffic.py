"""Flows of numbered frames, and a ledger that knows what of them was sent and says whether what arrives may arrive.

Knows nothing of sleeves. A flow is cut into *units*: a plain frame is one, a super-frame is one for each segment. Units
are numbered through the flow, so that whatever way a super-frame was cut, each part names the units that it carries:
each may come once, unchanged, and on an ordered path never before an earlier one.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field

VNET = struct.Struct("<BBHHHH")
MARKER = b"plaintext-marker"
"""In every payload, again and again."""
_BLOCKS = 40_000
_TABLE = b"".join(MARKER + number.to_bytes(8, "big") for number in range(_BLOCKS))
_PERIOD = len(_TABLE)
_CONTENT = _TABLE + _TABLE[:70_000]
TCP, UDP, BROADCAST = "tcp", "udp", "broadcast"
_NUMBER = struct.Struct("!QI")
ETHERNET, IP, TCP_HEADER, UDP_HEADER = 14, 20, 20, 8
BROADCAST_MAC = b"\xff" * 6
_PORT = 1000


def mac_of(host: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, host))


def content(flow: int, position: int, size: int) -> bytes:
    """What stands in a flow at a position: full of the marker, and never the same twice in a test's time."""
    start = (flow * 199_999 + position) % _PERIOD
    return _CONTENT[start : start + size]


@dataclass(slots=True)
class Sent:
    """One frame that was offered: its units are numbers `first` to `first + units - 1`."""

    data: bytes
    first: int
    units: int
    segment: int
    start: int
    """TCP: its position in the stream."""
    size: int
    copies: int = 1
    """How many hosts should get it."""


@dataclass(slots=True)
class Flow:
    number: int
    source: int
    target: int
    kind: str
    units: int = 0
    position: int = 0
    frames: list[Sent] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Of each frame: position in the stream (TCP) or first unit."""
    arrived: dict[int, set[int]] = field(default_factory=dict)
    """By host: units."""
    last: dict[int, int] = field(default_factory=dict)
    """By host: the highest unit that arrived."""


class Ledger:
    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self.is_ordered = True
        """Whether the network keeps order, so that flows must too."""
        self.late = 0

    def flow(self, source: int, target: int, kind: str = TCP) -> Flow:
        made = Flow(len(self.flows), source, target, kind)
        self.flows.append(made)
        return made

    def offer(self, flow: Flow, size: int, segment: int = 0, copies: int = 1) -> bytes:
        """The next frame of a flow: `size` bytes of payload, in segments of so many bytes (0: a plain frame)."""
        each = segment or size
        if flow.kind != TCP and 0 < size % each < _NUMBER.size:
            size -= size % each  # each datagram has room for its number
        units = -(-size // each)
        first = flow.units
        if flow.kind == TCP:
            payload = content(flow.number, flow.position, size)
            start = flow.position
        else:
            parts = [min(each, size - at) for at in range(0, size, each)]
            payload = b"".join(_numbered(flow.number, first + number, part) for number, part in enumerate(parts))
            start = first
        data = _frame(flow, payload, segment if units > 1 else 0)
        flow.frames.append(Sent(data, first, units, each, start, size, copies))
        flow.starts.append(start)
        flow.units += units
        flow.position += size
        return data

    def arrived(self, host: int, data: bytes) -> Flow:
        """A frame that a host's TAP was given. Raises AssertionError where that frame should not have come."""
        flow, start, payload = self._parse(data)
        assert flow.kind == BROADCAST or host == flow.target, f"host {host} got a frame for {flow.target}"
        assert host != flow.source, "a frame came back"
        index = bisect_right(flow.starts, start) - 1
        assert index >= 0, "before the first frame"
        sent = flow.frames[index]
        if flow.kind == TCP:
            offset = start - sent.start
            assert offset % sent.segment == 0, "cut within a segment"
            number = offset // sent.segment
            expected = content(flow.number, start, len(payload))
        else:
            number = start - sent.first
            offset = number * sent.segment
            expected = b"".join(
                _numbered(flow.number, start + each, min(sent.segment, len(payload) - each * sent.segment))
                for each in range(-(-len(payload) // sent.segment))
            )
        assert payload == expected, "the payload was changed"
        end = offset + len(payload)
        assert end == sent.size or (end < sent.size and len(payload) % sent.segment == 0), "cut within a segment"
        count = -(-len(payload) // sent.segment)
        _check_headers(data, sent, whole=count == sent.units)
        self._note(flow, host, sent.first + number, count)
        return flow

    def _note(self, flow: Flow, host: int, first: int, count: int) -> None:
        seen = flow.arrived.setdefault(host, set())
        units = range(first, first + count)
        assert seen.isdisjoint(units), f"units {first}..{first + count - 1} of flow {flow.number} came twice"
        seen.update(units)
        last = flow.last.get(host, -1)
        if first < last:
            self.late += 1
            assert not self.is_ordered, f"unit {first} of flow {flow.number} came after {last}"
        flow.last[host] = max(last, first + count - 1)

    def _parse(self, data: bytes) -> tuple[Flow, int, bytes]:
        frame = data[VNET.size :]
        protocol = frame[ETHERNET + 9]
        (port,) = struct.unpack_from("!H", frame, ETHERNET + IP)
        flow = self.flows[port - _PORT]
        assert frame[6:12] == mac_of(flow.source)
        if protocol == 6:
            assert flow.kind == TCP
            (start,) = struct.unpack_from("!I", frame, ETHERNET + IP + 4)
            return flow, start, frame[ETHERNET + IP + TCP_HEADER :]
        assert flow.kind != TCP
        payload = frame[ETHERNET + IP + UDP_HEADER :]
        number, of = _NUMBER.unpack_from(payload)
        assert of == flow.number
        return flow, number, payload

    def missing(self, since: dict[int, int] | None = None, until: dict[int, int] | None = None) -> int:
        """How many units did not arrive; `since` and `until`: of each flow, from that unit on and before that one."""
        total = 0
        for flow in self.flows:
            begin = 0 if since is None else since.get(flow.number, 0)
            copies = flow.frames[0].copies if flow.frames else 0
            end = flow.units if until is None else until.get(flow.number, 0)
            came = sum(sum(begin <= unit < end for unit in units) for units in flow.arrived.values())
            total += (end - begin) * copies - came
        return total

    def mark(self) -> dict[int, int]:
        """Where each flow stands now."""
        return {flow.number: flow.units for flow in self.flows}


def _numbered(flow: int, unit: int, size: int) -> bytes:
    assert size >= _NUMBER.size
    return _NUMBER.pack(unit, flow) + content(flow, unit * 24, size - _NUMBER.size)


def _frame(flow: Flow, payload: bytes, segment: int) -> bytes:
    port = _PORT + flow.number
    start = ETHERNET + IP
    if flow.kind == TCP:
        transport = struct.pack("!HHIIBBHHH", port, 5201, flow.position, 1, 0x50, 0x10, 1000, 0, 0)
        offset, kind = 16, 1
    else:
        transport = struct.pack("!HHHH", port, 5202, UDP_HEADER + len(payload), 0)
        offset, kind = 6, 5
    total = IP + len(transport) + len(payload)
    addresses = bytes((10, 32, flow.source, 1, 10, 32, flow.target, 1))
    head = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, 64, 6 if flow.kind == TCP else 17, 0) + addresses
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    target = BROADCAST_MAC if flow.kind == BROADCAST else mac_of(flow.target)
    ethernet = target + mac_of(flow.source) + b"\x08\0"
    vnet = (
        VNET.pack(1, kind, start + len(transport), segment, start, offset)
        if segment
        else VNET.pack(1, 0, 0, 0, start, offset)
    )
    return vnet + ethernet + head + transport + payload


def _checksum(head: bytes) -> int:
    return 0xFFFF - sum(struct.unpack("!10H", head)) % 0xFFFF


def _check_headers(data: bytes, sent: Sent, whole: bool) -> None:
    if whole:
        assert data == sent.data, "the frame was changed"
        return
    at = VNET.size
    assert data[at : at + ETHERNET + 2] == sent.data[at : at + ETHERNET + 2]
    at += ETHERNET
    (total,) = struct.unpack_from("!H", data, at + 2)
    assert total == len(data) - at, "the IP length is wrong"
    assert data[at + 6 : at + 10] == sent.data[at + 6 : at + 10]
    assert data[at + 12 : at + IP + 4] == sent.data[at + 12 : at + IP + 4]
    assert _checksum(data[at : at + IP]) in (0, 0xFFFF), "the IP checksum is wrong"
