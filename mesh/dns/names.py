"""The zone: which name has which addresses, and the other way round, out of what all hosts have said.

Pure. Endpoints come from the table of endpoints, page by page; names for bare addresses from a table of its own. A
name counts while its endpoint is not away, its host is in reach, and the address is not held by somebody else. The one
idea: a change marks names, and the next question for one of them builds its answer, so that a page costs what is on it
and a hundred thousand names cost nothing at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import chain, islice
from typing import NamedTuple

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import rows_untrusted
from mesh.arguments import parse_name
from mesh.dns.message import labels_of, wire_name
from mesh.endpoints import Address, Endpoint, EndpointTable, Place

NAMES_TABLE = "names"
ADDRESSES_MAX = 64
"""Of one name for bare addresses on one host."""

TOLD_MAX = 512
"""Addresses of one name and family that are told, the nearest: nobody tries more, and each costs every answer time."""
SORTED_MAX = 20_000
"""Names that are looked through for a list."""
FAR = 1 << 20
"""The rank of a host that nobody has measured the way to."""
_IPV4_TREE = wire_name("in-addr.arpa")
_IPV6_TREE = wire_name("ip6.arpa")


@dataclass(slots=True)
class Entry:
    """One name that exists. `groups` of packed addresses, nearest first; within one, none is nearer than another."""

    v4: tuple[tuple[bytes, ...], ...] = ()
    v6: tuple[tuple[bytes, ...], ...] = ()
    is_stale: bool = field(default=False, compare=False)
    """What was made of it must be made anew."""


class Bare(NamedTuple):
    """A name that some host says belongs to addresses, whoever has them."""

    owner: PeerName
    name: bytes
    addresses: tuple[bytes, ...]


class Row(NamedTuple):
    """One name at one address, for people."""

    name: bytes
    address: Address
    owner: PeerName
    target: str
    """Id of the endpoint; empty for a bare address."""


def encode_bare(name: str, addresses: Iterable[Address]) -> bytes:
    """A row of the table `names`: a msgpack list of a name relative to the domain and packed addresses."""
    row: bytes = msgpack.packb([name, [address.packed for address in addresses]])
    return row


def decode_bare_untrusted(row: bytes) -> tuple[str, tuple[bytes, ...]]:
    """Raises `ProtocolError`."""
    try:
        fields = msgpack.unpackb(
            row, raw=False, use_list=False, max_str_len=255, max_bin_len=16, max_array_len=ADDRESSES_MAX,
            max_map_len=0, max_ext_len=0,
        )  # fmt: skip
        name, packed = fields
        if not isinstance(name, str) or not isinstance(packed, tuple):
            raise ValueError("a name and a list of addresses expected")
        if not all(isinstance(each, bytes) and len(each) in (4, 16) for each in packed):
            raise ValueError("malformed address")
        return parse_name(name), packed
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("bad-name", f"row of names: {error}") from None


class Zone:
    """All names under one domain, as one host knows them."""

    def __init__(self, domain: str, own: PeerName, table: EndpointTable, rank: Callable[[PeerName], int]) -> None:
        """`domain` with or without its final dot; `rank` tells how near a host is, small is near."""
        self.domain = wire_name(domain)
        self.serial = 1
        """Rises with every change."""
        self.malformed = 0
        self.generation = 0
        """Rises when everything that was made of entries must be made anew."""
        self._suffix = "." + domain.lower().removesuffix(".")
        self._own = own
        self._table = table
        self._rank = rank
        self._reachable: frozenset[PeerName] = frozenset()
        self._pages: dict[Place, tuple[tuple[Endpoint, tuple[bytes, ...]], ...]] = {}
        self._bare_pages: dict[Place, tuple[Bare, ...]] = {}
        self._endpoints: dict[bytes, tuple[Endpoint, ...]] = {}
        self._bare: dict[bytes, tuple[Bare, ...]] = {}
        self._bare_of: dict[bytes, tuple[Bare, ...]] = {}
        """By packed address."""
        self._below: dict[bytes, set[bytes]] = {}
        """By each name between a name and the domain: it exists too, with nothing at it (RFC 4592, section 2.2.2)."""
        self._built: dict[bytes, Entry] = {}

    # -- what changed ------------------------------------------------------------------------------

    def page_changed(self, place: Place) -> None:
        """A page of endpoints has other rows than before."""
        before = self._pages.get(place, ())
        known = {id(endpoint): names for endpoint, names in before}
        was = dict(known)
        found = [(each, known.pop(id(each), None)) for each in self._table.on_page(place)]
        page = tuple((each, self._names_of(each) if names is None else names) for each, names in found)
        for endpoint, names in before:
            if id(endpoint) in known:
                for name in names:
                    self._endpoints[name] = tuple(e for e in self._endpoints[name] if e is not endpoint)
                    self._left(name, self._endpoints)
                self._mark_rivals(endpoint)
        for endpoint, names in page:
            if id(endpoint) not in was:
                for name in names:
                    self._endpoints[name] = (*self._endpoints.get(name, ()), endpoint)
                    self._came(name)
                self._mark_rivals(endpoint)
        if page:
            self._pages[place] = page
        else:
            self._pages.pop(place, None)

    def bare_page_untrusted(self, owner: PeerName, index: int, body: bytes) -> None:
        """The newest version of one page of the table `names`."""
        page: list[Bare] = []
        try:
            rows = rows_untrusted(body)
        except ProtocolError:
            rows = []
            self.malformed += 1
        for row in rows:
            try:
                text, addresses = decode_bare_untrusted(row)
            except ProtocolError:
                self.malformed += 1
                continue
            if (name := self.qualify(text)) is not None:
                page.append(Bare(owner, name, addresses))
        self._replace_bare((owner, index), tuple(page))

    def _replace_bare(self, place: Place, page: tuple[Bare, ...]) -> None:
        before = self._bare_pages.pop(place, ())
        for bare in before:
            self._bare[bare.name] = tuple(each for each in self._bare[bare.name] if each is not bare)
            for address in dict.fromkeys(bare.addresses):
                self._bare_of[address] = tuple(each for each in self._bare_of[address] if each is not bare)
                if not self._bare_of[address]:
                    del self._bare_of[address]
            self._left(bare.name, self._bare)
        for bare in page:
            self._bare[bare.name] = (*self._bare.get(bare.name, ()), bare)
            for address in dict.fromkeys(bare.addresses):
                self._bare_of[address] = (*self._bare_of.get(address, ()), bare)
            self._came(bare.name)
        if page:
            self._bare_pages[place] = page

    def forget(self, owner: PeerName) -> None:
        """An owner's documents are gone; the table of endpoints has forgotten it already."""
        for place in [place for place in self._pages if place[0] == owner]:
            self.page_changed(place)
        for place in [place for place in self._bare_pages if place[0] == owner]:
            self._replace_bare(place, ())

    def set_reachable(self, reachable: Collection[PeerName]) -> None:
        """Names of hosts out of reach do not count."""
        now = frozenset(reachable)
        changed, self._reachable = now ^ self._reachable, now
        if not changed:
            return
        for (owner, _), page in self._pages.items():
            if owner in changed:
                for _, names in page:
                    self._mark(*names)
        for (owner, _), bares in self._bare_pages.items():
            if owner in changed:
                self._mark(*(bare.name for bare in bares))

    def measure_again(self) -> None:
        """Who is near may have changed."""
        self._built.clear()
        self.generation += 1

    def _came(self, name: bytes) -> None:
        for above in self._between(name):
            self._below.setdefault(above, set()).add(name)
        self._mark(name)

    def _left(self, name: bytes, index: dict[bytes, tuple[Endpoint, ...]] | dict[bytes, tuple[Bare, ...]]) -> None:
        if not index[name]:
            del index[name]
        if name not in self._endpoints and name not in self._bare:
            for above in self._between(name):
                self._below[above].discard(name)
                if not self._below[above]:
                    del self._below[above]
        self._mark(name)

    def _mark(self, *names: bytes) -> None:
        self.serial += 1
        for name in names:
            entry = self._built.pop(name, None)
            if entry is not None:
                entry.is_stale = True

    def _mark_rivals(self, endpoint: Endpoint) -> None:
        """Who claims the same addresses may hold them now, or hold them no more."""
        for binding in endpoint.bindings:
            for rival in self._table.claimants(binding.ip):
                if rival is not endpoint:
                    self._mark(*self._names_of(rival))

    def _between(self, name: bytes) -> list[bytes]:
        found = []
        at = 1 + name[0]
        while len(name) - at > len(self.domain):
            found.append(name[at:])
            at += 1 + name[at]
        return found

    # -- names -------------------------------------------------------------------------------------

    def relative(self, text: str) -> str | None:
        """A host name without our domain, in lower case: `web` for `web` and for `web.weft.local.`. None for a name
        under another domain. Raises ValueError for what is no host name."""
        name = parse_name(text)
        if name.endswith(self._suffix):
            return name.removesuffix(self._suffix)
        return name if "." not in name else None

    def qualify(self, text: str) -> bytes | None:
        """The whole name that a host means by `text`; None where it is none of ours. What other hosts call relative may
        have dots in it where it was given with its domain."""
        try:
            name = parse_name(text)
            return wire_name(name if name.endswith(self._suffix) else name + self._suffix)
        except (ValueError, UnicodeError):
            return None

    def is_ours(self, name: bytes) -> bool:
        """Whether it is the domain or under it. By labels: `xweft.local` is not."""
        return name.endswith(self.domain) and (name == self.domain or self.domain in _suffixes(name))

    def _names_of(self, endpoint: Endpoint) -> tuple[bytes, ...]:
        if endpoint.away:
            return ()
        found = (self.qualify(text) for text in (endpoint.called, *endpoint.names) if text)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    # -- what there is -----------------------------------------------------------------------------

    def lookup(self, name: bytes) -> Entry | None:
        """What a name has; None where it does not exist. An entry without addresses exists too."""
        entry = self._built.get(name)
        if entry is not None:
            return entry
        ranked: dict[bytes, int] = {}
        for address, owner, _ in self._holders(name):
            ranked[address] = min(self._rank_of(owner), ranked.get(address, FAR))
        if not ranked:
            exists = name == self.domain or any(self._exists(each) for each in self._below.get(name, ()))
            return Entry(is_stale=True) if exists else None
        entry = self._built[name] = Entry(_grouped(ranked, 4), _grouped(ranked, 16))
        return entry

    def _exists(self, name: bytes) -> bool:
        return next(self._holders(name), None) is not None

    def _holders(self, name: bytes) -> Iterator[tuple[bytes, PeerName, str]]:
        """Packed address, owner, and id of the endpoint."""
        for endpoint in self._endpoints.get(name, ()):
            if not self._counts(endpoint.owner):
                continue
            contested = self._table.is_contested(endpoint)
            for binding in endpoint.bindings:
                if not contested or self._table.holder(binding.ip) is endpoint:
                    yield binding.ip.packed, endpoint.owner, endpoint.id
        for bare in self._bare.get(name, ()):
            if self._counts(bare.owner):
                for address in bare.addresses:
                    yield address, bare.owner, ""

    def _counts(self, owner: PeerName) -> bool:
        return owner == self._own or owner in self._reachable

    def _rank_of(self, owner: PeerName) -> int:
        return -1 if owner == self._own else self._rank(owner)

    def names_at(self, address: Address) -> list[bytes]:
        """The names of an address, sorted."""
        holder = self._table.holder(address)
        found: list[bytes] = []
        if holder is not None and self._counts(holder.owner):
            found += self._names_of(holder)
        found += [bare.name for bare in self._bare_of.get(address.packed, ()) if self._counts(bare.owner)]
        return sorted(set(found))

    def is_held(self, address: Address) -> bool:
        """Whether it is some endpoint's, also one without a name, or of a host that is out of reach."""
        return self._table.holder(address) is not None

    def rows(self, most: int) -> list[Row]:
        """Everything that is answered, at most so much of it, in order."""
        found: list[Row] = []
        # Of a great many some are as good as others, and sorting all would take its time.
        names = islice(dict.fromkeys(chain(self._endpoints, self._bare)), SORTED_MAX)
        for name in sorted(names, key=lambda name: labels_of(name)[::-1]):
            for address, owner, target in self._holders(name):
                if len(found) >= most:
                    return found
                found.append(Row(name, ip_address(address), owner, target))
        return found

    def count_of(self, owner: PeerName) -> int:
        """Names that one host has said."""
        pages = (page for (each, _), page in self._pages.items() if each == owner)
        said = {name for page in pages for _, names in page for name in names}
        said.update(bare.name for (each, _), page in self._bare_pages.items() if each == owner for bare in page)
        return len(said)

    def __len__(self) -> int:
        """Names that somebody has said, whether they count now or not."""
        return len({*self._endpoints, *self._bare})


def _grouped(ranked: dict[bytes, int], length: int) -> tuple[tuple[bytes, ...], ...]:
    groups: dict[int, list[bytes]] = {}
    found = sorted((rank, address) for address, rank in ranked.items() if len(address) == length)
    for rank, address in found[:TOLD_MAX]:
        groups.setdefault(rank, []).append(address)
    return tuple(tuple(groups[rank]) for rank in sorted(groups))


def _suffixes(name: bytes) -> Iterator[bytes]:
    at = 0
    while name[at]:
        yield name[at:]
        at += 1 + name[at]
    yield name[at:]


# -- reverse names ---------------------------------------------------------------------------------


def reverse_address(name: bytes) -> Address | None:
    """The address that a whole name in `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 3.5, RFC 3596 2.5)."""
    if name.endswith(_IPV4_TREE):
        labels = labels_of(name)
        octets = [label.decode("ascii", errors="replace") for label in labels[:-2]][::-1]
        plain = all(octet.isascii() and octet.isdigit() and len(octet) <= 3 for octet in octets)
        if len(octets) == 4 and plain and all(int(o) < 256 and str(int(o)) == o for o in octets):
            return ip_address(".".join(octets))
    elif name.endswith(_IPV6_TREE):
        labels = labels_of(name)[:-2]
        if len(labels) == 32 and all(len(label) == 1 and label in b"0123456789abcdef" for label in labels):
            return ip_address(int(b"".join(labels[::-1]), 16).to_bytes(16, "big"))
    return None


def reverse_name(address: Address) -> bytes:
    return wire_name(address.reverse_pointer)
