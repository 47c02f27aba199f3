"""The table of verbs: how words and options are told apart, and that help is complete."""

from __future__ import annotations

import pytest

from mesh import usage
from mesh.errors import UsageError


def parse(*words: str) -> usage.Parsed:
    parsed = usage.parse(usage.find_verb(words[0]), words[1:])
    assert parsed is not None
    return parsed


def test_options_may_stand_between_the_words() -> None:
    parsed = parse("attach", "10.0.0.1/24", "--label", "a=b", "10.0.0.2/24", "--label=c=d", "-h", "web", "c1")
    assert parsed.words == ["10.0.0.1/24", "10.0.0.2/24", "c1"]
    assert parsed.values("--label") == ["a=b", "c=d"]
    assert parsed.values("-h") == ["web"]


def test_a_short_option_may_touch_its_value() -> None:
    assert parse("ping", "-c3", "host2").value("-c") == "3"
    assert parse("ping", "-c", "3", "host2").value("-c") == "3"


def test_two_dashes_end_the_options() -> None:
    assert parse("connect", "--replace", "--", "--odd", "--").words == ["--odd", "--"]


def test_the_last_of_an_option_that_cannot_repeat_wins() -> None:
    assert parse("launch", "--port", "1", "--port=2").value("--port") == "2"


def test_an_empty_value_is_a_value() -> None:
    parsed = parse("launch", "--password=")
    assert parsed.has("--password")
    assert parsed.value("--password") == ""


def test_help_is_asked_for_before_anything_is_wrong() -> None:
    for verb in usage.VERBS:
        assert usage.parse(verb, ["--help"]) is None


def test_h_is_help_except_where_it_is_a_host_name() -> None:
    assert usage.parse(usage.find_verb("status"), ["-h"]) is None
    assert parse("attach", "-h", "web", "c1").value("-h") == "web"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launch", "--password", "--no-vxlan"], "--password needs a value"),
        (["launch", "--port"], "--port needs a value"),
        (["launch", "--prot", "1"], "unknown option --prot"),
        (["launch", "-v"], "unknown option -v"),
        (["launch", "--no-vxlan=yes"], "takes no value"),
        (["stop", "now"], "'now' is too much"),
        (["ping"], "PEER is missing"),
        (["ping", "a", "b"], "'b' is too much"),
        (["connect"], "PEER is missing"),
        (["attach"], "TARGET is missing"),
        (["ipam"], r"ipam: one of join\|export \[FILE\]\|import FILE\|check is missing"),
    ],
)
def test_wrong_usage_is_one_line_with_the_right_one(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)
    assert f"usage: weft {words[0]}" in str(caught.value)


def test_an_unknown_verb_is_answered_with_all_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        usage.find_verb("dns-sub")
    assert all(verb.name in str(caught.value) for verb in usage.VERBS)


def test_help_fits_a_terminal_and_names_everything() -> None:
    text = usage.general_help()
    assert all(f"\n  {verb.name}" in text for verb in usage.VERBS)
    for verb in usage.VERBS:
        text += "\n" + usage.verb_help(verb)
        assert all(option.flag in usage.verb_help(verb) for option in verb.options if option.help)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "--ready-fd" not in text
