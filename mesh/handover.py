"""The engine as the event loop sees it: a desired state goes out, and its report comes back to whoever waits for it.

Knows nothing of how a desired state comes about (router) or what the engine does with it (dataplane.engine). The one
idea: a state is one value with a generation, so waiting for a change means waiting for a report that is no older.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dataplane.desired import Desired
from dataplane.engine import Engine, Report
from dataplane.kernel import Kernel, KernelError
from dataplane.linux import open_kernel, teardown
from mesh.errors import UserError
from mesh.logs import EventLog

REPORT_LIMIT_S = 15.0
"""The kernel is waited for this long, at the start and at each change that somebody asked for."""

log = EventLog("handover")


class Handover:
    """From `open` to `close`, on the loop that makes it."""

    def __init__(self, on_report: Callable[[Report], None]) -> None:
        """`on_report` is called on the loop."""
        self._loop = asyncio.get_running_loop()
        self._hear = on_report
        self._kernel: Kernel | None = None
        self._engine: Engine | None = None
        self._desired: Desired | None = None
        self._waiting: list[tuple[int, asyncio.Future[Report]]] = []
        self._is_abandoned = False
        self.report: Report | None = None
        """The newest."""

    @property
    def is_open(self) -> bool:
        return self._engine is not None

    def open(self, memory: str) -> None:
        """Take the kernel. `memory`: the file that tells what the host's forwarding was before. Raises `UserError`."""
        try:
            self._kernel = open_kernel(memory)
        except KernelError as error:
            raise UserError(error.text) from None
        self._engine = Engine(self._kernel, self._report_from_thread)
        self._engine.start()

    async def first(self, desired: Desired) -> None:
        """The state that a start needs. Raises `UserError` where the kernel is silent or refuses it."""
        try:
            report = await self.publish(desired)
        except TimeoutError:
            text = f"the kernel did not answer within {REPORT_LIMIT_S:g} s; see the log, then retry"
            raise UserError(text) from None
        if report.faults:
            raise UserError(report.faults[0].text)

    def offer(self, desired: Desired) -> None:
        """Publish it if it is another one than the last."""
        if desired != self._desired:
            self._hand_over(desired)

    async def publish(self, desired: Desired) -> Report:
        """Publish and wait until the kernel has it. Raises `TimeoutError`, after `abandon` at once."""
        generation = self._hand_over(desired)
        if self._is_abandoned:
            raise TimeoutError
        done: asyncio.Future[Report] = self._loop.create_future()
        self._waiting.append((generation, done))
        async with asyncio.timeout(REPORT_LIMIT_S):
            return await done

    def abandon(self) -> None:
        """Nobody waits any more: whoever is in the middle of a change takes it back."""
        self._is_abandoned = True
        for _, done in self._waiting:
            if not done.done():
                done.set_exception(TimeoutError())

    async def close(self, *, remove: bool) -> None:
        """End the engine and leave the kernel as it is, or remove what is ours there."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)
        if self._kernel is not None:
            if remove:
                await self._teardown(self._kernel)
            self._kernel.close()

    async def _teardown(self, kernel: Kernel) -> None:
        try:
            await asyncio.to_thread(teardown, kernel)
        except KernelError as error:
            log.error("teardown-failed", error=error.text)

    def _hand_over(self, desired: Desired) -> int:
        """To the engine; the generation that its report will bear."""
        assert self._engine is not None
        self._desired = desired
        return self._engine.publish(desired)

    def _report_from_thread(self, report: Report) -> None:
        """On the engine's thread; a loop that has closed meanwhile needs no news."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_report, report)

    def _on_report(self, report: Report) -> None:
        before, self.report = self.report, report
        for fault in report.faults:
            if before is None or fault not in before.faults:
                log.warning("kernel-fault", code=fault.code, text=fault.text)
        waiting, self._waiting = self._waiting, []
        for generation, done in waiting:
            if done.done():
                continue
            if report.generation >= generation:
                done.set_result(report)
            else:
                self._waiting.append((generation, done))
        self._hear(report)
