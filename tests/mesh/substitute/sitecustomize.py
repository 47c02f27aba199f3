"""Stands in for the daemon and the kernel in processes that tests of `launch`, `stop` and `reset` start.

The interpreter imports this module by itself where its directory is on PYTHONPATH. `SUBSTITUTE` says how the daemon
behaves, `SUBSTITUTE_KERNEL` names the file that records what was asked of the kernel. The real launcher, run directory,
store, log and API are used; only what would touch the network is not.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any


def run(config: Any, ready: Callable[[str | None], None]) -> int:
    """`mesh.serve.run`, behaving as SUBSTITUTE says."""
    how = os.environ.get("SUBSTITUTE", "serves")
    if how == "refuses":
        from mesh.errors import UserError

        raise UserError("TCP port 6783 is in use by another program;\nend that one")
    if how == "crashes":
        raise RuntimeError("inside\nthe daemon")
    if how == "killed":
        os.write(2, b"\nfatal: something in C went wrong\n\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leaves":
        return 3
    if how == "never-ready":
        time.sleep(60)
    if how == "slow":
        time.sleep(1.0)
    return asyncio.run(_serve(config, ready, how))


async def _serve(config: Any, ready: Callable[[str | None], None], how: str) -> int:
    import json
    from dataclasses import asdict

    from mesh import api, directories, logs, requests
    from mesh.store import Store

    ends = asyncio.Event()

    async def handle(request: requests.Request, send_row: Callable[[object], Awaitable[None]]) -> object:
        if isinstance(request, requests.Read):
            told = json.loads(json.dumps(asdict(config), default=str))
            return {**told, "pid": os.getpid(), "cwd": os.getcwd(), "argv": sys.orig_argv, "version": "0"}
        if how == "hangs":
            time.sleep(60)
        if how == "cannot-reset" and isinstance(request, requests.Reset):
            raise requests.ApiError("failed", "the kernel is busy")
        if how != "stays":
            ends.set()
        return {}

    with directories.RunDirectory(config.run_dir), Store(config.state_dir) as store:
        store.write("identity", {"key": "00"})
        async with api.serve(directories.socket_path(config.run_dir), handle):
            ready(None)
            logs.EventLog("substitute").info("serving")
            await ends.wait()
        if how == "lingers":
            await asyncio.sleep(1.0)
    return 0


class _Kernel:
    def __init__(self, memory: str) -> None:
        pass

    def close(self) -> None:
        _record("close")


def _record(what: str) -> None:
    with open(os.environ["SUBSTITUTE_KERNEL"], "a") as file:
        file.write(what + "\n")


def _teardown(kernel: _Kernel) -> None:
    _record("teardown")
    if os.environ.get("SUBSTITUTE") == "busy-kernel":
        raise RuntimeError("device is busy")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ours in the place of the real modules; the packages around them stay real."""

    CONTENTS: dict[str, dict[str, object]] = {  # noqa: RUF012
        "mesh.serve": {"run": run},
        "dataplane.linux": {"open_kernel": _Kernel, "teardown": _teardown},
    }

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in self.CONTENTS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__dict__.update(self.CONTENTS[spec.name])
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.insert(0, _Finder())
