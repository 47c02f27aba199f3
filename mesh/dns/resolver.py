"""The server's mind: the bytes of a query in, the bytes of its answer out, or a question for somebody else.

Pure but for the order in which equals are told, which a Random decides. Knows the zone, and nothing of sockets or of
who asks. The one idea: an answer depends on all of a query but its first two bytes, so answers are kept by the rest,
each with the entry it was made of, and are good until the zone says that the entry is stale. What is asked again costs
a look into a dictionary; only where a name has several addresses is the answer put together anew, in another order.

Answers about our names may be kept for one second: a container that went is not asked for again after that, and nobody
gains from more, as the server is on the same host.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random
from typing import Final

from mesh.dns import message
from mesh.dns.message import BadQueryError, Query
from mesh.dns.names import Entry, Zone, reverse_address
from mesh.endpoints import Address

TTL_S: Final = 1
CACHE_MAX: Final = 32_768
"""Answers kept, 5 to 10 MB. A full cache is emptied: what is asked for fills it again in no time."""
OWN_V4: Final = IPv4Address("169.254.6.53")
"""The server's address on every host: link-local, so that it is nobody's anywhere and needs no route (RFC 3927)."""
OWN_V6: Final = IPv6Address("fe80::6:53")
NAMESERVER_LABEL: Final = b"\x02ns"
_LINK_LOCAL: Final = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))
_ADDRESS_TYPES: Final = frozenset({message.A, message.AAAA, message.ANY})


@dataclass(frozen=True, slots=True)
class Forward:
    """Not for us to answer."""

    query: Query


@dataclass(slots=True)
class _Kept:
    """An answer, but for its first two bytes."""

    entry: Entry
    generation: int
    rest: bytes
    head: bytes
    groups: tuple[tuple[bytes, ...], ...]
    """Records to shuffle between `head` and `tail`; none where `rest` is the whole answer."""
    tail: bytes


class Resolver:
    """Answers what the zone knows."""

    def __init__(self, zone: Zone, random: Random, *, forwards: bool = True) -> None:
        self.zone = zone
        self.counters: Counter[str] = Counter()
        self._random = random
        self._forwards = forwards
        self._kept: dict[bytes, _Kept] = {}
        self._kept_tcp: dict[bytes, _Kept] = {}

    def answer_untrusted(self, data: bytes, tcp: bool = False) -> bytes | Forward | None:
        """None: nothing is to be said. Never raises."""
        kept = (self._kept_tcp if tcp else self._kept).get(data[2:])
        if kept is not None and not kept.entry.is_stale and kept.generation == self.zone.generation:
            self.counters["answered"] += 1
            if not kept.groups:
                return data[:2] + kept.rest
            return data[:2] + self._shuffled(kept)
        try:
            query = message.parse_query_untrusted(data)
        except BadQueryError as error:
            self.counters[f"bad-{error.reason}"] += 1
            return message.refuse(data, error)
        return self._answer(query, data, tcp)

    def _shuffled(self, kept: _Kept) -> bytes:
        parts = [kept.head]
        for group in kept.groups:
            if len(group) == 1:
                parts.append(group[0])
            elif len(group) == 2:
                parts += group if self._random.random() < 0.5 else group[::-1]
            else:
                parts += self._random.sample(group, len(group))
        parts.append(kept.tail)
        return b"".join(parts)

    def _answer(self, query: Query, data: bytes, tcp: bool) -> bytes | Forward:
        zone = self.zone
        if query.klass not in (message.IN, message.ANY):
            return self._said("refused", query, message.REFUSED, tcp)
        if zone.is_ours(query.name):
            return self._ours(query, query.name, data, tcp)
        if query.type in _ADDRESS_TYPES and query.name != b"\0" and query.name[1 + query.name[0]] == 0:
            whole = query.name[:-1] + zone.domain  # of one label: a container's, before it is anybody else's
            if len(whole) <= message.NAME_MAX_BYTES and zone.lookup(whole) is not None:
                return self._ours(query, whole, data, tcp)
        if (address := reverse_address(query.name)) is not None:
            found = self._reverse(query, address, tcp)
            if found is not None:
                return found
        if not self._forwards or not query.recursion_desired:
            return self._said("refused", query, message.REFUSED, tcp)
        return Forward(query)

    def _ours(self, query: Query, name: bytes, data: bytes, tcp: bool) -> bytes:
        zone, most = self.zone, query.most_bytes(tcp)
        entry = zone.lookup(name)
        soa = message.soa(zone.domain, TTL_S, zone.serial)
        if entry is None:
            self.counters["no-such-name"] += 1
            return message.respond(query, message.NXDOMAIN, (), soa, authoritative=True, most=most)
        groups: list[tuple[bytes, ...]] = []
        if query.type in (message.A, message.ANY):
            groups += [tuple(message.record(message.A, TTL_S, each) for each in group) for group in entry.v4]
        if query.type in (message.AAAA, message.ANY):
            groups += [tuple(message.record(message.AAAA, TTL_S, each) for each in group) for group in entry.v6]
        if query.type in (message.SOA, message.ANY) and name == zone.domain:
            groups.append((soa,))
        records = [each for group in groups for each in group]
        self.counters["answered" if records else "no-data"] += 1
        answer = message.respond(
            query, message.NOERROR, records, b"" if records else soa, authoritative=True, most=most
        )
        if len(records) > 1:
            answer = self._several(query, entry, groups, data, tcp)
        elif records and not entry.is_stale:
            self._keep(data, tcp, _Kept(entry, zone.generation, answer[2:], b"", (), b""))
        return answer

    def _several(self, query: Query, entry: Entry, groups: list[tuple[bytes, ...]], data: bytes, tcp: bool) -> bytes:
        """Shuffled, and kept where all of them fit: only then is every order of the same length."""
        most = query.most_bytes(tcp)
        mixed = [each for group in groups for each in self._random.sample(group, len(group))]
        answer = message.respond(query, message.NOERROR, mixed, authoritative=True, most=most)
        length = sum(map(len, mixed))
        start = message.HEADER.size + len(query.question)
        is_whole = answer[start : start + length] == b"".join(mixed)
        if is_whole and not entry.is_stale:
            head, tail = answer[2:start], answer[start + length :]
            self._keep(data, tcp, _Kept(entry, self.zone.generation, b"", head, tuple(groups), tail))
        return answer

    def _keep(self, data: bytes, tcp: bool, kept: _Kept) -> None:
        cache = self._kept_tcp if tcp else self._kept
        if len(cache) >= CACHE_MAX:
            cache.clear()
        cache[data[2:]] = kept

    def _reverse(self, query: Query, address: Address, tcp: bool) -> bytes | None:
        most = query.most_bytes(tcp)
        names = self.zone.names_at(address)
        if address in (OWN_V4, OWN_V6):
            names = [NAMESERVER_LABEL + self.zone.domain]
        soa = message.soa(query.name, TTL_S, self.zone.serial)
        if not names:
            # Nobody else knows our endpoints; and link-local means nothing beyond its link (RFC 6303, 4.5).
            if self.zone.is_held(address) or any(address in network for network in _LINK_LOCAL):
                self.counters["no-such-name"] += 1
                return message.respond(query, message.NXDOMAIN, (), soa, authoritative=True, most=most)
            return None
        records = []
        if query.type in (message.PTR, message.ANY):
            records = [message.record(message.PTR, TTL_S, name) for name in names]
        self.counters["answered" if records else "no-data"] += 1
        return message.respond(query, message.NOERROR, records, b"" if records else soa, authoritative=True, most=most)

    def _said(self, counter: str, query: Query, rcode: int, tcp: bool) -> bytes:
        self.counters[counter] += 1
        return message.respond(query, rcode, authoritative=False, most=query.most_bytes(tcp))

    def failed(self, query: Query, tcp: bool) -> bytes:
        """What is said where nobody else had an answer."""
        return self._said("failed", query, message.SERVFAIL, tcp)
