"""What everybody has said, as this host knows it: documents, who is in reach, and what became of our own pages.

Takes pages from the network and says what is news; knows nothing of links, messages or timers. Our own documents are
written here too, so that a page of ours that comes back from the past, or from a twin, is recognised.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from gossip.documents import (
    EPOCH_MAX,
    PAGES_PER_OWNER_MAX,
    DocumentStore,
    Page,
    PageHeader,
    parse_header_untrusted,
    sign_page,
    verify_page_untrusted,
)
from gossip.errors import ProtocolError
from gossip.identity import Identity
from gossip.names import PeerName
from gossip.peers import (
    GONE,
    LINKS_TABLE,
    PEER_TABLE,
    PeerRecord,
    decode_links_untrusted,
    decode_peer_untrusted,
    encode_links,
    encode_peer,
)
from gossip.routes import reachable_from

JUMPS_MAX = 4
JUMP_WINDOW_S = 60.0
"""A host restored from a backup finds later documents of its own once. Four times in a minute is another live host."""


@dataclass(frozen=True, slots=True)
class OwnPageObsolete:
    """A page of ours from before our last start is still around and not used any more: an empty one must follow it."""

    table: str
    index: int


@dataclass(frozen=True, slots=True)
class LaterEpoch:
    """Pages signed with our key exist that we never wrote: we must speak under a later epoch than theirs."""

    epoch: int


@dataclass(frozen=True, slots=True)
class TwinPersists:
    """Another live host goes on writing with our key, and by rule it is we who yield."""


@dataclass(frozen=True, slots=True)
class MalformedPage:
    """News that we cannot read. It is kept and passed on all the same, since others may know more than we do, and
    stores that differ for ever would never be at rest."""

    page: Page


News = Page | MalformedPage | OwnPageObsolete | LaterEpoch | TwinPersists | str
"""A `Page` is new here; a text is the counter of why it is not."""


class Replica:
    """One host's copy of the mesh's documents, its own among them."""

    def __init__(
        self, identity: Identity, record: PeerRecord, epoch: int, forget_after_s: float, forget_gone_after_s: float
    ) -> None:
        self.store = DocumentStore()
        self.epoch = epoch
        self.peers: dict[PeerName, PeerRecord] = {identity.name: record}
        """The `peer` document of everybody we know, ourselves included."""
        self.reachable: frozenset[PeerName] = frozenset()
        self.unreachable_since: dict[PeerName, float] = {}
        self._identity = identity
        self._forget_after_s = forget_after_s
        self._forget_gone_after_s = forget_gone_after_s
        self._claims: dict[PeerName, tuple[PeerName, ...]] = {}
        self._own: dict[tuple[str, int], bytes] = {}
        self._version = 0
        self._epoch_wanted: int | None = None
        self._jumps: list[float] = []
        self._twin_instance: bytes | None = None
        self.write(PEER_TABLE, 0, encode_peer(record))
        self.write(LINKS_TABLE, 0, encode_links([]))

    @property
    def record(self) -> PeerRecord:
        """What we say of ourselves."""
        return self.peers[self._identity.name]

    @record.setter
    def record(self, record: PeerRecord) -> None:
        self.peers[self._identity.name] = record

    def claims_of(self, peer: PeerName) -> tuple[PeerName, ...]:
        """Whom a peer says it has links with."""
        return self._claims.get(peer, ())

    # -- our own pages -----------------------------------------------------------------------------

    def is_current(self, table: str, index: int, body: bytes) -> bool:
        """Whether this is what the page says already; one that never was is empty."""
        return self._own.get((table, index), b"") == body

    def write(self, table: str, index: int, body: bytes) -> Page:
        """The next version of one of our own pages, kept and signed."""
        self._version += 1
        self._own[(table, index)] = body
        page = sign_page(self._identity, table, index, self.epoch, self._version, body)
        newer = self.store.offer(page, limited=False)
        assert newer, "our own next version is the newest"
        return page

    def begin_epoch(self, epoch: int) -> list[tuple[str, int, bytes]]:
        """A later epoch is on disk: every page of ours, to be written again under it. Nothing where it is not late
        enough any more."""
        if self._epoch_wanted is None or epoch < self._epoch_wanted:
            return []
        self.epoch, self._epoch_wanted, self._version = epoch, None, 0
        return [(table, index, body) for (table, index), body in sorted(self._own.items())]

    # -- pages from the network --------------------------------------------------------------------

    def take_untrusted(self, raw: bytes, age_s: int, now: float) -> News:
        """A page somebody sent; its owner was out of the sender's reach for `age_s`. Raises `ProtocolError` where the
        sender must have known better: a malformed header, a wrong signature, too many pages."""
        header = parse_header_untrusted(raw)
        owner = header.id[0]
        if owner == self._identity.name:
            return self._take_own_untrusted(header, raw, now)
        held = self.store.get(header.id)
        if held is not None and held.stamp >= header.stamp:
            return "pages-old"
        if age_s >= self._forget_after_s and owner not in self.store:
            return "pages-expired"
        page = verify_page_untrusted(header, raw)
        try:
            newer = self.store.offer(page)
        except ProtocolError:
            return "pages-too-many"  # The owner's fault, not the sender's.
        assert newer, "compared above"
        if owner not in self.reachable:
            # A new version is a sign of life, and so old as the sender says.
            seen = now - age_s
            self.unreachable_since[owner] = max(self.unreachable_since.get(owner, seen), seen)
        try:
            self._read_untrusted(page)
        except ProtocolError:
            return MalformedPage(page)
        return page

    def _read_untrusted(self, page: Page) -> None:
        if _is_first(page, PEER_TABLE):
            self.peers[page.owner] = decode_peer_untrusted(page.body)
        elif _is_first(page, LINKS_TABLE):
            self._claims[page.owner] = decode_links_untrusted(page.body)

    def _take_own_untrusted(self, header: PageHeader, raw: bytes, now: float) -> News:
        """Somebody holds a page of ours. If we did not write it, an earlier or another life of this host did."""
        _, table, index = header.id
        epoch, version, _ = header.stamp
        held = self.store.get(header.id)
        if held is not None and held.raw == raw:
            return "pages-old"
        if epoch < self.epoch:
            has_successor = held is not None or len(self._own) >= PAGES_PER_OWNER_MAX
            return "pages-old" if has_successor else OwnPageObsolete(table, index)
        if epoch == self.epoch and version <= self._version and not (held is not None and held.version == version):
            return "pages-old"
        page = verify_page_untrusted(header, raw)
        if _is_first(page, PEER_TABLE):
            with suppress(ProtocolError):
                self._twin_instance = decode_peer_untrusted(page.body).instance
        if self._epoch_wanted is not None and self._epoch_wanted > epoch:
            return "pages-old"
        if epoch >= EPOCH_MAX:
            return TwinPersists()  # No epoch is later; whoever wrote this meant harm.
        self._jumps = [*(at for at in self._jumps if now - at < JUMP_WINDOW_S), now]
        if len(self._jumps) >= JUMPS_MAX and self._twin_instance and self.record.instance > self._twin_instance:
            return TwinPersists()
        self._epoch_wanted = epoch + 1
        return LaterEpoch(epoch + 1)

    # -- reach -------------------------------------------------------------------------------------

    def update_reach(self, neighbours: Iterable[PeerName], now: float) -> frozenset[PeerName]:
        """Find out again who is in reach; who came or went."""
        departed = frozenset(name for name, record in self.peers.items() if record.state == GONE)
        before = self.reachable
        near = frozenset(neighbours)
        reached = reachable_from(near, self._claims, departed | {self._identity.name})
        # Names that somebody claims and nobody has heard of are no peers.
        self.reachable = frozenset(name for name in reached if name in self.peers or name in near)
        for name in before - self.reachable:
            self.unreachable_since[name] = now
        for name in self.reachable - before:
            self.unreachable_since.pop(name, None)
        return before ^ self.reachable

    def age_s(self, owner: PeerName, now: float) -> int:
        """Whole seconds since an owner was last in reach, rounded up: what is passed on from host to host must only
        grow older, or a few hosts that forget and remind each other would keep an owner alive for ever."""
        since = self.unreachable_since.get(owner)
        return 0 if since is None else max(0, int(now - since)) + 1

    def is_expired(self, owner: PeerName, now: float) -> bool:
        """Out of reach for so long that nobody should be told of it any more."""
        since = self.unreachable_since.get(owner)
        return since is not None and now - since >= self._limit_s(owner)

    def forget_expired(self, now: float) -> list[PeerName]:
        """Drop owners that have been out of reach for too long; who they were."""
        expired = [owner for owner in sorted(self.unreachable_since) if self.is_expired(owner, now)]
        for owner in expired:
            self.store.forget(owner)
            del self.unreachable_since[owner]
            self.peers.pop(owner, None)
            self._claims.pop(owner, None)
        return expired

    def _limit_s(self, owner: PeerName) -> float:
        gone = owner in self.peers and self.peers[owner].state == GONE
        return self._forget_gone_after_s if gone else self._forget_after_s


def _is_first(page: Page, table: str) -> bool:
    return page.table == table and page.index == 0
