"""Our devices: which ones they are, what they look like, and how they are made and changed.

Keeps the last message of every link that is ours and reads objects off it; knows nothing of tables, firewalls or
sockets other than the one it sends on. The one idea: a device is ours by its name, or by what we wrote on it (its
alias): a renamed VXLAN device still holds its UDP port, and a container's interface that lost its bridge is still ours
to remove.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dataplane.desired import Port
from dataplane.kernel import ADD, DELETE, KernelError, Operation
from dataplane.linux import features, links, removal, tap
from dataplane.linux.guests import Changes, Guests
from dataplane.linux.links import Link
from dataplane.linux.netlink import CREATE, EXCLUSIVE, NetlinkError, NetlinkSocket
from dataplane.objects import (
    IPV6_MTU_MIN,
    LINK,
    OFFLOADS,
    PORT,
    UP,
    Bridge,
    Key,
    Offloads,
    OtherLink,
    PortFlags,
    Scope,
    Tap,
    Unavailable,
    Value,
    Veth,
    Vxlan,
    tap_name,
    vxlan6_name,
    vxlan_name,
)

PORT_PREFIX: Final = "vw"
"""Names of container interfaces on the host begin with it."""
_GROUPS: Final = 0x57000000
"""Numbers of link groups that nobody else uses: one is a random one of these, for as long as it takes to delete it."""
_IPV6_SYSCTLS: Final = Path("/proc/sys/net/ipv6/conf")


class Devices:
    """The links of ours, by name and by ifindex."""

    def __init__(self, commands: NetlinkSocket, guests: Guests) -> None:
        self._commands = commands
        self._guests = guests
        self.bridge = ""
        self.vxlans: tuple[str, ...] = ()
        self.overlay: tuple[str, ...] = ()
        """All ports that lead to other hosts: the VXLAN devices and the sleeve's TAP."""
        self._tap = ""
        self.ports: dict[str, Port] = {}
        self.names: dict[int, str] = {}
        """By ifindex."""
        self._links: dict[str, Link] = {}

    def watch(self, scope: Scope) -> None:
        self.bridge = scope.bridge
        self.vxlans = (vxlan_name(scope.bridge), vxlan6_name(scope.bridge))
        self._tap = tap_name(scope.bridge)
        self.overlay = (*self.vxlans, self._tap)
        self.ports = {port.ifname: port for port in scope.ports}

    def find(self, name: str) -> Link | None:
        return self._links.get(name)

    def ifindex(self, name: str) -> int:
        """Raises NetlinkError where there is no such device of ours."""
        link = self._links.get(name)
        if link is None:
            raise NetlinkError(errno.ENODEV, f"no device {name}")
        return link.ifindex

    def is_bridge(self, ifindex: int) -> bool:
        return self.names.get(ifindex) == self.bridge

    # Seeing.

    def listing(self) -> dict[Key, Value]:
        """Start anew from all links there are."""
        found = [
            links.decode(data, start, end)
            for data, kind, start, end in self._commands.dump(links.RTM_GETLINK, links.every())
            if kind == links.RTM_NEWLINK
        ]
        for name in self._links:
            self._guests.forget(name)
        self.names, self._links = {}, {}
        objects: dict[Key, Value] = {}
        # The bridge first: what else is ours may depend on being one of its ports.
        for link in sorted(found, key=lambda link: link.name != self.bridge):
            objects.update((key, value) for key, value in self.see(link) if value is not None)
        return objects

    def see(self, link: Link) -> Changes:
        """A link is there: the objects it carries. Nothing if it is none of ours."""
        changes: Changes = []
        if link.family == links.AF_BRIDGE:
            known = self.names.get(link.ifindex)
            if known is not None and link.port:
                changes.append((Key(PORT, known), links.port_flags_of(link, self._name(link.master))))
            return changes
        before = self.names.get(link.ifindex)
        if before is not None and (before != link.name or not self._is_ours(link)):
            changes += self._drop(before)
        if not self._is_ours(link):
            return changes
        name = link.name
        self.names[link.ifindex] = name
        self._links[name] = link
        if link.type == "veth":
            self._guests.track(link)
        changes.append((Key(LINK, name), self._link_value(link)))
        changes.append((Key(UP, name), True if link.up else None))
        if name != self.bridge:
            is_port = link.master and link.port
            changes.append((Key(PORT, name), links.port_flags_of(link, self._name(link.master)) if is_port else None))
        if link.type == "vxlan":
            changes.append((Key(OFFLOADS, name), _offloads_of(name)))
        return changes

    def lose(self, link: Link) -> Changes:
        known = self.names.get(link.ifindex)
        if known is None:
            return []
        if link.family == links.AF_BRIDGE:
            return [(Key(PORT, known), None)]
        return self._drop(known)

    def _drop(self, name: str) -> Changes:
        link = self._links.pop(name, None)
        if link is not None:
            self.names.pop(link.ifindex, None)
        self._guests.forget(name)
        changes: Changes = [(Key(kind, name), None) for kind in (PORT, OFFLOADS, UP, LINK)]
        if link is not None and name == self.bridge:
            # A bridge that is called otherwise now keeps its ports, and no event says so of each of them.
            strays = [port for port in self._links.values() if port.master == link.ifindex]
            changes += [(Key(PORT, port.name), links.port_flags_of(port, self._name(port.master))) for port in strays]
        return changes

    def _is_ours(self, link: Link) -> bool:
        """By name, or by what we wrote on it, whatever it is called now: a renamed VXLAN device holds its port."""
        if link.name == self.bridge or link.name in self.overlay or link.name in self.ports:
            return True
        if link.type in ("vxlan", "tun"):
            return link.alias == links.ALIAS
        # A pair of ours that was born and not yet marked when its daemon died: named like ours, in our bridge, down.
        unmarked = link.name.startswith(PORT_PREFIX) and self.is_bridge(link.master) and not link.up
        return link.type == "veth" and (link.alias == links.ALIAS or unmarked)

    def _link_value(self, link: Link) -> Value:
        if link.name == self.bridge:
            return links.bridge_of(link) if link.type == "bridge" else OtherLink(link.type or "physical")
        if link.type == "vxlan" and link.name not in self.ports and link.name != self._tap:
            return links.vxlan_of(link, ipv6=link.name in self.vxlans[1:])
        if link.type == "tun" and link.name not in self.ports and link.name not in self.vxlans:
            return links.tap_of(link)
        if link.type == "veth" and link.name not in self.overlay:
            return self._guests.host_end(link, self.ports.get(link.name))
        return OtherLink(link.type or "physical")

    def _name(self, ifindex: int) -> str:
        return self.names.get(ifindex, f"#{ifindex}")

    # Making and changing.

    def apply(self, operation: Operation) -> None:
        """One operation on a LINK, PORT, OFFLOADS or UP. Raises OSError or KernelError."""
        key = operation.key
        if key.kind == LINK and operation.verb == DELETE:
            ifindex = self.ifindex(key.device)
            removal.delete(links.one(ifindex), [ifindex])
        elif key.kind == LINK and operation.verb == ADD:
            self._create(operation)
        elif key.kind == LINK:
            self._change_link(operation)
        elif key.kind == PORT:
            self._set_port(operation)
        elif key.kind == OFFLOADS:
            assert isinstance(operation.value, Offloads)
            features.set_offloads_off(key.device, operation.value.off)
        else:
            assert key.kind == UP
            self._commands.change(links.RTM_NEWLINK, 0, links.set_up(self.ifindex(key.device), True))

    def delete_together(self, operations: Sequence[Operation]) -> list[KernelError]:
        """Many links. The kernel waits for whoever may still look at one; for many at once as long."""
        group = _GROUPS | secrets.randbits(24)
        there = [each for each in operations if self.find(each.key.device) is not None]
        marks = [(links.RTM_NEWLINK, 0, links.set_group(self.ifindex(each.key.device), group)) for each in there]
        refused = self._commands.batch(marks)
        errors = [
            KernelError(error.errno or errno.EIO, there[index], error.strerror or str(error))
            for index, error in refused.items()
        ]
        marked = [self.ifindex(each.key.device) for index, each in enumerate(there) if index not in refused]
        if marked:
            removal.delete(links.all_of_group(group), marked)
        return errors

    def _create(self, operation: Operation) -> None:
        name, value = operation.key.device, operation.value
        if isinstance(value, Bridge):
            self._commands.change(links.RTM_NEWLINK, CREATE | EXCLUSIVE, links.new_bridge(name, value))
            self._learn(name)
            self._commands.change(links.RTM_NEWLINK, 0, links.change_bridge(self.ifindex(name), value, None))
            self._set_bridge_ipv6(name, value, None)
        elif isinstance(value, Vxlan):
            self._commands.change(links.RTM_NEWLINK, CREATE | EXCLUSIVE, links.new_vxlan(name, value))
        elif isinstance(value, Tap):
            self._create_tap(operation, value)
        else:
            port = self.ports.get(name)
            if port is None:
                raise KernelError(errno.ENODEV, operation, "its port is not known")
            self._guests.create(operation, port, self.ifindex(self.bridge))
        self._learn(name)
        if not isinstance(value, Bridge):
            self._commands.change(links.RTM_NEWLINK, 0, links.mark(self.ifindex(name)))

    def _create_tap(self, operation: Operation, wanted: Tap) -> None:
        """Netlink does not make these: the kernel wants a process to open them."""
        name = operation.key.device
        try:
            tap.create(name)
        except KernelError as error:
            raise KernelError(error.errno, operation, error.text, error.code) from None
        self._learn(name)
        self._commands.change(links.RTM_NEWLINK, 0, links.set_tap(self.ifindex(name), wanted))

    def _learn(self, name: str) -> None:
        """See a new device at once, without waiting for its event: the next operation needs its ifindex."""
        answer = self._commands.ask(links.RTM_GETLINK, links.one(name=name), links.RTM_NEWLINK)
        if answer is not None:
            self.see(links.decode(*answer))

    def _change_link(self, operation: Operation) -> None:
        name, value, found = operation.key.device, operation.value, operation.old
        index = self.ifindex(name)
        if isinstance(value, Bridge):
            assert isinstance(found, Bridge)
            self._commands.change(links.RTM_NEWLINK, 0, links.change_bridge(index, value, found))
        else:
            assert isinstance(value, Vxlan | Tap | Veth) and isinstance(found, Vxlan | Tap | Veth)
            change = links.set_tap(index, value) if isinstance(value, Tap) else links.set_mtu(index, value.mtu)
            self._commands.change(links.RTM_NEWLINK, 0, change)
        is_reborn = found.mtu < IPV6_MTU_MIN <= value.mtu
        if is_reborn:
            self._quieten_reborn(name)
        if isinstance(value, Bridge):
            self._set_bridge_ipv6(name, value, None if is_reborn or not isinstance(found, Bridge) else found)

    def _quieten_reborn(self, name: str) -> None:
        """A device that became large enough for IPv6 got it anew, with a made-up address if it is up: shed that."""
        self._quieten(self.ifindex(name))
        switch = _IPV6_SYSCTLS / name / "disable_ipv6"
        if switch.exists():
            switch.write_text("1")
            switch.write_text("0")

    def _set_bridge_ipv6(self, name: str, wanted: Bridge, found: Bridge | None) -> None:
        if found is None or found.generates_addresses != wanted.generates_addresses:
            self._quieten(self.ifindex(name))
        if not (_IPV6_SYSCTLS / name).exists():
            return  # no IPv6 in this kernel, or not at this MTU
        if found is None or found.accept_ra != wanted.accept_ra:
            (_IPV6_SYSCTLS / name / "accept_ra").write_text(str(wanted.accept_ra))
        if found is None or found.ipv6 != wanted.ipv6:
            (_IPV6_SYSCTLS / name / "disable_ipv6").write_text("0" if wanted.ipv6 else "1")

    def _quieten(self, index: int) -> None:
        """No addresses that the kernel makes up by itself. Where there is no IPv6 there are none anyway."""
        try:
            self._commands.change(links.RTM_NEWLINK, 0, links.no_generated_addresses(index))
        except NetlinkError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                raise

    def _set_port(self, operation: Operation) -> None:
        wanted, index = operation.value, self.ifindex(operation.key.device)
        assert isinstance(wanted, PortFlags)
        if not isinstance(operation.old, PortFlags) or operation.old.master != wanted.master:
            self._commands.change(links.RTM_NEWLINK, 0, links.join(index, self.ifindex(wanted.master)))
            self._quieten(index)
        self._commands.change(links.RTM_NEWLINK, 0, links.set_port_flags(index, wanted))


def _offloads_of(name: str) -> Offloads | Unavailable | None:
    """None where the device has gone since it was heard of."""
    try:
        return Offloads(features.offloads_off(name))
    except OSError as error:
        return None if error.errno == errno.ENODEV else Unavailable("this kernel does not tell")
