"""What the command and the daemon say to each other about names: words to requests, answers to text.

Pure, and part of the command's process: the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from mesh import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Row = dict[str, Any]

DEFAULT_DOMAIN = "weft.local"
DNS_PORT = 53
VERBS = ("dns-add", "dns-remove", "dns-lookup")
SHOWN_MAX = 1000
"""Entries that `status dns` shows."""


@dataclass(frozen=True, slots=True)
class DnsChange:
    """Names for a container on this host, or for addresses whoever has them; not both."""

    add: bool
    names: tuple[str, ...]
    addresses: tuple[IPv4Address | IPv6Address, ...]
    target: str | None


@dataclass(frozen=True, slots=True)
class DnsLookup:
    name: str


def parse_domain(text: str) -> str:
    """In lower case, without its final dot."""
    domain = arguments.parse_name(text)
    if domain.endswith((".arpa", "localhost")) or domain == "arpa":
        raise ValueError(f"{text!r} cannot be the domain of containers: others rely on what it means")
    return domain


def parse_upstream(text: str) -> tuple[str, int]:
    """`10.0.0.2`, `10.0.0.2:5353`, `fd00::2`, `[fd00::2]:5353`."""
    host, port = arguments.split_peer(text)
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r} is not the address of a DNS server: 10.0.0.2, [fd00::2]:5353") from None
    return host, DNS_PORT if port is None else port


def change_words(verb: str, words: Sequence[str], names: Sequence[str]) -> Row:
    """The request of `dns-add` and `dns-remove`. Raises ValueError."""
    addresses = [found for word in words if (found := _address(word)) is not None]
    others = [word for word in words if _address(word) is None]
    if not names:
        raise ValueError(f"{verb}: which name? give it with -h NAME")
    if others and addresses:
        raise ValueError(f"{verb}: {others[0]} and addresses are both given; a name is a container's or an address's")
    if len(others) > 1:
        raise ValueError(f"{verb}: {others[1]!r} is too much: one TARGET, or addresses")
    return {
        "names": [arguments.parse_name(name) for name in names],
        "addresses": [str(address) for address in addresses],
        "target": others[0] if others else None,
    }


def _address(word: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(word.removeprefix("ip:").partition("/")[0])
    except ValueError:
        return None


def parse_change(verb: str, args: dict[str, Any]) -> DnsChange:
    """Takes what it knows out of `args`. Raises ValueError."""
    names, words, target = args.pop("names", []), args.pop("addresses", []), args.pop("target", None)
    for what, most in ((names, arguments.NAMES_MAX), (words, arguments.ADDRESSES_MAX)):
        if not isinstance(what, list) or len(what) > most or not all(isinstance(each, str) for each in what):
            raise ValueError("names and addresses must be lists of texts")
    if target is not None and not isinstance(target, str):
        raise ValueError("target has the wrong type")
    if not names:
        raise ValueError("no name is given")
    if (target is None) == (not words):
        raise ValueError("either a target or addresses must be given")
    read = _usable if verb == "dns-add" else ip_address  # what was ever added can be taken back
    addresses = tuple(dict.fromkeys(map(read, words)))
    checked = tuple(dict.fromkeys(arguments.parse_name(name) for name in names))
    return DnsChange(verb == "dns-add", checked, addresses, arguments.parse_target(target) if target else None)


def _usable(word: str) -> IPv4Address | IPv6Address:
    address = ip_address(word)
    no_host = address.is_multicast or address.is_unspecified or address.is_loopback or address == arguments.EVERYBODY
    if no_host or "%" in word:
        raise ValueError(f"{word} is not an address that others can reach")
    return address


def parse_lookup(verb: str, args: dict[str, Any]) -> DnsLookup:
    name = args.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("name is missing")
    if _address(name) is not None:
        return DnsLookup(name)
    return DnsLookup(arguments.parse_name(name))


def lookup_text(answer: Row) -> str:
    return "\n".join(answer.get("addresses") or answer.get("names") or [])


def status_text(
    answer: Row, table: Callable[[Iterable[tuple[str, ...]]], list[str]], clean: Callable[[Any], str]
) -> str:
    """`table` aligns columns, `clean` makes a cell of a value."""
    if not answer.get("enabled"):
        return "DNS is off on this host (launched with --no-dns)"
    upstreams = ", ".join(map(clean, answer.get("upstreams") or [])) or "none: only our own names are answered"
    facts = [
        ("  domain", clean(answer.get("domain"))),
        ("  server", f"{clean(answer.get('address'))} and {clean(answer.get('address6'))}, on this host only"),
        ("  upstreams", f"{upstreams} ({clean(answer.get('upstreams_from'))})"),
        ("  names", f"{clean(answer.get('names'))}, {clean(answer.get('own_names'))} of them of this host"),
        ("  asked", _counted(answer.get("counters") or {}, clean)),
    ]
    lines = table(facts)
    for warning in answer.get("warnings") or []:
        lines.append(f"  {clean(warning.get('code'))}: {clean(warning.get('text'))}")
        if warning.get("cure"):
            lines.append(f"      cure: {clean(warning['cure'])}")
    rows = [
        (clean(row.get("name")), clean(row.get("address")), "this host" if row.get("local") else
         clean(row.get("nickname") or row.get("peer")), clean(row.get("target")))
        for row in answer.get("entries") or []
    ]  # fmt: skip
    if rows:
        lines += ["", *table([("NAME", "ADDRESS", "PEER", "TARGET"), *rows])]
    if answer.get("more"):
        lines.append(f"and {clean(answer['more'])} more; weft dns-lookup NAME finds one")
    return "\n".join(lines)


def _counted(counters: Row, clean: Callable[[Any], str]) -> str:
    shown = ", ".join(f"{clean(value)} {clean(name).replace('-', ' ')}" for name, value in counters.items() if value)
    return shown or "nothing yet"
