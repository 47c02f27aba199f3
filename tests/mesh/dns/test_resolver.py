"""Answers, as dnspython reads them: it asks, and what it makes of our bytes is what counts."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import ip_address
from random import Random

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.dns import message, resolver
from mesh.dns.message import QUERY_MAX_BYTES, UDP_MAX_BYTES
from mesh.dns.resolver import OWN_V4, Forward
from tests.mesh.dns.oracle import H1, H2, H3, World, endpoint, flags_of


@pytest.fixture
def world() -> World:
    made = World()
    made.tell(endpoint(H1, 1, "10.32.1.1/16", "fd00:32::1/64", names=["web"]))
    made.tell(endpoint(H2, 2, "10.32.2.1/16", names=["db", "deep.er"]))
    return made


def test_addresses_in_both_families(world: World) -> None:
    """Authoritative, recursion available, for one second."""
    answer = world.ask("web.weft.local.", "A")
    assert flags_of(answer) == {"QR", "AA", "RD", "RA"} and answer.rcode() == dns.rcode.NOERROR
    assert answer.answer[0].to_text() == "web.weft.local. 1 IN A 10.32.1.1"
    assert world.ask("web.weft.local.", "AAAA").answer[0].to_text() == "web.weft.local. 1 IN AAAA fd00:32::1"
    both = world.ask("web.weft.local.", "ANY").answer
    assert sorted(dns.rdatatype.to_text(each.rdtype) for each in both) == ["A", "AAAA"]


@pytest.mark.parametrize("name", ["web.weft.local.", "WEB.Weft.LOCAL.", "web.", "WeB."])
def test_upper_case_and_single_words(world: World, name: str) -> None:
    """The question comes back as it was written."""
    for _ in range(2):  # the second is answered from what was kept
        answer = world.ask(name)
        assert [str(each) for record in answer.answer for each in record] == ["10.32.1.1"]
        assert str(answer.question[0].name) == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [("db.weft.local.", "AAAA"), ("web.weft.local.", "MX"), ("er.weft.local.", "A"), ("weft.local.", "A"),
     ("deep.er.weft.local.", "TXT")],
)  # fmt: skip
def test_a_name_without_such_data_is_no_error(world: World, name: str, kind: str) -> None:
    """NODATA: the SOA in the authority section says for how long (RFC 2308, section 2.2)."""
    answer = world.ask(name, kind)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    (soa,) = answer.authority
    assert (str(soa.name), soa.ttl, soa[0].minimum) == ("weft.local.", 1, 1)
    assert "AA" in flags_of(answer)


@pytest.mark.parametrize("name", ["nobody.weft.local.", "a.web.weft.local.", "x" * 63 + ".weft.local."])
def test_a_name_that_is_not_there(world: World, name: str) -> None:
    """NXDOMAIN, whatever type is asked for (RFC 2308, section 2.1)."""
    for kind in ("A", "AAAA", "MX", "ANY"):
        answer = world.ask(name, kind)
        assert (answer.rcode(), answer.answer, len(answer.authority)) == (dns.rcode.NXDOMAIN, [], 1)
        assert "AA" in flags_of(answer)


def test_the_domain_itself_has_a_soa(world: World) -> None:
    assert world.ask("weft.local.", "SOA").answer[0].rdtype == dns.rdatatype.SOA


def test_reverse_names_of_containers(world: World) -> None:
    """Ours from the table, named or not, link-local ones not at all, others are somebody else's."""
    answer = world.ask("1.1.32.10.in-addr.arpa.", "PTR")
    assert [str(each) for each in answer.answer[0]] == ["web.weft.local."]
    assert world.addresses(ip_address("fd00:32::1").reverse_pointer, "PTR") == ["web.weft.local."]
    assert sorted(world.addresses("1.2.32.10.in-addr.arpa.", "PTR")) == ["db.weft.local.", "deep.er.weft.local."]
    assert world.addresses(OWN_V4.reverse_pointer, "PTR") == ["ns.weft.local."]
    assert world.ask("1.1.32.10.in-addr.arpa.", "A").rcode() == dns.rcode.NOERROR
    for link_local in ("169.254.1.1", "fe80::1"):
        assert world.ask(ip_address(link_local).reverse_pointer, "PTR").rcode() == dns.rcode.NXDOMAIN
    assert world.is_forwarded("9.9.32.10.in-addr.arpa.", "PTR")
    world.tell(endpoint(H2, 3, "10.32.2.3/16"))
    world.zone.set_reachable({H3})
    for unnamed in ("3.2.32.10.in-addr.arpa.", "1.2.32.10.in-addr.arpa."):  # it has none, its host is out of reach
        assert world.ask(unnamed, "PTR").rcode() == dns.rcode.NXDOMAIN


def test_other_names_are_forwarded_and_ours_never() -> None:
    """Also single words that no container bears; not without recursion, and not in other classes."""
    world = World()
    for name in ("example.org.", "printer.", "xweft.local.", "."):
        assert world.is_forwarded(name), name
    assert world.ask("nobody.weft.local.").rcode() == dns.rcode.NXDOMAIN
    assert world.ask("example.org.", flags=dns.flags.Flag(0)).rcode() == dns.rcode.REFUSED
    query = dns.message.make_query("version.bind.", "TXT", "CH").to_wire()
    refused = world.resolver.answer_untrusted(query)
    assert isinstance(refused, bytes) and dns.message.from_wire(refused).rcode() == dns.rcode.REFUSED


def test_several_addresses_come_in_changing_order_nearest_first() -> None:
    """Each comes first about as often as the others of its distance; never before a nearer one."""
    world = World()
    world.ranks = {H2: 1, H3: 2}
    for owner, numbers in ((H1, (1, 2, 3)), (H2, (4, 5)), (H3, (6,))):
        for number in numbers:
            world.tell(endpoint(owner, number, f"10.0.0.{number}/8", names=["many"]))
    firsts: Counter[str] = Counter()
    for _ in range(600):
        order = [int(each.rpartition(".")[2]) for each in world.addresses("many.weft.local.")]
        assert (set(order[:3]), set(order[3:5]), order[5]) == ({1, 2, 3}, {4, 5}, 6)
        firsts[str(order[0])] += 1
    assert min(firsts.values()) > 130


def test_a_change_is_answered_at_once() -> None:
    """What was kept of an answer is not given any more."""
    world = World()
    one = endpoint(H2, 1, "10.0.0.1/8", names=["web"])
    world.tell(one)
    assert world.addresses("web.weft.local.") == world.addresses("web.weft.local.") == ["10.0.0.1"]
    world.tell(endpoint(H2, 1, "10.0.0.2/8", names=["web"]))
    assert world.addresses("web.weft.local.") == ["10.0.0.2"]
    world.tell(endpoint(H3, 2, "10.0.0.3/8", names=["web"]))
    assert sorted(world.addresses("web.weft.local.")) == ["10.0.0.2", "10.0.0.3"]
    assert sorted(world.addresses("web.weft.local.")) == ["10.0.0.2", "10.0.0.3"]
    world.zone.set_reachable({H3})
    assert world.addresses("web.weft.local.") == ["10.0.0.3"]
    world.zone.set_reachable(())
    assert world.ask("web.weft.local.").rcode() == dns.rcode.NXDOMAIN


def test_kept_answers_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "CACHE_MAX", 10)
    world = World()
    for number in range(1, 30):
        world.tell(endpoint(H2, number, f"10.0.0.{number}/8", names=[f"c{number}"]))
        assert world.addresses(f"c{number}.weft.local.") == [f"10.0.0.{number}"]
    assert len(world.resolver._kept) <= 10


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edns", "payload", "most"), [(False, 0, 512), (0, 100, 512), (0, 700, 700), (0, 4096, UDP_MAX_BYTES)]
)
def test_answers_keep_to_the_size_that_was_asked_for(edns: int | bool, payload: int, most: int) -> None:
    """Beyond it TC is set, and TCP has all of them."""
    world = World()
    for number in range(1, 101):
        world.tell(endpoint(H2, number, f"10.0.0.{number}/8", names=["many"]))
    options = {"use_edns": edns, "payload": payload} if edns is not False else {"use_edns": False}
    for _ in range(2):
        query = dns.message.make_query("many.weft.local.", "A", **options)  # type: ignore[arg-type]
        data = world.resolver.answer_untrusted(query.to_wire())
        assert isinstance(data, bytes) and most - 16 - 11 < len(data) <= most
        answer = dns.message.from_wire(data)
        assert "TC" in flags_of(answer) and (answer.edns == 0) == (edns is not False)
        whole = world.ask("many.weft.local.", "A", tcp=True, **options)
        assert "TC" not in flags_of(whole) and len(whole.answer[0]) == 100


def test_an_opt_record_is_answered_with_one_and_only_then(world: World) -> None:
    """With our own size, and DO as it was asked (RFC 6891, sections 6.1.1 and 7; RFC 3225, section 3)."""
    assert world.ask("web.weft.local.", use_edns=False).edns == -1
    for name in ("web.weft.local.", "nobody.weft.local."):
        answer = world.ask(name, use_edns=0, want_dnssec=True)
        assert (answer.edns, answer.payload, bool(answer.ednsflags & dns.flags.DO)) == (0, UDP_MAX_BYTES, True)


def test_another_version_of_edns_is_refused(world: World) -> None:
    """With BADVERS and ours (RFC 6891, section 6.1.3)."""
    answer = world.ask("web.weft.local.", use_edns=1)
    assert answer.rcode() == dns.rcode.BADVERS and answer.edns == 0


def test_options_of_edns_are_passed_over(world: World) -> None:
    cookie = dns.edns.GenericOption(10, b"12345678")
    assert world.ask("web.weft.local.", use_edns=0, options=[cookie]).rcode() == dns.rcode.NOERROR


# -- bad input -------------------------------------------------------------------------------------


def _query(name: bytes = b"\x03web\x04weft\x05local\x00", counts: tuple[int, ...] = (1, 0, 0, 0), flags: int = 0x100,
           rest: bytes = b"\0\x01\0\x01") -> bytes:  # fmt: skip
    return struct.pack("!6H", 7, flags, *counts) + name + rest


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (_query(flags=0x8100), None),
        (_query(flags=0x2800), dns.rcode.NOTIMP),
        (_query(counts=(0, 0, 0, 0)), dns.rcode.FORMERR),
        (_query(counts=(2, 0, 0, 0)), dns.rcode.FORMERR),
        (_query(counts=(1, 1, 0, 0)), dns.rcode.FORMERR),
        (_query(counts=(1, 0, 0, 1)), dns.rcode.FORMERR),
        (_query(counts=(1, 0, 0, 65535)), dns.rcode.FORMERR),
        (_query(rest=b""), dns.rcode.FORMERR),
        (_query(rest=b"\0\x01\0\x01left over"), dns.rcode.FORMERR),
        (_query(name=b"\xc0\x0c"), dns.rcode.FORMERR),
        (_query(name=b"\x40" + b"a" * 64 + b"\0"), dns.rcode.FORMERR),
        (_query(name=b"\x3f" + b"a" * 63), dns.rcode.FORMERR),
        (_query(name=(b"\x3f" + b"a" * 63) * 4 + b"\0"), dns.rcode.FORMERR),
        (_query() + bytes(QUERY_MAX_BYTES), dns.rcode.FORMERR),
        (_query() + bytes(65_000), dns.rcode.FORMERR),
    ],
)
def test_malformed_queries_get_an_error_or_nothing(world: World, data: bytes, rcode: int | None) -> None:
    """Each is counted under its reason. What may be an answer is never answered: two servers would never stop."""
    answer = world.resolver.answer_untrusted(data)
    assert sum(count for name, count in world.resolver.counters.items() if name.startswith("bad-")) == 1
    if rcode is None:
        assert answer is None
        return
    assert isinstance(answer, bytes) and len(answer) == 12
    assert dns.message.from_wire(answer).rcode() == rcode and answer[:2] == b"\0\x07"


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    """And what is answered can be read."""
    for tcp in (False, True):
        answer = World().resolver.answer_untrusted(data, tcp)
        if isinstance(answer, bytes):
            dns.message.from_wire(answer, ignore_trailing=False)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_spoilt_queries_never_raise(seed: int, data: st.DataObject) -> None:
    """Real queries with a few bytes changed, cut or repeated."""
    world = World()
    world.tell(endpoint(H1, 1, "10.32.1.1/16", names=["web"]))
    random = Random(seed)
    wire = bytearray(dns.message.make_query("web.weft.local.", "A", use_edns=0, want_dnssec=True).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[random.randrange(len(wire))] = random.randrange(256)
    spoilt = bytes(wire[: random.randrange(len(wire) + 1)]) if random.random() < 0.3 else bytes(wire)
    answer = world.resolver.answer_untrusted(spoilt)
    if isinstance(answer, bytes):
        dns.message.from_wire(answer)
    if isinstance(answer, Forward):
        dns.message.from_wire(message.ask(7, answer.query))


_LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=20)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_LABEL, min_size=1, max_size=6), st.sampled_from(["A", "AAAA", "PTR", "MX", "ANY", "TXT"]),
    st.sampled_from([-1, 0]), st.integers(0, 65_535), st.booleans(), st.booleans(),
)  # fmt: skip
def test_queries_are_read_as_the_oracle_wrote_them(
    labels: list[str], kind: str, edns: int, payload: int, dnssec: bool, recursion: bool
) -> None:
    """Every field."""
    name = dns.name.from_text(".".join(labels) + ".")
    query = dns.message.make_query(name, kind, use_edns=edns, payload=payload, want_dnssec=dnssec and edns == 0)
    if not recursion:
        query.flags &= ~dns.flags.RD
    read = message.parse_query_untrusted(query.to_wire())
    assert (read.id, read.type, read.klass) == (query.id, dns.rdatatype.from_text(kind), 1)
    assert read.name == name.to_wire().lower() and read.recursion_desired == recursion  # type: ignore[union-attr]
    assert read.edns_bytes == (payload if edns == 0 else None) and read.wants_dnssec == (dnssec and edns == 0)
    asked = dns.message.from_wire(message.ask(99, read))
    assert asked.id == 99 and asked.question == query.question and asked.edns == edns
