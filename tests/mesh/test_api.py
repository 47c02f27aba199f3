"""The API's socket: what goes in and out, its limits, and that no client can hurt it or another client."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh import api, requests
from mesh.api import ClientGone
from mesh.errors import UserError
from mesh.requests import ApiError, Request


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a scene on the daemon's loop and on the plain one."""
    return uvloop.run if request.param == "uvloop" else asyncio.run


async def ask(path: Path, line: bytes) -> list[dict[str, Any]]:
    """Send one line and return every line of the answer."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    writer.write(line)
    answers = [json.loads(line) async for line in reader]
    writer.close()
    return answers


async def echo(request: Request, _: api.SendRow) -> object:
    return type(request).__name__


STATUS = b'{"verb": "status"}\n'


def test_a_request_is_answered_with_one_line(run: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), echo):
            assert await ask(tmp_path / "s", STATUS) == [{"ok": "Read"}]

    run(scene())


def test_the_socket_is_for_its_owner_only_and_goes_with_the_daemon(run: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        umask = os.umask(0)
        try:
            async with api.serve(str(tmp_path / "s"), echo):
                assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
                assert os.umask(0) == 0
        finally:
            os.umask(umask)
        assert not (tmp_path / "s").exists()

    run(scene())


def test_rows_come_before_the_answer(run: Any, tmp_path: Path) -> None:
    async def count(request: Request, send_row: api.SendRow) -> object:
        assert isinstance(request, requests.Ping)
        for number in range(request.count):
            await send_row({"seq": number})
        return {"sent": request.count}

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), count):
            answers = await ask(tmp_path / "s", b'{"verb": "ping", "args": {"peer": "h", "count": 2}}\n')
            assert answers == [{"row": {"seq": 0}}, {"row": {"seq": 1}}, {"ok": {"sent": 2}}]

    run(scene())


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (ApiError("taken", "10.0.0.1 is held by host2"), "taken", "held by host2"),
        (ApiError("odd", "two\nlines"), "odd", "two lines"),
        (UserError("no space left"), "failed", "no space left"),
        (KeyError("inside"), "internal", "KeyError"),
        (TimeoutError(), "internal", "TimeoutError"),
        (ConnectionResetError("of its own"), "internal", "ConnectionResetError"),
    ],
)
def test_what_a_handler_raises_is_one_line(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, raised: Exception, code: str, says: str
) -> None:
    async def fail(request: Request, _: api.SendRow) -> object:
        raise raised

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), fail):
            (answer,) = await ask(tmp_path / "s", STATUS)
            assert answer["error"]["code"] == code
            assert says in answer["error"]["message"]
            assert "\n" not in answer["error"]["message"]

    with caplog.at_level(logging.ERROR):
        run(scene())
    assert bool(caplog.records) == (code == "internal")
    if caplog.records:
        assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", object()])
def test_an_answer_that_is_no_json_is_our_mistake_not_the_clients(run: Any, tmp_path: Path, value: object) -> None:
    async def odd(request: Request, _: api.SendRow) -> object:
        return value

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), odd):
            assert (await ask(tmp_path / "s", STATUS))[0]["error"]["code"] == "internal"

    run(scene())


def test_garbage_never_reaches_the_handler(run: Any, tmp_path: Path) -> None:
    async def never(request: Request, _: api.SendRow) -> object:
        raise AssertionError("reached")

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), never):
            for line in (b"\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff" * 100 + b"\n", b"[" * 60_000 + b"\n"):
                assert (await ask(tmp_path / "s", line))[0]["error"]["code"] == "bad-request"

    run(scene())


def test_a_request_may_have_so_many_bytes_and_no_more(run: Any, tmp_path: Path) -> None:
    def padded(size: int) -> bytes:
        return STATUS[:-1] + b" " * (size - len(STATUS)) + b"\n"

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), echo):
            assert await ask(tmp_path / "s", padded(api.REQUEST_BYTES_MAX)) == [{"ok": "Read"}]
            for size in (api.REQUEST_BYTES_MAX + 2, 10 * api.REQUEST_BYTES_MAX):
                assert (await ask(tmp_path / "s", padded(size)))[0]["error"]["code"] == "too-long"
            assert (await ask(tmp_path / "s", b" " * 2 * api.REQUEST_BYTES_MAX))[0]["error"]["code"] == "too-long"

    run(scene())


def test_a_client_that_does_not_ask_is_not_waited_for(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "REQUEST_TIMEOUT_S", 0.05)

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), echo):
            assert (await ask(tmp_path / "s", b'{"verb"'))[0]["error"]["code"] == "too-slow"

    run(scene())


def test_half_a_request_and_none_at_all_disturb_nobody(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), echo):
            for line in (b"", b'{"verb": "sta'):
                reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
                writer.write(line)
                writer.write_eof()
                answer = await reader.read()
                assert answer == b"" if not line else json.loads(answer)["error"]["code"] == "bad-request"
                writer.close()
            assert await ask(tmp_path / "s", STATUS) == [{"ok": "Read"}]

    run(scene())
    assert not caplog.records


def test_connections_beyond_the_limit_are_told_so_and_those_within_go_on(run: Any, tmp_path: Path) -> None:
    all_inside, go_on = asyncio.Event(), asyncio.Event()
    inside: list[Request] = []

    async def wait(request: Request, _: api.SendRow) -> object:
        inside.append(request)
        if len(inside) == api.CONNECTIONS_MAX:
            all_inside.set()
        await go_on.wait()
        return "done"

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), wait):
            within = [asyncio.create_task(ask(tmp_path / "s", STATUS)) for _ in range(api.CONNECTIONS_MAX)]
            async with asyncio.timeout(5):
                await all_inside.wait()
                assert (await ask(tmp_path / "s", STATUS))[0]["error"]["code"] == "busy"
                go_on.set()
                assert await asyncio.gather(*within) == [[{"ok": "done"}]] * api.CONNECTIONS_MAX
                assert await ask(tmp_path / "s", STATUS) == [{"ok": "done"}]

    run(scene())


def test_a_client_that_leaves_does_not_cancel_what_it_asked_for(run: Any, tmp_path: Path) -> None:
    began, go_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: Request, _: api.SendRow) -> object:
        began.set()
        await go_on.wait()
        finished.set()
        return "done"

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), slow):
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(STATUS)
            await began.wait()
            writer.close()
            await writer.wait_closed()
            go_on.set()
            await asyncio.wait_for(finished.wait(), 5)

    run(scene())


def test_a_stream_ends_when_nobody_takes_its_rows(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[BaseException] = []

    async def endless(request: Request, send_row: api.SendRow) -> object:
        try:
            while True:
                await send_row({"seq": 1})
                await asyncio.sleep(0)
        except BaseException as error:
            ended.append(error)
            raise

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), endless):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "ping", "args": {"peer": "h"}}\n')
            await reader.readline()
            writer.close()
            async with asyncio.timeout(5):
                while not ended:
                    await asyncio.sleep(0.01)

    run(scene())
    assert [type(error) for error in ended] == [ClientGone]
    assert not caplog.records


def test_a_client_that_does_not_read_is_given_up(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "WRITE_TIMEOUT_S", 0.1)
    ended = asyncio.Event()

    async def big(request: Request, send_row: api.SendRow) -> object:
        try:
            while True:
                await send_row("x" * 1_000_000)
        finally:
            ended.set()

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), big):
            mute = socket.socket(socket.AF_UNIX)
            mute.connect(str(tmp_path / "s"))
            mute.sendall(b'{"verb": "ping", "args": {"peer": "h"}}\n')
            await asyncio.wait_for(ended.wait(), 5)
            mute.close()

    run(scene())


def test_a_large_answer_arrives_whole(run: Any, tmp_path: Path) -> None:
    rows = [{"mac": f"{number:012x}", "addresses": ["10.0.0.1"]} for number in range(50_000)]

    async def many(request: Request, _: api.SendRow) -> object:
        return rows

    async def scene() -> None:
        async with api.serve(str(tmp_path / "s"), many):
            assert await ask(tmp_path / "s", STATUS) == [{"ok": rows}]

    run(scene())


def test_the_answer_to_stop_goes_out_although_the_daemon_ends(run: Any, tmp_path: Path) -> None:
    ends = asyncio.Event()

    async def stop(request: Request, _: api.SendRow) -> object:
        ends.set()
        await asyncio.sleep(0.05)
        return None

    async def scene() -> None:
        async with asyncio.TaskGroup() as group:
            async with api.serve(str(tmp_path / "s"), stop):
                asked = group.create_task(ask(tmp_path / "s", b'{"verb": "stop"}\n'))
                await ends.wait()
            assert await asked == [{"ok": None}]

    run(scene())


def test_the_end_does_not_wait_for_a_request_that_hangs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "FAREWELL_TIMEOUT_S", 0.05)
    began = asyncio.Event()

    async def hang(request: Request, _: api.SendRow) -> object:
        began.set()
        return await asyncio.Event().wait()

    async def scene() -> None:
        async with asyncio.TaskGroup() as group:
            async with api.serve(str(tmp_path / "s"), hang):
                asked = group.create_task(ask(tmp_path / "s", STATUS))
                await began.wait()
            assert await asyncio.wait_for(asked, 5) == []

    run(scene())


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    async with api.serve(str(path), echo):
        yield


def test_a_dead_daemons_socket_is_replaced(run: Any, tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.listen()
    dead.close()

    async def scene() -> None:
        async with served(tmp_path / "s"):
            assert await ask(tmp_path / "s", STATUS) == [{"ok": "Read"}]

    run(scene())


def test_a_living_daemons_socket_is_left_alone(run: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(tmp_path / "s"):
            with pytest.raises(UserError, match="another daemon serves"):
                async with served(tmp_path / "s"):
                    pass
            assert await ask(tmp_path / "s", STATUS) == [{"ok": "Read"}]

    run(scene())


def test_the_end_does_not_remove_a_successors_socket(run: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(tmp_path / "s"):
            (tmp_path / "s").unlink()
            (tmp_path / "s").write_text("another")
        assert (tmp_path / "s").exists()

    run(scene())


@pytest.mark.parametrize("name", ["missing/s", "x" * 108, "directory", "file"])
def test_a_place_where_no_socket_can_be_is_one_line(run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("somebody's")

    async def scene() -> None:
        with pytest.raises(UserError, match=r"socket|listen") as caught:
            async with served(tmp_path / name):
                pass
        assert "\n" not in str(caught.value)

    run(scene())
    assert (tmp_path / "file").read_text() == "somebody's"


def test_root_and_the_daemons_own_user_may_ask_and_nobody_else() -> None:
    assert api.may_ask(0, 1000)
    assert api.may_ask(1000, 1000)
    assert not api.may_ask(1001, 1000)
    assert not api.may_ask(1000, 0)


def test_who_asks_is_learnt_from_the_kernel(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def nobody_may(user: int, own_user: int) -> bool:
        seen.append(user)
        return False

    monkeypatch.setattr(api, "may_ask", nobody_may)

    async def scene() -> None:
        async with served(tmp_path / "s"):
            assert (await ask(tmp_path / "s", STATUS))[0]["error"]["code"] == "forbidden"

    run(scene())
    assert seen == [os.getuid()]
