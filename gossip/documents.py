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
from dataclasses import dataclass, field

from gossip.errors import ProtocolError
from gossip.identity import SIGNATURE_BYTES, Identity, signature_is_valid
from gossip.names import PeerName, name_of_key

PAGE_FORMAT = 1
BODY_MAX_BYTES = 8192
TABLE_NAME_MAX_BYTES = 32
PAGES_PER_OWNER_MAX = 4096
"""With 8 KiB each, 32 MiB an owner: about 300,000 endpoints on one host. More is a mistake or an attack."""
OWNERS_MAX = 8192
STORE_MAX_BYTES = 256 * 1024 * 1024
"""Of pages of all owners together: about two million endpoints. Without it a few members could fill our memory."""
OWNER_SHARE_BYTES = 32 * 1024
"""What every owner may have even then, so that greedy ones cannot shut out the modest."""
EPOCH_MAX = (1 << 48) - 1
"""Starts of a host since the state directory was made, so that the next one always fits."""
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
    raw: bytes
    """The signed bytes, as they travel."""
    digest: bytes
    """First 16 bytes of the SHA-256 of `raw`."""

    @property
    def body(self) -> bytes:
        """Cut out of `raw` when it is wanted, since a store holds every page for a long time."""
        return self.raw[_HEADER.size + len(self.table) : -SIGNATURE_BYTES]

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
    assert 0 <= epoch <= EPOCH_MAX
    unsigned = _HEADER.pack(PAGE_FORMAT, identity.public_key, epoch, version, index, len(name)) + name + body
    raw = unsigned + identity.sign(_LABEL + unsigned)
    return Page(identity.name, table, index, epoch, version, raw, _digest(raw))


@dataclass(frozen=True, slots=True)
class PageHeader:
    """What a page says of itself before anybody has checked the signature: enough to drop what is not news."""

    id: PageId
    stamp: PageStamp
    public_key: bytes


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
    if epoch > EPOCH_MAX:
        raise ProtocolError("bad-page", f"document page of epoch {epoch}, beyond {EPOCH_MAX}")
    table = raw[_HEADER.size : body_at]
    if not all(0x21 <= byte < 0x7F for byte in table):
        raise ProtocolError("bad-page", "document table name is not printable ASCII")
    stamp = (epoch, version, _digest(raw))
    return PageHeader((name_of_key(key), table.decode("ascii"), index), stamp, key)


def verify_page_untrusted(header: PageHeader, raw: bytes) -> Page:
    """The page, if its owner really signed it; else `ProtocolError`. Only now may anybody look at the body."""
    if not signature_is_valid(header.public_key, raw[-SIGNATURE_BYTES:], _LABEL + raw[:-SIGNATURE_BYTES]):
        raise ProtocolError("bad-signature", "document page is not signed by its owner")
    epoch, version, digest = header.stamp
    return Page(*header.id, epoch, version, raw, digest)


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:16]


@dataclass(slots=True)
class _Shelf:
    """All that is here of one owner."""

    pages: dict[tuple[str, int], Page] = field(default_factory=dict)
    digest: int = 0
    size_bytes: int = 0


class DocumentStore:
    """The newest version of every page we know, and digests over them for repair."""

    def __init__(self) -> None:
        self._shelves: dict[PeerName, _Shelf] = {}
        self._root_digest = 0
        self.size_bytes = 0
        """Of all pages, as they travel."""

    def __contains__(self, owner: PeerName) -> bool:
        """Whether any page of `owner` is here."""
        return owner in self._shelves

    def get(self, page_id: PageId) -> Page | None:
        owner, table, index = page_id
        shelf = self._shelves.get(owner)
        return None if shelf is None else shelf.pages.get((table, index))

    def owners(self) -> list[PeerName]:
        """Every owner, in order of names."""
        return sorted(self._shelves)

    def pages_of(self, owner: PeerName) -> list[Page]:
        """All pages of one owner, ordered by table and index."""
        shelf = self._shelves.get(owner)
        return [] if shelf is None else [shelf.pages[key] for key in sorted(shelf.pages)]

    def offer(self, page: Page, limited: bool = True) -> bool:
        """Keep `page` if it is newer than what is here; whether it was. Raises `ProtocolError`, with nothing changed,
        where a limit stands in the way; the limits are for others, our own pages are not `limited`."""
        shelf = self._shelves.get(page.owner) or _Shelf()
        old = shelf.pages.get((page.table, page.index))
        if old is not None and old.stamp >= page.stamp:
            return False
        grown = len(page.raw) - (len(old.raw) if old is not None else 0)
        if limited:
            self._check_limits(shelf, old is None, grown)
        self._shelves[page.owner] = shelf
        shelf.pages[(page.table, page.index)] = page
        self._account(shelf, page, grown)
        if old is not None:
            self._account(shelf, old, 0)
        return True

    def forget(self, owner: PeerName) -> list[Page]:
        """Drop all pages of one owner; what was dropped."""
        dropped = self.pages_of(owner)
        for page in dropped:
            self._account(self._shelves[owner], page, -len(page.raw))
        self._shelves.pop(owner, None)
        return dropped

    def owner_digest(self, owner: PeerName) -> bytes:
        """16 bytes that are equal on two stores exactly when both hold the same pages of `owner`.

        The exclusive-or of the pages' digests: one change costs one operation, and order does not matter. Members who
        would construct collisions could as well stop talking to us."""
        shelf = self._shelves.get(owner)
        return (0 if shelf is None else shelf.digest).to_bytes(16, "big")

    def root_digest(self) -> bytes:
        """The same over all owners."""
        return self._root_digest.to_bytes(16, "big")

    def _check_limits(self, shelf: _Shelf, is_new: bool, grown: int) -> None:
        if not shelf.pages and len(self._shelves) >= OWNERS_MAX:
            raise ProtocolError("too-many", f"more than {OWNERS_MAX} owners of documents")
        if is_new and len(shelf.pages) >= PAGES_PER_OWNER_MAX:
            raise ProtocolError("too-many", f"more than {PAGES_PER_OWNER_MAX} pages of one owner")
        if self.size_bytes + grown > STORE_MAX_BYTES and shelf.size_bytes + grown > OWNER_SHARE_BYTES and grown > 0:
            raise ProtocolError("too-many", f"more than {STORE_MAX_BYTES} bytes of documents")

    def _account(self, shelf: _Shelf, page: Page, grown: int) -> None:
        """A page comes or goes: the same exclusive-or either way."""
        value = int.from_bytes(page.digest, "big")
        shelf.digest ^= value
        shelf.size_bytes += grown
        self._root_digest ^= value
        self.size_bytes += grown
