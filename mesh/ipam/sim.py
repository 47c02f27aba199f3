"""Many members of one ring under a virtual clock, with the faults that hosts have: one seed replays all of it.

The members, their desks and the bytes of their pages and journals are the real ones. Pages travel as documents do: the
newest version of each wins, late, reordered, through others after a partition, and single ones much later than all
others. A host can be cut off, killed, paused for longer than a lease, lose its disk, leave for good, be removed by an
operator, or have a clock that runs fast. After every step nobody may give what
another may give, and no address has two holders; after healing every slot has one owner and everybody gets addresses.
`mesh.ipam.soak` runs it by the thousand seeds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_interface
from random import Random

import msgpack

from gossip.names import PeerName
from mesh.ipam import rings, spans
from mesh.ipam.desk import Desk, Request
from mesh.ipam.lease import DRIFT
from mesh.ipam.member import Member
from mesh.ipam.space import Space
from mesh.ipam.spans import Spans
from mesh.ipam.surroundings import Out, Settings, Surroundings
from mesh.ipam.wants import Claim, FromSubnet, Want

ENDPOINTS = 1000
"""Page number of what stands for the endpoint table here."""
DETECTION_S = 3.0
TRACE_TAIL = 30
LEASE_S = 60


class RingFailed(AssertionError):
    """A promise was broken. The message names seed, time, what broke, and the last steps."""


Key = tuple[PeerName, int]
Version = tuple[int, int]


@dataclass(slots=True)
class Host:
    index: int
    name: PeerName
    rate: float
    offset: float
    epoch: int = 0
    nickname: str = ""
    """By its index where empty."""
    member: Member | None = None
    desk: Desk | None = None
    life: int = 0
    disk: dict[bytes, bytes] = field(default_factory=dict)
    store: dict[Key, tuple[Version, bytes]] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """Slots in use on this host, with their owners: what its containers really have."""
    given_in: dict[int, bytes] = field(default_factory=dict)
    """By slot, the ring that it was given in: rings that are apart give the same ones."""
    paused: bool = False
    backlog: list[Callable[[], None]] = field(default_factory=list)
    writing: bool = False
    version: int = 0
    answers: list[Request] = field(default_factory=list)
    seen: frozenset[int] = frozenset()
    tick_at: float = -1.0


class Ring:
    """Hosts, a network of documents, a clock and a seed."""

    def __init__(
        self, seed: int, hosts: int, range4: str = "10.32.0.0/24", settings: Settings | None = None, expected: int = 0
    ) -> None:
        self.seed = seed
        self.replay = f"--seed {seed}"
        self.rng = Random(seed)
        self.now = 0.0
        self.settings = settings or Settings(Space(IPv4Network(range4), None), lease_s=LEASE_S)
        self.expected = expected or hosts
        self.hosts: dict[int, Host] = {}
        self.blocked: set[frozenset[int]] = set()
        self.gone: list[Host] = []
        """Lives of hosts whose disk was lost, with what their containers had."""
        self.given = 0
        self.held_back = 0.0
        """How likely it is that a page reaches a host much later than it should."""
        self._held: dict[tuple[int, int, Key], float] = {}
        self.refused: dict[str, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self._tail: deque[str] = deque(maxlen=TRACE_TAIL)
        for index in range(1, hosts + 1):
            self.hosts[index] = self._new_host(index)

    def _new_host(self, index: int) -> Host:
        rate = 1.0 + self.rng.uniform(-0.45, 0.45) * DRIFT
        return Host(index, PeerName(self.rng.randbytes(8)), rate, self.rng.uniform(0, 1e5))

    # -- the clock ---------------------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._counter += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._counter, action))

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def clock(self, host: Host) -> float:
        return host.offset + self.now * host.rate

    # -- hosts -------------------------------------------------------------------------------------

    def start(self, index: int) -> None:
        host = self.hosts[index]
        assert host.member is None
        host.epoch += 1
        host.life += 1
        host.version = 0
        host.store = {}
        host.paused, host.backlog, host.writing, host.answers = False, [], False, []
        around = Surroundings(
            host.name, host.nickname or f"h{index}", host.epoch, b"boot",
            lambda slot: any(slot in self._endpoints(host, peer) for peer in self._publishers(host)),
            lambda peer: spans.of_slots(self._endpoints(host, peer)),
        )  # fmt: skip
        rng = Random(self.rng.getrandbits(64))
        host.member = Member(self.settings, around, dict(host.disk), rng, self.clock(host))
        host.member.expected = self.expected
        host.desk = Desk(host.member)
        self.log(f"h{index} starts, epoch {host.epoch}")
        for slot, owner in list(host.held.items()):
            given = host.member.holdings.given.get(slot)
            if given is None or given.owner != owner:
                self.fail(f"h{index} forgot that {owner} has slot {slot}")
        for slot in list(host.member.holdings.given):
            if slot not in host.held:  # given, and the answer never went out: nobody has it
                host.member.holdings.release(slot, self.clock(host))
        self.publish(host, {ENDPOINTS: msgpack.packb(sorted(host.held))})
        self._sync(host)
        self._reach()
        self.wake(host)

    def kill(self, index: int, disk: bool = True) -> None:
        """Without `disk` everything on it is lost, containers included, and another host comes in its place."""
        host = self.hosts[index]
        self.log(f"h{index} is killed{'' if disk else ' and loses its disk'}")
        host.member = host.desk = None
        host.life += 1
        if not disk:
            self.gone.append(host)
            self.hosts[index] = self._new_host(index)
        self._reach()

    def pause(self, index: int, seconds: float) -> None:
        host = self.hosts[index]
        if host.member is None or host.paused:
            return
        self.log(f"h{index} is paused for {seconds:.0f} s")
        host.paused = True
        life = host.life
        self._reach()

        def resume() -> None:
            if host.life == life and host.paused:
                self.log(f"h{index} goes on")
                host.paused = False
                backlog, host.backlog = host.backlog, []
                for action in backlog:
                    action()
                self._reach()
                self._sync(host)
                self.wake(host)

        self.at(seconds, resume)

    def partition(self, side: set[int]) -> None:
        self.log(f"hosts {sorted(side)} are cut off")
        for a in side:
            for b in set(self.hosts) - side:
                self.blocked.add(frozenset((a, b)))
        self._reach()

    def heal(self) -> None:
        self.log("the network heals")
        self.blocked.clear()
        for host in self.hosts.values():
            self._sync(host)
        self._reach()

    def connected(self, a: Host, b: Host) -> bool:
        both_up = a.member is not None and b.member is not None and not a.paused and not b.paused
        return both_up and frozenset((a.index, b.index)) not in self.blocked

    def _reach(self) -> None:
        """Who reaches whom is known a little later."""
        for host in self.hosts.values():
            self.at(self.rng.uniform(0.0, DETECTION_S), lambda host=host: self._look_around(host))  # type: ignore[misc]

    def _look_around(self, host: Host) -> None:
        if host.member is None or host.paused:
            return
        seen, edge = {host.index}, [host]
        while edge:
            at = edge.pop()
            for other in self.hosts.values():
                if other.index not in seen and self.connected(at, other):
                    seen.add(other.index)
                    edge.append(other)
        names = frozenset(self.hosts[index].name for index in seen - {host.index})
        if names != host.member.reachable:
            host.member.reach(names, self.clock(host))
            self.wake(host)

    # -- documents ---------------------------------------------------------------------------------

    def publish(self, host: Host, pages: dict[int, bytes]) -> None:
        for page, body in sorted(pages.items()):
            host.version += 1
            host.store[(host.name, page)] = ((host.epoch, host.version), body)
            self._spread(host, (host.name, page))

    def _spread(self, source: Host, key: Key) -> None:
        for other in self.hosts.values():
            if other is not source and self.connected(source, other):
                self._send(source, other, key)

    def hold_back(self, index: int, peer: PeerName, page: int, seconds: float) -> None:
        """That page of that peer does not get to this host for so long; then it does, in its newest version."""
        target, key = self.hosts[index], (peer, page)
        life = target.life
        self._held[(index, life, key)] = self.now + seconds

        def release() -> None:
            for other in self.hosts.values():
                if target.life == life and self.connected(other, target) and key in other.store:
                    self._deliver(other, target, key)

        self.at(seconds + 0.001, release)

    def _is_held(self, target: Host, key: Key) -> bool:
        if self._held.get((target.index, target.life, key), -1.0) >= self.now:
            return True
        if key[1] == ENDPOINTS or self.rng.random() >= self.held_back:
            return False
        self.hold_back(target.index, *key, self.rng.choice([2.0, 10.0, 1.2 * LEASE_S, 2.5 * LEASE_S]))
        return True

    def _send(self, source: Host, target: Host, key: Key) -> None:
        if not self._is_held(target, key):
            self._deliver(source, target, key)

    def _deliver(self, source: Host, target: Host, key: Key) -> None:
        version, body = source.store[key]
        life = target.life

        def arrive() -> None:
            if target.life != life or target.member is None:
                return
            if target.paused:
                target.backlog.append(arrive)
                return
            held = target.store.get(key)
            if key[0] == target.name and held is None and version[0] < target.epoch:
                self.publish(target, {key[1]: b""})  # as gossip does: no page of an earlier life without a successor
            if key[0] == target.name or (held is not None and held[0] >= version):
                return
            target.store[key] = (version, body)
            if key[1] != ENDPOINTS and not target.member.hear_untrusted(key[0], key[1], body):
                self.fail(f"h{target.index} cannot read page {key[1]}")
            if self.blocked:  # else everybody had it from its owner
                self._spread(target, key)
            self.wake(target)

        self.at(self.rng.choice([0.005, 0.02, 0.1, 0.5]) * self.rng.random(), arrive)

    def _sync(self, host: Host) -> None:
        for other in self.hosts.values():
            if other is not host and self.connected(host, other):
                for key in list(other.store):
                    self._send(other, host, key)
                for key in list(host.store):
                    self._send(host, other, key)

    def _publishers(self, host: Host) -> list[PeerName]:
        member = host.member
        return [
            owner for owner, page in host.store
            if page == ENDPOINTS and owner != host.name and not (member is not None and member.is_removed(owner))
        ]  # fmt: skip

    def _endpoints(self, host: Host, peer: PeerName) -> list[int]:
        found = host.store.get((peer, ENDPOINTS))
        return list(msgpack.unpackb(found[1])) if found is not None else []

    # -- one host at work --------------------------------------------------------------------------

    def wake(self, host: Host) -> None:
        """Settle soon, together with what else arrives until then."""
        due = self.now + 0.01
        if host.member is not None and not (self.now <= host.tick_at <= due):
            host.tick_at = due
            life = host.life
            self.at(due - self.now, lambda: self._tick(host, life))

    def _tick(self, host: Host, life: int) -> None:
        if host.member is None or host.desk is None or host.life != life:
            return
        if host.paused:
            host.backlog.append(lambda: self._tick(host, life))
            return
        now = self.clock(host)
        host.member.settle(now)
        host.desk.work(now)
        self._write(host)
        self._check(host)
        delay = max(1.0, host.member.next_due(now) - now)
        if host.tick_at <= self.now:
            host.tick_at = self.now + delay
            self.at(delay, lambda: self._tick(host, life))

    def _write(self, host: Host) -> None:
        """Take what there is to write, and publish and answer when it is on disk: a host may die in between."""
        assert host.member is not None
        if host.writing:
            return
        out = host.member.take(self.clock(host))
        done = [request for request in host.answers if request.is_done]
        if not (out.changes or out.pages or done):
            return
        host.answers = [request for request in host.answers if not request.is_done]
        host.writing = True
        life = host.life

        def written() -> None:
            if host.life != life or host.member is None:
                return
            for key, value in out.changes.items():
                if value is None:
                    host.disk.pop(key, None)
                else:
                    host.disk[key] = value
            self._after(host, life, out, done)

        self.at(self.rng.choice([0.001, 0.01, 0.2]), written)

    def _after(self, host: Host, life: int, out: Out, done: list[Request]) -> None:
        if host.life != life or host.member is None or host.desk is None:
            return
        if host.paused:
            host.backlog.append(lambda: self._after(host, life, out, done))
            return
        host.writing = False
        self.publish(host, out.pages)
        for request in done:
            self._answer(host, request)
        self.wake(host)

    def _answer(self, host: Host, request: Request) -> None:
        assert host.member is not None and host.desk is not None
        if request.refused is not None:
            self.refused[request.refused.code] = self.refused.get(request.refused.code, 0) + 1
            return
        if not host.desk.still_holds(request, self.clock(host)):
            self.refused["lapsed"] = self.refused.get("lapsed", 0) + 1
            return
        for slot in request.slots:
            for other in (*self.hosts.values(), *self.gone):
                if slot in other.held and other.given_in[slot] == host.member.ring:
                    self.fail(f"slot {slot} is given to {request.owner} on h{host.index} and held on h{other.index} by "
                              f"{other.held[slot]}")  # fmt: skip
            host.held[slot] = request.owner
            host.given_in[slot] = host.member.ring
            self.given += 1
        if request.slots:
            self.log(f"h{host.index} gives {request.slots} to {request.owner}")
            self.publish(host, {ENDPOINTS: msgpack.packb(sorted(host.held))})

    def obtain(self, index: int, owner: str, *wants: Want) -> Request | None:
        host = self.hosts[index]
        if host.member is None or host.desk is None or host.paused:
            return None
        now = self.clock(host)
        request = host.desk.submit(owner, wants or (FromSubnet(None),), now, now + 10.0)
        host.answers.append(request)
        self.wake(host)
        return request

    def claim(self, index: int, owner: str, slot: int) -> Request | None:
        """As an attach does: not of an address that, as far as this host knows, is in use. Before there is a ring
        nobody watches over what is claimed."""
        member = self.hosts[index].member
        if member is None or member.charter is None or member.around.used_elsewhere(slot):
            return None
        address = self.settings.space.address(slot, 4)
        return self.obtain(index, owner, Claim(ip_interface(f"{address}/24")))

    def release(self, index: int, slot: int) -> None:
        host = self.hosts[index]
        if host.member is None or host.desk is None or host.paused or slot not in host.held:
            return
        given = host.member.holdings.given[slot]
        texts = {text.partition("/")[0] for text in given.addresses}
        host.desk.release(given.owner, texts, self.clock(host))
        del host.held[slot]
        self.log(f"h{index} takes back {slot}")
        self.publish(host, {ENDPOINTS: msgpack.packb(sorted(host.held))})
        self.wake(host)

    def resign(self, index: int) -> None:
        """A host's containers are gone, and it says that it leaves for good; what comes in its place is another one."""
        host = self.hosts[index]
        if host.member is None or host.paused:
            return
        for slot in sorted(host.held):
            self.release(index, slot)
        self.log(f"h{index} resigns")
        host.member.resign()
        self.wake(host)
        self.run_for(self.rng.choice([0.02, 0.3, 3.0]))
        if self.hosts[index] is host:
            host.held.clear()
            self.kill(index, disk=False)

    def join(self, index: int, ring: bytes) -> None:
        """By an operator's word, this host's ring joins that one."""
        host = self.hosts[index]
        if host.member is None or host.paused or ring not in host.member.splits:
            return
        self.log(f"h{index} joins {host.member.ring.hex()[:6]} to {ring.hex()[:6]}")
        rings.join(host.member, ring)
        self.wake(host)

    def remove(self, index: int, peer: PeerName) -> None:
        """By an operator's word: that peer, and what it had, is gone for good."""
        host = self.hosts[index]
        if host.member is None:
            return
        self.log(f"h{index} removes {peer.hex()}")
        host.member.removals[peer] = None
        self.wake(host)

    # -- promises ----------------------------------------------------------------------------------

    def _check(self, host: Host) -> None:
        """Nobody may give what another one may give."""
        assert host.member is not None
        if self.clock(host) >= host.member.lease.until:
            return
        mine = host.member.lease.slots
        for other in self.hosts.values():
            if other is host or other.member is None or self.clock(other) >= other.member.lease.until:
                continue
            if other.member.ring != host.member.ring:
                continue
            shared = spans.both(mine, other.member.lease.slots)
            if shared:
                self.fail(f"h{host.index} and h{other.index} may both give {shared}")

    def owners(self) -> dict[int, Spans]:
        return {host.index: host.member.holdings.owned for host in self.hosts.values() if host.member is not None}

    def check_whole(self) -> None:
        """Every slot has one owner, and what is not free is in use somewhere."""
        owned = self.owners()
        rings = {host.member.ring for host in self.hosts.values() if host.member is not None}
        if len(rings) != 1:
            self.fail(f"{len(rings)} rings")
        everything = spans.union(*owned.values())
        size = self.settings.space.size
        times = sum(map(spans.size, owned.values()))
        if spans.size(everything) != size or times != size:
            missing = spans.minus(((0, size),), everything)
            self.fail(f"of {size} slots {spans.size(everything)} are owned, {times} times; missing {missing}; {owned}")
        in_use = {slot for host in self.hosts.values() for slot in host.held}
        for host in self.hosts.values():
            assert host.member is not None
            holdings = host.member.holdings
            for slot in spans.slots(holdings.owned):
                if slot in holdings.given and slot not in host.held:
                    self.fail(f"h{host.index}: slot {slot} is given to {holdings.given[slot].owner}, who has it not")
                if spans.holds(holdings.kept_slots, slot) and slot not in in_use:
                    self.fail(f"h{host.index}: slot {slot} is kept for nobody: {holdings.kept}")

    def fail(self, what: str) -> None:
        tail = "\n".join(f"    {line}" for line in self._tail)
        raise RingFailed(f"seed {self.seed}, at {self.now:.3f} s: {what}\n  last steps:\n{tail}\n"
                         f"  replay: python -m mesh.ipam.soak {self.replay}")  # fmt: skip

    def log(self, line: str) -> None:
        self._tail.append(f"{self.now:10.3f} {line}")
