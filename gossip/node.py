"""One whole peer without sockets: links and messages in, effects and events out.

The node holds the documents of every peer it knows, keeps a few links, finds out who is in reach, and passes news on.
It never reads a clock, never waits, and never looks into documents other than `peer` and `links`. Each call gives one
complete answer: a list of effects to perform and events to pass up, in order. After a call that closes a link, the
node has already forgotten that link; late input for it is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from gossip import introduction
from gossip.dialer import Dialer, Surroundings, TargetStatus
from gossip.documents import Page
from gossip.errors import ProtocolError
from gossip.events import (
    CloseLink,
    Dial,
    DialKey,
    NameConflict,
    NameContested,
    Outcome,
    OwnerForgotten,
    PageChanged,
    PeerChanged,
    Send,
    Settled,
    StoreEpoch,
)
from gossip.identity import Identity
from gossip.linkstate import LinkState, LinkStatus
from gossip.names import PeerName, format_name, name_of_key
from gossip.peers import (
    AWAY,
    GONE,
    LINKS_TABLE,
    LIVE,
    PEER_TABLE,
    PeerRecord,
    encode_links,
    encode_peer,
)
from gossip.replica import LaterEpoch, MalformedPage, OwnPageObsolete, Replica, TwinPersists
from gossip.routes import links_wanted
from gossip.sync import answer_digest, answer_have, answer_want, digests
from gossip.wire import (
    Bye,
    Contested,
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
LATE_S = 0.5
RESYNC_DOUBLINGS_MAX = 3
"""Stores that will not agree are compared every 40 s in the end."""


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
    announce_interval_s: float = 0.5
    """Least time between two of these: a link that flaps must not flood the mesh each time."""
    prune_interval_s: float = 3.0
    forget_after_s: float = 86_400.0
    forget_gone_after_s: float = 600.0


class Node:
    """A peer. `link_up`, `receive`, `link_down`, `dial_failed`, `handle_timeout` and the verbs are its only inputs."""

    def __init__(
        self, identity: Identity, record: PeerRecord, epoch: int, config: NodeConfig, rng: Random, now: float
    ) -> None:
        self.name = identity.name
        self.config = config
        self.replica = Replica(identity, record, epoch, config.forget_after_s, config.forget_gone_after_s)
        self.settled = False
        self.conflict: str | None = None
        self.counters: dict[str, int] = {}
        self._identity = identity
        self._rng = rng
        self._dialer = Dialer(config.port, config.discovery, rng, now)
        self._links: dict[int, LinkState] = {}
        self._neighbours: dict[PeerName, LinkState] = {}
        self._hello_sequence = 0
        self._links_due: float | None = None
        self._links_announced = now - config.announce_interval_s
        self._reach_due: float | None = None
        self._flush_due: float | None = None
        self._prune_due = now + config.prune_interval_s
        self._forget_due = now + 10.0
        self._armed: float | None = None

    # -- what the layer above asks -----------------------------------------------------------------

    def publish(self, table: str, index: int, body: bytes, now: float) -> list[Outcome]:
        """Make `body` the newest version of one of our own pages and tell everybody. Nothing if it is the same."""
        assert table not in (PEER_TABLE, LINKS_TABLE)
        if self.replica.is_current(table, index, body):
            return []
        return self._announce(table, index, body, now)

    def describe(self, record: PeerRecord, now: float) -> list[Outcome]:
        """Replace what we say of ourselves."""
        if record == self.replica.record:
            return []
        self.replica.record = record
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
        record = replace(self.replica.record, state=GONE if gone else AWAY)
        for link in self._links.values():
            link.waiting.clear()  # Last words do not queue.
            link.full = False
        outcomes = self.describe(record, now)
        for link in self._sorted_links():
            outcomes += self._close(link, "leaving", "this peer has been stopped", now)
        return outcomes

    def epoch_stored(self, epoch: int, now: float) -> list[Outcome]:
        """`StoreEpoch` is done: everything of ours is published anew under the later epoch."""
        outcomes: list[Outcome] = []
        for table, index, body in self.replica.begin_epoch(epoch):
            outcomes += self._announce(table, index, body, now)
        return outcomes

    # -- links -------------------------------------------------------------------------------------

    def link_up(
        self, link_id: int, initiator: bool, handshake_hash: bytes, remote: str, key: DialKey | None, now: float
    ) -> list[Outcome]:
        """A link is authentic (its other side knows the secret) but has not yet said who it is."""
        assert link_id not in self._links
        link = LinkState(link_id, initiator, handshake_hash, remote, key, now, now, now + self.config.hello_timeout_s)
        self._links[link_id] = link
        if self.conflict is not None:
            return self._close(link, "name-in-use", self.conflict, now)
        if len(self._links) > LINKS_HARD_MAX:
            return self._close(link, "full", f"this peer has {LINKS_HARD_MAX} links", now)
        self._hello_sequence += 1
        link.hello_sequence = self._hello_sequence
        # A peer that was found, not named, is asked first: at a private address another host may answer, and a link
        # with that one may stand already.
        return [] if isinstance(key, bytes) else [self._say_hello(link)]

    def _say_hello(self, link: LinkState) -> Send:
        return Send(link.id, encode(introduction.introduce(self._identity, self.replica.record, link)))

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

    def _receive(self, link: LinkState, message: Message, now: float) -> list[Outcome]:
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
                # A neighbour that asks and does not read gets no more answers than its socket takes.
                pong = [] if link.full else [Send(link.id, encode(Pong(sequence, self.replica.store.root_digest())))]
                return [*pong, *self._compare(link, root, now)]
            case Pong(sequence, root):
                if sequence == link.sequence:
                    link.rtt_s = now - link.ping_sent
                if sequence <= link.sequence:
                    link.answered = max(link.answered, sequence)
                return self._compare(link, root, now)
            case PageMessage():
                return self._page(link, message, now)
            case Digest() | Have() if link.full:
                self._count("answers-spared")
                return []
            case Digest():
                if not link.may_ask(message, now):
                    self._count("digests-too-soon")
                    return []
                haves, pages = answer_digest(self.replica.store, message, lambda owner: self.replica.age_s(owner, now))
                return [*(Send(link.id, encode(have)) for have in haves), *self._queue(link, pages, now)]
            case Have():
                if message.age_s >= self.config.forget_after_s and message.owner not in self.replica.store:
                    return []
                pages, wants = answer_have(self.replica.store, message)
                return [*(Send(link.id, encode(want)) for want in wants), *self._queue(link, pages, now)]
            case Want():
                return self._queue(link, answer_want(self.replica.store, message), now)
            case Contested(text):
                return [NameContested(text)]
        raise AssertionError(message)

    # -- who is at the other end -------------------------------------------------------------------

    def _hello(self, link: LinkState, hello: Hello, now: float) -> list[Outcome]:
        if link.peer is not None or link.challenger is not None:
            raise ProtocolError("second-hello", "a link said hello twice")
        name = introduction.identify_untrusted(hello, link)
        if isinstance(link.key, bytes) and name != link.key:
            self._dialer.failed(link.key, "another peer answers there", now)
            return self._close(link, "not-sought", "this is not the peer that was looked for", now)
        link.instance, link.observed = hello.instance, hello.observed
        if not link.initiator:
            link.hello_sequence = hello.sequence
        if name == self.name:
            return self._same_name(link, hello, now)
        answer: list[Outcome] = [self._say_hello(link)] if link.key == name else []
        return answer + self._admit(link, hello, name, now)

    def _admit(self, link: LinkState, hello: Hello, name: PeerName, now: float) -> list[Outcome]:
        """Somebody has shown that it is `name`: let it in, unless a link with `name` stands and is to be kept."""
        current = self._neighbours.get(name)
        if current is None:
            return self._accept(link, name, now)
        if current.instance != hello.instance:
            # A restarted peer, whose old link has not ended yet, or a second host with the same key. The old link's
            # next answer tells which.
            link.challenger, link.challenge_until = hello, now + self.config.challenge_s
            outcomes = self._ping(current, now)
            link.challenged = (current.id, current.sequence)
            return outcomes
        if link.is_preferred_to(current):
            outcomes = self._accept(link, name, now)
            return outcomes + self._close(current, "duplicate", "another link to this peer is kept", now)
        if link.key is not None:
            self._dialer.succeeded(link.key, name)
        return self._close(link, "duplicate", "another link to this peer is kept", now)

    def _same_name(self, link: LinkState, hello: Hello, now: float) -> list[Outcome]:
        if hello.instance == self.replica.record.instance:
            if link.key is not None:
                self._dialer.led_to_ourselves(link.key)
            return self._close(link, "self", "this is the same daemon", now)
        self._count("refused-name-in-use")
        text = introduction.also_used_by(self.name, link)
        if link.key is not None:
            self._dialer.failed(link.key, text, now, refused=True)
        return [NameContested(text), *self._close(link, "name-in-use", text, now)]

    def _accept(self, link: LinkState, name: PeerName, now: float) -> list[Outcome]:
        was_made_to_wait = link.challenger is not None
        link.peer, link.challenger = name, None
        self._neighbours[name] = link
        if link.key is not None:
            self._dialer.succeeded(link.key, name)
        self._plan_announcement(now)
        link.next_resync = now + self.config.resync_interval_s
        outcomes: list[Outcome] = []
        if link.initiator or was_made_to_wait:  # What was said to us while it waited is lost.
            outcomes += [Send(link.id, encode(digest)) for digest in digests(self.replica.store)]
        return [*outcomes, *self._ping(link, now), *self._update_reach(now, name)]

    def _bye(self, link: LinkState, reason: str, text: str, now: float) -> list[Outcome]:
        if reason in ("name-in-use", "full") and link.key is not None:
            self._dialer.failed(link.key, text or reason, now, refused=reason == "name-in-use")
        refused: list[Outcome] = [NameContested(text or reason)] if reason == "name-in-use" else []
        return [CloseLink(link.id, "bye"), *refused, *self._remove(link, text or reason, now)]

    def _close(self, link: LinkState, reason: str, text: str, now: float) -> list[Outcome]:
        """End a link from our side, saying why."""
        outcomes: list[Outcome] = [Send(link.id, encode(Bye(reason, text[:250]))), CloseLink(link.id, reason)]
        return outcomes + self._remove(link, reason, now)

    def _remove(self, link: LinkState, error: str, now: float) -> list[Outcome]:
        """Forget a link that has ended. One that another has replaced leaves nothing to do."""
        del self._links[link.id]
        attempts = self._dialer.attempts(link.key) if link.key is not None else None
        if link.key is not None and attempts is not None and attempts.dialling:
            self._dialer.failed(link.key, error, now)
        if link.peer is None or self._neighbours.get(link.peer) is not link:
            return []
        del self._neighbours[link.peer]
        self._dialer.link_lost(link.peer, now - link.opened, now)
        self._plan_announcement(now)
        outcomes: list[Outcome] = []
        for other in self._sorted_links():
            waiting = other.challenger
            if other.id in self._links and waiting is not None and name_of_key(waiting.public_key) == link.peer:
                outcomes += self._admit(other, waiting, link.peer, now)
        return [*outcomes, *self._update_reach(now, link.peer)]

    def _plan_announcement(self, now: float) -> None:
        """Our links have changed: tell everybody soon, and together with what changes until then."""
        if self._links_due is None:
            earliest = self._links_announced + self.config.announce_interval_s
            self._links_due = max(now + self.config.announce_delay_s, earliest)

    # -- documents ---------------------------------------------------------------------------------

    def _page(self, link: LinkState, message: PageMessage, now: float) -> list[Outcome]:
        news = self.replica.take_untrusted(message.raw, message.age_s, now)
        match news:
            case Page():
                return self._news(link, news, now)
            case MalformedPage(page):
                self._count("pages-malformed")
                return self._news(link, page, now)
            case OwnPageObsolete(table, index):
                return self._announce(table, index, b"", now)
            case LaterEpoch(epoch):
                return [StoreEpoch(epoch)]
            case TwinPersists():
                return self._give_up_name(now)
            case str():
                self._count(news)
        return []

    def _news(self, link: LinkState, page: Page, now: float) -> list[Outcome]:
        self._count("pages-new")
        outcomes: list[Outcome] = [PageChanged(*page.id)]
        if page.table == PEER_TABLE:
            outcomes += self._update_reach(now, page.owner)
        elif page.table == LINKS_TABLE and self._reach_due is None:
            self._reach_due = now + self.config.announce_delay_s / 2
        return outcomes + self._flood(page, now, link)

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
        page = self.replica.write(table, index, body)
        outcomes: list[Outcome] = []
        for link in self._sorted_links():
            if link.peer is not None:
                outcomes += self._queue(link, [page], now)
        return outcomes

    def _flood(self, page: Page, now: float, source: LinkState) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for link in self._sorted_links():
            if link is source:
                link.waiting.pop(page.id, None)  # It has this version; ours was older.
            elif link is not source and link.peer not in (None, page.owner):
                outcomes += self._queue(link, [page], now)
        return outcomes

    def _queue(self, link: LinkState, pages: list[Page], now: float) -> list[Outcome]:
        told = [page for page in pages if not self.replica.is_expired(page.owner, now)]
        outcomes: list[Outcome] = [self._send_page(link, page, now) for page in link.admit(told)]
        if link.can_flush:
            self._flush_due = now
        return outcomes

    def _flush(self, link: LinkState, now: float) -> list[Outcome]:
        held = (self.replica.store.get(page_id) for page_id in link.take_waiting())
        pages = (page for page in held if page is not None and not self.replica.is_expired(page.owner, now))
        outcomes: list[Outcome] = [self._send_page(link, page, now) for page in pages]
        if link.can_flush:
            self._flush_due = now
        return outcomes

    def _send_page(self, link: LinkState, page: Page, now: float) -> Send:
        return Send(link.id, encode(PageMessage(page.raw, self.replica.age_s(page.owner, now))))

    def _compare(self, link: LinkState, root: bytes, now: float) -> list[Outcome]:
        """A heartbeat told what the neighbour holds: a difference that lasts is repaired by an exchange of digests."""
        if root == self.replica.store.root_digest():
            link.differs = link.resyncs_in_vain = 0
            if not self.settled:
                self.settled = True
                return [Settled()]
            return []
        link.differs += 1
        if link.differs < 2 or now < link.next_resync or link.waiting:
            return []
        # What an exchange did not repair, the next will hardly: limits differ, or releases.
        interval_s = self.config.resync_interval_s * 2 ** min(link.resyncs_in_vain, RESYNC_DOUBLINGS_MAX)
        link.next_resync = now + interval_s * (0.75 + 0.5 * self._rng.random())
        link.resyncs_in_vain += 1
        self._count("resyncs")
        return [Send(link.id, encode(digest)) for digest in digests(self.replica.store)]

    # -- who is in reach ---------------------------------------------------------------------------

    def _update_reach(self, now: float, *changed: PeerName) -> list[Outcome]:
        self._reach_due = None
        moved = self.replica.update_reach(self._neighbours, now)
        return [PeerChanged(name) for name in sorted(moved | set(changed))]

    # -- time --------------------------------------------------------------------------------------

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
                due.append(link.last_heard + self.config.hello_timeout_s)
            else:
                due += [link.next_ping, link.last_heard + self.config.dead_after_s]
        dial_due = self._dialer.next_due(self._around()) if self._may_dial else None
        if dial_due is not None:
            due.append(dial_due)
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
            self._links_due, self._links_announced = None, now
            body = encode_links(sorted(self._neighbours))
            if not self.replica.is_current(LINKS_TABLE, 0, body):
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
                if now >= link.last_heard + self.config.hello_timeout_s:
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

    def _challenge_over(self, link: LinkState, hello: Hello, now: float) -> list[Outcome]:
        name = name_of_key(hello.public_key)
        current = self._neighbours[name]
        if current.instance == hello.instance:  # Another link of the same newcomer has got in.
            return self._admit(link, hello, name, now)
        challenged, question = link.challenged
        if current.answered >= (question if current.id == challenged else 1):
            self._count("refused-name-in-use")
            told = Send(current.id, encode(Contested(introduction.also_used_by(name, link)[:250])))
            return [told, *self._close(link, "name-in-use", introduction.in_use_by(name, current), now)]
        outcomes = self._accept(link, name, now)
        return outcomes + self._close(current, "replaced", "the peer has restarted", now)

    def _ping(self, link: LinkState, now: float) -> list[Outcome]:
        link.sequence += 1
        link.ping_sent = now
        link.next_ping = now + self.config.heartbeat_interval_s * (0.9 + 0.2 * self._rng.random())
        return [Send(link.id, encode(Ping(link.sequence, self.replica.store.root_digest())))]

    def _prune(self, now: float) -> list[Outcome]:
        """With far more links than a mesh of this size needs, end one whose other end has enough without it."""
        low, high = links_wanted(1 + len(self.replica.reachable))
        if len(self._neighbours) <= high:
            return []
        spare = [name for name in sorted(self._neighbours) if len(self.replica.claims_of(name)) > low]
        outcomes: list[Outcome] = []
        for name in self._rng.sample(spare, min(len(spare), max(1, (len(self._neighbours) - high) // 4))):
            outcomes += self._close(self._neighbours[name], "enough", "this peer has more links than it needs", now)
        return outcomes

    def _forget_expired(self, now: float) -> list[Outcome]:
        owners = self.replica.forget_expired(now)
        for owner in owners:
            self._dialer.peers.pop(owner, None)
        return [OwnerForgotten(owner) for owner in owners]

    # -- whom to dial ------------------------------------------------------------------------------

    def _dial(self, now: float) -> list[Outcome]:
        if not self._may_dial:
            return []
        return [Dial(key, addresses) for key, addresses in self._dialer.due(self._around(), now)]

    @property
    def _may_dial(self) -> bool:
        return self.conflict is None and self.replica.record.state == LIVE

    def _around(self) -> Surroundings:
        replica = self.replica
        own = replica.record.addresses
        return Surroundings(replica.peers, self._neighbours, replica.reachable, replica.unreachable_since, own)

    # -- looking inside ----------------------------------------------------------------------------

    def links(self) -> list[LinkStatus]:
        """Every link whose other end is known, in order of peers' names."""
        return [link.status(name) for name, link in sorted(self._neighbours.items())]

    def targets(self, now: float) -> list[TargetStatus]:
        """Every target, with what became of it."""
        return self._dialer.status(self._around(), now)

    def _sorted_links(self) -> list[LinkState]:
        return [self._links[link_id] for link_id in sorted(self._links)]

    def _count(self, counter: str) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + 1
