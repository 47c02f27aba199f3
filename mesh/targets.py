"""What a TARGET means: a network namespace, and whether it is that of a Docker container.

In this order: a path (with a slash), a pid (digits), a named namespace; and where there is none of that name or number,
a container by name, by id, or by a beginning of an id that only one has. Docker is asked last, so that what it calls
its containers changes nothing for anybody who has none. A pid is asked about too: where its process is in a container
that Docker knows, it is that container which was attached, and which may come back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dataplane.linux.netns import Namespace, NoSuchNamespace, find_namespace
from mesh.attachment import canonical
from mesh.docker import Docker, DockerError, NoSuchContainer
from mesh.dockerwire import Container
from mesh.logs import EventLog
from mesh.requests import ApiError

PROC = Path("/proc")
CGROUPS_MAX_BYTES = 64 * 1024
_PID = re.compile(r"(?:/proc/)?([1-9][0-9]{0,9})(?:/ns/net)?")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ID_IN_CGROUP = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

log = EventLog("targets")


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace, and the container that it belongs to."""

    namespace: Namespace
    container: str | None = None
    """Its whole id; None where it is no container of Docker's, or Docker could not be asked."""
    name: str | None = None
    """What Docker calls it."""


class Targets:
    """Finds what people name."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker

    async def find(self, target: str) -> Place:
        """What is to be attached. Raises `ApiError` with code `bad-target`."""
        try:
            found = find_namespace(target)
        except NoSuchNamespace as error:
            if _CONTAINER.fullmatch(target):
                return await self._running(target, str(error))
            raise ApiError("bad-target", str(error)) from None
        except ValueError as error:
            raise ApiError("bad-target", str(error)) from None
        namespace = replace(found, path=canonical(found.path))
        return await self._container_around(target, namespace) or Place(namespace)

    def at_path(self, path: str) -> Place:
        """The namespace at a path that whoever made it says. Raises `ApiError` with code `bad-target`."""
        try:
            return Place(find_namespace(path))
        except ValueError as error:
            raise ApiError("bad-target", str(error)) from None

    def namespace(self, target: str) -> Namespace | None:
        """The namespace of a target that is no container."""
        try:
            return find_namespace(target)
        except ValueError:
            return None

    def place_of(self, container: Container) -> Place | None:
        """Where a container is; None while it does not run, or not in a namespace of its own."""
        namespace = self.namespace(str(container.pid)) if container.pid else None
        return Place(namespace, container.id, container.name) if namespace is not None else None

    async def container(self, target: str) -> str | None:
        """The id of the container of that name, running or not; None where there is none, or nobody to ask."""
        if not _CONTAINER.fullmatch(target):
            return None
        try:
            return (await self.docker.inspect(target)).id
        except DockerError:
            return None

    async def _running(self, target: str, missing: str) -> Place:
        """`missing`: what was said of it as a namespace."""
        path = self.docker.socket_path
        try:
            container = await self.docker.inspect(target)
        except NoSuchContainer:
            neither = f"{missing.partition(';')[0]}, and Docker at {path} has no container {target!r}"
            cure = "`ip netns` and `docker ps` list what there is, and a path or a pid will do too"
            raise ApiError("bad-target", f"{neither}; {cure}") from None
        except DockerError as error:
            raise ApiError("bad-target", f"{missing}; as a container it could not be looked for: {error}") from None
        if not container.pid:
            cure = f"start it first (docker start {target})"
            raise ApiError("bad-target", f"container {container.name} does not run, so it has no network; {cure}")
        try:
            return Place(find_namespace(str(container.pid)), container.id, container.name)
        except ValueError as error:
            raise ApiError("bad-target", f"container {container.name}: {error}") from None

    async def _container_around(self, target: str, namespace: Namespace) -> Place | None:
        """The container that a pid belongs to and shares the namespace with."""
        pid = _PID.fullmatch(target)
        candidate = _container_of(int(pid[1])) if pid else None
        if candidate is None:
            return None
        try:
            place = self.place_of(await self.docker.inspect(candidate))
        except DockerError as error:
            log.info("not-known-to-docker", pid=target, error=error)
            return None
        return place if place is not None and place.namespace.id == namespace.id else None


def _container_of(pid: int) -> str | None:
    """The id of a container, as the names of a process's control groups have it."""
    try:
        with (PROC / str(pid) / "cgroup").open("rb") as file:
            groups = file.read(CGROUPS_MAX_BYTES).decode(errors="replace")
    except OSError:
        return None
    ids = _ID_IN_CGROUP.findall(groups)
    return str(ids[-1]) if ids else None
