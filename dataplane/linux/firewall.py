"""nftables: our own rules, one accept rule in Docker's way, and a look at who else on this host drops frames.

Speaks JSON with the `nft` command (`nft -j`); knows nothing of when to look. The one idea: bridged frames pass the
host's forward chains while `bridge-nf-call-iptables` is on, and it is on in every new network namespace. So in the two
chains where that is customary, `ip filter FORWARD` and `ip6 filter FORWARD`, one accept rule marked "weft" is put at
the top, and two more where containers reach the outside through this host; in everybody else's chains nothing is
touched, and a drop is told as a warning with its cure. What iptables cannot read would break Docker, so these rules
know interfaces only; what must not come in is kept out by our own table (gateway).

Our own tables are `inet weft`, see gateway, and `netdev weft`: a chain at the egress of each overlay port drops the
questions (ARP, neighbour solicitation) that nobody on this host could answer, which would otherwise go to every peer.
Link-local targets pass: nobody enters those as neighbours, so they are resolved the classic way. A chain is recognised
by the comments of its rules; the first also says which device (ifindex) it was hooked to, because a chain outlives its
device.

On a VXLAN device one rule more writes down to which MACs frames go, in a set whose elements die by themselves: whoever
wants to know which peers are in use reads that (`activity`), and no frame is seen by anybody but the kernel. What goes
to groups would name every peer, and our own probes would keep themselves alive, so neither counts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.faults import describe
from dataplane.kernel import DELETE, KernelError, Operation, Warning
from dataplane.linux import gateway
from dataplane.linux.netlink import attributes, messages
from dataplane.linux.verdicts import FIREWALLD, is_in, judge_forward, judge_input, judge_legacy, place, triple
from dataplane.objects import (
    ACCEPT,
    ACTIVE_RULE,
    BETWEEN,
    GATEWAY,
    GUARD,
    GUARD_RULES,
    IN,
    OUT,
    UNHOOKED,
    Gateway,
    Guard,
    Key,
    Unavailable,
    Value,
    active_set_name,
)
from dataplane.probe import ETHERTYPE

Json = dict[str, Any]

TABLE: Final = "weft"
MARK: Final = "weft"
"""Comment of the accept rules."""
NFT_TIMEOUT_S: Final = 10.0
ACTIVE_S: Final = 10
"""A MAC stays in the set so long after the last frame to it."""
ACTIVE_MAX: Final = 65_536
NFT_GROUP: Final = 7
"""NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h."""
_CUSTOMARY: Final = {b"ip": ("ip", "filter", "FORWARD"), b"ip6": ("ip6", "filter", "FORWARD")}
_WAYS: Final[Mapping[bytes, tuple[str, ...]]] = {
    BETWEEN: ("iifname", "oifname"),
    OUT: ("iifname",),
    IN: ("oifname",),
}
"""What an accept rule matches with the bridge's name, by the end of its item. Its comment is MARK and that end."""
_BRIDGE_SYSCTL: Final = Path("/proc/sys/net/bridge")
_SEES_BRIDGED: Final = {
    "ip": ("bridge-nf-call-iptables",),
    "ip6": ("bridge-nf-call-ip6tables",),
    "inet": ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"),
    "bridge": (),
}
"""Families whose forward chains see bridged frames, and the sysctls one of which must be on for that."""


_NFTABLES: Final = 10
_TABLE_OR_CHAIN: Final = frozenset({0, 2, 3, 5})
_GONE: Final = frozenset({2, 5, 8})
_RULE: Final = frozenset({6, 8})
_RULE_PLACE: Final = (1, 2)
_FAMILIES: Final = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_{NEW,DEL}{TABLE,CHAIN,RULE}, NFTA_RULE_{TABLE,CHAIN}, NFPROTO_* of linux/netfilter."""

_NO_EGRESS: Final = Warning(
    "no-egress-hook",
    "this kernel has no egress hook for nftables, so questions nobody can answer go to every peer",
    "use a kernel of 5.16 or newer with CONFIG_NETFILTER_EGRESS",
)
_NOT_INSTALLED: Final = Warning(
    "no-nft",
    "the nft command is not installed: questions nobody can answer go to every peer, and a firewall that drops overlay "
    "frames is not seen",
    "install the package nftables",
)
_NO_NFT: Final = "the nft command is not installed; install the package nftables, or expose --without-masquerade"
_REFUSED_CURE: Final = "see 'nft list ruleset'; it is tried again every minute"


class NftError(Exception):
    """`nft` refused; the first line of what it said."""


Run = Callable[[str], str]


class Firewall:
    """Lists and applies; remembers what this host cannot do and what it found harmful."""

    def __init__(self, run: Run | None = None) -> None:
        self._run = run or run_nft
        self._no_egress = ""
        self._refused: dict[Key, str] = {}
        self._looked_at: set[tuple[str, ...]] = set()
        self._found: tuple[Warning, ...] = ()
        self.warnings: tuple[Warning, ...] = ()

    def listing(
        self,
        bridge: str,
        overlay: Mapping[str, int],
        port: int | None,
        routed: frozenset[bytes] = frozenset(),
        ipv6: bool = False,
    ) -> dict[Key, Value]:
        """GUARD of overlay devices, ACCEPT of the customary chains, GATEWAY.

        `overlay` has the ifindex of each device, 0 for one that is not there now. `port` is the UDP port that input
        chains should let in, those for IPv6 too where that is used, `routed` the families in which containers reach
        the outside.
        """
        try:
            chains = _items("chain", self._run(_commands({"list": {"chains": {}}})))
            wanted = [c for c in chains if c.get("hook") in ("forward", "input") or _is_ours(c)]
            rules = self._rules_of(wanted)
        except FileNotFoundError:
            return self._blind(overlay, _NOT_INSTALLED)
        except NftError as error:
            text = f"nft cannot list the firewall ({error}), so a firewall that drops overlay frames is not seen"
            return self._blind(overlay, Warning("firewall-unknown", text, "try 'nft -j list chains'"))
        listed = {(rule["family"], rule["table"], rule["chain"]) for rule in rules}
        self._looked_at = {triple(chain) for chain in wanted} | listed
        objects: dict[Key, Value] = {}
        for device, ifindex in overlay.items():
            if self._no_egress:
                objects[Key(GUARD, device)] = Unavailable(self._no_egress)
            elif any(triple(each) == ("netdev", TABLE, _guard_name(device)) for each in wanted):
                objects[Key(GUARD, device)] = guard_of(device, ifindex, rules)
        if any(_is_gateway(chain) for chain in wanted):
            objects[Key(GATEWAY, bridge)] = gateway.gateway_of(bridge, rules)
        forward = {triple(chain): chain for chain in wanted if chain.get("hook") == "forward"}
        lacking = set()
        for family, customary in _CUSTOMARY.items():
            if customary in forward:
                needed = _ways_through(forward[customary], routed)
                mine = [rule for rule in rules if is_in(rule, forward[customary])]
                for way in needed | {OUT, IN}:
                    objects[Key(ACCEPT, bridge, family + way)] = any(_is_accept(rule, way) for rule in mine)
                if not all(objects[Key(ACCEPT, bridge, family + way)] for way in needed):
                    lacking.add(customary)  # about to get it, and then looked at again
        foreign = [chain for name, chain in forward.items() if name not in lacking]
        verdicts = (judge_forward(chain, rules, bridge, _ways_through(chain, routed)) for chain in foreign)
        self._found = (
            *(warning for warning in verdicts if warning),
            *(warning for chain in wanted if (warning := judge_input(chain, rules, port, ipv6))),
            *judge_legacy(bridge, routed),
        )
        self.warnings = (*self._found, *self._shortcomings())
        return objects

    def apply(self, operation: Operation, ifindex: int) -> None:
        """Raises KernelError for a GATEWAY only. What else cannot be done is told as a warning and tried again after
        the next listing, because the overlay works without it, with more broadcast or as far as other firewalls
        let it."""
        key = operation.key
        if key.kind == GATEWAY:
            self._apply_gateway(operation)
            return
        self._refused.pop(key, None)
        try:
            if key.kind == GUARD and operation.verb == DELETE:
                self._remove_guard(key.device)
            elif key.kind == GUARD:
                assert isinstance(operation.value, Guard)
                self._put_guard(key.device, ifindex, operation.value)
            elif operation.verb == DELETE:
                self._remove_accept(key)
            else:
                family, way = _split(key.item)
                self._run(_commands(accept(key.device, _CUSTOMARY[family], way)))
        except FileNotFoundError:
            pass  # told by the listing
        except NftError as error:
            if key.kind == GUARD and "not supported" in str(error).lower():
                self._no_egress = str(error)
            elif "No such file" not in str(error):  # else the chain went; the next listing knows
                self._refused[key] = f"cannot set the rules of {describe(key, operation.value)}: {error}"
        self.warnings = (*self._found, *self._shortcomings())

    def _apply_gateway(self, operation: Operation) -> None:
        wanted = operation.value
        try:
            if isinstance(wanted, Gateway) and operation.verb != DELETE:
                self._run(_commands(*gateway.gateway(operation.key.device, wanted)))
            else:
                self._run(_commands(gateway.remove_gateway()))
        except FileNotFoundError:
            if operation.verb != DELETE:
                raise KernelError(errno.ENOSYS, operation, _NO_NFT, "no-nft") from None
        except NftError as error:
            if operation.verb != DELETE or "No such file" not in str(error):
                raise KernelError(errno.EIO, operation, str(error)) from None

    def _rules_of(self, chains: Sequence[Json]) -> list[Json]:
        """One question each, but for tables that are wanted whole: nft 1.0.6 fails on several chains in one go, and the
        table of the guards is not listed whole because of the sets in it, which may be large."""
        whole = {_table(chain) for chain in chains if _table(chain) == ("inet", TABLE) or triple(chain) == FIREWALLD}
        questions: list[Json] = [{"chain": _name(chain)} for chain in chains if _table(chain) not in whole]
        questions += [{"table": {"family": family, "name": name}} for family, name in sorted(whole)]
        return [rule for each in questions for rule in _items("rule", self._run(_commands({"list": each})))]

    def _put_guard(self, device: str, ifindex: int, wanted: Guard) -> None:
        """A set that is in use is not what it was made as (it has become dynamic, which nft 1.0.6 cannot say in JSON),
        so making it again is refused, and what is there is taken."""
        try:
            self._run(_commands(*guard(device, ifindex, wanted)))
        except NftError as error:
            if ACTIVE_RULE not in wanted.rules or "File exists" not in str(error):
                raise
            self._run(_commands(*guard(device, ifindex, wanted, has_set=True)))

    def _remove_guard(self, device: str) -> None:
        """With the last guard the table goes too."""
        chains = _items("chain", self._run(_commands({"list": {"chains": {}}})))
        names = {str(chain["name"]) for chain in chains if _table(chain) == ("netdev", TABLE)}
        is_last = names <= {_guard_name(device)}
        if is_last:
            self._run(_commands(remove_table()))
            return
        self._run(_commands(remove_guard(device)))
        with contextlib.suppress(NftError):  # not every guard has one
            self._run(_commands({"delete": _active_set(device)}))

    def _remove_accept(self, key: Key) -> None:
        which, way = _split(key.item)
        family, table, name = _CUSTOMARY[which]
        chain = {"family": family, "table": table, "name": name}
        rules = [rule for rule in self._rules_of([chain]) if _is_accept(rule, way)]
        marked = [{"delete": {"rule": {**place(chain), "handle": rule["handle"]}}} for rule in rules]
        if marked:
            self._run(_commands(*marked))

    def _blind(self, overlay: Mapping[str, int], warning: Warning) -> dict[Key, Value]:
        """Without a listing nothing is known, and nothing is asked for."""
        self._found = (warning,)
        self.warnings = (*self._found, *self._shortcomings())
        return {Key(GUARD, device): Unavailable(warning.code) for device in overlay}

    def _shortcomings(self) -> tuple[Warning, ...]:
        refused = [Warning("rule-refused", text, _REFUSED_CURE) for text in self._refused.values()]
        return (_NO_EGRESS, *refused) if self._no_egress else tuple(refused)

    def is_concerned(self, data: bytes) -> bool:
        """Whether a buffer of the nftables group may change what a listing finds: chains, and rules in those that were
        looked at. Elements of sets and rules elsewhere come by the thousand on some hosts."""
        for kind, _, _, start, end in messages(data):
            what = kind & 0xFF if kind >> 8 == _NFTABLES else -1
            if what in _TABLE_OR_CHAIN:
                return True
            if what in _RULE:
                found = attributes(data, start + 4, end)
                names = (found.get(number, b"").rstrip(b"\0").decode(errors="replace") for number in _RULE_PLACE)
                if (_FAMILIES.get(data[start], ""), *names) in self._looked_at:
                    return True
        return False

    @staticmethod
    def is_lost(data: bytes) -> bool:
        """Whether a buffer of the nftables group says that something in our own tables was removed, be it by us."""
        name = TABLE.encode() + b"\0"
        return any(
            kind >> 8 == _NFTABLES and kind & 0xFF in _GONE and attributes(data, start + 4, end).get(1) == name
            for kind, _, _, start, end in messages(data)
        )


# What we ask nft to do.


def guard(device: str, ifindex: int, wanted: Guard, has_set: bool = False) -> list[Json]:
    """Commands that put the guard of a device in place, whatever was there, in one transaction. `has_set`: the set of
    active MACs is there."""
    table = {"family": "netdev", "name": TABLE}
    chain = {"family": "netdev", "table": TABLE, "name": _guard_name(device)}
    hooked = {**chain, "type": "filter", "hook": "egress", "dev": device, "prio": 0, "policy": "accept"}
    arp, local, nd = GUARD_RULES
    to_group = _match({"&": [_payload("ether", "daddr"), "ff:ff:ff:00:00:00"]}, "33:33:ff:00:00:00")
    solicitation = _match(_payload("icmpv6", "type"), "nd-neighbor-solicit")
    # The target of a solicitation begins eight bytes into ICMPv6; ten bits tell fe80::/10.
    target_is_local = _match({"payload": {"base": "th", "offset": 64, "len": 10}}, 0xFE80 >> 6)
    drop: list[Json] = [{"counter": None}, {"drop": None}]
    to_one = _match({"&": [_payload("ether", "daddr"), "01:00:00:00:00:00"]}, "00:00:00:00:00:00")
    no_probe = {"match": {"op": "!=", "left": _payload("ether", "type"), "right": ETHERTYPE}}
    noted = {"elem": {"val": _payload("ether", "daddr"), "timeout": ACTIVE_S}}
    note = {"set": {"op": "update", "elem": noted, "set": f"@{active_set_name(device)}"}}
    rules: list[tuple[str, list[Json]]] = [
        (f"{arp} #{ifindex}", [_match(_payload("ether", "daddr"), "ff:ff:ff:ff:ff:ff"), _arp_request(), *drop]),
        (local, [solicitation, target_is_local, {"accept": None}]),
        (nd, [to_group, solicitation, *drop]),
    ]
    if notes := ACTIVE_RULE in wanted.rules:
        rules.append((ACTIVE_RULE, [to_one, no_probe, note]))
    return [
        {"add": {"table": table}},
        {"add": {"chain": hooked}},
        {"delete": {"chain": chain}},
        *([{"add": _active_set(device)}] if notes and not has_set else []),
        {"add": {"chain": hooked}},
        *({"add": {"rule": {**place(chain), "comment": comment, "expr": expr}}} for comment, expr in rules),
    ]


def remove_guard(device: str) -> Json:
    return {"delete": {"chain": {"family": "netdev", "table": TABLE, "name": _guard_name(device)}}}


def _active_set(device: str) -> Json:
    place = {"family": "netdev", "table": TABLE, "name": active_set_name(device)}
    return {"set": {**place, "type": "ether_addr", "flags": ["timeout"], "timeout": ACTIVE_S, "size": ACTIVE_MAX}}


def remove_table() -> Json:
    return {"delete": {"table": {"family": "netdev", "name": TABLE}}}


def accept(bridge: str, chain: tuple[str, str, str], way: bytes = BETWEEN) -> Json:
    """Command that puts an accept rule on top. Built as iptables builds it, so that iptables still reads the chain."""
    family, table, name = chain
    expr: list[Json] = [
        *(_match({"meta": {"key": key}}, bridge) for key in _WAYS[way]),
        {"counter": None},
        {"accept": None},
    ]
    rule = {"family": family, "table": table, "chain": name, "comment": MARK + way.decode(), "expr": expr}
    return {"insert": {"rule": rule}}


# What we make of what nft lists.


def guard_of(device: str, ifindex: int, rules: Iterable[Json]) -> Guard:
    """The guard of a device as found: with its rules, or unhooked."""
    chain = {"family": "netdev", "table": TABLE, "name": _guard_name(device)}
    comments = [str(rule.get("comment", "")) for rule in rules if is_in(rule, chain)]
    suffix = f" #{ifindex}"
    if not comments or not comments[0].endswith(suffix):
        return UNHOOKED
    return Guard((comments[0].removesuffix(suffix), *comments[1:]))


def run_nft(commands: str) -> str:
    """Raises FileNotFoundError where nft is not installed, NftError with one line where it refuses."""
    try:
        done = subprocess.run(
            ["nft", "-j", "-f", "-"], input=commands, capture_output=True, text=True, timeout=NFT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NftError(f"nft did not answer within {NFT_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["nft failed without a word"]
        raise NftError(lines[0])
    return done.stdout


def _commands(*commands: Json) -> str:
    return json.dumps({"nftables": list(commands)})


def _items(kind: str, output: str) -> list[Json]:
    """Every chain, rule, ... in what nft printed: one document for each list command."""
    found: list[Json] = []
    decoder = json.JSONDecoder()
    position = 0
    while position < len(output):
        if output[position].isspace():
            position += 1
            continue
        document, position = decoder.raw_decode(output, position)
        found += [item[kind] for item in document.get("nftables", ()) if kind in item]
    return found


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _match(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _arp_request() -> Json:
    return _match(_payload("arp", "operation"), "request")


def _guard_name(device: str) -> str:
    return f"guard-{device}"


def _name(chain: Json) -> Json:
    return {key: chain[key] for key in ("family", "table", "name")}


def _table(chain: Json) -> tuple[str, str]:
    return chain["family"], chain["table"]


def _is_gateway(chain: Json) -> bool:
    return _table(chain) == (gateway.FAMILY, gateway.TABLE)


def _is_ours(chain: Json) -> bool:
    return _table(chain) == ("netdev", TABLE) or _is_gateway(chain)


def _split(item: bytes) -> tuple[bytes, bytes]:
    """Family and way of an ACCEPT."""
    family = next(family for family in sorted(_CUSTOMARY, reverse=True) if item.startswith(family))
    return family, item.removeprefix(family)


def _is_accept(rule: Json, way: bytes) -> bool:
    return rule.get("comment") == MARK + way.decode() and {"accept": None} in rule.get("expr", ())


def _ways_through(chain: Json, routed: frozenset[bytes]) -> frozenset[bytes]:
    """The ways of our packets that lead through a chain at the forward hook."""
    bridged = {BETWEEN} if _sees_bridged(chain) else set()
    is_routed = routed if chain["family"] == "inet" else {chain["family"].encode()} & routed
    return frozenset({*bridged, OUT, IN} if is_routed else bridged)


def _sees_bridged(chain: Json) -> bool:
    sysctls = _SEES_BRIDGED.get(chain["family"])
    return sysctls is not None and (not sysctls or any(_is_on(sysctl) for sysctl in sysctls))


def _is_on(sysctl: str) -> bool:
    try:
        return (_BRIDGE_SYSCTL / sysctl).read_text().strip() == "1"
    except OSError:
        return False  # br_netfilter is not loaded
