"""What may be said of ranges, subnets, beginnings and leases; and which range this host takes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from mesh.ipam import ranges
from mesh.ipam.ranges import Allocation, allocation, choose_range, settle

DOCKER = (IPv4Network("172.17.0.0/16"), "the route 172.17.0.0/16 dev docker0")
OFFICE = (IPv4Network("10.33.0.0/16"), "the route 10.33.0.0/16 via 192.0.2.1 dev eth0")
TEN = (IPv4Network("10.0.0.0/8"), "the route 10.0.0.0/8 dev tun0")


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.32.0.0/12", "192.168.7.0/29", "100.64.0.0/10"])
def test_an_ipv4_range_is_a_slash_8_to_a_slash_29(text: str) -> None:
    assert ranges.parse_range4(text) == ip_network(text)


@pytest.mark.parametrize("text", ["fd00::/64", "fd00:32::/112", "2001:db8::/96"])
def test_an_ipv6_range_is_a_slash_64_to_a_slash_112(text: str) -> None:
    assert ranges.parse_range6(text) == ip_network(text)


def test_none_switches_a_range_off() -> None:
    assert ranges.parse_range4("none") == ranges.parse_range6("none") == ranges.NONE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no length"),
        ("off", "has no length"),
        ("10.32.0.0", "has no length"),
        ("10.32.0.0/7", "an address of a network: the network itself is written 10.0.0.0/7"),
        ("8.0.0.0/7", "a /8 to a /29"),
        ("10.32.0.0/30", "a /8 to a /29"),
        ("10.32.1.0/12", "the network itself is written 10.32.0.0/12"),
        ("10.32.0.0/255.240.0.0", "is not a network"),
        ("127.0.0.0/8", "loopback"),
        ("224.0.0.0/8", "multicast"),
        ("169.254.0.0/16", "link-local"),
        ("0.0.0.0/8", "this-network"),
        ("fd00::/64", "not a range of IPv4"),
    ],
)
def test_what_is_no_ipv4_range_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        ranges.parse_range4(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fd00::/63", "a /64 to a /112"),
        ("fd00::/113", "a /64 to a /112"),
        ("fd00::1/64", "the network itself is written fd00::/64"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::/64", "loopback"),
        ("10.32.0.0/12", "not a range of IPv6"),
    ],
)
def test_what_is_no_ipv6_range_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ranges.parse_range6(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("consensus", ("consensus", 0, ())),
        ("consensus=1", ("consensus", 1, ())),
        ("consensus=300", ("consensus", 300, ())),
        ("seed=h1", ("seed", 0, ("h1",))),
        ("seed=h1, 1a:2b:3c:4d:5e:6f:70:81,h1", ("seed", 0, ("h1", "1a:2b:3c:4d:5e:6f:70:81"))),
        ("observer", ("observer", 0, ())),
    ],
)
def test_who_may_begin(text: str, found: tuple[str, int, tuple[str, ...]]) -> None:
    assert ranges.parse_init(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "consensus=", "consensus=0", "consensus=x", "consensus=-1", "consensus=99999", "seed", "seed=", "seed=a,",
        "observer=1", "seeds=a", "Consensus", "seed=" + ",".join(map(str, range(33))),
    ],
)  # fmt: skip
def test_what_says_nothing_of_who_may_begin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ranges.parse_init(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("3600", 3600), ("90s", 90), ("10m", 600), ("1h", 3600), ("12h", 43200)],
)
def test_a_lease_is_seconds_or_has_a_unit(text: str, seconds: int) -> None:
    assert ranges.parse_lease(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "29", "29s", "0m", "31d", "721h", "1w", "1.5h", "-60", "1h30m", "٣٠", "1e3"])
def test_what_is_no_lease_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"lease|time"):
        ranges.parse_lease(text)


def test_what_is_not_said_has_defaults() -> None:
    assert allocation(None, None, None, None, None) == Allocation()
    assert Allocation().range4 == IPv4Network("10.32.0.0/12") and Allocation().makes_range6
    assert not Allocation().is_off


def test_all_parts_together() -> None:
    found = allocation(
        IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/64"), IPv4Network("10.1.0.0/16"), ("seed", 0, ("h1",)), 90
    )
    assert found == Allocation(
        IPv4Network("10.0.0.0/8"),
        True,
        IPv6Network("fd00::/64"),
        False,
        IPv4Network("10.1.0.0/16"),
        "seed",
        0,
        ("h1",),
        90,
    )
    assert allocation("none", "none", None, None, None).is_off
    assert not allocation("none", None, None, None, None).is_off


@pytest.mark.parametrize(
    ("range4", "range6", "subnet", "says"),
    [
        (None, None, "10.48.0.0/16", "not inside the range 10.32.0.0/12"),
        (None, None, "10.0.0.0/8", "not inside the range"),
        ("none", None, "10.32.0.0/16", "lies in no range: name one that contains it with --ipalloc-range"),
        (None, None, "fd00::/64", "lies in no range: name one that contains it with --ipalloc-range6"),
        (None, "fd00::/64", "fd01::/80", "not inside the range fd00::/64"),
    ],
)
def test_a_default_subnet_lies_in_its_range(range4: str | None, range6: str | None, subnet: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allocation(
            ranges.parse_range4(range4) if range4 else None,
            ranges.parse_range6(range6) if range6 else None,
            ranges.parse_default_subnet(subnet),
            None,
            None,
        )


def test_a_default_subnet_is_a_network_in_either_spelling() -> None:
    assert ranges.parse_default_subnet("net:10.32.0.0/16") == ranges.parse_default_subnet("10.32.0.0/16")
    for text in ("net:default", "default", "10.32.0.1/16", "10.32.0.0/31"):
        with pytest.raises(ValueError, match=r"\S"):
            ranges.parse_default_subnet(text)
    with pytest.raises(ValueError, match="is what is to be set here"):
        ranges.parse_default_subnet("net:default")


# Which range this host takes


def test_a_range_that_is_free_is_taken() -> None:
    for named in (False, True):
        assert choose_range(named, ranges.DEFAULT_RANGE, [DOCKER]) == ranges.DEFAULT_RANGE


def test_a_named_range_that_collides_is_refused_with_the_route() -> None:
    with pytest.raises(
        ValueError, match=f"10.32.0.0/12 collides with {OFFICE[1]} on this host; name another"
    ) as caught:
        choose_range(True, ranges.DEFAULT_RANGE, [DOCKER, OFFICE])
    assert "\n" not in str(caught.value)


def test_one_that_nobody_named_gives_way_to_the_next() -> None:
    assert choose_range(False, ranges.DEFAULT_RANGE, [OFFICE]) == IPv4Network("10.64.0.0/12")
    sixty_four = (IPv4Network("10.64.3.0/24"), "x")
    assert choose_range(False, ranges.DEFAULT_RANGE, [sixty_four, OFFICE]) == IPv4Network("10.96.0.0/12")
    assert choose_range(False, ranges.DEFAULT_RANGE, [TEN, DOCKER]) == IPv4Network("172.20.0.0/14")
    private = (IPv4Network("172.16.0.0/12"), "x")
    assert choose_range(False, ranges.DEFAULT_RANGE, [TEN, private]) == IPv4Network("100.64.0.0/12")


def test_where_nothing_is_left_the_user_must_choose() -> None:
    everything = [TEN, (IPv4Network("172.16.0.0/12"), "x"), (IPv4Network("100.64.0.0/10"), "y")]
    with pytest.raises(ValueError, match="every private range collides"):
        choose_range(False, ranges.DEFAULT_RANGE, everything)


def test_candidates_are_private_and_do_not_overlap() -> None:
    for index, one in enumerate(ranges.CANDIDATES):
        assert not one.is_global
        assert not any(one.overlaps(other) for other in ranges.CANDIDATES[index + 1 :])
    assert ranges.CANDIDATES[0] == ranges.DEFAULT_RANGE


def test_what_was_chosen_instead_says_why() -> None:
    settled = settle(Allocation(), [OFFICE])
    assert settled.range4 == IPv4Network("10.64.0.0/12")
    assert settled.instead == f"the default range 10.32.0.0/12 collides with {OFFICE[1]} on this host"
    assert settle(Allocation(), [DOCKER]) == Allocation()


def test_a_default_subnet_counts_as_a_named_range() -> None:
    told = allocation(None, None, IPv4Network("10.33.0.0/16"), None, None)
    with pytest.raises(ValueError, match="collides"):
        settle(told, [OFFICE])


def test_an_ipv6_range_is_checked_where_it_is_named() -> None:
    route = (IPv6Network("fd00::/48"), "the route fd00::/48 dev eth0")
    with pytest.raises(ValueError, match="--ipalloc-range6"):
        settle(allocation(None, IPv6Network("fd00::/64"), None, None, None), [route])
    assert settle(Allocation(), [route]) == Allocation()
    off = allocation("none", "none", None, None, None)
    assert settle(off, [route, OFFICE]) == off
