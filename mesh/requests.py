"""What may be asked of the daemon, as values: parsed once at the door, so nothing malformed gets inside.

`parse_request` takes the bytes a client sent and returns one frozen value with every field of the right type, size and
form, or raises `ApiError`. What it cannot know (whether the peer, the namespace, the address exist) is for the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, NoReturn

from mesh import arguments
from mesh.attachment import ORDINARY, Inside, Sandbox
from mesh.cni import words as cni_words
from mesh.cni.words import CniRequest
from mesh.dns import words
from mesh.dns.words import DnsChange, DnsLookup
from mesh.errors import UserError
from mesh.ipam.wants import Claim, FromSubnet, Want

READS = ("status", "peers", "connections", "targets", "endpoints", "ipam", "dns", "ps", "report")

PING_COUNT_MAX = 100_000
PING_INTERVAL_MIN_S = 0.01
PING_INTERVAL_MAX_S = 60.0
PRIME_TIMEOUT_MAX_S = 86400 * 365
CNI_VERBS = ("cni-add", "cni-del", "cni-check", "cni-gc", "cni-status")


class ApiError(UserError):
    """A request that cannot be done. `code` is stable and for programs; the message is one line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Read:
    """A question that changes nothing: one of `READS`."""

    verb: str


@dataclass(frozen=True, slots=True)
class Connect:
    peers: tuple[str, ...]
    """As `arguments.format_peer` writes them; `arguments.split_peer` takes them apart."""
    replace: bool


@dataclass(frozen=True, slots=True)
class Forget:
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attach:
    target: str
    addresses: tuple[Want, ...]
    """Each once. None at all: what it has, or else one of the default subnet."""
    network: str
    labels: tuple[tuple[str, str], ...]
    """Sorted by key."""
    names: tuple[str, ...]
    dns: bool = True
    """Whether its names are told and answered."""
    mac: bytes | None = None
    """One that somebody chose."""
    inside: Inside = ORDINARY
    sandbox: Sandbox | None = None
    """What asked for it through CNI; `target` is a path then."""
    called: str | None = None
    """What that runtime calls it."""


@dataclass(frozen=True, slots=True)
class Detach:
    target: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    """None at all means all of them."""


@dataclass(frozen=True, slots=True)
class Expose:
    addresses: tuple[Want, ...]
    """Each once. None at all: what is exposed, or else one of the default subnet."""
    masquerade: bool


@dataclass(frozen=True, slots=True)
class Hide:
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    """None at all means all of them."""


@dataclass(frozen=True, slots=True)
class Ping:
    peer: str
    """A peer name or a nickname."""
    count: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Prime:
    timeout_s: float | None
    """None: for as long as somebody listens."""


@dataclass(frozen=True, slots=True)
class RemovePeers:
    peers: tuple[str, ...]
    """Peer names or nicknames."""
    force: bool
    """Those in reach too."""


@dataclass(frozen=True, slots=True)
class IpamJoin:
    ring: str | None
    """The first digits of its id; None where there is one only."""
    force: bool


@dataclass(frozen=True, slots=True)
class IpamExport:
    pass


@dataclass(frozen=True, slots=True)
class IpamImport:
    document: dict[str, Any]
    force: bool


@dataclass(frozen=True, slots=True)
class IpamCheck:
    repair: bool


IpamRequest = Prime | RemovePeers | IpamJoin | IpamExport | IpamImport | IpamCheck


@dataclass(frozen=True, slots=True)
class Stop:
    pass


@dataclass(frozen=True, slots=True)
class Reset:
    pass


DnsRequest = DnsChange | DnsLookup
Request = (
    Read | Connect | Forget | Attach | Detach | Expose | Hide | Ping
    | IpamRequest | DnsRequest | CniRequest | Stop | Reset
)


def parse_request(line: bytes) -> tuple[str, Request]:
    """The verb and the request of one line. Raises `ApiError` with code `bad-request`, or `unknown-verb`."""
    try:
        message = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError("bad-request", "the request is not one line of JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("verb"), str):
        raise ApiError("bad-request", 'the request is not an object with a "verb"')
    verb, args = message["verb"], message.get("args", {})
    parse = _PARSERS.get(verb)
    if parse is None:
        raise ApiError("unknown-verb", f"this daemon has no verb {verb[:64]!r}; are command and daemon one version?")
    if not isinstance(args, dict) or set(message) - {"verb", "args"}:
        raise ApiError("bad-request", f'{verb}: the request is not {{"verb": ..., "args": {{...}}}}')
    arguments_left = dict(args)
    try:
        request = parse(verb, arguments_left)
    except ValueError as error:
        raise ApiError("bad-request", f"{verb}: {error}") from None
    if arguments_left:
        raise ApiError("bad-request", f"{verb} takes no argument {min(arguments_left)[:64]!r}")
    return verb, request


# Each parser takes what it knows out of `args`; what is left over nobody knows.


def _parse_read(verb: str, args: dict[str, Any]) -> Request:
    return Read(verb)


def _parse_connect(verb: str, args: dict[str, Any]) -> Request:
    return Connect(_peers(args), take(args, "replace", bool, False))


def _parse_forget(verb: str, args: dict[str, Any]) -> Request:
    return Forget(_peers(args))


def _parse_attach(verb: str, args: dict[str, Any]) -> Request:
    target = arguments.parse_target(take(args, "target", str))
    addresses = _wants(args)
    labels = take(args, "labels", dict, {})
    if len(labels) > arguments.LABELS_MAX:
        raise ValueError(f"{len(labels)} labels are too many; at most {arguments.LABELS_MAX}")
    if not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("labels must be texts")
    names = [arguments.parse_name(name) for name in _texts(args, "names", arguments.NAMES_MAX)]
    dns = take(args, "dns", bool, True)
    arguments.check_names_told(names, dns)
    return Attach(
        target=target,
        addresses=addresses,
        network=arguments.parse_network(take(args, "network", str, arguments.DEFAULT_NETWORK)),
        labels=tuple(sorted(arguments.check_label(key, value) for key, value in labels.items())),
        names=tuple(dict.fromkeys(names)),
        dns=dns,
    )


def _parse_detach(verb: str, args: dict[str, Any]) -> Request:
    target = arguments.parse_target(take(args, "target", str))
    addresses = _texts(args, "addresses", arguments.ADDRESSES_MAX)
    return Detach(target, tuple(arguments.parse_addresses(addresses)))


def _parse_expose(verb: str, args: dict[str, Any]) -> Request:
    return Expose(_wants(args), take(args, "masquerade", bool, True))


def _parse_hide(verb: str, args: dict[str, Any]) -> Request:
    return Hide(tuple(arguments.parse_addresses(_texts(args, "addresses", arguments.ADDRESSES_MAX))))


def _parse_ping(verb: str, args: dict[str, Any]) -> Request:
    peer = arguments.parse_target(take(args, "peer", str))
    count = take(args, "count", int, 5)
    interval_s = float(take(args, "interval_s", (int, float), 1.0))
    if not 1 <= count <= PING_COUNT_MAX:
        raise ValueError(f"count must be from 1 to {PING_COUNT_MAX}")
    if not PING_INTERVAL_MIN_S <= interval_s <= PING_INTERVAL_MAX_S:
        raise ValueError(f"interval_s must be from {PING_INTERVAL_MIN_S} to {PING_INTERVAL_MAX_S}")
    return Ping(peer, count, interval_s)


def _parse_prime(verb: str, args: dict[str, Any]) -> Request:
    timeout_s = take(args, "timeout_s", (int, float, type(None)), None)
    if timeout_s is not None and not 0 <= timeout_s <= PRIME_TIMEOUT_MAX_S:
        raise ValueError(f"timeout_s must be from 0 to {PRIME_TIMEOUT_MAX_S}")
    return Prime(None if timeout_s is None else float(timeout_s))


def _parse_rmpeer(verb: str, args: dict[str, Any]) -> Request:
    peers = [arguments.parse_nickname(text) for text in _texts(args, "peers", arguments.PEERS_MAX)]
    if not peers:
        raise ValueError("no peer is named")
    return RemovePeers(tuple(dict.fromkeys(peers)), take(args, "force", bool, False))


def _parse_ipam_join(verb: str, args: dict[str, Any]) -> Request:
    ring = take(args, "ring", (str, type(None)), None)
    return IpamJoin(None if ring is None else arguments.parse_ring(ring), take(args, "force", bool, False))


def _parse_ipam_export(verb: str, args: dict[str, Any]) -> Request:
    return IpamExport()


def _parse_ipam_import(verb: str, args: dict[str, Any]) -> Request:
    return IpamImport(take(args, "document", dict), take(args, "force", bool, False))


def _parse_ipam_check(verb: str, args: dict[str, Any]) -> Request:
    return IpamCheck(take(args, "repair", bool, False))


def _parse_stop(verb: str, args: dict[str, Any]) -> Request:
    return Stop()


def _parse_reset(verb: str, args: dict[str, Any]) -> Request:
    return Reset()


def _parse_cni(verb: str, args: dict[str, Any]) -> Request:
    return cni_words.parse(verb, args, take)


_PARSERS: dict[str, Callable[[str, dict[str, Any]], Request]] = {
    **dict.fromkeys(READS, _parse_read),
    "connect": _parse_connect,
    "forget": _parse_forget,
    "attach": _parse_attach,
    "detach": _parse_detach,
    "expose": _parse_expose,
    "hide": _parse_hide,
    "ping": _parse_ping,
    "prime": _parse_prime,
    "rmpeer": _parse_rmpeer,
    "ipam-join": _parse_ipam_join,
    "ipam-export": _parse_ipam_export,
    "ipam-import": _parse_ipam_import,
    "ipam-check": _parse_ipam_check,
    "stop": _parse_stop,
    "reset": _parse_reset,
    "dns-add": words.parse_change,
    "dns-remove": words.parse_change,
    "dns-lookup": words.parse_lookup,
    **dict.fromkeys(CNI_VERBS, _parse_cni),
}


def _peers(args: dict[str, Any]) -> tuple[str, ...]:
    peers = [arguments.parse_peer(text) for text in _texts(args, "peers", arguments.PEERS_MAX)]
    if not peers:
        raise ValueError("no peer is named")
    return tuple(dict.fromkeys(peers))


def _wants(args: dict[str, Any]) -> tuple[Want, ...]:
    parsed = arguments.parse_wants(_texts(args, "addresses", arguments.ADDRESSES_MAX))
    return tuple(
        Claim(each) if isinstance(each, IPv4Interface | IPv6Interface) else FromSubnet(each) for each in parsed
    )


def _texts(args: dict[str, Any], key: str, most: int) -> list[str]:
    values: list[Any] = take(args, key, list, [])
    if len(values) > most:
        raise ValueError(f"{len(values)} {key} are too many; at most {most}")
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} must be texts")
    return values


_REQUIRED = object()


def take(args: dict[str, Any], key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
    """Take `key` out of `args`. `True` is no number here, although Python says so."""
    value = args.pop(key, default)
    if value is _REQUIRED:
        raise ValueError(f"{key} is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} has the wrong type")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
