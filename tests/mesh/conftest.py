"""A daemon to talk to: the real API socket over canned answers, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh import api, directories
from mesh.requests import Request

ROOT = Path(__file__).resolve().parents[2]


class CannedDaemon:
    """Serves a run directory. `requests` collects what was asked; `answers` maps a request's type name, or the verb
    of a read, to its value, to an exception, or to a coroutine function that is given the request and `send_row`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.requests: list[Request] = []
        self.answers: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._ends = asyncio.Event()
        self._serves = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> CannedDaemon:
        self._thread.start()
        assert self._serves.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with api.serve(directories.socket_path(str(self.run_dir)), self._answer):
            self._serves.set()
            await self._ends.wait()

    async def _answer(self, request: Request, send_row: Callable[[object], Awaitable[None]]) -> object:
        self.requests.append(request)
        answer = self.answers[getattr(request, "verb", type(request).__name__.lower())]
        if isinstance(answer, BaseException):
            raise answer
        return await answer(request, send_row) if callable(answer) else answer


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of this test, in our environment and in that of commands it starts."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("WEFT_RUN_DIR", str(path))
    monkeypatch.setenv("WEFT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("WEFT_PASSWORD", raising=False)
    return path


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[CannedDaemon]:
    with CannedDaemon(run_dir) as canned:
        yield canned


Weft = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def weft(run_dir: Path) -> Weft:
    """`weft(WORD...)`: the command as a process of its own, with whatever `subprocess.run` takes besides."""

    def run(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})}
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60}
        return subprocess.run(
            [sys.executable, "-m", "mesh", *words], text=True, check=False, env=environment, **{**settings, **more}
        )

    return run
