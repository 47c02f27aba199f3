"""What leaves a host, packet by packet with its time, and what containers say in it.

tcpdump writes, this reads the file it wrote; a capture that dropped anything proves nothing and fails.
"""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from mesh.lab import Lab
from mesh.namespaces import wait_until

SNAP = "2048"
"""Bytes of each packet: whoever talks says its marker many times. With more, the capture's buffer holds few packets."""
_FILE_HEADER_BYTES = 24
_PACKET = struct.Struct("<4I")
_DROPPED = re.compile(r"(\d+) packets? dropped")


class Capture:
    """Everything that goes out of a host's underlay interface, from now until `stop`."""

    def __init__(self, lab: Lab, node: str, directory: Path) -> None:
        self._path = directory / f"{node}.pcap"
        self._path.unlink(missing_ok=True)
        command = ["tcpdump", "-i", "eth0", "-Q", "out", "-s", SNAP, "-B", "32768", "-U", "--immediate-mode"]
        self._tcpdump = lab.popen(node, [*command, "-w", str(self._path), "-Z", "root"])
        wait_until(
            lambda: self._path.exists() and self._path.stat().st_size >= _FILE_HEADER_BYTES, 5, "tcpdump listened"
        )
        self._packets: list[tuple[float, bytes]] = []

    def stop(self) -> None:
        self._tcpdump.send_signal(signal.SIGINT)
        _, stderr = self._tcpdump.communicate(timeout=10)
        assert all(int(number) == 0 for number in _DROPPED.findall(stderr)), stderr
        self._packets = list(self._read())

    def _read(self) -> Iterator[tuple[float, bytes]]:
        data = self._path.read_bytes()
        position = _FILE_HEADER_BYTES
        while position + _PACKET.size <= len(data):
            seconds, micros, size, _ = _PACKET.unpack_from(data, position)
            position += _PACKET.size
            yield seconds + micros / 1e6, data[position : position + size]
            position += size

    def __len__(self) -> int:
        return len(self._packets)

    def times(self, marker: bytes) -> list[float]:
        """When something that contains this went out, in seconds of `time.time`."""
        return [when for when, packet in self._packets if marker in packet]

    def sealed(self) -> list[float]:
        """When UDP went out from the sleeve's port."""
        return [when for when, packet in self._packets if _is_udp_from(packet, 6783)]


def _is_udp_from(packet: bytes, port: int) -> bool:
    if packet[12:14] == b"\x08\x00":
        return packet[23] == 17 and packet[34:36] == port.to_bytes(2, "big")
    return packet[12:14] == b"\x86\xdd" and packet[20] == 17 and packet[54:56] == port.to_bytes(2, "big")
