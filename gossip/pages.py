"""Cutting a table of rows into pages so that one changed row changes one page.

A row keeps its page for as long as it exists; a new one goes to the first page with room. The row's key and bytes are
opaque here. A page's body is a sequence of rows, each with its length in front:

    +--------+-------------+--------+-------------+ ...
    | u16 n  | n bytes row | u16 n  | n bytes row |
    +--------+-------------+--------+-------------+ ...
"""

from __future__ import annotations

import struct

from gossip.documents import BODY_MAX_BYTES
from gossip.errors import ProtocolError

ROW_MAX_BYTES = 4096
TABLE_PAGES_MAX = 2048
"""16 MiB of rows: half of what one owner may have, so that a full table leaves room for the others."""
_LENGTH = struct.Struct("!H")


class TablePager:
    """The rows of one of our own tables and the pages that they lie on."""

    def __init__(self) -> None:
        self._pages: list[dict[str, bytes]] = []
        self._sizes: list[int] = []
        self._page_of: dict[str, int] = {}

    def put(self, key: str, row: bytes) -> tuple[int, ...]:
        """Add or replace a row; the indexes of the pages that changed, in the order in which to tell them: a row that
        moves shows on its new page before it leaves the old one, so that nobody sees it missing. Raises `ValueError`,
        with nothing changed, for a row beyond `ROW_MAX_BYTES` or a table beyond `TABLE_PAGES_MAX` pages."""
        if len(row) > ROW_MAX_BYTES:
            raise ValueError(f"a row of {len(row)} bytes is longer than {ROW_MAX_BYTES}")
        index = self._page_of.get(key)
        if index is not None:
            if self._pages[index][key] == row:
                return ()
            grown = self._sizes[index] + len(row) - len(self._pages[index][key])
            if grown <= BODY_MAX_BYTES:
                self._pages[index][key] = row
                self._sizes[index] = grown
                return (index,)
        size = len(row) + _LENGTH.size
        new = next((i for i, used in enumerate(self._sizes) if used + size <= BODY_MAX_BYTES), len(self._pages))
        if new >= TABLE_PAGES_MAX:
            raise ValueError(f"the table is full: {TABLE_PAGES_MAX} pages of {BODY_MAX_BYTES} bytes")
        left = self.remove(key)
        if new == len(self._pages):
            self._pages.append({})
            self._sizes.append(0)
        self._pages[new][key] = row
        self._sizes[new] += size
        self._page_of[key] = new
        return (new, *left)

    def remove(self, key: str) -> tuple[int, ...]:
        """Remove a row if it is there; the indexes of the pages that changed."""
        index = self._page_of.pop(key, None)
        if index is None:
            return ()
        self._sizes[index] -= len(self._pages[index].pop(key)) + _LENGTH.size
        return (index,)

    def body(self, index: int) -> bytes:
        """The bytes of one page: empty where it has no rows."""
        rows = self._pages[index]
        return b"".join(_LENGTH.pack(len(rows[key])) + rows[key] for key in sorted(rows))

    def __len__(self) -> int:
        return len(self._pages)


def rows_untrusted(body: bytes) -> list[bytes]:
    """The rows of a page's body. Raises `ProtocolError` where the lengths do not add up."""
    rows, at = [], 0
    while at < len(body):
        if at + _LENGTH.size > len(body):
            raise ProtocolError("bad-row", "document page ends inside a length")
        (size,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if size > ROW_MAX_BYTES or at + size > len(body):
            raise ProtocolError("bad-row", "document page ends inside a row")
        rows.append(body[at : at + size])
        at += size
    return rows
