"""A netlink socket: framing, attributes, requests, dumps and batches.

Knows the message header and how answers belong to questions; knows nothing of links or neighbours (rtnetlink). The
one idea: only what fails is answered. Two hundred changes travel in one send with an acknowledgement asked of the
last one alone; errors of the others come back with their sequence numbers. That is about a hundred times faster than
one call each.

    0       4     6     8       12      16
    +-------+-----+-----+-------+-------+------ - -       attributes:  0     2     4
    | len   |type |flags| seq   | port  | payload                      +-----+-----+------ - -
    +-------+-----+-----+-------+-------+------ - -                    | len |type | value, padded to 4
                                                                       +-----+-----+------ - -
All of it in the machine's byte order; lengths count their own header, padding excluded.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

REQUEST: Final = 0x001
ACK: Final = 0x004
ROOT_AND_MATCH: Final = 0x300
REPLACE: Final = 0x100
EXCLUSIVE: Final = 0x200
CREATE: Final = 0x400
APPEND: Final = 0x800

BATCH_MESSAGES: Final = 200
RECEIVE_BYTES: Final = 1 << 18
"""Room for one receive: the kernel fills up to 32 KiB of a dump at once when it sees a large buffer."""
COMMAND_BUFFER_BYTES: Final = 1 << 20
EVENT_BUFFER_BYTES: Final = 16 << 20
"""Receive buffer for events: about 15,000 of them may wait. Beyond that everything is listed again."""
ANSWER_TIMEOUT_S: Final = 10.0
"""The kernel answers at once; this only turns a mistake of ours into an error instead of a hang."""

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_FLAG_DUMP_INTERRUPTED: Final = 0x10
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_LISTEN_ALL_NSID: Final = 8
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_INSTRUCTION: Final = struct.Struct("=HBBI")
_NLMSGERR_ATTR_MSG: Final = 1
_FLAG_CAPPED: Final = 0x100
_FLAG_ACK_TLVS: Final = 0x200

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF


class NetlinkError(OSError):
    """An error number of the kernel, with its own words where it had any (`NLMSGERR_ATTR_MSG`)."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(number, words or os.strerror(number))


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    value = b"".join(attributes)
    return _ATTRIBUTE.pack(4 + len(value), kind | _NESTED) + value


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(1, "little"))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Attribute type to value; of several of one type the last. What is cut short is left out."""
    found: dict[int, bytes] = {}
    unpack = _ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4 or start + length > end:
            break
        found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, flags, sequence, start of payload, end) of each message in a received buffer."""
    position, unpack = 0, _HEADER.unpack_from
    while position + 16 <= len(data):
        length, kind, flags, sequence, _ = unpack(data, position)
        if length < 16:
            break
        yield kind, flags, sequence, position + 16, position + length
        position += (length + 3) & ~3


class NetlinkSocket:
    """For questions and changes. Belongs to the network namespace of the thread that makes it."""

    def __init__(self, family: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, COMMAND_BUFFER_BYTES)
            self._socket.bind((0, 0))
            self._socket.settimeout(ANSWER_TIMEOUT_S)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    @property
    def port(self) -> int:
        """What the kernel calls this socket in the events that its changes cause."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def change(self, kind: int, flags: int, payload: bytes) -> None:
        """One change, acknowledged. Raises NetlinkError."""
        errors = self.batch([(kind, flags, payload)])
        if errors:
            raise errors[0]

    def batch(self, changes: Sequence[tuple[int, int, bytes]]) -> dict[int, NetlinkError]:
        """(type, flags, payload) each, in this order. Returns the error of each that failed, by its index."""
        if not changes:
            return {}
        first = self._sequence + 1
        self._sequence += len(changes)
        last = len(changes) - 1
        out = bytearray()
        for index, (kind, flags, payload) in enumerate(changes):
            flags |= REQUEST | (ACK if index == last else 0)
            out += _HEADER.pack(16 + len(payload), kind, flags, first + index, 0)
            out += payload
            out += bytes(-len(payload) & 3)
        self._socket.send(out)
        errors: dict[int, NetlinkError] = {}
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for kind, flags, sequence, start, end in messages(data):
                index = sequence - first
                if kind != _NLMSG_ERROR or not 0 <= index <= last:
                    continue  # left over from a question given up
                error = _error_of(data, flags, start, end)
                if error is not None:
                    errors[index] = error
                if index == last:
                    return errors

    def ask(self, kind: int, payload: bytes, answer: int) -> tuple[bytes, int, int] | None:
        """One question with one answer: (buffer, start, end) of its payload. None if there is no such thing."""
        sequence = self._ask(kind, REQUEST | ACK, payload)
        found: tuple[bytes, int, int] | None = None
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for got, flags, seen, start, end in messages(data):
                if seen != sequence:
                    continue
                if got == answer:
                    found = (data, start, end)
                elif got == _NLMSG_ERROR:
                    error = _error_of(data, flags, start, end)
                    if error is None:
                        return found
                    if error.errno in (errno.ENODEV, errno.ENOENT):
                        return None
                    raise error

    def dump(self, kind: int, payload: bytes) -> Iterator[tuple[bytes, int, int, int]]:
        """(buffer, type, start, end) of every answer. Raises NetlinkError; EINTR if the table changed meanwhile.

        A dump that was interrupted is still complete but for what changed, and changes arrive as events.
        """
        sequence = self._ask(kind, REQUEST | ROOT_AND_MATCH, payload)
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for got, flags, seen, start, end in messages(data):
                if seen != sequence:
                    continue
                if got == _NLMSG_DONE:
                    number = -int.from_bytes(data[start : start + 4], "little", signed=True) if end - start >= 4 else 0
                    if number:
                        raise NetlinkError(number)
                    return
                if got == _NLMSG_ERROR:
                    raise _error_of(data, flags, start, end) or NetlinkError(errno.EIO)
                yield data, got, start, end

    def _ask(self, kind: int, flags: int, payload: bytes) -> int:
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(payload), kind, flags, self._sequence, 0) + payload)
        return self._sequence


class EventSocket:
    """Hears what changes. With `all_namespaces` also in those that this one has given a number (nsid)."""

    def __init__(
        self,
        family: int,
        groups: Sequence[int],
        *,
        all_namespaces: bool = False,
        program: Sequence[Instruction] = (),
    ) -> None:
        """`program` says of each message whether it is received at all: `all_but`, `defaults_only`."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            self._socket.setblocking(False)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, EVENT_BUFFER_BYTES)
            except PermissionError:  # without CAP_NET_ADMIN in the first user namespace: as large as allowed
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
            self._socket.bind((0, 0))
            if program:
                attach_filter(self._socket, program)
            if all_namespaces:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise
        self._all = all_namespaces

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> bytes | None:
        """One buffer of messages, or None when there is none. Raises OSError ENOBUFS when some were lost."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def receive_with_namespace(self) -> tuple[bytes, int] | None:
        """The same with the nsid it came from, -1 for this namespace."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, 64)
        except BlockingIOError:
            return None
        for level, kind, value in ancillary:
            if level == _SOL_NETLINK and kind == _NETLINK_LISTEN_ALL_NSID:
                return data, int.from_bytes(value[:4], "little", signed=True)
        return data, -1


Instruction = tuple[int, int, int, int]
"""Of classic BPF, linux/filter.h: code, jump if true, jump if not, operand."""


def attach_filter(filtered: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on the kernel asks the program about whatever would be queued. Loads read big-endian."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    # struct sock_fprog of linux/filter.h
    description = struct.pack("@HP", len(program), ctypes.addressof(code))
    filtered.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)


def all_but(kind: int, port: int) -> tuple[Instruction, ...]:
    """Drop messages of one type that the kernel ascribes to one port."""
    swapped_kind = _as_loaded(kind)
    swapped_port = int.from_bytes(struct.pack("=I", port), "big")
    return (
        (0x28, 0, 0, 4),  # load the half word at 4: the message type
        (0x15, 0, 3, swapped_kind),  # unlike: accept
        (0x20, 0, 0, 12),  # load the word at 12: the port
        (0x15, 0, 1, swapped_port),  # unlike: accept
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
    )


def defaults_only(new: int, deleted: int) -> tuple[Instruction, ...]:
    """Of the messages of these two types, which are of routes, drop those with a prefix that is not empty."""
    return (
        (0x28, 0, 0, 4),  # load the half word at 4: the message type
        (0x15, 1, 0, _as_loaded(new)),  # alike: look at the length
        (0x15, 0, 2, _as_loaded(deleted)),  # unlike: accept
        (0x30, 0, 0, 17),  # load the byte at 17: the length of the prefix
        (0x15, 0, 1, 0),  # unlike: drop
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
        (0x06, 0, 0, 0),  # drop
    )


def _as_loaded(kind: int) -> int:
    """A message type, which is in the machine's byte order, as a load sees it."""
    return int.from_bytes(struct.pack("=H", kind), "big")


def _error_of(data: bytes, flags: int, start: int, end: int) -> NetlinkError | None:
    """The error in an NLMSG_ERROR payload; None if it is an acknowledgement."""
    number = -struct.unpack_from("=i", data, start)[0]
    if number == 0:
        return None
    words = b""
    if flags & _FLAG_ACK_TLVS:
        # The failed request follows, its header alone if capped; then the attributes.
        length = 16 if flags & _FLAG_CAPPED else struct.unpack_from("=I", data, start + 4)[0]
        words = attributes(data, start + 4 + ((length + 3) & ~3), end).get(_NLMSGERR_ATTR_MSG, b"")
    return NetlinkError(number, words.rstrip(b"\0").decode(errors="replace"))
