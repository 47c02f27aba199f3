"""The table `inet weft`: how it is put in place, and that what `nft` lists of it is known again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.linux.gateway import gateway, gateway_of, remove_gateway
from dataplane.objects import Gateway

WANTED = Gateway(("10.32.0.0/16", "fd00:32::/64"), ("10.40.0.0/16",))


def rules(commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [command["add"]["rule"] for command in commands if "rule" in command.get("add", {})]


def test_the_table_is_replaced_in_one_transaction() -> None:
    """Made where it is missing, so that it can be deleted, and then made anew."""
    commands = gateway("weft", WANTED)
    assert [next(iter(command)) for command in commands[:3]] == ["add", "delete", "add"]
    assert all("table" in command[next(iter(command))] for command in commands[:3])
    assert remove_gateway() == {"delete": {"table": {"family": "inet", "name": "weft"}}}


def test_source_ports_are_fully_random_and_every_rule_has_a_comment_of_its_own() -> None:
    """Random ports, or two connections of containers may be taken for one on a busy host."""
    made = rules(gateway("weft", WANTED))
    masquerades = [part for rule in made for part in rule["expr"] if "masquerade" in part]
    assert masquerades == [{"masquerade": {"flags": "fully-random"}}] * 6
    assert len({rule["comment"] for rule in made}) == len(made)


@given(st.lists(st.ip_addresses(), max_size=6, unique=True), st.integers(0, 6))
def test_what_was_put_in_place_is_recognised(addresses: list[Any], masqueraded: int) -> None:
    """For any networks, each sort in its order."""
    networks = [f"{address}/{address.max_prefixlen}" for address in addresses]
    wanted = Gateway(tuple(sorted(networks[:masqueraded])), tuple(sorted(networks[masqueraded:])))
    assert gateway_of("weft", json.loads(json.dumps(rules(gateway("weft", wanted))))) == wanted


@pytest.mark.parametrize("lost", range(15))
def test_a_table_that_lacks_a_rule_is_not_what_is_wanted(lost: int) -> None:
    """Whichever it is."""
    made = rules(gateway("weft", WANTED))
    assert len(made) == 15
    assert gateway_of("weft", made[:lost] + made[lost + 1 :]) != WANTED


@pytest.mark.parametrize(
    "change",
    [
        lambda made: [*made, {**made[0], "comment": "something else"}],
        lambda made: [*made, {key: value for key, value in made[0].items() if key != "comment"}],
        lambda made: [made[1], made[0], *made[2:]],
        lambda made: [{**made[3], "comment": "weft masquerade out of nowhere"}, *made],
    ],
    ids=["another-rule", "one-without-comment", "another-order", "no-network"],
)
def test_a_table_that_was_changed_is_none(change: Any) -> None:
    """A rule too many, another order, a comment that is none of ours."""
    assert gateway_of("weft", change(rules(gateway("weft", WANTED)))) == Gateway(())


def test_rules_of_other_tables_do_not_count() -> None:
    """A listing has them all."""
    made = rules(gateway("weft", WANTED))
    foreign = [{**made[0], "table": "fw"}, {**made[0], "family": "netdev"}]
    assert gateway_of("weft", [*foreign, *made]) == WANTED
