"""What Docker asks of its network plugin and of its address plugin: each method, from what is known on this host alone.

All Weft networks of Docker are one mesh: a Docker network is a subnet of it, and its addresses come from the mesh's
own allocator, so that hosts never give one twice. Nothing is asked of Docker in here, and nothing waits for another
host for longer than Docker should wait. What is promised is on disk before it is said.

Protocol: libnetwork's remote drivers and remote IPAM (github.com/moby/moby, libnetwork/docs).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from itertools import count
from typing import Any

from dataplane.desired import Port
from dataplane.kernel import Fault
from gossip.names import PeerName
from mesh.arguments import parse_mac
from mesh.dockernet.fields import (
    Fields,
    address_of,
    bad_request,
    check_network,
    id_of,
    interface_of,
    text_of,
)
from mesh.dockernet.state import Lent, Member, Network, Pool, State, is_within, state_from_json
from mesh.endpoints import Endpoint, EndpointTable, Interface, derive_mac
from mesh.ipam.keeper import Keeper
from mesh.ipam.wants import Claim, FromSubnet
from mesh.logs import EventLog
from mesh.requests import ApiError
from mesh.store import StoreError

DOCUMENT = "docker"
SPACE = "weft"
GIVE_LIMIT_S = 0.85
JUST_STARTED_S = 15.0
"""For so long we may not have heard yet who has which addresses."""
KERNEL_LIMIT_S = 0.8
NETWORKS_MAX = 256
NEW_S = 60.0
"""For so long Docker may not list what it has asked for."""
OPTIONS = ("mtu",)
"""What `docker network create --opt` may say."""
GATEWAY_TYPE = "com.docker.network.gateway"
GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
WAY_BITS_MIN = 17
"""So one container has a way by each of 16 Weft networks."""
ANY = {4: "0.0.0.0/0", 6: "::/0"}

FIELDLESS = frozenset(
    {
        "Plugin.Activate",
        "NetworkDriver.GetCapabilities",
        "IpamDriver.GetCapabilities",
        "IpamDriver.GetDefaultAddressSpaces",
    }
)
"""Methods that are asked for as they are."""

AT_ONCE = "no address could be given at once"

log = EventLog("docker")


@dataclass(frozen=True, slots=True)
class Around:
    """What the driver asks of the daemon around it."""

    own: PeerName
    boot: str
    document: dict[str, Any] | None
    write: Callable[[str, dict[str, Any]], Awaitable[None]]
    keeper: Keeper
    table: EndpointTable
    is_reachable: Callable[[PeerName], bool]
    nickname_of: Callable[[PeerName], str]
    publish: Callable[[], Awaitable[dict[str, Fault]]]
    tell: Callable[[str, Endpoint | None], None]
    wait_settled: Callable[[], Awaitable[None]]
    has_link: Callable[[str], bool]
    """Whether this host has a link of that name."""
    dns_routes: tuple[str, ...]
    changed: Callable[[], None]
    """Somebody joined or left: there may be names to learn."""


class Driver:
    """Of one daemon."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self.state = state_from_json(around.document, around.boot) if around.document else State()
        is_same_boot = around.document is not None and around.document["boot"] == around.boot
        self._underway = self.state.underway() if is_same_boot else frozenset()
        """What an earlier life did not get done with: Docker may be about to go on with it."""
        self._lock = asyncio.Lock()
        self._started = time.monotonic()
        self._preparing: set[asyncio.Task[None]] = set()
        self._born: dict[str, float] = {}
        """When networks and members were made, of those made in this life of the daemon."""
        self._calls: dict[str, Callable[[Fields], Awaitable[Fields]]] = {
            "Plugin.Activate": self._activate,
            "NetworkDriver.GetCapabilities": self._network_capabilities,
            "NetworkDriver.CreateNetwork": self._create_network,
            "NetworkDriver.DeleteNetwork": self._delete_network,
            "NetworkDriver.CreateEndpoint": self._create_endpoint,
            "NetworkDriver.EndpointOperInfo": self._info,
            "NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "NetworkDriver.Join": self._join,
            "NetworkDriver.Leave": self._leave,
            "NetworkDriver.ProgramExternalConnectivity": self._nothing,
            "NetworkDriver.RevokeExternalConnectivity": self._nothing,
            "NetworkDriver.DiscoverNew": self._nothing,
            "NetworkDriver.DiscoverDelete": self._nothing,
            "IpamDriver.GetCapabilities": self._address_capabilities,
            "IpamDriver.GetDefaultAddressSpaces": self._spaces,
            "IpamDriver.RequestPool": self._request_pool,
            "IpamDriver.ReleasePool": self._release_pool,
            "IpamDriver.RequestAddress": self._request_address,
            "IpamDriver.ReleaseAddress": self._release_address,
        }

    async def call(self, method: str, fields: Fields) -> Fields:
        """Raises `ApiError`; then nothing has changed. Raises `KeyError` for methods that there are not."""
        perform = self._calls[method]
        if not fields and method not in FIELDLESS:
            # Where a connection breaks off, Docker sends the same once more, but without its body. What is lost of a
            # leave shows when Docker is asked who is there.
            self._around.changed()
            raise bad_request(
                f"{method} came without what it is about, as when this daemon has just started: try again"
            )
        try:
            return await perform(fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            log.exception("not-understood")
            raise bad_request(f"{method} was asked with fields that are not what they should be ({error})") from None

    # -- what the daemon asks ----------------------------------------------------------------------

    def ports(self) -> tuple[Port, ...]:
        return tuple(each.port(self._mtu(each)) for each in self.state.members.values() if each.joined)

    def endpoints(self) -> dict[str, Endpoint]:
        """What the mesh is told, by ifname."""
        return {each.ifname: self._endpoint(each) for each in self.state.members.values() if each.joined}

    def _endpoint(self, member: Member) -> Endpoint:
        return member.endpoint(self._around.own)

    def _mtu(self, member: Member) -> int | None:
        network = self.state.networks.get(member.network)
        return network.mtu if network is not None else None

    def nameless(self, names: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Those whose container, or what it is called, was not known like that."""
        members = self.state.members
        return {
            key: told
            for key, told in names.items()
            if key in members and (members[key].container, members[key].name) != told
        }

    async def name(self, names: dict[str, tuple[str, str, tuple[str, ...]]]) -> None:
        """By endpoint: the container, what it is called, and what else."""
        async with self._lock:
            found = dict(self.state.members)
            for key, (container, called, aliases) in names.items():
                if key in found:
                    found[key] = replace(found[key], container=container, name=called, aliases=aliases)
                    log.info("named", endpoint=key[:12], container=called)
            if found != self.state.members:
                before, wanted = self.state.members, replace(self.state, members=found)
                await self._save(wanted)
                for key, member in found.items():
                    if member.joined and member != before.get(key):
                        self._tell(member.ifname, self._endpoint(member))

    async def keep_only(self, networks: set[str], members: set[str]) -> None:
        """Docker has forgotten all others: so do we, as if it had said so. What it is only just making it does not list
        yet. Raises `ApiError`."""
        async with self._lock:
            new = set(filter(self._is_new, self._born))  # what was made while we waited for the lock is the newest
            if time.monotonic() < self._started + NEW_S:
                new |= self._underway
            seen = {key: replace(each, seen=each.seen or key in networks) for key, each in self.state.networks.items()}
            state = replace(self.state, networks=seen)
            state = state.without_networks(key for key, each in seen.items() if each.seen and key not in networks | new)
            others = {key for key, each in state.members.items() if each.network not in networks}
            kept = {key: each for key, each in state.members.items() if key in members | new | others}
            state = replace(state, members=kept)
            unused = state.unused() - new
            state = replace(state, lent={key: each for key, each in state.lent.items() if key not in unused})
            if state != self.state:
                if lost := len(self.state.members) - len(state.members):
                    log.info("forgotten-by-docker", members=lost)
                await self._replace(state)
            self._born = {key: born for key, born in self._born.items() if key in new}

    def doubtful_for_s(self) -> float | None:
        """How long until all may be forgotten that Docker has begun with and not gone on with; None for nothing."""
        now, doubtful = time.monotonic(), self.state.underway()
        ends = [born + NEW_S for key, born in self._born.items() if key in doubtful]
        ends += [self._started + NEW_S] if doubtful & self._underway else []
        return max((end - now for end in ends if end > now), default=None)

    # -- the plugin --------------------------------------------------------------------------------

    async def _activate(self, _: Fields) -> Fields:
        return {"Implements": ["NetworkDriver", "IpamDriver"]}

    async def _nothing(self, _: Fields) -> Fields:
        return {}

    async def _info(self, _: Fields) -> Fields:
        return {"Value": {}}

    async def _network_capabilities(self, _: Fields) -> Fields:
        return {"Scope": "local", "ConnectivityScope": "global"}

    async def _address_capabilities(self, _: Fields) -> Fields:
        return {"RequiresMACAddress": False, "RequiresRequestReplay": False}

    async def _spaces(self, _: Fields) -> Fields:
        return {"LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": SPACE}

    # -- addresses ---------------------------------------------------------------------------------

    async def _request_pool(self, fields: Fields) -> Fields:
        subnet, part = text_of(fields, "Pool"), text_of(fields, "SubPool")
        version = 6 if fields.get("V6") else 4
        if options := fields.get("Options"):
            raise bad_request(f"--ipam-opt {min(options)} is not supported")
        ranges = self._around.keeper.ipam.subnets()
        if subnet:
            check_network(subnet)
            if not is_within(subnet, ranges):
                have = " and ".join(map(str, ranges)) or "none yet; `weft prime` makes it"
                raise ApiError("outside-range", f"subnet {subnet} is not inside the range of addresses ({have})")
            if part:
                check_network(part)
                if not is_within(part, [ip_network(subnet)]):
                    raise bad_request(f"--ip-range {part} is not a part of subnet {subnet}")
        elif not any(each.version == version for each in ranges):
            cure = "name a --subnet, or run `weft prime` first"
            raise ApiError("outside-range", f"there is no IPv{version} range to take addresses from yet; {cure}")
        pool = Pool(secrets.token_hex(8), subnet, version, part)
        async with self._lock:
            await self._save(replace(self.state, pools=self.state.pools | {pool.id: pool}))
        self._prepare(self._any_of(pool))
        # One without a subnet is everything there is: a narrower answer is compared with the routes of this host, and
        # would be refused where the host is on the mesh itself.
        gateway = {GATEWAY_TYPE: ANY[version]}
        return {"PoolID": pool.id, "Pool": subnet or ANY[version], "Data": gateway}

    def _prepare(self, want: Claim | FromSubnet) -> None:
        """Have such an address here: others may have to be asked for it, and Docker should not wait."""

        async def prepare() -> None:
            owner = f"docker-address:{secrets.token_hex(8)}"
            with contextlib.suppress(ApiError):
                await self._around.keeper.obtain(owner, (want,))
            async with self._lock:
                await self._around.keeper.release(owner, None)

        task = asyncio.ensure_future(prepare())
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    def _any_of(self, pool: Pool) -> FromSubnet:
        subnets = (each for each in self._around.keeper.ipam.subnets() if each.version == pool.version)
        part = ip_network(pool.part) if pool.part else None
        limits = (part[0], part[-1]) if part is not None else (None, None)
        return FromSubnet(ip_network(pool.subnet) if pool.subnet else next(subnets, None), *limits)

    async def close(self) -> None:
        for task in self._preparing:
            task.cancel()
        await asyncio.gather(*self._preparing, return_exceptions=True)

    async def _release_pool(self, fields: Fields) -> Fields:
        key = text_of(fields, "PoolID")
        async with self._lock:
            if key in self.state.pools:
                pools = {each: pool for each, pool in self.state.pools.items() if each != key}
                lent = {address: each for address, each in self.state.lent.items() if each.pool != key}
                await self._replace(replace(self.state, pools=pools, lent=lent))
        return {}

    async def _request_address(self, fields: Fields) -> Fields:
        pool = self.state.pools.get(text_of(fields, "PoolID"))
        if pool is None:
            raise ApiError("unknown-pool", "this pool of addresses is not known; remove the network and create it anew")
        ipam = self._around.keeper.ipam
        asked = text_of(fields, "Address")
        if (fields.get("Options") or {}).get("RequestAddressType") == GATEWAY_TYPE:
            # Nobody is this gateway: Docker leads containers out by a bridge of its own.
            return {"Address": f"{asked.partition('/')[0]}/{pool.subnet.rpartition('/')[2]}", "Data": {}}
        want: Claim | FromSubnet
        if asked:
            address = address_of(asked)
            length = ip_network(pool.subnet).prefixlen if pool.subnet else None
            want = Claim(ip_interface(f"{address}/{length}") if length is not None else ipam.interface_of(address))
        else:
            want = self._any_of(pool)
        owner = f"docker-address:{secrets.token_hex(8)}"
        if isinstance(want, Claim) and (before := self.state.lent.get(str(want.interface.ip))) is not None:
            self._refuse_promised(str(want.interface.ip))
            await self._forget_ended([want.interface])
            return {"Address": before.address, "Data": {}}  # Docker gave it back while we did not listen
        if isinstance(want, Claim):
            self._refuse_taken(want.interface)
        try:
            async with asyncio.timeout(GIVE_LIMIT_S):
                await self._around.wait_settled()
                (given,) = await self._around.keeper.obtain(owner, (want,))
        except TimeoutError:
            self._prepare(want)
            text = f"{AT_ONCE}; `weft status ipam` says what is waited for: try again"
            raise ApiError("ipam-waiting", text) from None
        except ApiError as error:
            if error.code == "ipam-exhausted" and time.monotonic() < self._started + JUST_STARTED_S:
                text = f"{AT_ONCE}, as this daemon has only just started ({error}): try again"
                raise ApiError("ipam-waiting", text) from None
            raise
        async with self._lock:
            lent = self.state.lent | {str(given.ip): Lent(str(given), pool.id, owner)}
            self._born[str(given.ip)] = time.monotonic()
            try:
                await self._save(replace(self.state, lent=lent))
            except ApiError:
                await self._around.keeper.release(owner, None)
                raise
        return {"Address": str(given), "Data": {}}

    async def _release_address(self, fields: Fields) -> Fields:
        address = text_of(fields, "Address").partition("/")[0]
        async with self._lock:
            if address in self.state.lent:
                lent = {key: each for key, each in self.state.lent.items() if key != address}
                await self._replace(replace(self.state, lent=lent))
        return {}

    # -- networks ----------------------------------------------------------------------------------

    async def _create_network(self, fields: Fields) -> Fields:
        key = id_of(fields, "NetworkID")
        options = fields.get("Options") or {}
        generic = options.get(GENERIC) or {}
        if unknown := sorted(set(generic) - set(OPTIONS)):
            raise bad_request(f"--opt {unknown[0]} is not supported (there is {', '.join(OPTIONS)})")
        try:
            mtu = int(generic["mtu"]) if "mtu" in generic else None
        except (ValueError, OverflowError):
            mtu = -1
        if mtu is not None and not 1280 <= mtu <= 65535:
            raise bad_request(f"--opt mtu={generic['mtu']} is not a number from 1280 to 65535")
        pools = [*(fields.get("IPv4Data") or []), *(fields.get("IPv6Data") or [])]
        foreign = any(each.get("AddressSpace") != SPACE for each in pools)
        internal = options.get(INTERNAL) in (True, "true")
        async with self._lock:
            if len(self.state.networks) >= NETWORKS_MAX:
                raise ApiError("too-many", f"there are {NETWORKS_MAX} Weft networks already; remove some first")
            kept = [one for each in pools for one in (each.get("AuxAddresses") or {}).values() if isinstance(one, str)]
            network = Network(key, internal, mtu, foreign, kept_free=tuple(one.partition("/")[0] for one in kept))
            self._born[key] = time.monotonic()
            await self._save(replace(self.state, networks=self.state.networks | {key: network}))
        self._around.changed()
        if foreign:
            log.warning("foreign-addresses", network=key[:12], cure="docker network create --ipam-driver weft")
        return {}

    async def _delete_network(self, fields: Fields) -> Fields:
        """Unknown ones are fine, or they could never be removed."""
        async with self._lock:
            await self._replace(self.state.without_networks([text_of(fields, "NetworkID")]))
        return {}

    # -- a container's interface -------------------------------------------------------------------

    async def _create_endpoint(self, fields: Fields) -> Fields:
        key, network = id_of(fields, "EndpointID"), self._network_of(fields)
        asked = fields.get("Interface") or {}
        texts = [asked[name] for name in ("Address", "AddressIPv6") if asked.get(name)]
        interfaces = [interface_of(text) for text in texts]
        if not interfaces:
            raise bad_request("a container's interface needs an address")
        before = self.state.members.get(key)
        if before is not None and before.addresses == tuple(map(str, interfaces)):
            # Once more: Docker asks again where the answer was lost, as by an end of this daemon.
            return {"Interface": {} if asked.get("MacAddress") else {"MacAddress": before.mac}}
        await self._forget_ended(interfaces)
        for interface in interfaces:
            self._refuse_taken(interface)
        mac = asked.get("MacAddress") or derive_mac("weft", interfaces[0].ip).hex(":")
        try:
            parse_mac(mac)
        except ValueError as error:
            raise bad_request(str(error)) from None
        self._refuse_taken_mac(mac)
        claims = tuple(self._around.table.next_claim(interface.ip) for interface in interfaces)
        member = Member(key, network.id, mac, tuple(map(str, interfaces)), claims)
        if network.foreign:
            await self._claim(member)
        async with self._lock:
            self._born[key] = time.monotonic()
            await self._save(replace(self.state, members=self.state.members | {key: member}))
        return {"Interface": {} if asked.get("MacAddress") else {"MacAddress": mac}}

    async def _forget_ended(self, interfaces: list[Interface]) -> None:
        """Who had these and is in no container any more: Docker ended it while we did not listen. Raises `ApiError`
        where somebody runs."""
        holders = {each.id: each for interface in interfaces for each in self.state.holders(str(interface.ip))}
        for each in holders.values():
            if self._is_inside(each) or (not each.joined and self._is_new(each.id)):
                text = f"{each.addresses[0]} is that of {each.called} on this host; take another"
                raise ApiError("address-taken", text)
        if holders:
            async with self._lock:
                members = {key: each for key, each in self.state.members.items() if key not in holders}
                await self._replace(replace(self.state, members=members))

    def _refuse_promised(self, address: str) -> None:
        """Raises `ApiError` for one that is to be free, or that Docker asked for a moment ago, for a container that has
        not got as far yet."""
        if any(address in network.kept_free for network in self.state.networks.values()):
            raise ApiError("address-taken", f"{address} is kept free by --aux-address; take another")
        if not self.state.holders(address) and self._is_new(address):
            raise ApiError("address-taken", f"{address} is being given to another container; take another")

    def _is_new(self, key: str) -> bool:
        """Whether Docker asked for it so lately that it may not be done with it."""
        return time.monotonic() < self._born.get(key, -NEW_S) + NEW_S

    def _is_inside(self, member: Member) -> bool:
        """Whether a container has its inner end: Docker has taken it from beside the other one."""
        return member.joined and self._around.has_link(member.ifname) and not self._around.has_link(member.inner)

    async def _claim(self, member: Member) -> None:
        """Addresses that another address plugin chose, which knows this host alone."""
        wants = tuple(map(Claim, member.interfaces()))
        try:
            async with asyncio.timeout(GIVE_LIMIT_S):
                await self._around.keeper.obtain(member.owner, wants)
        except TimeoutError:
            text = f"whether {member.addresses[0]} is free is not known yet; try again"
            raise ApiError("ipam-waiting", text) from None
        except ApiError as error:
            cure = "with `docker network create -d weft --ipam-driver weft` the mesh gives addresses itself"
            raise ApiError(error.code, f"{error}; {cure}") from None

    def _refuse_taken(self, interface: Interface) -> None:
        for holder in self._around.table.claimants(interface.ip):
            if holder.owner == self._around.own or self._around.is_reachable(holder.owner):
                host = "this host" if holder.owner == self._around.own else self._around.nickname_of(holder.owner)
                cure = "take another, or have the mesh give one (docker network create --ipam-driver weft)"
                raise ApiError("address-taken", f"{interface.ip} is held by {holder.id} on {host}; {cure}")

    def _refuse_taken_mac(self, mac: str) -> None:
        wanted = bytes.fromhex(mac.replace(":", ""))
        users = [each.id for each in self._around.table.mac_users(wanted)]
        users += [each.called for each in self.state.members.values() if each.mac == mac]
        if users:
            raise ApiError("mac-taken", f"the MAC {mac} is that of {users[0]} already; take another")

    async def _join(self, fields: Fields) -> Fields:
        sandbox = text_of(fields, "SandboxKey")
        async with self._lock:
            member, network = self._member_of(fields), self._network_of(fields)
            beside = {each.rank for each in self.state.members.values() if each.joined and each.sandbox == sandbox}
            rank = next(rank for rank in count() if rank not in beside) if not member.joined else member.rank
            wanted = replace(member, joined=True, sandbox=sandbox, rank=rank)
            await self._save(replace(self.state, members=self.state.members | {member.id: wanted}))
            trouble = await self._brought_up(wanted)
            if trouble:
                await self._replace(replace(self.state, members=self.state.members | {member.id: member}))
                raise ApiError("attach-failed", trouble)
            self._tell(wanted.ifname, self._endpoint(wanted))
        self._around.changed()
        log.info("joined", endpoint=member.id[:12], addresses=",".join(member.addresses))
        routes = [] if network.internal else [_way(each, wanted.rank) for each in self._around.dns_routes]
        return {"InterfaceName": {"SrcName": wanted.inner, "DstPrefix": "eth"}, "StaticRoutes": routes}

    async def _brought_up(self, member: Member) -> str:
        """Why the kernel has no such interface; empty where it has."""
        try:
            async with asyncio.timeout(KERNEL_LIMIT_S):
                faults = await self._around.publish()
        except TimeoutError:
            return "the kernel did not make the interface in time; try again"
        return faults[member.ifname].text if member.ifname in faults else ""

    async def _leave(self, fields: Fields) -> Fields:
        async with self._lock:
            member = self.state.members.get(text_of(fields, "EndpointID"))
            if member is None or not member.joined:
                return {}
            left = replace(member, joined=False)
            await self._save(replace(self.state, members=self.state.members | {member.id: left}))
            self._tell(member.ifname, None)
        await self._settle()  # not under the lock: for many that leave at once the kernel takes as long as for one
        self._around.changed()
        return {}

    async def _delete_endpoint(self, fields: Fields) -> Fields:
        key = text_of(fields, "EndpointID")
        async with self._lock:
            if key in self.state.members:
                members = {each: member for each, member in self.state.members.items() if each != key}
                await self._replace(replace(self.state, members=members))
        return {}

    # -- both --------------------------------------------------------------------------------------

    async def _replace(self, state: State) -> None:
        """On disk, then out of the mesh and the kernel, then back to the allocator."""
        before = self.state
        await self._save(state)
        joined = {key for key, each in before.members.items() if each.joined}
        left = {key for key in joined if key not in state.members or not state.members[key].joined}
        for key in left:
            self._tell(before.members[key].ifname, None)
        unused = set(before.owners().values()) - set(state.owners().values())
        await asyncio.gather(
            *([self._settle()] if left else []), *(self._around.keeper.release(owner, None) for owner in sorted(unused))
        )
        if left:
            self._around.changed()

    async def _settle(self) -> None:
        """The kernel makes it so in any case; whoever waits, waits for so long."""
        try:
            async with asyncio.timeout(KERNEL_LIMIT_S):
                await self._around.publish()
        except TimeoutError:
            log.warning("kernel-slow")

    def _tell(self, ifname: str, endpoint: Endpoint | None) -> None:
        try:
            self._around.tell(ifname, endpoint)
        except ValueError as error:
            log.warning("not-told", ifname=ifname, error=error)

    async def _save(self, state: State) -> None:
        """On disk first; only then do we believe it ourselves."""
        try:
            await self._around.write(DOCUMENT, state.to_json(self._around.boot))
        except StoreError as error:
            raise ApiError("not-saved", str(error)) from None
        self.state = state

    def _network_of(self, fields: Fields) -> Network:
        network = self.state.networks.get(text_of(fields, "NetworkID"))
        if network is None:
            raise ApiError("unknown-network", "this network is not known to Weft here; remove it and create it anew")
        return network

    def _member_of(self, fields: Fields) -> Member:
        member = self.state.members.get(text_of(fields, "EndpointID"))
        if member is None:
            raise ApiError("unknown-endpoint", "this interface is not known to Weft; start the container anew")
        return member


def _way(network: str, rank: int) -> Fields:
    """Docker refuses a container two routes to the same network. So each of its interfaces has one to a larger network
    than the one before, all of link-local addresses, and where the first is taken away the next one leads there."""
    found = ip_network(network)
    wider = ip_network(f"{found[0]}/{max(found.prefixlen - rank, WAY_BITS_MIN)}", strict=False)
    return {"Destination": str(wider), "RouteType": 1}
