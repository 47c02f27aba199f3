"""One whole peer without sockets: links and messages in, effects and events out.

The node holds the documents of every peer it knows, keeps a few links, finds out who is in reach, and passes news on.
It never reads a clock, never waits, and never looks into documents other than `peer` and `links`. Each call gives one
complete answer: a list of effects to perform and events to pass up, in order. After a call that closes a link, the
node has already forgotten that link; late input for it is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from gossip.dialer import Attempts, Dialer
from gossip.documents import DocumentStore, Page, PageId, parse_header_untrusted, sign_page, verify_page_untrusted
from gossip.errors import ProtocolError
from gossip.events import (
    CloseLink,
    Dial,
    DialKey,
    NameConflict,
    Outcome,
    OwnerForgotten,
    PageChanged,
    PeerChanged,
    Send,
    Settled,
    StoreEpoch,
)
from gossip.identity import Identity, signature_is_valid
from gossip.names import PeerName, format_name, name_of_key
from gossip.peers import (
    AWAY,
    GONE,
    LINKS_TABLE,
    LIVE,
    PEER_TABLE,
    PeerRecord,
    decode_links_untrusted,
    decode_peer_untrusted,
    encode_links,
    encode_peer,
    with_port,
)
from gossip.routes import links_wanted, reachable_from
from gossip.sync import answer_digest, answer_have, answer_want, digests
from gossip.wire import (
    Bye,
    Digest,
    Have,
    Hello,
    Message,
    PageMessage,
    Ping,
    Pong,
    Want,
    decode_untrusted,
    encode,
)

LINKS_HARD_MAX = 512
"""Beyond this many links at once a newcomer is sent away; pruning keeps the usual number near log2 of the mesh."""
DIALS_AT_ONCE = 3
FLUSH_PAGES = 32
"""Pages sent at once to a neighbour that had been slow: a quarter of a megabyte."""
LATE_S = 0.5
_HELLO_LABEL = b"weft hello 1\x00"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the user may set, and the times that tests shorten."""

    port: int = 6783
    """Where a target that names no port is expected to listen."""
    discovery: bool = True
    """Dial peers that nobody named here."""
    heartbeat_interval_s: float = 1.0
    dead_after_s: float = 3.0
    """A neighbour that says nothing for this long is dead to us."""
    hello_timeout_s: float = 5.0
    challenge_s: float = 1.5
    """How long an old link has to show life when a new one claims the same name."""
    resync_interval_s: float = 5.0
    """Least time between two exchanges of digests on one link."""
    announce_delay_s: float = 0.05
    """Changes of our own links within this time become one document."""
    prune_interval_s: float = 3.0
    heal_interval_s: float = 2.0
    """Between dials to peers that are out of reach; grows with the size of the mesh."""
    forget_after_s: float = 86_400.0
    forget_gone_after_s: float = 600.0


@dataclass(slots=True)
class _Link:
    id: int
    initiator: bool
    handshake_hash: bytes
    remote: str
    key: DialKey | None
    opened: float
    last_heard: float
    next_ping: float
    hello_sequence: int = 0
    peer: PeerName | None = None
    instance: bytes = b""
    challenger: Hello | None = None
    """A hello that waits while the present owner of the name is given time to show life."""
    challenge_until: float = 0.0
    sequence: int = 0
    ping_sent: float = 0.0
    rtt_s: float | None = None
    synced: bool = False
    next_resync: float = 0.0
    differs: int = 0
    full: bool = False
    pending: dict[PageId, None] | None = None
    """Pages that wait until the link takes more: their identities, so that the newest version is what is sent."""
    observed: str = ""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    peer: PeerName
    remote: str
    initiator: bool
    rtt_s: float | None
    since: float
    observed: str
    """Our own address as this neighbour sees it."""


@dataclass(frozen=True, slots=True)
class TargetStatus:
    target: str
    state: str
    """connected | meshed | connecting | waiting | self | refused"""
    error: str | None
    next_try_s: float | None
    peer: PeerName | None


class Node:
    """A peer. `link_up`, `receive`, `link_down`, `dial_failed`, `handle_timeout` and the verbs are its only inputs."""

    def __init__(
        self, identity: Identity, record: PeerRecord, epoch: int, config: NodeConfig, rng: Random, now: float
    ) -> None:
        self.identity = identity
        self.name = identity.name
        self.epoch = epoch
        self.config = config
        self.store = DocumentStore()
        self.peers: dict[PeerName, PeerRecord] = {self.name: record}
        """The `peer` document of everybody we know, ourselves included."""
        self.reachable: frozenset[PeerName] = frozenset()
        self.unreachable_since: dict[PeerName, float] = {}
        self.settled = False
        self.conflict: str | None = None
        self.counters: dict[str, int] = {}
        self._rng = rng
        self._dialer = Dialer(rng)
        self._claims: dict[PeerName, tuple[PeerName, ...]] = {}
        self._links: dict[int, _Link] = {}
        self._neighbours: dict[PeerName, _Link] = {}
        self._own: dict[tuple[str, int], bytes] = {}
        self._version = 0
        self._hello_sequence = 0
        self._epoch_wanted: int | None = None
        self._jumps: list[float] = []
        self._foreign_instance: bytes | None = None
        self._links_due: float | None = None
        self._reach_due: float | None = None
        self._flush_due: float | None = None
        self._prune_due = now + config.prune_interval_s
        self._heal_due = now + config.heal_interval_s * rng.random()
        self._forget_due = now + 10.0
        self._armed: float | None = None
        self._publish_own(PEER_TABLE, 0, encode_peer(record))
        self._publish_own(LINKS_TABLE, 0, encode_links([]))

    # -- what the layer above asks ------------------------------------------------------------------------------

    def publish(self, table: str, index: int, body: bytes, now: float) -> list[Outcome]:
        """Make `body` the newest version of one of our own pages and tell everybody. Nothing if it is the same."""
        assert table not in (PEER_TABLE, LINKS_TABLE)
        if self._own.get((table, index), None if body else b"") == body:
            return []
        return self._announce(table, index, body, now)

    def describe(self, record: PeerRecord, now: float) -> list[Outcome]:
        """Replace what we say of ourselves."""
        if record == self.peers[self.name]:
            return []
        self.peers[self.name] = record
        return [*self._announce(PEER_TABLE, 0, encode_peer(record), now), PeerChanged(self.name)]

    def connect(self, targets: list[str], now: float, replace_all: bool = False) -> list[Outcome]:
        """Add targets (or make these the only ones) and dial them at once. A replaced target's link stays."""
        if replace_all:
            self._dialer.forget([target for target in self._dialer.targets if target not in targets])
        self._dialer.connect(targets, now)
        return self._dial(now)

    def forget(self, targets: list[str]) -> list[str]:
        """Drop targets; those that were not known. A live link stays."""
        unknown = [target for target in targets if target not in self._dialer.targets]
        self._dialer.forget(targets)
        return unknown

    def leave(self, gone: bool, now: float) -> list[Outcome]:
        """Say goodbye: `away` (back soon, containers go on) or `gone` (for good), then close every link."""
        record = replace(self.peers[self.name], state=GONE if gone else AWAY)
        outcomes = self.describe(record, now)
        for link in self._sorted_links():
            outcomes += self._close(link, "leaving", "this peer has been stopped", now)
        return outcomes

    def epoch_stored(self, epoch: int, now: float) -> list[Outcome]:
        """`StoreEpoch` is done: everything of ours is published anew under the later epoch."""
        if self._epoch_wanted is None or epoch < self._epoch_wanted:
            return []
        self.epoch, self._epoch_wanted, self._version = epoch, None, 0
        outcomes: list[Outcome] = []
        for (table, index), body in sorted(self._own.items()):
            outcomes += self._announce(table, index, body, now)
        return outcomes

    # -- links ----------------------------------------------------------------------------------------------------

    def link_up(
        self, link_id: int, initiator: bool, handshake_hash: bytes, remote: str, key: DialKey | None, now: float
    ) -> list[Outcome]:
        """A link is authentic (its other side knows the secret) but has not yet said who it is."""
        assert link_id not in self._links
        link = _Link(link_id, initiator, handshake_hash, remote, key, now, now, now + self.config.hello_timeout_s)
        self._links[link_id] = link
        if self.conflict is not None:
            return self._close(link, "name-in-use", self.conflict, now)
        if len(self._links) > LINKS_HARD_MAX:
            return self._close(link, "full", f"this peer has {LINKS_HARD_MAX} links", now)
        self._hello_sequence += 1
        link.hello_sequence = self._hello_sequence
        signature = self.identity.sign(_hello_text(initiator, handshake_hash))
        record = self.peers[self.name]
        hello = Hello(
            self.identity.public_key, signature, record.instance, self._hello_sequence, record.nickname, remote
        )
        return [Send(link_id, encode(hello))]

    def link_down(self, link_id: int, error: str, now: float) -> list[Outcome]:
        """The connection ended."""
        link = self._links.get(link_id)
        return [] if link is None else self._remove(link, error, now)

    def link_full(self, link_id: int) -> None:
        """The socket takes no more for now: pages wait, and only their newest version will be sent."""
        if link_id in self._links:
            self._links[link_id].full = True

    def link_ready(self, link_id: int, now: float) -> list[Outcome]:
        link = self._links.get(link_id)
        if link is None:
            return []
        link.full = False
        return self._flush(link, now)

    def dial_failed(self, key: DialKey, error: str, now: float, refused: bool = False) -> list[Outcome]:
        """No address of `key` gave a link."""
        self._dialer.failed(key, error, now, refused)
        return self._dial(now)

    def receive(self, link_id: int, data: bytes, now: float) -> list[Outcome]:
        """One message from a link. A neighbour that breaks the rules loses the link; the reason is counted."""
        link = self._links.get(link_id)
        if link is None:
            return []
        link.last_heard = now
        try:
            return self._receive(link, decode_untrusted(data), now)
        except ProtocolError as error:
            self._count(f"protocol-{error.reason}")
            return self._close(link, error.reason, str(error)[:200], now)

    def _receive(self, link: _Link, message: Message, now: float) -> list[Outcome]:
        match message:
            case Hello():
                return self._hello(link, message, now)
            case Bye(reason, text):
                return self._bye(link, reason, text, now)
        if link.peer is None:
            if link.challenger is not None:
                return []
            raise ProtocolError("no-hello", "the first message was not a hello")
        match message:
            case Ping(sequence, root):
                pong = Send(link.id, encode(Pong(sequence, self.store.root_digest())))
                return [pong, *self._compare(link, root, now)]
            case Pong(sequence, root):
                if sequence == link.sequence:
                    link.rtt_s = now - link.ping_sent
                return self._compare(link, root, now)
            case PageMessage():
                return self._page(link, message, now)
            case Digest():
                haves, pages = answer_digest(self.store, message, lambda owner: self._age_s(owner, now))
                return [*(Send(link.id, encode(have)) for have in haves), *self._queue(link, pages, now)]
            case Have():
                if message.age_s > self.config.forget_after_s and message.owner not in self.peers:
                    return []
                pages, wants = answer_have(self.store, message)
                return [*(Send(link.id, encode(want)) for want in wants), *self._queue(link, pages, now)]
            case Want():
                return self._queue(link, answer_want(self.store, message), now)
        raise AssertionError(message)

    # -- who is at the other end ------------------------------------------------------------------------------------

    def _hello(self, link: _Link, hello: Hello, now: float) -> list[Outcome]:
        if link.peer is not None or link.challenger is not None:
            raise ProtocolError("second-hello", "a link said hello twice")
        signed = _hello_text(not link.initiator, link.handshake_hash)
        if not signature_is_valid(hello.public_key, hello.signature, signed):
            raise ProtocolError("bad-identity", "the hello is not signed by the key that it names")
        name = name_of_key(hello.public_key)
        link.instance, link.observed = hello.instance, hello.observed
        if not link.initiator:
            link.hello_sequence = hello.sequence
        if name == self.name:
            return self._same_name(link, hello, now)
        current = self._neighbours.get(name)
        if current is None:
            return self._accept(link, name, now)
        if current.instance != hello.instance:
            # A restarted peer, whose old link has not ended yet, or a second host with the same key. The old link's
            # next answer tells which.
            link.challenger, link.challenge_until = hello, now + self.config.challenge_s
            return self._ping(current, now)
        if _is_preferred(link, current):
            outcomes = self._close(current, "duplicate", "another link to this peer is kept", now, quiet=True)
            return outcomes + self._accept(link, name, now)
        if link.key is not None:
            self._dialer.succeeded(link.key, name)
        return self._close(link, "duplicate", "another link to this peer is kept", now)

    def _same_name(self, link: _Link, hello: Hello, now: float) -> list[Outcome]:
        if hello.instance == self.peers[self.name].instance:
            if link.key is not None:
                self._dialer.led_to_ourselves(link.key)
            return self._close(link, "self", "this is the same daemon", now)
        self._count("refused-name-in-use")
        text = (
            f"another live host ({link.remote}) uses this peer's identity {format_name(self.name)}; if its state "
            "directory was copied, run `weft reset` on one of them to give it an identity of its own"
        )
        if link.key is not None:
            self._dialer.failed(link.key, text, now, refused=True)
        return self._close(link, "name-in-use", text, now)

    def _accept(self, link: _Link, name: PeerName, now: float) -> list[Outcome]:
        link.peer, link.challenger = name, None
        self._neighbours[name] = link
        if link.key is not None:
            self._dialer.succeeded(link.key, name)
        self._links_due = now + self.config.announce_delay_s
        outcomes: list[Outcome] = []
        if link.initiator:
            link.next_resync = now + self.config.resync_interval_s
            outcomes += [Send(link.id, encode(digest)) for digest in digests(self.store)]
        return [*outcomes, *self._ping(link, now), *self._update_reach(now, PeerChanged(name))]

    def _bye(self, link: _Link, reason: str, text: str, now: float) -> list[Outcome]:
        if reason == "self" and link.key is not None:
            self._dialer.led_to_ourselves(link.key)
        elif reason in ("name-in-use", "full") and link.key is not None:
            self._dialer.failed(link.key, text or reason, now, refused=reason == "name-in-use")
        return [CloseLink(link.id, reason), *self._remove(link, text or reason, now)]

    def _close(self, link: _Link, reason: str, text: str, now: float, quiet: bool = False) -> list[Outcome]:
        """End a link from our side, saying why."""
        outcomes: list[Outcome] = [Send(link.id, encode(Bye(reason, text[:250]))), CloseLink(link.id, reason)]
        return outcomes + self._remove(link, reason, now, quiet)

    def _remove(self, link: _Link, error: str, now: float, quiet: bool = False) -> list[Outcome]:
        del self._links[link.id]
        attempts = self._dialer.attempts(link.key) if link.key is not None else None
        if link.key is not None and attempts is not None and attempts.dialling:
            self._dialer.failed(link.key, error, now)
        if link.peer is None or self._neighbours.get(link.peer) is not link:
            return []
        del self._neighbours[link.peer]
        self._dialer.link_lost(link.peer, now - link.opened, now)
        self._links_due = now + self.config.announce_delay_s
        outcomes: list[Outcome] = []
        for other in self._sorted_links():
            if other.challenger is not None and name_of_key(other.challenger.public_key) == link.peer:
                outcomes += self._accept(other, link.peer, now)
                break
        return outcomes if quiet else [*outcomes, *self._update_reach(now, PeerChanged(link.peer))]

    # -- documents --------------------------------------------------------------------------------------------------

    def _page(self, link: _Link, message: PageMessage, now: float) -> list[Outcome]:
        header = parse_header_untrusted(message.raw)
        owner, table, index = header.id
        held = self.store.get(header.id)
        if owner == self.name:
            return self._own_page_came_back(header.id, header.stamp, message.raw, now)
        if held is not None and held.stamp >= header.stamp:
            self._count("pages-old")
            return []
        if message.age_s > self.config.forget_after_s and owner not in self.peers:
            self._count("pages-expired")
            return []
        page = verify_page_untrusted(header, message.raw)
        try:
            record, claims = _read_untrusted(page)
        except ProtocolError:
            self._count("pages-malformed")  # The owner's fault, not this neighbour's: the link stays.
            return []
        newer = self.store.offer(page)
        assert newer, "compared above"
        self._count("pages-new")
        if record is not None:
            self.peers[owner] = record
        if claims is not None:
            self._claims[owner] = claims
        if owner not in self.reachable and owner not in self.unreachable_since:
            self.unreachable_since[owner] = now - message.age_s
        outcomes: list[Outcome] = [PageChanged(owner, table, index)]
        if table == PEER_TABLE:
            outcomes += self._update_reach(now, PeerChanged(owner))
        elif table == LINKS_TABLE and self._reach_due is None:
            self._reach_due = now + self.config.announce_delay_s / 2
        return outcomes + self._flood(page, now, link)

    def _own_page_came_back(
        self, page_id: PageId, stamp: tuple[int, int, bytes], raw: bytes, now: float
    ) -> list[Outcome]:
        """Somebody holds a page of ours. If we did not write it, an earlier or another life of this host did."""
        _, table, index = page_id
        held = self.store.get(page_id)
        if held is not None and held.raw == raw:
            return []
        epoch, version, _ = stamp
        if (epoch, version) < (self.epoch, 1):
            if held is None:  # From before our last start, and not used any more: say so.
                return self._announce(table, index, b"", now)
            return []
        ours = epoch == self.epoch and version <= self._version and not (held and held.version == version)
        if ours:
            return []
        page = verify_page_untrusted(parse_header_untrusted(raw), raw)
        if table == PEER_TABLE:
            self._foreign_instance = decode_peer_untrusted(page.body).instance
        if self._epoch_wanted is not None and self._epoch_wanted > epoch:
            return []
        self._jumps = [at for at in self._jumps if now - at < 60.0] + [now]
        if len(self._jumps) >= 4 and self._foreign_instance and self.peers[self.name].instance > self._foreign_instance:
            return self._give_up_name(now)
        self._epoch_wanted = epoch + 1
        return [StoreEpoch(epoch + 1)]

    def _give_up_name(self, now: float) -> list[Outcome]:
        self.conflict = (
            f"another live host uses this peer's identity {format_name(self.name)}, so this one has left the mesh; "
            "its state directory was probably copied: run `weft reset` here to give it an identity of its own"
        )
        outcomes: list[Outcome] = [NameConflict(self.conflict)]
        for link in self._sorted_links():
            outcomes += self._close(link, "name-in-use", self.conflict, now)
        return outcomes

    def _announce(self, table: str, index: int, body: bytes, now: float) -> list[Outcome]:
        page = self._publish_own(table, index, body)
        outcomes: list[Outcome] = []
        for link in self._sorted_links():
            if link.peer is not None:
                outcomes += self._queue(link, [page], now)
        return outcomes

    def _publish_own(self, table: str, index: int, body: bytes) -> Page:
        self._version += 1
        self._own[(table, index)] = body
        page = sign_page(self.identity, table, index, self.epoch, self._version, body)
        newer = self.store.offer(page)
        assert newer, "our own next version is the newest"
        return page

    def _flood(self, page: Page, now: float, source: _Link) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for link in self._sorted_links():
            if link is source and link.pending:
                link.pending.pop(page.id, None)  # It has this version; ours was older.
            elif link is not source and link.peer not in (None, page.owner):
                outcomes += self._queue(link, [page], now)
        return outcomes

    def _queue(self, link: _Link, pages: list[Page], now: float) -> list[Outcome]:
        if link.full or link.pending or len(pages) > FLUSH_PAGES:
            if link.pending is None:
                link.pending = {}
            link.pending.update((page.id, None) for page in pages)
            if not link.full:
                self._flush_due = now
            return []
        return [self._send_page(link, page, now) for page in pages]

    def _flush(self, link: _Link, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while link.pending and len(outcomes) < FLUSH_PAGES:
            page_id = next(iter(link.pending))
            del link.pending[page_id]
            page = self.store.get(page_id)
            if page is not None:
                outcomes.append(self._send_page(link, page, now))
        self._flush_due = now if link.pending else None
        return outcomes

    def _send_page(self, link: _Link, page: Page, now: float) -> Send:
        return Send(link.id, encode(PageMessage(page.raw, self._age_s(page.owner, now))))

    def _age_s(self, owner: PeerName, now: float) -> int:
        since = self.unreachable_since.get(owner)
        return 0 if since is None else max(0, int(now - since))

    def _compare(self, link: _Link, root: bytes, now: float) -> list[Outcome]:
        """A heartbeat told what the neighbour holds: a difference that lasts is repaired by an exchange of digests."""
        if root == self.store.root_digest():
            link.synced, link.differs = True, 0
            if not self.settled:
                self.settled = True
                return [Settled()]
            return []
        link.differs += 1
        if link.differs < 2 or now < link.next_resync or link.pending:
            return []
        link.next_resync = now + self.config.resync_interval_s * (0.75 + 0.5 * self._rng.random())
        self._count("resyncs")
        return [Send(link.id, encode(digest)) for digest in digests(self.store)]

    # -- who is in reach --------------------------------------------------------------------------------------------

    def _update_reach(self, now: float, *events: PeerChanged) -> list[Outcome]:
        self._reach_due = None
        departed = frozenset(name for name, record in self.peers.items() if record.state == GONE)
        before = self.reachable
        self.reachable = reachable_from(self._neighbours, self._claims, departed | {self.name})
        changed = {event.peer for event in events} | (before ^ self.reachable)
        for name in before - self.reachable:
            self.unreachable_since[name] = now
        for name in self.reachable - before:
            self.unreachable_since.pop(name, None)
        return [PeerChanged(name) for name in sorted(changed)]

    # -- time -------------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due. Early calls are harmless, late ones normal."""
        if self.conflict is not None:
            return None
        due = [self._forget_due, self._prune_due]
        due += [at for at in (self._links_due, self._reach_due, self._flush_due) if at is not None]
        for link in self._links.values():
            if link.challenger is not None:
                due.append(link.challenge_until)
            elif link.peer is None:
                due.append(link.opened + self.config.hello_timeout_s)
            else:
                due += [link.next_ping, link.last_heard + self.config.dead_after_s]
        due.append(self._dial_due())
        self._armed = min(due)
        return self._armed

    def handle_timeout(self, now: float) -> list[Outcome]:
        if self.conflict is not None:
            return []
        self._flush_due = None
        outcomes = self._check_links(now, self._lateness_s(now))
        if self._reach_due is not None and now >= self._reach_due:
            outcomes += self._update_reach(now)
        if self._links_due is not None and now >= self._links_due:
            self._links_due = None
            body = encode_links(sorted(self._neighbours))
            if body != self._own[(LINKS_TABLE, 0)]:
                outcomes += self._announce(LINKS_TABLE, 0, body, now)
        if now >= self._prune_due:
            self._prune_due = now + self.config.prune_interval_s * (0.5 + self._rng.random())
            outcomes += self._prune(now)
        if now >= self._forget_due:
            self._forget_due = now + 10.0
            outcomes += self._forget_expired(now)
        return outcomes + self._dial(now)

    def _lateness_s(self, now: float) -> float:
        """How much later than armed this timer comes: on an overloaded host that counts against our own accusations."""
        late = 0.0 if self._armed is None else now - self._armed
        return late if late > LATE_S else 0.0

    def _check_links(self, now: float, grace_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for link in self._sorted_links():
            if link.id not in self._links:
                continue
            link.last_heard = min(now, link.last_heard + grace_s)
            if link.challenger is not None:
                if now >= link.challenge_until:
                    outcomes += self._challenge_over(link, link.challenger, now)
            elif link.peer is None:
                if now >= link.opened + self.config.hello_timeout_s + grace_s:
                    outcomes += self._close(link, "no-hello", "no hello in time", now)
            elif now >= link.last_heard + self.config.dead_after_s:
                self._count("links-silent")
                outcomes += self._close(link, "silent", f"nothing heard for {self.config.dead_after_s:g} s", now)
            else:
                if now >= link.next_ping:
                    outcomes += self._ping(link, now)
                if not link.full:
                    outcomes += self._flush(link, now)
        return outcomes

    def _challenge_over(self, link: _Link, hello: Hello, now: float) -> list[Outcome]:
        name = name_of_key(hello.public_key)
        current = self._neighbours.get(name)
        if current is not None and current.last_heard > link.challenge_until - self.config.challenge_s:
            self._count("refused-name-in-use")
            text = (
                f"the peer name {format_name(name)} is in use by a live host at {current.remote}; if the state "
                "directory was copied from there, run `weft reset` here to get an identity of its own"
            )
            return self._close(link, "name-in-use", text, now)
        outcomes: list[Outcome] = []
        if current is not None:
            outcomes = self._close(current, "replaced", "the peer has restarted", now, quiet=True)
        if link.peer is None:  # Closing the old link may have let this one in already.
            outcomes += self._accept(link, name, now)
        return outcomes

    def _ping(self, link: _Link, now: float) -> list[Outcome]:
        link.sequence += 1
        link.ping_sent = now
        link.next_ping = now + self.config.heartbeat_interval_s * (0.9 + 0.2 * self._rng.random())
        return [Send(link.id, encode(Ping(link.sequence, self.store.root_digest())))]

    def _prune(self, now: float) -> list[Outcome]:
        """With far more links than a mesh of this size needs, end one whose other end has enough without it."""
        low, high = links_wanted(1 + len(self.reachable))
        if len(self._neighbours) <= high:
            return []
        spare = [name for name in sorted(self._neighbours) if len(self._claims.get(name, ())) > low]
        outcomes: list[Outcome] = []
        for name in self._rng.sample(spare, min(len(spare), max(1, (len(self._neighbours) - high) // 4))):
            outcomes += self._close(self._neighbours[name], "enough", "this peer has more links than it needs", now)
        return outcomes

    def _forget_expired(self, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for owner in sorted(self.unreachable_since):
            gone = owner in self.peers and self.peers[owner].state == GONE
            limit = self.config.forget_gone_after_s if gone else self.config.forget_after_s
            if now - self.unreachable_since[owner] >= limit:
                self.store.forget(owner)
                del self.unreachable_since[owner]
                self.peers.pop(owner, None)
                self._claims.pop(owner, None)
                self._dialer.peers.pop(owner, None)
                outcomes.append(OwnerForgotten(owner))
        return outcomes

    # -- whom to dial -----------------------------------------------------------------------------------------------

    def _dial(self, now: float) -> list[Outcome]:
        if self.conflict is not None or self.peers[self.name].state != LIVE:
            return []
        outcomes: list[Outcome] = []
        for key, addresses in self._due_dials(now):
            self._dialer.begin(key, now)
            outcomes.append(Dial(key, addresses))
        return outcomes

    def _due_dials(self, now: float) -> list[tuple[DialKey, tuple[str, ...]]]:
        low, _ = links_wanted(1 + len(self.reachable))
        room = DIALS_AT_ONCE - self._dialer.dialling()
        dials: list[tuple[DialKey, tuple[str, ...]]] = []
        for target, attempts in sorted(self._dialer.targets.items()):
            if len(dials) < room and attempts.next_try <= now and self._target_state(target, attempts) == "waiting":
                dials.append((target, (target,)))
        if not self.config.discovery:
            return dials
        if len(self._neighbours) < low and len(dials) < room:
            candidates = [name for name in sorted(self.reachable) if self._may_discover(name, now)]
            if candidates:
                name = self._rng.choice(candidates)
                dials.append((name, self.peers[name].addresses))
        if now >= self._heal_due:
            spread = max(self.config.heal_interval_s, 0.1 * len(self.peers))
            self._heal_due = now + spread * (0.5 + self._rng.random())
            lost = [name for name in sorted(self.unreachable_since) if self._may_discover(name, now)]
            if lost and len(dials) < room:
                name = self._rng.choice(lost)
                dials.append((name, self.peers[name].addresses))
        return dials

    def _may_discover(self, name: PeerName, now: float) -> bool:
        record = self.peers.get(name)
        attempts = self._dialer.peers.get(name)
        if record is None or not record.addresses or record.state == GONE or name in self._neighbours:
            return False
        return attempts is None or (not attempts.dialling and attempts.next_try <= now)

    def _dial_due(self) -> float:
        """When the next dial may be due: one look at each heartbeat is enough, but a target's own time is exact."""
        due = self._heal_due if self.config.discovery else self._prune_due
        if self._dialer.dialling() >= DIALS_AT_ONCE:
            return due
        for target, attempts in self._dialer.targets.items():
            if not attempts.dialling and self._target_state(target, attempts) == "waiting":
                due = min(due, attempts.next_try)
        return due

    def _target_state(self, target: str, attempts: Attempts) -> str:
        peer = attempts.peer
        if peer is None:
            known = (name for name in sorted(self.reachable) if name in self.peers)
            address = with_port(target, self.config.port)
            peer = attempts.peer = next((name for name in known if address in self.peers[name].addresses), None)
        if attempts.ourselves:
            return "self"
        if peer in self._neighbours:
            return "connected"
        if attempts.dialling:
            return "connecting"
        low, _ = links_wanted(1 + len(self.reachable))
        if peer in self.reachable and len(self._neighbours) >= min(low, len(self.reachable)):
            return "meshed"
        return "waiting"

    # -- looking inside -----------------------------------------------------------------------------------------------

    def links(self) -> list[LinkStatus]:
        """Every link whose other end is known, in order of peers' names."""
        return [
            LinkStatus(name, link.remote, link.initiator, link.rtt_s, link.opened, link.observed)
            for name, link in sorted(self._neighbours.items())
        ]

    def targets(self, now: float) -> list[TargetStatus]:
        rows = []
        for target, attempts in self._dialer.targets.items():
            state = self._target_state(target, attempts)
            waits = state == "waiting"
            if waits and attempts.refused:
                state = "refused"
            next_try_s = max(0.0, attempts.next_try - now) if waits else None
            rows.append(TargetStatus(target, state, attempts.error, next_try_s, attempts.peer))
        return rows

    def _sorted_links(self) -> list[_Link]:
        return [self._links[link_id] for link_id in sorted(self._links)]

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1


def _hello_text(initiator: bool, handshake_hash: bytes) -> bytes:
    """What a hello signs: the role is part of it, so that a hello cannot be sent back to its author."""
    return _HELLO_LABEL + (b"i" if initiator else b"r") + handshake_hash


def _is_preferred(new: _Link, current: _Link) -> bool:
    """Which of two links with one instance of a peer both ends keep: both see the same two facts."""
    if new.initiator == current.initiator:
        return new.hello_sequence > current.hello_sequence
    return new.handshake_hash < current.handshake_hash


def _read_untrusted(page: Page) -> tuple[PeerRecord | None, tuple[PeerName, ...] | None]:
    """What gossip itself reads of a page: a peer's record or its links, or neither."""
    if page.table == PEER_TABLE and page.index == 0:
        return decode_peer_untrusted(page.body), None
    if page.table == LINKS_TABLE and page.index == 0:
        return None, decode_links_untrusted(page.body)
    return None, None
