"""Every verb as a process of its own, against the real API over canned answers: requests, texts, exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from mesh import cli, requests
from mesh.ipam.wants import Claim, FromSubnet
from mesh.requests import ApiError
from mesh.version import VERSION

STATUS = {"version": "9.9", "peer": "1a:2b:3c:4d:5e:6f:70:81", "nickname": "host1", "peers": 1, "reachable": 1}
PS = [{"id": "c1", "mac": "02:00:00:00:00:01", "addresses": ["10.32.1.5/24"]}]


def refused(done: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    """One line on standard error, nothing on standard output, that exit status."""
    assert done.returncode == status, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("weft: ")
    for words in says:
        assert words in done.stderr


NEEDS_DAEMON = [
    ["stop"], ["connect", "host2"], ["forget", "host2"], ["attach", "10.0.0.1/24", "c1"], ["detach", "c1"], ["status"],
    ["status", "peers"], ["status", "connections"], ["status", "targets"], ["status", "endpoints"], ["report"], ["ps"],
    ["ping", "host2"], ["expose"], ["expose", "10.0.0.1/24"], ["hide"], ["attach", "c1"], ["status", "ipam"], ["prime"],
]  # fmt: skip


@pytest.mark.parametrize("words", NEEDS_DAEMON, ids=" ".join)
def test_without_a_daemon_one_line_says_how_to_start_it(weft: Any, run_dir: Path, words: list[str]) -> None:
    expected = f"weft: the daemon is not running (no answer on {run_dir}/weft.sock); start it with `sudo weft launch`\n"
    done = weft(*words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_a_socket_of_a_dead_daemon_is_no_daemon(weft: Any, run_dir: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(run_dir / "weft.sock"))
    dead.close()
    refused(weft("status"), 1, "is not running")


def test_help_needs_no_daemon(weft: Any) -> None:
    for words in (["--help"], ["-h"], ["help"], ["help", "attach"], ["attach", "--help"], ["status", "-h"]):
        done = weft(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(("weft: containers", "usage: weft"))


def test_no_verb_shows_all_and_is_wrong_usage(weft: Any) -> None:
    done = weft()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: weft VERB" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dns-sub", "10.0.0.1"], "no verb 'dns-sub'"),
        (["dns-add", "10.0.0.1"], "which name? give it with -h NAME"),
        (["dns-add", "-h", "web", "c1", "10.0.0.1"], "c1 and addresses are both given"),
        (["attach", "10.0.0.1/8", "-h", "web", "--without-dns", "c1"], "leave out -h or --without-dns"),
        (["help", "nothing"], "no verb 'nothing'"),
        (["status", "ring"], "no `status ring`"),
        (["status", "peers", "x"], "too much"),
        (["status", "--yaml"], "unknown option --yaml"),
        (["connect"], "PEER is missing"),
        (["connect", "a b"], "not a peer"),
        (["connect", "host2:0"], "no valid port"),
        (["forget", ""], "not a peer"),
        (["attach", "net:default"], "name the container after it"),
        (["attach", "net:10.32.2.5/24", "c1"], "the network itself is written 10.32.2.0/24"),
        (["attach", "net:10.32.2.0/31", "c1"], "too few addresses"),
        (["attach", "net:default", "net:default", "c1"], "given twice"),
        (["detach", "net:default", "c1"], "names a subnet, and an address is needed"),
        (["attach", "10.0.0.1", "c1"], "has no length"),
        (["attach", "10.0.0.1/24", "10.0.0.2/24"], "name the container after it"),
        (["attach", "10.0.0.1/24"], "name the container after it"),
        (["attach", "10.0.0.1/24", "10.0.0.2"], "name the container after it"),
        (["attach", "10.0.0.1/24", "net:default"], "name the container after it"),
        (["attach", "10.0.0.1/24", "/proc/self/ns/net"], "this command's own"),
        (["attach", "10.0.0.1/24", ""], "TARGET is empty"),
        (["attach", "10.0.0.1/24", "--label", "x", "c1"], "not a label"),
        (["attach", "10.0.0.1/24", "-h", "a b", "c1"], "not a host name"),
        (["attach", "10.0.0.1/24", "--network", "blue", "c1"], "no network 'blue'"),
        (["attach", "10.0.0.1/24", "--allow-mac", "c1"], "unknown option --allow-mac"),
        (["detach", "10.0.0.0/24", "c1"], "first or last"),
        (["expose", "10.0.0.1"], "has no length"),
        (["expose", "net:10.0.0.0"], "has no length"),
        (["expose", "10.0.0.1/24", "ip:10.0.0.1/24"], "given twice"),
        (["hide", "net:10.0.0.0/24"], "names a subnet, and an address is needed"),
        (["prime", "--timeout", "soon"], "not a number of seconds"),
        (["prime", "--timeout", "nan"], "not a number of seconds"),
        (["rmpeer"], "PEER is missing"),
        (["rmpeer", "a\nb"], "not a nickname"),
        (["ipam", "give"], "no `ipam give`"),
        (["ipam", "import"], "FILE is missing"),
        (["ipam", "check", "x"], "too much"),
        (["ipam", "check", "--force"], "has no --force"),
        (["ipam", "join", "--repair"], "has no --repair"),
        (["ipam", "join", "--ring", "xy"], "not the id of a ring"),
        (["hide", "--without-masquerade"], "unknown option --without-masquerade"),
        (["ping", "-c", "0", "host2"], "-c '0' is not a number"),
        (["ping", "-c", "1.5", "host2"], "-c '1.5' is not a number"),
        (["ping", "-i", "nan", "host2"], "-i 'nan' is not a number"),
        (["ping", "-i", "0", "host2"], "-i '0' is not a number"),
        (["ps", "c1"], "too much"),
        (["stop", "--force"], "unknown option --force"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_asks_nobody(weft: Any, daemon: Any, words: list[str], says: str) -> None:
    refused(weft(*words), 2, says)
    assert daemon.requests == []


def test_status_shows_the_daemons_answer(weft: Any, daemon: Any) -> None:
    daemon.answers["status"] = STATUS
    done = weft("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "peer 1a:2b:3c:4d:5e:6f:70:81 (host1)" in done.stdout
    assert json.loads(weft("status", "--json").stdout) == STATUS
    assert daemon.requests == [requests.Read("status")] * 2


@pytest.mark.parametrize("topic", ["peers", "connections", "targets", "endpoints"])
def test_each_topic_is_a_table_or_json(weft: Any, daemon: Any, topic: str) -> None:
    rows = [{"name": "n", "nickname": "host2", "target": "host2", "peer": "host2", "addresses": ["10.0.0.2"]}]
    daemon.answers[topic] = rows
    text = weft("status", topic).stdout
    assert len(text.splitlines()) == 2
    assert "host2" in text
    assert json.loads(weft("status", topic, "--json").stdout) == rows
    assert daemon.requests == [requests.Read(topic)] * 2


def test_report_is_always_json(weft: Any, daemon: Any) -> None:
    daemon.answers["report"] = {"status": STATUS, "peers": []}
    for words in (["report"], ["report", "--json"]):
        assert json.loads(weft(*words).stdout) == {"status": STATUS, "peers": []}


def test_ps_is_a_table_or_json(weft: Any, daemon: Any) -> None:
    daemon.answers["ps"] = PS
    assert "c1  02:00:00:00:00:01  10.32.1.5/24" in weft("ps").stdout
    assert json.loads(weft("ps", "--json").stdout) == PS


def test_connect_and_forget_pass_peers_on_in_one_spelling(weft: Any, daemon: Any) -> None:
    daemon.answers.update(connect={}, forget={})
    assert weft("connect", "--replace", "Host2", "[fd00::3]:6800").stdout == ""
    assert weft("connect", "host4").returncode == 0
    assert weft("forget", "host2").returncode == 0
    assert daemon.requests == [
        requests.Connect(("host2", "[fd00::3]:6800"), True),
        requests.Connect(("host4",), False),
        requests.Forget(("host2",)),
    ]


def test_the_options_for_docker_are_words_or_json(weft: Any, daemon: Any) -> None:
    daemon.answers["dns"] = {"enabled": True, "address": "169.254.6.53", "domain": "weft.local."}
    assert weft("dns-args").stdout == "--dns=169.254.6.53 --dns-search=weft.local.\n"
    assert json.loads(weft("dns-args", "--json").stdout)["args"] == ["--dns=169.254.6.53", "--dns-search=weft.local."]


ANSWERS = {
    "connect host2": {"targets": ["host2"]},
    "forget host2": {"targets": []},
    "attach c1": {"id": "netns:c1", "addresses": ["10.32.0.1/12"], "names": []},
    "detach c1": {"addresses": ["10.32.0.1/12"]},
    "dns-add c1 -h web": {"names": ["web.weft.local."]},
    "dns-remove c1 -h web": {"names": ["web.weft.local."]},
    "prime": {"state": "ready"},
}


@pytest.mark.parametrize("words", ANSWERS)
def test_whatever_changes_something_tells_what_came_of_it_as_json(weft: Any, daemon: Any, words: str) -> None:
    verb = words.split()[0]
    daemon.answers["dnschange" if verb.startswith("dns") else verb] = ANSWERS[words]
    done = weft(*words.split(), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, ANSWERS[words]), done.stderr


def test_attach_prints_the_addresses_one_a_line(weft: Any, daemon: Any) -> None:
    daemon.answers["attach"] = {"addresses": ["10.32.1.5/24", "fd00:32::5/64"], "mac": "02:00:00:00:00:01"}
    words = ["10.32.1.5/24", "ip:fd00:32::5/64", "--label", "app=web", "--label=tier=", "-h", "web", "-hwww", "c1.1"]
    done = weft("attach", *words)
    assert (done.returncode, done.stdout) == (0, "10.32.1.5/24\nfd00:32::5/64\n")
    assert daemon.requests == [
        requests.Attach(
            target="c1.1",
            addresses=(Claim(ip_interface("10.32.1.5/24")), Claim(ip_interface("fd00:32::5/64"))),
            network="weft",
            labels=(("app", "web"), ("tier", "")),
            names=("web", "www"),
        )
    ]


def test_attach_may_leave_addresses_to_the_daemon(weft: Any, daemon: Any) -> None:
    daemon.answers["attach"] = {"addresses": ["10.32.0.1/12"]}
    assert weft("attach", "c1").stdout == "10.32.0.1/12\n"
    weft("attach", "net:default", "10.32.1.5/24", "net:fd00:32::/64", "c1")
    assert [request.addresses for request in daemon.requests] == [
        (),
        (FromSubnet(None), Claim(ip_interface("10.32.1.5/24")), FromSubnet(ip_network("fd00:32::/64"))),
    ]


def test_a_path_is_sent_whole_because_the_daemon_works_elsewhere(weft: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.answers["attach"] = {"addresses": []}
    weft("attach", "10.0.0.1/24", "./ns", cwd=tmp_path)
    weft("attach", "10.0.0.1/24", "4711")
    assert [request.target for request in daemon.requests] == [str(tmp_path / "ns"), "4711"]


def test_detach_takes_some_addresses_or_all(weft: Any, daemon: Any) -> None:
    daemon.answers["detach"] = {"addresses": ["10.32.1.5/24"]}
    assert weft("detach", "10.32.1.5/24", "c1").stdout == "10.32.1.5/24\n"
    assert weft("detach", "c1").stdout == "10.32.1.5/24\n"
    assert daemon.requests == [requests.Detach("c1", (ip_interface("10.32.1.5/24"),)), requests.Detach("c1", ())]


def test_expose_and_hide_print_addresses_one_a_line_or_json(weft: Any, daemon: Any) -> None:
    answer = {"addresses": ["10.32.1.1/16", "fd00:32::1/64"], "without_masquerade": []}
    daemon.answers.update(expose=answer, hide=answer)
    for words in (["expose", "ip:10.32.1.1/16", "fd00:32::1/64"], ["hide"]):
        assert weft(*words).stdout == "10.32.1.1/16\nfd00:32::1/64\n"
        assert json.loads(weft(*words, "--json").stdout) == answer
    assert weft("expose", "--without-masquerade", "10.32.1.1/16").returncode == 0
    claims = (Claim(ip_interface("10.32.1.1/16")), Claim(ip_interface("fd00:32::1/64")))
    assert daemon.requests == [
        *[requests.Expose(claims, True)] * 2,
        *[requests.Hide(())] * 2,
        requests.Expose(claims[:1], False),
    ]


@pytest.mark.parametrize("words", NEEDS_DAEMON, ids=" ".join)
def test_what_the_daemon_refuses_is_its_one_line(weft: Any, daemon: Any, words: list[str]) -> None:
    error = ApiError("taken", "10.0.0.1 is held by host2;\nrun `weft detach` there")
    daemon.answers.update(dict.fromkeys([*requests.READS, *words[:1]], error))
    done = weft(*words)
    expected = "weft: 10.0.0.1 is held by host2; run `weft detach` there\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


async def ping_twice(request: requests.Ping, send_row: Any) -> object:
    await send_row({"seq": 1, "path": "vxlan", "rtt_ms": 0.3, "address": "10.0.0.2"})
    await asyncio.sleep(0.01)
    await send_row({"seq": 2, "path": "vxlan", "rtt_ms": None, "address": "10.0.0.2"})
    return {"sent": 2, "received": request.count - 1, "path": "vxlan", "min_ms": 0.3, "median_ms": 0.3}


def test_ping_prints_each_answer_and_a_summary(weft: Any, daemon: Any) -> None:
    daemon.answers["ping"] = ping_twice
    done = weft("ping", "-c2", "-i", "0.5", "host2")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["seq=1", "seq=2", "2"]
    rows = [json.loads(line) for line in weft("ping", "-c2", "host2", "--json").stdout.splitlines()]
    assert [row.get("seq") for row in rows] == [1, 2, None]
    assert daemon.requests == [requests.Ping("host2", 2, 0.5), requests.Ping("host2", 2, 1.0)]


def test_a_ping_that_nothing_answers_fails(weft: Any, daemon: Any) -> None:
    daemon.answers["ping"] = ping_twice
    assert weft("ping", "-c", "1", "host2").returncode == 1


def test_ctrl_c_ends_a_command_quietly(weft: Any, daemon: Any) -> None:
    asked = threading.Event()

    async def hang(request: requests.Request, send_row: Any) -> object:
        asked.set()
        await asyncio.sleep(10)
        return None

    daemon.answers["ping"] = hang
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ping = subprocess.Popen(
        [sys.executable, "-m", "mesh", "ping", "host2"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert asked.wait(10)
    ping.send_signal(signal.SIGINT)
    assert ping.communicate(timeout=10)[1] == ""
    assert ping.returncode == cli.INTERRUPTED


def test_version_says_ours_and_the_daemons(weft: Any, daemon: Any) -> None:
    daemon.answers["status"] = STATUS
    assert weft("version").stdout == f"weft {VERSION} (running daemon: 9.9)\n"
    assert json.loads(weft("--version", "--json").stdout) == {"version": VERSION, "daemon": "9.9"}


def test_version_needs_no_daemon(weft: Any) -> None:
    assert weft("version").stdout == f"weft {VERSION}\n"
    assert json.loads(weft("version", "--json").stdout) == {"version": VERSION, "daemon": None}


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "broke off"),
        (b'{"ok"', "broke off"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not a Weft daemon"),
        (b"{}\n", "not a Weft daemon"),
        (b"[]\n", "not a Weft daemon"),
        (b'{"error": "text"}\n', "not a Weft daemon"),
        (b"[" * 100_000 + b"\n", "not a Weft daemon"),
        (b'{"error": {}}\n', "None"),
    ],
)
def test_whatever_answers_on_the_socket_is_one_line(weft: Any, run_dir: Path, answer: bytes, says: str) -> None:
    with Stranger(run_dir, answer):
        refused(weft("status"), 1, says)


class Stranger:
    """Somebody on the socket who answers every connection with the same bytes."""

    def __init__(self, run_dir: Path, answer: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / "weft.sock"))
        self._listener.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(self._answer)


def test_a_run_directory_too_long_for_a_socket_is_one_line(weft: Any) -> None:
    refused(weft("status", env={"WEFT_RUN_DIR": "/tmp/" + "x" * 120}), 1, "longer than", "WEFT_RUN_DIR")


def test_a_run_directory_that_is_a_file_is_no_daemon(weft: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(weft("status", env={"WEFT_RUN_DIR": str(tmp_path / "file")}), 1, "not running")


def test_words_that_are_not_text_are_one_line(weft: Any, daemon: Any) -> None:
    refused(weft("attach", "10.0.0.1/24", b"c\xff1"), 2, "TARGET")
    refused(weft(b"\xff"), 2, "no verb")


def test_a_full_disk_behind_standard_output_is_one_line(weft: Any) -> None:
    with open("/dev/full", "w") as full:
        done = weft("--help", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "weft: cannot use standard output (No space left on device); free space or check it\n"


def test_a_reader_that_has_enough_is_no_error(weft: Any, daemon: Any) -> None:
    daemon.answers["ps"] = PS * 10_000
    reading, writing = os.pipe()
    os.close(reading)
    done = weft("ps", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_utf8_shows_what_it_can(weft: Any, daemon: Any) -> None:
    daemon.answers["status"] = STATUS | {"nickname": "høst"}
    done = weft("status", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "(h?st)" in done.stdout


def test_lab_gets_its_words_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Lab:
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.append(argv)
            return 7

    monkeypatch.setitem(sys.modules, "mesh.lab", Lab)
    assert cli.main(["lab", "exec", "h1", "--", "weft", "--help"]) == 7
    assert seen == [["exec", "h1", "--", "weft", "--help"]]


@pytest.mark.root
def test_reset_asks_on_a_terminal_and_takes_anything_but_yes_for_no(run_dir: Path) -> None:
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    words = [sys.executable, "-m", "mesh", "reset"]
    reset = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=environment)
    os.write(main_end, b"no\n")
    _, errors = reset.communicate(timeout=20)
    os.close(terminal)
    os.close(main_end)
    assert (reset.returncode, errors) == (1, b"weft: nothing was removed\n")
