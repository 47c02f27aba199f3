"""Netlink messages as bytes: what we make we can read, and what the kernel adds does not confuse us."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.linux import links, tables
from dataplane.linux.netlink import attribute, attributes, messages, nested, text, u8, u32
from dataplane.objects import (
    BRIDGE_FDB,
    FLOOD,
    NEIGHBOUR,
    VXLAN_FDB,
    ZERO_MAC,
    Bridge,
    Key,
    Odd,
    PortFlags,
    Tap,
    Value,
    Vxlan,
    destination_item,
)

NAMES = {3: "weft", 4: "weft-vx", 5: "vw1", 6: "weft-tap", 7: "weft-vx6"}
VXLANS = ("weft-vx", "weft-vx6")
MAC = bytes.fromhex("020000000002")
V4, V6 = ip_address("10.32.0.2").packed, ip_address("fd00::2").packed
LINK_LOCAL = destination_item(ip_address("fe80::2%9"))


def entry(family: int, ifindex: int, state: int, flags: int, *parts: bytes) -> bytes:
    return struct.pack("=BxxxiHBB", family, ifindex, state, flags, 0) + b"".join(parts)


def read(payload: bytes) -> tuple[Key, Value | None] | None:
    return tables.decode(payload, 0, len(payload), NAMES, "weft", VXLANS)


@pytest.mark.parametrize(
    ("key", "value", "index", "kernel_adds"),
    [
        (Key(NEIGHBOUR, "weft", V4), MAC, 3, b""),
        (Key(NEIGHBOUR, "weft", V6), MAC, 3, b""),
        (Key(VXLAN_FDB, "weft-vx", MAC), V4, 4, b""),
        (Key(FLOOD, "weft-vx", V4), True, 4, b""),
        (Key(VXLAN_FDB, "weft-vx6", MAC), V6, 7, b""),
        (Key(FLOOD, "weft-vx6", V6), True, 7, b""),
        (Key(VXLAN_FDB, "weft-vx6", MAC), LINK_LOCAL, 7, b""),
        (Key(FLOOD, "weft-vx6", LINK_LOCAL), True, 7, b""),
        (Key(BRIDGE_FDB, "weft", MAC), "vw1", 5, u32(9, 3)),
    ],
    ids=lambda value: value.kind if isinstance(value, Key) else "",
)
def test_an_entry_we_make_is_read_back_as_it_was_meant(key: Key, value: Value, index: int, kernel_adds: bytes) -> None:
    """With what the kernel adds when it tells of it: the bridge, ages, counts."""
    _, _, payload = tables.put(key, value, index)
    assert read(payload + kernel_adds + attribute(3, bytes(16))) == (key, value)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (entry(7, 5, 0x02, 0, attribute(2, MAC), u32(9, 3)), (Key(BRIDGE_FDB, "weft", MAC), Odd("vw1"))),
        (entry(7, 5, 0x40, 0, attribute(2, MAC), u32(9, 3)), (Key(BRIDGE_FDB, "weft", MAC), Odd("vw1"))),
        (entry(7, 5, 0x40, 0x50, attribute(2, MAC), u32(9, 3)), (Key(BRIDGE_FDB, "weft", MAC), Odd("vw1", True))),
        (entry(7, 99, 0x40, 0x40, attribute(2, MAC), u32(9, 3)), (Key(BRIDGE_FDB, "weft", MAC), Odd("#99"))),
        (entry(7, 5, 0x80, 0, attribute(2, MAC), u32(9, 3)), None),
        (entry(7, 5, 0x40, 0x40, attribute(2, MAC), u32(9, 8)), None),
        (entry(7, 5, 0x40, 0x40, attribute(2, MAC), attribute(5, b"\1\0"), u32(9, 3)), None),
        (entry(7, 4, 0x42, 2, attribute(2, MAC), attribute(1, V4), attribute(6, b"\x12\xb5")),
         (Key(VXLAN_FDB, "weft-vx", MAC), Odd("weft-vx"))),
        (entry(7, 4, 0x42, 2, attribute(2, ZERO_MAC), attribute(1, V4), u32(7, 9)), None),
        (entry(7, 4, 0x42, 2, attribute(2, ZERO_MAC), attribute(1, V4), u32(8, 9)), None),
        (entry(7, 5, 0x80, 2, attribute(2, MAC)), None),
        (entry(7, 6, 0x80, 2, attribute(2, MAC)), None),
        (entry(2, 3, 0x04, 0, attribute(1, V4), attribute(2, MAC)), (Key(NEIGHBOUR, "weft", V4), None)),
        (entry(2, 9, 0x80, 0, attribute(1, V4), attribute(2, MAC)), None),
        (entry(2, 3, 0x80, 8, attribute(1, V4)), None),
    ],
    ids=["learned", "not-sticky", "extern-learn", "foreign-port", "local", "other-bridge", "vlan", "own-port",
         "own-vni", "own-device", "unicast-list-of-a-port", "unicast-list-of-the-tap", "stale", "other-device",
         "proxy"],
)  # fmt: skip
def test_an_entry_that_is_not_of_our_form_is_odd_or_none_of_our_business(
    payload: bytes, found: tuple[Key, Value | None] | None
) -> None:
    """It never passes for one of ours."""
    assert read(payload) == found


@given(st.binary(max_size=120))
def test_attributes_of_any_bytes_are_read_without_harm(data: bytes) -> None:
    """What is cut short is left out."""
    assert all(isinstance(value, bytes) for value in attributes(data, 0, len(data)).values())
    assert all(end - start >= 0 for _, _, _, start, end in messages(data))


def test_messages_in_one_buffer_are_told_apart() -> None:
    """Padded to four bytes, each with its own length."""
    one = struct.pack("=IHHII", 19, 16, 0, 1, 0) + b"abc" + b"\0"
    two = struct.pack("=IHHII", 20, 17, 2, 5, 0) + b"defg"
    both = one + two
    found = [(kind, flags, sequence, both[start:end]) for kind, flags, sequence, start, end in messages(both)]
    assert found == [(16, 0, 1, b"abc"), (17, 2, 5, b"defg")]


def link(*parts: bytes, family: int = 0, up: bool = True) -> links.Link:
    payload = struct.pack("=BxHiII", family, 1, 5, int(up), 0) + text(3, "x0") + b"".join(parts)
    return links.decode(payload, 0, len(payload))


def test_port_flags_read_the_same_from_both_sorts_of_message() -> None:
    """A link's own message, and the one that the bridge sends."""
    wanted = PortFlags("weft", neigh_suppress=True, isolated=True, locked=False)
    flags = (u8(8, 0), u8(9, 0), u8(27, 1), u8(30, 1), u8(32, 1), u8(33, 1), u8(39, 0))
    ours = link(u32(10, 3), nested(18, text(1, "vxlan"), text(4, "bridge"), nested(5, *flags)))
    bridges = link(u32(10, 3), nested(12, *flags), family=7)
    assert links.port_flags_of(ours, "weft") == links.port_flags_of(bridges, "weft") == wanted
    assert link(nested(18, text(4, "bond"), nested(5, *flags))).port == {}


def test_a_bridge_in_a_kernel_without_ipv6_has_no_fault() -> None:
    """There is nothing to set and nothing to miss."""
    found = link(attribute(1, MAC), u32(4, 1450), nested(18, text(1, "bridge"), nested(2, u32(5, 0), u8(23, 0))))
    assert links.bridge_of(found) == Bridge(MAC, 1450)


@pytest.mark.parametrize(
    ("option", "oddity"),
    [
        (u8(3, 1), "no Ethernet"),
        (u8(4, 1), "packet information"),
        (u8(5, 0), "no virtio header"),
        (u8(6, 0), "not persistent"),
        (u8(7, 1), "several queues"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tap_with_an_option_of_its_own_is_odd(option: bytes, oddity: str) -> None:
    """And a plain one is not; nor one whose options the kernel does not tell."""
    limits = (u32(4, 1450), u32(13, 1000), u32(41, 65_400))
    plain = (u8(3, 2), u8(4, 0), u8(5, 1), u8(6, 1), u8(7, 0))
    assert links.tap_of(link(*limits, nested(18, text(1, "tun"), nested(2, *plain)))) == Tap(1450)
    assert links.tap_of(link(*limits[:2], nested(18, text(1, "tun")))) == Tap(1450)
    odd = links.tap_of(link(*limits, nested(18, text(1, "tun"), nested(2, *plain, option))))
    assert odd == Tap(1450, oddity=oddity)


@pytest.mark.parametrize(
    ("option", "oddity"),
    [
        (u8(7, 1), "learning"),
        (attribute(4, V4), "a local address"),
        (attribute(2, V4), "a group"),
        (u32(3, 2), "an underlay device"),
        (u8(29, 1), "df"),
        (attribute(23, b""), "gbp"),
        (u8(25, 1), "external"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_vxlan_device_with_an_option_of_its_own_is_odd(option: bytes, oddity: str) -> None:
    """And a plain one is not."""
    plain = (u32(1, 7), attribute(15, b"\x1a\x80"), u32(3, 0), u8(7, 0), u8(12, 0), u8(25, 0), u8(29, 0), u8(5, 64))
    info = nested(18, text(1, "vxlan"), nested(2, *plain))
    assert links.vxlan_of(link(u32(4, 1450), info), False) == Vxlan(7, 6784, 1450)
    odd = links.vxlan_of(link(u32(4, 1450), nested(18, text(1, "vxlan"), nested(2, *plain, option))), False)
    assert odd == Vxlan(7, 6784, 1450, oddity)
