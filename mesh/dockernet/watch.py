"""What Docker says of our networks when it is asked: who is on them, what they are called, what it has forgotten.

Docker tells its plugin ids and no names, and what it lost in a crash it never takes back. So it is asked, but never
while it waits for an answer itself: after somebody joined, at every event of a container, and when it answers again.
While there is no network of ours it is not spoken to at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mesh.docker import Docker, DockerError, NoSuchContainer
from mesh.dockernet.driver import Driver
from mesh.logs import EventLog
from mesh.requests import ApiError

GATHER_S = 0.2
"""A start is several calls and events; Docker lists a member once all of them are done."""
AGAIN_S = (1.0, 3.0)
RETRY_INTERVAL_S = 1.0

log = EventLog("docker")


class Watch:
    """Beside one driver."""

    def __init__(self, docker: Docker, driver: Driver) -> None:
        self._docker = docker
        self._driver = driver
        self._due = asyncio.Event()
        self.trouble = ""
        self._has_started = False
        """Whether what waited for us has been started."""

    def wake(self) -> None:
        self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._driver.state.networks:
                self.trouble = ""
                self._due.clear()
                await self._due.wait()
                continue
            try:
                async with self._docker.events() as events, self._looking():
                    await self._start_stranded()
                    async for _ in events:
                        self.wake()
            except DockerError as error:
                self._silent(error)
            await asyncio.sleep(RETRY_INTERVAL_S)

    def _silent(self, error: DockerError) -> None:
        if not self.trouble:
            log.warning("docker-silent", error=error)
        self.trouble = str(error)

    @contextlib.asynccontextmanager
    async def _looking(self) -> AsyncIterator[None]:
        """Once at the beginning of the block, and whenever it is due inside."""
        self.wake()
        looking = asyncio.ensure_future(self._look_when_due())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look_when_due(self) -> None:
        doubtful_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(doubtful_s):
                    await self._due.wait()
            self._due.clear()
            await asyncio.sleep(GATHER_S)
            doubtful_s = self._driver.doubtful_for_s()  # of what it gave back and we never heard no event tells
            for again_s in (*AGAIN_S, None):
                is_whole = False
                try:
                    is_whole = await self._look()
                    self.trouble = ""
                except ApiError as error:
                    log.warning("not-saved", error=error)
                except DockerError as error:
                    self._silent(error)
                if is_whole or again_s is None or self._due.is_set():
                    break
                await asyncio.sleep(again_s)

    async def _start_stranded(self) -> None:
        """Docker tries once: what it was to start at boot, before us, it does not start when we are there."""
        if self._has_started:
            return
        self._has_started = True
        for container in await self._docker.stranded():
            try:
                await self._docker.start(container)
                log.info("started", container=container[:12], why="Docker had found no plugin")
            except DockerError as error:
                log.warning("not-started", container=container[:12], error=error)

    async def _look(self) -> bool:
        """Whether Docker has told of everybody who is on a network of ours."""
        there = await self._docker.networks()
        names: dict[str, tuple[str, str]] = {}
        state = self._driver.state
        for network in there & state.networks.keys():
            try:
                names |= await self._docker.members(network)
            except NoSuchContainer:
                pass  # it went this moment
        await self._driver.keep_only(set(there), set(names))
        told: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        for endpoint, (container, called) in self._driver.nameless(names).items():
            with contextlib.suppress(NoSuchContainer):
                told[endpoint] = (container, called, await self._docker.aliases(container, endpoint))
        await self._driver.name(told)
        return all(each.id in names for each in self._driver.state.members.values() if each.joined)
