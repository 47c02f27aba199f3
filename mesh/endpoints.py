"""The endpoint table: every attached interface of every host, and who holds which address.

Each host publishes rows for its own endpoints only; this table puts them together. An address belongs to the endpoint
with the highest *claim*, a number one above every claim that the claimant had seen; equal claims go to the lower peer
name. So whoever attached last in knowledge of the other wins, all hosts agree without asking, and a late delete of an
old binding removes only that binding. A MAC that two endpoints have belongs to the one that holds its address; the
other one's host sees that and takes a new MAC. Knows nothing of the kernel, of reach, or of how rows travel.

A row is a msgpack list: id, MAC, addresses (each packed address, prefix length, claim), names, labels, network; after
that `true` while its container is away, which changes nothing about what is its own; and the host name that it has by
being called so.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any, NamedTuple

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import rows_untrusted

ENDPOINTS_TABLE = "endpoints"
ADDRESSES_MAX = 64
NAMES_MAX = 64
LABELS_MAX = 64
TEXT_MAX_BYTES = 512
CLAIM_MAX = (1 << 63) - 1
EXPOSED_ID = "weft:expose"
"""Id of the endpoint that is a host itself; its MAC is that of the host's bridge."""
Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

_ENDPOINT_MAC = 0x02
_BRIDGE_MAC = 0x06
"""First bytes of the MACs that we make: both say "locally administered, one receiver", and no bit of the rest is needed
to tell an endpoint's from a bridge's."""
_MAPPED = bytes(10) + b"\xff\xff"
_NOT_OF_ONE_HOST = frozenset({bytes(4), b"\xff" * 4, bytes(16), bytes(15) + b"\x01"})


@dataclass(frozen=True, slots=True)
class Binding:
    """One address of an endpoint, with the claim that it is held by."""

    ip: Address
    length: int
    """Of the prefix, in bits."""
    claim: int

    @property
    def interface(self) -> Interface:
        return ip_interface((self.ip, self.length))

    def __str__(self) -> str:
        return f"{self.ip}/{self.length}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One attached interface."""

    owner: PeerName
    id: str
    """What the user called it: a namespace's name or path, a pid."""
    mac: bytes
    bindings: tuple[Binding, ...]
    names: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    network: str = "weft"
    away: bool = False
    """Its container is not running and may come back."""
    called: str = ""
    """The host name that it has by what its container is called; empty where it has none."""

    @property
    def is_host(self) -> bool:
        """Whether it is the host itself and no container of it."""
        return self.mac == bridge_mac(self.owner)

    def release(self, address: Interface | str) -> str:
        """The command by which its host lets go of an address."""
        return f"weft hide {address}" if self.is_host else f"weft detach {address} {self.id}"


def encode_row(endpoint: Endpoint) -> bytes:
    addresses = [(binding.ip.packed, binding.length, binding.claim) for binding in endpoint.bindings]
    row: bytes = msgpack.packb(
        [endpoint.id, endpoint.mac, addresses, endpoint.names, endpoint.labels, endpoint.network]
        + ([endpoint.away] if endpoint.away or endpoint.called else [])
        + ([endpoint.called] if endpoint.called else [])
    )
    return row


def decode_row_untrusted(owner: PeerName, row: bytes) -> Endpoint:
    """The endpoint in a row. Raises `ProtocolError` for anything that no honest host publishes."""
    try:
        fields = msgpack.unpackb(
            row, raw=False, use_list=False, strict_map_key=True, max_str_len=TEXT_MAX_BYTES, max_bin_len=16,
            max_array_len=ADDRESSES_MAX, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
        return _endpoint(owner, fields)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("bad-endpoint", f"endpoint row: {error}") from None


def _endpoint(owner: PeerName, fields: Any) -> Endpoint:
    if not isinstance(fields, tuple) or len(fields) < 6:
        raise ValueError("not a list of six fields")
    name, mac, addresses, names, labels, network = fields[:6]
    if not isinstance(mac, bytes) or len(mac) != 6 or mac[0] & 1 or mac == bytes(6):
        raise ValueError("not the MAC of an endpoint")
    if mac[0] == _BRIDGE_MAC and mac != bridge_mac(owner):  # its own it has where it is exposed
        raise ValueError("the MAC of another host")
    if not all(isinstance(each, tuple) for each in (addresses, names, labels)):
        raise ValueError("lists expected")
    if not all(_is_text(text) for text in (name, network, *names)) or len(names) > NAMES_MAX:
        raise ValueError("malformed names")
    if len(labels) > LABELS_MAX or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in labels
    ):
        raise ValueError("malformed labels")
    bindings = tuple(map(_binding, addresses))
    if len({fields[0] for fields in addresses}) != len(addresses):
        raise ValueError("an address twice")
    called = fields[7] if len(fields) > 7 else ""
    if not _is_text(called):
        raise ValueError("malformed name")
    away = len(fields) > 6 and fields[6] is True
    return Endpoint(owner, name, mac, bindings, names, labels, network, away, called)


def _binding(fields: Any) -> Binding:
    if not isinstance(fields, tuple) or len(fields) != 3:
        raise ValueError("an address is not a list of three fields")
    packed, length, claim = fields
    if not isinstance(packed, bytes) or len(packed) not in (4, 16):
        raise ValueError("malformed address")
    if type(length) is not int or not 0 <= length <= 8 * len(packed):
        raise ValueError("malformed prefix length")
    if type(claim) is not int or not 0 <= claim <= CLAIM_MAX:
        raise ValueError("malformed claim")
    if not _is_of_one_host(packed):
        raise ValueError("not an address that a container can have")
    return Binding(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed), length, claim)


def _is_of_one_host(packed: bytes) -> bool:
    """Not multicast, unspecified, broadcast, loopback or an IPv4 address in IPv6's clothes. By bytes: it is asked for
    every address of the mesh."""
    if packed in _NOT_OF_ONE_HOST:
        return False
    if len(packed) == 4:
        return packed[0] != 127 and packed[0] & 0xF0 != 0xE0
    return packed[0] != 0xFF and not packed.startswith(_MAPPED)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def derive_mac(network: str, first: Address, salt: int = 0) -> bytes:
    """The MAC of an endpoint: made from its first address, so that it moves along and caches stay true."""
    seed = f"{network} {first} {salt}".encode()
    return bytes((_ENDPOINT_MAC,)) + hashlib.sha256(b"weft endpoint mac\x00" + seed).digest()[:5]


def bridge_mac(peer: PeerName) -> bytes:
    """The MAC of a host's bridge, made from its peer name, so that everybody knows it."""
    return bytes((_BRIDGE_MAC,)) + peer[:5]


Place = tuple[PeerName, int]
"""An owner, and one of its pages."""


class _User(NamedTuple):
    """Who has a MAC."""

    page: int
    endpoint: Endpoint


class _Claim(NamedTuple):
    """Sorts by who wins. No two are equal before the last field: a row has an address once."""

    strength: int
    """The claim, negated: the strongest comes first."""
    owner: PeerName
    page: int
    row: bytes
    endpoint: Endpoint


class EndpointTable:
    """All rows of all owners, with the holder of every address and of every MAC.

    A change costs what it concerns: the rows that changed, and those of others that claim the same."""

    def __init__(self) -> None:
        self._pages: dict[PeerName, dict[int, dict[bytes, Endpoint]]] = {}
        """By owner and page: rows, each with its endpoint."""
        self._claims: dict[Address, list[_Claim]] = {}
        self._macs: dict[bytes, tuple[_User, ...]] = {}
        self._shared_addresses: dict[Address, None] = {}
        self._shared_macs: dict[bytes, None] = {}
        self._changed: set[Place] = set()
        self._contest_changed: tuple[set[bytes], set[Address]] = (set(), set())
        """MACs and addresses of several endpoints, to which one came or from which one went."""

    def replace_page(self, owner: PeerName, index: int, body: bytes) -> int:
        """Take the newest version of one page; how many of its rows were malformed and left out.

        A row that was there before stays the same object, so that one changed row costs one row."""
        try:
            rows = rows_untrusted(body)
        except ProtocolError:
            self._replace(owner, index, {})
            return 1
        malformed = 0
        before = self._pages.get(owner, {}).get(index, {})
        page: dict[bytes, Endpoint] = {}
        for row in rows:
            try:
                page[row] = before.get(row) or decode_row_untrusted(owner, row)
            except ProtocolError:
                malformed += 1
        self._replace(owner, index, page)
        return malformed

    def forget(self, owner: PeerName) -> None:
        for index in sorted(self._pages.get(owner, {})):
            self._replace(owner, index, {})

    def _replace(self, owner: PeerName, index: int, page: dict[bytes, Endpoint]) -> None:
        pages = self._pages.setdefault(owner, {})
        before = pages.pop(index, {})
        for row, endpoint in before.items():
            if row not in page:
                self._withdraw(endpoint)
        for row, endpoint in page.items():
            if row not in before:
                self._enter(owner, index, row, endpoint)
        if page:
            pages[index] = page
        if not pages:
            del self._pages[owner]
        self._changed.add((owner, index))

    def _enter(self, owner: PeerName, index: int, row: bytes, endpoint: Endpoint) -> None:
        macs, addresses = self._contest_changed
        users = self._macs[endpoint.mac] = (*self._macs.get(endpoint.mac, ()), _User(index, endpoint))
        if len(users) > 1:
            self._shared_macs[endpoint.mac] = None
            macs.add(endpoint.mac)
        for binding in endpoint.bindings:
            claims = self._claims.setdefault(binding.ip, [])
            insort(claims, _Claim(-binding.claim, owner, index, row, endpoint))
            if len(claims) > 1:
                self._shared_addresses[binding.ip] = None
                addresses.add(binding.ip)

    def _withdraw(self, endpoint: Endpoint) -> None:
        macs, addresses = self._contest_changed
        users = tuple(user for user in self._macs.pop(endpoint.mac) if user.endpoint is not endpoint)
        if users:
            self._macs[endpoint.mac] = users
            macs.add(endpoint.mac)
        if len(users) < 2:
            self._shared_macs.pop(endpoint.mac, None)
        for binding in endpoint.bindings:
            claims = [claim for claim in self._claims.pop(binding.ip) if claim.endpoint is not endpoint]
            if claims:
                self._claims[binding.ip] = claims
                addresses.add(binding.ip)
            if len(claims) < 2:
                self._shared_addresses.pop(binding.ip, None)

    # -- what changed ------------------------------------------------------------------------------

    def take_changed(self) -> set[Place]:
        """The pages of which something may be different since this was asked last: their rows, or who holds what they
        claim."""
        changed, self._changed = self._changed, set()
        contest, self._contest_changed = self._contest_changed, (set(), set())
        return changed | self._concerned(*contest)

    def concerned_by(self, owner: PeerName) -> set[Place]:
        """The pages of which something may be different when an owner does not count any more, or counts again."""
        macs = {mac for mac in self._shared_macs if any(user.endpoint.owner == owner for user in self._macs[mac])}
        addresses = {
            address for address in self._shared_addresses
            if any(claim.owner == owner for claim in self._claims[address])
        }  # fmt: skip
        return {(owner, index) for index in self._pages.get(owner, ())} | self._concerned(macs, addresses)

    def having(self, macs: Iterable[bytes]) -> set[Place]:
        """The pages with endpoints that have one of these MACs."""
        return {(user.endpoint.owner, user.page) for mac in macs for user in self._macs.get(mac, ())}

    def _concerned(self, macs: Iterable[bytes], addresses: Iterable[Address]) -> set[Place]:
        """Who holds an address decides who of several holds the MAC of each that claims it."""
        of_claimants = {claim.endpoint.mac for address in addresses for claim in self._claims.get(address, ())}
        return self.having({*macs, *of_claimants})

    # -- what there is -----------------------------------------------------------------------------

    def owners(self) -> list[PeerName]:
        return sorted(self._pages)

    def of(self, owner: PeerName) -> Iterator[Endpoint]:
        """The endpoints of one owner, in the order of its pages."""
        pages = self._pages.get(owner, {})
        for index in sorted(pages):
            yield from pages[index].values()

    def pages(self, owner: PeerName) -> list[int]:
        """The pages of one owner that have rows."""
        return sorted(self._pages.get(owner, ()))

    def on_page(self, place: Place) -> Iterable[Endpoint]:
        owner, index = place
        return self._pages.get(owner, {}).get(index, {}).values()

    def endpoints(self) -> Iterator[Endpoint]:
        """All endpoints, in order of owners."""
        for owner in self.owners():
            yield from self.of(owner)

    def __len__(self) -> int:
        return sum(len(page) for pages in self._pages.values() for page in pages.values())

    # -- who holds what ----------------------------------------------------------------------------

    def claimants(self, address: Address) -> list[Endpoint]:
        """Everybody who claims `address`: its holder by rule first, then who would follow."""
        return [claim.endpoint for claim in self._claims.get(address, ())]

    def holder(self, address: Address, without: frozenset[PeerName] = frozenset()) -> Endpoint | None:
        """Who holds `address` by rule, leaving out owners that do not count any more."""
        claims = self._claims.get(address, ())
        return next((claim.endpoint for claim in claims if claim.owner not in without), None)

    def next_claim(self, address: Address) -> int:
        """The claim of somebody who attaches `address` now, knowing what is known here."""
        claims = self._claims.get(address)
        return min(1 - claims[0].strength, CLAIM_MAX) if claims else 1

    def mac_users(self, mac: bytes) -> list[Endpoint]:
        return [user.endpoint for user in self._macs.get(mac, ())]

    def mac_holder(self, mac: bytes, without: frozenset[PeerName] = frozenset()) -> Endpoint | None:
        """Whom frames to `mac` belong to: of several endpoints that have it, one that has lost no address to anybody,
        and of those the one with the strongest claim."""
        users = [user for user in self.mac_users(mac) if user.owner not in without]
        return min(users, key=lambda user: self._mac_rank(user, without)) if users else None

    def _mac_rank(self, user: Endpoint, without: frozenset[PeerName]) -> tuple[bool, int, PeerName, bytes]:
        held = [binding.claim for binding in user.bindings if self.holder(binding.ip, without) is user]
        return (len(held) < len(user.bindings), -max(held, default=-1), user.owner, encode_row(user))

    def is_contested(self, endpoint: Endpoint) -> bool:
        """Whether somebody else claims one of its addresses or has its MAC; of the others, all is theirs."""
        if endpoint.mac in self._shared_macs:
            return True
        shared = self._shared_addresses  # mostly empty, and looking an address up is a call of Python
        return bool(shared) and any(binding.ip in shared for binding in endpoint.bindings)

    def lost(self, endpoint: Endpoint, without: frozenset[PeerName] = frozenset()) -> list[tuple[Binding, Endpoint]]:
        """The addresses that `endpoint` claims and another one holds, each with its holder."""
        holders = ((binding, self.holder(binding.ip, without)) for binding in endpoint.bindings)
        return [(binding, holder) for binding, holder in holders if holder is not None and holder is not endpoint]
