"""What is made of a firewall's listing: which chain drops our frames, which one lets VXLAN in, what is ours."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import ADD, DELETE, KernelError, Operation
from dataplane.linux import firewall as firewall_module
from dataplane.linux.firewall import (
    MARK,
    Firewall,
    NftError,
    accept,
    guard,
    guard_of,
    run_nft,
)
from dataplane.linux.netlink import text
from dataplane.linux.verdicts import judge_forward, judge_input
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
)

ACCEPT_ALL = {"accept": None}
DROP = {"drop": None}
COUNTER = {"counter": {"packets": 1, "bytes": 2}}


def chain(policy: str = "accept", hook: str = "forward", family: str = "inet") -> dict[str, Any]:
    return {"family": family, "table": "fw", "name": "c", "hook": hook, "policy": policy, "type": "filter"}


def rule(*expr: dict[str, Any], family: str = "inet", comment: str = "") -> dict[str, Any]:
    return {"family": family, "table": "fw", "chain": "c", "comment": comment, "expr": list(expr)}


def match(key: str, right: object) -> dict[str, Any]:
    left = {"payload": {"protocol": "udp", "field": "dport"}} if key == "dport" else {"meta": {"key": key}}
    return {"match": {"op": "==", "left": left, "right": right}}


@pytest.mark.parametrize(
    ("policy", "rules", "drops"),
    [
        ("accept", [], False),
        ("drop", [], True),
        ("accept", [rule(DROP)], True),
        ("accept", [rule(COUNTER, {"log": None}, {"reject": None})], True),
        ("accept", [rule(match("iifname", "eth7"), DROP)], False),
        ("accept", [rule(ACCEPT_ALL), rule(DROP)], False),
        ("drop", [rule(ACCEPT_ALL)], False),
        ("drop", [rule(match("iifname", "docker0"), ACCEPT_ALL)], True),
        ("drop", [rule(match("iifname", "weft"), match("oifname", "weft"), COUNTER, ACCEPT_ALL)], False),
        ("drop", [rule(match("iifname", "weft"), ACCEPT_ALL)], False),
        ("drop", [rule(match("iifname", "weft"), match("dport", 53), ACCEPT_ALL)], True),
        ("drop", [rule(DROP), rule(match("iifname", "weft"), ACCEPT_ALL)], True),
        ("drop", [rule(match("iifname", "weft"), ACCEPT_ALL, family="ip")], True),
    ],
)
def test_a_forward_chain_is_judged_by_its_rules_in_order(policy: str, rules: list[Any], drops: bool) -> None:
    """What is accepted before the drop passes; a rule for something else helps nobody."""
    warning = judge_forward(chain(policy), rules, "weft", frozenset({BETWEEN}))
    assert (warning is not None) is drops
    if warning is not None:
        assert "inet fw c" in warning.text
        assert warning.cure == 'nft insert rule inet fw c iifname "weft" oifname "weft" accept'


BRIDGE_IN, BRIDGE_OUT = match("iifname", "weft"), match("oifname", "weft")
ANSWERS = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
NEW = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}
CURE = "nft insert rule inet fw c"


@pytest.mark.parametrize(
    ("rules", "text", "cure"),
    [
        ([], "drops frames between containers on weft, and between them and the outside",
         f'{CURE} iifname "weft" accept && {CURE} oifname "weft" ct state established,related accept'),
        ([rule(BRIDGE_IN, BRIDGE_OUT, ACCEPT_ALL)], "drops packets between containers on weft and the outside",
         f'{CURE} iifname "weft" accept && {CURE} oifname "weft" ct state established,related accept'),
        ([rule(BRIDGE_IN, ACCEPT_ALL)], "drops packets between containers on weft and the outside",
         f'{CURE} oifname "weft" ct state established,related accept'),
        ([rule(ANSWERS, ACCEPT_ALL), rule(BRIDGE_IN, BRIDGE_OUT, ACCEPT_ALL)], "and the outside",
         f'{CURE} iifname "weft" accept'),
        ([rule(BRIDGE_OUT, NEW, ACCEPT_ALL), rule(BRIDGE_IN, ACCEPT_ALL)], "and the outside",
         f'{CURE} oifname "weft" ct state established,related accept'),
        ([rule(BRIDGE_IN, ANSWERS, ACCEPT_ALL), rule(BRIDGE_OUT, ACCEPT_ALL)], "and the outside",
         f'{CURE} iifname "weft" accept'),
        ([rule(BRIDGE_IN, ACCEPT_ALL), rule(BRIDGE_OUT, ANSWERS, ACCEPT_ALL)], "", ""),
        ([rule(BRIDGE_IN, ACCEPT_ALL), rule(ANSWERS, ACCEPT_ALL)], "", ""),
        ([rule(BRIDGE_IN, ACCEPT_ALL), rule(BRIDGE_OUT, ACCEPT_ALL)], "", ""),
    ],
)  # fmt: skip
def test_where_containers_go_out_a_chain_is_judged_by_that_too(rules: list[Any], text: str, cure: str) -> None:
    """Out, and the answers back; the cure opens what is closed and no more."""
    warning = judge_forward(chain("drop"), rules, "weft", frozenset({BETWEEN, OUT, IN}))
    assert (warning.cure if warning else "") == cure
    assert text in (warning.text if warning else "")


def test_firewalld_is_content_with_a_bridge_that_has_a_zone() -> None:
    """Named in a rule or in a map, in any chain of its table; in somebody else's it does not count."""
    forward = {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}
    reject = {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": [{"reject": None}]}
    ways = frozenset({BETWEEN})

    def said(*more: dict[str, Any]) -> bool:
        warning = judge_forward(forward, [reject, *more], "weft", ways)
        return warning is not None and "firewall-cmd" in warning.cure

    zone = {"family": "inet", "table": "firewalld", "chain": "zones", "expr": [BRIDGE_IN, {"goto": {"target": "z"}}]}
    vmap = {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["weft", {"goto": {"target": "z"}}]]}}}
    assert said() and said({**zone, "table": "fw"}) and said({**zone, "expr": [match("iifname", "weft0")]})
    assert not said(zone) and not said({**zone, "expr": [vmap]})


@pytest.mark.parametrize(
    ("policy", "rules", "hinted"),
    [
        ("accept", [], False),
        ("drop", [], True),
        ("drop", [rule(match("dport", 22), ACCEPT_ALL)], True),
        ("drop", [rule(match("dport", 6784), ACCEPT_ALL)], False),
        ("drop", [rule(match("dport", {"set": [53, {"range": [6000, 7000]}]}), ACCEPT_ALL)], False),
        ("drop", [rule(match("dport", {"range": [1, 100]}), ACCEPT_ALL)], True),
        ("drop", [rule(match("dport", 6784), DROP)], True),
        ("drop", [rule({"jump": {"target": "allowed"}})], False),
        ("accept", [rule({"reject": {"type": "icmpx"}})], True),
        ("drop", [rule(ACCEPT_ALL)], False),
    ],
)
def test_an_input_chain_is_hinted_at_only_where_nothing_lets_vxlan_in(
    policy: str, rules: list[Any], hinted: bool
) -> None:
    """A hint that is often wrong would be ignored, so a jump is taken for a yes."""
    warning = judge_input(chain(policy, "input"), rules, 6784)
    assert (warning is not None) is hinted
    assert judge_input(chain(policy, "input"), rules, None) is None
    assert judge_input(chain(policy, "input", "bridge"), rules, 6784) is None
    over_ipv6 = [{**each, "family": "ip6"} for each in rules]
    assert judge_input(chain(policy, "input", "ip6"), over_ipv6, 6784) is None, "nobody is reached over IPv6"
    assert (judge_input(chain(policy, "input", "ip6"), over_ipv6, 6784, ipv6=True) is not None) is hinted


def test_a_guard_is_known_by_its_comments_and_by_the_device_it_is_hooked_to() -> None:
    """A chain outlives its device; one for the device before is none. That of a VXLAN device has one rule more."""

    def rules_of(wanted: Guard) -> list[Any]:
        return [each["add"]["rule"] for each in guard("weft-vx", 7, wanted) if "rule" in each.get("add", {})]

    noting = Guard((*GUARD_RULES, ACTIVE_RULE))
    assert guard_of("weft-vx", 7, rules_of(noting)) == noting
    rules = rules_of(Guard(GUARD_RULES))
    assert guard_of("weft-vx", 7, rules) == Guard(GUARD_RULES)
    assert guard_of("weft-vx", 8, rules) == guard_of("weft-vx", 7, []) == UNHOOKED
    assert guard_of("weft-vx", 7, rules[1:]) == UNHOOKED
    assert guard_of("weft-vx", 7, rules[:2]) == Guard(GUARD_RULES[:2])


def test_the_accept_rule_is_built_as_iptables_builds_it() -> None:
    """Input name, output name, counter, verdict: then iptables can still read the chain."""
    made = accept("weft", ("ip", "filter", "FORWARD"))["insert"]["rule"]
    assert made["comment"] == MARK
    assert [next(iter(part)) for part in made["expr"]] == ["match", "match", "counter", "accept"]


def test_an_accept_for_what_goes_out_or_comes_in_looks_at_one_name_only() -> None:
    """Nothing that iptables could not read, or Docker could not either; what must stay out another table keeps out."""
    for way, key in ((OUT, "iifname"), (IN, "oifname")):
        made = accept("weft", ("ip6", "filter", "FORWARD"), way)["insert"]["rule"]
        assert made["comment"] == MARK + way.decode() and made["family"] == "ip6"
        assert made["expr"] == [match(key, "weft"), {"counter": None}, ACCEPT_ALL]


class Nft:
    """A firewall made of canned answers."""

    def __init__(self, chains: list[Any], rules: list[Any]) -> None:
        self.chains, self.rules = chains, rules
        self.commands: list[Any] = []

    def __call__(self, commands: str) -> str:
        asked = json.loads(commands)["nftables"]
        self.commands += asked
        answers = []
        for command in asked:
            if "chains" in command.get("list", {}):
                answers.append(json.dumps({"nftables": [{"chain": each} for each in self.chains]}))
            elif "chain" in command.get("list", {}):
                family, name = command["list"]["chain"]["family"], command["list"]["chain"]["name"]
                mine = [each for each in self.rules if (each["family"], each["chain"]) == (family, name)]
                answers.append(json.dumps({"nftables": [{"metainfo": {}}, *({"rule": each} for each in mine)]}))
        return "\n".join(answers)


def test_only_chains_at_the_forward_and_input_hooks_are_asked_for_their_rules() -> None:
    """A host may have tens of thousands of rules elsewhere."""
    nft = Nft([chain(), chain(hook="prerouting"), chain(hook="input")], [])
    assert Firewall(nft).listing("weft", {"weft-vx": 7}, 6784) == {}
    assert len([command for command in nft.commands if "chain" in command["list"]]) == 2


def test_a_guard_goes_alone_and_the_last_one_takes_the_table_along() -> None:
    """Chains of the same name in other families are not counted."""
    names = ("guard-weft-vx", "guard-weft-tap")
    chains = [{"family": "netdev", "table": "weft", "name": name} for name in names]
    for left, deleted in (
        (chains, "chain"),
        (chains[1:], "table"),
        ([*chains[1:], {**chain(), "table": "weft"}], "table"),
    ):
        nft = Nft(left, [])
        Firewall(nft).apply(Operation(DELETE, Key(GUARD, "weft-tap"), None, Guard(GUARD_RULES)), 0)
        what, *rest = [command["delete"] for command in nft.commands if "delete" in command]
        assert [list(each) for each in rest] == ([["set"]] if deleted == "chain" else [])
        assert list(what) == [deleted] and (deleted == "table" or what["chain"]["name"] == "guard-weft-tap")


def test_an_nft_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that fails passes on the first line of what it said."""
    nft = tmp_path / "nft"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(firewall_module, "NFT_TIMEOUT_S", 0.2)
    for script, said in (("exec sleep 30", "did not answer within"), ("echo one >&2; echo two >&2; exit 1", "^one$"),
                         ("exit 1", "without a word")):  # fmt: skip
        nft.write_text(f"#!/bin/sh\n{script}\n")
        nft.chmod(0o755)
        with pytest.raises(NftError, match=said):
            run_nft("{}")
    nft.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        run_nft("{}")


def message(kind: int, family: int = 1, table: str = "fw", chain: str = "c") -> bytes:
    payload = struct.pack("=BBH", family, 0, 0) + text(1, table) + text(2, chain)
    return struct.pack("=IHHII", 16 + len(payload), (10 << 8) | kind, 0, 0, 0) + payload


def test_only_changes_that_can_matter_lead_to_a_new_look() -> None:
    """Chains, and rules in chains that were looked at: elements and other rules come by the thousand on some hosts."""
    new_table, new_chain, del_chain, new_rule, del_rule, new_element, new_generation = 0, 3, 5, 6, 8, 12, 15
    firewall = Firewall(Nft([chain()], []))
    assert not firewall.is_concerned(message(new_rule))
    firewall.listing("weft", {}, None)
    for kind in (new_table, new_chain, del_chain, new_rule, del_rule):
        assert firewall.is_concerned(message(kind))
        assert firewall.is_concerned(message(new_element) + message(kind))
    for other in (message(new_element), message(new_generation), message(new_rule, family=2),
                  message(new_rule, table="other"), message(del_rule, chain="other")):  # fmt: skip
        assert not firewall.is_concerned(other)


def test_a_listing_that_fails_is_a_warning_and_nothing_is_asked_for() -> None:
    """An nft without JSON, say: the overlay works without it."""

    def broken(commands: str) -> str:
        raise NftError("Error: JSON support not compiled-in")

    firewall = Firewall(broken)
    assert firewall.listing("weft", {"weft-vx": 7}, 6784) == {Key(GUARD, "weft-vx"): Unavailable("firewall-unknown")}
    assert [warning.code for warning in firewall.warnings] == ["firewall-unknown"]
    assert "JSON support not compiled-in" in firewall.warnings[0].text


def test_a_refused_rule_and_a_missing_hook_are_warnings_until_they_are_accepted() -> None:
    """Everything works without them, with more broadcast."""
    refusal = ["Error: Could not process rule: Operation not supported"]

    def nft(commands: str) -> str:
        if refusal:
            raise NftError(refusal[0])
        return ""

    firewall = Firewall(nft)
    put_guard = Operation(ADD, Key(GUARD, "weft-vx"), Guard(GUARD_RULES))
    put_accept = Operation(ADD, Key(ACCEPT, "weft", b"ip"), True)
    firewall.apply(put_accept, 0)
    firewall.apply(put_guard, 7)
    assert [warning.code for warning in firewall.warnings] == ["no-egress-hook", "rule-refused"]
    assert "accept rule in ip filter FORWARD" in firewall.warnings[1].text
    refusal.clear()
    firewall.apply(put_accept, 0)
    assert [warning.code for warning in firewall.warnings] == ["no-egress-hook"]


def test_a_loss_of_ours_is_told_from_everything_else() -> None:
    """It is looked after sooner. Whose table it was is all that a message of a deletion says of it."""
    del_table, del_chain, del_rule, new_rule = 2, 5, 8, 6
    for kind in (del_table, del_chain, del_rule):
        assert Firewall.is_lost(message(new_rule) + message(kind, table="weft"))
        assert not Firewall.is_lost(message(kind)) and not Firewall.is_lost(message(kind, table="weft2"))
    assert not Firewall.is_lost(message(new_rule, table="weft"))


def test_masquerade_rules_that_cannot_be_set_are_a_fault_and_no_warning() -> None:
    """Without them nothing may be forwarded. Removing them where there is no nft is no fault."""
    add = Operation(ADD, Key(GATEWAY, "weft"), Gateway(("10.32.0.0/16",)))
    remove = Operation(DELETE, Key(GATEWAY, "weft"), None, Gateway(()))

    def broken(commands: str) -> str:
        raise NftError("Error: No such file or directory")

    def missing(commands: str) -> str:
        raise FileNotFoundError("nft")

    for run, says in ((broken, "No such file"), (missing, "install the package nftables")):
        firewall = Firewall(run)
        with pytest.raises(KernelError, match=says) as caught:
            firewall.apply(add, 0)
        assert caught.value.operation is add and firewall.warnings == ()
        firewall.apply(remove, 0)


def test_accepts_for_routed_packets_are_listed_also_where_bridged_frames_are_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They pass these chains whatever br_netfilter does."""
    monkeypatch.setattr(firewall_module, "_is_on", lambda sysctl: False)
    forward = {**chain("drop", family="ip"), "table": "filter", "name": "FORWARD"}
    found = Firewall(Nft([forward], [])).listing("weft", {}, None, frozenset({b"ip"}))
    assert found == {Key(ACCEPT, "weft", b"ip out"): False, Key(ACCEPT, "weft", b"ip in"): False}
