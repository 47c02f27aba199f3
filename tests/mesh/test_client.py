"""The client's own side of the socket: how long it waits, how much it reads, what it makes of errors."""

from __future__ import annotations

import _socket
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh import client
from mesh.client import DaemonError, DaemonSilent
from mesh.errors import UserError
from mesh.requests import ApiError


@pytest.fixture
def listener(run_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(run_dir / "weft.sock"))
        bound.listen()
        yield bound


def test_a_daemon_that_says_nothing_is_not_waited_for_longer_than_told(listener: socket.socket) -> None:
    with pytest.raises(DaemonSilent, match=r"does not answer on .*weft.sock \(waited 0 s for `status`\)"):
        client.call("status", timeout_s=0.05)


def test_rows_restart_the_patience(daemon: Any) -> None:
    async def slowly(request: object, send_row: Any) -> object:
        import asyncio

        for number in range(4):
            await asyncio.sleep(0.15)
            await send_row(number)
        return "done"

    daemon.answers["ping"] = slowly
    rows: list[int] = []
    assert client.call("ping", {"peer": "h"}, on_row=rows.append, timeout_s=0.4) == "done"
    assert rows == [0, 1, 2, 3]


def test_an_error_keeps_its_code_for_programs(daemon: Any) -> None:
    daemon.answers["status"] = ApiError("taken", "held by host2")
    with pytest.raises(DaemonError, match="held by host2") as caught:
        client.call("status")
    assert caught.value.code == "taken"


def test_an_answer_without_end_is_not_read_to_the_end(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LINE_BYTES_MAX", 100_000)

    def flood() -> None:
        connection, _ = listener.accept()
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            connection.close()

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(UserError, match="not a Weft daemon"):
        client.call("status", timeout_s=5)
    thread.join(10)
    assert not thread.is_alive()


def test_an_answer_given_before_the_request_was_read_is_heard(listener: socket.socket) -> None:
    def refuse() -> None:
        connection, _ = listener.accept()
        connection.sendall(b'{"error": {"code": "busy", "message": "try again"}}\n')
        connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(DaemonError, match="try again"):
        client.call("connect", {"peers": ["x" * 10_000_000]}, timeout_s=5)
    thread.join(10)


def test_without_permission_root_is_named(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(_socket.socket):
        def connect(self, address: Any, /) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client, "socket", Locked)
    with pytest.raises(UserError, match="root is needed; try again with sudo"):
        client.call("status")
