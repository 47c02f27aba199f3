"""The inner ends of container interfaces: seen from outside, changed from inside.

Knows link and address messages of other namespaces; knows nothing of the bridge. The one idea: nothing of ours stays
open in a container's namespace, because that would keep it alive after the container. The kernel gives each namespace
a number (nsid); with it the state inside is listed, and its events are heard, from a socket of our own. Only to
change something a short-lived thread goes in, and it makes sure that the path still leads to the namespace meant. And
to look at routes, which the kernel lists to nobody outside; it deletes some without a word, so after anything that
happens inside to links, addresses or default routes they are looked at, once for all that happened together.

    0        1        2       3       4         8
    +--------+--------+-------+-------+---------+----------- - -
    | family | length | flags | scope | ifindex | attributes       an address message, linux/if_addr.h
    +--------+--------+-------+-------+---------+----------- - -
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dataplane.desired import Port
from dataplane.kernel import DELETE, KernelError, Operation
from dataplane.linux import links, routes
from dataplane.linux.links import Link
from dataplane.linux.netlink import (
    CREATE,
    EXCLUSIVE,
    REPLACE,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    messages,
    u8,
    u32,
)
from dataplane.linux.netns import is_there, open_namespace, run_inside
from dataplane.objects import (
    FAMILIES,
    GUEST,
    GUEST_ADDRESS,
    GUEST_NETWORK,
    GUEST_ROUTE,
    HOST_ADDRESS,
    DefaultRoute,
    Guest,
    GuestAddress,
    HostAddress,
    Key,
    Value,
    Veth,
    network_item,
)

RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
_RTM_NEWNSID: Final = 88
_RTM_GETNSID: Final = 90
_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3

_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_TARGET_NETNSID: Final = 10
_IFA_PROTO: Final = 11
_IFA_F_NODAD: Final = 0x02
_OUR_PROTO: Final = 0x57
"""Protocol number our addresses carry (`ip address` shows it): what has another one was set by somebody else."""
_AF_INET: Final = 2
_AF_INET6: Final = 10
_IPV6_SYSCTLS: Final = Path("/proc/sys/net/ipv6/conf")
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ESTALE, errno.EINVAL, errno.ENOTDIR, errno.ENOTTY})
"""The last: `ip netns delete` leaves an empty file at the path for a moment."""

Changes = list[tuple[Key, Value | None]]


class Guests:
    """Which inner end belongs to which port, and what it looks like."""

    def __init__(self, commands: NetlinkSocket) -> None:
        self._commands = commands
        self._peers: dict[str, tuple[int, int]] = {}
        """Host ifname to (nsid, ifindex) of the other end."""
        self._hosts: dict[tuple[int, int], str] = {}
        self._verified: dict[str, tuple[int, int, tuple[int, int]]] = {}
        self._touched: set[int] = set()
        """Numbers of the namespaces in which something happened since `look_again`."""

    # Where the other end is.

    def track(self, link: Link) -> None:
        """A host end was seen. Its message says where the other end is."""
        self.forget(link.name)
        if link.peer_nsid >= 0:
            self._peers[link.name] = (link.peer_nsid, link.peer)
            self._hosts[link.peer_nsid, link.peer] = link.name

    def forget(self, name: str) -> None:
        peer = self._peers.pop(name, None)
        if peer is not None and self._hosts.get(peer) == name:
            del self._hosts[peer]

    def host_end(self, link: Link, port: Port | None) -> Veth:
        """LINK of a host end, with the namespace id its other end proves to be in."""
        if port is None or port.handed_over:
            return Veth(link.mtu, (0, 0))
        if link.peer == 0:
            return Veth(link.mtu, port.namespace_id)  # on its way out: the next message says that it is gone
        seen = (link.ifindex, link.peer_nsid, port.namespace_id)
        if self._verified.get(link.name) != seen:
            try:
                descriptor, _ = open_namespace(port.namespace, port.namespace_id)
            except OSError:
                # Not to be proven any more. The pair is left as it is: it would go with its namespace.
                return Veth(link.mtu, port.namespace_id)
            try:
                if self._nsid(descriptor) != link.peer_nsid:
                    return Veth(link.mtu, (0, 0))
            finally:
                os.close(descriptor)
            self._verified[link.name] = seen
        return Veth(link.mtu, port.namespace_id)

    def _nsid(self, descriptor: int) -> int:
        """Number of a namespace as our own namespace counts; -2 if it has none yet."""
        answer = self._commands.ask(_RTM_GETNSID, bytes(4) + u32(_NETNSA_FD, descriptor), _RTM_NEWNSID)
        found = {} if answer is None else attributes(answer[0], answer[1] + 4, answer[2])
        number = struct.unpack("=i", found.get(_NETNSA_NSID, b"\xff\xff\xff\xff"))[0]
        return number if number >= 0 else -2

    # What it looks like.

    def listing(self, ports: Sequence[Port]) -> dict[Key, Value]:
        objects: dict[Key, Value] = {}
        for port in ports:
            peer = self._peers.get(port.ifname) if not port.handed_over else None
            if peer is None or not is_there(port.namespace, port.namespace_id):
                continue  # an inner end that cannot be reached counts as missing, and will be refused with the reason
            try:
                answer = self._commands.ask(links.RTM_GETLINK, links.one(peer[1], nsid=peer[0]), links.RTM_NEWLINK)
                if answer is None:
                    continue
                objects[Key(GUEST, port.ifname)] = links.guest_of(links.decode(*answer))
                objects.update(self._addresses(port.ifname, *peer))
                objects.update((key, value) for key, value in self._routes(port) if value is not None)
            except NetlinkError as error:
                if error.errno not in (errno.EINVAL, errno.ENODEV):  # the namespace went this very moment
                    raise
        return objects

    def _addresses(self, name: str, nsid: int, ifindex: int) -> dict[Key, Value]:
        question = _ADDRESS.pack(0, 0, 0, 0, ifindex) + attribute(_IFA_TARGET_NETNSID, struct.pack("=i", nsid))
        found: dict[Key, Value] = {}
        for data, kind, start, end in self._commands.dump(RTM_GETADDR, question):
            if kind == RTM_NEWADDR and _ADDRESS.unpack_from(data, start)[4] == ifindex:
                key, value = _decode_address(name, data, start, end)
                found[key] = value
        return found

    def _routes(self, port: Port) -> Changes:
        """Default routes inside, of both families, and those to networks through the interface."""
        _, ifindex = self._peers[port.ifname]
        wanted = {network_item(route.network) for route in port.routes}

        def look() -> Changes:
            commands = NetlinkSocket()
            try:
                changes: Changes = [
                    (Key(GUEST_ROUTE, port.ifname, family), routes.default_route(commands, family, ifindex))
                    for family in FAMILIES.values()
                ]
                found = routes.network_routes(commands, ifindex)
                items = wanted | found.keys()
                changes += [(Key(GUEST_NETWORK, port.ifname, item), found.get(item)) for item in items]
                return changes
            finally:
                commands.close()

        try:
            descriptor, _ = open_namespace(port.namespace, port.namespace_id)
        except OSError:
            return []  # the container ended this very moment
        try:
            return run_inside(descriptor, look)
        finally:
            os.close(descriptor)

    def look_again(self, ports: Iterable[Port]) -> Changes:
        """The routes of those in whose namespace something happened."""
        touched, self._touched = self._touched, set()
        if not touched:
            return []
        changes: Changes = []
        for port in ports:
            if port.ifname in self._peers and self._peers[port.ifname][0] in touched and not port.handed_over:
                with suppress(OSError):  # the next listing says what is wrong
                    changes += self._routes(port)
        return changes

    def events(self, data: bytes, nsid: int) -> Changes:
        """What a buffer of events from another namespace says of our inner ends."""
        changes: Changes = []
        if nsid < 0:
            return changes
        self._touched.add(nsid)
        for kind, _, _, start, end in messages(data):
            if kind in (links.RTM_NEWLINK, links.RTM_DELLINK):
                if data[start] == links.AF_UNSPEC:
                    changes += self._link_event(nsid, kind, links.decode(data, start, end))
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                name = self._hosts.get((nsid, _ADDRESS.unpack_from(data, start)[4]))
                if name is not None:
                    key, value = _decode_address(name, data, start, end)
                    changes.append((key, value if kind == RTM_NEWADDR else None))
        return changes

    def _link_event(self, nsid: int, kind: int, link: Link) -> Changes:
        name = self._hosts.get((nsid, link.ifindex))
        if name is None:
            return []
        if kind == links.RTM_DELLINK:
            self.forget(name)
            self._verified.pop(name, None)
            return [(Key(GUEST, name), None)]
        return [(Key(GUEST, name), links.guest_of(link))]

    # Changing it.

    def create(self, operation: Operation, port: Port, bridge: int) -> None:
        """Make the pair. Raises KernelError."""
        assert isinstance(operation.value, Veth)
        mtu = operation.value.mtu
        descriptor = self._enter(operation, port) if not port.handed_over else None
        try:
            guest = Guest(name=port.guest_ifname, mac=port.mac, mtu=mtu)
            message = links.new_veth(port.ifname, mtu, bridge, guest, descriptor)
            self._commands.change(links.RTM_NEWLINK, CREATE | EXCLUSIVE, message)
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                where = port.namespace or "this host"
                text = f"{where} has an interface {port.guest_ifname} already; detach what made it, or remove it"
                raise KernelError(error.errno, operation, text, "name-taken") from None
            raise KernelError(error.errno or errno.EIO, operation, str(error.strerror)) from None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def apply(self, operations: Sequence[Operation], port: Port) -> list[KernelError]:
        """Operations on the inner end of one port."""
        peer = self._peers.get(port.ifname)
        if peer is None:
            return [KernelError(errno.ENODEV, operation, "its inner end is gone") for operation in operations]
        try:
            descriptor = self._enter(operations[0], port)
        except KernelError as error:
            return [KernelError(error.errno, operation, error.text, error.code) for operation in operations]
        try:
            return run_inside(descriptor, lambda: _apply_inside(operations, peer[1]))
        except OSError as error:
            text = f"cannot enter {port.namespace}: {error.strerror}"
            return [KernelError(error.errno or errno.EIO, operation, text) for operation in operations]
        finally:
            os.close(descriptor)

    def _enter(self, operation: Operation, port: Port) -> int:
        try:
            return open_namespace(port.namespace, port.namespace_id)[0]
        except OSError as error:
            if error.errno in _GONE:
                how = "leads to another namespace now" if error.errno == errno.ESTALE else "is gone"
                text = f"{port.namespace} {how}; detach it, or attach the new one"
                raise KernelError(errno.ESTALE, operation, text, "namespace-gone") from None
            text = f"cannot open {port.namespace}: {error.strerror}"
            raise KernelError(error.errno or errno.EIO, operation, text) from None


def _apply_inside(operations: Sequence[Operation], ifindex: int) -> list[KernelError]:
    """On a thread that is in the namespace."""
    errors = []
    commands = NetlinkSocket()
    try:
        for operation in operations:
            try:
                if operation.key.kind == GUEST:
                    assert isinstance(operation.value, Guest)
                    _set_guest(commands, ifindex, operation.value)
                elif operation.key.kind == GUEST_NETWORK:
                    wanted = operation.value if operation.verb != DELETE else None
                    assert wanted is None or isinstance(wanted, bytes)
                    routes.set_network_route(commands, ifindex, operation.key.item, wanted)
                elif operation.key.kind == GUEST_ROUTE:
                    route = operation.value if operation.verb != DELETE else None
                    gateway = route.gateway if isinstance(route, DefaultRoute) else None
                    routes.set_default_route(commands, operation.key.item, ifindex, gateway)
                else:
                    set_address(commands, ifindex, operation)
            except OSError as error:
                errors.append(KernelError(error.errno or errno.EIO, operation, error.strerror or str(error)))
    finally:
        commands.close()
    return errors


def _set_guest(commands: NetlinkSocket, ifindex: int, wanted: Guest) -> None:
    answer = commands.ask(links.RTM_GETLINK, links.one(ifindex), links.RTM_NEWLINK)
    if answer is None:
        raise NetlinkError(errno.ENODEV)
    found = links.decode(*answer)
    if found.name != wanted.name:
        _rename(commands, found, wanted.name)
    if found.mac != wanted.mac:
        commands.change(links.RTM_NEWLINK, 0, links.set_mac(ifindex, wanted.mac))
    if found.mtu != wanted.mtu:
        commands.change(links.RTM_NEWLINK, 0, links.set_mtu(ifindex, wanted.mtu))
    # Before it is up, or the first router advertisement could win. Absent where the kernel has no IPv6.
    with suppress(FileNotFoundError):
        if found.accept_ra != wanted.accept_ra:
            (_IPV6_SYSCTLS / wanted.name / "accept_ra").write_text(str(wanted.accept_ra))
        if wanted.ipv6 and found.ipv6 is not True:
            (_IPV6_SYSCTLS / wanted.name / "disable_ipv6").write_text("0")
    commands.change(links.RTM_NEWLINK, 0, links.set_up(ifindex, wanted.up))


def _rename(commands: NetlinkSocket, found: Link, name: str) -> None:
    try:
        commands.change(links.RTM_NEWLINK, 0, links.set_name(found.ifindex, name))
    except NetlinkError as error:
        if error.errno != errno.EBUSY:  # kernels before 6.2 rename only what is down
            raise
        commands.change(links.RTM_NEWLINK, 0, links.set_up(found.ifindex, False))
        commands.change(links.RTM_NEWLINK, 0, links.set_name(found.ifindex, name))


def set_address(commands: NetlinkSocket, ifindex: int, operation: Operation) -> None:
    """One operation on an address of a device in this namespace: a container's, or the host's own."""
    packed, length = operation.key.item[:-1], operation.key.item[-1]
    family = _AF_INET if len(packed) == 4 else _AF_INET6
    payload = _ADDRESS.pack(family, length, 0, 0, ifindex)
    payload += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if operation.verb == DELETE:
        commands.change(RTM_DELADDR, 0, payload)
        return
    # No duplicate address detection: it cannot see other hosts, and it would make the address wait for a second.
    payload += u32(_IFA_FLAGS, _IFA_F_NODAD) + u8(_IFA_PROTO, _OUR_PROTO)
    commands.change(RTM_NEWADDR, CREATE | REPLACE, payload)


def host_addresses_question(ifindex: int) -> bytes:
    """Dump of the addresses of one device in this namespace."""
    return _ADDRESS.pack(0, 0, 0, 0, ifindex)


def host_address_of(name: str, data: bytes, start: int, end: int) -> tuple[Key, Value]:
    """An address message of the bridge itself."""
    key, value = _decode_address(name, data, start, end)
    return Key(HOST_ADDRESS, name, key.item), HostAddress(value.ours)


def _decode_address(name: str, data: bytes, start: int, end: int) -> tuple[Key, GuestAddress]:
    _, length, _, _, _ = _ADDRESS.unpack_from(data, start)
    found: Mapping[int, bytes] = attributes(data, start + _ADDRESS.size, end)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    ours = found.get(_IFA_PROTO) == bytes((_OUR_PROTO,))
    return Key(GUEST_ADDRESS, name, packed + bytes((length,))), GuestAddress(ours)
