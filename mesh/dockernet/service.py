"""Docker's networks as the daemon sees them: driver, socket and watch put together, and what people see of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from dataplane.desired import Port
from mesh.attach import Surroundings, boot_id
from mesh.dns.resolver import OWN_V4
from mesh.docker import Docker
from mesh.dockernet.driver import Around, Driver
from mesh.dockernet.server import PluginServer
from mesh.dockernet.watch import Watch
from mesh.endpoints import Endpoint, Interface
from mesh.ipam.allocator import READY
from mesh.ipam.keeper import Keeper
from mesh.requests import ApiError

READY_LIMIT_S = 10.0
READY_LOOK_S = 0.1


def _has_link(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


class DockerNetworks:
    """Of one daemon. Without a path of a socket there are none but those that an earlier life made."""

    def __init__(
        self,
        path: str | None,
        docker: Docker,
        document: dict[str, Any] | None,
        around: Surroundings,
        keeper: Keeper,
        dns: bool,
    ) -> None:
        self._driver = Driver(
            Around(
                around.own, boot_id(), document, around.write, keeper, around.table, around.is_reachable,
                around.nickname_of, around.publish, around.tell, around.wait_settled, _has_link,
                (f"{OWN_V4}/32",) if dns else (), self._changed,
            )
        )
        self._wait_settled, self._ipam = around.wait_settled, keeper.ipam
        self._watch = Watch(docker, self._driver)
        self._server = PluginServer(path, self._driver.call) if path is not None else None

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
        await self._driver.close()

    async def run(self) -> None:
        """Until cancelled. Docker waits a while for a plugin that is not there yet, but not for an address: so it does
        not find us before there can be one."""
        if self._server is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT_S):
                await self._wait_settled()
                while self._ipam.summary()["state"] not in READY:
                    await asyncio.sleep(READY_LOOK_S)
        await self._server.open()
        await asyncio.gather(self._server.keep(), self._watch.run())

    def _changed(self) -> None:
        self._watch.wake()

    def ports(self) -> tuple[Port, ...]:
        return self._driver.ports()

    def endpoints(self) -> dict[str, Endpoint]:
        return self._driver.endpoints()

    def owners(self) -> dict[Interface, str]:
        return self._driver.state.owners()

    def rows(self) -> list[dict[str, Any]]:
        """For `ps`."""
        joined = (each for each in self._driver.state.members.values() if each.joined)
        return [
            {
                "id": each.called,
                "mac": each.mac,
                "addresses": list(each.addresses),
                "names": [],
                "labels": {},
                "network": "weft",
                "namespace": None,
                "container": each.container,
                "away": False,
                "away_since": None,
                "comes_back": False,
                "interface": None,
                "cni": None,
                "docker_network": each.network,
            }
            for each in sorted(joined, key=lambda each: each.called)
        ]

    def refuse_detach(self, target: str) -> None:
        """Raises `ApiError` where Docker has put that container on the mesh: what Docker made, it has to take away."""
        for each in self._driver.state.members.values():
            if each.joined and (each.name == target or (each.container or "").startswith(target)):
                command = f"docker network disconnect {each.network[:12]} {target}"
                raise ApiError("docker-network", f"{target} is on a network of Docker's; take it off there: {command}")

    def warnings(self) -> list[dict[str, Any]]:
        """In the form of `status`."""
        rows = []
        if self._server is not None and self._server.trouble:
            cure = "stop what is there, or launch with --docker-plugin none"
            rows.append({"code": "docker-plugin", "text": self._server.trouble, "cure": cure})
        if self._watch.trouble and self._driver.state.networks:
            text = f"{self._watch.trouble}, so names of containers on its Weft networks are not known"
            rows.append({"code": "docker-silent", "text": text, "cure": "start Docker; it is asked again then"})
        return rows
