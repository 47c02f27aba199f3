"""The daemon's side of `prime`, `rmpeer` and `ipam`: one request in, one JSON value or one `ApiError` out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from gossip.names import PeerName, parse_name
from mesh import requests
from mesh.api import SendRow
from mesh.endpoints import EndpointTable, Interface
from mesh.ipam.service import Ipam
from mesh.requests import ApiError


class IpamVerbs:
    """`find_peer`: peers of a name or nickname. `attached`: the owner of every address that is attached here."""

    def __init__(
        self, ipam: Ipam, table: EndpointTable, find_peer: Callable[[str], list[PeerName]],
        attached: Callable[[], Mapping[Interface, str]],
    ) -> None:  # fmt: skip
        self._ipam = ipam
        self._table = table
        self._find_peer = find_peer
        self._attached = attached

    async def handle(self, request: requests.IpamRequest, send_row: SendRow) -> object:
        match request:
            case requests.Prime(timeout_s):

                async def tell(text: str) -> None:
                    await send_row({"waiting_for": text})

                await self._ipam.prime(timeout_s, tell)
            case requests.RemovePeers(peers):
                return await asyncio.shield(self._ipam.remove_peers([self._peer(text) for text in peers]))
            case requests.JoinRing(ring, force):
                return await asyncio.shield(self._ipam.join(ring, force, self._table))
            case requests.Export():
                return self._ipam.export()
            case requests.Import(document, force):
                return await self._ipam.import_(document, force)
            case requests.Check(repair):
                return await asyncio.shield(self._ipam.check(self._attached(), repair))
        return {}

    def _peer(self, text: str) -> PeerName:
        """A peer that may be long gone, so its name alone is enough."""
        found = self._find_peer(text)
        if len(found) == 1:
            return found[0]
        if found:
            raise ApiError("ambiguous-peer", f"{text} is the nickname of several peers; give a name instead")
        try:
            return parse_name(text)
        except ValueError:
            known = "`weft status ipam` lists who owns addresses"
            raise ApiError("unknown-peer", f"no peer is called {text}; {known}") from None
