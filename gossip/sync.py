"""How two neighbours find out which pages differ: digests, then stamps, then pages.

    A  Digest: every owner it knows, each with one digest          ->  B
    A  <-  Have: stamps of B's pages of each owner that differs        B
       <-  pages of owners that A does not know
    A  pages that are newer here, Want: pages that are newer there ->  B
    A  <-  the pages wanted                                            B

Either side may begin; nothing here remembers anything, so a message lost, late or twice costs bytes and no more. Pure
functions over a store; sending, ages and limits of queues are the node's.
"""

from __future__ import annotations

from collections.abc import Callable

from gossip.documents import DocumentStore, Page
from gossip.names import PeerName
from gossip.wire import ENTRIES_MAX, FIRST_NAME, FIRST_POSITION, LAST_NAME, LAST_POSITION, Digest, Have, Want

AgeOf = Callable[[PeerName], int]
"""Seconds since an owner was last in reach; 0 while it is."""


def digests(store: DocumentStore) -> list[Digest]:
    """Messages that cover every possible owner once, in order of names."""
    owners = store.owners()
    messages: list[Digest] = []
    first = FIRST_NAME
    for at in range(0, max(1, len(owners)), ENTRIES_MAX):
        chunk = owners[at : at + ENTRIES_MAX]
        last = LAST_NAME if at + ENTRIES_MAX >= len(owners) else chunk[-1]
        messages.append(Digest(first, last, tuple((owner, store.owner_digest(owner)) for owner in chunk)))
        first = PeerName((int.from_bytes(last, "big") + 1).to_bytes(8, "big")) if last != LAST_NAME else last
    return messages


def answer_digest(store: DocumentStore, theirs: Digest, age_of: AgeOf) -> tuple[list[Have], list[Page]]:
    """What to say to a neighbour that sent `theirs`: our stamps where we differ, our pages where it has nothing."""
    has = dict(theirs.owners)
    haves: list[Have] = []
    pages: list[Page] = []
    for owner in store.owners():
        if theirs.first <= owner <= theirs.last and owner not in has:
            pages.extend(store.pages_of(owner))
    for owner in sorted(has):
        if has[owner] != store.owner_digest(owner):
            haves.extend(_haves(store, owner, age_of(owner)))
    return haves, pages


def _haves(store: DocumentStore, owner: PeerName, age_s: int) -> list[Have]:
    held = store.pages_of(owner)
    messages: list[Have] = []
    first = FIRST_POSITION
    for at in range(0, max(1, len(held)), ENTRIES_MAX):
        chunk = held[at : at + ENTRIES_MAX]
        last = LAST_POSITION if at + ENTRIES_MAX >= len(held) else (chunk[-1].table, chunk[-1].index)
        stamps = tuple((page.table, page.index, *page.stamp) for page in chunk)
        messages.append(Have(owner, age_s, first, last, stamps))
        first = (last[0], last[1] + 1)
    return messages


def answer_have(store: DocumentStore, theirs: Have) -> tuple[list[Page], list[Want]]:
    """Our pages that are newer or missing there, and requests for those that are newer or missing here."""
    has = {(table, index): (epoch, version, digest) for table, index, epoch, version, digest in theirs.pages}
    newer: list[Page] = []
    wanted: list[tuple[str, int]] = []
    for page in store.pages_of(theirs.owner):
        position = (page.table, page.index)
        if theirs.first <= position <= theirs.last and (position not in has or has[position] < page.stamp):
            newer.append(page)
    for position in sorted(has):
        held = store.get((theirs.owner, *position))
        if held is None or held.stamp < has[position]:
            wanted.append(position)
    wants = [Want(theirs.owner, tuple(wanted))] if wanted else []
    return newer, wants


def answer_want(store: DocumentStore, theirs: Want) -> list[Page]:
    held = (store.get((theirs.owner, *position)) for position in theirs.pages)
    return [page for page in held if page is not None]
