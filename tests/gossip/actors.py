"""The cast of these tests: hosts with keys made from small numbers, and what they say and sign.

Everything is a function of its arguments, so a failing example reads the same each time it is run.
"""

from __future__ import annotations

import hashlib
from functools import cache

from gossip.documents import Page, sign_page
from gossip.identity import Identity
from gossip.peers import LIVE, PeerRecord


@cache
def identity(number: int) -> Identity:
    """Host `number`'s keys. Names come out in no particular order: they are hashes."""
    return Identity(_bytes(f"signing {number}"), _bytes(f"link {number}"))


@cache
def page(
    number: int = 1, table: str = "rows", index: int = 0, epoch: int = 1, version: int = 1, body: bytes = b"body"
) -> Page:
    """A page that host `number` really signed."""
    return sign_page(identity(number), table, index, epoch, version, body)


def record(number: int, life: int = 1, state: str = LIVE, **changes: object) -> PeerRecord:
    """What host `number` says of itself in its `life`-th run."""
    fields: dict[str, object] = {
        "nickname": f"h{number}",
        "instance": instance(number, life),
        "state": state,
        "version": "test",
        "addresses": (address(number),),
        "attributes": {},
    }
    return PeerRecord(**(fields | changes))  # type: ignore[arg-type]


def instance(number: int, life: int = 1) -> bytes:
    return _bytes(f"instance {number}.{life}")[:16]


def address(number: int) -> str:
    return f"10.9.0.{number}:6783"


def _bytes(seed: str) -> bytes:
    return hashlib.sha256(seed.encode()).digest()
