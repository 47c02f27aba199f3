"""Which MACs frames went to lately by VXLAN: the sets that the guards of those devices keep, read by netlink.

Knows nothing of peers or of what is done with the answer. The one idea: the kernel notes a MAC when a frame goes there
and forgets it by itself, so a look costs what is in use and not what there is; one takes some twenty microseconds, and
no process is started for it. Messages: linux/netfilter/nf_tables.h, NFT_MSG_GETSETELEM.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from dataplane.linux.firewall import TABLE
from dataplane.linux.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, attributes, text
from dataplane.objects import active_set_name

_GET_ELEMENTS: Final = 10 << 8 | 13
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM."""
_NETDEV: Final = 5
_HEADER: Final = struct.Struct("!BBH")
_TABLE: Final = 1
_SET: Final = 2
_ELEMENTS: Final = 3
_KEY: Final = 1
_VALUE: Final = 1
_LENGTH: Final = struct.Struct("=H")
_MAC_BYTES: Final = 6


class Activity:
    """Of this host's VXLAN devices. Belongs to the network namespace of the thread that first looks."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._questions = [
            _HEADER.pack(_NETDEV, 0, 0) + text(_TABLE, TABLE) + text(_SET, active_set_name(device))
            for device in devices
        ]
        self._socket: NetlinkSocket | None = None

    def macs(self) -> frozenset[bytes] | None:
        """Those that frames went to in the last ten seconds or so; None where nobody keeps count (no nft, no egress
        hook)."""
        found: set[bytes] = set()
        is_kept = False
        try:
            self._socket = self._socket or NetlinkSocket(NETLINK_NETFILTER)
            for question in self._questions:
                try:
                    for data, _, start, end in self._socket.dump(_GET_ELEMENTS, question):
                        found.update(_keys(attributes(data, start + _HEADER.size, end).get(_ELEMENTS, b"")))
                except NetlinkError as error:
                    if error.errno == errno.ENOENT:
                        continue
                    if error.errno != errno.EINTR:  # else complete but for what changed meanwhile
                        raise
                is_kept = True
        except OSError:
            self.close()
            return None
        return frozenset(found) if is_kept else None

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None


def _keys(elements: bytes) -> Iterator[bytes]:
    """The MAC in each element of a list."""
    position = 0
    while position + 4 <= len(elements):
        length = _LENGTH.unpack_from(elements, position)[0]
        if length < 4:
            return
        key = attributes(elements, position + 4, position + length).get(_KEY, b"")
        mac = attributes(key, 0, len(key)).get(_VALUE, b"")
        if len(mac) >= _MAC_BYTES:
            yield mac[:_MAC_BYTES]
        position += (length + 3) & ~3
