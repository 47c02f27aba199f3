"""Address allocation as the daemon runs it: the member and its desk on the event loop, the journal beneath them.

One thing at a time goes to disk: what changed since the last write, with every address given in between. When it is
there its pages are published and its answers go out; requests that came meanwhile are in the next write, so fifty
clients share one sync of the disk. A disk that refuses costs those requests and nothing else: what was to be written is
written with the next change, and nothing of it is shown before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import Any
from weakref import WeakValueDictionary

from gossip.names import PeerName, format_name
from mesh.endpoints import Address, EndpointTable, Interface
from mesh.ipam import rings, spans, view
from mesh.ipam.desk import Desk, Request
from mesh.ipam.errors import Refused
from mesh.ipam.member import Member
from mesh.ipam.spans import Spans
from mesh.ipam.wants import Claim, Want
from mesh.journal import Journal
from mesh.logs import EventLog
from mesh.requests import ApiError
from mesh.store import StoreError

TURN_DELAY_S = 0.005
"""What comes in within this time is settled together."""
WAIT_S = 12.0
"""A request that cannot be answered for so long is refused, with what it waited for."""
RETRY_S = 2.0
"""After a disk that refused."""
RESIGN_S = 3.0
PRIME_STEP_S = 0.25
JOURNAL = "ipam"

log = EventLog("ipam")


def boottime() -> float:
    """Seconds since the machine started, those it slept through included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the service asks of the daemon around it."""

    publish: Callable[[int, bytes], None]
    """Make these bytes the newest version of one of our pages."""
    reachable: Callable[[], frozenset[PeerName]]
    nickname_of: Callable[[PeerName], str]
    expected: Callable[[], int]
    """How many peers the user named, this one included."""


@dataclass(slots=True)
class _Caller:
    """Who asked, and whether that still waits."""

    request: Request | None = None
    is_gone: bool = False


class Ipam:
    """The allocator of one daemon."""

    def __init__(self, member: Member, journal: Journal, mesh: Mesh, clock: Callable[[], float] = boottime) -> None:
        self.member = member
        self.desk = Desk(member)
        self._journal = journal
        self._mesh = mesh
        self._clock = clock
        self._answers: list[tuple[Request, asyncio.Future[None]]] = []
        self._owners: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._savers: list[asyncio.Future[None]] = []
        """Who waits until what is so now is on disk."""
        self._turn_due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self._malformed = 0
        self.disk_trouble = ""

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._turn()

    async def close(self) -> None:
        """What was handed in is written and answered; nothing is begun any more."""
        self._closed = True
        if self._turn_due is not None:
            self._turn_due.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._fail(ApiError("stopping", "the daemon is stopping; try again when it runs"))
        await self._journal.close()

    async def resign(self) -> None:
        """This host leaves for good: tell the others, who decide at once whose our addresses are."""
        self.member.resign()
        self._turn()
        with suppress(TimeoutError):
            async with asyncio.timeout(RESIGN_S):
                while self._writing is not None:
                    await asyncio.shield(self._writing)

    # -- the mesh ----------------------------------------------------------------------------------

    def hear_untrusted(self, peer: PeerName, page: int, body: bytes) -> None:
        """The newest version of one page of another peer."""
        if not self.member.hear_untrusted(peer, page, body):
            self._malformed += 1
            log.warning("page-malformed", peer=format_name(peer), page=page)
        self._soon()

    def forget(self, peer: PeerName) -> None:
        self.member.forget(peer)

    def look_around(self) -> None:
        """Who is in reach has changed, or whom the user named."""
        self._soon()

    def copied(self, text: str) -> None:
        """Somebody else speaks with our key: neither gives an address until that is settled."""
        if not self.member.conflict:
            log.error("conflict", text=text)
            self.member.note_conflict(text)
            self._soon()

    # -- turns -------------------------------------------------------------------------------------

    def _soon(self, delay_s: float = TURN_DELAY_S) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._turn_due is not None:
            if self._turn_due.when() <= loop.time() + delay_s:
                return
            self._turn_due.cancel()
        self._turn_due = loop.call_later(delay_s, self._turn)

    def _turn(self) -> None:
        """Draw conclusions, answer whom that helps, and write."""
        if self._turn_due is not None:
            self._turn_due.cancel()
            self._turn_due = None
        now = self._clock()
        try:
            self.member.reach(self._mesh.reachable(), now)
            self.member.expected = self._mesh.expected()
            self.member.settle(now)
            self.desk.work(now)
            for event in self.member.events:
                log.info("event", text=event)
            self.member.events.clear()
            self._write()
        finally:
            self._soon(max(TURN_DELAY_S, self.member.next_due(now) - now))

    def _write(self) -> None:
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_all())

    async def _write_all(self) -> None:
        """Write until there is nothing left to write. The outermost shell of a write: a mistake of ours costs what was
        asked for, and whoever asked hears of it."""
        try:
            while await self._write_once():
                pass
        except Exception as error:
            log.exception("write-crashed")
            self._fail(ApiError("internal", f"giving addresses failed inside the daemon ({type(error).__name__})"))
            self._soon(RETRY_S)
        finally:
            self._writing = None

    def _fail(self, error: ApiError) -> None:
        """Whoever waits hears this."""
        for done in [*(answer for _, answer in self._answers), *self._savers]:
            if not done.done():
                done.set_exception(error)
        self._answers.clear()
        self._savers.clear()

    async def _write_once(self) -> bool:
        out = self.member.take(self._clock())
        savers = list(self._savers)
        done = [(request, answer) for request, answer in self._answers if request.is_done]
        if not (out.changes or out.pages or done or savers):
            return False
        try:
            if out.changes:
                await self._journal.hand_in(out.changes)
        except StoreError as error:
            self._forget(done, savers)
            self._refused_by_disk(error, out.changes, out.pages, done)
            for saver in savers:
                if not saver.done():  # else its waiter was cancelled
                    saver.set_exception(ApiError("not-saved", str(error)))
            return False
        except BaseException:
            self._keep(out.changes, out.pages)
            raise
        if self.disk_trouble:
            log.info("saved-again")
            self.disk_trouble = ""
        self._publish(out.pages)
        self._forget(done, savers)
        now = self._clock()
        for saver in savers:
            if not saver.done():
                saver.set_result(None)
        for request, answer in done:
            self._answer(request, answer, now)
        if out.pages:
            self._soon()
        return True

    def _publish(self, pages: Mapping[int, bytes]) -> None:
        left = dict(sorted(pages.items()))
        try:
            for page in list(left):
                self._mesh.publish(page, left[page])
                del left[page]
        finally:
            self.member.say_again(left)

    def _forget(self, done: list[tuple[Request, asyncio.Future[None]]], savers: list[asyncio.Future[None]]) -> None:
        """They are answered now."""
        gone = {id(answer) for _, answer in done} | {id(saver) for saver in savers}
        self._answers = [(request, answer) for request, answer in self._answers if id(answer) not in gone]
        self._savers = [saver for saver in self._savers if id(saver) not in gone]

    def _answer(self, request: Request, answer: asyncio.Future[None], now: float) -> None:
        if request.refused is None and not self.desk.still_holds(request, now):
            request.refused = Refused("ipam-lapsed", "the right to give addresses ran out just then; try again")
        answer.set_result(None)

    def _keep(self, changes: Mapping[bytes, bytes | None], pages: Mapping[int, bytes]) -> None:
        """These are not on disk: they go with the next ones, which are built upon them."""
        for key, value in changes.items():
            self.member.changes.setdefault(key, value)
        self.member.say_again(pages)

    def _refused_by_disk(
        self, error: StoreError, changes: Mapping[bytes, bytes | None], pages: Mapping[int, bytes],
        done: list[tuple[Request, asyncio.Future[None]]],
    ) -> None:  # fmt: skip
        """Nothing of it happened, as far as others can tell; what is still so is written with the next change."""
        self.disk_trouble = str(error)
        log.error("not-saved", error=error)
        self._keep(changes, pages)
        now = self._clock()
        for request, answer in done:
            self.desk.take_back(request, now)
            if request.refused is None:
                request.refused = Refused("not-saved", str(error))
            answer.set_result(None)
        self._soon(RETRY_S)

    # -- addresses ---------------------------------------------------------------------------------

    async def obtain(self, owner: str, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        """Addresses for `owner`, on disk and ours to give when this returns. What it was given for the same want before
        is found again, within a minute of its release too. Claims outside the range are returned as they are. All or
        nothing; raises `ApiError`. May wait for seconds."""
        return await self._obtain(owner, wants, may_move=True)

    async def _obtain(self, owner: str, wants: tuple[Want, ...], may_move: bool) -> tuple[Interface, ...]:
        """`may_move`: the caller has seen to it that what is in use on another host may be given here."""
        if not self.member.space.ranges:
            return self._without_ranges(wants)
        if self._closed:
            raise ApiError("stopping", "the daemon is stopping; try again when it runs")
        caller = _Caller()
        asking = asyncio.ensure_future(self._ask(owner, wants, may_move, caller))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            # Who asked has gone. What comes of it is given back in its turn, before the same owner is given anything;
            # an answer of this very moment stays given, and is found to be nobody's at the next start.
            caller.is_gone = True
            if caller.request is not None and not caller.request.is_done:
                self.desk.cancel(caller.request)
                caller.request.refused = Refused("gone", "nobody waits for it")
                self._soon()
            raise

    async def _ask(
        self, owner: str, wants: tuple[Want, ...], may_move: bool, caller: _Caller
    ) -> tuple[Interface, ...]:  # fmt: skip
        """One request of an owner at a time: what one finds given, another must not be about to take back."""
        async with self._owners.setdefault(owner, asyncio.Lock()):
            now = self._clock()
            request = caller.request = self.desk.submit(owner, wants, now, now + WAIT_S, may_move)
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._answers.append((request, answer))
            if request.is_done:
                self._write()
            else:
                self._soon()
            await answer
            if caller.is_gone:
                self.desk.take_back(request, self._clock())
                self._soon()
        if request.refused is not None:
            raise ApiError(request.refused.code, self._named(str(request.refused)))
        assert request.answer is not None
        return request.answer

    def _without_ranges(self, wants: tuple[Want, ...]) -> tuple[Interface, ...]:
        claims = [want.interface for want in wants if isinstance(want, Claim)]
        if len(claims) < len(wants):
            raise _off()
        return tuple(claims)

    def _named(self, text: str) -> str:
        """Nicknames where a pure part could only give names."""
        for peer in (*self.member.known, self.member.own):
            text = text.replace(format_name(peer), self._mesh.nickname_of(peer))
        return text

    async def release(self, owner: str, addresses: Collection[Address]) -> None:
        """These addresses of this owner rest from now on; unknown ones are fine. Raises `ApiError` where the disk
        refuses; then they are released as soon as it does not."""
        if self.desk.release(owner, {str(address) for address in addresses}, self._clock()):
            await self._saved()

    async def release_all(self, owner: str) -> None:
        if self.desk.release(owner, None, self._clock()):
            await self._saved()

    async def keep_only(self, owners: Collection[str]) -> None:
        """Release whatever is given to others than these."""
        gone = [owner for owner in self.member.holdings.owners() if owner not in owners]
        for owner in gone:
            log.info("released-at-start", owner=owner)
            self.desk.release(owner, None, self._clock())
        if gone:
            await self._saved()

    async def _saved(self) -> None:
        """Everything up to now is on disk. Raises `ApiError`."""
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._savers.append(saved)
        self._write()
        self._soon()
        await saved

    # -- operators ---------------------------------------------------------------------------------

    async def prime(self, timeout_s: float | None, tell: Callable[[str], Awaitable[None]]) -> None:
        """Return when there is a ring and this host may give addresses. `tell` is called with what it waits for. Raises
        `ApiError` when the time is up."""
        if not self.member.space.ranges:
            raise _off()
        begun, told = time.monotonic(), ""
        while True:
            self.member.wants_ring = self.member.charter is None
            waiting = view.waiting_for(self.member, self.desk, self._clock())
            if not waiting:
                return
            if waiting != told:
                await tell(self._named(waiting))
                told = waiting
            if timeout_s is not None and time.monotonic() > begun + timeout_s:
                raise ApiError("ipam-waiting", f"not ready after {timeout_s:g} s: waiting for {self._named(waiting)}")
            self._soon()
            await asyncio.sleep(PRIME_STEP_S)

    async def remove_peers(self, names: Sequence[PeerName]) -> dict[str, Any]:
        """By an operator's word these peers are gone for good: their addresses are ours at once. Raises `ApiError`."""
        member = self.member
        if member.own in names:
            raise ApiError("bad-request", "this is the host itself: to remove it, run `weft reset` on it")
        if member.charter is None:
            raise ApiError("no-ring", "there is no ring yet, so that peer owns no addresses: nothing is to be done")
        if not rings.has_voters_beside(member, names):
            if missed := rings.out_of_reach(member, names):
                who = " ".join(map(format_name, missed))
                raise ApiError("no-majority", self._named(view.why_not_anew(who)))
            if wait_s := rings.too_early_s(member, self._clock()):
                raise ApiError("no-majority", view.why_not_yet_anew(wait_s))
        before = spans.size(member.holdings.owned)
        for name in names:
            member.removals[name] = None
        deadline = time.monotonic() + WAIT_S
        while any(name in member.removals for name in names):
            self._soon()
            await asyncio.sleep(0.05)
            if time.monotonic() > deadline:
                for name in names:
                    member.removals.pop(name, None)
                raise ApiError("no-majority", self._named(view.why_no_majority(member)))
        await self._saved()
        log.info("removed", peers=",".join(map(format_name, names)))
        return {
            "removed": [format_name(name) for name in names],
            "addresses": spans.size(member.holdings.owned) - before,
        }

    async def join(self, ring: str | None, force: bool, table: EndpointTable) -> dict[str, Any]:
        """This host's ring joins another one in reach. Raises `ApiError`."""
        splits = self.member.splits
        found = [each for each in splits if ring is None or each.hex().startswith(ring)]
        if not found:
            have = ", ".join(each.hex() for each in splits) or "there is none in reach"
            raise ApiError("no-such-ring", f"there is no other ring {ring or 'to join'} (others: {have})")
        if len(found) > 1:
            have = ", ".join(each.hex() for each in found)
            raise ApiError("ambiguous-ring", f"there are several other rings ({have}): name one with --ring")
        conflicts = view.conflicts(self.member, table, splits[found[0]], self._mesh.nickname_of)
        if conflicts and not force:
            lines = "; ".join(f"{each['address']}: {each['here']}, {each['there']}" for each in conflicts[:20])
            raise ApiError(
                "conflicts",
                f"{len(conflicts)} addresses are in use in both rings ({lines}): detach one of each, or join with "
                "--force, which leaves each to whoever attached it last",
            )
        rings.join(self.member, found[0])
        self._turn()
        deadline = time.monotonic() + WAIT_S
        while self.member.ring != found[0]:
            self._soon()
            await asyncio.sleep(0.05)
            if time.monotonic() > deadline:
                raise ApiError("ipam-waiting", "the other ring is not known in full yet; joined as soon as "
                               "it is")  # fmt: skip
        await self._saved()
        return {"joined": found[0].hex(), "conflicts": conflicts}

    def export(self) -> dict[str, Any]:
        return view.export(self.member)

    async def import_(self, document: dict[str, Any], force: bool) -> dict[str, Any]:
        """Take back what was exported: each address is claimed again for its owner, unless another host uses it by now,
        in reach or not. Raises `ApiError` for a document that is none, or where something is given here already and not
        `force`."""
        entries = view.imported(document)
        if self.member.holdings.given and not force:
            have = len(self.member.holdings.given)
            raise ApiError("not-empty", f"{have} addresses are given here already: --force adds those of the file")
        refused: list[dict[str, str]] = []
        taken = 0
        for owner, addresses, wants in entries:
            for address in addresses:
                try:
                    await self._obtain(owner, (Claim(ip_interface(address)),), may_move=False)
                    taken += 1
                except ApiError as error:
                    refused.append({"owner": owner, "address": address, "problem": str(error)})
            self.desk.answer_again(owner, wants, addresses)
        await self._saved()
        return {"taken": taken, "refused": refused}

    async def check(self, attached: Mapping[Interface, str], repair: bool) -> list[dict[str, Any]]:
        """Compare with what is attached: `attached` has the owner of every address. What differs is left to whoever
        holds what is attached still, meanwhile; `repair` ends a conflict."""
        findings = view.differences(self.member, attached)
        if repair and self.member.conflict:
            self.member.note_conflict("")
            await self._saved()
        return findings

    def status(self) -> dict[str, Any]:
        return view.status(self.member, self.desk, self._mesh.nickname_of, self._clock(), self.disk_trouble)

    def warnings(self) -> list[dict[str, str]]:
        return view.warnings(self.member, self._clock(), self.disk_trouble)

    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        space = self.member.space
        return (*(each for each in self.member.settings.default if space.interval(each) is not None), *space.ranges)

    def interface_of(self, address: Address) -> Interface:
        network = next((each for each in self.subnets() if address in each), None)
        if network is None:
            have = " and ".join(map(str, self.member.space.ranges)) or "none"
            cure = "give it with its length, or take one of those"
            raise ApiError("outside-range", f"{address} is not inside the range of addresses ({have}); {cure}")
        return ip_interface(f"{address}/{network.prefixlen}")

    def summary(self) -> dict[str, Any]:
        state, given = view.state_of(self.member, self._clock()), len(self.member.holdings.given)
        return {"state": state, "given": given, "disk": self.disk_trouble}


def _off() -> ApiError:
    return ApiError(
        "ipam-off",
        "this host allocates no addresses (--ipalloc-range none): give one, such as 10.32.1.5/24, or launch with a "
        "range",
    )


def slots_of(member: Member, table: EndpointTable, peer: PeerName) -> Spans:
    """The slots of which a peer says that it uses them."""
    found = (member.space.slot(binding.ip) for endpoint in table.of(peer) for binding in endpoint.bindings)
    return spans.of_slots(slot for slot in found if slot is not None)


def is_used_elsewhere(member: Member, table: EndpointTable, slot: int) -> bool:
    """Whether another host says that it uses an address of this slot."""
    for version in member.space.versions():
        address = member.space.address(slot, version)
        if address is not None:
            for endpoint in table.claimants(address):
                if endpoint.owner != member.own and not member.is_removed(endpoint.owner):
                    return True
    return False
