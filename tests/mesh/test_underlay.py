"""What follows from this host's own network: where others find it, how large a packet it takes, whether NAT is near."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane.linux import underlay as seen_underlay
from dataplane.linux.underlay import Survey, UnderlayAddress
from mesh.underlay import ADDRESSES_TOLD_MAX, Underlay

V4 = UnderlayAddress(ip_address("192.0.2.2"), ip_network("192.0.2.0/24"), "eth0", 1500)
V6 = UnderlayAddress(ip_address("2001:db8::2"), ip_network("2001:db8::/64"), "eth0", 9000)
LINK_LOCAL = UnderlayAddress(ip_address("fe80::2%3"), ip_network("fe80::/64"), "eth0", 1400)
BOTH = Survey((V4, V6), None)


def underlay(survey: Survey = BOTH, host: str = "", *advertise: str) -> Underlay:
    return Underlay("weft", host, advertise, survey)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (underlay(), ("192.0.2.2:6783", "[2001:db8::2]:6783")),
        (underlay(BOTH, "192.0.2.2"), ("192.0.2.2:6783",)),
        (underlay(BOTH, "192.0.2.2", "198.51.100.1"), ("198.51.100.1:6783",)),
        (underlay(Survey((), None, (LINK_LOCAL,))), ()),
        (underlay(BOTH, "fe80::2%3"), ()),
    ],
    ids=["found", "host", "advertised", "link-local", "link-local-host"],
)
def test_what_the_user_says_is_told_before_what_is_found(made: Underlay, told: tuple[str, ...]) -> None:
    """And a link-local address never."""
    assert made.told_addresses(6783) == told


def test_a_bounded_number_of_addresses_is_told() -> None:
    """The first ones, which are the best."""
    many = tuple(replace(V4, address=ip_address(f"192.0.2.{number}")) for number in range(1, 20))
    told = underlay(Survey(many, None)).told_addresses(6783)
    assert told == tuple(f"{each.address}:6783" for each in many[:ADDRESSES_TOLD_MAX])


@pytest.mark.parametrize(
    ("observed", "is_nat"),
    [
        ((), False),
        (("192.0.2.2:40000", "[2001:db8::2]:40000"), False),
        (("192.0.2.2:40000", "203.0.113.9:40000"), True),
        (("127.0.0.1:40000", "[fe80::2]:40000", "no address"), False),
    ],
)
def test_an_address_that_is_seen_and_not_ours_is_a_nat(observed: tuple[str, ...], is_nat: bool) -> None:
    """But those that mean nothing elsewhere, and where the user says which address it is to be."""
    assert underlay().is_behind_nat(observed) == is_nat
    assert not underlay(BOTH, "", "203.0.113.9").is_behind_nat(observed)


@pytest.mark.parametrize(
    ("made", "mtu", "over_ipv4", "over_ipv6"),
    [
        (underlay(), 1450, 1450, 1430),
        (underlay(Survey((V6,), None)), 8930, 8950, 8930),
        (underlay(BOTH, "", "2001:db8::2"), 8930, 8950, 8930),
        (underlay(BOTH, "2001:db8::2"), 8930, 8950, 8930),
        (underlay(BOTH, "", "203.0.113.9"), 1450, 1450, 1430),
        (underlay(Survey((), None)), 1450, 1450, 1430),
    ],
    ids=["both", "v6", "v6-told", "v6-host", "neither-told", "nothing-yet"],
)
def test_the_narrowest_interface_that_carries_the_overlay_says_its_mtu(
    made: Underlay, mtu: int, over_ipv4: int, over_ipv6: int
) -> None:
    """That is the one with the addresses told, where any has one."""
    assert (made.mtu, made.mtu_over_ipv4, made.mtu_over_ipv6) == (mtu, over_ipv4, over_ipv6)


def test_another_look_says_which_addresses_have_gone() -> None:
    """A wider interface is news without any; the same again is none, and no address at all is not believed."""
    made = underlay()
    assert made.take(BOTH) is None
    wide = replace(V4, mtu=9000)
    assert made.take(Survey((wide, V6), None)) == frozenset()
    assert made.take(Survey((wide,), None)) == {"2001:db8::2"}
    assert made.take(Survey((), None)) is None
    assert made.survey == Survey((wide,), None)
    assert made.has_ipv6, "its device stays"


def test_an_address_that_is_only_unfit_to_be_told_has_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deprecated one of IPv6: links from there still work."""
    monkeypatch.setattr(seen_underlay, "is_own", lambda address: address == "2001:db8::2")
    made = underlay()
    assert made.take(Survey((replace(V4, address=ip_address("192.0.2.3")),), None)) == {"192.0.2.2"}
    assert made.told_addresses(6783) == ("192.0.2.3:6783",)
