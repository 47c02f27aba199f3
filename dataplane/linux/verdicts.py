"""What other firewalls on this host do to the overlay's packets, judged by what they list, with a cure for a drop.

Judges only: JSON of `nft` in, warnings out; it changes nothing and knows nothing of our own rules. The one idea: a
chain is read from the top, as the kernel does, as far as it can be read at a glance. Rules about other things are
passed over, jumps are not followed, and what then remains of the ways that packets of ours must be able to take
(between containers, to the outside, back from there) is what is dropped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.kernel import Warning
from dataplane.objects import BETWEEN, IN, OUT

Json = dict[str, Any]

COMMAND_TIMEOUT_S: Final = 10.0
FIREWALLD: Final = ("inet", "firewalld", "filter_FORWARD")
_FIREWALLD_CURE: Final = "firewall-cmd --permanent --zone=trusted --add-interface={0} && firewall-cmd --reload"
_INPUT_NAMES: Final = frozenset({"iifname", "iif", "ibrname"})
_OUTPUT_NAMES: Final = frozenset({"oifname", "oif", "obrname"})
_LEGACY_TABLES: Final = {
    "ip_tables_names": ("iptables-legacy", b"ip"),
    "ip6_tables_names": ("ip6tables-legacy", b"ip6"),
}
_ANSWERS: Final = "ct state established,related"


def judge_forward(chain: Json, rules: Sequence[Json], bridge: str, ways: frozenset[bytes]) -> Warning | None:
    """Which of these ways of our packets a forward chain drops, as far as can be seen."""
    left = set(ways)
    drops = chain.get("policy") == "drop"
    for rule in rules:
        if not is_in(rule, chain):
            continue
        left -= _ways_passed(rule, bridge)
        if verdict := _unconditional(rule):
            drops = verdict != "accept"
            break
    if not drops or not left:
        return None
    family, table, name = triple(chain)
    text = f"the firewall chain {family} {table} {name} {_what_is_dropped(left, bridge)}"
    if triple(chain) == FIREWALLD:
        if any(_names(rule, bridge) for rule in rules if (rule["family"], rule["table"]) == FIREWALLD[:2]):
            return None  # the bridge was given a zone, and what may pass is that zone's matter
        return Warning("forward-drop", text, _FIREWALLD_CURE.format(bridge))
    input_name, output_name = ("meta ibrname", "meta obrname") if family == "bridge" else ("iifname", "oifname")
    matches = {
        BETWEEN: f'{input_name} "{bridge}" {output_name} "{bridge}"',
        OUT: f'{input_name} "{bridge}"',
        IN: f'{output_name} "{bridge}" {_ANSWERS}',
    }
    cures = [f"nft insert rule {family} {table} {name} {matches[way]} accept" for way in _worth_naming(left)]
    return Warning("forward-drop", text, " && ".join(cures))


def judge_input(chain: Json, rules: Sequence[Json], port: int | None) -> Warning | None:
    """A hint where an input chain drops by default and nothing in it obviously lets VXLAN in."""
    if port is None or chain.get("hook") != "input" or chain.get("family") not in ("ip", "inet"):
        return None
    mine = [rule for rule in rules if is_in(rule, chain)]
    verdicts = [verdict for rule in mine if (verdict := _unconditional(rule))]
    drops = verdicts[0] != "accept" if verdicts else chain.get("policy") == "drop"
    # A jump may lead to an accept that is not looked for; a hint that is often wrong would be ignored.
    if not drops or any(_lets_in(rule, port) or _jumps(rule) for rule in mine):
        return None
    family, table, name = triple(chain)
    return Warning(
        "input-drop",
        f"the firewall chain {family} {table} {name} drops by default, and no rule there accepts UDP port {port}",
        f"nft insert rule {family} {table} {name} udp dport {port} accept",
    )


def judge_legacy(bridge: str, routed: frozenset[bytes]) -> list[Warning]:
    """iptables-legacy keeps its chains where nft cannot see them."""
    found = []
    for listing, (command, family) in _LEGACY_TABLES.items():
        try:
            names = Path("/proc/thread-self/net", listing).read_text().split()
        except OSError:
            continue
        if "filter" not in names or shutil.which(command) is None:
            continue
        done = subprocess.run([command, "-S", "FORWARD"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        lines = done.stdout.splitlines()
        left = {BETWEEN, OUT, IN} if family in routed else {BETWEEN}
        for line in lines:
            if line.endswith("ACCEPT") and (f"-i {bridge} " in line or f"-o {bridge} " in line):
                left -= _ways(f"-i {bridge} " in line, f"-o {bridge} " in line, "ESTABLISHED" in line)
        if "-P FORWARD DROP" in lines and left:
            matches = {
                BETWEEN: f"-i {bridge} -o {bridge}",
                OUT: f"-i {bridge}",
                IN: f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED",
            }
            cures = [f"{command} -I FORWARD {matches[way]} -j ACCEPT" for way in _worth_naming(left)]
            text = f"the FORWARD chain of {command} {_what_is_dropped(left, bridge)}"
            found.append(Warning("forward-drop", text, " && ".join(cures)))
    return found


def _what_is_dropped(ways: set[bytes], bridge: str) -> str:
    if BETWEEN not in ways:
        return f"drops packets between containers on {bridge} and the outside"
    beyond = ", and between them and the outside" if len(ways) > 1 else ""
    return f"drops frames between containers on {bridge}{beyond}"


def _worth_naming(ways: set[bytes]) -> list[bytes]:
    """In order; what lets packets out lets them go between containers too."""
    return [way for way in (BETWEEN, OUT, IN) if way in ways and not (way == BETWEEN and OUT in ways)]


def _ways_passed(rule: Json, bridge: str) -> frozenset[bytes]:
    """The ways that a rule opens to all that goes them: it accepts, and looks at nothing but our bridge's name and
    whether a packet is an answer."""
    expr = rule.get("expr", ())
    matches = [part["match"] for part in expr if "match" in part]
    if not matches or {"accept": None} not in expr:
        return frozenset()
    answers = [match for match in matches if _is_of_answers(match)]
    keys = {_meta_key(match) for match in matches if match not in answers and match.get("right") == bridge}
    if not keys <= _INPUT_NAMES | _OUTPUT_NAMES or len(keys) + len(answers) != len(matches):
        return frozenset()
    return _ways(bool(keys & _INPUT_NAMES), bool(keys & _OUTPUT_NAMES), bool(answers))


def _ways(from_bridge: bool, to_bridge: bool, answers_only: bool) -> frozenset[bytes]:
    """What is opened by accepting what comes from the bridge, goes to it, or both; or only the answers of that."""
    if answers_only:
        return frozenset() if from_bridge else frozenset({IN})
    if from_bridge and to_bridge:
        return frozenset({BETWEEN})
    return frozenset({BETWEEN, OUT if from_bridge else IN})


def _meta_key(match: Json) -> str:
    left = match["left"]
    return str(left.get("meta", {}).get("key")) if match.get("op") == "==" and isinstance(left, dict) else ""


def _is_of_answers(match: Json) -> bool:
    left, right = match["left"], match["right"]
    is_state = isinstance(left, dict) and left.get("ct", {}).get("key") == "state"
    states = right.get("set", ()) if isinstance(right, dict) else right
    return is_state and match.get("op") in ("in", "==") and "established" in states


def _names(rule: Json, bridge: str) -> bool:
    """Whether a rule says the bridge's name anywhere, in a map too."""

    def says(part: Any) -> bool:
        if isinstance(part, dict):
            return any(map(says, part.values()))
        return any(map(says, part)) if isinstance(part, list) else bool(part == bridge)

    return says(rule.get("expr", []))


def triple(chain: Json) -> tuple[str, str, str]:
    return chain["family"], chain["table"], chain["name"]


def place(chain: Json) -> Json:
    return {"family": chain["family"], "table": chain["table"], "chain": chain["name"]}


def is_in(rule: Json, chain: Json) -> bool:
    return all(rule.get(key) == value for key, value in place(chain).items())


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
