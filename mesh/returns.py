"""Watches for what comes back: named namespaces that are there again, Docker containers that were started again.

Knows where to look and when; what an attachment is and how it is brought back is `mesh.attach`'s. The one idea: news is
only ever a reason to look. The mount table changed, or Docker had an event, so the namespaces, or those containers, are
looked at, and what is found is handed on; whether it is news after all is decided there. A look that finds nothing new
costs nothing, so missed and doubled news do no harm, and the looks at start, after Docker was away, and every few
seconds are the same look.

While no attachment is of a container, Docker is not spoken to at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from dataplane.linux.mounts import MountWatch
from dataplane.linux.netns import is_there
from mesh.attach import Attachments
from mesh.docker import Docker, DockerError, NoSuchContainer
from mesh.dockerwire import Container
from mesh.logs import EventLog
from mesh.targets import Place, Targets

GATHER_S = 0.05
"""One `ip netns add` is several mounts, and one `docker start` a dozen: one look for all of them."""
SWEEP_INTERVAL_S = 5.0
"""A name under /run/netns may also be a link to a process's namespace, which no mount tells of."""
RETRY_INTERVAL_S = 1.0
"""Between two tries to reach a Docker that is away: one attempt to connect to a local socket."""
QUESTIONS_MAX = 8
"""To Docker at once."""

log = EventLog("returns")


class Returns:
    """What runs beside one daemon's attachments."""

    def __init__(self, attachments: Attachments, targets: Targets) -> None:
        self._attachments = attachments
        self._targets = targets
        self._docker: Docker = targets.docker
        self._names_due = asyncio.Event()
        self._containers_due = asyncio.Event()
        self._questions = asyncio.Semaphore(QUESTIONS_MAX)
        self._trouble: str | None = None
        self._counters = {"looks_at_names": 0, "looks_at_containers": 0, "events": 0, "connects": 0}

    def wake(self) -> None:
        """Something may be there again, or there is something else to watch for."""
        self._names_due.set()
        self._containers_due.set()

    async def vanished(self, ifnames: frozenset[str]) -> None:
        """The kernel says so; perhaps there is a next one already."""
        await self._attachments.vanished(ifnames)
        self.wake()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_names())
            group.create_task(self._watch_containers())

    # -- named namespaces --------------------------------------------------------------------------

    async def _watch_names(self) -> None:
        with self._mounts_heard():
            while True:
                self._names_due.clear()
                await self._look_at_names()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_INTERVAL_S):
                        await self._names_due.wait()
                await asyncio.sleep(GATHER_S)

    @contextlib.contextmanager
    def _mounts_heard(self) -> Any:
        try:
            watch = MountWatch()
        except OSError as error:
            log.warning("mounts-not-heard", error=error.strerror)  # the sweep is left
            yield
            return
        loop = asyncio.get_running_loop()

        def heard() -> None:
            watch.taken()
            self._names_due.set()

        loop.add_reader(watch.fileno(), heard)
        try:
            yield
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()

    async def _look_at_names(self) -> None:
        self._counters["looks_at_names"] += 1
        places: dict[str, Place] = {}
        taken = {held.namespace_id: held.ifname for held in self._attachments.here() if held.sandbox is None}
        for held in self._attachments.all():
            here = held.away_since is None and is_there(held.namespace, held.namespace_id)
            found = self._targets.namespace(held.namespace) if held.is_named and not here else None
            if found is not None and taken.get(found.id, held.ifname) == held.ifname:
                places[held.ifname] = Place(found)
        if places:
            await self._attachments.come_back(places)

    # -- containers --------------------------------------------------------------------------------

    async def _watch_containers(self) -> None:
        while True:
            self._containers_due.clear()
            if not self._containers():
                self._trouble = None
                await self._containers_due.wait()
                continue
            try:
                self._counters["connects"] += 1
                async with self._docker.events() as events:
                    # What happened while nobody listened; what happens from here on is told.
                    await self._look_at_containers(self._containers())
                    if self._trouble is not None:
                        log.info("docker-answers", socket=self._docker.socket_path)
                    self._trouble = None
                    async for ids in events:
                        self._counters["events"] += len(ids)
                        await self._look_at_containers(ids & self._containers())
            except DockerError as error:
                if self._trouble is None:
                    log.warning("docker-silent", error=error)
                self._trouble = str(error)
            await asyncio.sleep(RETRY_INTERVAL_S)

    def _containers(self) -> frozenset[str]:
        return frozenset(held.container for held in self._attachments.all() if held.container is not None)

    async def _look_at_containers(self, ids: Iterable[str]) -> None:
        """Ask Docker what they are doing, and hand that on. Raises `DockerError`."""
        wanted = sorted(ids)
        if not wanted:
            return
        self._counters["looks_at_containers"] += len(wanted)
        found = dict(zip(wanted, await asyncio.gather(*map(self._inspect, wanted)), strict=True))
        removed = frozenset(each for each, container in found.items() if container is None)
        places: dict[str, Place] = {}
        stopped: set[str] = set()
        for held in self._attachments.all():
            container = found.get(held.container or "")
            if container is None:
                continue
            place = self._targets.place_of(container)
            if place is not None:
                places[held.ifname] = place
            elif not container.pid:
                stopped.add(held.ifname)
        await self._attachments.forget(removed)
        await self._attachments.vanished(frozenset(stopped))
        await self._attachments.come_back(places)

    async def _inspect(self, container: str) -> Container | None:
        """None where Docker has it no more."""
        async with self._questions:
            try:
                return await self._docker.inspect(container)
            except NoSuchContainer:
                return None

    # -- what is shown of it -----------------------------------------------------------------------

    def warnings(self) -> list[dict[str, Any]]:
        """In the form of `status`."""
        if self._trouble is None:
            return []
        text = f"{self._trouble}, so attached containers that are started now get no interface"
        return [{"code": "docker-silent", "text": text, "cure": "start Docker; what it has running is looked at then"}]

    def report(self) -> dict[str, Any]:
        return {"docker_socket": self._docker.socket_path, "docker_trouble": self._trouble, **self._counters}
