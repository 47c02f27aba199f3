"""Where the DNS server listens: a network namespace of its own behind an isolated port of the bridge.

Every host's bridge has such a port, under the same addresses. Isolated means that the bridge passes nothing between it
and the ports that lead to other hosts, whatever is sent; and in a namespace of its own no firewall, no reverse path
filter and no missing route of the host stands between a container and its answer. The namespace is only held open, by
the daemon and by the sleeve worker, which outlives it: so a restart finds it again, and when both are gone so is it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final

from dataplane.desired import Port, Route
from dataplane.linux.netns import held_namespace, namespace_of, new_namespace, run_inside
from mesh.dns.resolver import OWN_V4, OWN_V6
from mesh.dns.server import open_sockets
from mesh.endpoints import derive_mac
from mesh.logs import EventLog

IFNAME: Final = "weft-dns"
GUEST_IFNAME: Final = "dns"
_ADDRESSES: Final = (IPv4Interface((OWN_V4, 32)), IPv6Interface((OWN_V6, 64)))
HOST_ADDRESS: Final = IPv4Interface("169.254.6.52/31")
"""The host's own on the bridge, which makes the server its neighbour: it too may ask."""
_WHERE: Final = (Route(IPv4Network((OWN_V4, 32))),)
"""What a container needs a route to. IPv6 has one to every link-local address by itself."""
_EVERYWHERE: Final = (
    Route(IPv4Network("0.0.0.0/1")), Route(IPv4Network("128.0.0.0/1")),
    Route(IPv6Network("::/1")), Route(IPv6Network("8000::/1")),
)  # fmt: skip
"""Whoever asks is straight behind the port, whatever its address is."""
_SYSCTLS: Final = Path("/proc/sys/net")
_PREPARED: Final = (
    ("ipv6/conf/default/addr_gen_mode", "1"),  # no other address from which an answer could come
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
)

log = EventLog("dns")


class DnsNamespace:
    """Held open until closed."""

    def __init__(self, worker_pid: int | None) -> None:
        """`worker_pid`: whoever holds that of an earlier life. Raises OSError."""
        found = held_namespace(worker_pid) if worker_pid is not None else None
        self.is_adopted = found is not None
        self.descriptor = new_namespace(_prepare) if found is None else found
        self._port = Port(
            IFNAME, GUEST_IFNAME, namespace_of(self.descriptor).path, namespace_of(self.descriptor).id,
            derive_mac("dns", OWN_V4), _ADDRESSES, isolated=True, routes=_EVERYWHERE,
        )  # fmt: skip

    def open_sockets(self) -> list[socket.socket]:
        """Raises OSError. Where the kernel has no IPv6 the port goes without it."""
        opened = run_inside(self.descriptor, open_sockets)
        if all(each.family != socket.AF_INET6 for each in opened):
            self._port = replace(self._port, addresses=self._port.addresses[:1], routes=self._port.routes[:2])
        return opened

    def ports(self, containers: Sequence[Port]) -> tuple[Port, ...]:
        """The server's port, and those of containers with the way to it."""
        return (self._port, *(replace(port, routes=(*_WHERE, *port.routes)) for port in containers))

    def close(self) -> None:
        os.close(self.descriptor)


def _prepare() -> None:
    for path, value in _PREPARED:
        try:
            (_SYSCTLS / path).write_text(value)
        except OSError as error:  # read-only in some containers, and what it would change is mostly so by default
            log.debug("sysctl-not-set", path=path, error=error)
