"""What carries the overlay on this host, as other hosts need to know it: addresses, MTUs, whether a NAT is before us.

Composes what was seen in the kernel (`dataplane.linux.underlay`) with what the user said at launch, and looks again as
long as it is watched. Knows nothing of peers, and tells nobody: the daemon does.

The one idea: what was seen last holds. An underlay without any address is not believed: there would be nobody to tell,
and an MTU made up for that moment would shrink the network's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from dataplane.desired import Address
from dataplane.kernel import KernelError
from dataplane.linux import underlay
from dataplane.linux.underlay import Survey
from mesh.forwarding import MTU_MIN, VXLAN_OVERHEAD_V4_BYTES, VXLAN_OVERHEAD_V6_BYTES, host_of
from mesh.logs import EventLog

SURVEY_INTERVAL_S = 5.0
SURVEY_PAUSE_S = 0.1
"""Addresses rarely change one at a time."""
ADDRESSES_TOLD_MAX = 8
MTU_UNKNOWN = 1500

log = EventLog("underlay")


class Underlay:
    """What was seen last, and what follows from it."""

    def __init__(self, bridge: str, host: str, advertise: tuple[str, ...], survey: Survey) -> None:
        """`host`: the only address to listen on, or empty. `advertise`: what the user wants told instead of what is
        found, or nothing."""
        self._bridge = bridge
        self._host = host
        self._advertise = advertise
        self.survey = survey
        self.has_ipv6 = survey.has_ipv6
        """Once it has, the device for it stays: an address that is lost for a while is no reason to remove that."""

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(found.address for found in self.survey.addresses)

    def told_addresses(self, port: int) -> tuple[str, ...]:
        """Where others find us, best first, each with the port. An address that the host was given to listen on is the
        only one; link-local ones are told to nobody."""
        if self._advertise:
            hosts = list(self._advertise)
        elif self._host:
            is_told = ":" not in self._host or not ip_address(self._host).is_link_local
            hosts = [self._host] if is_told else []
        else:
            hosts = [str(found.address) for found in self.survey.addresses]
        told = tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
        return told[:ADDRESSES_TOLD_MAX]

    def is_behind_nat(self, observed: Iterable[str]) -> bool:
        """Whether a neighbour sees us at an IPv4 address that this host does not have. `observed`: where each does."""
        own = self.addresses
        return not self._advertise and any(
            address is not None and address.version == 4 and address not in own and not address.is_loopback
            for address in map(host_of, observed)
        )

    @property
    def mtu(self) -> int:
        """The largest overlay packet: as long as over IPv4 where this host has that."""
        _, has_ipv4 = self._carrying()
        return self.mtu_over_ipv4 if has_ipv4 else self.mtu_over_ipv6

    @property
    def mtu_over_ipv4(self) -> int:
        """Whether or not this host has IPv4: others compare it with their own."""
        return self.mtu_over_ipv6 + VXLAN_OVERHEAD_V6_BYTES - VXLAN_OVERHEAD_V4_BYTES

    @property
    def mtu_over_ipv6(self) -> int:
        mtu, _ = self._carrying()
        return max(MTU_MIN, mtu - VXLAN_OVERHEAD_V6_BYTES)

    def _carrying(self) -> tuple[int, bool]:
        """The smallest MTU of the interfaces that carry the overlay, and whether they may do so over IPv4."""
        told = set(self._advertise) | ({self._host} if self._host else set())
        found = self.survey.addresses or self.survey.link_local
        carrying = [each for each in found if not told or str(each.address) in told] or found
        has_ipv4 = not carrying or any(each.address.version == 4 for each in carrying)
        return min((each.mtu for each in carrying), default=MTU_UNKNOWN), has_ipv4

    def take(self, survey: Survey) -> frozenset[str] | None:
        """Another look: the addresses that this host does not have any more, or None where nothing is to be done. One
        that is only unfit to be told now (deprecated, for one) is still there."""
        if survey == self.survey or not (survey.addresses or survey.link_local):
            return None
        before = self.addresses
        self.survey = survey
        self.has_ipv6 = self.has_ipv6 or survey.has_ipv6
        left = map(str, before - self.addresses)
        return frozenset(address for address in left if not underlay.is_own(address))  # some are only not fit any more

    async def watch(self, looked: Callable[[frozenset[str] | None], None]) -> None:
        """Look again and again, at once where addresses change. `looked` hears what `take` says after each look, and
        None where the kernel did not answer. Raises KernelError where nothing can be watched."""
        events, changed = underlay.AddressWatch(), asyncio.Event()

        def heard() -> None:
            events.taken()
            changed.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(events, heard)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SURVEY_INTERVAL_S):
                        await changed.wait()
                await asyncio.sleep(SURVEY_PAUSE_S)
                changed.clear()
                looked(await self._look())
        finally:
            loop.remove_reader(events)
            events.close()

    async def _look(self) -> frozenset[str] | None:
        try:
            return self.take(await asyncio.to_thread(underlay.survey, self._bridge))
        except KernelError as error:
            log.warning("survey-failed", error=error.text)
            return None
