"""Documents: one owner's signed, versioned state, cut into pages; and the store that keeps the newest of each.

A page is changed by its owner only, and the newest wins, so two stores that have seen the same pages are equal in
whatever order the pages came: merging is a maximum and never fails. Pages are kept and passed on as the bytes that were
signed, so no relay can change one. The store knows nothing of what bodies mean, of links, or of who is alive.

A signed page:

     0     1                33         41          49        51     52        52+t         -64
    +-----+----------------+----------+-----------+---------+------+---------+------------+-----------+
    | fmt | Ed25519 key    | epoch    | version   | index   | t    | table   | body       | signature |
    | 1 B | 32 B           | u64      | u64       | u16     | u8   | t bytes | <= 8192 B  | 64 B      |
    +-----+----------------+----------+-----------+---------+------+---------+------------+-----------+

Integers are big-endian; the signature covers a fixed label and everything before it. *epoch* rises at every start of
the owner, *version* with every change; an empty body says that the page is no longer used.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gossip.errors import ProtocolError
from gossip.identity import SIGNATURE_BYTES, Identity, signature_is_valid
from gossip.names import PeerName, name_of_key

PAGE_FORMAT = 1
BODY_MAX_BYTES = 8192
TABLE_NAME_MAX_BYTES = 32
PAGES_PER_OWNER_MAX = 4096
"""With 8 KiB each, 32 MiB an owner: about 300,000 endpoints on one host. More is a mistake or an attack."""
OWNERS_MAX = 8192
_LABEL = b"weft document 1\x00"
_HEADER = struct.Struct("!B32sQQHB")

PageId = tuple[PeerName, str, int]
"""Owner, table, index: what a page is a version of."""
PageStamp = tuple[int, int, bytes]
"""Epoch, version, digest: which of two versions is newer. The digest only breaks ties that honest owners never make."""


@dataclass(frozen=True, slots=True)
class Page:
    """One version of one page, verified."""

    owner: PeerName
    table: str
    index: int
    epoch: int
    version: int
    body: bytes
    raw: bytes
    """The signed bytes, as they travel."""
    digest: bytes
    """First 16 bytes of the SHA-256 of `raw`."""

    @property
    def id(self) -> PageId:
        return (self.owner, self.table, self.index)

    @property
    def stamp(self) -> PageStamp:
        return (self.epoch, self.version, self.digest)


def sign_page(identity: Identity, table: str, index: int, epoch: int, version: int, body: bytes) -> Page:
    """A new version of one of our own pages."""
    name = table.encode("ascii")
    assert 0 < len(name) <= TABLE_NAME_MAX_BYTES and len(body) <= BODY_MAX_BYTES and 0 <= index < PAGES_PER_OWNER_MAX
    unsigned = _HEADER.pack(PAGE_FORMAT, identity.public_key, epoch, version, index, len(name)) + name + body
    raw = unsigned + identity.sign(_LABEL + unsigned)
    return Page(identity.name, table, index, epoch, version, body, raw, _digest(raw))


@dataclass(frozen=True, slots=True)
class PageHeader:
    """What a page says of itself before anybody has checked the signature: enough to drop what is not news."""

    id: PageId
    stamp: PageStamp
    public_key: bytes
    body_at: int


def parse_header_untrusted(raw: bytes) -> PageHeader:
    """The header of `raw`, unverified. Raises `ProtocolError` where it is malformed."""
    if len(raw) < _HEADER.size + 1 + SIGNATURE_BYTES:
        raise ProtocolError("bad-page", "document page is too short")
    form, key, epoch, version, index, table_bytes = _HEADER.unpack_from(raw)
    body_at = _HEADER.size + table_bytes
    body_bytes = len(raw) - body_at - SIGNATURE_BYTES
    if form != PAGE_FORMAT or not 0 < table_bytes <= TABLE_NAME_MAX_BYTES or not 0 <= body_bytes <= BODY_MAX_BYTES:
        raise ProtocolError("bad-page", "document page has an unknown format or impossible lengths")
    if index >= PAGES_PER_OWNER_MAX:
        raise ProtocolError("bad-page", f"document page index {index} is beyond {PAGES_PER_OWNER_MAX}")
    table = raw[_HEADER.size : body_at]
    if not all(0x21 <= byte < 0x7F for byte in table):
        raise ProtocolError("bad-page", "document table name is not printable ASCII")
    stamp = (epoch, version, _digest(raw))
    return PageHeader((name_of_key(key), table.decode("ascii"), index), stamp, key, body_at)


def verify_page_untrusted(header: PageHeader, raw: bytes) -> Page:
    """The page, if its owner really signed it; else `ProtocolError`. Only now may anybody look at the body."""
    if not signature_is_valid(header.public_key, raw[-SIGNATURE_BYTES:], _LABEL + raw[:-SIGNATURE_BYTES]):
        raise ProtocolError("bad-signature", "document page is not signed by its owner")
    epoch, version, digest = header.stamp
    return Page(*header.id, epoch, version, raw[header.body_at : -SIGNATURE_BYTES], raw, digest)


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:16]


class DocumentStore:
    """The newest version of every page we know, and digests over them for repair."""

    def __init__(self) -> None:
        self._pages: dict[PeerName, dict[tuple[str, int], Page]] = {}
        self._owner_digest: dict[PeerName, int] = {}
        self._root_digest = 0

    def get(self, page_id: PageId) -> Page | None:
        owner, table, index = page_id
        return self._pages.get(owner, {}).get((table, index))

    def owners(self) -> list[PeerName]:
        """Every owner, in order of names."""
        return sorted(self._pages)

    def pages_of(self, owner: PeerName) -> list[Page]:
        """All pages of one owner, ordered by table and index."""
        pages = self._pages.get(owner, {})
        return [pages[key] for key in sorted(pages)]

    def table(self, owner: PeerName, table: str) -> Iterator[Page]:
        return (page for page in self.pages_of(owner) if page.table == table)

    def offer(self, page: Page) -> bool:
        """Keep `page` if it is newer than what is here; whether it was. Raises `ProtocolError` beyond the limits."""
        held = self._pages.get(page.owner)
        if held is None:
            if len(self._pages) >= OWNERS_MAX:
                raise ProtocolError("too-many", f"more than {OWNERS_MAX} owners of documents")
            held = self._pages[page.owner] = {}
        old = held.get((page.table, page.index))
        if old is not None and old.stamp >= page.stamp:
            return False
        if old is None and len(held) >= PAGES_PER_OWNER_MAX:
            raise ProtocolError("too-many", f"more than {PAGES_PER_OWNER_MAX} pages of one owner")
        held[(page.table, page.index)] = page
        self._toggle(page)
        if old is not None:
            self._toggle(old)
        return True

    def forget(self, owner: PeerName) -> list[Page]:
        """Drop all pages of one owner; what was dropped."""
        dropped = self.pages_of(owner)
        for page in dropped:
            self._toggle(page)
        self._pages.pop(owner, None)
        self._owner_digest.pop(owner, None)
        return dropped

    def owner_digest(self, owner: PeerName) -> bytes:
        """16 bytes that are equal on two stores exactly when both hold the same pages of `owner`.

        The exclusive-or of the pages' digests: one change costs one operation, and order does not matter. Members who
        would construct collisions could as well stop talking to us."""
        return self._owner_digest.get(owner, 0).to_bytes(16, "big")

    def root_digest(self) -> bytes:
        """The same over all owners."""
        return self._root_digest.to_bytes(16, "big")

    def _toggle(self, page: Page) -> None:
        value = int.from_bytes(page.digest, "big")
        self._owner_digest[page.owner] = self._owner_digest.get(page.owner, 0) ^ value
        self._root_digest ^= value
