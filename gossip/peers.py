"""The two tables that gossip itself reads: `peer` (who I am and where I listen) and `links` (whom I have a link with).

What the application wants every peer to know of a host (its MTU, its ports) travels as *attributes*, opaque here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgpack

from gossip.errors import ProtocolError
from gossip.names import PEER_NAME_BYTES, PeerName
from gossip.wire import INSTANCE_BYTES, NICKNAME_MAX_BYTES

PEER_TABLE = "peer"
LINKS_TABLE = "links"

LIVE = "live"
AWAY = "away"
"""Stopped on purpose; its containers and the kernel's paths to them go on working."""
GONE = "gone"
"""Removed on purpose; nothing of it is left."""

ADDRESSES_MAX = 16
ADDRESS_MAX = 64
ATTRIBUTES_MAX = 64
ATTRIBUTE_NAME_MAX = 64
VERSION_MAX = 64
LINKS_MAX = 512
_TEXT_MAX_BYTES = 256
Attribute = int | str | bool | bytes


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """The `peer` document of one host."""

    nickname: str
    instance: bytes
    state: str
    """`live`, `away` or `gone`."""
    version: str
    addresses: tuple[str, ...]
    """Where its daemon listens, best first: `10.9.0.1:6783`, `[fd00::1]:6783`."""
    attributes: Mapping[str, Attribute]


def encode_peer(record: PeerRecord) -> bytes:
    assert len(record.addresses) <= ADDRESSES_MAX
    body: bytes = msgpack.packb(
        [record.nickname, record.instance, record.state, record.version, record.addresses, dict(record.attributes)]
    )
    return body


def decode_peer_untrusted(body: bytes) -> PeerRecord:
    fields = _unpack(body)
    if not isinstance(fields, tuple) or len(fields) < 6:
        raise ProtocolError("bad-document", "peer document is not a list of six fields")
    nickname, instance, state, version, addresses, attributes = fields[:6]
    if not (_is_text(nickname, NICKNAME_MAX_BYTES) and _is_text(version, VERSION_MAX) and state in (LIVE, AWAY, GONE)):
        raise ProtocolError("bad-document", "peer document has an impossible nickname, version or state")
    if not (isinstance(instance, bytes) and len(instance) == INSTANCE_BYTES):
        raise ProtocolError("bad-document", "peer document has an impossible instance")
    if not (isinstance(addresses, tuple) and len(addresses) <= ADDRESSES_MAX):
        raise ProtocolError("bad-document", "peer document has too many addresses")
    if not all(_is_text(address, ADDRESS_MAX) and split_address(address) for address in addresses):
        raise ProtocolError("bad-document", "peer document has a malformed address")
    if not isinstance(attributes, dict) or not all(map(_is_attribute, attributes.items())):
        raise ProtocolError("bad-document", "peer document has malformed attributes")
    return PeerRecord(nickname, instance, state, version, addresses, MappingProxyType(attributes))


def encode_links(neighbours: list[PeerName]) -> bytes:
    body: bytes = msgpack.packb(neighbours[:LINKS_MAX])
    return body


def decode_links_untrusted(body: bytes) -> tuple[PeerName, ...]:
    fields = _unpack(body) if body else ()
    if not isinstance(fields, tuple) or len(fields) > LINKS_MAX:
        raise ProtocolError("bad-document", "links document is not a list of names")
    if not all(isinstance(name, bytes) and len(name) == PEER_NAME_BYTES for name in fields):
        raise ProtocolError("bad-document", "links document has a malformed name")
    return tuple(PeerName(name) for name in fields)


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[host]:port`; None where it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return (host, int(port)) if host else None


def with_port(target: str, port: int) -> str:
    """`target` with `port` added where it names none; an IPv6 address may come bare or in brackets."""
    if target.count(":") > 1 and not target.startswith("["):
        return f"[{target}]:{port}"
    return target if split_address(target) else f"{target}:{port}"


def _unpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(
            body, raw=False, use_list=False, strict_map_key=True, max_str_len=_TEXT_MAX_BYTES,
            max_bin_len=_TEXT_MAX_BYTES, max_array_len=LINKS_MAX, max_map_len=ATTRIBUTES_MAX, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("bad-document", f"document cannot be decoded: {error}") from None


def _is_text(value: Any, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit and value.isprintable()


def _is_attribute(item: tuple[Any, Any]) -> bool:
    name, value = item
    return _is_text(name, ATTRIBUTE_NAME_MAX) and isinstance(value, int | str | bytes)
