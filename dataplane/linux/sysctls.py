"""Forwarding, switched on where containers reach the outside through this host, and put back when they no longer do.

Knows the sysctls that decide on forwarding and what hangs on them; knows nothing of addresses or rules. The one idea:
what was there before is written to a file before anything is changed, with the boot that it is true for: sysctls end
with that. Where the file does not say that we switched it on, it was somebody else, and it stays.

Switching on changes more than forwarding, and that is undone too. IPv4: the kernel sets the switch of every interface,
and `conf.all.accept_redirects` the other way. IPv6: the switch of every interface, and whoever forwards ignores router
advertisements, unless `accept_ra` is 2. So an interface that listened to them gets a 2, and goes on listening.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from dataplane.kernel import DELETE, Operation
from dataplane.linux.netlink import attributes
from dataplane.objects import FORWARDING, Forwarding, Key, Value

RTM_NEWNETCONF: Final = 80
NETCONF_GROUPS: Final = (24, 25)
"""RTNLGRP_IPV4_NETCONF and _IPV6_NETCONF of linux/rtnetlink.h: the kernel says when forwarding is switched."""

_NETCONFA_IFINDEX: Final = 1
_SYSCTLS: Final = Path("/proc/sys/net")
_SWITCHES: Final = {b"ip": "ipv4/ip_forward", b"ip6": "ipv6/conf/all/forwarding"}
_CONF: Final = {b"ip": "ipv4/conf", b"ip6": "ipv6/conf"}
_ACCEPT_REDIRECTS: Final = "ipv4/conf/all/accept_redirects"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PORTS: Final = "vw"
"""Names of container interfaces begin with it; no router is behind those."""


class Sysctls:
    """Listed and applied like everything else."""

    def __init__(self, memory: Path | None) -> None:
        """`memory`: the file; without one, what was before is forgotten with this object."""
        self._memory = memory
        self._before: dict[str, dict[str, str]] = _load(memory)

    def listing(self, bridge: str) -> dict[Key, Value]:
        found = {
            Key(FORWARDING, bridge, family): Forwarding(
                family.decode() in self._before, _read(switch) not in (None, "0")
            )
            for family, switch in _SWITCHES.items()
        }
        return {key: value for key, value in found.items() if value.on or value.ours}

    def apply(self, operation: Operation) -> None:
        """Raises OSError."""
        family = operation.key.item
        if operation.verb == DELETE:
            self._restore(family)
        else:
            self._switch_on(family, operation.key.device)

    def _switch_on(self, family: bytes, bridge: str) -> None:
        if _read(_SWITCHES[family]) == "0" and family.decode() not in self._before:
            self._remember({**self._before, family.decode(): _state(family, bridge)})
        for path in self._before.get(family.decode(), {}):
            if path.endswith("/accept_ra") and _read(path) == "1":
                _write(path, "2")
        (_SYSCTLS / _SWITCHES[family]).write_text("1")

    def _restore(self, family: bytes) -> None:
        before = self._before.get(family.decode())
        if before is None:
            return
        (_SYSCTLS / _SWITCHES[family]).write_text("0")
        for path, value in before.items():
            if not path.endswith("/accept_ra") or _read(path) == "2":
                _write(path, value)
        self._remember({each: kept for each, kept in self._before.items() if each != family.decode()})

    def _remember(self, before: dict[str, dict[str, str]]) -> None:
        """On disk first."""
        if self._memory is not None:
            if before:
                _save(self._memory, {"boot": _boot(), "before": before})
            else:
                self._memory.unlink(missing_ok=True)
        self._before = before


def is_of_all(data: bytes, start: int, end: int) -> bool:
    """Whether a RTM_NEWNETCONF is about all interfaces, as one is that says that the host forwards."""
    return attributes(data, start + 4, end).get(_NETCONFA_IFINDEX) == b"\xff" * 4


def _state(family: bytes, bridge: str) -> dict[str, str]:
    """What the switch would overwrite and 0 would not bring back, and who listens to router advertisements."""
    before = {}
    for directory in (_SYSCTLS / _CONF[family]).iterdir():
        name = directory.name
        forwarding, accept_ra = f"{_CONF[family]}/{name}/forwarding", f"{_CONF[family]}/{name}/accept_ra"
        if _read(forwarding) == "1":
            before[forwarding] = "1"
        elif _may_listen(name, bridge) and _read(accept_ra) == "1":
            before[accept_ra] = "1"
    if family == b"ip":
        before[_ACCEPT_REDIRECTS] = _read(_ACCEPT_REDIRECTS) or "1"
    return before


def _may_listen(name: str, bridge: str) -> bool:
    return name not in ("all", "default", bridge) and not name.startswith((f"{bridge}-", _PORTS))


def _read(path: str) -> str | None:
    try:
        return (_SYSCTLS / path).read_text().strip()
    except OSError:
        return None


def _write(path: str, value: str) -> None:
    with suppress(FileNotFoundError):  # the interface has gone since
        (_SYSCTLS / path).write_text(value)


def _load(memory: Path | None) -> dict[str, dict[str, str]]:
    """What an earlier life of the daemon remembered, if it is of this boot."""
    try:
        document = json.loads(memory.read_text()) if memory is not None else {}
        return dict(document["before"]) if document["boot"] == _boot() else {}
    except (OSError, ValueError, KeyError):
        return {}


def _save(memory: Path, document: Mapping[str, object]) -> None:
    pending = memory.with_name(memory.name + ".new")
    pending.write_text(json.dumps(document))
    os.replace(pending, memory)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
