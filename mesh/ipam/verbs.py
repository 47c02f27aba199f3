"""What the verbs about given addresses do in the daemon: prime, rmpeer, and those of `weft ipam`.

Stands between the socket and the allocator. Finds whom people mean, says what they must know first, and leaves the rest
to the allocator. Knows nothing of how addresses are shared out between hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from gossip.names import PeerName, format_name, parse_name
from mesh import requests
from mesh.api import SendRow
from mesh.arguments import Network
from mesh.ipam.allocator import Allocator
from mesh.ipam.mending import Mending
from mesh.ipam.ranges import NONE, Allocation
from mesh.requests import ApiError
from mesh.router import Router

BEAT_S = 5.0
"""While somebody waits, what for is said again so often: it shows that we are alive, and whether anybody listens."""


class IpamVerbs:
    """Of one daemon."""

    def __init__(self, ipam: Allocator, router: Router, mending: Mending) -> None:
        self._ipam = ipam
        self._router = router
        self._mending = mending

    async def handle(self, request: requests.IpamRequest, send_row: SendRow) -> object:
        """Raises `ApiError`."""
        match request:
            case requests.Prime(timeout_s):
                return await self._prime(timeout_s, send_row)
            case requests.RemovePeers(peers, force):
                # Shielded: what is decided among hosts is not taken back because somebody hangs up.
                return await asyncio.shield(self._ipam.remove_peers(self._find_all(peers, force)))
            case requests.IpamJoin(ring, force):
                return await asyncio.shield(self._ipam.join(ring, force, self._router.table))
            case requests.IpamExport():
                return self._ipam.export()
            case requests.IpamImport(document, force):
                return await asyncio.shield(self._ipam.import_(document, force))
            case requests.IpamCheck(repair):
                return await asyncio.shield(self._mending.check(repair))

    async def _prime(self, timeout_s: float | None, send_row: SendRow) -> object:
        waiting_for, is_new = "", asyncio.Event()

        async def tell(text: str) -> None:
            nonlocal waiting_for
            waiting_for = text
            is_new.set()

        priming = asyncio.ensure_future(self._ipam.prime(timeout_s, tell))
        priming.add_done_callback(lambda _: is_new.set())
        try:
            while not priming.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await is_new.wait()
                is_new.clear()
                if not priming.done() and waiting_for:
                    await send_row({"waiting_for": waiting_for})
            await priming
        finally:
            priming.cancel()
            await asyncio.gather(priming, return_exceptions=True)
        return {"state": self._ipam.status().get("state")}

    def _find_all(self, texts: tuple[str, ...], force: bool) -> list[PeerName]:
        found = [self._find(text) for text in texts]
        for text, name in zip(texts, found, strict=True):
            if name in self._router.node.replica.reachable and not force:
                raise ApiError(
                    "peer-in-reach",
                    f"{text} is in reach, so it is not gone: run `weft reset` on it, which gives its addresses back; "
                    "--force takes them all the same, and what it has attached collides with what is attached next",
                )
        return list(dict.fromkeys(found))

    def _find(self, text: str) -> PeerName:
        """Who is meant. A peer that has left nothing but its addresses is known by the ring alone."""
        with contextlib.suppress(ValueError):
            return parse_name(text)
        owners = [row for row in self._ipam.status()["peers"] if not row["self"]]
        named = [parse_name(row["peer"]) for row in owners if row["nickname"] == text]
        found = dict.fromkeys([*named, *self._router.find_peer(text)])
        if len(found) == 1:
            return next(iter(found))
        if found:
            names = ", ".join(map(format_name, found))
            raise ApiError("ambiguous-peer", f"{text} is the nickname of several peers; give a name: {names}")
        have = ", ".join(str(row["nickname"]) for row in owners) or "none but this host does"
        raise ApiError("unknown-peer", f"no other peer is called {text} (those that own addresses: {have})")


def summary(ipam: Allocator) -> dict[str, Any]:
    """The part of `weft status` that is about given addresses."""
    told = ipam.status()
    own: dict[str, Any] = next((row for row in told["peers"] if row["self"]), {})
    return {
        "state": told["state"],
        "range": told["range"],
        "range6": told["range6"],
        "owned": own.get("addresses", 0),
        "used": own.get("used", 0),
        "free": own.get("free", 0),
        "pending": len(told["pending"]),
        "advice": told["advice"],
    }


def warnings(ipam: Allocator, told: Allocation) -> list[dict[str, str]]:
    """In the form of `status`. `told`: what this host was launched with, which the mesh need not have."""
    rows = [*ipam.warnings(), *_unlike(ipam.subnets(), told)]
    if told.instead:
        text = f"{told.instead}, so addresses are given from another one, unless the mesh has a range already"
        rows.append({"code": "range-collides", "text": text, "cure": "name a range with --ipalloc-range, on all hosts"})
    return rows


def _unlike(subnets: Sequence[Network], told: Allocation) -> Iterator[dict[str, str]]:
    """What was said and does not count, as the mesh had chosen before. `subnets`: the ranges last."""
    have: dict[int, Network] = {each.version: each for each in subnets}
    names6 = told.range6 is not None or not told.makes_range6
    for version, wanted, is_named, flag in (
        (4, told.range4, told.is_named, "--ipalloc-range"),
        (6, told.range6, names6, "--ipalloc-range6"),
    ):
        if is_named and have.get(version) != wanted:
            has = f"{have[version]} of the mesh counts" if version in have else "the mesh has none"
            text = f"this host was launched with {flag} {wanted or NONE}, but {has}: the first ring chose, for all"
            cure = f"launch with {flag} {have.get(version, NONE)}, or without it"
            yield {"code": "range-differs", "text": text, "cure": cure}
    if told.default_subnet is not None and told.default_subnet not in subnets:
        text = f"the default subnet {told.default_subnet} is not inside the range of the mesh, so the whole range is it"
        yield {"code": "subnet-outside", "text": text, "cure": "name one that is with --ipalloc-default-subnet"}
