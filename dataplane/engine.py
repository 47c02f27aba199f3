"""Keeps the kernel as the newest `Desired` says, on a thread of its own.

The daemon publishes and is told by reports; everything that touches the kernel happens here, through the port in
`dataplane.kernel`. Knows nothing of netlink (linux) or of differences (reconcile); its own matter is time: when to
look, when to list everything again, when to try again.

The one idea: one loop. Wait for an event, a publish or a timer; bring the mirror up to date; do what differs, until
nothing does; report if there is news. A full listing comes at the first publish, once a minute, and whenever an
observation says that the mirror cannot be trusted.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from dataplane.desired import Desired
from dataplane.expansion import Expander, Expansion
from dataplane.faults import sort_faults, text_of
from dataplane.kernel import PARTS, Fault, Kernel, KernelError, Observation, Warning
from dataplane.objects import Key, Value
from dataplane.reconcile import OBSERVED, WANTED, Reconciler

FULL_INTERVAL_S: Final = 60.0
FULL_JITTER_S: Final = 10.0
MAX_PASSES: Final = 8
"""Passes of plan and apply in one turn; what still differs then comes in the next turn, after events."""
BURST_CHANGES: Final = 100
BURST_QUIET_S: Final = 0.005
MAX_BURST_WAITS: Final = 40
RESTART_DELAY_S: Final = 1.0
"""After a mistake of ours ended a turn."""

log = logging.getLogger("weft.dataplane")


@dataclass(frozen=True, slots=True)
class Counters:
    applied: int = 0
    """Operations the kernel accepted."""
    repaired: int = 0
    """Of these, the ones that undid a change by somebody else."""
    refused: int = 0
    """Operations the kernel refused."""
    reconciles: int = 0
    """Full listings compared."""
    overruns: int = 0
    """Times events were lost and the kernel was listed again for that."""
    objects: int = 0
    """Objects in the kernel now."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the kernel holds of a publish. `generation` is the newest one that was worked on in full."""

    generation: int
    port_faults: Mapping[str, Fault] = field(default_factory=dict)
    """By ifname: the container ports that are not complete, and why; and the bridge, where what exposes the host is
    not."""
    faults: tuple[Fault, ...] = ()
    """What else is wanted and not there."""
    warnings: tuple[Warning, ...] = ()
    """What harms the overlay or had to be left out; everything wanted is there."""
    counters: Counters = Counters()


class Engine:
    """Owns the thread, and the kernel while it runs. Does not close the kernel: who opened it does, after `stop`."""

    def __init__(
        self,
        kernel: Kernel,
        on_report: Callable[[Report], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        """`on_report` is called on the engine's thread, when there is news: a generation is done, a fault or warning
        came or went, something was repaired."""
        self._kernel = kernel
        self._on_report = on_report
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._reconciler = Reconciler()
        self._expander = Expander()
        self._expansion: Expansion | None = None
        self._counters = Counters()
        self._reported: Report | None = None
        self._generation = 0
        self._listing_error: KernelError | None = None
        self._next_full = 0.0
        self._lock = threading.Lock()
        self._mailbox: tuple[int, Desired] | None = None
        self._taken: tuple[int, Desired] | None = None
        self._published = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weft-kernel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, desired: Desired) -> int:
        """Hand over what the kernel should hold from now on; an older one not yet looked at is dropped.

        Returns the generation to wait for in the reports. Thread-safe, never blocks.
        """
        with self._lock:
            self._published += 1
            self._mailbox = (self._published, desired)
            generation = self._published
        self._kernel.wake()
        return generation

    def stop(self) -> None:
        """End the thread and leave the kernel as it is."""
        self._stopping.set()
        self._kernel.wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # On the engine's thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.turn(self._kernel.wait(self._timeout()))
            except Exception:  # the outermost shell of the thread: without it nobody would repair anything any more
                log.exception("kernel-engine-failed restart-in=%.0fs", RESTART_DELAY_S)
                self._start_anew()
                self._stopping.wait(RESTART_DELAY_S)

    def _start_anew(self) -> None:
        """Trust nothing that a broken turn left behind."""
        fresh = Reconciler()
        fresh.applied, fresh.repaired = self._reconciler.applied, self._reconciler.repaired
        self._reconciler, self._expander, self._expansion = fresh, Expander(), None
        self._next_full = 0.0
        with self._lock:
            self._mailbox = self._mailbox or self._taken

    def _timeout(self) -> float | None:
        """Seconds until the next thing that time alone brings; None before the first publish."""
        with self._lock:
            if self._mailbox is not None:
                return 0.0
        if self._expansion is None:
            return None
        if self._reconciler.is_pending:
            return 0.0
        due = self._next_full
        retry = self._reconciler.next_retry()
        if retry is not None:
            due = min(due, retry)
        return max(0.0, due - self._clock())

    def turn(self, observed: Observation) -> None:
        """One round of the loop. Called by the thread; tests without one call it themselves."""
        published = self._take_mailbox()
        if self._expansion is None:
            return
        stale = self._observe(observed) | self._ride_out(observed)
        if self._clock() >= self._next_full:
            stale = frozenset(PARTS)
        self._reconciler.retry(self._clock())
        stale |= self._reconciler.take_stale()
        for _ in range(MAX_PASSES):
            stale = self._list(stale)
            if not self._reconciler.is_pending and not stale:
                break
            self._apply()
            stale |= self._observe(self._kernel.wait(0.0))
        self._report(published)

    def _take_mailbox(self) -> bool:
        with self._lock:
            taken, self._mailbox = self._mailbox, None
        if taken is None:
            return False
        self._taken = taken
        self._generation, desired = taken
        expansion = self._expander.expand(desired)
        self._kernel.watch(expansion.scope)
        self._reconciler.want(expansion)
        self._expansion = replace(expansion, objects={}, gone=())  # the reconciler has them
        return True

    def _observe(self, observed: Observation) -> frozenset[str]:
        for key, value in observed.changes:
            self._reconciler.observe(key, value)
        if observed.stale == frozenset(PARTS):
            self._counters = replace(self._counters, overruns=self._counters.overruns + 1)
        return observed.stale | self._reconciler.take_stale()

    def _ride_out(self, observed: Observation) -> frozenset[str]:
        """A device that goes takes its entries with it, one event each, and repairing the first of them while the
        last are still to come would be work for nothing. So a burst is heard to its end first."""
        stale: frozenset[str] = frozenset()
        for _ in range(MAX_BURST_WAITS):
            if len(observed.changes) < BURST_CHANGES:
                break
            observed = self._kernel.wait(BURST_QUIET_S)
            stale |= self._observe(observed)
        return stale

    def _list(self, stale: frozenset[str]) -> frozenset[str]:
        """List parts again. Returns those that listing itself made untrusted."""
        if not stale:
            return stale
        is_first = self._next_full == 0.0
        is_full = stale == frozenset(PARTS)
        kinds: frozenset[str] = frozenset()
        objects: dict[Key, Value] = {}
        self._listing_error = None
        for part in (part for part in PARTS if part in stale):
            try:
                found = self._kernel.listing(part)
                objects, found = (found, objects) if len(found) > len(objects) else (objects, found)
                objects.update(found)  # the few into the many
                kinds |= PARTS[part]
            except KernelError as error:
                self._listing_error = error
                self._next_full = self._clock() + RESTART_DELAY_S
        self._reconciler.replace(kinds, objects, WANTED if is_first else OBSERVED)
        if is_full:
            self._counters = replace(self._counters, reconciles=self._counters.reconciles + 1)
            if self._listing_error is None:
                self._next_full = self._clock() + FULL_INTERVAL_S + self._jitter.uniform(-FULL_JITTER_S, FULL_JITTER_S)
        # What happened during the listing has been waiting in the socket, and is newer than the listing.
        return self._observe(self._kernel.wait(0.0))

    def _apply(self) -> None:
        """One pass: each stage is done and recorded before the next one is looked at."""
        for stage in self._reconciler.plan(self._clock()):
            operations = [operation for operation in stage if self._reconciler.ready(operation)]
            if not operations:
                continue
            errors = {id(error.operation): error for error in self._kernel.apply(operations)}
            for operation in operations:
                self._reconciler.record(operation, errors.get(id(operation)), self._clock())
            if errors:
                log.debug("operations-refused count=%d first=%s", len(errors), text_of(next(iter(errors.values()))))
            self._counters = replace(self._counters, refused=self._counters.refused + len(errors))

    def _report(self, published: bool) -> None:
        assert self._expansion is not None
        errors = [failure.error for failure in self._reconciler.failures.values()]
        if self._listing_error is not None:
            errors.append(self._listing_error)
        port_faults, faults = sort_faults(errors, self._expansion.port_of)
        warnings = tuple(Warning(*skipped) for skipped in self._expansion.skipped) + self._kernel.warnings()
        reconciler = self._reconciler
        self._counters = replace(
            self._counters, applied=reconciler.applied, repaired=reconciler.repaired, objects=reconciler.size
        )
        report = Report(self._generation, port_faults, faults, warnings, self._counters)
        if published or self._is_news(report):
            self._reported = report
            self._on_report(report)

    def _is_news(self, report: Report) -> bool:
        last = self._reported
        return last is None or (
            (last.generation, last.port_faults, last.faults, last.warnings, last.counters.repaired)
            != (report.generation, report.port_faults, report.faults, report.warnings, report.counters.repaired)
        )
