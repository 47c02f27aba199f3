"""The endpoint table: every attached interface of every host, and who holds which address.

Each host publishes rows for its own endpoints only; this table puts them together. An address belongs to the endpoint
with the highest *claim*, a number one above every claim that the claimant had seen; equal claims go to the lower peer
name. So whoever attached last in knowledge of the other wins, all hosts agree without asking, and a late delete of an
old binding removes only that binding. Knows nothing of the kernel, of reach, or of how rows travel.

A row is a msgpack list: id, MAC, addresses (each packed address, prefix length, claim), names, labels, network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PeerName
from gossip.pages import rows_untrusted

ENDPOINTS_TABLE = "endpoints"
ADDRESSES_MAX = 64
NAMES_MAX = 64
LABELS_MAX = 64
TEXT_MAX = 512
Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Binding:
    """One address of an endpoint, with the claim that it is held by."""

    interface: Interface
    claim: int


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


def encode_row(endpoint: Endpoint) -> bytes:
    addresses = [(b.interface.packed, b.interface.network.prefixlen, b.claim) for b in endpoint.bindings]
    row: bytes = msgpack.packb(
        [endpoint.id, endpoint.mac, addresses, endpoint.names, endpoint.labels, endpoint.network]
    )
    return row


def decode_row_untrusted(owner: PeerName, row: bytes) -> Endpoint:
    """The endpoint in a row. Raises `ProtocolError` for anything that no honest host publishes."""
    try:
        fields = msgpack.unpackb(
            row, raw=False, use_list=False, strict_map_key=True, max_str_len=TEXT_MAX, max_bin_len=16,
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
        raise ValueError("not a unicast MAC")
    if not all(isinstance(each, tuple) for each in (addresses, names, labels)):
        raise ValueError("lists expected")
    if not all(_is_text(text) for text in (name, network, *names)) or len(names) > NAMES_MAX:
        raise ValueError("malformed names")
    if len(labels) > LABELS_MAX or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in labels
    ):
        raise ValueError("malformed labels")
    return Endpoint(owner, name, mac, tuple(map(_binding, addresses)), names, labels, network)


def _binding(fields: Any) -> Binding:
    if not isinstance(fields, tuple) or len(fields) != 3:
        raise ValueError("an address is not a list of three fields")
    packed, length, claim = fields
    if not isinstance(packed, bytes) or len(packed) not in (4, 16) or not isinstance(length, int):
        raise ValueError("malformed address")
    if not isinstance(claim, int) or not 0 <= claim < 1 << 63:
        raise ValueError("malformed claim")
    address = ip_address(packed)
    if address.is_multicast or address.is_unspecified or address.is_loopback or packed == b"\xff" * 4:
        raise ValueError("not an address that a container can have")
    return Binding(ip_interface((packed, length)), claim)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX and value.isprintable()


def derive_mac(network: str, first: Address, salt: int = 0) -> bytes:
    """The MAC of an endpoint: made from its first address, so that it moves along and caches stay true.

    The first byte 02 marks it as locally administered; bridges use 06 and can never be met."""
    seed = f"{network} {first} {salt}".encode()
    return b"\x02" + hashlib.sha256(b"weft endpoint mac\x00" + seed).digest()[:5]


def bridge_mac(peer: PeerName) -> bytes:
    """The MAC of a host's bridge, made from its peer name, so that everybody knows it."""
    return b"\x06" + peer[:5]


class EndpointTable:
    """All rows of all owners, with the holder of every address."""

    def __init__(self) -> None:
        self._pages: dict[PeerName, dict[int, list[Endpoint]]] = {}
        self._claims: dict[Address, list[tuple[int, PeerName, Endpoint]]] = {}
        self._macs: dict[bytes, list[Endpoint]] = {}

    def replace_page(self, owner: PeerName, index: int, body: bytes) -> int:
        """Take the newest version of one page; how many of its rows were malformed and left out."""
        malformed = 0
        endpoints: list[Endpoint] = []
        try:
            rows = rows_untrusted(body)
        except ProtocolError:
            rows, malformed = [], 1
        for row in rows:
            try:
                endpoints.append(decode_row_untrusted(owner, row))
            except ProtocolError:
                malformed += 1
        pages = self._pages.setdefault(owner, {})
        self._withdraw(pages.pop(index, []))
        if endpoints:
            pages[index] = endpoints
            for endpoint in endpoints:
                self._macs.setdefault(endpoint.mac, []).append(endpoint)
                for binding in endpoint.bindings:
                    claims = self._claims.setdefault(binding.interface.ip, [])
                    claims.append((binding.claim, owner, endpoint))
        return malformed

    def forget(self, owner: PeerName) -> None:
        for endpoints in self._pages.pop(owner, {}).values():
            self._withdraw(endpoints)

    def _withdraw(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            _discard(self._macs, endpoint.mac, lambda held, gone=endpoint: held is gone)
            for binding in endpoint.bindings:
                _discard(self._claims, binding.interface.ip, lambda held, gone=endpoint: held[2] is gone)

    def endpoints(self) -> Iterator[Endpoint]:
        """All endpoints, in order of owners."""
        for owner in sorted(self._pages):
            for index in sorted(self._pages[owner]):
                yield from self._pages[owner][index]

    def of(self, owner: PeerName) -> list[Endpoint]:
        pages = self._pages.get(owner, {})
        return [endpoint for index in sorted(pages) for endpoint in pages[index]]

    def holder(self, address: Address, without: frozenset[PeerName] = frozenset()) -> Endpoint | None:
        """Who holds `address` by rule, leaving out owners that do not count any more."""
        claims = [claim for claim in self._claims.get(address, ()) if claim[1] not in without]
        if not claims:
            return None
        return min(claims, key=lambda claim: (-claim[0], claim[1], claim[2].mac))[2]

    def next_claim(self, address: Address) -> int:
        """The claim of somebody who attaches `address` now, knowing what is known here."""
        return 1 + max((claim for claim, _, _ in self._claims.get(address, ())), default=0)

    def mac_users(self, mac: bytes) -> list[Endpoint]:
        return list(self._macs.get(mac, ()))

    def conflict(self, endpoint: Endpoint, without: frozenset[PeerName] = frozenset()) -> Endpoint | None:
        """The first other endpoint that holds an address which `endpoint` claims too."""
        for binding in endpoint.bindings:
            holder = self.holder(binding.interface.ip, without)
            if holder is not None and holder is not endpoint:
                return holder
        return None

    def __len__(self) -> int:
        return sum(len(page) for pages in self._pages.values() for page in pages.values())


def _discard(table: dict[Any, list[Any]], key: Any, is_gone: Any) -> None:
    kept = [held for held in table.get(key, ()) if not is_gone(held)]
    if kept:
        table[key] = kept
    else:
        table.pop(key, None)
