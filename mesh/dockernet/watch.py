"""What Docker says of our networks when it is asked: who is on them, what they are called, what it has forgotten.

Docker tells its plugin ids and no names, and what it lost in a crash it never takes back. So it is asked, but never
while it waits for an answer itself: after somebody joined, at every event of a container, and when it answers again.
While there is no network of ours it is not spoken to at all.
"""

from __future__ import annotations

import asyncio

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
                async with self._docker.events() as events, asyncio.TaskGroup() as group:
                    looking = group.create_task(self._look_when_due())
                    self.wake()
                    async for _ in events:
                        self.wake()
                    looking.cancel()
            except* DockerError as errors:
                if not self.trouble:
                    log.warning("docker-silent", error=errors.exceptions[0])
                self.trouble = str(errors.exceptions[0])
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _look_when_due(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await asyncio.sleep(GATHER_S)
            for again_s in (*AGAIN_S, None):
                try:
                    is_whole = await self._look()
                except ApiError as error:
                    log.warning("not-saved", error=error)
                    is_whole = False
                self.trouble = ""
                if is_whole or again_s is None or self._due.is_set():
                    break
                await asyncio.sleep(again_s)

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
        await self._driver.name(names)
        return all(each.id in names for each in self._driver.state.members.values() if each.joined)
