"""What a daemon does about containers and names that end and are there again, over a Docker of every temper."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.linux.netns import Namespace
from mesh import docker as docker_module
from mesh import dockerwire, requests
from mesh import returns as returns_module
from mesh.daemon import Daemon
from mesh.requests import ApiError
from tests.mesh.daemons import Host, Stage, ask, attach, read, run, until
from tests.mesh.fake_docker import FakeDocker


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(returns_module, "RETRY_INTERVAL_S", 0.05)
    monkeypatch.setattr(docker_module, "ANSWER_TIMEOUT_S", 0.5)
    return Stage(tmp_path, monkeypatch)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeDocker]:
    with FakeDocker(str(tmp_path / "docker.sock")) as made:
        yield made


class Containers:
    """Starts and stops containers, in the engine and as namespaces."""

    def __init__(self, stage: Stage, engine: FakeDocker) -> None:
        self.stage = stage
        self.engine = engine
        self.pid = 100_000

    def namespace(self) -> int:
        """A process in a namespace of its own."""
        self.pid += 1
        self.stage.namespaces[str(self.pid)] = Namespace(f"/proc/{self.pid}/ns/net", (4, self.pid))
        return self.pid

    def start(self, name: str) -> None:
        pid = self.namespace()
        if any(made.name == name for made in self.engine.containers.values()):
            self.engine.begin(name, pid)
        else:
            self.engine.create(name, pid)

    def stop(self, name: str) -> None:
        self.end(name)
        self.engine.end(name)

    def end(self, name: str) -> None:
        """Its process, without a word of Docker."""
        del self.stage.namespaces[str(self.engine.find(name).pid)]


@pytest.fixture
def containers(stage: Stage, engine: FakeDocker) -> Containers:
    return Containers(stage, engine)


def states(daemon: Daemon) -> dict[str, str]:
    """What `ps` says."""
    return {held.id: "away" if held.away_since is not None else "here" for held in daemon._attachments.all()}


def in_kernel(host: Host, ifname: str) -> list[str]:
    return host.kernel.addresses().get(ifname, [])


async def row(daemon: Daemon) -> dict[str, Any]:
    (only,) = await read(daemon, "ps")
    return dict(only)


async def warned(daemon: Daemon) -> list[str]:
    return [warning["code"] for warning in (await read(daemon, "status"))["warnings"]]


def test_a_container_that_restarts_is_as_before(stage: Stage, engine: FakeDocker, containers: Containers) -> None:
    """Away while it is stopped, with all that it has; then on the same interface with the same addresses and MAC."""

    async def scene() -> None:
        host = stage.host("h1")
        containers.start("web")
        async with host.launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            before, (held,) = await row(daemon), daemon._attachments.all()
            await until(lambda: engine.listeners == 1, "events are listened to")
            for _ in range(3):
                containers.stop("web")
                await until(lambda: states(daemon) == {"web": "away"}, "it is away")
                away = await row(daemon)
                assert away["away"] and away["away_since"] <= time.time()
                assert {key: away[key] for key in ("id", "mac", "addresses")} == {
                    key: before[key] for key in ("id", "mac", "addresses")
                }
                assert (await read(daemon, "status"))["away_endpoints"] == 1
                await until(lambda: in_kernel(host, held.ifname) == [], "the kernel has let go of it")
                containers.start("web")
                await until(lambda: in_kernel(host, held.ifname) == ["10.32.0.1/16"], "it is back")
                assert await row(daemon) == before | {"namespace": f"/proc/{engine.find('web').pid}/ns/net"}

    run(scene())


def test_a_removed_container_is_forgotten(stage: Stage, engine: FakeDocker, containers: Containers) -> None:
    """Then, and at the next launch where it was removed while no daemon ran."""

    async def scene() -> None:
        host = stage.host("h1")
        for name in ("web", "db"):
            containers.start(name)
        async with host.launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            await ask(daemon, attach("db", "10.32.0.2/16"))
            await until(lambda: engine.listeners == 1, "events are listened to")
            containers.stop("web")
            engine.remove("web")
            await until(lambda: states(daemon) == {"db": "here"}, "it is forgotten")
        containers.stop("db")
        engine.remove("db")
        async with host.launched() as daemon:
            await until(lambda: states(daemon) == {}, "the other is forgotten too")

    run(scene())


def test_a_container_that_restarted_while_no_daemon_ran_is_as_before(stage: Stage, containers: Containers) -> None:
    """And one that is stopped still is away, until it starts."""

    async def scene() -> None:
        host = stage.host("h1")
        for name in ("web", "db"):
            containers.start(name)
        async with host.launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            await ask(daemon, attach("db", "10.32.0.2/16"))
            before = {held.id: held.ifname for held in daemon._attachments.all()}
        for name in ("web", "db"):
            containers.stop(name)
        containers.start("web")
        host.kernel.objects.clear()
        async with host.launched() as daemon:
            await until(lambda: in_kernel(host, before["web"]) == ["10.32.0.1/16"], "the one that runs is back")
            await until(lambda: states(daemon) == {"web": "here", "db": "away"}, "the other is away")
            containers.start("db")
            await until(lambda: in_kernel(host, before["db"]) == ["10.32.0.2/16"], "it is back too")

    run(scene())


@pytest.mark.parametrize("mode", ["dead", *(mode for mode in FakeDocker.MODES if mode)])
def test_whatever_docker_does_the_daemon_goes_on(
    stage: Stage, engine: FakeDocker, containers: Containers, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verbs are answered, the warning says what is wrong; when Docker is well again, what it runs is looked at."""
    monkeypatch.setattr(dockerwire, "BODY_MAX_BYTES", 1024 * 1024)
    monkeypatch.setattr(dockerwire, "EVENT_MAX_BYTES", 64 * 1024)

    async def scene() -> None:
        host = stage.host("h1")
        containers.start("web")
        async with host.launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            (held,) = daemon._attachments.all()
            await until(lambda: engine.listeners == 1, "events are listened to")
            await asyncio.to_thread(engine.stop)
            engine.mode = mode
            if mode != "dead":
                await asyncio.to_thread(engine.start)
            containers.end("web")
            engine.find("web").pid = containers.namespace()
            await until(lambda: daemon._returns.warnings(), "it is known that Docker is not to be had")
            assert "docker-silent" in await warned(daemon)
            begun = time.monotonic()
            await ask(daemon, attach("c1", "10.32.0.9/16"))
            await ask(daemon, requests.Detach("c1", ()))
            assert time.monotonic() - begun < 0.4, "what has nothing to do with Docker does not wait for it"
            with pytest.raises(ApiError) as caught:
                await ask(daemon, attach("nowhere", "10.32.0.8/16"))
            assert caught.value.code == "bad-target" and engine.path in str(caught.value)
            assert time.monotonic() - begun < 2.0
            engine.mode = ""
            if mode == "dead":
                await asyncio.to_thread(engine.start)
            new = f"/proc/{engine.find('web').pid}/ns/net"
            await until(lambda: daemon._attachments.all()[0].namespace == new, "the container is found again")
            await until(lambda: in_kernel(host, held.ifname) == ["10.32.0.1/16"], "it is back")
            await until(lambda: not daemon._returns.warnings(), "nothing is wrong with Docker any more")
            assert "docker-silent" not in await warned(daemon)

    run(scene())


def test_garbage_among_events_costs_a_new_look_and_no_more(
    stage: Stage, engine: FakeDocker, containers: Containers
) -> None:
    """What was missed meanwhile is found by looking."""

    async def scene() -> None:
        host = stage.host("h1")
        containers.start("web")
        async with host.launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            for garbage in (b"\xff\xfe\n", b"[1]\n", b'{"Actor":7}\n', b"{" * 5000 + b"\n"):
                await until(lambda: engine.listeners, "events are listened to")
                before = engine.find("web").pid
                engine.events(garbage)
                containers.end("web")
                engine.find("web").pid = containers.namespace()
                engine.events(b'{"Actor":{"ID":"%s"}}\n' % engine.find("web").id.encode())
                new = f"/proc/{before + 1}/ns/net"
                await until(lambda new=new: daemon._attachments.all()[0].namespace == new, "it was followed")  # type: ignore[misc]

    run(scene())


def test_without_containers_docker_is_left_alone(stage: Stage, engine: FakeDocker) -> None:
    """Named namespaces and pids do not concern it."""

    async def scene() -> None:
        host = stage.host("h1")
        async with host.launched() as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16"))
            await ask(daemon, requests.Detach("c1", ()))
            await asyncio.sleep(0.3)
            assert await warned(daemon) == []

    run(scene())
    assert engine.requests == []


def test_many_containers_that_restart_at_once_all_come_back(
    stage: Stage, engine: FakeDocker, containers: Containers
) -> None:
    """As when Docker itself restarts."""

    async def scene() -> None:
        host = stage.host("h1")
        names = [f"n{number}" for number in range(60)]
        async with host.launched() as daemon:
            for number, name in enumerate(names):
                containers.start(name)
                await ask(daemon, attach(name, f"10.32.1.{number}/16"))
            await until(lambda: engine.listeners == 1, "events are listened to")
            before = {held.ifname: held.texts() for held in daemon._attachments.all()}
            for name in names:
                containers.stop(name)
                containers.start(name)
            new = {f"/proc/{made.pid}/ns/net" for made in engine.containers.values()}
            await until(lambda: {held.namespace for held in daemon._attachments.here()} == new, "all are back")
            await until(lambda: host.kernel.addresses() == before, "with their addresses")

    run(scene())


def test_a_daemon_ends_while_docker_hangs(stage: Stage, engine: FakeDocker, containers: Containers) -> None:
    """At once."""

    async def scene() -> None:
        containers.start("web")
        async with stage.host("h1").launched() as daemon:
            await ask(daemon, attach("web", "10.32.0.1/16"))
            await asyncio.to_thread(engine.stop)
            engine.mode = "silent"
            await asyncio.to_thread(engine.start)
            await until(lambda: daemon._returns.warnings(), "Docker is silent")
            begun = time.monotonic()
        assert time.monotonic() - begun < 1.0

    run(scene())


def test_a_name_that_no_mount_told_of_is_found_all_the_same(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link under /run/netns, or mounts that cannot be heard here: by looking now and then."""
    monkeypatch.setattr(returns_module, "SWEEP_INTERVAL_S", 0.1)

    def none() -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(returns_module, "MountWatch", none)

    async def scene() -> None:
        host = stage.host("h1")
        async with host.launched() as daemon:
            await ask(daemon, attach("c1", "10.32.0.1/16"))
            (held,) = daemon._attachments.all()
            stage.namespaces["c1"] = Namespace("/run/netns/c1", (4, 77))
            await until(lambda: daemon._attachments.all()[0].namespace_id == (4, 77), "the next was found")
            await until(lambda: in_kernel(host, held.ifname) == ["10.32.0.1/16"], "it is back")
            gone = stage.namespaces.pop("c1")
            await daemon._returns.vanished(frozenset({held.ifname}))
            assert states(daemon) == {"c1": "away"}
            stage.namespaces["c1"] = gone
            await until(lambda: states(daemon) == {"c1": "here"}, "it is back again")

    run(scene())
