"""What a host owns and gave, against a slow and obvious one; and the journal always says the same."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gossip.names import PeerName
from mesh.ipam import spans
from mesh.ipam.holdings import POOL, REST_S, Changes, Holdings
from mesh.ipam.statement import Gift, Range

SIZE = 48
SLOTS = st.integers(0, SIZE - 1)
PEER = PeerName(b"p" * 8)


class Machine(RuleBasedStateMachine):
    """One slot after the other, as a dictionary would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.changes: dict[bytes, bytes | None] = {}
        self.disk: dict[bytes, bytes] = {}
        self.holdings = Holdings(self.changes)
        self.owned: set[int] = set()
        self.given: dict[int, str] = {}
        self.resting: dict[int, float] = {}
        self.kept: set[int] = set()

    @rule(start=SLOTS, length=st.integers(1, 12))
    def gets_a_range(self, start: int, length: int) -> None:
        for low, high in spans.minus(((start, min(start + length, SIZE)),), self.holdings.owned):
            self.holdings.add_range(Range(low, high, 1, 0))
            self.owned |= set(range(low, high))

    @rule(start=SLOTS, length=st.integers(1, 6))
    def loses_some(self, start: int, length: int) -> None:
        gone = set(range(start, start + length))
        self.holdings.remove(spans.of_slots(gone))
        self.owned -= gone
        self.resting = {slot: until for slot, until in self.resting.items() if slot not in gone}
        self.kept -= gone

    @rule(count=st.integers(1, 10))
    def announces(self, count: int) -> None:
        self.holdings.announce_more((0, SIZE), count)

    @precondition(lambda self: next(self.holdings.pool((0, SIZE)), None) is not None)
    @rule(owner=st.sampled_from("abc"))
    def gives(self, owner: str) -> None:
        slot = next(self.holdings.pool((0, SIZE)))
        assert slot in self.owned and slot not in self.given and slot not in self.resting and slot not in self.kept
        self.holdings.give(slot, owner, "net:default", (f"10.0.0.{slot}/24",))
        self.given[slot] = owner

    @rule(slot=SLOTS, owner=st.sampled_from("abc"))
    def claims(self, slot: int, owner: str) -> None:
        if slot not in self.given and slot not in self.kept:
            if slot in self.owned:
                self.holdings.announce(slot)
            self.holdings.give(slot, owner, f"ip:{slot}", (f"10.0.0.{slot}/24",))
            self.given[slot] = owner
            self.resting.pop(slot, None)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), rests=st.booleans())
    def releases(self, data: st.DataObject, rests: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.given)))
        self.holdings.release(slot, self.now, rests)
        del self.given[slot]
        if rests and slot in self.owned:
            self.resting[slot] = self.now + REST_S

    @rule(slots=st.sets(SLOTS, max_size=5))
    def keeps(self, slots: set[int]) -> None:
        self.holdings.keep(PEER, 3, spans.of_slots(slots))
        self.kept = {slot for slot in slots if slot in self.owned and slot not in self.given}

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.holdings.wake(self.now)
        self.resting = {slot: until for slot, until in self.resting.items() if until > self.now}

    @rule()
    def restarts(self) -> None:
        """Slots that rest begin anew."""
        self._write()
        self.changes = {}
        self.holdings = Holdings(self.changes)
        self.holdings.load(dict(self.disk), self.now)
        self.resting = dict.fromkeys(self.resting, self.now + REST_S)

    @rule(start=SLOTS)
    def gives_away(self, start: int) -> None:
        free = self.holdings.unannounced((start, SIZE))
        if free:
            span = free[0]
            self.holdings.give_away(Gift(PEER, start, Range(*span, 1, 1)))
            self.owned -= set(range(*span))

    def _write(self) -> None:
        for key, value in self.changes.items():
            if value is None:
                self.disk.pop(key, None)
            else:
                self.disk[key] = value
        self.changes.clear()

    @invariant()
    def is_as_the_slow_one(self) -> None:
        holdings = self.holdings
        assert set(spans.slots(holdings.owned)) == self.owned
        assert {slot: each.owner for slot, each in holdings.given.items()} == self.given
        assert holdings.guests == {slot for slot in self.given if slot not in self.owned}
        assert set(holdings.resting) == set(self.resting)
        assert set(spans.slots(holdings.kept_slots)) == self.kept
        announced = set(spans.slots(holdings.announced))
        assert announced <= self.owned
        assert {slot for slot in self.given if slot in self.owned} <= announced
        assert set(self.resting) | self.kept <= announced
        pool = set(holdings.pool((0, SIZE)))
        assert pool == announced - set(self.given) - set(self.resting) - self.kept


TestHoldings = Machine.TestCase
TestHoldings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_is_announced_and_free_stays_bounded() -> None:
    """However much was given and released: a take-over keeps no more than that for nothing."""
    holdings = Holdings({})
    holdings.add_range(Range(0, 100_000, 0, 0))
    for slot in range(20_000):
        holdings.refill((0, 100_000))
        assert slot in holdings.pool((slot, slot + 1))
        holdings.give(slot, "c", str(slot), (f"{slot}",))
    for slot in range(20_000):
        holdings.release(slot, 0.0)
    holdings.wake(REST_S + 1)
    holdings.trim()
    assert spans.size(holdings.announced) == POOL
    assert list(holdings.pool((0, 100_000))) == list(range(POOL))


def test_by_another_range_the_two_addresses_of_a_slot_may_be_of_two() -> None:
    changes: Changes = {}
    holdings = Holdings(changes)
    holdings.give(2, "a", "net:default", ("10.32.0.2/24", "fd00:9::2/64"))
    holdings.give(3, "b", "ip:10.32.0.3/24", ("10.32.0.3/24",))
    holdings.give(4, "c", "ip:fd00:9::4/64", ("fd00:9::4/64",))
    numbers = {"10.32.0.2/24": 802, "fd00:9::2/64": 2, "10.32.0.3/24": 4, "fd00:9::4/64": 4}
    assert holdings.renumber(numbers) == ()
    assert {slot: (given.owner, given.addresses) for slot, given in holdings.given.items()} == {
        802: ("a", ("10.32.0.2/24",)),
        2: ("a", ("fd00:9::2/64",)),
        4: ("b", ("10.32.0.3/24",)),
    }
    assert holdings.slots_of("a") == [802, 2] and holdings.slots_of("b") == [4] and holdings.slots_of("c") == []
    assert holdings.guests == {802, 2, 4}
    again = Holdings({})
    again.load({key: value for key, value in changes.items() if value is not None}, 0.0)
    assert again.given == holdings.given


def test_by_another_range_what_lies_outside_is_dropped_unless_the_other_address_does_not() -> None:
    holdings = Holdings({})
    holdings.give(2, "a", "net:default", ("10.32.0.2/24", "fd00:9::2/64"))
    holdings.give(3, "b", "ip:10.32.0.3/24", ("10.32.0.3/24",))
    numbers = {"10.32.0.2/24": None, "fd00:9::2/64": 7, "10.32.0.3/24": None}
    assert holdings.renumber(numbers) == ((3, 4),)
    assert {slot: given.addresses for slot, given in holdings.given.items()} == {7: ("10.32.0.2/24", "fd00:9::2/64")}
