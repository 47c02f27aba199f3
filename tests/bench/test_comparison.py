"""The comparison without a network: rates found, ratios, goals, charts, and what is noise between two results."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.charts import draw, write_pictures
from bench.compare import change, compare, main
from bench.figures import best_peer, ratio
from bench.goals import judge
from bench.measures import highest_rate
from bench.peers import Nebula, Tinc
from bench.plan import LOSS, Plan
from bench.sleeve import _order
from bench.traffic import Datagrams, parse_ping
from mesh.namespaces import LabError

RATES = {"raw": 20000.0, "vxlan": 15000.0, "weft-sleeve": 7500.0, "wireguard-go": 4000.0, "tinc": 500.0}


def found(rates: dict[str, float] = RATES, scale: float = 1.0) -> dict[str, Any]:
    """Figures as the bench writes them: two rounds, of which the second ran on a machine half as fast."""

    def mbit_s(rate: float) -> dict[str, list[float | None]]:
        return {"mbit_s": [rate * scale, rate * scale / 2]}

    ours = {"what": "dataplane.sleeve", "rss_mb": 30.0, "peak_rss_mb": 40.0}
    tcp1 = {name: mbit_s(rate) | {"cpu_s_per_gb": [4000 / rate, 4000 / rate]} for name, rate in rates.items()}
    ping = {name: {"median_ms": [100 / rate, 100 / rate]} for name, rate in rates.items()}
    streams = {
        name: mbit_s(rate) | ping[name] | {"p99_ms": [1.0, 1.0], "pings": [50.0, 50.0], "pings_lost": [0.0, 1.0]}
        for name, rate in rates.items()
    }
    samples: dict[str, Any] = {"tcp1": tcp1, "tcp4": streams, "ping": ping, "loss 1 %": dict(tcp1)}
    return {
        "contestants": {
            name: {"title": name, "is_peer": name in ("wireguard-go", "tinc"), "missing": None} for name in rates
        },
        "underlays": {
            "wire": {
                "samples": samples,
                "memory": {name: [ours] if name == "weft-sleeve" else [] for name in rates},
                "dropped": {"1": {name: {"seen": 1000, "dropped": 10} for name in rates}},
            }
        },
    }


def path_of(capacity: float, sender: float) -> Callable[[float], Datagrams]:
    """A path that carries so many packets a second, half as many when flooded, from a sender that can offer so many."""

    def offer(pps: float) -> Datagrams:
        sent = min(pps or sender, sender)
        arrives = sent if sent <= capacity else capacity * (0.5 if sent >= 2 * capacity else 0.9)
        return Datagrams(round(sent), round(arrives), 1.0)

    return offer


@pytest.mark.parametrize("capacity", [20_000.0, 50_000.0, 77_000.0])
def test_the_highest_rate_is_found_although_a_flood_gets_less(capacity: float) -> None:
    """An overloaded overlay delivers less than it could: the search looks above what the flood delivered too."""
    pps, offered, steps = highest_rate(path_of(capacity, 200_000))
    assert 0.93 * capacity <= pps <= capacity
    assert offered == 200_000
    assert steps <= 6


def test_a_path_that_takes_all_that_is_offered_is_limited_by_the_sender() -> None:
    """One step is enough, and both figures say the same."""
    assert highest_rate(path_of(300_000, 120_000)) == (120_000, 120_000, 1)


def test_a_path_that_always_loses_has_no_rate_and_the_search_ends() -> None:
    """Two in a hundred at any rate: nothing counts."""
    pps, _, steps = highest_rate(lambda pps: Datagrams(1000, 980 if pps else 100, 1.0))
    assert pps == 0
    assert steps < 10


def test_pings_tell_when_they_were_sent() -> None:
    """Only so those that were sent under load can be told from those before and after."""
    line = "[1700000000.500000] 64 bytes from 10.32.2.1: icmp_seq=1 ttl=64 time=250 ms\n"
    seen = parse_ping(line + "1 packets transmitted, 1 received, 0% packet loss")
    assert seen.sent_s == {1: 1700000000.25}


def test_a_round_that_failed_gives_no_ratio() -> None:
    """It is left out on both sides, and never shifts the rounds against each other."""
    assert ratio([10.0, None, 30.0], [5.0, 1.0, 10.0]) == 2.5
    assert ratio([None], [1.0]) is None


def test_nobody_is_always_after_the_same_one() -> None:
    """Over the rounds everybody begins somewhere else, and every second round goes backwards."""
    names = list("abcdefghij")
    rounds = [list(_order(names, number)) for number in range(6)]
    assert all(sorted(order) == names for order in rounds)
    assert len({order[0] for order in rounds}) >= 5
    assert len({after for order in rounds for before, after in pairwise(order) if before == "a"}) == 2


def test_goals_are_judged_round_by_round() -> None:
    """The slow second round touches both sides of a ratio, and so no goal."""
    aims, unmeasured = judge(found())
    by_name = {aim.what: aim for aim in aims}
    one = by_name["TCP one stream, wire / wireguard-go"]
    assert one.value == 1.875
    assert not one.met
    assert "missed by 6 %" in one.line()
    assert by_name["TCP one stream, wire / vxlan"].value == 0.5
    assert by_name["ping under four streams, wire: lost"].value == 1
    assert by_name["TCP one stream, wire, 1 % lost / wireguard-go"].met
    assert by_name["memory of the worker at its peak"].met
    assert "TCP one stream, pass-through / wireguard-go" in unmeasured
    assert "frames lost across a rekey" in unmeasured


def test_a_rekey_counts_only_where_a_key_was_seen_to_roll() -> None:
    """A watch that saw no roll has shown nothing, however long it was."""
    for rolls, judged in ((0, False), (1, True)):
        figures = found() | {"rekey": {"seconds": 140.0, "rolls": rolls, "pings": 3000, "lost": 0}}
        assert any(aim.what == "frames lost across a rekey" for aim in judge(figures)[0]) == judged


def test_the_best_peer_is_no_contestant_of_ours_and_not_the_kernel() -> None:
    """Also where the kernel is faster; and for a cost the best is the lowest."""
    assert best_peer(found(), "wire", "tcp1", "mbit_s") == "wireguard-go"
    assert best_peer(found(), "wire", "tcp1", "cpu_s_per_gb", most=False) == "wireguard-go"
    assert best_peer(found(), "pass-through", "tcp1", "mbit_s") is None


def test_only_what_no_round_contradicts_is_a_change() -> None:
    """Bounds that enclose 1 are noise, and one round has no bounds."""
    better = change([1.0, 1.1], [1.3, 1.4])
    noise = change([1.0, 1.2], [1.1, 1.4])
    single = change([1.0], [2.0])
    assert better is not None and noise is not None and single is not None
    assert better.verdict(more_is_better=True) == "**better**"
    assert better.verdict(more_is_better=False) == "**worse**"
    assert noise.verdict(more_is_better=True) == "noise"
    assert single.verdict(more_is_better=True) == "one round only"
    assert change([], [1.0]) is None


def test_a_faster_machine_is_no_faster_overlay() -> None:
    """Everything doubled: the figures differ, their shares of the kernel's VXLAN do not."""
    rows = compare(found(), found(scale=4.0))[0].rows
    sleeve = next(row for row in rows if row[0].startswith("tcp1") and row[1] == "weft-sleeve")
    assert sleeve[2:4] == ("5,625", "22,500")
    assert sleeve[-1] == "noise"
    slower = compare(found(), found(RATES | {"weft-sleeve": 3000.0}))[0].rows
    assert next(row for row in slower if row[0].startswith("tcp1") and row[1] == "weft-sleeve")[-1] == "**worse**"


def test_two_files_are_compared_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a file that is no result of this bench is refused by name, in one line."""
    machine = {"taken": "today", "kernel": "6", "cores": 2, "weft": "0"}
    path = tmp_path / "sleeve.json"
    path.write_text(json.dumps({"name": "sleeve", "machine": machine, "figures": found()}))
    assert main([str(path), str(path)]) == 0
    assert "| tcp1, Mbit/s | weft-sleeve |" in capsys.readouterr().out
    other = tmp_path / "idle.json"
    other.write_text('{"name": "idle"}')
    assert main([str(path), str(other)]) == 1
    assert capsys.readouterr().err == f"bench: {other} is no result of the bench sleeve\n"


def test_charts_are_sound_and_name_everybody(tmp_path: Path) -> None:
    """Every picture parses, and whoever was measured stands in it."""
    drawn = draw(found())
    assert {"tcp", "streams", "ping", "cpu", "memory", "loss"} <= set(drawn)
    for name in ("tcp", "loss"):
        texts = {element.text for element in ElementTree.fromstring(drawn[name]).iter() if element.text}
        assert set(RATES) <= texts
    names = write_pictures(found(), tmp_path, "sleeve")
    assert "sleeve-tcp.svg" in names
    assert all((tmp_path / name).exists() for name in names)


def test_a_chart_holds_all_its_dots() -> None:
    """Nothing is drawn outside of the picture, whatever lies between the smallest and the largest."""
    for low, high in ((0.001, 40000.0), (999.0, 1001.0), (5.0, 5.0)):
        svg = ElementTree.fromstring(draw(found({"vxlan": high, "weft-sleeve": low}))["tcp"])
        width = float(svg.attrib["width"])
        circles = [element for element in svg.iter() if element.tag.endswith("circle")]
        assert len(circles) == 2
        assert all(0 < float(circle.attrib["cx"]) < width for circle in circles)


def test_a_peer_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing is a word in a table, never an error; one program of two is missing too."""
    monkeypatch.setattr(Tinc, "programs", (("no-such-tinc",),))
    assert Tinc().missing() == "no-such-tinc not installed: make bench-peers"
    monkeypatch.setattr(Nebula, "programs", (("sh",), ("no-such-cert", "nor-this")))
    assert Nebula().missing() == "nor-this not installed: make bench-peers"
    monkeypatch.setattr(Nebula, "programs", (("sh",), ("sh",)))
    assert Nebula().missing() is None


def test_a_plan_refuses_what_does_not_exist() -> None:
    """Before anything is built."""
    with pytest.raises(LabError, match="'tcp9' is none of"):
        Plan(measures=["tcp9"])
    with pytest.raises(LabError, match="above 0"):
        Plan(rounds=0)
    assert Plan(rounds=3).rounds_of("tcp1") == 3
    assert Plan(rounds=1).rounds_of(LOSS) == 1


def test_a_short_run_searches_for_packet_rates_on_one_underlay_only() -> None:
    """Unless it is that underlay which was asked for, or time is no matter."""
    assert not Plan().takes("udp", "wire")
    assert Plan().takes("udp", "pass-through")
    assert Plan(underlays=["wire"]).takes("udp", "wire")
    assert Plan(rounds=9).takes("udp", "wire")
    assert not Plan(measures=["tcp1"], rounds=9).takes("udp", "wire")
