"""The daemon as one run of an event loop: locks first, then the start, then the socket, until a signal or a request.

Knows nothing of what the daemon does. The one idea: a signal means something else in each of three times. While the
daemon starts it takes the start back, while it serves it ends that, and while it closes it changes nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace

import uvloop

from dataplane.kernel import KernelError
from dataplane.linux import underlay
from dataplane.linux.collision import host_routes
from gossip.names import format_name
from mesh import api, directories
from mesh.config import LaunchConfig
from mesh.daemon import Daemon
from mesh.errors import UserError
from mesh.ipam import ranges
from mesh.logs import EventLog
from mesh.router import BRIDGE
from mesh.store import Store
from mesh.version import VERSION

log = EventLog("daemon")


def run(config: LaunchConfig, ready: Callable[[str | None], None]) -> int:
    """Serve until told to stop. Calls `ready(None)` once it serves; raises `UserError` where it cannot."""
    with directories.RunDirectory(config.run_dir), Store(config.state_dir) as store:
        try:
            return uvloop.run(_serve(config, store, ready))
        except asyncio.CancelledError:
            log.info("stopped-while-starting")
            return 0
        finally:
            # The loop's handlers have gone with it; the rest of the way is short, and the pid file is still there.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)


async def _serve(config: LaunchConfig, store: Store, ready: Callable[[str | None], None]) -> int:
    starting = asyncio.current_task()
    assert starting is not None
    _on_signals(starting.cancel)  # what has been made by then is taken back
    try:
        survey = await asyncio.to_thread(underlay.survey, BRIDGE)
        routes = await asyncio.to_thread(host_routes, BRIDGE)
        config = replace(config, ipalloc=ranges.settle(config.ipalloc, routes))
    except KernelError as error:
        raise UserError(error.text) from None
    except ValueError as error:
        raise UserError(f"launch: {error}") from None
    daemon = Daemon(config, store, survey)
    try:
        await daemon.start()
        _on_signals(daemon.stop)
        async with api.serve(directories.socket_path(config.run_dir), daemon.handle):
            ready(None)
            log.info("serving", peer=format_name(daemon.node.name), port=config.port, version=VERSION)
            await daemon.wait_stopped()
    finally:
        _on_signals(lambda: None)  # a second one changes nothing
        await daemon.close()
    return 0


def _on_signals(act: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)
