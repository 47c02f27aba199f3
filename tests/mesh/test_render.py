"""What people read: aligned, complete, and never steered by what another host wrote."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import render

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "peer": "1a:2b:3c:4d:5e:6f:70:81",
    "nickname": "host1",
    "uptime_s": 12_000.5,
    "encryption": False,
    "peers": 5,
    "reachable": 4,
    "links": 2,
    "targets": 1,
    "connections": {"vxlan": 3, "none": 1},
    "mtu": 1450,
    "endpoints": 6,
    "local_endpoints": 2,
    "refused": {},
    "warnings": [],
}


def test_status_is_short_while_all_is_well() -> None:
    assert render.status(STATUS) == (
        "weft 0.1.0  peer 1a:2b:3c:4d:5e:6f:70:81 (host1)  up 3 h 20 min\n"
        "\n"
        "  peers       4 of 5 reachable; 2 links of ours, 1 target\n"
        "  paths       no path to 1 peer, vxlan to 3 peers\n"
        "  encryption  off (no password is set: traffic between hosts is readable)\n"
        "  mtu         1450\n"
        "  endpoints   6, 2 of them on this host"
    )


def test_status_names_who_was_refused_and_what_to_do_about_warnings() -> None:
    troubled = STATUS | {
        "encryption": True,
        "refused": {
            "wrong-password": {"count": 14, "last": ["10.1.2.3:44312", "10.1.2.4:50000"]},
            "self": {"count": 1, "last": []},
        },
        "warnings": [
            {"code": "forward-drop", "text": "FORWARD drops bridged traffic", "cure": "sudo iptables -P F ACCEPT"},
            {"code": "short-password", "text": "the password is short", "cure": None},
        ],
    }
    lines = render.status(troubled).splitlines()
    assert "  encryption  on" in lines
    assert lines[lines.index("refused links") + 1 :][:2] == [
        "  self            1 time",
        "  wrong-password  14 times  last from 10.1.2.3:44312, 10.1.2.4:50000",
    ]
    assert lines[lines.index("warnings") + 1 :] == [
        "  forward-drop: FORWARD drops bridged traffic",
        "      cure: sudo iptables -P F ACCEPT",
        "  short-password: the password is short",
    ]


def test_peers_are_aligned_under_their_headings() -> None:
    us: dict[str, Any] = {"name": "1a:2b:3c:4d:5e:6f:70:81", "nickname": "host1", "self": True, "reachable": True}
    us |= {"addresses": [], "version": "0.1.0"}
    other: dict[str, Any] = {"name": "2a:2b:3c:4d:5e:6f:70:82", "nickname": "h2", "self": False, "reachable": False}
    other |= {"addresses": ["10.0.0.2", "fd00::2"], "version": "0.1.0"}
    assert render.peers([us, other]).splitlines() == [
        "PEER                     NICKNAME  STATE        VERSION  ADDRESSES",
        "1a:2b:3c:4d:5e:6f:70:81  host1     this host    0.1.0    -",
        "2a:2b:3c:4d:5e:6f:70:82  h2        unreachable  0.1.0    10.0.0.2, fd00::2",
    ]


def test_connections_show_how_long_their_path_holds() -> None:
    row: dict[str, Any] = {"peer": "2a:2b:3c:4d:5e:6f:70:82", "nickname": "host2", "link": True, "path": "vxlan"}
    row |= {"reason": "best", "encrypted": False, "mtu": 1450, "rtt_ms": 0.4123, "since": 1_000_000.0}
    silent: dict[str, Any] = {"peer": "3a:2b:3c:4d:5e:6f:70:83", "nickname": "host3", "link": False, "path": "none"}
    silent |= {"reason": "no-answer", "encrypted": False, "mtu": None, "rtt_ms": None, "since": None}
    assert render.connections([row, silent], 1_000_301.0).splitlines() == [
        "PEER   PATH   REASON     ENCRYPTED  MTU   RTT      LINK  SINCE",
        "host2  vxlan  best       no         1450  0.41 ms  yes   5 min",
        "host3  none   no-answer  no         -     -        no    -",
    ]



def test_a_relayed_connection_names_who_passes_it_on() -> None:
    rows = [{"nickname": "h3", "path": "relay", "reason": "no-direct", "via": ["h2", "h\x1b4"], "since": 0}]
    lines = render.connections(rows, 5.0).splitlines()
    assert "  relay via h2, h?4  no-direct  " in lines[1]


def test_targets_say_why_they_are_down_and_when_the_next_try_is() -> None:
    rows: list[dict[str, Any]] = [
        {"target": "host2", "state": "connected", "error": None, "next_try": None},
        {"target": "host3:6800", "state": "waiting", "error": "wrong password", "next_try": 65.2},
        {"target": "host4", "state": "waiting", "error": "connection refused", "next_try": 0.2},
    ]
    assert render.targets(rows).splitlines() == [
        "TARGET      STATE      NEXT TRY  ERROR",
        "host2       connected  -         -",
        "host3:6800  waiting    in 1 min  wrong password",
        "host4       waiting    now       connection refused",
    ]


def test_an_endpoint_with_many_addresses_takes_a_line_for_each() -> None:
    row: dict[str, Any] = {"mac": "02:00:00:00:00:01", "addresses": ["10.32.1.5/24", "fd00:32::5/64"], "names": ["web"]}
    row |= {"labels": {"tier": "front", "app": "x"}, "peer": "2a:2b:3c:4d:5e:6f:70:82", "network": "weft"}
    row |= {"local": False, "conflict": "10.32.1.5 is also claimed by host3"}
    assert render.endpoints([row]).splitlines() == [
        "ADDRESS        MAC                PEER                     NETWORK  NAMES AND LABELS",
        "10.32.1.5/24   02:00:00:00:00:01  2a:2b:3c:4d:5e:6f:70:82  weft     "
        "web app=x tier=front CONFLICT: 10.32.1.5 is also claimed by host3",
        "fd00:32::5/64",
    ]
    assert "this host" in render.endpoints([row | {"local": True}])


def test_ps_lists_what_is_attached_here() -> None:
    here: dict[str, Any] = {"id": "c1", "mac": "02:00:00:00:00:01", "addresses": ["10.32.1.5/24", "fd00:32::5/64"]}
    here |= {"away": False, "away_since": None}
    away = {"id": "c2", "mac": "02:00:00:00:00:02", "addresses": ["10.32.1.6/24"], "away": True, "away_since": 1000}
    assert render.ps([here, away], 1300.5).splitlines() == [
        "ID  MAC                ADDRESSES                    STATE",
        "c1  02:00:00:00:00:01  10.32.1.5/24, fd00:32::5/64  here",
        "c2  02:00:00:00:00:02  10.32.1.6/24                 away 5 min",
    ]


def test_an_empty_list_says_so_instead_of_a_lonely_heading() -> None:
    texts = [render.peers([]), render.connections([], 0.0), render.targets([]), render.endpoints([])]
    texts.append(render.ps([], 0.0))
    assert all(len(text.splitlines()) == 1 and text == text.lower().replace("peer`", "PEER`") for text in texts)


def test_ping_speaks_like_ping() -> None:
    answered = {"seq": 1, "path": "vxlan", "rtt_ms": 0.3456, "address": "10.0.0.2"}
    assert render.ping_row(answered) == "seq=1 path=vxlan to=10.0.0.2 time=0.35 ms"
    assert render.ping_row(answered | {"seq": 2, "rtt_ms": None}) == "seq=2 path=vxlan to=10.0.0.2 no answer"
    summary = {"sent": 2, "received": 1, "path": "vxlan", "min_ms": 0.3456, "median_ms": 12.3}
    assert render.ping_summary(summary) == "2 sent, 1 answered, path vxlan, min 0.35 ms, median 12 ms"
    lost = {"sent": 2, "received": 0, "path": "none", "min_ms": None, "median_ms": None}
    assert render.ping_summary(lost) == "2 sent, 0 answered, path none"


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\udcff"


def test_what_another_host_wrote_cannot_steer_the_terminal() -> None:
    warning = {"code": HOSTILE, "text": HOSTILE, "cure": HOSTILE}
    endpoint = {"addresses": [HOSTILE], "names": [HOSTILE], "labels": {HOSTILE: HOSTILE}, "conflict": HOSTILE}
    texts = [
        render.status(STATUS | {"nickname": HOSTILE, "warnings": [warning]}),
        render.status(STATUS | {"refused": {HOSTILE: {"count": 1, "last": [HOSTILE]}}, "connections": {HOSTILE: 1}}),
        render.peers([{"name": "x", "nickname": HOSTILE, "version": HOSTILE, "addresses": [HOSTILE]}]),
        render.connections([{"nickname": HOSTILE, "path": HOSTILE, "reason": HOSTILE}], 0.0),
        render.targets([{"target": HOSTILE, "state": HOSTILE, "error": HOSTILE}]),
        render.endpoints([endpoint]),
        render.ps([{"id": HOSTILE, "mac": HOSTILE, "addresses": [HOSTILE]}], 0.0),
        render.ping_row({"path": HOSTILE, "address": HOSTILE}),
        render.ping_summary({"path": HOSTILE}),
    ]
    for text in texts:
        assert "owned" in text
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("row", [{}, {"addresses": None, "labels": None, "names": None, "since": "x", "next_try": "y"}])
def test_keys_an_older_daemon_does_not_know_show_as_a_dash(row: dict[str, Any]) -> None:
    texts = [render.status(row), render.peers([row]), render.connections([row], 0.0), render.targets([row])]
    texts += [render.endpoints([row]), render.ps([row], 0.0), render.ping_row(row), render.ping_summary(row)]
    assert all("-" in text and "None" not in text for text in texts)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"), (86_400, "1 d 0 h"), (10_000_000, "115 d 17 h"), (None, "-"),
    ],
)  # fmt: skip
def test_an_age_has_the_units_that_matter(seconds: float | None, text: str) -> None:
    assert render.age(seconds) == text


def test_usual_tables_fit_a_hundred_columns() -> None:
    row: dict[str, Any] = {"mac": "02:00:00:00:00:01", "addresses": ["fd00:32:1:2::ffff/64"], "names": ["web"]}
    row |= {"labels": {"app": "x"}, "peer": "2a:2b:3c:4d:5e:6f:70:82", "nickname": "a-rather-long-name"}
    row |= {"network": "weft", "local": False}
    connection: dict[str, Any] = {"nickname": "a-rather-long-nickname", "path": "wireguard", "mtu": 65485}
    connection |= {"reason": "vxlan-unanswered", "encrypted": True, "rtt_ms": 1234.5, "link": True, "since": 0.0}
    for text in (render.endpoints([row]), render.connections([connection], 864_000.0), render.status(STATUS)):
        assert max(len(line) for line in text.splitlines()) <= 100


IPAM: dict[str, Any] = {
    "range": "10.32.0.0/12",
    "range6": "fd12:3456:789a::/64",
    "default_subnet": None,
    "state": "ready",
    "advice": None,
    "ring": "0123456789abcdef",
    "decision": 7,
    "voters": [
        {"peer": "1a:2b:3c:4d:5e:6f:70:81", "nickname": "h1", "reachable": True, "self": True},
        {"peer": "2a:2b:3c:4d:5e:6f:70:82", "nickname": "h2", "reachable": False, "self": False},
    ],
    "lease_s": 3600,
    "confirmed_for_s": 3200.5,
    "peers": [
        {"peer": "1a:2b:3c:4d:5e:6f:70:81", "nickname": "h1", "self": True, "reachable": True, "addresses": 524_288,
         "share": 0.5, "used": 2, "free": 524_286},
        {"peer": "2a:2b:3c:4d:5e:6f:70:82", "nickname": "h2", "self": False, "reachable": False, "addresses": 524_288,
         "share": 0.5, "used": 0, "free": 524_288},
    ],
    "entries": [
        {"owner": "weft:expose", "addresses": ["10.32.0.2/12"], "state": "given", "peer": "h1"},
        {"owner": "netns:web", "addresses": ["10.32.0.1/12", "fd12:3456:789a::1/64"], "state": "given", "peer": "h1"},
    ],
    "pending": [],
    "other_rings": [],
}  # fmt: skip


def test_ipam_shows_who_owns_how_much_and_who_has_what() -> None:
    assert render.ipam(IPAM).splitlines() == [
        "range    10.32.0.0/12 and fd12:3456:789a::/64",
        "default  the whole range",
        "state    ready",
        "ring     0123456789abcdef, decision 7",
        "voters   h1 (this host), h2 (out of reach)",
        "lease    1 h 0 min; confirmed for another 53 min",
        "",
        "PEER  STATE        OWNS     SHARE   USED  FREE",
        "h1    this host    524,288  50.0 %  2     524,286",
        "h2    unreachable  524,288  50.0 %  0     524,288",
        "",
        "GIVEN TO     STATE  ADDRESSES",
        "netns:web    given  10.32.0.1/12, fd12:3456:789a::1/64",
        "weft:expose  given  10.32.0.2/12",
    ]


def test_ipam_says_what_is_waited_for_and_what_to_do() -> None:
    troubled = IPAM | {
        "state": "unconfirmed",
        "confirmed_for_s": None,
        "advice": "bring h2 back, or run `weft rmpeer h2`",
        "pending": [{"owner": "netns:db", "wants": "net:default", "since_s": 4.2, "waiting_for": "1 of 2 voters"}],
        "other_rings": [{"ring": "fedcba", "peers": ["h3", "h\x1b4"], "conflicts": 2}],
        "entries": [],
    }
    lines = render.ipam(troubled).splitlines()
    assert "state    waits for other hosts to confirm what this one may give" in lines
    assert "lease    1 h 0 min; not confirmed now" in lines
    assert "what to do: bring h2 back, or run `weft rmpeer h2`" in lines
    assert "another ring: fedcba of h3, h?4, 2 conflicts" in lines
    at = lines.index("WAITING   WANTS        SINCE  FOR")
    assert lines[at + 1] == "netns:db  net:default  4 s    1 of 2 voters"
    assert lines[-1] == "nothing is given here"


@pytest.mark.parametrize("state", render.IPAM_STATES)
def test_every_state_of_ipam_is_a_sentence(state: str) -> None:
    bare = {"state": state, "range": None, "range6": None}
    assert render.IPAM_STATES[state] in render.ipam(bare)
    assert "range    none" in render.ipam(bare)


def test_status_has_a_line_for_ipam() -> None:
    told = {"state": "ready", "owned": 1_048_576, "free": 1_048_500, "pending": 0}
    line = "  ipam        ready; 1,048,500 of 1,048,576 addresses of this host free"
    assert line in render.status(STATUS | {"ipam": told}).splitlines()
    assert line + ", 2 requests waiting" in render.status(STATUS | {"ipam": told | {"pending": 2}}).splitlines()
    idle = {"state": "idle", "owned": 0, "free": 0, "pending": 0}
    assert "  ipam        nothing was asked for yet" in render.status(STATUS | {"ipam": idle}).splitlines()
