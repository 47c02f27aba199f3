"""What the CNI plugin asks the daemon for, as values: parsed once at the door, like every other request. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any

from dataplane.desired import Route
from mesh import arguments
from mesh.attachment import Inside, Sandbox
from mesh.endpoints import TEXT_MAX_BYTES, Address
from mesh.ipam.wants import Claim, FromSubnet, Want

MTU_MIN, MTU_MAX = 68, 65535
RANGES_MAX = 16
"""Of one address, beside the first."""
ROUTES_MAX = 64


@dataclass(frozen=True, slots=True)
class CniAdd:
    """One interface in one namespace."""

    sandbox: Sandbox
    netns: str
    wants: tuple[Want, ...]
    bare: tuple[Address, ...]
    """Addresses that were asked for without their lengths."""
    bridge: tuple[IPv4Interface | IPv6Interface, ...]
    """What this host is to be exposed as; where none is named, as whatever is free in the networks of the container."""
    is_gateway: bool
    masquerade: bool
    inside: Inside
    overlay: str
    mac: bytes | None
    names: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    called: str | None


@dataclass(frozen=True, slots=True)
class CniDel:
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class CniCheck:
    sandbox: Sandbox
    netns: str
    addresses: frozenset[str]
    """With their lengths."""


@dataclass(frozen=True, slots=True)
class CniGc:
    network: str
    valid: frozenset[tuple[str, str]]
    """Container ids and names of interfaces."""


@dataclass(frozen=True, slots=True)
class CniStatus:
    gives: bool
    """Whether addresses have to come from us."""


CniRequest = CniAdd | CniDel | CniCheck | CniGc | CniStatus
Take = Callable[..., Any]
"""`requests.take`: one key out of the arguments, of the right type, or ValueError."""


def parse(verb: str, args: dict[str, Any], take: Take) -> CniRequest:
    """The request of a verb `cni-...`. Raises ValueError."""
    match verb:
        case "cni-status":
            return CniStatus(take(args, "gives", bool))
        case "cni-gc":
            valid = take(args, "valid", list)
            return CniGc(_short(take(args, "network", str)), frozenset(map(_pair, valid)))
        case "cni-del":
            return CniDel(_sandbox(args, take))
        case "cni-check":
            sandbox, netns = _sandbox(args, take), arguments.parse_target(take(args, "netns", str))
            return CniCheck(sandbox, netns, frozenset(map(str, take(args, "addresses", list))))
    return _parse_add(args, take)


def _parse_add(args: dict[str, Any], take: Take) -> CniAdd:
    sandbox, netns = _sandbox(args, take), arguments.parse_target(take(args, "netns", str))
    texts = _texts(args, "addresses", arguments.ADDRESSES_MAX, take)
    whole = [text for text in texts if "/" in text]
    wants: list[Want] = [Claim(each) for each in arguments.parse_addresses(whole)]
    wants += [_set(each) for each in take(args, "ranges", list)[: arguments.ADDRESSES_MAX]]
    mtu = take(args, "mtu", (int, type(None)), None)
    if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
        raise ValueError(f"mtu {mtu} is not from {MTU_MIN} to {MTU_MAX}")
    mac = take(args, "mac", (str, type(None)), None)
    names = [arguments.parse_name(text) for text in _texts(args, "names", arguments.NAMES_MAX, take)]
    labels = take(args, "labels", dict)
    overlay = take(args, "overlay", (str, type(None)), None) or arguments.DEFAULT_NETWORK
    return CniAdd(
        sandbox=sandbox,
        netns=netns,
        wants=tuple(dict.fromkeys(wants)),
        bare=tuple(_address(text) for text in texts if "/" not in text),
        bridge=tuple(arguments.parse_addresses(_texts(args, "bridge_addresses", arguments.ADDRESSES_MAX, take))),
        is_gateway=take(args, "is_gateway", bool),
        masquerade=take(args, "masquerade", bool),
        inside=Inside(
            ifname=sandbox.ifname,
            leads_out=take(args, "leads_out", bool),
            gateways=_gateways(_texts(args, "gateways", ROUTES_MAX, take)),
            routes=tuple(map(_route, take(args, "routes", list)[:ROUTES_MAX])),
            hairpin=take(args, "hairpin", bool),
            mtu=mtu,
        ),
        overlay=arguments.parse_network(overlay),
        mac=None if mac is None else arguments.parse_mac(mac),
        names=tuple(dict.fromkeys(names)),
        labels=tuple(sorted(arguments.check_label(str(key), str(value)) for key, value in labels.items())),
        called=_called(take(args, "called", (str, type(None)), None)),
    )


def _sandbox(args: dict[str, Any], take: Take) -> Sandbox:
    return Sandbox(*(_short(take(args, key, str)) for key in ("network", "container", "ifname")))


def _short(text: str) -> str:
    if not text or len(text.encode()) > TEXT_MAX_BYTES or not text.isprintable():
        raise ValueError(f"{text[:40]!r} is not a name of at most {TEXT_MAX_BYTES} bytes")
    return text


def _called(text: str | None) -> str | None:
    """Cut only where it is too long for the name of a host, so that no other name comes of it."""
    return None if text is None else _short(text.encode(errors="replace")[:TEXT_MAX_BYTES].decode(errors="ignore"))


def _pair(value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("valid attachments are pairs of a container id and the name of an interface")
    return str(value[0]), str(value[1])


def _texts(args: dict[str, Any], key: str, most: int, take: Take) -> list[str]:
    values = take(args, key, list, [])
    if len(values) > most or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} are not texts, or more than {most}")
    return list(values)


def _set(value: Any) -> FromSubnet:
    """A range, with those that are as good."""
    first = _range(value)
    others = value.get("others") or []
    if not isinstance(others, list) or len(others) > RANGES_MAX:
        raise ValueError(f"a range has more than {RANGES_MAX} others in its place")
    return replace(first, others=tuple(map(_range, others)))


def _range(value: Any) -> FromSubnet:
    if not isinstance(value, dict) or not isinstance(value.get("subnet"), str):
        raise ValueError("a range has no subnet")
    subnet = arguments.parse_subnet(value["subnet"])
    assert subnet is not None
    first, last = (_address(value[key]) if value.get(key) else None for key in ("first", "last"))
    for each in (first, last):
        if each is not None and each not in subnet:
            raise ValueError(f"{each} is not in the subnet {subnet} that it is to limit")
    if first is not None and last is not None and int(first) > int(last):
        raise ValueError(f"the range from {first} to {last} is empty")
    return FromSubnet(subnet, first, last)


def _address(text: Any) -> Address:
    try:
        return ip_address(str(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an address") from None


def _gateways(texts: list[str]) -> tuple[Address, ...]:
    """The first of each IP version."""
    found: dict[int, Address] = {}
    for text in texts:
        address = _address(text)
        found.setdefault(address.version, address)
    return tuple(found.values())


def _route(value: Any) -> Route:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a route is a network and perhaps a gateway")
    network = arguments.parse_cidr(str(value[0]))
    gateway = _address(value[1]) if value[1] is not None else None
    if gateway is not None and gateway.version != network.version:
        raise ValueError(f"a route to {network} cannot lead through {gateway}")
    return Route(network, gateway)
