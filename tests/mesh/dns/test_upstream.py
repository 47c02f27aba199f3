"""Questions to other servers under a clock of our own: who is asked, what is believed, and what has an end."""

from __future__ import annotations

from itertools import count
from random import Random

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.dns import message, upstream
from mesh.dns.message import Query
from mesh.dns.upstream import (
    IN_FLIGHT_MAX,
    OF_ONE_MAX,
    TOTAL_S,
    TRY_S,
    WAITING_MAX,
    Asker,
    Effect,
    End,
    Tell,
    Try,
    Upstreams,
)

S1, S2, S3 = (f"192.0.2.{number}" for number in (1, 2, 3))
_keys = count(1)


def machine(*servers: str) -> Upstreams:
    made = Upstreams(Random(3))
    made.use([(each, 53) for each in servers or (S1,)])
    return made


def question(name: str = "example.org.", kind: str = "A", **options: object) -> Query:
    return message.parse_query_untrusted(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def asker(query: Query | None = None, tcp: bool = False, source: str = "10.32.1.1") -> Asker:
    return Asker(next(_keys), query or question(), tcp, source)


def the_try(effects: list[Effect]) -> Try:
    (found,) = (each for each in effects if isinstance(each, Try))
    return found


def told(effects: list[Effect]) -> list[bytes | None]:
    return [each.data for each in effects if isinstance(each, Tell)]


def answer(to: Try, *addresses: str, rcode: int = 0, flags: int = 0) -> bytes:
    made = dns.message.make_response(dns.message.from_wire(to.data), recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(rcode))
    made.flags |= flags
    if addresses:
        made.answer.append(dns.rrset.from_text(made.question[0].name, 60, "IN", "A", *addresses))
    return made.to_wire()


def test_an_answer_is_passed_on_under_the_askers_id_and_spelling() -> None:
    """The question that is sent is the same, under another id."""
    upstreams, who = machine(), asker(question("eXample.ORG."))
    sent = the_try(upstreams.ask(who, 0.0))
    assert sent.server == (S1, 53) and dns.message.from_wire(sent.data).id != who.query.id
    effects = upstreams.answered_untrusted(sent.token, answer(sent, "198.51.100.7").lower(), 0.1)
    (data,) = told(effects)
    assert data is not None
    read = dns.message.from_wire(data)
    assert (read.id, str(read.question[0].name)) == (who.query.id, "eXample.ORG.")
    assert str(read.answer[0][0]) == "198.51.100.7"
    assert [each for each in effects if isinstance(each, End)] == [End(sent.token)] and len(upstreams) == 0


def test_ids_cannot_be_guessed_from_each_other() -> None:
    upstreams = machine()
    ids = {dns.message.from_wire(the_try(upstreams.ask(asker(question(f"n{n}.")), 0.0)).data).id for n in range(100)}
    assert len(ids) > 95


def test_forgeries_are_counted_and_waited_past() -> None:
    """Another id, another question, a query, cut short: none of it ends the wait."""
    upstreams = machine()
    sent = the_try(upstreams.ask(asker(), 0.0))
    right = answer(sent, "198.51.100.7")
    wrong_id = bytes((right[0] ^ 1,)) + right[1:]
    other = the_try(machine().ask(asker(question("evil.org.")), 0.0))
    other_question = right[:2] + answer(other, "198.51.100.66")[2:]
    for forged in (wrong_id, other_question, sent.data, right[:20], b"", right[:4] + b"\0\0" + right[6:]):
        assert upstreams.answered_untrusted(sent.token, forged, 0.1) == []
    assert upstreams.counters["not-answers"] == 6
    assert told(upstreams.answered_untrusted(sent.token, right, 0.2)) != []
    assert upstreams.answered_untrusted(sent.token, right, 0.3) == [], "its socket is closed by now"


def test_silence_leads_to_the_next_and_has_an_end() -> None:
    """Each server once, then from the first again; less than 5 s in all, then there is no answer."""
    upstreams, now = machine(S1, S2, S3), 0.0
    effects = upstreams.ask(asker(), now)
    order = [the_try(effects).server[0]]
    while not told(effects):
        due = upstreams.due()
        assert due is not None and now < due <= now + TRY_S
        assert upstreams.tick(due - 0.01) == []
        now = due
        effects = upstreams.tick(now)
        order += [each.server[0] for each in effects if isinstance(each, Try)]
    assert order == [S1, S2, S3, S1] and now <= TOTAL_S < 5.0
    assert told(effects) == [None] and upstreams.due() is None


def test_a_failure_leads_to_the_next_at_once_and_is_passed_on_in_the_end() -> None:
    """SERVFAIL, REFUSED and an unreachable server; the answer of the last that spoke is what is told."""
    upstreams = machine(S1, S2, S3)
    first = the_try(upstreams.ask(asker(), 0.0))
    second = the_try(upstreams.answered_untrusted(first.token, answer(first, rcode=dns.rcode.REFUSED), 0.0))
    third = the_try(upstreams.refused(second.token, 0.0))
    assert [each.server[0] for each in (first, second, third)] == [S1, S2, S3]
    (data,) = told(upstreams.refused(third.token, 0.0))
    assert data is not None and dns.message.from_wire(data).rcode() == dns.rcode.REFUSED


def test_a_no_is_an_answer() -> None:
    """NXDOMAIN is not asked for anywhere else."""
    upstreams = machine(S1, S2)
    sent = the_try(upstreams.ask(asker(), 0.0))
    (data,) = told(upstreams.answered_untrusted(sent.token, answer(sent, rcode=dns.rcode.NXDOMAIN), 0.0))
    assert data is not None and dns.message.from_wire(data).rcode() == dns.rcode.NXDOMAIN


def test_who_answered_is_asked_first() -> None:
    """Until it falls silent, or is no server of ours any more."""
    upstreams = machine(S1, S2)
    upstreams.ask(asker(), 0.0)
    second = the_try(upstreams.tick(TRY_S))
    upstreams.answered_untrusted(second.token, answer(second, "198.51.100.7"), TRY_S)
    assert the_try(upstreams.ask(asker(question("b.")), 2.0)).server[0] == S2
    upstreams.use([(S3, 53)])
    assert the_try(upstreams.ask(asker(question("c.")), 2.0)).server[0] == S3


def test_many_that_are_silent_do_not_hide_one_that_answers() -> None:
    """More than there is time for in one question: the next one begins with those that were not asked."""
    upstreams, now = machine(*(f"192.0.2.{number}" for number in range(1, 9))), 0.0
    for number in (1, 2):
        effects = upstreams.ask(asker(question(f"n{number}.org.")), now)
        while not told(effects) and the_try(effects).server[0] != "192.0.2.8":
            now = upstreams.due() or now
            effects = upstreams.tick(now)
    assert not told(effects), "four of eight have their turn in each"
    sent = the_try(effects)
    upstreams.answered_untrusted(sent.token, answer(sent, "198.51.100.7"), now)
    assert the_try(upstreams.ask(asker(question("b.")), now)).server[0] == "192.0.2.8"
    second = the_try(upstreams.tick(now + TRY_S))
    assert second.server[0] == "192.0.2.1", "the one that was silent the longest ago"
    upstreams.use([(S1, 53), (S2, 53)])
    upstreams.tick(now + 2 * TRY_S)
    servers = []
    effects = upstreams.ask(asker(question("c.")), now + 3)
    while not told(effects):
        servers.append(the_try(effects).server[0])
        effects = upstreams.refused(the_try(effects).token, now + 3)
    assert sorted(servers) == [S1, S2], "who is no server of ours is not asked"


def test_who_asks_the_same_waits_for_the_same_answer() -> None:
    """Whatever the case; each under its own id. Another type, EDNS or not, and TCP are other questions."""
    upstreams = machine()
    sent = the_try(upstreams.ask(asker(question("example.org.")), 0.0))
    assert upstreams.ask(asker(question("EXAMPLE.org.")), 0.1) == []
    for other in (asker(question(kind="MX")), asker(question(use_edns=0)), asker(tcp=True)):
        assert the_try(upstreams.ask(other, 0.1)).data
    assert len(told(upstreams.answered_untrusted(sent.token, answer(sent, "198.51.100.7"), 0.2))) == 2


def test_a_loop_meets_itself() -> None:
    """A server that asks us what we ask it gets no answer by that; nor does a question by way of a third one."""
    upstreams = machine(S1)
    upstreams.ask(asker(), 0.0)
    assert told(upstreams.ask(asker(source=S1), 0.0)) == [None] and upstreams.counters["loops"] == 1
    for _ in range(WAITING_MAX - 1):
        assert upstreams.ask(asker(source="172.16.0.1"), 0.0) == [], "nothing is sent"
    assert told(upstreams.ask(asker(source="172.16.0.2"), 0.0)) == [None]
    assert upstreams.counters["forwarded"] == 1 and len(upstreams) == 1


def test_limits_of_what_is_under_way() -> None:
    """So many of one asker, so many at all; beyond them the answer is there at once. What ended makes room."""
    upstreams = machine()
    names = (question(f"n{number}.") for number in count())
    first = [the_try(upstreams.ask(asker(next(names)), 0.0)) for _ in range(OF_ONE_MAX)]
    assert told(upstreams.ask(asker(next(names)), 0.0)) == [None]
    assert upstreams.counters["too-many-of-one"] == 1
    for number in range(IN_FLIGHT_MAX - OF_ONE_MAX):
        the_try(upstreams.ask(asker(next(names), source=f"10.0.{number // 100}.1"), 0.0))
    assert told(upstreams.ask(asker(next(names), source="10.9.9.9"), 0.0)) == [None]
    assert upstreams.counters["too-many"] == 1
    upstreams.answered_untrusted(first[0].token, answer(first[0], "198.51.100.7"), 0.0)
    assert the_try(upstreams.ask(asker(next(names)), 0.0))
    now = 0.0
    while (due := upstreams.due()) is not None:
        now = due
        upstreams.tick(now)
    assert len(upstreams) == 0 and now <= TOTAL_S and not upstreams._by_token and not upstreams._waiting_of


def test_without_a_server_there_is_no_answer() -> None:
    upstreams = Upstreams(Random(1))
    assert told(upstreams.ask(asker(), 0.0)) == [None] and upstreams.counters["no-upstream"] == 1


@pytest.mark.parametrize(("tcp", "is_cut"), [(False, True), (True, False)])
def test_what_is_too_long_for_an_asker_is_cut(tcp: bool, is_cut: bool) -> None:
    upstreams, who = machine(), asker(tcp=tcp)
    sent = the_try(upstreams.ask(who, 0.0))
    assert sent.tcp == tcp
    long = answer(sent, *(f"198.51.100.{number}" for number in range(100)))
    (data,) = told(upstreams.answered_untrusted(sent.token, long, 0.0))
    assert data is not None
    read = dns.message.from_wire(data)
    assert bool(read.flags & dns.flags.TC) == is_cut and (len(data) <= 512 or not is_cut)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_garbage_from_a_server_never_raises(data: bytes, with_id: bool) -> None:
    upstreams = machine()
    sent = the_try(upstreams.ask(asker(), 0.0))
    upstreams.answered_untrusted(sent.token, (sent.data[:2] if with_id else b"") + data, 0.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "refuse", "tick"]), st.integers(0, 5)), max_size=60))
def test_everybody_is_told_once(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order, and every try's socket is closed."""
    upstreams, now = machine(S1, S2), 0.0
    asked: list[object] = []
    answered: list[object] = []
    open_tries: dict[int, Try] = {}

    def take(effects: list[Effect]) -> None:
        for each in effects:
            if isinstance(each, Try):
                open_tries[each.token] = each
            elif isinstance(each, End):
                del open_tries[each.token]
            else:
                answered.append(each.asker.key)

    for step, number in steps:
        now += 0.3
        sent = list(open_tries.values())
        if step == "ask":
            who = asker(question(f"n{number}."))
            asked.append(who.key)
            take(upstreams.ask(who, now))
        elif step == "tick":
            take(upstreams.tick(now))
        elif sent and step == "answer":
            to = sent[number % len(sent)]
            take(upstreams.answered_untrusted(to.token, answer(to, "198.51.100.7", rcode=number % 3), now))
        elif sent:
            take(upstreams.refused(sent[number % len(sent)].token, now))
    while (due := upstreams.due()) is not None:
        take(upstreams.tick(due))
    assert sorted(map(str, asked)) == sorted(map(str, answered)) and not open_tries
    assert upstream.TRY_S < upstream.TOTAL_S
