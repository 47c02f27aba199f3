"""With a password nothing that a container says leaves its host in clear, whatever dies, is started anew or is wrong.

What is promised, and looked for in everything that a host's underlay interface sends:

- Launched with a password, a host sends nothing of its containers in clear: not before the first peer is known, not
  while worker or daemon or both are dead, not while the other side has another password, nor while passwords change.
- A host that carried frames in clear before (kernel VXLAN, or the sleeve without a password) goes on doing so while its
  daemon is stopped or dead, as it must; the last of it has gone out before the first sealed record does, and before
  `launch` with a password returns.

That every kind of traffic would be found is shown with the same capture where there is no password.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.lab import Lab
from mesh.namespaces import wait_until
from tests.labs.chatter import Chatter, listen, talk
from tests.labs.wire import Capture

pytestmark = pytest.mark.root

OLD, NEW, WRONG = "correct-horse-battery", "brand-new-staple-words", "incorrect-donkey-staple"
KINDS = ("udp", "tcp", "ping")
"""What is said: `from-h1-udp` and so on."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts with a container each; the containers talk all the time, whatever becomes of the hosts."""
    lab = make_lab(hosts=2, containers=1)
    lab.build()
    return lab


class Talk:
    """Both containers say all that they can say, to each other and to everybody; markers tell who spoke."""

    def __init__(self, lab: Lab) -> None:
        self._parties: list[Chatter] = []
        for here, there in (("1", "2"), ("2", "1")):
            source, target = f"c{here}.1", f"c{there}.1"
            self._parties.append(listen(lab, source))
            addresses = [lab.address(target), lab.address6(target), "10.32.255.255", "ff02::1%ethwe"]
            self._parties.append(talk(lab, source, f"from-h{here}", addresses))

    def end(self) -> None:
        for party in self._parties:
            party.__exit__(None, None, None)


@pytest.fixture
def talking(lab: Lab) -> Iterator[Talk]:
    """Hosts without a trace of Weft; containers with addresses once they are attached."""
    for node in lab.host_nodes():
        lab.weft(node, ["reset", "--force"])
    yield from _talk(lab)


def _talk(lab: Lab) -> Iterator[Talk]:
    talk = Talk(lab)
    try:
        yield talk
    finally:
        talk.end()


def launch(lab: Lab, node: str, *passwords: str, flags: tuple[str, ...] = ()) -> None:
    """With one password or several, the first of which is sent."""
    peers = [] if node == "h1" else [lab.underlay(1)]
    if passwords:
        file = lab.directory / node / "passwords"
        file.write_text("\n".join(passwords) + "\n")
        file.chmod(0o600)
        flags = (*flags, "--password-file", str(file))
    lab.launch(node, [*flags, *peers])


def attach_all(lab: Lab) -> None:
    for container in lab.container_nodes():
        lab.attach(container)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_daemon(lab: Lab, node: str) -> None:
    pid = lab.daemon_pid(node)
    assert pid is not None
    kill(pid)
    wait_until(lambda: lab.daemon_pid(node) is None, 5, "the daemon had died")


def worker_pid(lab: Lab, node: str) -> int:
    return int(lab.weft_json(node, "report")["counters"]["sleeve"]["pid"])


def is_answered(lab: Lab, count: int = 1) -> bool:
    command = ["ping", "-n", "-c", str(count), "-i", "0.05", "-W", "1", lab.address("c2.1")]
    return lab.run("c1.1", command, check=False).returncode == 0


def in_clear(capture: Capture, host: str) -> dict[str, list[float]]:
    """When what that host's containers say was seen."""
    return {kind: capture.times(f"from-{host}-{kind}".encode()) for kind in KINDS}


def nothing_in_clear(captures: dict[str, Capture]) -> None:
    for host, capture in captures.items():
        capture.stop()
        assert in_clear(capture, host) == {kind: [] for kind in KINDS}
        assert capture.times(b"from-h") == []


def captures_of(lab: Lab, directory: Path) -> dict[str, Capture]:
    return {host: Capture(lab, host, directory) for host in lab.host_nodes()}


def test_not_at_start_up(lab: Lab, talking: Talk, tmp_path: Path) -> None:
    """From before the first launch until the two hosts have spoken for a while."""
    captures = captures_of(lab, tmp_path)
    launch(lab, "h1", OLD)
    lab.attach("c1.1")
    time.sleep(0.3)  # it talks, and there is nobody
    launch(lab, "h2", OLD)
    lab.attach("c2.1")
    wait_until(lambda: is_answered(lab), 5, "the containers reached each other")
    time.sleep(0.3)
    nothing_in_clear(captures)
    assert all(len(capture.sealed()) > 100 for capture in captures.values())


@pytest.mark.parametrize("before", ["vxlan", "sleeve"])
def test_not_after_a_launch_over_a_host_that_sent_in_clear(
    lab: Lab, talking: Talk, tmp_path: Path, before: str
) -> None:
    """While its containers go on talking. One host after the other, so for a while they have nothing in common; the
    daemon before was stopped on the one and killed on the other."""
    flags = ("--no-vxlan",) if before == "sleeve" else ()
    launch(lab, "h1", flags=flags)
    launch(lab, "h2", flags=flags)
    attach_all(lab)
    wait_until(lambda: is_answered(lab), 5, "the containers reached each other")
    assert {row["path"] for row in lab.weft_json("h1", "status", "connections")} == {before}
    captures = captures_of(lab, tmp_path)
    time.sleep(0.5)
    launched: dict[str, tuple[float, float]] = {}
    for node in lab.host_nodes():
        if node == "h1":
            lab.weft(node, ["stop"])
        else:
            kill_daemon(lab, node)
        ended = time.time()
        time.sleep(0.2)
        launch(lab, node, OLD)
        launched[node] = (ended, time.time())
    wait_until(lambda: is_answered(lab), 10, "the containers reached each other again")
    time.sleep(0.3)
    for node, capture in captures.items():
        capture.stop()
        ended, returned = launched[node]
        seen = in_clear(capture, node)
        for kind, times in seen.items():
            assert times and times[0] < ended, f"{node}: {kind} was not found while it was in clear"
            assert times[-1] < returned, f"{node}: {kind} in clear {times[-1] - returned:.3f} s after launch returned"
        assert seen["udp"][-1] > ended, f"{node}: the container fell silent when the daemon ended"
        sealed = capture.sealed()
        assert len([when for when in sealed if when > returned]) > 50, f"{node}: nothing went out sealed"
        if before == "vxlan":  # else what was in clear came from the same port
            assert max(times[-1] for times in seen.values()) < sealed[0]


@pytest.fixture(scope="module")
def sealed(lab: Lab) -> Iterator[Talk]:
    """Both hosts under one password, and both containers talk: for tests that end with everything well again."""
    for node in lab.host_nodes():
        lab.weft(node, ["reset", "--force"])
        launch(lab, node, OLD)
    attach_all(lab)
    wait_until(lambda: is_answered(lab), 5, "the containers reached each other")
    yield from _talk(lab)


@pytest.mark.parametrize("victim", ["worker", "daemon", "both"])
def test_not_after_kill_9(lab: Lab, sealed: Talk, tmp_path: Path, victim: str) -> None:
    """Of the worker, which is back by itself; of the daemon, while the worker goes on; of both, and nobody is left."""
    captures = captures_of(lab, tmp_path)
    worker = worker_pid(lab, "h1")
    if victim != "worker":
        kill_daemon(lab, "h1")
    if victim != "daemon":
        kill(worker)
    time.sleep(0.5)
    assert is_answered(lab) == (victim != "both")
    if victim != "worker":
        launch(lab, "h1", OLD)
    wait_until(lambda: is_answered(lab), 5, "the containers reached each other again")
    assert (worker_pid(lab, "h1") == worker) == (victim == "daemon")
    nothing_in_clear(captures)
    assert all(len(capture.sealed()) > 50 for capture in captures.values())


def test_not_while_the_other_side_has_another_password(lab: Lab, sealed: Talk, tmp_path: Path) -> None:
    """They do not reach each other meanwhile, and do afterwards."""
    captures = captures_of(lab, tmp_path)
    lab.weft("h2", ["stop"])
    launch(lab, "h2", WRONG)
    time.sleep(0.3)
    assert not is_answered(lab)
    lab.weft("h2", ["stop"])
    launch(lab, "h2", OLD)
    wait_until(lambda: is_answered(lab), 10, "the containers reached each other again")
    nothing_in_clear(captures)


def test_not_while_the_password_is_changed(lab: Lab, sealed: Talk, tmp_path: Path) -> None:
    """One host after the other: accept both, send the new one, drop the old one. They are never apart for long."""
    captures = captures_of(lab, tmp_path)
    for passwords in ((OLD, NEW), (NEW, OLD), (NEW,)):
        for node in lab.host_nodes():
            lab.weft(node, ["stop"])
            launch(lab, node, *passwords)
            wait_until(lambda: is_answered(lab), 5, f"{node} with {len(passwords)} passwords was in the mesh")
    nothing_in_clear(captures)
    assert all(len(capture.sealed()) > 100 for capture in captures.values())
