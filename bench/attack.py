"""The attacker: sends prepared datagrams at a steady rate from whatever address it likes, and listens in on others.

A process of its own, run by path inside a namespace of a lab; knows nothing of Weft and imports only the standard
library. The one idea needed to read it: what is sent is made beforehand and cut into datagrams by the kernel
(`UDP_SEGMENT`), so that sending costs the machine, which the attacked share, as little as can be.

    attack.py send FILE TARGET PORT RATE SOURCE SOURCE_PORT    until its standard input ends; then tells what it sent
    attack.py hear FILE DEVICE PORT                            the same for what it heard

A file is a row of packs. A pack is given to the kernel in one call, and leaves as datagrams of `segment` bytes, the
last one perhaps shorter; what is heard has one datagram a pack.

    0           2               6
    +-----------+---------------+--------- - -
    | segment   | length        | bytes
    +-----------+---------------+--------- - -
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_HEAD = struct.Struct("!HI")
_SEGMENT = struct.Struct("=H")
_SOL_UDP, _UDP_SEGMENT, _IP_TRANSPARENT = 17, 103, 19
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 0x0003
"""A bridge takes packets away before anybody who asked for one protocol sees them."""
_IPV4 = b"\x08\x00"
_ETHERNET_BYTES = 14
_SLICE_S = 0.001
"""How evenly it sends: what is due is sent so often."""
_BEHIND_MAX_S = 0.02
"""Held up for longer it does not catch up: a flood in a lump would be another attack."""
HEARD_MAX = 12_000
"""Datagrams kept of what was heard: the newest."""


class Pack(NamedTuple):
    """Datagrams for one call: all of `segment` bytes but the last."""

    segment: int
    data: bytes

    @property
    def datagrams(self) -> int:
        return -(-len(self.data) // self.segment)


def write_packs(path: Path, packs: Iterable[Pack]) -> None:
    path.write_bytes(b"".join(_HEAD.pack(pack.segment, len(pack.data)) + pack.data for pack in packs))


def read_packs(path: Path) -> list[Pack]:
    data, at, packs = path.read_bytes(), 0, []
    while at < len(data):
        segment, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        packs.append(Pack(segment, data[at : at + length]))
        at += length
    return packs


def _say(facts: dict[str, float]) -> None:
    print(json.dumps(facts), flush=True)


def _is_told_to_end(wait_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def send(path: Path, target: str, port: int, rate: float, source: str, source_port: int) -> None:
    packs = [(pack.data, [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(pack.segment))], pack.datagrams)
             for pack in read_packs(path)]  # fmt: skip
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)  # so that it may speak from others' addresses
    out.bind((source, source_port))
    out.connect((target, port))
    out.setblocking(False)
    _say({"ready": True})
    sent = number = refused = 0
    began_s = turn_s = time.monotonic()
    due = 0.0
    while not _is_told_to_end(_SLICE_S):
        now = time.monotonic()
        due += rate * min(now - turn_s, _BEHIND_MAX_S)
        turn_s = now
        while sent < due:
            data, ancillary, datagrams = packs[number % len(packs)]
            try:
                out.sendmsg((data,), ancillary)
            except OSError:  # there is no room, or an ICMP answer to something earlier: this one was not sent
                refused += 1
                break
            sent += datagrams
            number += 1
    _say({"sent": sent, "seconds": time.monotonic() - began_s, "refused": refused})


def hear(path: Path, device: str, port: int) -> None:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    tap.bind((device, _ETH_P_ALL))
    heard: list[Pack] = []
    _say({"ready": True})
    while True:
        readable, _, _ = select.select([sys.stdin, tap], [], [])
        if tap in readable:
            packet, origin = tap.recvfrom(65_536)
            if origin[2] == socket.PACKET_OUTGOING or packet[12:14] != _IPV4 or packet[23] != socket.IPPROTO_UDP:
                continue
            at = _ETHERNET_BYTES + (packet[_ETHERNET_BYTES] & 15) * 4
            _, to, length, _ = struct.unpack_from("!HHHH", packet, at)
            if to == port:
                heard.append(Pack(length - 8, packet[at + 8 : at + length]))
                if len(heard) >= 2 * HEARD_MAX:
                    del heard[:HEARD_MAX]
        elif sys.stdin in readable:
            break
    write_packs(path, heard[-HEARD_MAX:])
    _say({"heard": len(heard)})


def main(argv: list[str]) -> None:
    if argv[0] == "send":
        _, path, target, port, rate, source, source_port = argv
        send(Path(path), target, int(port), float(rate), source, int(source_port))
    else:
        _, path, device, port = argv
        hear(Path(path), device, int(port))


if __name__ == "__main__":
    main(sys.argv[1:])
