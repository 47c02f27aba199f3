"""The supervisor and real processes in the worker's place: started, adopted, replaced, watched, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dataplane.desired import RemoteEndpoint
from dataplane.sleeve.control import UP, Configure, Graph, Peer
from gossip.names import PeerName
from mesh import directories, shutdown, sleeve
from mesh.errors import UserError
from mesh.roster import Entry
from mesh.sleeve import RESTART_DELAY_MAX_S, STEADY_S, Restarts, Supervisor

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
SETTINGS = Configure("0", PeerName(b"\x01" * 8), bytes(32), (), "weft-tap", (), 6783)
NO_GRAPH = Graph(())
P, Q = PeerName(b"\x03" * 8), PeerName(b"\x07" * 8)
WAIT_LIMIT_S = 10.0


def peer(name: PeerName, flood: bool = False, macs: tuple[bytes, ...] = (b"\x02" * 6,)) -> Entry:
    return Entry(Peer(name, bytes(32), (("10.9.0.3", 6783),), macs, flood))


class Place:
    """The two directories of one host, and what its workers heard."""

    def __init__(self, path: Path) -> None:
        self.run_dir, self.state_dir = path / "run", path / "state"
        for directory in (self.run_dir, self.state_dir):
            directory.mkdir(mode=0o700)
        self.socket = Path(directories.sleeve_socket_path(str(self.run_dir)))

    def supervisor(self, epoch: int = 5, **settings: Any) -> Supervisor:
        return Supervisor(str(self.run_dir), str(self.state_dir), replace(SETTINGS, **settings), epoch, COMMAND)

    def heard(self, pid: int | None = None) -> list[str]:
        try:
            lines = Path(f"{self.socket}.heard").read_text().splitlines()
        except FileNotFoundError:
            return []
        rows = [line.partition(" ") for line in lines]
        return [text for owner, _, text in rows if pid in (None, int(owner))]

    def pids(self) -> list[int]:
        """Workers of this place that live, by what they wrote."""
        try:
            lines = Path(f"{self.socket}.heard").read_text().splitlines()
        except FileNotFoundError:
            return []
        return sorted({pid for pid in (int(line.split()[0]) for line in lines) if self.is_worker(pid)})

    def is_worker(self, pid: int) -> bool:
        return shutdown.is_worker(pid, str(self.socket))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv("FAKE_WORKER", raising=False)
    made = Place(tmp_path)
    yield made
    for pid in made.pids():
        os.kill(pid, signal.SIGKILL)


def run(work: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(work, 60.0))


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.01)


async def served(supervisor: Supervisor) -> int:
    """The process id of the worker that serves."""
    await until(lambda: supervisor.status is not None, "a worker served")
    assert supervisor.status is not None
    return supervisor.status.pid


# A life


def test_a_worker_is_started_told_everything_and_left_to_the_next_daemon(place: Place) -> None:
    """It is configured once, hears of peers as they change, and goes on when the daemon has gone."""

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.prepare()
        supervisor.tell({P: peer(P)}, NO_GRAPH, settled=False)
        await supervisor.start()
        pid = await served(supervisor)
        supervisor.tell({P: peer(P), Q: peer(Q, flood=True)}, NO_GRAPH, settled=True)
        behind = RemoteEndpoint(b"\x02" * 5 + b"\x03", (), None)
        supervisor.tell({P: peer(P), Q: replace(peer(Q, flood=True), groups=((behind,),))}, NO_GRAPH, settled=True)
        supervisor.tell({Q: peer(Q, flood=True)}, NO_GRAPH, settled=True)
        await until(lambda: len(place.heard()) == 7, "it heard of all")
        assert place.heard() == [
            f"configure epoch={5 << 32 | 1} psks=0 port=6783",
            f"peer {P.hex()} flood=False macs=020202020202",
            f"peer {Q.hex()} flood=True macs=020202020202",
            "complete",
            f"macs {Q.hex()} came=020202020203 went=",
            f"macs {Q.hex()} came= went=020202020203",
            f"forget {P.hex()}",
        ]
        await until(lambda: Q in supervisor.peers, "its status told of the peer")
        assert (supervisor.peers[Q].state, supervisor.trouble(time.monotonic())) == (UP, None)
        await supervisor.close(end=False)
        await asyncio.sleep(0.2)
        assert place.pids() == [pid]

    run(scenario())


def test_an_equal_configuration_is_adopted_and_not_disturbed(place: Place) -> None:
    """It is told nothing until the mesh's state is in: it knows more than a daemon that has just started."""

    async def scenario() -> None:
        first = place.supervisor(epoch=5)
        await first.prepare()
        await first.start()
        first.tell({P: peer(P), Q: peer(Q)}, NO_GRAPH, settled=True)
        pid = await served(first)
        await until(lambda: "complete" in place.heard(), "it heard")
        await first.close(end=False)
        second = place.supervisor(epoch=6)
        await second.prepare()
        second.tell({P: peer(P, macs=())}, NO_GRAPH, settled=False)
        await second.start()
        before = len(place.heard())
        second.tell({P: peer(P, macs=())}, NO_GRAPH, settled=False)
        await until(lambda: second.peers.keys() == {P, Q}, "its status tells of what it knew")
        assert len(place.heard()) == before
        second.tell({P: peer(P)}, NO_GRAPH, settled=True)
        await until(lambda: place.heard()[-1] == "complete", "it hears when all is known")
        await until(lambda: second.peers.keys() == {P}, "and forgets the rest")
        assert (await served(second), second.started) == (pid, 0)
        await second.close(end=True)

    run(scenario())


@pytest.mark.parametrize(
    "changed", [{"psks": (bytes(32),)}, {"port": 7000}, {"version": "1"}, {"offloads_off": ("tap",)}], ids=str
)
def test_any_other_configuration_is_seen_to_its_end_first(place: Place, changed: dict[str, Any]) -> None:
    """The two never serve beside each other; one in clear is gone before anything begins with a secret."""

    async def scenario() -> None:
        first = place.supervisor()
        await first.prepare()
        await first.start()
        pid = await served(first)
        await first.close(end=False)
        second = place.supervisor(epoch=6, **changed)
        await second.prepare()
        assert second.started == 0
        if "psks" in changed:
            assert not place.is_worker(pid), "it is gone before anything else is begun"
        await second.start()
        await until(lambda: second.started == 1 and second.status is not None, "another serves")
        assert not place.is_worker(pid) and await served(second) != pid
        await second.close(end=True)

    run(scenario())


def test_a_worker_that_must_do_without_something_is_replaced_at_once(place: Place) -> None:
    """Told of all peers anew; one that does so already is left alone, and one that is not there yet is made so."""

    async def scenario() -> None:
        supervisor = place.supervisor()
        supervisor.reconfigure(replace(SETTINGS, offloads_off=("udp-gro",)))
        await supervisor.start()
        supervisor.tell({P: peer(P)}, NO_GRAPH, settled=True)
        pid = await served(supervisor)
        supervisor.reconfigure(replace(SETTINGS, offloads_off=("udp-gro",)))
        await asyncio.sleep(0.3)
        assert place.pids() == [pid]
        supervisor.reconfigure(replace(SETTINGS, offloads_off=("tap",)))
        await until(lambda: supervisor.status is not None and supervisor.status.pid != pid, "another serves")
        await until(lambda: "complete" in place.heard(*place.pids()), "it heard of all")
        assert supervisor.trouble(time.monotonic()) is None
        await supervisor.close(end=False)
        second = place.supervisor(epoch=6, offloads_off=("tap",))
        await second.prepare()
        assert second.status is not None, "it serves under these settings"
        await second.start()
        await second.close(end=True)

    run(scenario())


@pytest.mark.parametrize("manner", ["stays", "mute"])
def test_a_worker_that_does_not_end_is_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    """One that refuses and stays, and one that does not answer at all."""
    monkeypatch.setattr(sleeve, "ADOPT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(sleeve, "END_PATIENCE_S", 0.1)

    async def scenario() -> None:
        monkeypatch.setenv("FAKE_WORKER", manner)
        first = place.supervisor()
        starting = asyncio.ensure_future(first.start())
        await until(lambda: place.heard(), "it was configured")
        pid = place.pids()[0]
        starting.cancel()
        await first.close(end=False)
        monkeypatch.delenv("FAKE_WORKER")
        second = place.supervisor(psks=(bytes(32),))
        await second.prepare()
        assert not place.is_worker(pid)
        await second.start()
        await second.close(end=True)

    run(scenario())


def test_a_stranger_on_the_socket_is_left_alone(place: Place) -> None:
    """One line, and nobody is killed: this process, for one."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(str(place.socket))
            stranger.listen()
            with pytest.raises(UserError, match="is no sleeve worker"):
                await place.supervisor().prepare()

    run(scenario())


# Deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_back_within_a_second_and_told_everything(place: Place, number: signal.Signals) -> None:
    """With a later epoch, so that its handshakes are known for newer, and all peers at once; again and again."""

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        supervisor.tell({P: peer(P), Q: peer(Q)}, NO_GRAPH, settled=True)
        pid = await served(supervisor)
        for count in range(2, 5):
            await until(lambda pid=pid: "complete" in place.heard(pid), "it has heard")  # type: ignore[misc]
            killed = time.monotonic()
            os.kill(pid, number)
            await until(lambda: supervisor.status is None, "its death was noticed")
            assert supervisor.peers == {}
            pid = await served(supervisor)
            assert time.monotonic() - killed < 1.0
            assert place.heard(pid)[0] == f"configure epoch={5 << 32 | count} psks=0 port=6783"
            await until(lambda pid=pid: len(place.heard(pid)) == 4, "it heard of all")  # type: ignore[misc]
            assert place.heard(pid)[3] == "complete"
        await supervisor.close(end=True)
        assert place.pids() == [] and not place.socket.exists()

    run(scenario())


def test_a_worker_that_stops_answering_is_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by somebody, or in an endless loop."""
    monkeypatch.setattr(sleeve, "SILENCE_MAX_S", 0.8)

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        pid = await served(supervisor)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: supervisor.status is not None and supervisor.status.pid != pid, "another serves")
        assert not place.is_worker(pid)
        await supervisor.close(end=True)

    run(scenario())


def test_a_worker_that_ends_the_connection_and_lives_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gave up on a daemon that was too slow to read. One that does so at once and again is replaced."""
    monkeypatch.setattr(sleeve, "STEADY_S", 0.5)

    async def scenario() -> None:
        supervisor = place.supervisor()
        supervisor.tell({P: peer(P)}, NO_GRAPH, settled=True)
        await supervisor.start()
        pid = await served(supervisor)
        for rounds in (2, 3):
            await asyncio.sleep(0.6)
            os.kill(pid, signal.SIGUSR1)
            heard = ["configure", "peer", "complete"] * rounds
            await until(lambda heard=heard: [row.split()[0] for row in place.heard(pid)] == heard, "it heard all anew")  # type: ignore[misc]
            await until(lambda: P in supervisor.peers, "its status is taken")
            assert (await served(supervisor), supervisor.started) == (pid, 1)
        os.kill(pid, signal.SIGUSR1)
        await until(lambda: supervisor.started == 2, "it is replaced")
        assert not place.is_worker(pid)
        await supervisor.close(end=True)

    run(scenario())


def test_a_worker_that_leaves_what_it_is_told_unread_is_replaced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded."""
    monkeypatch.setattr(sleeve, "SILENCE_MAX_S", 2.0)
    monkeypatch.setattr(sleeve, "BACKLOG_MAX_BYTES", 1_000_000)

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        pid = await served(supervisor)
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        macs = tuple(number.to_bytes(6, "big") for number in range(300_000))
        supervisor.tell({P: peer(P, macs=macs)}, NO_GRAPH, settled=True)
        await until(lambda: supervisor.status is None, "it was given up")
        assert time.monotonic() - begun < 1.5, "before its silence was long enough"
        await supervisor.close(end=True)

    run(scenario())


def test_workers_that_die_at_once_are_restarted_ever_more_slowly_and_warned_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine must not be busy with starting interpreters."""

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        pid = await served(supervisor)
        monkeypatch.setenv("FAKE_WORKER", "dies")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.started >= 5, "it tried again")
        assert supervisor.trouble(time.monotonic()) == "the sleeve worker died while starting"
        monkeypatch.delenv("FAKE_WORKER")
        await served(supervisor)
        trouble = supervisor.trouble(time.monotonic())
        assert trouble is not None and "times in a row" in trouble
        assert supervisor.trouble(time.monotonic() + sleeve.WARNED_S) is None, "it has been well for a minute"
        await supervisor.close(end=True)

    run(scenario())


def test_the_delay_between_workers_grows_to_a_limit_and_begins_anew() -> None:
    """After one that served for a while, the next is there at once."""
    restarts = Restarts()
    delays = [restarts.after(0.0) for _ in range(100)]
    assert delays[:4] == [0.0, 0.1, 0.2, 0.4]
    assert delays[-1] == max(delays) == RESTART_DELAY_MAX_S
    assert restarts.after(STEADY_S) == 0.0


def test_a_later_epoch_replaces_the_worker(place: Place) -> None:
    """Other hosts remember later handshakes of ours than this one makes: the disk was restored from a copy, say."""

    async def scenario() -> None:
        supervisor = place.supervisor(epoch=5)
        await supervisor.start()
        pid = await served(supervisor)
        supervisor.renew(9)
        await until(lambda: supervisor.status is not None and supervisor.status.pid != pid, "another serves")
        assert place.heard(await served(supervisor))[0].startswith(f"configure epoch={9 << 32 | 2} ")
        assert supervisor.trouble(time.monotonic()) is None
        await supervisor.close(end=True)

    run(scenario())


# A start that fails


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("refuses", r"UDP port 6783 is in use by another program; its log: .*/sleeve\.log"),
        ("dies", "the sleeve worker died while starting"),
        ("mute", "the sleeve worker hung"),
        ("garbage", "the sleeve worker said a message that cannot be read"),
    ],
)
def test_a_worker_that_does_not_come_up_fails_the_launch_with_one_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, manner: str, says: str
) -> None:
    """And leaves no process."""
    if manner == "mute":
        monkeypatch.setattr(sleeve, "START_TIMEOUT_S", 3.0)
    monkeypatch.setenv("FAKE_WORKER", manner)

    async def scenario() -> None:
        supervisor = place.supervisor()
        with pytest.raises(UserError, match=says):
            await supervisor.start()
        assert place.pids() == []
        await supervisor.close(end=True)

    run(scenario())


def test_a_program_that_cannot_be_started_is_one_line(place: Place) -> None:
    """An interpreter that was removed under us."""

    async def scenario() -> None:
        supervisor = Supervisor(str(place.run_dir), str(place.state_dir), SETTINGS, 1, ("/nonexistent/python",))
        with pytest.raises(UserError, match=r"cannot start the sleeve worker \(No such file or directory"):
            await supervisor.start()

    run(scenario())


def test_a_run_directory_that_is_too_deep_is_one_line(tmp_path: Path) -> None:
    """The kernel allows 107 bytes for a socket's path."""

    async def scenario() -> None:
        supervisor = Supervisor(str(tmp_path / ("d" * 100)), str(tmp_path), SETTINGS, 1, COMMAND)
        with pytest.raises(UserError, match="set WEFT_RUN_DIR to a shorter one"):
            await supervisor.prepare()

    run(scenario())


# What a worker inherits


def test_a_worker_has_no_password_no_terminal_and_a_log_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives the daemon: whoever reads the daemon's standard error must not wait for it too."""
    monkeypatch.setenv("WEFT_PASSWORD", "hush")

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        pid = await served(supervisor)
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()
        files = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}
        log = directories.sleeve_log_path(str(place.state_dir))
        assert files == {0: "/dev/null", 1: log, 2: log}
        assert os.getsid(pid) == pid
        assert os.stat(log).st_mode & 0o777 == 0o600
        await supervisor.close(end=True)

    run(scenario())


def test_a_long_log_is_put_aside(place: Place) -> None:
    """Workers that crash for weeks fill two files and no more."""
    log = Path(directories.sleeve_log_path(str(place.state_dir)))
    log.write_bytes(b"x" * (sleeve.LOG_BYTES_MAX + 1))

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        await supervisor.close(end=True)

    run(scenario())
    assert log.stat().st_size < sleeve.LOG_BYTES_MAX < log.with_name("sleeve.log.1").stat().st_size


# Without a daemon


@pytest.mark.parametrize("manner", ["", "stopped"])
def test_reset_ends_a_worker_whose_daemon_is_down(
    place: Place, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    """It is found by its socket, and killed where it does not end."""
    monkeypatch.setattr(shutdown, "KILL_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        supervisor = place.supervisor()
        await supervisor.start()
        pid = await served(supervisor)
        await supervisor.close(end=False)
        if manner == "stopped":
            os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(shutdown.end_worker, str(place.run_dir))
        assert not place.is_worker(pid)
        await asyncio.to_thread(shutdown.end_worker, str(place.run_dir))

    run(scenario())


def test_reset_does_not_kill_a_stranger_on_the_socket(place: Place) -> None:
    """This process, for one."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place.socket))
        stranger.listen()
        with pytest.raises(UserError, match="is no sleeve worker; end it yourself, then reset again"):
            shutdown.end_worker(str(place.run_dir))
