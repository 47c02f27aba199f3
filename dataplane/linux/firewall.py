"""nftables: our own rules, one accept rule in Docker's way, and a look at who else on this host drops frames.

Speaks JSON with the `nft` command (`nft -j`); knows nothing of when to look. The one idea: bridged frames pass the
host's forward chains while `bridge-nf-call-iptables` is on, and it is on in every new network namespace. So in the two
chains where that is customary, `ip filter FORWARD` and `ip6 filter FORWARD`, one accept rule marked "weft" is put at
the top; in everybody else's chains nothing is touched, and a drop is told as a warning with its cure.

Our own table is `netdev weft`: a chain at the egress of each overlay port drops the questions (ARP, neighbour
solicitation) that nobody on this host could answer, which would otherwise go to every peer. Link-local targets pass:
nobody enters those as neighbours, so they are resolved the classic way. A chain is recognised by the comments of its
rules; the first also says which device (ifindex) it was hooked to, because a chain outlives its device.

On a VXLAN device one rule more writes down to which MACs frames go, in a set whose elements die by themselves: whoever
wants to know which peers are in use reads that (`activity`), and no frame is seen by anybody but the kernel. What goes
to groups would name every peer, and our own probes would keep themselves alive, so neither counts.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.faults import describe
from dataplane.kernel import DELETE, Operation, Warning
from dataplane.linux.netlink import attributes, messages
from dataplane.objects import (
    ACCEPT,
    ACTIVE_RULE,
    GUARD,
    GUARD_RULES,
    UNHOOKED,
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
_BRIDGE_SYSCTL: Final = Path("/proc/sys/net/bridge")
_LEGACY_TABLES: Final = {"ip_tables_names": "iptables-legacy", "ip6_tables_names": "ip6tables-legacy"}
_SEES_BRIDGED: Final = {
    "ip": ("bridge-nf-call-iptables",),
    "ip6": ("bridge-nf-call-ip6tables",),
    "inet": ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"),
    "bridge": (),
}
"""Families whose forward chains see bridged frames, and the sysctls one of which must be on for that."""


_NFTABLES: Final = 10
_TABLE_OR_CHAIN: Final = frozenset({0, 2, 3, 5})
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
        self, bridge: str, overlay: Mapping[str, int], port: int | None, ipv6: bool = False
    ) -> dict[Key, Value]:
        """GUARD of overlay devices and ACCEPT of the customary chains.

        `overlay` has the ifindex of each device, 0 for one that is not there now. `port` is the UDP port that input
        chains should let in, those for IPv6 too where that is used.
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
        self._looked_at = {_triple(chain) for chain in wanted}
        objects: dict[Key, Value] = {}
        for device, ifindex in overlay.items():
            if self._no_egress:
                objects[Key(GUARD, device)] = Unavailable(self._no_egress)
            elif any(_triple(each) == ("netdev", TABLE, _guard_name(device)) for each in wanted):
                objects[Key(GUARD, device)] = guard_of(device, ifindex, rules)
        forward = [c for c in wanted if c.get("hook") == "forward" and _sees_bridged(c)]
        lacking = []
        for item, customary in _CUSTOMARY.items():
            for chain in (chain for chain in forward if _triple(chain) == customary):
                has_accept = any(_is_accept(rule) for rule in rules if _is_in(rule, chain))
                objects[Key(ACCEPT, bridge, item)] = has_accept
                if not has_accept:
                    lacking.append(chain)  # about to get it, and then looked at again
        foreign = [chain for chain in forward if chain not in lacking]
        self._found = (
            *(warning for chain in foreign if (warning := judge_forward(chain, rules, bridge))),
            *(warning for chain in wanted if (warning := judge_input(chain, rules, port, ipv6))),
            *_judge_legacy(bridge),
        )
        self.warnings = (*self._found, *self._shortcomings())
        return objects

    def apply(self, operation: Operation, ifindex: int) -> None:
        """Never fails: what cannot be done is told as a warning and tried again after the next listing, because the
        overlay works without it, with more broadcast or as far as other firewalls let it."""
        key = operation.key
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
                self._run(_commands(accept(key.device, _CUSTOMARY[key.item])))
        except FileNotFoundError:
            pass  # told by the listing
        except NftError as error:
            if key.kind == GUARD and "not supported" in str(error).lower():
                self._no_egress = str(error)
            elif "No such file" not in str(error):  # else the chain went; the next listing knows
                self._refused[key] = f"cannot set the rules of {describe(key, operation.value)}: {error}"
        self.warnings = (*self._found, *self._shortcomings())

    def _rules_of(self, chains: Sequence[Json]) -> list[Json]:
        """One question each: nft 1.0.6 fails on several chains in one go, and our table is not listed whole because of
        the set in it, which may be large."""
        questions: list[Json] = [{"chain": _name(chain)} for chain in chains]
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
        names = {str(chain["name"]) for chain in chains if _is_ours(chain)}
        is_last = names <= {_guard_name(device)}
        if is_last:
            self._run(_commands(remove_table()))
            return
        self._run(_commands(remove_guard(device)))
        with contextlib.suppress(NftError):  # not every guard has one
            self._run(_commands({"delete": _active_set(device)}))

    def _remove_accept(self, key: Key) -> None:
        family, table, name = _CUSTOMARY[key.item]
        place = {"family": family, "table": table, "chain": name}
        rules = self._rules_of([{"family": family, "table": table, "name": name}])
        marked = [{"delete": {"rule": {**place, "handle": rule["handle"]}}} for rule in rules if _is_accept(rule)]
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
        *({"add": {"rule": {**_place(chain), "comment": comment, "expr": expr}}} for comment, expr in rules),
    ]


def remove_guard(device: str) -> Json:
    return {"delete": {"chain": {"family": "netdev", "table": TABLE, "name": _guard_name(device)}}}


def _active_set(device: str) -> Json:
    place = {"family": "netdev", "table": TABLE, "name": active_set_name(device)}
    return {"set": {**place, "type": "ether_addr", "flags": ["timeout"], "timeout": ACTIVE_S, "size": ACTIVE_MAX}}


def remove_table() -> Json:
    return {"delete": {"table": {"family": "netdev", "name": TABLE}}}


def accept(bridge: str, chain: tuple[str, str, str]) -> Json:
    """Command that puts the accept rule on top. Built as iptables builds it, so that iptables still reads the chain."""
    family, table, name = chain
    expr: list[Json] = [
        _match({"meta": {"key": "iifname"}}, bridge),
        _match({"meta": {"key": "oifname"}}, bridge),
        {"counter": None},
        {"accept": None},
    ]
    return {"insert": {"rule": {"family": family, "table": table, "chain": name, "comment": MARK, "expr": expr}}}


# What we make of what nft lists.


def guard_of(device: str, ifindex: int, rules: Iterable[Json]) -> Guard:
    """The guard of a device as found: with its rules, or unhooked."""
    chain = {"family": "netdev", "table": TABLE, "name": _guard_name(device)}
    comments = [str(rule.get("comment", "")) for rule in rules if _is_in(rule, chain)]
    suffix = f" #{ifindex}"
    if not comments or not comments[0].endswith(suffix):
        return UNHOOKED
    return Guard((comments[0].removesuffix(suffix), *comments[1:]))


def judge_forward(chain: Json, rules: Iterable[Json], bridge: str) -> Warning | None:
    """Whether a forward chain drops frames between the containers of this overlay, as far as can be seen."""
    drops = chain.get("policy") == "drop"
    for rule in rules:
        if not _is_in(rule, chain):
            continue
        if _is_for_us(rule, bridge):
            return None
        if verdict := _unconditional(rule):
            drops = verdict != "accept"
            break
    if not drops:
        return None
    family, table, name = _triple(chain)
    ours = 'meta ibrname "{0}" meta obrname "{0}"' if family == "bridge" else 'iifname "{0}" oifname "{0}"'
    return Warning(
        "forward-drop",
        f"the firewall chain {family} {table} {name} drops frames between containers on {bridge}",
        f"nft insert rule {family} {table} {name} {ours.format(bridge)} accept",
    )


def judge_input(chain: Json, rules: Sequence[Json], port: int | None, ipv6: bool = False) -> Warning | None:
    """A hint where an input chain drops by default and nothing in it obviously lets VXLAN in."""
    families = ("ip", "inet", "ip6") if ipv6 else ("ip", "inet")
    if port is None or chain.get("hook") != "input" or chain.get("family") not in families:
        return None
    mine = [rule for rule in rules if _is_in(rule, chain)]
    verdicts = [verdict for rule in mine if (verdict := _unconditional(rule))]
    drops = verdicts[0] != "accept" if verdicts else chain.get("policy") == "drop"
    # A jump may lead to an accept that is not looked for; a hint that is often wrong would be ignored.
    if not drops or any(_lets_in(rule, port) or _jumps(rule) for rule in mine):
        return None
    family, table, name = _triple(chain)
    return Warning(
        "input-drop",
        f"the firewall chain {family} {table} {name} drops by default, and no rule there accepts UDP port {port}",
        f"nft insert rule {family} {table} {name} udp dport {port} accept",
    )


def _judge_legacy(bridge: str) -> list[Warning]:
    """iptables-legacy keeps its chains where nft cannot see them."""
    found = []
    for listing, command in _LEGACY_TABLES.items():
        try:
            names = Path("/proc/thread-self/net", listing).read_text().split()
        except OSError:
            continue
        if "filter" not in names or shutil.which(command) is None:
            continue
        done = subprocess.run([command, "-S", "FORWARD"], capture_output=True, text=True, timeout=NFT_TIMEOUT_S)
        lines = done.stdout.splitlines()
        mine = f"-i {bridge} -o {bridge} "
        if "-P FORWARD DROP" in lines and not any(mine in line and line.endswith("ACCEPT") for line in lines):
            found.append(
                Warning(
                    "forward-drop",
                    f"the FORWARD chain of {command} drops frames between containers on {bridge}",
                    f"{command} -I FORWARD -i {bridge} -o {bridge} -j ACCEPT",
                )
            )
    return found


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


def _place(chain: Json) -> Json:
    return {"family": chain["family"], "table": chain["table"], "chain": chain["name"]}


def _triple(chain: Json) -> tuple[str, str, str]:
    return chain["family"], chain["table"], chain["name"]


def _is_ours(chain: Json) -> bool:
    return (chain.get("family"), chain.get("table")) == ("netdev", TABLE)


def _is_in(rule: Json, chain: Json) -> bool:
    return all(rule.get(key) == value for key, value in _place(chain).items())


def _is_accept(rule: Json) -> bool:
    return rule.get("comment") == MARK and {"accept": None} in rule.get("expr", ())


def _sees_bridged(chain: Json) -> bool:
    sysctls = _SEES_BRIDGED.get(chain["family"])
    return sysctls is not None and (not sysctls or any(_is_on(sysctl) for sysctl in sysctls))


def _is_on(sysctl: str) -> bool:
    try:
        return (_BRIDGE_SYSCTL / sysctl).read_text().strip() == "1"
    except OSError:
        return False  # br_netfilter is not loaded


def _is_for_us(rule: Json, bridge: str) -> bool:
    """A rule that accepts all that comes from or goes to our bridge."""
    names = ("iifname", "oifname", "iif", "oif", "ibrname", "obrname")
    matches = [part["match"] for part in rule.get("expr", ()) if "match" in part]
    return (
        bool(matches)
        and {"accept": None} in rule["expr"]
        and all(
            match.get("op") == "=="
            and isinstance(match["left"], dict)
            and match["left"].get("meta", {}).get("key") in names
            and match["right"] == bridge
            for match in matches
        )
    )


def _unconditional(rule: Json) -> str:
    """`drop`, `reject` or `accept` where a rule does that to everything; empty otherwise."""
    expr = rule.get("expr", ())
    if any(key not in ("counter", "log", "drop", "reject", "accept") for part in expr for key in part):
        return ""
    return next((verdict for part in expr for verdict in ("drop", "reject", "accept") if verdict in part), "")


def _jumps(rule: Json) -> bool:
    return any(key in ("jump", "goto", "vmap", "xt") for part in rule.get("expr", ()) for key in part)


def _lets_in(rule: Json, port: int) -> bool:
    expr = rule.get("expr", ())
    if {"accept": None} not in expr:
        return False
    return any(
        isinstance(part.get("match"), dict)
        and isinstance(part["match"]["left"], dict)
        and part["match"]["left"].get("payload", {}).get("field") == "dport"
        and _holds(part["match"]["right"], port)
        for part in expr
    )


def _holds(right: Any, port: int) -> bool:
    if isinstance(right, dict):
        if "range" in right:
            low, high = right["range"]
            return isinstance(low, int) and isinstance(high, int) and low <= port <= high
        return _holds(right.get("set", []), port)
    if isinstance(right, list):
        return any(_holds(element, port) for element in right)
    return bool(right == port)
