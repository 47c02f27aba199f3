"""What a host was told to connect to, and the control port when somebody else wants it or abuses it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from bench.traffic import Pinger
from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

CONTROL_PORT = 6783
UNFINISHED_MAX = 256


@pytest.fixture(scope="module")
def pair(make_lab: Callable[..., Lab]) -> Lab:
    """h1 and h2 connected; h3 has no daemon and may do what it likes."""
    lab = make_lab(hosts=3, containers=1)
    lab.build()
    lab.launch("h1")
    lab.launch("h2", [lab.underlay(1)])
    wait_until(lambda: lab.connected_peers("h1") == 1, 15, "h1 had a path to h2")
    lab.attach("c1.1")
    lab.attach("c2.1")
    return lab


def _targets(lab: Lab, node: str) -> list[str]:
    return [row["target"] for row in lab.weft_json(node, "status", "targets")]


def test_targets_survive_a_restart_and_launch_with_peers_replaces_them(pair: Lab) -> None:
    """Without peers they are kept, with peers they are exactly those."""
    assert _targets(pair, "h2") == [pair.underlay(1)]
    pair.weft("h2", ["stop"])
    pair.launch("h2")
    assert _targets(pair, "h2") == [pair.underlay(1)]
    pair.weft("h2", ["stop"])
    pair.launch("h2", [pair.underlay(3)])
    assert _targets(pair, "h2") == [pair.underlay(3)]


def test_connect_adds_replace_replaces_forget_removes(pair: Lab) -> None:
    """And a target that answers says so."""
    pair.weft("h2", ["connect", "--replace", pair.underlay(1)])
    assert _targets(pair, "h2") == [pair.underlay(1)]
    pair.weft("h2", ["connect", pair.underlay(3)])
    assert sorted(_targets(pair, "h2")) == [pair.underlay(1), pair.underlay(3)]
    pair.weft("h2", ["forget", pair.underlay(3)])
    assert _targets(pair, "h2") == [pair.underlay(1)]
    wait_until(lambda: pair.weft_json("h2", "status", "targets")[0]["state"] == "connected", 15, "the target connected")


def test_a_target_nobody_answers_at_says_why_and_when_next(pair: Lab) -> None:
    """State, error and the time of the next try, all in `status targets`."""
    pair.weft("h2", ["connect", pair.underlay(3)])
    try:
        rows = {}

        def failed() -> bool:
            rows.update({row["target"]: row for row in pair.weft_json("h2", "status", "targets")})
            return bool(rows[pair.underlay(3)]["error"])

        wait_until(failed, 10, "the failed try was seen")
        assert "refused" in rows[pair.underlay(3)]["error"]
    finally:
        pair.weft("h2", ["forget", pair.underlay(3)])


def test_a_port_in_use_is_one_clear_line(pair: Lab) -> None:
    """It names the port, exits 1 and leaves nothing running."""
    program = (
        "import socket, time\n"
        f"s = socket.create_server(('0.0.0.0', {CONTROL_PORT}))\n"
        "print('listening', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = pair.popen("h3", [sys.executable, "-c", program])
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "listening\n"
        done = pair.launch("h3", check=False)
    finally:
        holder.kill()
        holder.communicate()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(CONTROL_PORT) in done.stderr
    assert pair.daemon_pid("h3") is None


def test_garbage_and_unfinished_handshakes_leave_neighbours_alone(pair: Lab) -> None:
    """Beyond 256 silent connections the oldest are closed; garbage is closed at once; link and traffic go on."""
    wait_until(lambda: pair.connected_peers("h1") == 1, 15, "h1 had a path to h2")
    since = pair.weft_json("h1", "status", "connections")[0]["since"]
    pinger = Pinger(pair, "c1.1", pair.address("c2.1"))
    program = (
        "import os, socket\n"
        "def dial(data):\n"
        f"    s = socket.create_connection(({pair.underlay(1)!r}, {CONTROL_PORT}), 5)\n"
        "    s.sendall(data)\n"
        "    return s\n"
        "garbage = [dial(os.urandom(2000)) for _ in range(20)]\n"
        f"silent = [dial(b'') for _ in range({UNFINISHED_MAX} + 44)]\n"
        "def ended(s):\n"
        "    s.settimeout(3)\n"
        "    try:\n"
        "        while s.recv(4096):\n"
        "            pass\n"
        "        return True\n"
        "    except ConnectionError:\n"
        "        return True\n"
        "    except TimeoutError:\n"
        "        return False\n"
        "print(sum(map(ended, garbage)), sum(map(ended, silent[:44])))\n"
        "def open_still(s):\n"
        "    s.setblocking(False)\n"
        "    try:\n"
        "        while s.recv(4096):\n"
        "            pass\n"
        "        return False\n"
        "    except BlockingIOError:\n"
        "        return True\n"
        "print(sum(map(open_still, silent[44:])))\n"
    )
    closed = pair.run("h3", [sys.executable, "-c", program]).stdout.split()
    assert closed == ["20", "44", str(UNFINISHED_MAX)]
    rows = pair.weft_json("h1", "status", "connections")
    assert [(row["nickname"], row["link"], row["path"], row["since"]) for row in rows] == [("h2", True, "vxlan", since)]
    refused = pair.weft_json("h1", "status")["refused"]
    assert sum(row["count"] for row in refused.values()) >= 20
    assert any(address.startswith(pair.underlay(3)) for row in refused.values() for address in row["last"])
    assert pinger.stop().lost == []


def test_a_daemon_that_is_not_running_is_one_clear_line(pair: Lab) -> None:
    """Every verb that asks one says what to do."""
    for arguments in (["status"], ["ps"], ["connect", "10.9.0.1"], ["attach", "10.32.3.1/16", "x"], ["ping", "h1"]):
        done = pair.weft("h3", arguments, check=False)
        assert done.returncode == 1, arguments
        assert len(done.stderr.splitlines()) == 1
        assert "weft launch" in done.stderr
