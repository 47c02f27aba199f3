"""When the engine looks, lists, tries again and reports; with a clock by hand, and once with its real thread."""

from __future__ import annotations

import errno
import random
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from dataplane import engine as engine_module
from dataplane.desired import Desired, Port, RemoteEndpoint, Segment
from dataplane.engine import (
    BURST_CHANGES,
    BURST_QUIET_S,
    FULL_INTERVAL_S,
    FULL_JITTER_S,
    MAX_BURST_WAITS,
    MAX_PASSES,
    RESTART_DELAY_S,
    Engine,
    Report,
)
from dataplane.kernel import PARTS, TABLES, Fault, Kernel, KernelError, Observation, Warning
from dataplane.memory import MemoryKernel
from dataplane.objects import LINK, NEIGHBOUR, UP, VXLAN_FDB, Key, Scope, Value

SEGMENT = Segment("weft", bytes.fromhex("02aa00000001"), 1450, 7, 6784)
PORT_A = Port("vwa", "ethwe", "/run/netns/a", (4, 1), bytes.fromhex("020000000001"), (ip_interface("10.32.0.1/16"),))
ENDPOINT = RemoteEndpoint(bytes.fromhex("020000000002"), (ip_address("10.32.0.2"),), ip_address("10.9.0.2"))
DESIRED = Desired(SEGMENT, (PORT_A,), (), ((ENDPOINT,),))
NEIGHBOUR_KEY = Key(NEIGHBOUR, "weft", ip_address("10.32.0.2").packed)


class Bench:
    """An engine without its thread: `turn` is called by hand, and so is the clock."""

    def __init__(self) -> None:
        self.kernel = MemoryKernel()
        self.now = 1000.0
        self.reports: list[Report] = []
        self.engine = Engine(self.kernel, self.reports.append, clock=lambda: self.now, jitter=random.Random(1))

    def publish(self, desired: Desired) -> Report:
        generation = self.engine.publish(desired)
        self.turn()
        assert self.reports[-1].generation == generation
        return self.reports[-1]

    def turn(self) -> None:
        self.engine.turn(self.kernel.wait(0.0))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def listings(self) -> list[str]:
        listed, self.kernel.listings = self.kernel.listings, []
        return listed


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_publish_lists_everything_and_makes_what_is_missing(bench: Bench) -> None:
    """One report, of that generation, without faults."""
    report = bench.publish(DESIRED)
    assert bench.listings() == list(PARTS)
    assert (report.generation, dict(report.port_faults), report.faults, report.warnings) == (1, {}, (), ())
    assert report.counters.applied == len(bench.kernel.objects) == report.counters.objects
    assert (report.counters.reconciles, report.counters.repaired) == (1, 0)


def test_nothing_is_touched_before_the_first_publish(bench: Bench) -> None:
    """Not even looked at."""
    bench.kernel.meddle(NEIGHBOUR_KEY, b"x")
    bench.turn()
    assert bench.reports == [] and bench.listings() == [] and bench.engine._timeout() is None


def test_a_second_engine_on_the_same_kernel_changes_nothing(bench: Bench) -> None:
    """The restart of a daemon."""
    bench.publish(DESIRED)
    second = Engine(bench.kernel, bench.reports.append, clock=lambda: bench.now)
    bench.kernel.wait(0.0)
    second.publish(DESIRED)
    second.turn(Observation())
    assert bench.reports[-1].counters.applied == 0 and bench.reports[-1].counters.objects > 0


def test_every_publish_is_reported_even_when_nothing_changes(bench: Bench) -> None:
    """An attach waits for it."""
    bench.publish(DESIRED)
    bench.listings()
    report = bench.publish(DESIRED)
    assert report.generation == 2 and bench.listings() == []


def test_the_newest_publish_wins(bench: Bench) -> None:
    """Two in the mailbox are one turn, and a report of the second."""
    assert bench.engine.publish(Desired(SEGMENT)) == 1
    assert bench.engine.publish(DESIRED) == 2
    bench.turn()
    assert [report.generation for report in bench.reports] == [2]
    assert NEIGHBOUR_KEY in bench.kernel.objects


def test_an_event_is_repaired_and_reported_without_a_listing(bench: Bench) -> None:
    """One lookup, one operation."""
    before = bench.publish(DESIRED)
    bench.listings()
    bench.kernel.meddle(NEIGHBOUR_KEY, None)
    bench.turn()
    after = bench.reports[-1]
    assert NEIGHBOUR_KEY in bench.kernel.objects and bench.listings() == []
    assert (after.counters.applied - before.counters.applied, after.counters.repaired) == (1, 1)


def test_what_events_do_not_tell_is_found_once_a_minute_with_jitter(bench: Bench) -> None:
    """A full listing, not before and not much after; another one follows."""
    bench.publish(DESIRED)
    bench.kernel.meddle_unseen(NEIGHBOUR_KEY, None)
    bench.listings()
    bench.later(FULL_INTERVAL_S - FULL_JITTER_S - 1)
    assert bench.listings() == [] and NEIGHBOUR_KEY not in bench.kernel.objects
    timeout = bench.engine._timeout()
    assert timeout is not None and 0 < timeout <= 2 * FULL_JITTER_S + 1
    bench.later(2 * FULL_JITTER_S + 1)
    assert bench.listings() == list(PARTS) and NEIGHBOUR_KEY in bench.kernel.objects
    assert bench.reports[-1].counters.reconciles == 2


def test_lost_events_lead_to_a_full_listing(bench: Bench) -> None:
    """And are counted."""
    bench.publish(DESIRED)
    bench.kernel.meddle_unseen(NEIGHBOUR_KEY, None)
    bench.kernel.overrun()
    bench.listings()
    bench.turn()
    assert bench.listings() == list(PARTS) and NEIGHBOUR_KEY in bench.kernel.objects
    assert bench.reports[-1].counters.overruns == 1


def test_a_stale_part_is_listed_alone(bench: Bench) -> None:
    """An address that came or went on the bridge may have emptied a table."""
    bench.publish(DESIRED)
    bench.kernel.meddle_unseen(NEIGHBOUR_KEY, None)
    bench.listings()
    bench.engine.turn(Observation(stale=frozenset({TABLES})))
    assert bench.listings() == [TABLES] and NEIGHBOUR_KEY in bench.kernel.objects


def test_a_burst_of_events_is_heard_to_its_end_before_anything_is_repaired(bench: Bench) -> None:
    """A device that goes takes its entries along, one event each; the wait for the end is bounded."""
    many = tuple(replace(ENDPOINT, mac=bytes((2, 0, 0, 1, n // 256, n % 256))) for n in range(BURST_CHANGES * 2))
    bench.publish(replace(DESIRED, groups=(many,)))
    gone: list[tuple[Key, Value | None]] = [(Key(VXLAN_FDB, "weft-vx", endpoint.mac), None) for endpoint in many]
    for key, _ in gone:
        bench.kernel.objects.pop(key)
    bursts = [gone[:BURST_CHANGES], gone[BURST_CHANGES:], [(Key(LINK, "weft-vx"), None)]]
    observations = [Observation(changes=burst) for burst in bursts]
    bench.kernel.objects.pop(Key(LINK, "weft-vx"))
    bench.kernel.wait = lambda timeout_s: observations.pop(0) if observations else Observation()  # type: ignore[method-assign]
    bench.kernel.operations.clear()
    bench.turn()
    assert bench.kernel.operations[0].key == Key(LINK, "weft-vx") and bench.kernel.harm == []


def test_a_burst_without_end_is_not_waited_for(bench: Bench) -> None:
    """Somebody who never stops does not keep everything else from being repaired."""
    bench.publish(DESIRED)
    waits: list[float | None] = []
    endless = Observation(changes=[(NEIGHBOUR_KEY, ENDPOINT.mac)] * BURST_CHANGES)

    def wait(timeout_s: float | None) -> Observation:
        waits.append(timeout_s)
        return endless

    bench.kernel.wait = wait  # type: ignore[method-assign]
    bench.engine.turn(endless)
    assert waits.count(BURST_QUIET_S) == MAX_BURST_WAITS and MAX_BURST_WAITS * BURST_QUIET_S <= 0.25


def test_a_turn_ends_although_somebody_undoes_everything_at_once(bench: Bench) -> None:
    """What still differs comes in the next turn, so that publishes are not kept waiting."""
    bench.publish(DESIRED)
    real = bench.kernel.wait

    def wait(timeout_s: float | None) -> Observation:
        bench.kernel.meddle(NEIGHBOUR_KEY, None)
        return real(timeout_s)

    bench.kernel.wait = wait  # type: ignore[method-assign]
    bench.kernel.operations.clear()
    bench.turn()
    assert len(bench.kernel.operations) == MAX_PASSES and bench.engine._timeout() == 0.0


def test_a_refused_operation_is_a_fault_until_it_is_accepted(bench: Bench) -> None:
    """A port's goes by its name; the retry comes by the clock, and its success is news."""
    bench.kernel.fail = lambda number, op: errno.ENOSPC if op.key == Key(UP, "vwa") else 0
    report = bench.publish(DESIRED)
    assert dict(report.port_faults) == {"vwa": Fault("kernel", "cannot bring up vwa: ENOSPC")}
    assert report.faults == () and report.counters.refused == 1
    timeout = bench.engine._timeout()
    assert timeout is not None and 0 < timeout < 0.11
    bench.kernel.fail = lambda number, op: 0
    bench.later(0.11)
    assert dict(bench.reports[-1].port_faults) == {} and bench.reports[-1].generation == 1


def test_a_fault_goes_with_the_port_that_had_it(bench: Bench) -> None:
    """Detached, it is nobody's business any more."""
    bench.kernel.fail = lambda number, op: errno.ENOSPC if op.key.device == "vwa" else 0
    assert bench.publish(DESIRED).port_faults
    report = bench.publish(replace(DESIRED, ports=()))
    assert dict(report.port_faults) == {} and report.faults == ()
    assert bench.engine._reconciler.next_retry() is None


def test_what_is_left_out_is_a_warning(bench: Bench) -> None:
    """Beside those of the kernel; nothing that is wanted of it is missing."""
    bench.kernel.notices = (Warning("forward-drop", "a chain drops", "a cure"),)
    report = bench.publish(replace(DESIRED, groups=((replace(ENDPOINT, mac=b"\xff" * 6),),)))
    assert [warning.code for warning in report.warnings] == ["unusable-mac", "forward-drop"] and report.faults == ()


def test_warnings_of_the_kernel_are_passed_on_when_they_change(bench: Bench) -> None:
    """And reported once."""
    bench.publish(DESIRED)
    bench.kernel.notices = (Warning("forward-drop", "a chain drops", "a cure"),)
    bench.turn()
    bench.turn()
    assert [report.warnings for report in bench.reports] == [(), bench.kernel.notices]


def test_a_listing_that_fails_is_a_fault_and_is_tried_again(bench: Bench) -> None:
    """The parts that could be listed are reconciled all the same."""
    real = bench.kernel.listing

    def listing(part: str) -> dict[Key, Value]:
        if part == TABLES:
            raise KernelError(errno.EPERM, None, "cannot list tables: not permitted")
        return real(part)

    bench.kernel.listing = listing  # type: ignore[method-assign]
    report = bench.publish(DESIRED)
    assert report.faults == (Fault("kernel", "cannot list tables: not permitted"),)
    assert Key(LINK, "weft") in bench.kernel.objects
    bench.kernel.listing = real  # type: ignore[method-assign]
    bench.later(RESTART_DELAY_S)
    assert bench.reports[-1].faults == ()


class BlockingKernel(MemoryKernel):
    """One whose `wait` really waits, for an engine on its thread."""

    def __init__(self) -> None:
        super().__init__()
        self._event = threading.Event()

    def wait(self, timeout_s: float | None) -> Observation:
        if not (self._changes or self._stale):
            self._event.wait(timeout_s)
        self._event.clear()
        return super().wait(timeout_s)

    def wake(self) -> None:
        self._event.set()


class Threaded:
    def __init__(self, kernel: BlockingKernel) -> None:
        self.kernel = kernel
        self.news = threading.Condition()
        self.reports: list[Report] = []
        self.threads: set[str] = set()
        self.engine = Engine(kernel, self.hear)

    def hear(self, report: Report) -> None:
        with self.news:
            self.threads.add(threading.current_thread().name)
            self.reports.append(report)
            self.news.notify_all()

    def publish(self, desired: Desired) -> Report:
        generation = self.engine.publish(desired)
        with self.news:
            assert self.news.wait_for(lambda: self.reports and self.reports[-1].generation >= generation, 10.0)
            return self.reports[-1]


def test_the_thread_publishes_reports_repairs_and_stops() -> None:
    """With the real clock; reports come on its own thread, and stopping changes nothing."""
    threaded = Threaded(BlockingKernel())
    threaded.engine.start()
    assert threaded.publish(DESIRED).faults == ()
    threaded.kernel.meddle(NEIGHBOUR_KEY, None)
    threaded.kernel.wake()
    with threaded.news:
        assert threaded.news.wait_for(lambda: threaded.reports[-1].counters.repaired == 1, 10.0)
    there = dict(threaded.kernel.objects)
    threaded.engine.stop()
    assert threaded.kernel.objects == there and threaded.threads == {"weft-kernel"}


def test_an_engine_that_never_started_stops_too() -> None:
    """Launch may fail in between."""
    Engine(MemoryKernel(), lambda report: None).stop()


def test_a_mistake_of_ours_does_not_end_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and after a moment everything is looked at anew."""
    monkeypatch.setattr(engine_module, "RESTART_DELAY_S", 0.01)

    class Stumbling(BlockingKernel):
        stumbles = 1

        def watch(self, scope: Scope) -> None:
            if self.stumbles:
                self.stumbles -= 1
                raise RuntimeError("stumbled")
            super().watch(scope)

    threaded = Threaded(Stumbling())
    threaded.engine.start()
    try:
        threaded.engine.publish(DESIRED)
        assert threaded.publish(DESIRED).faults == ()
        assert NEIGHBOUR_KEY in threaded.kernel.objects
    finally:
        threaded.engine.stop()
    assert "stumbled" in caplog.text


def test_the_memory_kernel_is_a_kernel() -> None:
    """As far as a type checker can tell."""
    kernel: Kernel = MemoryKernel()
    kernel.close()
