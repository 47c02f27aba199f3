"""What the user says of the addresses to be given: the ranges, the default subnet, who may begin, how long a lease is.

Texts in, values out, and one choice: a range that this host has a route to would take that route's traffic, so one that
nobody named gives way to another. Imported by the command too: the standard library only. Knows nothing of how
addresses are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from mesh import arguments
from mesh.arguments import Network

NONE = "none"
DEFAULT_RANGE = IPv4Network("10.32.0.0/12")
LENGTHS = {4: (8, 29), 6: (64, 112)}
"""The shortest and the longest prefix of a range, by IP version."""

CONSENSUS, SEED, OBSERVER = "consensus", "seed", "observer"
HOSTS_MAX = 10_000
"""Of `consensus=N`; a larger number is a mistake."""
SEEDS_MAX = 32

LEASE_DEFAULT_S = 3600
LEASE_MIN_S, LEASE_MAX_S = 30, 12 * 3600
"""A host is forgotten by gossip after a day out of reach; what it said must be there for as long as its lease."""
_UNITS_S = {"s": 1, "m": 60, "h": 3600}

CANDIDATES = tuple(
    map(
        IPv4Network,
        [
            *(f"10.{second}.0.0/12" for second in (32, 64, 96, 128, 160, 192, 224)),
            *(f"10.{second}.0.0/12" for second in (48, 80, 112, 144, 176, 208, 240, 16)),
            *(f"172.{second}.0.0/14" for second in (16, 20, 24, 28)),
            *(f"100.{second}.0.0/12" for second in (64, 80, 96, 112)),
        ],
    )
)
"""Ranges to take where the user named none, in this order: private ones, then what providers share."""

Route = tuple[Network, str]
"""A network that this host sends somewhere, and the route as people write it."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was said, checked."""

    range4: IPv4Network | None = DEFAULT_RANGE
    """None: no IPv4 addresses are given."""
    is_named: bool = False
    """Whether the user chose the IPv4 range, or a subnet of it."""
    range6: IPv6Network | None = None
    """None: none are given, or those of a range made from the cluster."""
    makes_range6: bool = True
    """Where `range6` is None: one is made from the cluster's id."""
    default_subnet: Network | None = None
    """None: the whole range."""
    init: str = CONSENSUS
    """Who makes the ring: CONSENSUS, SEED or OBSERVER."""
    hosts: int = 0
    """Of CONSENSUS=N; 0: as many as are named or known."""
    seeds: tuple[str, ...] = ()
    """Of SEED: peer names or nicknames."""
    lease_s: int = LEASE_DEFAULT_S
    instead: str = ""
    """Why `range4` is not the default one, although nobody named another; empty where it is."""

    @property
    def is_off(self) -> bool:
        return self.range4 is None and self.range6 is None and not self.makes_range6


def parse_range4(text: str) -> IPv4Network | str:
    """A network, or NONE."""
    if text == NONE:
        return NONE
    network = _range(text, 4)
    assert isinstance(network, IPv4Network)
    return network


def parse_range6(text: str) -> IPv6Network | str:
    """A network, or NONE."""
    if text == NONE:
        return NONE
    network = _range(text, 6)
    assert isinstance(network, IPv6Network)
    return network


def _range(text: str, version: int) -> Network:
    network = arguments.parse_cidr(text)
    shortest, longest = LENGTHS[version]
    if network.version != version:
        raise ValueError(f"{text!r} is not a range of IPv{version}: the other version has a setting of its own")
    if not shortest <= network.prefixlen <= longest:
        raise ValueError(f"{text!r} cannot be the range: an IPv{version} range is a /{shortest} to a /{longest}")
    return network


def parse_default_subnet(text: str) -> Network:
    network = arguments.parse_subnet(text)
    if network is None:
        raise ValueError(f"{text!r} is what is to be set here: name a network, such as 10.32.0.0/16")
    return network


def parse_init(text: str) -> tuple[str, int, tuple[str, ...]]:
    """Who makes the ring, of how many hosts, and which."""
    kind, equals, rest = text.partition("=")
    if kind == CONSENSUS and not equals:
        return CONSENSUS, 0, ()
    if kind == CONSENSUS:
        if not (rest.isascii() and rest.isdigit() and len(rest) <= 5 and 1 <= int(rest) <= HOSTS_MAX):
            raise ValueError(f"{text!r} does not say of how many hosts: a number from 1 to {HOSTS_MAX}")
        return CONSENSUS, int(rest), ()
    if kind == OBSERVER and not equals:
        return OBSERVER, 0, ()
    if kind == SEED:
        seeds = tuple(dict.fromkeys(arguments.parse_nickname(name.strip()) for name in rest.split(",")))
        if len(seeds) > SEEDS_MAX:
            raise ValueError(f"{len(seeds)} seeds are too many: at most {SEEDS_MAX}, and three are plenty")
        return SEED, 0, seeds
    raise ValueError(f"{text!r} is none of consensus, consensus=N, seed=NAME,NAME,... and observer")


def parse_lease(text: str) -> int:
    """Seconds: `3600`, `90s`, `10m`, `1h`."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS_S else (text, "s")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise ValueError(f"{text!r} is not a time: it is written 3600, 90s, 10m or 1h")
    seconds = int(number) * _UNITS_S[unit]
    if not LEASE_MIN_S <= seconds <= LEASE_MAX_S:
        raise ValueError(f"{text!r} cannot be the lease: {LEASE_MIN_S}s at least, {LEASE_MAX_S // 3600}h at most")
    return seconds


def allocation(
    range4: IPv4Network | str | None,
    range6: IPv6Network | str | None,
    default_subnet: Network | None,
    init: tuple[str, int, tuple[str, ...]] | None,
    lease_s: int | None,
) -> Allocation:
    """All of it together, None where nothing was said. Raises `ValueError` where one part does not fit another."""
    kind, hosts, seeds = init or (CONSENSUS, 0, ())
    found = Allocation(
        range4=DEFAULT_RANGE if range4 is None else range4 if isinstance(range4, IPv4Network) else None,
        is_named=range4 is not None or (default_subnet is not None and default_subnet.version == 4),
        range6=range6 if isinstance(range6, IPv6Network) else None,
        makes_range6=range6 is None,
        default_subnet=default_subnet,
        init=kind,
        hosts=hosts,
        seeds=seeds,
        lease_s=lease_s or LEASE_DEFAULT_S,
    )
    if default_subnet is not None:
        _check_inside(default_subnet, found)
    return found


def _check_inside(subnet: Network, found: Allocation) -> None:
    whole = found.range4 if subnet.version == 4 else found.range6
    flag = "--ipalloc-range" if subnet.version == 4 else "--ipalloc-range6"
    if whole is None:
        raise ValueError(f"the default subnet {subnet} lies in no range: name one that contains it with {flag}")
    if not subnet.subnet_of(whole):  # type: ignore[arg-type]  # of one version
        raise ValueError(f"the default subnet {subnet} is not inside the range {whole}: name one that is, or {flag}")


def in_the_way(wanted: Network, host_routes: Iterable[Route]) -> str | None:
    """The route of this host that a range would collide with."""
    overlapping = (text for network, text in host_routes if _overlap(network, wanted))
    return next(overlapping, None)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def choose_range(named: bool, wanted: IPv4Network, host_routes: Iterable[Route]) -> IPv4Network:
    """`wanted`, or another where it collides and nobody `named` it. Raises `ValueError` where there is none."""
    routes = list(host_routes)
    route = in_the_way(wanted, routes)
    if route is None:
        return wanted
    if named:
        raise ValueError(_collides("--ipalloc-range", wanted, route))
    for candidate in CANDIDATES:
        if in_the_way(candidate, routes) is None:
            return candidate
    raise ValueError(
        f"every private range collides with a route of this host ({wanted} with {route}): remove one, or name a range "
        "with --ipalloc-range (none gives no IPv4 addresses)"
    )


def settle(told: Allocation, host_routes: Iterable[Route]) -> Allocation:
    """The same with a range that is this host's to use. Raises `ValueError` with one line that says which route is in
    the way."""
    routes = list(host_routes)
    if told.range6 is not None and (route := in_the_way(told.range6, routes)) is not None:
        raise ValueError(_collides("--ipalloc-range6", told.range6, route))
    if told.range4 is None:
        return told
    chosen = choose_range(told.is_named, told.range4, routes)
    if chosen == told.range4:
        return told
    instead = f"the default range {told.range4} collides with {in_the_way(told.range4, routes)} on this host"
    return replace(told, range4=chosen, instead=instead)


def _collides(flag: str, wanted: Network, route: str) -> str:
    return f"the range {wanted} collides with {route} on this host; name another with {flag}, or remove that first"
