"""The socket that Docker looks for: made, left over, taken away; and what it answers to what is sent there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mesh.dockernet import server
from mesh.dockernet.server import PluginServer
from mesh.requests import ApiError


async def call(method: str, fields: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "Echo":
            return fields
        case "Refuse":
            raise ApiError("no", "that is not to be")
        case "Break":
            raise RuntimeError("a mistake")
        case "Wait":
            await asyncio.sleep(60)
    raise KeyError(method)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[PluginServer]:
    made = PluginServer(str(path), call)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def say(path: Path, data: bytes) -> tuple[int, dict[str, Any]]:
    """What comes back for these bytes: the status and the fields."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].split()[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))
    finally:
        writer.close()


def post(method: str, body: bytes = b"{}") -> bytes:
    return f"POST /{method} HTTP/1.1\r\nHost: plugin\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_only_root_may_open_it_and_it_goes_with_us(tmp_path: Path) -> None:
    path = tmp_path / "plugins" / "weft.sock"

    async def work() -> None:
        async with serving(path) as made:
            assert not made.trouble and stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()

    run(work())


def test_the_socket_of_a_dead_daemon_is_replaced_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "weft.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def work() -> None:
        async with serving(path) as first:
            assert not first.trouble
            async with serving(path) as second:
                assert "another daemon serves it" in second.trouble
            assert await say(path, post("Echo", b'{"a": 1}')) == (200, {"a": 1})

    run(work())


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weft.sock"
    path.write_text("precious")

    async def work() -> None:
        async with serving(path) as made:
            assert "no socket" in made.trouble and str(path) in made.trouble

    run(work())
    assert path.read_text() == "precious"


def test_a_socket_that_somebody_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.01)
    path = tmp_path / "weft.sock"

    async def work() -> None:
        async with serving(path) as made:
            keeping = asyncio.ensure_future(made.keep())
            path.unlink()
            async with asyncio.timeout(5):
                while not path.exists():
                    await asyncio.sleep(0.01)
            assert (await say(path, post("Echo")))[0] == 200
            keeping.cancel()

    run(work())


def test_each_answer_has_its_status_and_a_reason_in_both_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_LIMIT_S", 0.05)
    path = tmp_path / "weft.sock"
    expected = [
        (post("Refuse"), 500, "that is not to be"),
        (post("Break"), 500, "a mistake inside the daemon (RuntimeError)"),
        (post("Wait"), 500, "took longer than"),
        (post("NetworkDriver.Unheard"), 404, "no method NetworkDriver.Unheard"),
        (post("Echo", b"[1]"), 400, "not an object"),
        (post("Echo", b"[" * 100_000), 400, "not an object"),
        (post("Echo", b"\xff"), 400, "not an object"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "POST"),
        (b"POST /Echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 400, "bytes"),
    ]

    async def work() -> None:
        async with serving(path):
            for data, status, reason in expected:
                found, fields = await say(path, data)
                assert found == status and reason in fields["Err"] and fields["Err"] == fields["Error"], data[:60]
            assert await say(path, post("Echo", b'{"still": "here"}')) == (200, {"still": "here"})

    run(work())


def test_who_never_ends_a_request_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    path = tmp_path / "weft.sock"

    async def work() -> None:
        async with serving(path):
            slow = [await asyncio.open_unix_connection(path) for _ in range(server.CONNECTIONS_MAX - 1)]
            for _, writer in slow:
                writer.write(b"POST /Echo HTT")
            async with asyncio.timeout(5):
                assert (await say(path, post("Echo")))[0] == 200
            for _, writer in slow:
                writer.close()

    run(work())


def test_of_too_many_who_ask_nothing_the_oldest_makes_room(tmp_path: Path) -> None:
    path = tmp_path / "weft.sock"

    async def work() -> None:
        async with serving(path):
            idle = [await asyncio.open_unix_connection(path) for _ in range(server.CONNECTIONS_MAX)]
            async with asyncio.timeout(5):
                assert (await say(path, post("Echo")))[0] == 200
                assert await idle[0][0].read() == b""
                for reader, writer in idle[1:]:
                    writer.write(post("Echo"))
                    assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
            for _, writer in idle:
                writer.close()

    run(work())
