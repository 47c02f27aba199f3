"""Who is measured: what carries packets between two containers, each built into a world of its own.

A contestant knows how to build itself and how to tell its version; it knows nothing of measures or of the others. The
one idea needed to read it: all have the same container shape (a namespace, a veth, a bridge, then the overlay), so that
what differs between two figures is the overlay. This module has the kernel's own ways and Weft; `bench/peers.py` has
the other programs.
"""

from __future__ import annotations

import platform
import shutil
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from bench.fastpath import build_by_hand
from bench.traffic import ping
from bench.underlay import BRIDGE, CLIENT, MTU, SERVER, World
from mesh.namespaces import LabError, ip_batch, wait_until

UP_TIMEOUT_S = 60.0
"""The slowest handshake seen took 23 s."""
CONNECTED_TIMEOUT_S = 15.0


class Contestant(ABC):
    """One way from container to container."""

    name: ClassVar[str]
    title: ClassVar[str]
    how: ClassVar[str]
    """Cipher and configuration, for the table of contestants."""
    encrypted: ClassVar[bool]
    is_peer: ClassVar[bool] = False
    """Another overlay in user space: those that goals are measured against."""

    def missing(self) -> str | None:
        """Why it cannot be measured on this machine, None where it can."""
        return None

    @abstractmethod
    def version(self) -> str:
        """What exactly is measured."""

    @abstractmethod
    def build(self, world: World) -> None:
        """Make it and start it; it may still need a while before it carries anything."""

    def state(self, world: World) -> dict[str, Any] | None:
        """What it tells of itself right after a measure, for the record; most tell nothing."""
        return None

    def wait(self, world: World) -> None:
        """Until the containers hear each other. Raises `LabError` where they never do."""
        address = world.lab.address(SERVER)

        def answers() -> bool:
            return not ping(world.lab, CLIENT, address).lost

        wait_until(answers, UP_TIMEOUT_S, f"the containers heard each other by {self.name}")


class Raw(Contestant):
    """No overlay at all: the container's bridge has the underlay as a port."""

    name = "raw"
    title = "raw veth"
    how = "bridge, no encapsulation"
    encrypted = False

    def version(self) -> str:
        return f"Linux {platform.release()}"

    def build(self, world: World) -> None:
        for host in (1, 2):
            world.plug_container(host, MTU)
            ip_batch([f"link set dev eth0 master {BRIDGE}"], world.lab.namespace(f"h{host}"))


class HandVxlan(Contestant):
    """What somebody would type."""

    name = "vxlan"
    title = "kernel VXLAN by hand"
    how = "static FDB entries, nothing learned"
    encrypted = False

    def version(self) -> str:
        return f"Linux {platform.release()}"

    def build(self, world: World) -> None:
        build_by_hand(world.lab)


class Weft(Contestant):
    """Two daemons, launched as the subclass says; that the frames really go by that path is looked up."""

    path: ClassVar[str]

    def version(self) -> str:
        from bench.harness import revision

        return revision()

    def launch_flags(self, world: World) -> list[str]:
        return []

    def build(self, world: World) -> None:
        flags = self.launch_flags(world)
        world.lab.launch_all(flags)
        world.lab.weft("h2", ["connect", world.lab.underlay(1)])

    def wait(self, world: World) -> None:
        world.lab.wait_connected(CONNECTED_TIMEOUT_S)
        for node in (CLIENT, SERVER):
            world.lab.attach(node)
        super().wait(world)
        self.check(world)

    def state(self, world: World) -> dict[str, Any] | None:
        """How the sender's sleeve sends: what it has adapted to."""
        found: dict[str, Any] | None = world.lab.weft_json("h1", "status", "connections")[0].get("sleeve")
        return found if self.path == "sleeve" else None

    def check(self, world: World) -> None:
        """Raises `LabError` where frames go by another path than this contestant is named for."""
        for host in world.lab.host_nodes():
            row = world.lab.weft_json(host, "status", "connections")[0]
            if row["path"] != self.path or bool(row["encrypted"]) != self.encrypted:
                seen = f"path {row['path']}, reason {row['reason']}, encrypted {row['encrypted']}"
                raise LabError(f"{self.name}: {host} says {seen}")


class WeftVxlan(Weft):
    name = "weft-vxlan"
    title = "Weft, VXLAN"
    how = "as launched without a password"
    encrypted = False
    path = "vxlan"


class WeftSleeveClear(Weft):
    name = "weft-sleeve-clear"
    title = "Weft, sleeve in clear"
    how = "--no-vxlan, no password"
    encrypted = False
    path = "sleeve"

    def launch_flags(self, world: World) -> list[str]:
        return ["--no-vxlan"]


class WeftSleeve(Weft):
    name = "weft-sleeve"
    title = "Weft, sleeve"
    how = "with a password: AES-256-GCM"
    encrypted = True
    path = "sleeve"

    def launch_flags(self, world: World) -> list[str]:
        path = world.lab.directory / "password"
        path.touch(mode=0o600)
        path.write_text("a password of the bench alone\n")
        return ["--password-file", str(path)]


def need_tools() -> None:
    """Raises `LabError` for what a comparison needs beside namespaces."""
    for tool in ("ethtool", "iperf3", "ping", "stdbuf"):
        if shutil.which(tool) is None:
            raise LabError(f"the command {tool} is missing: make bench installs it")
