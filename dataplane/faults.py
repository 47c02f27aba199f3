"""What a refusal by the kernel means to the person at the keyboard: one line with the thing, the cause and the cure.

Knows objects and error numbers; knows nothing of netlink or of who tries again when. The one idea: the same error
number means different things for different objects ("not supported" is a missing VXLAN module for one and a missing
feature of the bridge for another), so causes and cures are looked up by both. Many refusals of one sort (ten thousand
neighbours) become one fault with a count.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Final

from dataplane.kernel import ADD, DELETE, REPLACE, Fault, KernelError, Operation
from dataplane.objects import (
    ACCEPT,
    BRIDGE_FDB,
    FLOOD,
    FORWARDING,
    GATEWAY,
    GUARD,
    GUEST,
    GUEST_ADDRESS,
    GUEST_NETWORK,
    GUEST_ROUTE,
    HOST_ADDRESS,
    IFINDEX,
    LINK,
    NEIGHBOUR,
    OFFLOADS,
    PORT,
    UP,
    VXLAN_FDB,
    Bridge,
    Key,
    Tap,
    Value,
    Veth,
    Vxlan,
)

MAX_FAULTS: Final = 20
"""Faults in one report; what is beyond is counted in a last one."""

_DOING: Final = {ADD: "cannot make", REPLACE: "cannot change", DELETE: "cannot remove"}
_FAMILY_NAMES: Final = {b"ip": "IPv4", b"ip6": "IPv6"}
_ROOT_CURE: Final = "run weft as root, with CAP_NET_ADMIN"

_NO_VXLAN: Final = "this kernel has no VXLAN: load it with 'modprobe vxlan', or launch with --no-vxlan"
_OTHER_VXLAN: Final = (
    "another VXLAN device has its VNI and port: remove that ('ip -d link show type vxlan' lists them), or change --port"
)
_CURES: Final[Mapping[tuple[str, int], str]] = {
    ("VXLAN device", errno.EOPNOTSUPP): _NO_VXLAN,
    ("VXLAN device", errno.EEXIST): _OTHER_VXLAN,
    ("bridge", errno.EOPNOTSUPP): "this kernel has no bridge: load it with 'modprobe bridge'",
    ("container interface", errno.EOPNOTSUPP): "this kernel has no veth: load it with 'modprobe veth'",
    (UP, errno.EADDRINUSE): "its UDP port is in use: stop what 'ss -ulnp' shows there, or change --port",
    (PORT, errno.EOPNOTSUPP): "a Linux kernel of 6.1 or newer is needed for locked and isolated bridge ports",
    (GUEST_ADDRESS, errno.EAFNOSUPPORT): "this kernel has no IPv6: attach without IPv6 addresses",
    (GUEST_ADDRESS, errno.EOPNOTSUPP): "this kernel has no IPv6: attach without IPv6 addresses",
    (GUEST_ADDRESS, errno.EACCES): "IPv6 is switched off there (net.ipv6.conf.*.disable_ipv6)",
    (HOST_ADDRESS, errno.EOPNOTSUPP): "this kernel has no IPv6: expose no IPv6 address",
    (HOST_ADDRESS, errno.EAFNOSUPPORT): "this kernel has no IPv6: expose no IPv6 address",
    (GATEWAY, errno.EIO): "load the kernel's NAT with 'modprobe nft_masq', or expose --without-masquerade",
    (FORWARDING, errno.EROFS): "/proc/sys is read-only here: set the sysctl yourself, outside of this container",
    (FORWARDING, errno.ENOENT): "this kernel has no IPv6: expose no IPv6 address",
}


def describe(key: Key, value: Value | None) -> str:
    """The object as people name it."""
    if key.kind == UP:
        return key.device
    what = _thing(key, value)
    if what in ("bridge", "VXLAN device", "TAP", "container interface", "device"):
        return f"{what} {key.device}"
    if key.kind in (PORT, OFFLOADS, GUARD, GUEST):
        return f"{what} of {key.device}"
    if key.kind in (GUEST_ADDRESS, GUEST_NETWORK, HOST_ADDRESS):
        return f"{what} {_address(key.item[:-1])}/{key.item[-1]} of {key.device}"
    if key.kind == ACCEPT:
        return f"{what} in {key.item.decode().split()[0]} filter FORWARD"
    if key.kind == GUEST_ROUTE:
        return f"{what} of {key.device} ({_FAMILY_NAMES[key.item]})"
    if key.kind == FORWARDING:
        return f"{what} of {_FAMILY_NAMES[key.item]}"
    if key.kind == GATEWAY:
        return what
    if key.kind in (NEIGHBOUR, FLOOD):
        return f"{what} {_address(key.item)} on {key.device}"
    return f"{what} {key.item.hex(':')} on {key.device}"


def text_of(error: KernelError) -> str:
    """One refusal as one line."""
    operation = error.operation
    if operation is None:
        return error.text
    what = describe(operation.key, operation.value if operation.value is not None else operation.old)
    doing = "cannot bring up" if operation.key.kind == UP else _DOING.get(operation.verb, "cannot set")
    line = f"{doing} {what}: {error.text}"
    cure = _cure(operation, error)
    return f"{line}; {cure}" if cure else line


def sort_faults(
    errors: Iterable[KernelError], port_of: Mapping[Key, str]
) -> tuple[dict[str, Fault], tuple[Fault, ...]]:
    """Refusals as (fault by container port, everything else). Of a port's several, the first to happen is told."""
    ports: dict[str, Fault] = {}
    groups: dict[tuple[str, int, str], list[KernelError]] = {}
    for error in errors:
        operation = error.operation
        port = None if operation is None else port_of.get(operation.key)
        if port is not None:
            ports.setdefault(port, Fault(error.code, text_of(error)))
        else:
            kind = "" if operation is None else operation.key.kind
            groups.setdefault((kind, error.errno, error.code), []).append(error)
    faults = [_fault_of_group(group) for group in groups.values()]
    if len(faults) > MAX_FAULTS:
        more = len(faults) - MAX_FAULTS + 1
        faults = [*faults[: MAX_FAULTS - 1], Fault("more", f"and {more} more faults; see the log")]
    return ports, tuple(faults)


def _fault_of_group(group: Sequence[KernelError]) -> Fault:
    text = text_of(group[0])
    if len(group) > 1:
        text += f" (and {len(group) - 1} more like it)"
    return Fault(group[0].code, text)


def _thing(key: Key, value: Value | None) -> str:
    if key.kind == LINK:
        if isinstance(value, Bridge):
            return "bridge"
        if isinstance(value, Vxlan):
            return "VXLAN device"
        if isinstance(value, Tap):
            return "TAP"
        return "container interface" if isinstance(value, Veth) else "device"
    return {
        PORT: "bridge port flags",
        OFFLOADS: "offloads",
        VXLAN_FDB: "VXLAN forwarding entry",
        FLOOD: "flood destination",
        BRIDGE_FDB: "bridge forwarding entry",
        NEIGHBOUR: "neighbour",
        GUEST: "inner end",
        GUEST_ADDRESS: "address",
        HOST_ADDRESS: "address",
        GUEST_ROUTE: "default route",
        GUEST_NETWORK: "route",
        FORWARDING: "forwarding",
        GATEWAY: "masquerade rules",
        GUARD: "firewall guard",
        ACCEPT: "accept rule",
    }.get(key.kind, key.kind)


def _cure(operation: Operation, error: KernelError) -> str:
    if error.code != "kernel":
        return ""  # who gave it a code of its own has said the cure too
    if error.errno in (errno.EPERM, errno.EACCES) and operation.key.kind != GUEST_ADDRESS:
        return _ROOT_CURE
    thing = _thing(operation.key, operation.value)
    return _CURES.get((thing, error.errno)) or _CURES.get((operation.key.kind, error.errno), "")


def _address(packed: bytes) -> str:
    """An address, or a VXLAN destination with the number of its interface."""
    address, interface = packed[:16], packed[16:]
    return f"{ip_address(address)}%{IFINDEX.unpack(interface)[0]}" if interface else str(ip_address(address))
