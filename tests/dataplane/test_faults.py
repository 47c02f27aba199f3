"""Refusals as people read them: one line, the thing, the cause, the cure; and never too many."""

from __future__ import annotations

import errno
import os
from ipaddress import ip_address

import pytest

from dataplane.faults import MAX_FAULTS, sort_faults, text_of
from dataplane.kernel import ADD, DELETE, REPLACE, KernelError, Operation
from dataplane.objects import (
    ACCEPT,
    BRIDGE_FDB,
    FLOOD,
    GUARD,
    GUARD_RULES,
    GUEST,
    GUEST_ADDRESS,
    LINK,
    NEIGHBOUR,
    PORT,
    UP,
    VXLAN_FDB,
    Bridge,
    Guard,
    Guest,
    GuestAddress,
    Key,
    PortFlags,
    Tap,
    Value,
    Veth,
    Vxlan,
    destination_item,
)

MAC = bytes.fromhex("020000000002")
ADDRESS = ip_address("10.32.0.2").packed
VXLAN = (Key(LINK, "weft-vx"), Vxlan(7, 6784, 1450))


def refusal(verb: str, key: Key, value: Value | None, number: int, code: str = "kernel") -> KernelError:
    return KernelError(number, Operation(verb, key, value), os.strerror(number), code)


@pytest.mark.parametrize(
    ("verb", "key", "value", "number", "text"),
    [
        (ADD, *VXLAN, errno.EOPNOTSUPP,
         "cannot make VXLAN device weft-vx: Operation not supported; this kernel has no VXLAN: load it with "
         "'modprobe vxlan', or launch with --no-vxlan"),
        (ADD, *VXLAN, errno.EPERM,
         "cannot make VXLAN device weft-vx: Operation not permitted; run weft as root, with CAP_NET_ADMIN"),
        (ADD, Key(LINK, "weft-tap"), Tap(1450), errno.ENODEV, "cannot make TAP weft-tap: No such device"),
        (ADD, Key(LINK, "weft"), Bridge(MAC, 1450), errno.EOPNOTSUPP,
         "cannot make bridge weft: Operation not supported; this kernel has no bridge: load it with 'modprobe bridge'"),
        (ADD, Key(LINK, "vw1"), Veth(1450, (1, 2)), errno.ENOMEM,
         "cannot make container interface vw1: Cannot allocate memory"),
        (DELETE, Key(LINK, "vw1"), None, errno.EBUSY, "cannot remove device vw1: Device or resource busy"),
        (ADD, Key(UP, "weft-vx"), True, errno.EADDRINUSE,
         "cannot bring up weft-vx: Address already in use; its UDP port is in use: stop what 'ss -ulnp' shows there, "
         "or change --port"),
        (REPLACE, Key(PORT, "vw1"), PortFlags("weft", False, False, True), errno.EOPNOTSUPP,
         "cannot change bridge port flags of vw1: Operation not supported; a Linux kernel of 6.1 or newer is needed "
         "for locked and isolated bridge ports"),
        (ADD, Key(NEIGHBOUR, "weft", ADDRESS), MAC, errno.ENOSPC,
         "cannot make neighbour 10.32.0.2 on weft: No space left on device"),
        (ADD, Key(VXLAN_FDB, "weft-vx", MAC), ADDRESS, errno.ENOSPC,
         "cannot make VXLAN forwarding entry 02:00:00:00:00:02 on weft-vx: No space left on device"),
        (ADD, Key(BRIDGE_FDB, "weft", MAC), "vw1", errno.ENOSPC,
         "cannot make bridge forwarding entry 02:00:00:00:00:02 on weft: No space left on device"),
        (ADD, Key(FLOOD, "weft-vx", ADDRESS), True, errno.EIO,
         "cannot make flood destination 10.32.0.2 on weft-vx: Input/output error"),
        (ADD, Key(FLOOD, "weft-vx6", destination_item(ip_address("fe80::2%3"))), True, errno.EIO,
         "cannot make flood destination fe80::2%3 on weft-vx6: Input/output error"),
        (REPLACE, Key(GUEST, "vw1"), Guest("ethwe", MAC, 1450), errno.EIO,
         "cannot change inner end of vw1: Input/output error"),
        (ADD, Key(GUEST_ADDRESS, "vw1", ADDRESS + bytes((16,))), GuestAddress(), errno.EACCES,
         "cannot make address 10.32.0.2/16 of vw1: Permission denied; IPv6 is switched off there "
         "(net.ipv6.conf.*.disable_ipv6)"),
        (ADD, Key(GUARD, "weft-vx"), Guard(GUARD_RULES), errno.EIO,
         "cannot make firewall guard of weft-vx: Input/output error"),
        (ADD, Key(ACCEPT, "weft", b"ip"), True, errno.EIO,
         "cannot make accept rule in ip filter FORWARD: Input/output error"),
    ],
    ids=lambda value: value.kind if isinstance(value, Key) else "",
)  # fmt: skip
def test_a_refusal_reads_as_one_line(verb: str, key: Key, value: Value | None, number: int, text: str) -> None:
    """The thing, the cause, and the cure where there is one."""
    assert text_of(refusal(verb, key, value, number)) == text


def test_refusals_of_one_sort_are_one_fault_with_a_count() -> None:
    """Ten thousand neighbours are not ten thousand lines."""
    errors = [refusal(ADD, Key(NEIGHBOUR, "weft", n.to_bytes(4, "big")), MAC, errno.ENOSPC) for n in range(1, 10_001)]
    ports, faults = sort_faults(errors, {})
    assert ports == {} and [fault.text for fault in faults] == [
        "cannot make neighbour 0.0.0.1 on weft: No space left on device (and 9999 more like it)"
    ]


def test_a_ports_refusals_go_by_its_name_and_the_first_is_told() -> None:
    """What follows from it would only confuse."""
    first = refusal(ADD, Key(LINK, "vw1"), Veth(1450, (1, 2)), errno.ESTALE, "namespace-gone")
    second = refusal(ADD, Key(BRIDGE_FDB, "weft", MAC), "vw1", errno.EINVAL)
    ports, faults = sort_faults([first, second], {Key(LINK, "vw1"): "vw1", Key(BRIDGE_FDB, "weft", MAC): "vw1"})
    assert faults == () and ports["vw1"].code == "namespace-gone" and list(ports) == ["vw1"]


def test_a_report_holds_a_bounded_number_of_faults() -> None:
    """What is beyond is counted."""
    errors = [refusal(ADD, *VXLAN, number) for number in range(1, MAX_FAULTS + 11)]
    _, faults = sort_faults(errors, {})
    assert len(faults) == MAX_FAULTS and faults[-1].text == "and 11 more faults; see the log"
    _, faults = sort_faults(errors[:MAX_FAULTS], {})
    assert len(faults) == MAX_FAULTS and faults[-1].code == "kernel"


def test_a_refusal_without_an_operation_speaks_for_itself() -> None:
    """A listing that failed."""
    assert text_of(KernelError(errno.EIO, None, "cannot list links")) == "cannot list links"
