"""Deleting links, and going on as soon as they are gone.

The kernel answers a deletion when it has freed the links, for which it waits until nobody can be looking at them any
more: some 20 ms. By then they have been gone for most of that time: no name leads to them and no packet takes them, in
any namespace, and it has said so to whoever listens to its events. So a thread asks, and we listen.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import closing

from dataplane.linux import links
from dataplane.linux.netlink import NETLINK_ROUTE, EventSocket, NetlinkSocket, messages

_LINK_GROUP = 1
"""RTNLGRP_LINK of linux/rtnetlink.h."""
_INFO = struct.Struct("=BxHi")
"""struct ifinfomsg as far as the index: family, type, index."""


def delete(question: bytes, ifindexes: Iterable[int]) -> None:
    """`question`: the payload of a RTM_DELLINK that deletes these links of this thread's network namespace. Raises
    OSError where the kernel refuses."""
    waiting = set(ifindexes)
    outcome: list[OSError] = []
    ours, theirs = socket.socketpair()

    def ask() -> None:
        with theirs:  # closed when all is done: that wakes whoever listens
            try:
                with closing(NetlinkSocket()) as commands:
                    commands.change(links.RTM_DELLINK, 0, question)
            except OSError as error:
                outcome.append(error)

    with ours, closing(EventSocket(NETLINK_ROUTE, (_LINK_GROUP,))) as events:
        threading.Thread(target=ask, name="weft-delete", daemon=True).start()
        poll = select.poll()
        poll.register(events, select.POLLIN)
        poll.register(ours, select.POLLIN)
        while waiting:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if ours.fileno() in ready:
                break
            try:
                while (data := events.receive()) is not None:
                    waiting -= _deleted(data)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                poll.unregister(events)  # some were lost: the answer tells as well
    if outcome:
        raise outcome[0]


def _deleted(data: bytes) -> set[int]:
    """Links that are gone. One that only leaves its bridge is told of in the bridge's own family."""
    found = set()
    for kind, _, _, start, _ in messages(data):
        if kind == links.RTM_DELLINK:
            family, _, index = _INFO.unpack_from(data, start)
            if family == socket.AF_UNSPEC:
                found.add(index)
    return found
