"""Words of the command and what the daemon takes: names, domains, upstreams."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from mesh import render
from mesh.dns import words
from mesh.dns.words import DnsChange, DnsLookup


def test_domains_and_upstreams() -> None:
    assert words.parse_domain("Weft.Local.") == "weft.local"
    assert words.parse_upstream("10.0.0.2") == ("10.0.0.2", 53)
    assert words.parse_upstream("[fd00::2]:5353") == ("fd00::2", 5353)
    for wrong in ("in-addr.arpa", "localhost", "a..b", ""):
        with pytest.raises(ValueError):
            words.parse_domain(wrong)
    for wrong in ("dns.example", "10.0.0.2:0", ""):
        with pytest.raises(ValueError):
            words.parse_upstream(wrong)


def test_a_change_from_words_to_request() -> None:
    """Addresses in any spelling, or one target."""
    asked = words.change_words("dns-add", ["10.0.0.1/8", "ip:fd00::1"], ["Web", "www"])
    expected = DnsChange(True, ("web", "www"), (ip_address("10.0.0.1"), ip_address("fd00::1")), None)
    assert words.parse_change("dns-add", asked) == expected and asked == {}
    asked = words.change_words("dns-remove", ["c1"], ["web"])
    assert words.parse_change("dns-remove", asked) == DnsChange(False, ("web",), (), "c1")


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"names": ["web"]},
        {"names": "web", "target": "c1"},
        {"names": ["we b"], "target": "c1"},
        {"names": ["web"], "target": 7},
        {"names": ["web"], "target": "c1", "addresses": ["10.0.0.1"]},
        {"names": ["web"], "addresses": ["10.0.0"]},
        {"names": ["web"], "addresses": ["127.0.0.1"]},
        {"names": ["web"], "addresses": ["224.0.0.1"]},
        {"names": ["web"], "addresses": ["255.255.255.255"]},
        {"names": ["web"], "addresses": ["fe80::1%eth0"]},
        {"names": ["web"] * 65, "target": "c1"},
        {"names": ["a" * 64], "target": "c1"},
    ],
)
def test_names_that_are_no_names_and_other_nonsense(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        words.parse_change("dns-add", args)


def test_what_was_ever_added_can_be_taken_back() -> None:
    asked = {"names": ["web"], "addresses": ["fe80::1%eth0"]}
    assert words.parse_change("dns-remove", asked).addresses == (ip_address("fe80::1%eth0"),)


def test_a_lookup_is_of_a_name_or_an_address() -> None:
    assert words.parse_lookup("dns-lookup", {"name": "Web"}) == DnsLookup("web")
    assert words.parse_lookup("dns-lookup", {"name": "10.0.0.1"}) == DnsLookup("10.0.0.1")
    for wrong in ({}, {"name": 7}, {"name": "a b"}):
        with pytest.raises(ValueError):
            words.parse_lookup("dns-lookup", dict(wrong))


def test_status_shows_entries_and_what_to_do() -> None:
    """Nothing that others wrote steers the terminal."""
    answer = {
        "enabled": True, "domain": "weft.local.", "address": "169.254.6.53", "address6": "fe80::6:53", "names": 2,
        "own_names": 1, "upstreams": [], "upstreams_from": "/etc/resolv.conf", "counters": {"answered": 7, "loops": 0},
        "warnings": [{"code": "dns-no-upstream", "text": "no upstream is known", "cure": "name one"}], "more": 3,
        "entries": [{"name": "web.weft.local.", "address": "10.0.0.1", "local": False, "nickname": "h\x1b2"}],
    }  # fmt: skip
    text = render.dns(answer)
    for shown in ("7 answered", "none: only our own names", "cure: name one", "web.weft.local.", "h?2", "and 3 more"):
        assert shown in text
    assert "\x1b" not in text and "loops" not in text
    assert "--no-dns" in render.dns({"enabled": False})
    assert words.lookup_text({"addresses": ["10.0.0.1", "fd00::1"]}) == "10.0.0.1\nfd00::1"
