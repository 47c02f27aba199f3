"""Daemons over the real kernel, in namespaces: launches that fail or are cut short, and what changes under them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until

pytestmark = pytest.mark.root

_numbers = itertools.count(1)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One host without a daemon, and a container; and another host with one."""
    lab = Lab(f"wt{os.getpid()}d{next(_numbers)}", hosts=2, containers=1)
    try:
        lab.build()
        yield lab
    finally:
        lab.down()


def links(lab: Lab, node: str = "h1") -> list[str]:
    """Names of the devices in a namespace."""
    return sorted(line.split()[0].split("@")[0] for line in lab.run(node, ["ip", "-br", "link"]).stdout.splitlines())


def untouched(lab: Lab) -> None:
    """Nothing in the kernel, nothing in the run directory."""
    assert links(lab) == ["eth0", "lo"]
    assert not lab.run_dir("h1").exists() or os.listdir(lab.run_dir("h1")) == []
    assert "weft" not in lab.run("h1", ["nft", "list", "tables"]).stdout


def refused(lab: Lab, *arguments: str) -> str:
    """The launch fails with one line; that line."""
    done = lab.launch("h1", arguments, check=False)
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@contextlib.contextmanager
def holding(lab: Lab, kind: str, port: int) -> Iterator[None]:
    """Some other program on h1 has the port."""
    program = (
        f"import socket, sys; s = socket.socket(socket.AF_INET, socket.{kind}); s.bind(('0.0.0.0', {port}));"
        "s.type == socket.SOCK_STREAM and s.listen(); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        lab.argv("h1", ["python3", "-c", program]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


# Launches that fail


@pytest.mark.parametrize(
    ("kind", "port", "says"), [("SOCK_STREAM", 6783, "TCP port 6783 is in use"), ("SOCK_DGRAM", 6784, "UDP port is in")]
)
def test_a_port_in_use_is_one_line_and_leaves_nothing(lab: Lab, kind: str, port: int, says: str) -> None:
    """TCP for links, UDP for VXLAN: the second is found when the bridge is there already."""
    with holding(lab, kind, port):
        assert says in refused(lab, "10.9.0.2")
        untouched(lab)
    lab.launch("h1")
    assert "weft-vx" in links(lab)


def test_a_launch_that_fails_beside_running_containers_leaves_them_running(lab: Lab) -> None:
    """What an earlier life of the daemon made is not taken back."""
    lab.add_namespaces(["c1.2"])
    lab.launch("h1")
    for container in ("c1.1", "c1.2"):
        lab.attach(container)
    lab.weft("h1", ["stop"])
    before = links(lab)
    with holding(lab, "SOCK_STREAM", 6783):
        refused(lab)
    assert links(lab) == before
    lab.run("c1.1", ["ping", "-c", "1", "-W", "1", lab.address("c1.2")])


@pytest.mark.parametrize("kilobytes", [4, 16])
def test_a_full_disk_at_launch_is_one_line(lab: Lab, kilobytes: int) -> None:
    """The state directory on a disk of a few kilobytes, filled up."""
    state = lab.state_dir("h1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "tmpfs", str(state)], check=True)
    try:
        with (state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        line = refused(lab)
        assert "No space left on device" in line and str(state) in line
        untouched(lab)
        assert sorted(set(os.listdir(state)) - {"weft.log"}) == ["filler"]
        (state / "filler").unlink()
        if kilobytes > 4:
            lab.launch("h1")
            with (state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * 4096)
            container = lab.namespace("c1.1")
            done = lab.weft("h1", ["attach", "10.32.1.1/16", container], check=False)
            assert done.returncode == 1 and "No space left" in done.stderr and len(done.stderr.splitlines()) == 1
            assert "ethwe" not in links(lab, "c1.1")
            assert lab.weft_json("h1", "ps") == []
            lab.weft("h1", ["reset", "--force"])  # the sleeve worker goes too, whose log is on that disk
    finally:
        pid = lab.daemon_pid("h1")
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: lab.daemon_pid("h1") is None, 5, "the daemon had died")
        subprocess.run(["umount", str(state)], check=True)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_launch_that_is_cut_short_at_any_moment_leaves_nothing(lab: Lab, number: signal.Signals) -> None:
    """From the first line of the program until it serves, and beyond, where it is an orderly stop."""
    words = ["weft", *lab._launch_argv("h1", ["--foreground"])]
    begun = time.monotonic()
    process = lab.popen("h1", words)
    wait_until(lambda: (lab.run_dir("h1") / "weft.sock").exists(), 10, "it served")
    serves_after_s = time.monotonic() - begun
    process.send_signal(number)
    process.communicate(timeout=15)
    lab.weft("h1", ["reset", "--force"])
    served = 0
    for step in range(12):
        process = lab.popen("h1", words)
        time.sleep(serves_after_s * (0.4 + step * 0.06))
        served += (lab.run_dir("h1") / "weft.sock").exists()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=15)
        assert "Traceback" not in stderr or "KeyboardInterrupt" in stderr, stderr
        if process.returncode == 0 and "weft" in links(lab):
            assert "serving" in stderr  # it was a stop, then, and stops leave the kernel as it is
            assert os.listdir(lab.run_dir("h1")) == ["sleeve.sock"]
            lab.weft("h1", ["reset", "--force"])
        assert links(lab) == ["eth0", "lo"], (step, process.returncode, stderr)
    assert served < 12, "some of them hit the start"


def test_a_second_signal_changes_nothing(lab: Lab) -> None:
    """An impatient user, or a supervisor: the stop is orderly, and the kernel paths stay."""
    process = lab.popen("h1", ["weft", *lab._launch_argv("h1", ["--foreground"])])
    wait_until(lambda: (lab.run_dir("h1") / "weft.sock").exists(), 10, "it served")
    before = links(lab)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.01)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 0, stderr
    assert "stopped" in stderr.splitlines()[-1]
    assert links(lab) == before
    assert os.listdir(lab.run_dir("h1")) == ["sleeve.sock"]


# While something is under way


def test_a_stop_in_the_middle_of_attaches_leaves_each_done_or_not_done(lab: Lab) -> None:
    """What `attach` said is true after the next launch: done means there, failed means not there."""
    names = [f"c1.{number}" for number in range(2, 12)]
    lab.add_namespaces(names)
    lab.launch("h1")
    attaching = {}
    for name in names:
        words = ["weft", "attach", f"{lab.address(name)}/16", lab.namespace(name)]
        attaching[name] = lab.popen("h1", words)
    time.sleep(0.25)
    lab.weft("h1", ["stop"])
    done = {}
    for name, process in attaching.items():
        _, stderr = process.communicate(timeout=40)
        done[name] = process.returncode == 0
        assert done[name] or len(stderr.splitlines()) == 1, stderr
    lab.launch("h1")
    assert {row["id"] for row in lab.weft_json("h1", "ps")} == {lab.namespace(name) for name in names if done[name]}
    for name in names:
        assert ("ethwe" in links(lab, name)) == done[name], name


def test_a_reset_ends_a_ping_that_streams(lab: Lab) -> None:
    """The command says that it was broken off; nothing of the daemon stays."""
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()
    process = lab.popen("h1", ["weft", "ping", "-c", "1000", "-i", "0.05", "h2"])
    assert process.stdout is not None
    assert "seq=1 " in process.stdout.readline()
    lab.weft("h1", ["reset", "--force"])
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1, stderr
    untouched(lab)


# Containers and what becomes of them


def addresses(lab: Lab, node: str) -> list[str]:
    """What is set on `ethwe`, link-local ones aside."""
    words = lab.run(node, ["ip", "-br", "address", "show", "dev", "ethwe"], check=False).stdout.split()
    return [word for word in words[2:] if not word.startswith("fe80")]


def mac(lab: Lab, node: str) -> str:
    words = lab.run(node, ["ip", "-br", "link", "show", "dev", "ethwe"]).stdout.split()
    return words[2]


def test_a_namespace_that_is_deleted_keeps_its_addresses_until_it_is_detached(lab: Lab) -> None:
    """They can be attached again at once then, to one that got its inode number too."""
    lab.launch("h1")
    for round_number in range(3):
        name = f"c1.{round_number + 5}"
        lab.add_namespaces([name])
        lab.attach(name, addresses=["10.32.1.77/16", f"10.32.1.{round_number + 80}/16"])
        assert addresses(lab, name) == ["10.32.1.77/16", f"10.32.1.{round_number + 80}/16"]
        assert [row["id"] for row in lab.weft_json("h1", "ps")] == [lab.namespace(name)]
        subprocess.run(["ip", "netns", "delete", lab.namespace(name)], check=True)
        wait_until(lambda: [row["away"] for row in lab.weft_json("h1", "ps")] == [True], 5, "it was away")
        taken = lab.weft("h1", ["attach", "10.32.1.77/16", lab.namespace("c1.1")], check=False)
        assert taken.returncode == 1 and "away now" in taken.stderr and len(taken.stderr.splitlines()) == 1
        lab.weft("h1", ["detach", lab.namespace(name)])
        assert lab.weft_json("h1", "ps") == []


def test_a_namespace_that_follows_at_once_does_not_inherit(lab: Lab) -> None:
    """The daemon has had no time to notice: the new container has what it was given and nothing else."""
    lab.launch("h1")
    for round_number in range(3):
        old, new = f"c1.{2 * round_number + 5}", f"c1.{2 * round_number + 6}"
        lab.add_namespaces([old])
        lab.attach(old, addresses=[f"10.32.1.{round_number + 80}/16"])
        subprocess.run(["ip", "netns", "delete", lab.namespace(old)], check=True)
        lab.add_namespaces([new])
        lab.attach(new, addresses=[f"10.32.2.{round_number + 80}/16"])
        assert addresses(lab, new) == [f"10.32.2.{round_number + 80}/16"]
        away = {lab.namespace(old): True, lab.namespace(new): False}
        wait_until(lambda away=away: {r["id"]: r["away"] for r in lab.weft_json("h1", "ps")} == away, 5, "old was away")  # type: ignore[misc]
        lab.weft("h1", ["detach", lab.namespace(new)])
        lab.weft("h1", ["detach", lab.namespace(old)])
        assert lab.weft_json("h1", "ps") == []


def test_an_address_changes_its_length_in_a_running_container(lab: Lab) -> None:
    """Forth and back; the MAC stays."""
    lab.launch("h1")
    lab.attach("c1.1", addresses=["10.32.1.1/24", "10.32.1.2/24"])
    before = mac(lab, "c1.1")
    for length in (16, 24, 25):
        lab.attach("c1.1", addresses=[f"10.32.1.1/{length}"])
        assert sorted(addresses(lab, "c1.1")) == [f"10.32.1.1/{length}", "10.32.1.2/24"]
    assert mac(lab, "c1.1") == before


def test_an_address_taken_while_its_host_was_away(lab: Lab) -> None:
    """The other container keeps it and its MAC; ours comes back without it and with another MAC, and both talk."""
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()
    lab.add_namespaces(["c1.5", "c2.5"])
    lab.attach("c1.5", addresses=["10.32.9.1/16", "10.32.9.5/16"])
    lab.attach("c1.1")
    lab.attach("c2.1")
    before = mac(lab, "c1.5")
    lab.weft("h1", ["stop"])
    wait_until(lambda: not _reachable(lab, "h2", "h1"), 10, "h1 was away")
    lab.attach("c2.5", addresses=["10.32.9.1/16"])
    assert mac(lab, "c2.5") == before
    lab.launch("h1")
    lab.wait_connected()
    wait_until(lambda: addresses(lab, "c1.5") == ["10.32.9.5/16"], 5, "the address was taken off")
    wait_until(lambda: mac(lab, "c1.5") != before, 5, "it had a MAC of its own")
    for asker in ("c1.1", "c2.1", "c1.5"):
        wait_until(lambda asker=asker: _pings(lab, asker, "10.32.9.1"), 3, f"{asker} reached the holder")  # type: ignore[misc]
    for asker in ("c1.1", "c2.1", "c2.5"):
        wait_until(lambda asker=asker: _pings(lab, asker, "10.32.9.5"), 3, f"{asker} reached the other")  # type: ignore[misc]
    (warning,) = lab.weft_json("h1", "status")["warnings"]
    assert warning["code"] == "address-conflict" and "10.32.9.1" in warning["text"] and "h2" in warning["text"]
    lab.weft("h2", ["detach", lab.namespace("c2.5")])
    wait_until(lambda: sorted(addresses(lab, "c1.5")) == ["10.32.9.1/16", "10.32.9.5/16"], 5, "it had it back")
    for asker in ("c1.1", "c2.1"):
        wait_until(lambda asker=asker: _pings(lab, asker, "10.32.9.1"), 3, f"{asker} reached it there")  # type: ignore[misc]


def _reachable(lab: Lab, node: str, other: str) -> bool:
    return any(row["reachable"] for row in lab.weft_json(node, "status", "peers") if row["nickname"] == other)


def _pings(lab: Lab, source: str, address: str) -> bool:
    return lab.run(source, ["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0


def test_the_data_path_ping_survives_a_bridge_that_is_made_anew(lab: Lab) -> None:
    """From either side, within a second of the repair."""
    lab.launch_all()
    lab.weft("h2", ["connect", lab.underlay(1)])
    lab.wait_connected()

    def answered(node: str, peer: str) -> bool:
        return lab.weft(node, ["ping", "-c", "1", peer], check=False).returncode == 0

    assert answered("h1", "h2") and answered("h2", "h1")
    lab.run("h1", ["ip", "link", "delete", "weft"])
    wait_until(lambda: "weft" in links(lab), 3, "the bridge was there again")
    for node, peer in (("h2", "h1"), ("h1", "h2")):
        wait_until(lambda node=node, peer=peer: answered(node, peer), 2, f"{peer} answered {node}")  # type: ignore[misc]


# State


@pytest.mark.parametrize("name", ["identity", "targets", "attachments"])
def test_a_corrupt_document_refuses_the_launch_and_stays(lab: Lab, name: str) -> None:
    """One line, exit 1, and the bytes are for somebody to look at."""
    lab.launch("h1", ["10.9.0.2"])
    lab.attach("c1.1")
    lab.weft("h1", ["stop"])
    before = links(lab)
    path: Path = lab.state_dir("h1") / f"{name}.weft"
    path.write_bytes(path.read_bytes()[:-20])
    content = path.read_bytes()
    for arguments in ([], ["10.9.0.3"]):
        line = refused(lab, *arguments)
        assert str(path) in line and "weft reset" in line
    assert path.read_bytes() == content
    assert links(lab) == before
    assert os.listdir(lab.run_dir("h1")) == ["sleeve.sock"]
