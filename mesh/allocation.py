"""How addresses are allocated on this host: what the flags `--ipalloc-*` say, and which range collides with what.

Every function takes text or values and returns the one form that the rest uses, or raises `ValueError` with one line
that says what is wrong and what would be right. Knows nothing of rings, leases, or who else there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

NO_RANGE = "none"
AUTOMATIC6 = IPv6Network("fd00::/8")
"""Stands for a /64 that is made from the cluster's id."""
DEFAULT_RANGE = IPv4Network("10.32.0.0/12")
CONSENSUS, SEED, OBSERVER = "consensus", "seed", "observer"

LENGTHS4 = (8, 29)
LENGTHS6 = (64, 112)
SUBNET_LEAST = 4
SEEDS_MAX = 32
EXPECTED_MAX = 1000
LEASE_DEFAULT_S = 3600
LEASE_MIN_S = 30
LEASE_MAX_S = 12 * 3600
_UNITS = {"s": 1, "m": 60, "h": 3600}

_OTHERS = ("10.64.0.0/12", "10.96.0.0/12", "10.128.0.0/12", "10.160.0.0/12", "10.192.0.0/12", "10.224.0.0/12",
           "172.24.0.0/14", "172.16.0.0/14", "100.64.0.0/12", "192.168.128.0/18", "198.18.0.0/15")  # fmt: skip
"""Tried in this order where the default collides and the user named none."""


@dataclass(frozen=True, slots=True)
class Init:
    """How the first ring comes about."""

    kind: str = CONSENSUS
    expected: int = 0
    """Peers to count on; 0: those named at launch, or known."""
    seeds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one launch says of allocation."""

    range4: IPv4Network | None = DEFAULT_RANGE
    range6: IPv6Network | None = AUTOMATIC6
    is_named: bool = False
    """Whether the user chose the IPv4 range."""
    default: Network | None = None
    init: Init = Init()
    lease_s: int = LEASE_DEFAULT_S


def parse_range(text: str) -> IPv4Network | None:
    if text == NO_RANGE:
        return None
    network = _network(text, "--ipalloc-range")
    if not isinstance(network, IPv4Network):
        raise ValueError(f"{text!r} is an IPv6 range: give it with --ipalloc-range6")
    return _check(network, LENGTHS4)  # type: ignore[return-value]


def parse_range6(text: str) -> IPv6Network | None:
    if text == NO_RANGE:
        return None
    network = _network(text, "--ipalloc-range6")
    if not isinstance(network, IPv6Network):
        raise ValueError(f"{text!r} is an IPv4 range: give it with --ipalloc-range")
    return _check(network, LENGTHS6)  # type: ignore[return-value]


def parse_subnet(text: str) -> Network:
    """A subnet to give addresses from."""
    network = _network(text, "a subnet")
    if network.num_addresses < SUBNET_LEAST:
        raise ValueError(f"{network} has {network.num_addresses} addresses; a subnet has {SUBNET_LEAST} at least")
    return network


def parse_init(text: str) -> Init:
    kind, equals, value = text.partition("=")
    if kind == CONSENSUS:
        if not equals:
            return Init()
        if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= EXPECTED_MAX):
            raise ValueError(f"{text!r}: consensus=N counts on N peers, a number from 1 to {EXPECTED_MAX}")
        return Init(expected=int(value))
    if kind == SEED:
        seeds = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        if not seeds or len(seeds) > SEEDS_MAX:
            raise ValueError(
                f"{text!r}: seed=NAME,NAME names 1 to {SEEDS_MAX} peers by name or nickname, alike everywhere"
            )
        return Init(SEED, seeds=seeds)
    if text == OBSERVER:
        return Init(OBSERVER)
    raise ValueError(f"{text!r} is not a way to begin: it is consensus, consensus=N, seed=NAME,NAME,... or observer")


def parse_lease(text: str) -> int:
    """Seconds; `90s`, `10m` and `1h` are understood."""
    unit = _UNITS.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    seconds = int(digits) * (unit or 1) if digits.isascii() and digits.isdigit() and len(digits) <= 6 else 0
    if not LEASE_MIN_S <= seconds <= LEASE_MAX_S:
        raise ValueError(
            f"{text!r} is not a lease: a time from {LEASE_MIN_S} s to {LEASE_MAX_S // 3600} h, as 90s, 10m or 1h"
        )
    return seconds


def check_default(allocation: Allocation) -> None:
    """The default subnet lies in its range."""
    subnet = allocation.default
    if subnet is None:
        return
    whole = allocation.range4 if subnet.version == 4 else allocation.range6
    if whole is None or (whole != AUTOMATIC6 and not subnet.subnet_of(whole)):  # type: ignore[arg-type]
        raise ValueError(f"the default subnet {subnet} is not inside the range {whole or 'none'}")
    if whole == AUTOMATIC6:
        raise ValueError(f"the default subnet {subnet} needs an IPv6 range that is named: give --ipalloc-range6 too")


def choose_range(allocation: Allocation, collision: Callable[[Network], str | None]) -> tuple[IPv4Network | None, str]:
    """The IPv4 range to use, and what was in the way of the default one, if anything was. `collision` says which route
    or address of this host a network collides with. Raises `ValueError` where a range that the user named does."""
    wanted = allocation.range4
    if wanted is None:
        return None, ""
    found = collision(wanted)
    if found is None:
        return wanted, ""
    cure = "name another with --ipalloc-range, or remove that"
    if allocation.is_named or allocation.default is not None:
        raise ValueError(f"the range {wanted} collides with {found} on this host; {cure}")
    for text in _OTHERS:
        other = IPv4Network(text)
        if collision(other) is None:
            return other, found
    raise ValueError(
        f"the default range {wanted} collides with {found} on this host, and so do all that were tried; {cure}"
    )


def _network(text: str, what: str) -> Network:
    example = "10.32.0.0/12 or fd00:32::/64"
    length = text.rpartition("/")[2]
    if "/" not in text or not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} is not {what}: it is written as an address and a length, {example}")
    try:
        loose = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}: it is written as an address and a length, {example}") from None
    if (
        "%" in text
        or loose.is_loopback
        or loose.is_multicast
        or loose.is_link_local
        or loose.network_address.is_unspecified
    ):
        raise ValueError(f"{text!r} cannot be used: its addresses are not those of hosts")
    if str(loose.network_address) != str(ip_network(text.partition("/")[0]).network_address):
        raise ValueError(f"{text!r} has bits beyond its length: was {loose} meant?")
    return loose


def _check(network: Network, lengths: tuple[int, int]) -> Network:
    low, high = lengths
    if not low <= network.prefixlen <= high:
        raise ValueError(f"{network} has a length of /{network.prefixlen}; a range has one from /{low} to /{high}")
    return network
