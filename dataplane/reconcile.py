"""The difference between what is wanted and what is there, as ordered operations: pure bookkeeping for the engine.

Holds both sides as mappings (`wanted` from one `Expansion` after another, `actual` as a mirror of the kernel
kept current by listings, observations and our own operations) and a list of keys at which they may differ. Planning
looks at those keys only, so an event costs a lookup and a change of one endpoint does not touch the other hundred
thousand. Knows nothing of netlink, threads or clocks (`now` is given).

The one idea: operations are done in stages, and whatever a stage needs must be in the mirror when the stage comes. If
it is not (its device could not be made, say), the operation waits under the key it needs and is planned again when
that key changes. So one missing device is one fault and not ten thousand.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from dataplane.expansion import Expansion
from dataplane.kernel import (
    ADD,
    ANNOUNCE,
    DELETE,
    LINKS,
    PARTS,
    REPLACE,
    TABLES,
    KernelError,
    Operation,
)
from dataplane.objects import (
    ACCEPT,
    BRIDGE_FDB,
    FLOOD,
    FORWARDING,
    GATEWAY,
    GUARD,
    GUEST,
    GUEST_ADDRESS,
    GUEST_KINDS,
    GUEST_NETWORK,
    GUEST_ROUTE,
    HOST_ADDRESS,
    LINK,
    NEIGHBOUR,
    OFFLOADS,
    PORT,
    TABLE_KINDS,
    UNHOOKED,
    UP,
    VXLAN_FDB,
    Bridge,
    DefaultRoute,
    Forwarding,
    GuestAddress,
    HostAddress,
    Key,
    Odd,
    OtherLink,
    PortFlags,
    Tap,
    Unavailable,
    Value,
    Veth,
    Vxlan,
    fits,
    tap_name,
    vxlan6_name,
    vxlan_name,
)

RETRY_FIRST_S: Final = 0.1
RETRY_LIMIT_S: Final = 30.0
REPAIR_BURST: Final = 20
"""Repairs of one key within REPAIR_WINDOW_S, after which it must wait: something else wants it otherwise.

More than the ten rounds in which `ip neigh flush` tries to get the better of us."""
CONTESTED: Final = "contested"
CONTESTED_LOOK_S: Final = 1.0
REPAIR_WINDOW_S: Final = 10.0
REMEMBERED_MACS: Final = 20_000
"""Addresses whose last MAC is remembered after they went, so that a re-made endpoint is announced when it returns."""

WANTED: Final = "wanted"
RETRY: Final = "retry"
OBSERVED: Final = "observed"

# What a failed operation says about the mirror: with these it was wrong, and the part must be listed again.
_MISJUDGED: Final = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ESRCH, errno.EINVAL}
)
_ALREADY_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENXIO})

# Stages of a pass, first to last. Container ports come before the bulk, so that an attach does not wait for it.
# A VXLAN FDB entry comes before and goes after the bridge entry of the same MAC: a bridge entry without one sends
# the frames to every peer. Flood lists shrink before they grow, so that no peer gets a broadcast twice. Containers
# are led to the outside only when all that masquerades is there, and until it goes.
_DELETE_FIRST: Final = 0
_ADD_BRIDGE: Final = 1
_UP_BRIDGE: Final = 2
_ADD_LINK: Final = 3
_STAGE_OF_ADD: Final[Mapping[str, int]] = {
    HOST_ADDRESS: 3,
    OFFLOADS: 4,
    PORT: 4,
    GUARD: 5,
    GATEWAY: 5,
    FORWARDING: 6,
    UP: 7,
    GUEST: 8,
    GUEST_ADDRESS: 9,
    VXLAN_FDB: 10,
    GUEST_ROUTE: 10,
    GUEST_NETWORK: 10,
    BRIDGE_FDB: 11,
    NEIGHBOUR: 12,
    FLOOD: 14,
    ACCEPT: 16,
}
_LOCAL_FDB: Final = 6
_ANNOUNCE: Final = 15
_STAGE_OF_DELETE: Final[Mapping[str, int]] = {
    FLOOD: 13,
    GUEST_ROUTE: 13,
    GUEST_NETWORK: 13,
    FORWARDING: 14,
    NEIGHBOUR: 17,
    BRIDGE_FDB: 18,
    VXLAN_FDB: 19,
    GUEST_ADDRESS: 20,
    HOST_ADDRESS: 20,
    GUARD: 21,
    GATEWAY: 21,
    ACCEPT: 22,
}
_DELETE_BRIDGE: Final = 23
STAGES: Final = 24

_PART_OF_KIND: Final = {kind: part for part, kinds in PARTS.items() for kind in kinds}


Needs = tuple[tuple[Key, bool], ...]


NEWCOMERS_ANNOUNCED_MAX = 128
"""Addresses that come together and are told to this host's containers. More at once is a mesh that is being learnt, not
a container that somebody waits for, and each announcement goes to every container here."""


class Failure(NamedTuple):
    """An operation that was refused, and when it is tried again."""

    error: KernelError
    retry_at: float
    delay_s: float


class Reconciler:
    """See the module. Not thread-safe; one engine owns one."""

    def __init__(self) -> None:
        self._wanted: dict[Key, Value] = {}
        self._actual: dict[Key, Value] = {}
        self._held: dict[str, dict[Key, None]] = {}
        """What goes with each container port. The bridge and the overlay ports hold nearly everything: not listed."""
        self._settled = False
        self._bridge = ""
        self._vxlans: tuple[str, ...] = ()
        self._overlay: tuple[str, ...] = ()
        self._bridge_is_up: Needs = ()
        self._masquerade: Needs = ()
        self._dirty: dict[Key, str] = {}
        self._in_flight: dict[Key, str] = {}
        self._waiting: dict[Key, dict[Key, str]] = {}
        """By the key that is needed: what waits for it, and why it was wanted."""
        self._waits_for: dict[Key, set[Key]] = {}
        """The same the other way round."""
        self._failures: dict[Key, Failure] = {}
        self._repairs: dict[Key, tuple[float, int]] = {}
        self._last_macs: OrderedDict[Key, bytes] = OrderedDict()
        self._look_again_s = 0.0
        self._stale: set[str] = set()
        self.applied = 0
        self.repaired = 0

    @property
    def failures(self) -> Mapping[Key, Failure]:
        return self._failures

    @property
    def size(self) -> int:
        """Objects known to be in the kernel."""
        return len(self._actual)

    # What comes in: a new wish, a listing, an observation.

    def want(self, expansion: Expansion) -> None:
        """What is wanted from now on, as far as it may differ from before. Keys where it does are looked at again."""
        self._bridge = expansion.scope.bridge
        self._vxlans = (vxlan_name(self._bridge), vxlan6_name(self._bridge))
        self._overlay = (*self._vxlans, tap_name(self._bridge))
        self._bridge_is_up = ((Key(UP, self._bridge), True),)
        wanted = self._wanted
        changed = [key for key in expansion.gone if wanted.pop(key, None) is not None]
        for key in changed:
            self._repairs.pop(key, None)  # nobody fights for what has gone; what comes in its place starts anew
        for key, value in expansion.objects.items():
            if wanted.get(key) != value:
                wanted[key] = value
                changed.append(key)
        for key in changed:
            self._mark(key, WANTED)
            self._wait_no_more(key)
        self._masquerade = ((Key(GATEWAY, self._bridge), True),) if Key(GATEWAY, self._bridge) in wanted else ()
        if expansion.settled and not self._settled:
            for key in self._actual:
                if key not in wanted:
                    self._mark(key, WANTED)
        self._settled = expansion.settled

    def replace(self, kinds: frozenset[str], objects: Mapping[Key, Value], cause: str = OBSERVED) -> None:
        """A listing: of these kinds, exactly these objects are there."""
        for key in [key for key in self._actual if key.kind in kinds and key not in objects]:
            self._set(key, None, cause)
        actual, wanted = self._actual, self._wanted
        for key, value in objects.items():
            if actual.get(key) != value:
                self._set(key, value, cause)
            elif key not in wanted:
                self._mark(key, cause)
        for key, value in wanted.items():
            found = objects.get(key)
            if found != value and key.kind in kinds and (found is None or not fits(value, found)):
                self._mark(key, cause)

    def observe(self, key: Key, value: Value | None) -> None:
        """The kernel said so. Costs a lookup where it agrees with the mirror."""
        if self._actual.get(key) != value:
            if self._empties_neighbours(key, value):
                self._stale.add(TABLES)
            self._set(key, value, OBSERVED)

    def take_stale(self) -> frozenset[str]:
        """Parts of the mirror that turned out not to be trusted; asked for by the engine, which lists them again."""
        stale = frozenset(self._stale)
        self._stale.clear()
        return stale

    # What goes out: stages of operations.

    def plan(self, now: float) -> list[list[Operation]]:
        """Operations for every key that may differ, by stage. What must wait for its retry or window is left out."""
        dirty, self._dirty = self._dirty, {}
        self._in_flight = dirty
        stages: list[list[Operation]] = [[] for _ in range(STAGES)]
        for key, cause in dirty.items():
            if cause == OBSERVED and not self._may_repair(key, now):
                continue
            self._plan_key(key, stages, now)
        newcomers = sum(operation.old is None for operation in stages[_ANNOUNCE])
        if newcomers > NEWCOMERS_ANNOUNCED_MAX:
            stages[_ANNOUNCE] = [operation for operation in stages[_ANNOUNCE] if operation.old is not None]
        return stages

    def ready(self, operation: Operation) -> bool:
        """Whether what the operation needs is there now. If not, its key is planned again once that has changed."""
        if operation.verb == DELETE and operation.key not in self._actual:
            return False  # it went with its device, at an earlier stage
        if operation.verb == ANNOUNCE:
            return self._actual.get(operation.key) == operation.value
        for needed, present in self._needs(operation):
            found = self._actual.get(needed)
            if (found is not None and not isinstance(found, OtherLink)) is not present:
                self._waiting.setdefault(needed, {})[operation.key] = self._in_flight.get(operation.key, WANTED)
                self._waits_for.setdefault(operation.key, set()).add(needed)
                self._failures.pop(operation.key, None)  # what it needs has a fault of its own
                return False
        return True

    def record(self, operation: Operation, error: KernelError | None, now: float) -> None:
        """How an operation went."""
        key, verb = operation.key, operation.verb
        if verb == ANNOUNCE:
            return
        if error is not None and key.kind == NEIGHBOUR and error.errno == errno.EAFNOSUPPORT:
            self._set(key, Unavailable("this kernel has no IPv6"), WANTED)  # nor have its containers
            return
        if error is not None and not _is_done_anyway(operation, error):
            self._fail(key, error, now)
            if error.errno in _MISJUDGED or key.kind in GUEST_KINDS:
                # The device may be another one than we think, or have lost what the entry needs of it (IPv6, say).
                self._stale |= {LINKS, _PART_OF_KIND[key.kind]}
            return
        if error is not None:
            self._stale |= {LINKS, _PART_OF_KIND[key.kind]}  # done, but the mirror did not know
        if self._empties_neighbours(key, operation.value):
            self._stale.add(TABLES)
        self.applied += 1
        if self._in_flight.get(key) == OBSERVED:
            self._count_repair(key, now)
        self._set(key, None if verb == DELETE else operation.value, WANTED)

    def retry(self, now: float) -> None:
        """Look again at what failed and is due. Of what somebody fights for, the kernel does not tell every turn (IPv6
        of a bridge that is made anew is on again without a word), so that is listed anew, at a pace."""
        contested = {_PART_OF_KIND[key.kind] for key, failure in self._failures.items() if _is_contested(failure)}
        if contested and now >= self._look_again_s:
            self._look_again_s = now + CONTESTED_LOOK_S
            self._stale |= contested
        for key, failure in self._failures.items():
            if failure.retry_at <= now:
                self._mark(key, RETRY)
        for key in [key for key, (since, _) in self._repairs.items() if since + REPAIR_WINDOW_S <= now]:
            del self._repairs[key]

    def next_retry(self) -> float | None:
        due = [failure.retry_at for failure in self._failures.values()]
        if any(map(_is_contested, self._failures.values())):
            due.append(self._look_again_s)
        return min(due, default=None)

    @property
    def is_pending(self) -> bool:
        """Whether a plan would look at anything."""
        return bool(self._dirty)

    # Inside.

    def _mark(self, key: Key, cause: str) -> None:
        if self._dirty.get(key) != WANTED:
            self._dirty[key] = cause

    def _wait_no_more(self, key: Key) -> None:
        """What changed will wait anew, perhaps for something else."""
        for needed in self._waits_for.pop(key, ()):
            waiting = self._waiting[needed]
            del waiting[key]
            if not waiting:
                del self._waiting[needed]

    def _set(self, key: Key, value: Value | None, cause: str) -> None:
        """The mirror of one key changes; so may what waits for it, and what cannot be there without it."""
        old = self._actual.get(key)
        if value is None:
            self._actual.pop(key, None)
        else:
            self._actual[key] = value
        if old is not None and key.kind == NEIGHBOUR and isinstance(old, bytes):
            self._last_macs[key] = old
            self._last_macs.move_to_end(key)
            if len(self._last_macs) > REMEMBERED_MACS:
                self._last_macs.popitem(last=False)
        if key.kind == BRIDGE_FDB:
            self._hold(key, old, value)
        elif key.kind not in TABLE_KINDS:
            self._hold(key, None if old is None else key.device, None if value is None else key.device)
        wanted = self._wanted.get(key)
        if value is wanted or (value is not None and wanted is not None and fits(wanted, value)):
            if self._failures:
                self._failures.pop(key, None)
        else:
            self._mark(key, cause)
        if self._waiting:
            for waiter, why in self._waiting.pop(key, {}).items():
                self._mark(waiter, why)
                self._waits_for[waiter].discard(key)
                if not self._waits_for[waiter]:
                    del self._waits_for[waiter]
        if value is None and old is not None and key.kind == LINK:
            self._forget_device(key.device)

    def _hold(self, key: Key, before: Value | None, after: Value | None) -> None:
        """An object is under another device than before, where these are names and those of container ports."""
        if isinstance(before, str) and key in self._held.get(before, ()):
            del self._held[before][key]
            if not self._held[before]:
                del self._held[before]
        if isinstance(after, str) and after != self._bridge and after not in self._overlay:
            self._held.setdefault(after, {})[key] = None

    def _forget_device(self, name: str) -> None:
        """A device went, and with it all that the kernel kept under it; but for a guard, which is left hooked to
        nothing."""
        if name == self._bridge or name in self._overlay:
            held = [key for key, value in self._actual.items() if key.device == name or value == name]
        else:
            held = list(self._held.get(name, ()))
        for key in held:
            self._set(key, UNHOOKED if key.kind == GUARD else None, WANTED)
        for key in [key for key in self._failures if key.device == name and key.kind != LINK]:
            del self._failures[key]  # it failed because the device was going; from now on it waits for it
            self._mark(key, WANTED)

    def _empties_neighbours(self, key: Key, value: Value | None) -> bool:
        """Whether this change of the bridge makes the kernel forget its neighbours, permanent ones too."""
        if key.device != self._bridge or key.kind not in (LINK, UP):
            return False
        old = self._actual.get(key)
        if isinstance(old, Bridge) and isinstance(value, Bridge):
            return (old.mac, old.ipv6) != (value.mac, value.ipv6)
        return old is not None

    def _may_repair(self, key: Key, now: float) -> bool:
        """Bounds how often one object is put back, and leaves a failing one to its retry."""
        failure = self._failures.get(key)
        if failure is not None and now < failure.retry_at:
            return False
        since, count = self._repairs.get(key, (now, 0))
        if count < REPAIR_BURST or now - since >= REPAIR_WINDOW_S:
            return True
        wanted, found = self._wanted.get(key), self._actual.get(key)
        if wanted is not None:
            if found is not None and fits(wanted, found):
                return True  # whoever it was has put it back
            text = "something else on this host keeps changing it; find and stop that"
            error = KernelError(errno.EAGAIN, Operation(REPLACE, key, wanted), text, code=CONTESTED)
            self._failures[key] = Failure(error, since + REPAIR_WINDOW_S, RETRY_FIRST_S)
        return False

    def _count_repair(self, key: Key, now: float) -> None:
        self.repaired += 1
        since, count = self._repairs.get(key, (now, 0))
        self._repairs[key] = (now, 1) if now - since >= REPAIR_WINDOW_S else (since, count + 1)

    def _fail(self, key: Key, error: KernelError, now: float) -> None:
        before = self._failures.get(key)
        delay = RETRY_FIRST_S if before is None else min(before.delay_s * 2, RETRY_LIMIT_S)
        self._failures[key] = Failure(error, now + delay, delay)

    def _plan_key(self, key: Key, stages: list[list[Operation]], now: float) -> None:
        wanted, found = self._wanted.get(key), self._actual.get(key)
        if isinstance(found, OtherLink):
            if wanted is not None:
                text = f"a device of that name is there already, of type {found.type}; remove or rename it"
                self._fail(key, KernelError(errno.EEXIST, Operation(ADD, key, wanted), text, code="name-taken"), now)
            return
        if wanted is None:
            if found is None or not self._may_delete(key, found):
                self._failures.pop(key, None)
            else:
                stages[self._stage_of_delete(key, found)].append(Operation(DELETE, key, None, found))
            return
        if found is None:
            if key.kind != ACCEPT:  # absent: there is no such chain here, or it does not see our frames
                stages[self._stage_of_add(key, wanted)].append(Operation(ADD, key, wanted))
                self._plan_announcement(key, wanted, stages)
        elif fits(wanted, found):
            self._failures.pop(key, None)
        elif _must_be_remade(wanted, found):
            stages[_DELETE_FIRST].append(Operation(DELETE, key, None, found))
            stages[self._stage_of_add(key, wanted)].append(Operation(ADD, key, wanted))
        else:
            stages[self._stage_of_add(key, wanted)].append(Operation(REPLACE, key, wanted, found))
            self._plan_announcement(key, wanted, stages)

    def _plan_announcement(self, key: Key, wanted: Value, stages: list[list[Operation]]) -> None:
        """A permanent neighbour answers who asks. Who has the old MAC does not ask, and who asked a moment too early
        asks again only after a second: both must be told."""
        if key.kind != NEIGHBOUR or not isinstance(wanted, bytes):
            return
        old = self._actual.get(key) or self._last_macs.get(key)
        is_new = old is None and self._wanted.get(Key(BRIDGE_FDB, self._bridge, wanted)) in self._overlay
        if is_new or (isinstance(old, bytes) and old != wanted):
            stages[_ANNOUNCE].append(Operation(ANNOUNCE, key, wanted, old))

    def _may_delete(self, key: Key, found: Value) -> bool:
        """Whether an object nobody wants is ours, and nothing that may belong to a host not heard from yet."""
        if key.kind in (UP, PORT, OFFLOADS, GUEST) or isinstance(found, Odd | Unavailable):
            return False  # the first go with their link, the others were never ours
        if key.kind == ACCEPT:
            return found is True
        if isinstance(found, GuestAddress | HostAddress | Forwarding):
            return found.ours
        if isinstance(found, DefaultRoute):
            return found.gateway is not None
        if self._settled or key.kind in (LINK, GUARD, GATEWAY):
            return True
        return key.kind == BRIDGE_FDB and found not in self._overlay

    def _stage_of_add(self, key: Key, wanted: Value) -> int:
        if key.kind == LINK:
            return _ADD_BRIDGE if isinstance(wanted, Bridge) else _ADD_LINK
        if key.kind == UP and key.device == self._bridge:
            return _UP_BRIDGE
        if key.kind == BRIDGE_FDB and wanted not in self._overlay:
            return _LOCAL_FDB
        return _STAGE_OF_ADD[key.kind]

    def _stage_of_delete(self, key: Key, found: Value) -> int:
        if key.kind == LINK:
            return _DELETE_BRIDGE if isinstance(found, Bridge) else _DELETE_FIRST
        if key.kind in (GUEST_ADDRESS, HOST_ADDRESS) and self._changes_length(key):
            return _DELETE_FIRST
        return _STAGE_OF_DELETE[key.kind]

    def _changes_length(self, key: Key) -> bool:
        """Whether the same IPv6 address is wanted with another prefix length. The kernel takes that for a change of the
        address that is there, so the old one must have gone before."""
        packed = key.item[:-1]
        if len(packed) != 16:
            return False
        lengths = (packed + bytes((length,)) for length in range(129))
        return any(Key(key.kind, key.device, item) in self._wanted for item in lengths)

    def _needs(self, operation: Operation) -> Needs:
        """Keys that must be present (True) or absent (False) for the operation to make sense."""
        key, value = operation.key, operation.value
        if key.kind == NEIGHBOUR:
            return self._bridge_is_up if operation.verb != DELETE else ()
        if operation.verb == DELETE:
            if key.kind == VXLAN_FDB:
                points_here = self._actual.get(Key(BRIDGE_FDB, self._bridge, key.item)) == key.device
                return ((Key(BRIDGE_FDB, self._bridge, key.item), False),) if points_here else ()
            return ()
        if isinstance(value, Veth | Vxlan | Tap):
            return ((Key(LINK, self._bridge), True), (key, False)) if operation.verb == ADD else ()
        if isinstance(value, PortFlags):
            return (Key(LINK, key.device), True), (Key(LINK, value.master), True)
        if key.kind == UP and key.device != self._bridge:
            return (Key(LINK, key.device), True), (Key(PORT, key.device), True)
        if key.kind in (UP, OFFLOADS, VXLAN_FDB, FLOOD, GUARD, GUEST, GATEWAY, HOST_ADDRESS):
            return ((Key(LINK, key.device), True),)
        if key.kind == FORWARDING:
            return self._masquerade
        if key.kind == GUEST_ROUTE:
            return ((Key(GUEST, key.device), True), *self._masquerade)
        if key.kind in (GUEST_ADDRESS, GUEST_NETWORK):
            return ((Key(GUEST, key.device), True),)
        if key.kind == BRIDGE_FDB and isinstance(value, str):
            port = (Key(PORT, value), True)
            return (port, (Key(VXLAN_FDB, value, key.item), True)) if value in self._vxlans else (port,)
        return ()


def _is_contested(failure: Failure) -> bool:
    return failure.error.code == CONTESTED


def _must_be_remade(wanted: Value, found: Value) -> bool:
    """Whether the kernel cannot turn one into the other."""
    if isinstance(wanted, Vxlan) and isinstance(found, Vxlan):
        return (wanted.vni, wanted.port, wanted.oddity) != (found.vni, found.port, found.oddity)
    if isinstance(wanted, Tap) and isinstance(found, Tap):
        return wanted.oddity != found.oddity
    if isinstance(wanted, Veth) and isinstance(found, Veth):
        return wanted.namespace != found.namespace
    return isinstance(found, Odd) and found.sticks


def _is_done_anyway(operation: Operation, error: KernelError) -> bool:
    """Whether the refusal says that the outcome is already there."""
    return operation.verb == DELETE and error.errno in _ALREADY_GONE
