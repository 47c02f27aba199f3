"""The table `inet weft`: how what leaves the overlay through this host is masqueraded, as commands for `nft -j`.

Commands and their recognition only: values in, JSON out, nothing is run here. For each masqueraded network: what leaves
it does so under the host's address at a fully random port, what comes into it from elsewhere (the host by another
address, a connection that was redirected here) does so under the exposed address, so that any container can answer; and
what comes unasked from another device is dropped: the accept rules in other firewalls let all of that pass. So is what
goes out from an address in no exposed network: nobody would masquerade it. Frames between containers cross these hooks
too, as from the bridge to the bridge, and are not touched.

The one idea: the rules are recognised by their comments, which name the networks. A changed rule needs a changed
comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any, Final

from dataplane.objects import Gateway

Json = dict[str, Any]

FAMILY: Final = "inet"
TABLE: Final = "weft"

_FORWARD: Final = "forward"
_POSTROUTING: Final = "postrouting"
_BEFORE_FILTER: Final = -1
_SRCNAT: Final = 100
_ASKED: Final = "weft asked for"
_OUT: Final = "weft out of "
_MASQUERADE: Final = "weft masquerade out of "


def gateway(bridge: str, wanted: Gateway) -> list[Json]:
    """Commands that put the table in place, whatever was there, in one transaction."""
    table = {"family": FAMILY, "name": TABLE}
    chain = {"family": FAMILY, "table": TABLE, "policy": "accept"}
    forward = {**chain, "name": _FORWARD, "type": "filter", "hook": "forward", "prio": _BEFORE_FILTER}
    postrouting = {**chain, "name": _POSTROUTING, "type": "nat", "hook": "postrouting", "prio": _SRCNAT}
    rules = [
        {"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": chain, "comment": comment, "expr": expr}}}
        for chain, comment, expr in _rules(bridge, wanted)
    ]
    chains: list[Json] = [{"add": {"chain": forward}}, {"add": {"chain": postrouting}}]
    return [{"add": {"table": table}}, {"delete": {"table": table}}, {"add": {"table": table}}, *chains, *rules]


def remove_gateway() -> Json:
    return {"delete": {"table": {"family": FAMILY, "name": TABLE}}}


def gateway_of(bridge: str, rules: Iterable[Json]) -> Gateway:
    """The table as found; of no networks where it is not as we would have made it."""
    mine = [rule for rule in rules if (rule["family"], rule["table"]) == (FAMILY, TABLE)]
    found = [(rule["chain"], str(rule.get("comment", ""))) for rule in mine]
    networks = _named(_MASQUERADE, found)
    meant = Gateway(networks, tuple(each for each in _named(_OUT, found) if each not in networks))
    try:
        expected = [(chain, comment) for chain, comment, _ in _rules(bridge, meant)]
    except ValueError:
        return Gateway(())
    # Chains may be listed in any order, the rules of one not.
    return meant if sorted(found, key=_chain) == sorted(expected, key=_chain) else Gateway(())


def _named(prefix: str, found: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(comment.removeprefix(prefix) for _, comment in found if comment.startswith(prefix))


def _chain(place: tuple[str, str]) -> str:
    return place[0]


def _rules(bridge: str, wanted: Gateway) -> list[tuple[str, str, list[Json]]]:
    """Chain, comment and expressions, in order."""
    to_bridge, off_bridge = _match(_meta("oifname"), bridge), _match(_meta("oifname"), bridge, "!=")
    # A frame that the bridge sends on has no input device at the postrouting hook; a packet of the host's own neither.
    routed = [to_bridge, _match(_meta("iif"), 0, "!="), _match(_meta("iifname"), bridge, "!=")]
    own = [to_bridge, _match({"fib": {"result": "type", "flags": ["saddr"]}}, "local")]
    going_out = [_match(_meta("iifname"), bridge), off_bridge]
    count, masquerade = {"counter": None}, {"masquerade": {"flags": "fully-random"}}
    rules: list[tuple[str, str, list[Json]]] = [
        (_FORWARD, _ASKED, [_match({"ct": {"key": "state"}}, ["established", "related"], "in"), {"accept": None}]),
        (_FORWARD, "weft redirected", [_match({"ct": {"key": "status"}}, "dnat", "in"), {"accept": None}]),
    ]
    for network in wanted.networks:
        source_within, source_without = _address("saddr", network, "=="), _address("saddr", network, "!=")
        within, without = _address("daddr", network, "=="), _address("daddr", network, "!=")
        unasked = [_match(_meta("iifname"), bridge, "!="), to_bridge, within, count, {"drop": None}]
        rules += [
            (_FORWARD, f"weft unasked into {network}", unasked),
            (_POSTROUTING, f"{_MASQUERADE}{network}", [off_bridge, source_within, without, count, masquerade]),
            (_POSTROUTING, f"weft masquerade into {network}", [*routed, source_without, within, count, masquerade]),
            (_POSTROUTING, f"weft masquerade host into {network}", [*own, source_without, within, count, masquerade]),
        ]
    exposed = sorted((*wanted.networks, *wanted.plain))
    for network in exposed:
        rules.append((_FORWARD, f"{_OUT}{network}", [*going_out, _address("saddr", network, "=="), {"accept": None}]))
    for version in sorted({ip_network(network).version for network in exposed}):
        family = _match(_meta("nfproto"), f"ipv{version}")
        rules.append((_FORWARD, f"weft from nowhere ipv{version}", [*going_out, family, count, {"drop": None}]))
    return rules


def _address(field: str, network: str, op: str) -> Json:
    parsed = ip_network(network)
    payload = {"payload": {"protocol": "ip" if parsed.version == 4 else "ip6", "field": field}}
    prefix = {"prefix": {"addr": str(parsed.network_address), "len": parsed.prefixlen}}
    return _match(payload, prefix if parsed.prefixlen < parsed.max_prefixlen else prefix["prefix"]["addr"], op)


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _match(left: Json, right: object, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}
