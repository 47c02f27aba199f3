"""One host that knows a whole mesh: the process inside a namespace whose memory and times the bench `state` takes.

The daemon without its shells: a node's replica, the router, the roster of a sleeve worker, and the engine with the real
kernel. Pages arrive as gossip brings them, signed. Says nothing on its own: it answers commands, a line each, in JSON,
so that hosts of several sizes can take turns.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from random import Random
from typing import Any

from bench.endpoints import Programmer, entries
from dataplane.desired import Desired
from dataplane.expansion import expand
from dataplane.linux import open_kernel, tables, teardown
from dataplane.linux.netlink import BATCH_MESSAGES, NetlinkSocket
from dataplane.objects import BRIDGE_FDB, NEIGHBOUR, VXLAN_FDB, Key, Value, vxlan_name
from gossip.documents import sign_page
from gossip.events import PageChanged
from gossip.identity import Identity
from gossip.names import PeerName
from gossip.node import Node, NodeConfig
from gossip.peers import LIVE, PEER_TABLE, PeerRecord, encode_peer
from mesh.endpoints import ENDPOINTS_TABLE, Binding, Endpoint, derive_mac, encode_row
from mesh.forwarding import Local
from mesh.heap import Heap
from mesh.namespaces import LabError
from mesh.roster import Roster
from mesh.router import BRIDGE, Router, Seen

HOSTS = 11
ROWS = 91
"""On a page. With these, 1,000 endpoints are a full page for each host, as are the pages of more."""
ENTRIES = 4
"""In the kernel for an endpoint with an IPv4 and an IPv6 address: two forwarding entries, two neighbours."""
CHANGE_OPERATIONS = 6
"""A new MAC: two entries made, two removed, two neighbours replaced."""
KINDS = (VXLAN_FDB, BRIDGE_FDB, NEIGHBOUR)
"""In the order in which they are made."""
LIMIT_CHANGES = 20
NOTHING_SEEN = Seen()
"""By probes and by the sleeve worker: there are none."""


class Member:
    """Another host and what it publishes."""

    def __init__(self, number: int) -> None:
        self.identity = Identity(bytes([number]) * 32, bytes(32))
        key = bytes([number]) * 32
        attributes: dict[str, Any] = {"mtu": 1450, "vxlan": True, "vxlan_port": 6784, "sleeve_key": key}
        self.record = PeerRecord(f"h{number}", bytes(16), LIVE, "0", (f"10.9.1.{number}:6783",), attributes)
        self._version = 0

    def page(self, table: str, index: int, body: bytes) -> bytes:
        self._version += 1
        return sign_page(self.identity, table, index, 1, self._version, body).raw


class Mesh:
    """What one host knows of `count` endpoints elsewhere, without its kernel."""

    def __init__(self, count: int) -> None:
        own = Identity(bytes(32), bytes(32))
        self.count = count
        self.pages = -(-count // ROWS)
        self._node = Node(own, PeerRecord("me", bytes(16), LIVE, "0", (), {}), 1, NodeConfig(), Random(1), 0.0)
        self._router = Router(self._node, 1450, 0.0, None)
        self._local = Local(own.name, False, True, 6784, (ip_network("10.9.0.0/16"),))
        self._roster = Roster()
        self._roster.begin(adopted=False)
        self._heap = Heap()
        self._members = [Member(number) for number in range(1, HOSTS + 1)]
        self._salts: dict[int, int] = {}
        """By endpoint: which MAC it has after its changes."""
        for member in self._members:
            self.take(member, PEER_TABLE, 0, member.page(PEER_TABLE, 0, encode_peer(member.record)))
        self._node.replica.update_reach([member.identity.name for member in self._members], 0.0)

    def signed(self, page: int) -> tuple[Member, str, int, bytes]:
        """A page as its owner sends it."""
        member, index = self._members[page % HOSTS], page // HOSTS
        numbers = range(page * ROWS, min(self.count, (page + 1) * ROWS))
        rows = [encode_row(_endpoint(member.identity.name, each, self._salts.get(each, 0))) for each in numbers]
        body = b"".join(struct.pack("!H", len(row)) + row for row in rows)
        return member, ENDPOINTS_TABLE, index, member.page(ENDPOINTS_TABLE, index, body)

    def changed(self, salt: int) -> tuple[Member, str, int, bytes]:
        """The page of an endpoint that got another MAC."""
        number = salt * 7919 % self.count
        self._salts[number] = salt
        return self.signed(number // ROWS)

    def take(self, member: Member, table: str, index: int, raw: bytes) -> None:
        """A page arrives."""
        self._node.replica.take_untrusted(raw, 0, 0.0)
        self._router.take(PageChanged(member.identity.name, table, index))

    def settle(self) -> None:
        """As the daemon does every few seconds."""
        self._heap.settle(len(self._router.table))

    def refresh(self) -> Desired:
        """As the daemon does after news, what the sleeve worker is told included."""
        desired = self._router.refresh(self._local, (), 1450, 1.0, 1.0, True, NOTHING_SEEN, lambda *_: None)
        self._roster.want(self._router.sleeve_peers, self._router.graph, True)
        self._roster.pending()
        return desired


class StateHost:
    """The commands."""

    def __init__(self, count: int) -> None:
        self._mesh = Mesh(count)
        self._programmer = Programmer()
        self._desired = self._mesh.refresh()
        self._changes = 0
        self._applied = 0

    def limit(self) -> dict[str, Any]:
        """The kernel's own time: the same messages, ready made, through the same socket; then all of it removed."""
        mesh = Mesh(self._mesh.count)
        bare = mesh.refresh()
        for page in range(mesh.pages):
            mesh.take(*mesh.signed(page))
        with Programmer() as programmer:
            programmer.publish(bare)
        there, wanted = expand(bare).objects, expand(mesh.refresh()).objects
        ports = {name: socket.if_nametoindex(name) for name in (BRIDGE, vxlan_name(BRIDGE))}
        rows = sorted((row for row in wanted.items() if row[0] not in there), key=lambda row: KINDS.index(row[0].kind))
        messages = [tables.put(key, value, ports[_port(key, value)]) for key, value in rows]
        netlink = NetlinkSocket()
        start = time.perf_counter()
        for first in range(0, len(messages), BATCH_MESSAGES):
            if refused := netlink.batch(messages[first : first + BATCH_MESSAGES]):
                raise LabError(f"the kernel refused: {next(iter(refused.values()))}")
        programmed_s = time.perf_counter() - start
        change_s = [_change_by_hand(netlink, rows, ports, number) for number in range(LIMIT_CHANGES)]
        netlink.close()
        kernel = open_kernel()
        teardown(kernel)
        kernel.close()
        return {"programmed_s": programmed_s, "change_s": change_s}

    def fill(self) -> dict[str, Any]:
        """From nothing: every page arrives, then the kernel is made to hold it."""
        mesh, programmer = self._mesh, self._programmer
        programmer.__enter__()
        programmer.publish(self._desired)
        before, empty_kb = entries(), _status_kb("VmRSS")
        taken_s = 0.0
        for page in range(mesh.pages):
            signed = mesh.signed(page)
            start = time.perf_counter()
            mesh.take(*signed)
            taken_s += time.perf_counter() - start
        start = time.perf_counter()
        self._desired = mesh.refresh()
        decided_s, control_kb = time.perf_counter() - start, _status_kb("VmRSS")
        cpu_s = time.process_time()
        programmed_s, report = programmer.publish(self._desired)
        cpu_s = time.process_time() - cpu_s
        mesh.settle()
        held, full_kb = entries() - before, _status_kb("VmRSS")
        if held != ENTRIES * mesh.count:
            raise LabError(f"the kernel holds {held} entries for {mesh.count} endpoints")
        self._applied = report.counters.applied
        return {
            "entries": held,
            "taken_s": taken_s,
            "decided_s": decided_s,
            "programmed_s": programmed_s,
            "programmed_cpu_s": cpu_s,
            "control_bytes": (control_kb - empty_kb) * 1024 / mesh.count,
            "dataplane_bytes": (full_kb - control_kb) * 1024 / mesh.count,
            "rss_mb": full_kb / 1024,
        }

    def change(self, times: int) -> dict[str, Any]:
        """An endpoint gets another MAC, over and over: seconds from its page to the report that the kernel has it."""
        taken = [self._change_one() for _ in range(times)]
        return {"change_s": [wall_s for wall_s, _ in taken], "change_cpu_s": [cpu_s for _, cpu_s in taken]}

    def reconcile(self) -> dict[str, Any]:
        """What comes every minute, then what comes at a start: everything is listed and compared."""
        programmer = self._programmer
        programmer.end_thread()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before_kb = _status_kb("VmRSS")
        cpu_s = time.process_time()
        reconciled_s = programmer.reconcile()
        cpu_s = time.process_time() - cpu_s
        peak_kb = _status_kb("VmHWM")
        programmer.__exit__(None, None, None)
        with Programmer() as other:
            adopted_s, report = other.publish(self._desired)
        return {
            "reconciled_s": reconciled_s,
            "reconciled_cpu_s": cpu_s,
            "reconcile_bytes": (peak_kb - before_kb) * 1024 / self._mesh.count,
            "adopted_s": adopted_s,
            "changed_by_adoption": report.counters.applied,
        }

    def _change_one(self) -> tuple[float, float]:
        """Seconds on the clock and of the processor."""
        self._changes += 1
        signed = self._mesh.changed(self._changes)
        cpu_s, start = time.process_time(), time.perf_counter()
        self._mesh.take(*signed)
        desired = self._mesh.refresh()
        if desired == self._desired:
            raise LabError("a changed page changed nothing")
        _, report = self._programmer.publish(desired)
        took_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
        operations = report.counters.applied - self._applied
        if operations != CHANGE_OPERATIONS:
            raise LabError(f"one change was {operations} operations")
        self._desired, self._applied = desired, report.counters.applied
        return took_s, cpu_s


def _endpoint(owner: PeerName, number: int, salt: int) -> Endpoint:
    ipv4, ipv6 = IPv4Address("10.32.0.0") + number + 1, IPv6Address("fd00:32::") + number + 1
    mac = derive_mac("weft", ipv4, salt)
    return Endpoint(owner, f"c{number}", mac, (Binding(ipv4, 12, 1), Binding(ipv6, 64, 1)))


def _port(key: Key, value: Value) -> str:
    return str(value) if key.kind == BRIDGE_FDB else key.device


def _change_by_hand(
    netlink: NetlinkSocket, rows: Sequence[tuple[Key, Value]], ports: Mapping[str, int], number: int
) -> float:
    """Another MAC for the first endpoint, in one batch, and back again the next time."""
    mac = next(key.item for key, _ in rows if key.kind == VXLAN_FDB)
    mine = [(key, value) for key, value in rows if mac in (key.item, value)]
    other = mac[:5] + bytes([mac[5] ^ 1])
    old, new = (mac, other) if number % 2 == 0 else (other, mac)
    changes = []
    for key, value in mine:
        port = ports[_port(key, value)]
        if key.kind == NEIGHBOUR:
            changes.append(tables.put(key, new, port))
        else:
            changes.append(tables.put(key._replace(item=new), value, port))
            changes.append(tables.remove(key._replace(item=old), port))
    assert len(changes) == CHANGE_OPERATIONS
    start = time.perf_counter()
    if refused := netlink.batch(changes):
        raise LabError(f"the kernel refused: {next(iter(refused.values()))}")
    return time.perf_counter() - start


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Commands on stdin until it ends."""
    host = StateHost(int(sys.argv[1]))
    for line in sys.stdin:
        command, *numbers = line.split()
        print(json.dumps(getattr(host, command)(*map(int, numbers))), flush=True)


if __name__ == "__main__":
    main()
