"""What a node remembers of one link: who is at its other end, when it was heard, and which pages wait for it.

Only remembers and compares; the node decides. Pages wait by identity, not by content: a neighbour that takes its time
gets the newest version of each, once, and what waits can never grow beyond what the store holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.documents import Page, PageId
from gossip.events import DialKey
from gossip.names import PeerName
from gossip.wire import ENTRIES_MAX, LAST_NAME, Digest, Hello

FLUSH_PAGES = 32
"""Pages sent at once to a neighbour that had been slow: a quarter of a megabyte."""
DIGEST_PASS_INTERVAL_S = 1.0
"""A neighbour may make us compare everything we hold this often and no oftener."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A link whose other end is known, as `status` shows it."""

    peer: PeerName
    remote: str
    initiator: bool
    rtt_s: float | None
    since: float
    observed: str
    """Our own address as this neighbour sees it."""


@dataclass(slots=True)
class LinkState:
    """One link of a node, from the moment that it is authentic."""

    id: int
    initiator: bool
    handshake_hash: bytes
    remote: str
    key: DialKey | None
    """What was dialled, where it was we who did."""
    opened: float
    last_heard: float
    next_ping: float
    hello_sequence: int = 0
    peer: PeerName | None = None
    instance: bytes = b""
    challenger: Hello | None = None
    """A hello that waits while the present owner of the name is given time to show life."""
    challenge_until: float = 0.0
    challenged: tuple[int, int] = (0, 0)
    """The link with that owner then, and the ping on it whose answer shows life. What merely arrives may be old."""
    sequence: int = 0
    answered: int = 0
    """The newest ping that was answered."""
    ping_sent: float = 0.0
    rtt_s: float | None = None
    next_resync: float = 0.0
    differs: int = 0
    resyncs_in_vain: int = 0
    digest_pass_at: float = -1e9
    """When the neighbour last began to tell us its digests from the first owner on."""
    digest_told: PeerName = LAST_NAME
    """How far it has come since."""
    full: bool = False
    waiting: dict[PageId, None] = field(default_factory=dict)
    """Pages that wait until the link takes more, oldest wish first."""
    observed: str = ""

    @property
    def can_flush(self) -> bool:
        return bool(self.waiting) and not self.full

    def admit(self, pages: list[Page]) -> list[Page]:
        """Which of `pages` to send now: all, or none, and then they wait."""
        if not self.full and not self.waiting and len(pages) <= FLUSH_PAGES:
            return pages
        self.waiting.update((page.id, None) for page in pages)
        return []

    def take_waiting(self) -> list[PageId]:
        """The next pages to send of those that wait."""
        batch = list(self.waiting)[:FLUSH_PAGES]
        for page_id in batch:
            del self.waiting[page_id]
        return batch

    def may_ask(self, digest: Digest, now: float) -> bool:
        """Whether to answer: the next part of a pass over all owners, or a new pass that does not come too soon."""
        if digest.first <= self.digest_told:
            if now < self.digest_pass_at + DIGEST_PASS_INTERVAL_S:
                return False
            self.digest_pass_at = now
        self.digest_told = digest.last if len(digest.owners) == ENTRIES_MAX else LAST_NAME
        return True

    def is_preferred_to(self, other: LinkState) -> bool:
        """Which of two links with one instance of a peer both ends keep. The dialler's count makes a later link of the
        same dialler win; the hash settles the rest. One order of all links, or three at once would leave none."""
        return (self.hello_sequence, self.handshake_hash) > (other.hello_sequence, other.handshake_hash)

    def status(self, peer: PeerName) -> LinkStatus:
        return LinkStatus(peer, self.remote, self.initiator, self.rtt_s, self.opened, self.observed)
