"""The daemon's door parses: every request comes out typed, or not at all."""

from __future__ import annotations

import json
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import arguments, requests
from mesh.ipam.wants import Claim, FromSubnet
from mesh.requests import ApiError


def ask(verb: str, **args: Any) -> Any:
    return requests.parse_request(json.dumps({"verb": verb, "args": args}).encode())[1]


@pytest.mark.parametrize("verb", requests.READS)
def test_a_read_needs_no_arguments(verb: str) -> None:
    assert requests.parse_request(json.dumps({"verb": verb}).encode()) == (verb, requests.Read(verb))


def test_an_attach_is_parsed_into_addresses_labels_and_names() -> None:
    request = ask(
        "attach",
        target="c1",
        addresses=["ip:10.0.0.1/24", "fd00::1/64"],
        labels={"b": "2", "a": "1"},
        names=["Web.", "web"],
    )
    assert request == requests.Attach(
        target="c1",
        addresses=(Claim(ip_interface("10.0.0.1/24")), Claim(ip_interface("fd00::1/64"))),
        network="weft",
        labels=(("a", "1"), ("b", "2")),
        names=("web",),
    )


def test_a_detach_without_addresses_means_all() -> None:
    assert ask("detach", target="c1") == requests.Detach("c1", ())


def test_expose_masquerades_and_hide_without_addresses_means_all() -> None:
    assert ask("expose", addresses=["ip:10.0.0.1/24"]) == requests.Expose((Claim(ip_interface("10.0.0.1/24")),), True)
    assert ask("expose", masquerade=False) == requests.Expose((), False)
    assert ask("hide") == requests.Hide(())


def test_an_attach_may_ask_for_any_address() -> None:
    assert ask("attach", target="c1").addresses == ()
    asked = ask("attach", target="c1", addresses=["net:default", "10.0.0.1/24", "net:fd00::/64"]).addresses
    assert asked == (FromSubnet(None), Claim(ip_interface("10.0.0.1/24")), FromSubnet(ip_network("fd00::/64")))


def test_the_verbs_about_given_addresses() -> None:
    assert (ask("prime"), ask("prime", timeout_s=5)) == (requests.Prime(None), requests.Prime(5.0))
    assert ask("rmpeer", peers=["h2", "h3", "h2"]) == requests.RemovePeers(("h2", "h3"), False)
    assert ask("ipam-join", ring="AB", force=True) == requests.IpamJoin("ab", True)
    assert (ask("ipam-join"), ask("ipam-export")) == (requests.IpamJoin(None, False), requests.IpamExport())
    assert ask("ipam-import", document={"a": 1}) == requests.IpamImport({"a": 1}, False)
    assert ask("ipam-check", repair=True) == requests.IpamCheck(True)


def test_peers_are_written_in_one_way_and_once() -> None:
    assert ask("connect", peers=["HOST2", "host2"], replace=True) == requests.Connect(("host2",), True)
    assert ask("forget", peers=["[fd00::1]"]) == requests.Forget(("fd00::1",))


def test_ping_has_defaults_and_stop_and_reset_have_nothing() -> None:
    assert ask("ping", peer="host2") == requests.Ping("host2", 5, 1.0)
    assert ask("ping", peer="host2", count=1, interval_s=1) == requests.Ping("host2", 1, 1.0)
    assert (ask("stop"), ask("reset")) == (requests.Stop(), requests.Reset())


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("status", {"x": 1}),
        ("connect", {}),
        ("connect", {"peers": []}),
        ("connect", {"peers": "host2"}),
        ("connect", {"peers": [1]}),
        ("connect", {"peers": ["a b"]}),
        ("connect", {"peers": ["a"], "replace": 1}),
        ("connect", {"peers": [f"h{n}" for n in range(arguments.PEERS_MAX + 1)]}),
        ("attach", {"addresses": ["10.0.0.1/24"]}),
        ("attach", {"target": "c1", "addresses": ["net:default"] * 2}),
        ("attach", {"target": "c1", "addresses": ["net:10.0.0.1/24"]}),
        ("detach", {"target": "c1", "addresses": ["net:default"]}),
        ("hide", {"addresses": ["net:10.0.0.0/24"]}),
        ("prime", {"timeout_s": "1"}),
        ("prime", {"timeout_s": -1}),
        ("prime", {"timeout_s": True}),
        ("rmpeer", {}),
        ("rmpeer", {"peers": []}),
        ("rmpeer", {"peers": ["a\nb"]}),
        ("rmpeer", {"peers": ["a"], "force": 1}),
        ("ipam-join", {"ring": "xy"}),
        ("ipam-join", {"ring": 5}),
        ("ipam-export", {"x": 1}),
        ("ipam-import", {}),
        ("ipam-import", {"document": []}),
        ("ipam-check", {"repair": "yes"}),
        ("attach", {"target": 7, "addresses": ["10.0.0.1/24"]}),
        ("attach", {"target": "c1\n", "addresses": ["10.0.0.1/24"]}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1"]}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "labels": [["a", "b"]]}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "labels": {"a": 1}}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "labels": {f"k{n}": "" for n in range(17)}}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "names": ["n"] * 9}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "names": None}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "network": "blue"}),
        ("attach", {"target": "c1", "addresses": ["10.0.0.1/24"], "allow_mac": True}),
        ("detach", {"target": "c1", "addresses": ["10.0.0.1/24"] * 2}),
        ("expose", {"addresses": ["10.0.0.1"]}),
        ("expose", {"addresses": ["10.0.0.1/24"], "masquerade": "no"}),
        ("expose", {"target": "c1"}),
        ("hide", {"addresses": "10.0.0.1/24"}),
        ("hide", {"masquerade": True}),
        ("ping", {"peer": "h", "count": 0}),
        ("ping", {"peer": "h", "count": True}),
        ("ping", {"peer": "h", "count": 1.5}),
        ("ping", {"peer": "h", "count": requests.PING_COUNT_MAX + 1}),
        ("ping", {"peer": "h", "interval_s": 0}),
        ("ping", {"peer": "h", "interval_s": 61}),
        ("ping", {"peer": "h", "interval_s": "1"}),
        ("ping", {"peer": ""}),
        ("stop", {"now": True}),
    ],
)
def test_what_does_not_fit_is_a_bad_request(verb: str, args: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        ask(verb, **args)
    assert caught.value.code == "bad-request"
    assert str(caught.value).startswith(verb)


def test_an_unknown_verb_has_its_own_code() -> None:
    with pytest.raises(ApiError) as caught:
        ask("dns-sub")
    assert caught.value.code == "unknown-verb"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{\n",
        b"[]\n",
        b"7\n",
        b'"status"\n',
        b"{}\n",
        b'{"verb": 1}\n',
        b'{"verb": ["status"]}\n',
        b'{"verb": "status", "args": []}\n',
        b'{"verb": "status", "args": null}\n',
        b'{"verb": "status", "more": 1}\n',
        b'{"verb": "ping", "args": {"peer": "a", "interval_s": NaN}}\n',
        b'{"verb": "ping", "args": {"peer": "a", "interval_s": 1e999}}\n',
        b'{"verb": "ping", "args": {"peer": "a", "count": ' + b"9" * 5000 + b"}}\n",
        b'{"verb": "ping", "args": {"peer": "\\ud800"}}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b'{"verb": "status", "args": ' + b'{"a": ' * 10_000 + b"\n",
    ],
)
def test_garbage_is_a_bad_request(line: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        requests.parse_request(line)
    assert caught.value.code == "bad-request"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
IPAM = ("prime", "rmpeer", "ipam-join", "ipam-export", "ipam-import", "ipam-check")
KEYS = (
    "timeout_s", "force", "ring", "document", "repair",
    "target", "addresses", "network", "labels", "names", "peers", "replace", "peer", "count", "interval_s",
)  # fmt: skip


@given(
    st.sampled_from((*requests.READS, "connect", "forget", "attach", "detach", "ping", *IPAM, "stop", "reset")),
    st.data(),
)
def test_no_arguments_whatever_get_past_as_anything_but_a_request(verb: str, data: st.DataObject) -> None:
    args = data.draw(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
    try:
        parsed, request = requests.parse_request(json.dumps({"verb": verb, "args": args}).encode())
    except ApiError as error:
        assert error.code == "bad-request"
    else:
        assert parsed == verb
        assert isinstance(request, requests.Request)
