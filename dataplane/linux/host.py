"""The kernel of this host behind the port `dataplane.kernel.Kernel`: lists, changes and hears it by netlink.

Composes devices, tables, guests and firewall with the sockets they are heard by; decides nothing. The one idea: events
are read in the order the kernel made them, and our own changes come back as events too (but for neighbours, which are
filtered out), so after every batch the socket is emptied, and the last word about a key is the truth at that moment.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from dataplane.desired import Port
from dataplane.kernel import (
    ANNOUNCE,
    DELETE,
    FIREWALL,
    GUESTS,
    HOST,
    LINKS,
    PARTS,
    TABLES,
    KernelError,
    Observation,
    Operation,
    Warning,
)
from dataplane.linux import links, packet, routes, sysctls, tables
from dataplane.linux.devices import Devices
from dataplane.linux.firewall import NFT_GROUP, Firewall
from dataplane.linux.guests import (
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
    Changes,
    Guests,
    host_address_of,
    host_addresses_question,
    set_address,
)
from dataplane.linux.netlink import (
    BATCH_MESSAGES,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    EventSocket,
    NetlinkSocket,
    all_but,
    defaults_only,
    messages,
)
from dataplane.linux.sysctls import Sysctls
from dataplane.objects import (
    BRIDGE_FDB,
    FIREWALL_KINDS,
    FORWARDING,
    GUEST_KINDS,
    HOST_ADDRESS,
    LINK,
    TABLE_KINDS,
    Key,
    Odd,
    Scope,
    Value,
    Veth,
)

T = TypeVar("T")

FIREWALL_PAUSE_S: Final = 0.25
FIREWALL_PAUSE_TIMES: Final = 10
FIREWALL_PAUSE_LIMIT_S: Final = 30.0
"""Between two looks at the firewall, however often it changes: at least 0.25 s and ten times what a look took; but only
once that where something of ours is gone: without it packets leave as they must not."""
MAX_BUFFERS: Final = 20_000
"""Event buffers read in one go; the rest waits in the socket."""

_GROUPS: Final = (1, 3, 5, 9, *sysctls.NETCONF_GROUPS)
"""RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV6_IFADDR of linux/rtnetlink.h, and whether the host forwards."""
_GUEST_GROUPS: Final = (1, 5, 7, 9, 11)
"""The same without neighbours, and RTNLGRP_IPV4_ROUTE, _IPV6_ROUTE."""
_ADDRESS_INDEX: Final = struct.Struct("=4xI")


class LinuxKernel:
    """See the module. Acts in the network namespace of the thread that makes it."""

    def __init__(self, firewall: Firewall | None = None, memory: Path | None = None) -> None:
        """`memory`: the file that says what this host's sysctls were before us."""
        try:
            self._commands = NetlinkSocket()
            # Neighbours we set ourselves need not come back as events: they are half of the bulk, and the kernel says
            # whose they are. For forwarding entries it does not say.
            no_echoes = all_but(tables.RTM_NEWNEIGH, self._commands.port)
            self._events = EventSocket(NETLINK_ROUTE, _GROUPS, program=no_echoes)
            defaults = defaults_only(routes.RTM_NEWROUTE, routes.RTM_DELROUTE)
            self._guest_events = EventSocket(NETLINK_ROUTE, _GUEST_GROUPS, all_namespaces=True, program=defaults)
            self._nft_events = EventSocket(NETLINK_NETFILTER, (NFT_GROUP,))
            self._announcer = packet.open_announcer()
        except OSError as error:
            text = f"cannot talk to the kernel: {error.strerror}; run weft as root, with CAP_NET_ADMIN and CAP_NET_RAW"
            raise KernelError(error.errno or errno.EIO, None, text) from None
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        for source in (self._events, self._guest_events, self._nft_events, self._waker):
            self._poll.register(source, select.POLLIN)
        self._guests = Guests(self._commands)
        self._firewall = firewall or Firewall()
        self._scope = Scope(bridge="")
        self._devices = Devices(self._commands, self._guests)
        self._sysctls = Sysctls(memory)
        self._changes: Changes = []
        self._stale: set[str] = set()
        self._firewall_changed = False
        self._next_firewall = self._soonest_firewall = 0.0

    # The port.

    def watch(self, scope: Scope) -> None:
        self._scope = scope
        self._devices.watch(scope)

    def listing(self, part: str) -> dict[Key, Value]:
        try:
            if part == LINKS:
                return self._devices.listing()
            if part == TABLES:
                return self._list_tables()
            if part == GUESTS:
                return self._guests.listing(self._scope.ports)
            if part == HOST:
                return self._list_host()
            assert part == FIREWALL
            self._firewall_changed = False
            started = time.monotonic()
            found = {name: self._devices.find(name) for name in self._devices.overlay}
            overlay = {name: 0 if link is None else link.ifindex for name, link in found.items()}
            scope = self._scope
            objects = self._firewall.listing(scope.bridge, overlay, scope.vxlan_port, scope.routed, scope.over_ipv6)
            ended = time.monotonic()
            pause = max(FIREWALL_PAUSE_S, (ended - started) * FIREWALL_PAUSE_TIMES)
            self._next_firewall = ended + min(pause, FIREWALL_PAUSE_LIMIT_S)
            self._soonest_firewall = ended + max(FIREWALL_PAUSE_S, ended - started)
            return objects
        except OSError as error:
            text = f"cannot list {part} of the kernel: {error.strerror}"
            raise KernelError(error.errno or errno.EIO, None, text) from None

    def apply(self, operations: Sequence[Operation]) -> Sequence[KernelError]:
        errors: list[KernelError] = []
        position = 0
        while position < len(operations):
            end = _end_of_run(operations, position)
            run = operations[position:end]
            position = end
            kind = run[0].key.kind
            if run[0].verb == ANNOUNCE:
                errors += self._announce(run)
            elif kind in TABLE_KINDS:
                errors += self._apply_entries(run)
            elif kind in GUEST_KINDS:
                errors += self._apply_guest(run)
            elif len(run) > 1:
                errors += self._delete_together(run)
            else:
                errors += self._apply_one(run[0])
            self._collect()
        return errors

    def wait(self, timeout_s: float | None) -> Observation:
        timeout_s = 0.0 if self._changes or self._stale else timeout_s
        if self._firewall_changed:
            pause = max(0.0, self._next_firewall - time.monotonic())
            timeout_s = pause if timeout_s is None else min(timeout_s, pause)
        ready = {descriptor for descriptor, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1000)}
        if self._waker in ready:
            os.eventfd_read(self._waker)
        self._collect()
        if self._firewall_changed and time.monotonic() >= self._next_firewall:
            self._firewall_changed = False
            self._stale.add(FIREWALL)
        observation = Observation(self._changes, frozenset(self._stale))
        self._changes, self._stale = [], set()
        return observation

    def wake(self) -> None:
        os.eventfd_write(self._waker, 1)

    def warnings(self) -> tuple[Warning, ...]:
        return self._firewall.warnings

    def close(self) -> None:
        for source in (self._commands, self._events, self._guest_events, self._nft_events, self._announcer):
            source.close()
        os.close(self._waker)

    # Listing.

    def _list_tables(self) -> dict[Key, Value]:
        devices, names = self._devices, self._devices.names
        bridge = devices.find(devices.bridge)
        questions = []
        if bridge is not None and bridge.type == "bridge":
            questions.append(tables.ports_question(bridge.ifindex))
            questions += [tables.neighbours_question(bridge.ifindex, ipv6=ipv6) for ipv6 in (False, True)]
        for name in devices.vxlans:
            link = devices.find(name)
            if link is not None and link.type == "vxlan" and (bridge is None or link.master != bridge.ifindex):
                questions.append(tables.device_question(link.ifindex))
        objects: dict[Key, Value] = {}
        for question in questions:
            for data, kind, start, end in self._commands.dump(tables.RTM_GETNEIGH, question):
                if kind == tables.RTM_NEWNEIGH:
                    entry = tables.decode(data, start, end, names, devices.bridge, devices.vxlans)
                    if entry is not None and entry[1] is not None:
                        objects[entry[0]] = entry[1]
        return objects

    def _list_host(self) -> dict[Key, Value]:
        """Addresses of the bridge, and whether the host forwards."""
        objects = self._sysctls.listing(self._scope.bridge)
        bridge = self._devices.find(self._devices.bridge)
        if bridge is not None:
            question = host_addresses_question(bridge.ifindex)
            for data, _, start, end in self._commands.dump(RTM_GETADDR, question):
                if _ADDRESS_INDEX.unpack_from(data, start)[0] == bridge.ifindex:
                    key, value = host_address_of(bridge.name, data, start, end)
                    objects[key] = value
        return objects

    # Hearing.

    def _collect(self) -> None:
        """Read what waits in the event sockets into `_changes` and `_stale`."""
        for data in self._drain(self._events.receive, frozenset(PARTS)):
            self._hear(data)
        # What containers do to their own interfaces may be much, and must not cost more than a look at them.
        for data, nsid in self._drain(self._guest_events.receive_with_namespace, frozenset({GUESTS})):
            self._changes += self._guests.events(data, nsid)
        self._changes += self._guests.look_again(self._ports_with_routes())
        for data in self._drain(self._nft_events.receive, frozenset({FIREWALL})):
            self._firewall_changed |= self._firewall.is_concerned(data)
            if self._firewall.is_lost(data):
                self._next_firewall = min(self._next_firewall, self._soonest_firewall)

    def _ports_with_routes(self) -> Sequence[Port]:
        ports = self._scope.ports
        return ports if self._scope.routed else [port for port in ports if port.routes or port.gateways]

    def _drain(self, receive: Callable[[], T | None], lost: frozenset[str]) -> Iterator[T]:
        """All that waits in one socket. Where some was lost, what is left of it is read too, and then listed anew."""
        for _ in range(MAX_BUFFERS):
            try:
                received = receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._stale |= lost
                continue
            if received is None:
                return
            yield received

    def _hear(self, data: bytes) -> None:
        devices = self._devices
        for kind, _, _, start, end in messages(data):
            if kind in (tables.RTM_NEWNEIGH, tables.RTM_DELNEIGH):
                entry = tables.decode(data, start, end, devices.names, devices.bridge, devices.vxlans)
                if entry is not None:
                    self._changes.append((entry[0], entry[1] if kind == tables.RTM_NEWNEIGH else None))
            elif kind == links.RTM_NEWLINK:
                self._changes += devices.see(links.decode(data, start, end))
            elif kind == links.RTM_DELLINK:
                self._changes += devices.lose(links.decode(data, start, end))
            elif kind in (RTM_NEWADDR, RTM_DELADDR) and devices.is_bridge(_ADDRESS_INDEX.unpack_from(data, start)[0]):
                key, value = host_address_of(devices.bridge, data, start, end)
                self._changes.append((key, value if kind == RTM_NEWADDR else None))
                self._stale.add(TABLES)  # with its last address the bridge loses all its neighbours
            elif kind == sysctls.RTM_NEWNETCONF and sysctls.is_of_all(data, start, end):
                self._stale.add(HOST)

    # Changing.

    def _apply_entries(self, run: Sequence[Operation]) -> list[KernelError]:
        """Forwarding and neighbour entries, a batch at a time."""
        errors = []
        for first in range(0, len(run), BATCH_MESSAGES):
            sent: list[Operation] = []
            changes = []
            for operation in run[first : first + BATCH_MESSAGES]:
                link = self._devices.find(_device_of(operation))
                if link is None:
                    errors.append(KernelError(errno.ENODEV, operation, f"no device {_device_of(operation)}"))
                    continue
                sent.append(operation)
                if operation.verb == DELETE:
                    changes.append(tables.remove(operation.key, link.ifindex))
                else:
                    assert operation.value is not None
                    changes.append(tables.put(operation.key, operation.value, link.ifindex))
            refused = self._commands.batch(changes)
            errors += [_refusal(sent[index], error) for index, error in refused.items()]
            self._collect()
        return errors

    def _apply_guest(self, run: Sequence[Operation]) -> list[KernelError]:
        port = self._devices.ports.get(run[0].key.device)
        if port is None:
            return []  # deletions of a port that is gone from the scope go with its pair
        return self._guests.apply(run, port)

    def _apply_one(self, operation: Operation) -> list[KernelError]:
        key = operation.key
        try:
            if key.kind in FIREWALL_KINDS:
                link = self._devices.find(key.device)
                self._firewall.apply(operation, 0 if link is None else link.ifindex)
            elif key.kind == HOST_ADDRESS:
                set_address(self._commands, self._devices.ifindex(key.device), operation)
            elif key.kind == FORWARDING:
                self._sysctls.apply(operation)
            else:
                self._devices.apply(operation)
        except KernelError as error:
            return [error]
        except OSError as error:
            return [_refusal(operation, error)]
        return []

    def _delete_together(self, run: Sequence[Operation]) -> list[KernelError]:
        try:
            return self._devices.delete_together(run)
        except OSError as error:
            return [_refusal(operation, error) for operation in run]

    def _announce(self, run: Sequence[Operation]) -> list[KernelError]:
        rows = [(operation.key.item, operation.value) for operation in run if isinstance(operation.value, bytes)]
        try:
            packet.announce(self._announcer, run[0].key.device, rows)
        except OSError as error:
            return [_refusal(run[0], error)]
        return []


def _end_of_run(operations: Sequence[Operation], start: int) -> int:
    """Where the operations end that can be done together with the one at `start`."""
    first = operations[start]
    kind = first.key.kind
    end = start + 1
    if first.verb == ANNOUNCE:
        while end < len(operations) and operations[end].verb == ANNOUNCE:
            end += 1
    elif kind in TABLE_KINDS:
        while end < len(operations) and operations[end].key.kind == kind:
            end += 1
    elif kind in GUEST_KINDS:
        while end < len(operations) and operations[end].key.device == first.key.device:
            end += 1
    elif _is_pair_to_delete(first):
        while end < len(operations) and _is_pair_to_delete(operations[end]):
            end += 1
    return end


def _is_pair_to_delete(operation: Operation) -> bool:
    return operation.key.kind == LINK and operation.verb == DELETE and isinstance(operation.old, Veth)


def _device_of(operation: Operation) -> str:
    """The device an entry's message names: for the bridge's FDB that is the port."""
    if operation.key.kind != BRIDGE_FDB:
        return operation.key.device
    port = operation.old if operation.verb == DELETE else operation.value
    if isinstance(port, Odd):
        return port.port
    assert isinstance(port, str)
    return port


def _refusal(operation: Operation, error: OSError) -> KernelError:
    return KernelError(error.errno or errno.EIO, operation, error.strerror or str(error))
