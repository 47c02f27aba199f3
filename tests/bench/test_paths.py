"""The bench of paths without a network: pauses and returns told from answers and history, probes computed, verdicts."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bench.__main__ import MEASURES as command_line_measures
from bench.__main__ import main
from bench.harness import Result
from bench.hop import BY_ONE, STRAIGHT
from bench.outage import DETOUR_S, RETURN_MAX_S, TRY_EVERY_S, Turn, dwell_s, pairs, returned_s, silence_s
from bench.paths import HOSTS_MAX, MEASURES, Plan, brief, hosts_for
from bench.quiet import Idle, computed, counted, vxlan_per_peer_b_s
from bench.traffic import Pings
from bench.verdicts import TITLES, fill, lines
from mesh.lab import Lab
from mesh.namespaces import LabError


def pings(*answers: tuple[float, float]) -> Pings:
    """Of when each was sent, in seconds, and how long it took, in seconds."""
    sent_s = {number: sent for number, (sent, _) in enumerate(answers, start=1)}
    return Pings(len(answers), {number: took * 1e3 for number, (_, took) in enumerate(answers, start=1)}, 0, sent_s)


# Pauses


def test_a_pause_lasts_from_one_answer_to_the_next() -> None:
    """As they arrived: what was held back and answered late is no traffic at the time it was sent."""
    steady = [(at / 100, 0.001) for at in range(100)]
    held = [(1.0, 2.0), (1.5, 1.6)]
    assert silence_s(pings(*steady), 1.0) == pytest.approx(0.01, abs=0.001)
    assert silence_s(pings(*steady, *held), 3.2) == pytest.approx(3.0 - 0.991)


def test_a_pause_that_is_not_over_counts_as_far_as_it_was_watched() -> None:
    """A path that never came back must not pass for one that never failed."""
    assert silence_s(pings((0.0, 0.001), (0.01, 0.001)), 20.0) == pytest.approx(19.989)


def test_without_any_answer_there_is_no_pause_to_speak_of() -> None:
    """Answers that came after the watch had ended are none."""
    with pytest.raises(LabError, match="ever answered"):
        silence_s(pings(), 1.0)
    with pytest.raises(LabError, match="ever answered"):
        silence_s(pings((2.0, 0.001)), 1.0)


# Returns


def turn(after_s: float, host: str, path: str) -> Turn:
    return Turn(after_s, host, path, "best")


def test_a_return_is_over_when_both_hosts_have_made_it() -> None:
    """On the way there may be other paths; a host that left the best one again has not returned."""
    way = (turn(0.2, "h1", "sleeve"), turn(1.5, "h2", "vxlan"), turn(2.9, "h1", "vxlan"))
    assert returned_s(way, "vxlan") == 2.9
    assert returned_s((*way, turn(4.0, "h2", "sleeve")), "vxlan") is None
    assert returned_s((*way, turn(4.0, "h2", "sleeve"), turn(5.0, "h2", "vxlan")), "vxlan") == 5.0
    assert returned_s((), "vxlan") == 0.0


def test_rounds_open_a_way_at_different_moments_between_two_tries() -> None:
    """Always at the same one, three rounds would be one."""
    lasting = [dwell_s(number, 3) for number in range(3)]
    assert all(DETOUR_S < each < DETOUR_S + TRY_EVERY_S for each in lasting)
    assert lasting[1] - lasting[0] == pytest.approx(TRY_EVERY_S / 3)
    assert DETOUR_S < dwell_s(0, 1) < DETOUR_S + TRY_EVERY_S


# Who is measured


def test_every_failure_has_a_pair_of_its_own_while_hosts_are_few() -> None:
    """Each pair once, and enough of them; beyond that they are used again."""
    found = [pair.hosts for pair in pairs(Lab("wbpairs", hosts=5))]
    assert len({frozenset(hosts) for hosts in found}) == len(found) == 10
    for wanted in range(1, HOSTS_MAX * (HOSTS_MAX - 1) // 2 + 1):
        hosts = hosts_for(wanted)
        assert hosts * (hosts - 1) // 2 >= wanted
    assert hosts_for(9) == 5
    assert hosts_for(1000) == HOSTS_MAX


def test_a_plan_refuses_a_measure_that_does_not_exist() -> None:
    """Before anything is built, and saying which there are."""
    with pytest.raises(LabError, match="'tcp1' is none of vxlan-one-way, vxlan,"):
        Plan(measures=["probes", "tcp1"])
    assert Plan(measures=["probes"]).of(*MEASURES) == ["probes"]


def test_what_a_later_bench_refuses_is_refused_before_an_earlier_one_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes of figures are not lost to a typing mistake; and the command line knows every measure that there is."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("bench.startup.run", lambda: pytest.fail("it ran"))
    assert main(["startup", "paths", "--measures", "tcp9"]) == 1
    assert "bench: 'tcp9' is none of" in capsys.readouterr().err
    assert all(word in command_line_measures for word in MEASURES)


# Silence


def test_counters_of_the_hub_get_their_ethernet_headers() -> None:
    """nft counts from the IP header on."""
    said = """table bridge benchquiet {
\tcounter sleeve {
\t\tpackets 10 bytes 1000
\t}
\tcounter vxlan {
\t\tpackets 0 bytes 0
\t}
\tchain forward { udp dport 6783 counter name "sleeve" }
}"""
    assert counted(said) == {"sleeve": 1140, "vxlan": 0}


def test_probes_do_not_grow_with_the_mesh() -> None:
    """The bound that the real pacing has: from some number on, each peer is asked less often."""
    few, many, more = (vxlan_per_peer_b_s(hosts) for hosts in (10, 200, 400))
    assert few > many > more > 0


def test_a_pair_costs_what_the_hub_saw_shared_among_pairs_and_what_links_cost_shared_among_peers() -> None:
    """Sleeves without traffic speak along links only; a host of a hundred has at most 11 of them, one of 3 has 2."""
    seen = Idle(hosts=10, links=27, sleeve_b_s=2700.0, vxlan_b_s=4500.0)
    assert seen.per_peer_b_s() == {"sleeve": 60.0, "vxlan": 100.0, "both": 160.0}
    assert computed(seen, 100)["sleeve"] == pytest.approx(100.0 * 11 / 99)
    assert computed(seen, 3)["sleeve"] == pytest.approx(100.0)


# Verdicts


def a_round(gap_s: float, took_s: float | None, lost: int = 0) -> dict[str, Any]:
    turns = [{"after_s": gap_s, "host": "h1", "path": "sleeve", "reason": "vxlan-silent"}]
    back = {"took_s": took_s, "lost": lost, "duplicates": 0, "turns": []}
    return {"outage": {"pair": "h1-h2", "gap_s": gap_s, "lost": 3, "turns": turns}, "return": back}


def verdicts(figures: dict[str, Any]) -> dict[str, bool]:
    return {line.what: line.aim.met for line in lines(figures) if line.aim is not None}


def test_times_are_judged_by_the_worst_round() -> None:
    """Two good rounds do not make up for one that a user would have noticed."""
    good = [a_round(2.0, 1.0), a_round(3.0, 2.0)]
    assert all(verdicts({"vxlan": good}).values())
    bad = verdicts({"vxlan": [*good, a_round(4.5, 2.0)]})
    assert [what for what, met in bad.items() if not met] == [f"{TITLES['vxlan']}: time without traffic"]


def test_a_path_that_never_came_back_and_a_lost_ping_are_misses() -> None:
    """Neither has a figure of its own that could look small."""
    found = verdicts({"sleeve": [a_round(1.0, 1.0), a_round(1.0, None, lost=1)]})
    assert sum(not met for met in found.values()) == 2
    line = next(line for line in lines({"sleeve": [a_round(1.0, None)]}) if "is back" in line.what)
    assert list(line.values) == [RETURN_MAX_S]


def test_the_ratio_of_streams_is_that_of_the_rounds_and_its_worst_the_least() -> None:
    """More is better there, as it is for the streams themselves."""
    streams = {"mbit_s": {STRAIGHT: [1000.0, 2000.0, 4000.0], BY_ONE: [500.0, 1000.0, 400.0]}}
    found = lines({"relay-tcp": streams})
    ratio = found[-1]
    assert ratio.aim is not None and ratio.aim.value == 0.5 and ratio.aim.met
    assert ratio.cells()[2:] == ["0.50", "0.10", "at least 0.4", "met"]
    assert found[1].cells()[2:4] == ["500 Mbit/s", "400 Mbit/s"]


def test_each_round_of_streams_is_shown_with_how_its_sender_sent() -> None:
    """A slow round is explained by what the sender made of the way."""
    sender = [{"loss": 0.001, "datagrams": 16, "parity": 1}, {"loss": 0.0, "datagrams": 64, "parity": 0}]
    streams = {
        "mbit_s": {STRAIGHT: [4000.0, 4000.0], BY_ONE: [1000.0, 2000.0]},
        "sender": {BY_ONE: sender},
        "mean_packet_bytes": 9000,
    }
    result = Result("paths", "t", "m", (), figures={"failures": [], "relay-tcp": streams})
    fill(result)
    assert result.tables[0].rows[0] == ["4,000", "1,000", "0.25", "0.100%", "16", "1"]
    assert len(result.tables[0].rows) == 2


def test_what_was_not_measured_is_named_and_has_no_verdict() -> None:
    """A measure that broke off must not look like one that was never asked for."""
    result = Result("paths", "t", "m", (), figures={"failures": ["punching: no"], "vxlan": [a_round(2.0, 1.0)]})
    fill(result)
    assert all(row[0].startswith(TITLES["vxlan"]) for row in result.rows)
    assert [table.title for table in result.tables][-1] == "Not measured"
    assert "2.00 h1 sleeve (vxlan-silent)" in result.tables[0].rows[0][1]
    assert all(len(row) == len(result.columns) for row in result.rows)


def test_a_round_is_told_in_one_line() -> None:
    """Also where the path did not come back, or nothing was to come back to."""
    assert brief(a_round(2.5, 1.0)) == "h1-h2: nothing for 2.50 s, back after 1.00 s, 0 lost by that"
    assert "not back" in brief(a_round(2.5, None))
    killed = {"outage": a_round(2.5, None)["outage"], "killed": "h3"}
    assert brief(killed) == "h1-h2: nothing for 2.50 s after h3 was killed"
