"""The fair queue against a slow one that anybody can follow, and what it promises to flows."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sleeve.queue import FLOWS_MAX, ITEM_BYTES, QUANTUM_BYTES, FairQueue

SUPER = 65_000
SMALL = 64


class SlowQueue:
    """The same rules, written down plainly: lists, and every sum made anew. Told what was dropped, and checks that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: dict[object, list[tuple[int, int]]] = {}
        self.credit: dict[object, int] = {}
        self.new: list[object] = []
        self.old: list[object] = []

    def held(self, flow: object) -> int:
        return sum(size for _, size in self.waiting[flow])

    def total(self) -> int:
        return sum(self.held(flow) for flow in self.waiting)

    def push(self, flow: object, item: int, size: int, dropped: list[int]) -> None:
        cost = size + ITEM_BYTES
        if cost > self.limit:
            assert dropped == [item]
            return
        if flow not in self.waiting:
            self.waiting[flow] = []
            self.credit[flow] = QUANTUM_BYTES
            self.new.append(flow)
        self.waiting[flow].append((item, cost))
        for gone in dropped:
            assert self.total() > self.limit, "dropped without need"
            owner = next(key for key, items in self.waiting.items() if items and items[0][0] == gone)
            fattest = max(self.held(key) for key in self.waiting)
            assert self.held(owner) * 2 > fattest, "dropped from a flow that holds little"
            self.waiting[owner].pop(0)
        assert self.total() <= self.limit

    def pop(self) -> int | None:
        while self.new or self.old:
            waiting = self.new if self.new else self.old
            flow = waiting[0]
            if self.waiting[flow] and self.credit[flow] > 0:
                item, cost = self.waiting[flow].pop(0)
                self.credit[flow] -= cost
                return item
            waiting.pop(0)
            if not self.waiting[flow] and waiting is self.old:
                del self.waiting[flow], self.credit[flow]
                continue
            if self.credit[flow] <= 0:
                self.credit[flow] += QUANTUM_BYTES
            self.old.append(flow)
        return None


def drain(queue: FairQueue[int]) -> list[int]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.integers(0, 5), st.sampled_from([0, 1, SMALL, 1400, 9000, SUPER, 200_000])),
        ),
        max_size=120,
    ),
    st.sampled_from([1000, 70_000, 180_000, 10_000_000]),
)
def test_it_does_what_the_slow_one_does(steps: list[tuple[int, int] | None], limit: int) -> None:
    """Every item comes out when the rules say, or was dropped from a flow that held much; nothing is lost unseen."""
    queue: FairQueue[int] = FairQueue(limit)
    slow = SlowQueue(limit)
    for number, step in enumerate(steps):
        if step is None:
            assert queue.pop() == slow.pop()
        else:
            slow.push(step[0], number, step[1], list(queue.push(step[0], number, step[1])))
        assert queue.held_bytes == slow.total() <= limit
        assert len(queue) == sum(map(len, slow.waiting.values()))
    while (item := queue.pop()) is not None:
        assert item == slow.pop()
    assert slow.pop() is None
    assert (len(queue), queue.held_bytes) == (0, 0)


def test_an_empty_queue_gives_nothing() -> None:
    queue: FairQueue[int] = FairQueue(1000)
    assert queue.pop() is None
    assert queue.push(1, 1, 10) == () and queue.pop() == 1 and queue.pop() is None


def test_a_flow_that_just_began_passes_by_what_was_piled_up() -> None:
    """A ping does not wait behind bulk transfers, even if they have been waiting for long."""
    queue: FairQueue[str] = FairQueue(10_000_000)
    for _ in range(20):
        for flow in range(4):
            queue.push(flow, "bulk", SUPER)
    assert [queue.pop() for _ in range(8)] == ["bulk"] * 8
    queue.push("ping", "ping", SMALL)
    assert queue.pop() == "ping"


def test_flows_share_by_bytes_however_large_their_frames_are() -> None:
    """Super-frames of one, full frames of another, small ones of a third: the same bytes, within one super-frame."""
    queue: FairQueue[tuple[str, int]] = FairQueue(30_000_000)
    for flow, size in (("super", SUPER), ("full", 1400), ("small", SMALL)):
        for _ in range(6_000_000 // (size + ITEM_BYTES)):
            queue.push(flow, (flow, size + ITEM_BYTES), size)
    served: Counter[str] = Counter()
    while sum(served.values()) < 9_000_000:
        item = queue.pop()
        assert item is not None
        served[item[0]] += item[1]
    assert max(served.values()) - min(served.values()) <= SUPER + ITEM_BYTES + QUANTUM_BYTES


def test_a_flow_that_comes_back_again_and_again_is_not_new_each_time() -> None:
    """Whoever has one small frame there whenever asked gets a share, not everything."""
    queue: FairQueue[str] = FairQueue(10_000_000)
    for _ in range(100):
        queue.push("bulk", "bulk", 1400)
    served: Counter[str] = Counter()
    for _ in range(400):
        queue.push("again", "again", SMALL)
        item = queue.pop()
        assert item is not None
        served[item] += 1
    # Of equal bytes: that is six small ones to one of 1,400.
    assert served["bulk"] >= 40


def test_the_fattest_flow_loses_its_oldest() -> None:
    """What came first of it goes; others keep everything."""
    queue: FairQueue[str] = FairQueue(100 * 1600)
    for number in range(80):
        assert queue.push("bulk", f"bulk {number}", 1400) == ()
    for number in range(20):
        assert queue.push("thin", f"thin {number}", 1400) == ()
    assert list(queue.push("thin", "thin 20", 1600)) == ["bulk 0"]
    assert list(queue.push("other", "other", 3200)) == ["bulk 1", "bulk 2"]


def test_what_can_never_fit_is_refused_and_costs_nobody_anything() -> None:
    """Larger than the whole queue."""
    queue: FairQueue[str] = FairQueue(10_000)
    queue.push(1, "kept", 5_000)
    assert list(queue.push(2, "giant", 10_001 - ITEM_BYTES)) == ["giant"]
    assert queue.pop() == "kept"
    assert queue.push(2, "fits", 10_000 - ITEM_BYTES) == ()
    assert queue.held_bytes == 10_000
    assert queue.pop() == "fits"


def test_a_flood_of_flows_costs_no_more_than_the_limits() -> None:
    """Ports at random, nothing taken out: bounded items, bounded queues, and no flow of many frames starves."""
    limit = 4_000_000
    queue: FairQueue[int] = FairQueue(limit)
    random = Random(1)
    dropped = 0
    for number in range(60_000):
        dropped += len(queue.push(random.getrandbits(96), number, SMALL))
        assert queue.held_bytes <= limit
    assert len(queue) + dropped == 60_000 and len(queue) <= limit // (SMALL + ITEM_BYTES)
    assert len(queue._flows) == FLOWS_MAX + 1
    queue.push("tcp", -1, 1400)
    assert -1 in [queue.pop() for _ in range(len(queue))]
    assert queue.pop() is None and len(queue._flows) == 0


def test_a_flow_that_waits_keeps_its_place_when_there_are_too_many() -> None:
    """Its frames stay in order, among thousands of others."""
    queue: FairQueue[tuple[int, int]] = FairQueue(10_000_000)
    for number in range(3):
        for flow in range(FLOWS_MAX + 200):
            queue.push(flow, (flow, number), SMALL)
    seen: dict[int, int] = {}
    while (item := queue.pop()) is not None:
        flow, number = item
        assert seen.get(flow, -1) == number - 1
        seen[flow] = number
    assert len(seen) == FLOWS_MAX + 200


@pytest.mark.parametrize("flows", [1, 7])
def test_frames_of_a_flow_stay_in_order(flows: int) -> None:
    """Also when some are dropped, which some are here."""
    queue: FairQueue[tuple[int, int]] = FairQueue(300_000)
    random = Random(flows)
    last = dict.fromkeys(range(flows), -1)
    dropped = 0
    for number in range(3000):
        flow = random.randrange(flows)
        dropped += len(queue.push(flow, (flow, number), random.choice([SMALL, 1400, SUPER])))
        if random.random() < 0.4 and (item := queue.pop()) is not None:
            assert item[1] > last[item[0]]
            last[item[0]] = item[1]
    assert dropped > 0 and min(last.values()) >= 0
