"""Docker asked over its socket: answers, and every way in which there may be none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mesh import docker as docker_module
from mesh import dockerwire
from mesh.docker import Docker, DockerError, NoSuchContainer
from mesh.dockerwire import Container
from tests.mesh.fake_docker import FakeDocker


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeDocker]:
    with FakeDocker(str(tmp_path / "docker.sock")) as made:
        yield made


def inspect(path: str, reference: str) -> Container:
    return asyncio.run(Docker(path).inspect(reference))


def test_a_container_is_found_by_name_id_and_a_beginning_of_it(engine: FakeDocker) -> None:
    """Whether it runs or not."""
    container = engine.create("web", 4711)
    for reference in ("web", container, container[:12]):
        assert inspect(engine.path, reference) == Container(container, "web", 4711)
    engine.end("web")
    assert inspect(engine.path, "web").pid == 0


def test_a_container_that_is_not_there_is_told_from_a_docker_that_is_not(engine: FakeDocker, tmp_path: Path) -> None:
    with pytest.raises(NoSuchContainer, match="No such container: db"):
        inspect(engine.path, "db")
    for path in (str(tmp_path / "nothing.sock"), str(tmp_path / ("long" * 50))):
        with pytest.raises(DockerError, match="no Docker Engine answers at") as caught:
            inspect(path, "db")
        assert path in str(caught.value) and not isinstance(caught.value, NoSuchContainer)


@pytest.mark.parametrize("mode", [mode for mode in FakeDocker.MODES if mode])
@pytest.mark.parametrize("asked", ["inspect", "events"])
def test_a_docker_that_misbehaves_is_one_line_soon(
    engine: FakeDocker, mode: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the socket, is never "no such container", and no answer takes longer than its limit."""
    monkeypatch.setattr(docker_module, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(dockerwire, "BODY_MAX_BYTES", 1024 * 1024)
    monkeypatch.setattr(dockerwire, "EVENT_MAX_BYTES", 1024 * 1024)
    engine.create("web", 4711)
    engine.mode = mode

    async def ask() -> None:
        if asked == "inspect":
            await Docker(engine.path).inspect("web")
        else:
            async with Docker(engine.path).events() as events:
                if mode in ("cut", "slow", "odd"):  # ways of answering questions
                    engine.events(b"[]\n")
                await anext(events)

    begun = time.monotonic()
    with pytest.raises(DockerError) as caught:
        asyncio.run(ask())
    assert time.monotonic() - begun < 3.0
    assert not isinstance(caught.value, NoSuchContainer)
    assert engine.path in str(caught.value) and "\n" not in str(caught.value)


def test_events_come_together_that_happened_together(engine: FakeDocker) -> None:
    """And a stream that ends is an error, for there will be no more."""
    web, db = engine.create("web"), engine.create("db")

    async def listen() -> None:
        async with Docker(engine.path).events() as events:
            engine.begin("web", 4711)
            assert await within(events) == {web}
            engine.end("web")
            engine.begin("db", 4712)
            seen: frozenset[str] = frozenset()
            while len(seen) < 2:
                seen |= await within(events)
            assert seen == {web, db}
            await asyncio.to_thread(engine.stop)
            with pytest.raises(DockerError, match="cut off"):
                await within(events)
            raise DockerError("as the last line of the block did")

    async def within(events: AsyncIterator[frozenset[str]]) -> frozenset[str]:
        return await asyncio.wait_for(anext(events), 5.0)

    with pytest.raises(DockerError):
        asyncio.run(listen())
    engine.start()


def test_a_connection_is_given_up_with_whoever_asked(engine: FakeDocker) -> None:
    """A daemon that ends does not wait for a silent Docker."""
    engine.mode = "silent"

    async def cancelled() -> None:
        asking = asyncio.ensure_future(Docker(engine.path).inspect("web"))
        while not engine.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    begun = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - begun < 2.0
