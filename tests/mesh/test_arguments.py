"""The words a person may write: what is accepted, in which form it comes out, and what the refusals say."""

from __future__ import annotations

import pytest

from mesh import arguments


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("host2", "host2"),
        ("Host2.Example.ORG:6800", "host2.example.org:6800"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3:1", "10.1.2.3:1"),
        ("fd00::3", "fd00::3"),
        ("FD00:0:0::3", "fd00::3"),
        ("[fd00::3]", "fd00::3"),
        ("[fd00::3]:6783", "[fd00::3]:6783"),
        ("FE80::1%eth0", "fe80::1%eth0"),
        ("[fe80::1%eth0]:6783", "[fe80::1%eth0]:6783"),
        ("my_host-1", "my_host-1"),
        ("a." * 120 + "org", "a." * 120 + "org"),
    ],
)
def test_a_peer_is_written_in_one_way(text: str, written: str) -> None:
    assert arguments.parse_peer(text) == written
    assert arguments.parse_peer(written) == written


@pytest.mark.parametrize(
    "text",
    [
        "", ":6783", "host:", "host:0", "host:65536", "host:99999999999", "host:-1", "host:+1", "host: 1", "host:٣",
        "10.1.2.256", "10.1.2", "300", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "fe80::1",
        "[fe80::1]:6783", "[fd00::3", "[fd00::3]6783", "[fd00::3]:", "[host]:6783", "[]:6783", "fd00:::3", "1:2:3",
        "-host", "host-", "ho st", "host/24", "a..b", ".a", "a" * 64, "a." * 127 + "org", "hö", "host\n", "a\x00b",
    ],
)  # fmt: skip
def test_what_is_no_peer_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        arguments.parse_peer(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("10.32.1.5/24", "10.32.1.5/24"),
        ("ip:10.32.1.5/24", "10.32.1.5/24"),
        ("ip:fd00:32::5/64", "fd00:32::5/64"),
        ("FD00:32:0::5/64", "fd00:32::5/64"),
        ("10.0.0.0/31", "10.0.0.0/31"),
        ("10.0.0.1/32", "10.0.0.1/32"),
        ("fd00::/127", "fd00::/127"),
    ],
)
def test_an_address_keeps_its_length(text: str, written: str) -> None:
    assert str(arguments.parse_address(text)) == written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("net:10.32.2.0/24", "names a subnet"),
        ("net:default", "names a subnet"),
        ("10.32.1.5", "has no length"),
        ("10.32.1.5/", "with its length"),
        ("10.32.1.5/33", "with its length"),
        ("10.32.1.5/255.255.255.0", "with its length"),
        ("10.32.1.5/٢٤", "with its length"),
        ("10.32.1.5/24/24", "with its length"),
        ("10.032.1.5/24", "with its length"),
        ("10.32.1.0/24", "first or last"),
        ("10.32.1.255/24", "first or last"),
        ("fd00::/64", "first or last"),
        ("10.32.1.5/0", "whole internet"),
        ("127.0.0.1/8", "one host"),
        ("224.0.0.1/24", "one host"),
        ("255.255.255.255/32", "one host"),
        ("0.0.0.0/8", "one host"),
        ("::1/128", "one host"),
        ("fe80::1%eth0/64", "plain IPv6|with its length"),
        ("::ffff:10.0.0.1/120", "plain IPv6"),
        ("ip:/24", "with its length"),
        ("c1", "has no length"),
    ],
)
def test_an_address_no_container_can_have_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        arguments.parse_address(text)


def test_an_address_given_twice_is_refused_whatever_its_length() -> None:
    with pytest.raises(ValueError, match="twice"):
        arguments.parse_addresses(["10.0.0.1/24", "10.0.0.2/24", "ip:10.0.0.1/16"])


def test_the_number_of_addresses_is_limited() -> None:
    texts = [f"10.0.0.{host}/24" for host in range(1, arguments.ADDRESSES_MAX + 2)]
    assert len(arguments.parse_addresses(texts[:-1])) == arguments.ADDRESSES_MAX
    with pytest.raises(ValueError, match="too many"):
        arguments.parse_addresses(texts)


def test_wants_keep_their_order_and_are_written_in_one_way() -> None:
    texts = ["net:default", "ip:10.32.1.5/24", "net:10.32.2.0/30", "FD00:32::5/64", "net:FD00:32::/126"]
    wants = arguments.parse_wants(texts)
    written = ["net:default", "10.32.1.5/24", "net:10.32.2.0/30", "fd00:32::5/64", "net:fd00:32::/126"]
    assert [arguments.format_want(want) for want in wants] == written
    assert arguments.parse_wants(written) == wants
    assert arguments.parse_wants([]) == []


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["net:"], "has no length"),
        (["net:10.32.2.0"], "has no length"),
        (["net:c1"], "has no length"),
        (["net:10.32.2.0/x"], "is not a network"),
        (["net:10.32.2.0/33"], "is not a network"),
        (["net:10.32.2.0/255.255.255.0"], "is not a network"),
        (["net:10.32.2.5/24"], "an address of a network: the network itself is written 10.32.2.0/24"),
        (["net:fd00::5/64"], "the network itself is written fd00::/64"),
        (["net:10.32.2.0/31"], "a subnet is a /30 or larger"),
        (["net:fd00::/127"], "a subnet is a /126 or larger"),
        (["net:127.0.0.0/24"], "loopback"),
        (["net:224.0.0.0/24"], "multicast"),
        (["net:169.254.1.0/24"], "link-local"),
        (["net:0.0.0.0/0"], "which no container can have"),
        (["net:fe80::/64"], "link-local"),
        (["net:fe80::%eth0/64"], "names an interface|is not a network"),
        (["net:default", "net:default"], "net:default is given twice"),
        (["net:10.32.2.0/24", "10.32.2.5/24", "net:10.32.2.0/24"], "net:10.32.2.0/24 is given twice"),
        (["10.0.0.1/24", "net:default", "10.0.0.1/16"], "the address 10.0.0.1 is given twice"),
        (["net:default"] * 17, "too many"),
    ],
)  # fmt: skip
def test_wants_nobody_can_meet_are_refused_in_one_line(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        arguments.parse_wants(texts)
    assert "\n" not in str(caught.value)


def test_a_ring_is_named_by_its_first_digits() -> None:
    assert arguments.parse_ring("AB12") == "ab12"
    for text in ("", "xy", "a" * 33, "ab-12"):
        with pytest.raises(ValueError, match="not the id of a ring"):
            arguments.parse_ring(text)


def test_a_label_is_a_key_and_any_printable_value() -> None:
    assert arguments.parse_label("app.example/tier=a = b") == ("app.example/tier", "a = b")
    assert arguments.parse_label("empty=") == ("empty", "")


@pytest.mark.parametrize("text", ["app", "=x", "a b=x", "a\n=x", "a=x\ny", "k" * 129 + "=x", "k=" + "v" * 254, "ä=x"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        arguments.parse_label(text)


def test_names_are_compared_in_lower_case_and_without_a_final_dot() -> None:
    assert arguments.parse_name("Web.Weft.Local.") == "web.weft.local"


@pytest.mark.parametrize("text", ["", ".", "a b", "a..b", "-a", "a" * 254, "x" * 64, "a/b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        arguments.parse_name(text)


@pytest.mark.parametrize("text", ["", "a\nb", "a\x00b", "\udcff", "x" * 4097])
def test_what_cannot_be_a_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="TARGET"):
        arguments.parse_target(text)


@pytest.mark.parametrize("text", ["", "   ", "a\x1b[31m", "n" * 65])
def test_a_nickname_cannot_steer_a_terminal(text: str) -> None:
    with pytest.raises(ValueError, match="nickname"):
        arguments.parse_nickname(text)


def test_there_is_one_network() -> None:
    assert arguments.parse_network("weft") == "weft"
    with pytest.raises(ValueError, match="no network 'blue'"):
        arguments.parse_network("blue")
