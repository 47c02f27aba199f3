"""`launch`, `stop` and `reset` as processes: what the terminal shows, what is left behind, whom they dare to kill.

The daemon's inside is substituted (`substitute/sitecustomize.py`); nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh import client, directories, launch, shutdown
from mesh.errors import UserError

pytestmark = pytest.mark.root

Done = subprocess.CompletedProcess[str]
SUBSTITUTE = Path(__file__).with_name("substitute")
SOURCE = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for one daemon; whatever still runs there at the end is ended."""
    monkeypatch.setenv("PYTHONPATH", str(SUBSTITUTE))
    monkeypatch.setenv("SUBSTITUTE_KERNEL", str(tmp_path / "kernel"))
    monkeypatch.setenv("WEFT_PASSWORD", "")
    run_dir.rmdir()
    yield tmp_path
    with shutdown.find_daemon(str(run_dir)) as process:
        if isinstance(process, shutdown.DaemonProcess):
            process.kill(signal.SIGKILL)
            assert process.wait_gone(10)


@pytest.fixture
def weft(here: Path, weft: Callable[..., Done]) -> Callable[..., Done]:
    def run(*words: str, **more: Any) -> Done:
        environment = {"PYTHONPATH": f"{SUBSTITUTE}{os.pathsep}{SOURCE}", **more.pop("env", {})}
        if words[0] == "launch":
            words = (*words, "--config", str(here / "weft.toml"))
        return weft(*words, env=environment, **more)

    return run


def ended(done: Done, *says: str) -> None:
    assert (done.returncode, done.stdout) == (1, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in says:
        assert words in done.stderr


def asked(weft: Callable[..., Done]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(weft("status", "--json").stdout)
    return answer


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def daemons_of(here: Path) -> list[int]:
    """Processes that were started as the daemon of this test's run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"--ready-fd" in words and os.fsencode(here / "run") in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def test_launch_returns_when_the_daemon_serves_and_stop_when_it_is_gone(weft: Any, here: Path) -> None:
    done = weft("launch")
    assert (done.returncode, done.stderr) == (0, "")
    daemon = asked(weft)
    assert done.stdout == f"weft serves as pid {daemon['pid']}; log: {here}/state/weft.log\n"
    assert directories.read_pid(str(here / "run")) == daemon["pid"]
    assert weft("stop").returncode == 0
    assert not alive(daemon["pid"])
    assert os.listdir(here / "run") == []
    assert sorted(os.listdir(here / "state")) == ["identity.weft", "weft.log"]


def test_the_daemon_is_detached_from_whoever_typed_launch(weft: Any, here: Path) -> None:
    weft("launch")
    daemon = asked(weft)
    pid = daemon["pid"]
    assert daemons_of(here) == [pid]
    assert daemon["cwd"] == "/"
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)} == {str(here / "state" / "weft.log")}
    open_pipes = [
        number for number in os.listdir(f"/proc/{pid}/fd") if "pipe:" in os.readlink(f"/proc/{pid}/fd/{number}")
    ]
    assert open_pipes == []
    assert stat.S_IMODE((here / "state" / "weft.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((here / "run").stat().st_mode) == stat.S_IMODE((here / "state").stat().st_mode) == 0o700


def test_flags_reach_the_daemon_and_secrets_stay_off_its_command_line(weft: Any, here: Path) -> None:
    (here / "secret").write_text("hush\nolder\n")
    (here / "weft.toml").write_text("mtu = 1400\nnickname = 'from-file'\n")
    words = ["host2", "[fd00::3]:6800", "--port=7000", "--nickname", "left", "--password-file", "secret", "--no-vxlan"]
    assert weft("launch", *words, cwd=here).returncode == 0
    daemon = asked(weft)
    assert daemon["peers"] == ["host2", "[fd00::3]:6800"]
    assert (daemon["port"], daemon["nickname"], daemon["mtu"], daemon["vxlan"]) == (7000, "left", 1400, False)
    assert daemon["passwords"] == ["hush", "older"]
    assert daemon["log_file"] == str(here / "state" / "weft.log")
    assert not any("hush" in word or "secret" in word for word in daemon["argv"])


def test_relative_directories_mean_where_launch_was_typed(weft: Any, here: Path) -> None:
    environment = {"WEFT_RUN_DIR": "run", "WEFT_STATE_DIR": "state"}
    assert weft("launch", cwd=here, env=environment).returncode == 0
    assert asked(weft)["state_dir"] == str(here / "state")
    assert weft("stop", cwd=here, env=environment).returncode == 0


def test_a_source_tree_in_the_current_directory_is_found_by_the_daemon_too(weft: Any, here: Path) -> None:
    environment = {"PYTHONPATH": os.path.relpath(SUBSTITUTE, SOURCE)}
    assert weft("launch", cwd=SOURCE, env=environment).returncode == 0
    assert weft("stop").returncode == 0


def test_a_second_launch_is_one_line_and_disturbs_nothing(weft: Any, here: Path) -> None:
    weft("launch")
    pid = asked(weft)["pid"]
    ended(weft("launch", "host2"), f"already running (pid {pid})", "weft connect PEER", "weft stop")
    ended(weft("launch", "--foreground"), "already running")
    assert asked(weft)["pid"] == pid


def test_a_socket_and_a_pid_of_a_killed_daemon_are_no_obstacle(weft: Any, here: Path) -> None:
    weft("launch")
    killed = asked(weft)["pid"]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not alive(killed))
    assert {"weft.sock", "weft.pid"} <= set(os.listdir(here / "run"))
    assert weft("launch").returncode == 0
    assert asked(weft)["pid"] != killed


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("refuses", ["weft: TCP port 6783 is in use by another program; end that one\n"]),
        ("crashes", ["the daemon crashed (RuntimeError: inside the daemon); its log has the details"]),
        ("killed", ["ended while starting (status -9)", "fatal: something in C went wrong", "/state/weft.log"]),
        ("leaves", ["ended while starting (status 3)", "(none)", "/state/weft.log"]),
    ],
)
def test_a_daemon_that_does_not_come_up_says_why(weft: Any, here: Path, how: str, says: list[str]) -> None:
    ended(weft("launch", env={"SUBSTITUTE": how}), *says)
    assert not (here / "run" / "weft.sock").exists()
    if how == "crashes":
        assert "Traceback" in (here / "state" / "weft.log").read_text()


def test_the_last_words_are_this_launchs_own(weft: Any, here: Path) -> None:
    (here / "state").mkdir(mode=0o700)
    (here / "state" / "weft.log").write_text("an old story\n")
    ended(weft("launch", env={"SUBSTITUTE": "leaves"}), "last words: (none)")


def test_a_daemon_that_never_comes_up_is_ended(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUBSTITUTE", "never-ready")
    monkeypatch.setattr(launch, "LAUNCH_TIMEOUT_S", 1.5)
    monkeypatch.setattr(launch, "PROGRESS_AFTER_S", 0.5)
    monkeypatch.setattr(launch, "END_TIMEOUT_S", 0.5)
    from mesh import usage

    parsed = usage.parse(usage.find_verb("launch"), [])
    assert parsed is not None
    started = time.monotonic()
    with pytest.raises(UserError, match="did not come up within"):
        launch.launch(parsed)
    assert time.monotonic() - started < 10
    assert capfd.readouterr().err.startswith("weft: still starting; log: ")
    assert daemons_of(here) == []


def test_ctrl_c_during_launch_leaves_no_daemon(weft: Any, here: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{SUBSTITUTE}{os.pathsep}{SOURCE}", "SUBSTITUTE": "never-ready"}
    typed = subprocess.Popen([sys.executable, "-m", "mesh", "launch"], env=environment, stderr=subprocess.PIPE)
    wait_until(lambda: len(daemons_of(here)) == 1)
    typed.send_signal(signal.SIGINT)
    assert typed.wait(launch.END_TIMEOUT_S) == 130
    assert daemons_of(here) == []


def test_in_the_foreground_it_logs_to_the_terminal_and_ends_with_stop(weft: Any, here: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{SUBSTITUTE}{os.pathsep}{SOURCE}"}
    words = [sys.executable, "-m", "mesh", "launch", "--foreground", "--config", str(here / "absent")]
    daemon = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: weft("status").returncode == 0)
    assert asked(weft)["pid"] == daemon.pid
    assert weft("stop").returncode == 0
    assert "info serving" in daemon.communicate(timeout=10)[1]
    assert daemon.returncode == 0
    assert not (here / "state" / "weft.log").exists()


def test_a_failure_in_the_foreground_is_the_last_line(weft: Any, here: Path) -> None:
    done = weft("launch", "--foreground", env={"SUBSTITUTE": "refuses"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "weft: TCP port 6783 is in use by another program; end that one"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--prot", "1"], 2, "unknown option"),
        (["host:port"], 2, "no valid port"),
        (["--ready-fd", "x", "--foreground"], 1, "own use"),
        (["--ready-fd", "99", "--foreground"], 1, "own use"),
        (["--password-file", "/nonexistent"], 1, "cannot read /nonexistent"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    weft: Any, here: Path, words: list[str], status: int, says: str
) -> None:
    done = weft("launch", *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1)
    assert says in done.stderr
    assert not (here / "run").exists()
    assert not (here / "state").exists()


def test_a_wrong_file_is_named(weft: Any, here: Path) -> None:
    (here / "weft.toml").write_text("prot = 1")
    ended(weft("launch"), f"{here}/weft.toml: there is no setting 'prot'")


def test_an_open_state_directory_is_refused(weft: Any, here: Path) -> None:
    (here / "state").mkdir()
    (here / "state").chmod(0o777)
    ended(weft("launch"), "state is not ours alone")


def test_a_corrupt_document_is_refused_by_the_launch(weft: Any, here: Path) -> None:
    weft("launch")
    weft("stop")
    (here / "state" / "weft.pid").write_text("x")
    ended(weft("launch", env={"WEFT_STATE_DIR": str(here / "state" / "weft.pid")}), "is not a directory")


def test_launch_and_reset_without_root_say_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from mesh import cli

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["launch"]) == cli.main(["reset", "--force"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("try `sudo weft launch`")
    assert second.endswith("try `sudo weft reset`")


# stop


def test_stop_waits_for_a_daemon_that_takes_its_time(weft: Any, here: Path) -> None:
    weft("launch", env={"SUBSTITUTE": "lingers"})
    pid = asked(weft)["pid"]
    assert weft("stop").returncode == 0
    assert not alive(pid)


def test_stop_tells_of_a_daemon_that_does_not_end(
    weft: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    weft("launch", env={"SUBSTITUTE": "stays"})
    monkeypatch.setattr(shutdown, "STOP_TIMEOUT_S", 0.4)
    monkeypatch.setattr(shutdown, "PROGRESS_INTERVAL_S", 0.2)
    with pytest.raises(UserError, match=r"pid \d+\) said it would stop and has not ended"):
        shutdown.stop()
    assert "waiting for the daemon to end" in capsys.readouterr().err


def test_stop_without_a_pid_file_watches_the_socket(weft: Any, here: Path) -> None:
    weft("launch")
    pid = asked(weft)["pid"]
    (here / "run" / "weft.pid").unlink()
    assert weft("stop").returncode == 0
    assert not (here / "run" / "weft.sock").exists()
    wait_until(lambda: not alive(pid))


def test_stop_leaves_the_kernel_alone(weft: Any, here: Path) -> None:
    weft("launch")
    weft("stop")
    assert not (here / "kernel").exists()


# reset


def everything_is_gone(here: Path) -> None:
    assert (here / "kernel").read_text() == "teardown\nclose\n"
    assert not (here / "run").exists()
    assert not (here / "state").exists()


def test_reset_ends_the_daemon_and_removes_everything(weft: Any, here: Path) -> None:
    weft("launch")
    pid = asked(weft)["pid"]
    done = weft("reset")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not alive(pid)
    everything_is_gone(here)


def test_reset_without_a_daemon_removes_everything(weft: Any, here: Path) -> None:
    weft("launch")
    weft("stop")
    assert weft("reset", "--force").returncode == 0
    everything_is_gone(here)


def test_reset_after_a_killed_daemon_removes_everything(weft: Any, here: Path) -> None:
    weft("launch")
    pid = asked(weft)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    assert weft("reset").returncode == 0
    everything_is_gone(here)


def test_reset_where_nothing_ever_was_is_no_error(weft: Any, here: Path) -> None:
    assert weft("reset").returncode == 0
    assert (here / "kernel").read_text() == "teardown\nclose\n"


def test_reset_removes_a_corrupt_state(weft: Any, here: Path) -> None:
    weft("launch")
    weft("stop")
    (here / "state" / "identity.weft").write_bytes(b"\0\0\0")
    assert weft("reset").returncode == 0
    everything_is_gone(here)


def test_reset_leaves_other_peoples_files_alone(weft: Any, here: Path) -> None:
    weft("launch")
    (here / "state" / "notes.txt").write_text("mine")
    assert weft("reset").returncode == 0
    assert os.listdir(here / "state") == ["notes.txt"]


def test_reset_takes_the_state_directory_of_the_daemon_it_ends(weft: Any, here: Path) -> None:
    weft("launch")
    assert weft("reset", env={"WEFT_STATE_DIR": str(here / "elsewhere")}).returncode == 0
    everything_is_gone(here)


@pytest.mark.parametrize("how", ["stays", "hangs", "stopped"])
def test_reset_kills_a_daemon_that_hangs(
    weft: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, how: str
) -> None:
    weft("launch", env={"SUBSTITUTE": how})
    pid = asked(weft)["pid"]
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    for name in ("STOP_TIMEOUT_S", "PROGRESS_INTERVAL_S", "RESET_ANSWER_TIMEOUT_S", "KILL_TIMEOUT_S"):
        monkeypatch.setattr(shutdown, name, 0.3)
    removed = here / "kernel"
    monkeypatch.setattr(shutdown, "_remove_kernel_state", lambda memory: removed.write_text("teardown\nclose\n"))
    assert shutdown.reset(force=True) == 0
    assert "without" in capsys.readouterr().err
    assert not alive(pid)
    everything_is_gone(here)


def test_reset_goes_on_where_the_daemon_cannot(weft: Any, here: Path) -> None:
    weft("launch", env={"SUBSTITUTE": "cannot-reset"})
    done = weft("reset")
    assert done.returncode == 0
    assert done.stderr == "weft: the kernel is busy; removing everything without the daemon\n"
    everything_is_gone(here)


def test_reset_keeps_the_state_where_the_kernel_cannot_be_cleaned(weft: Any, here: Path) -> None:
    weft("launch")
    weft("stop")
    ended(weft("reset", env={"SUBSTITUTE": "busy-kernel"}), "cannot clean the kernel (device is busy)")
    assert (here / "state" / "identity.weft").exists()


def test_reset_does_not_kill_a_stranger_who_has_the_pid_now(weft: Any, here: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()", "mesh", "launch"], stdin=subprocess.PIPE)
    (here / "run").mkdir(mode=0o700)
    (here / "run" / "weft.pid").write_text(str(stranger.pid))
    try:
        with in_environment("WEFT_RUN_DIR", str(here / "another")):
            other = subprocess.Popen([sys.executable, "-c", "input()", "mesh", "launch"], stdin=subprocess.PIPE)
        try:
            assert isinstance(shutdown.find_daemon(str(here / "run")), shutdown.DaemonProcess)  # told by both
            (here / "run" / "weft.pid").write_text(str(other.pid))
            assert isinstance(shutdown.find_daemon(str(here / "run")), shutdown.NoProcess)
            assert weft("reset").returncode == 0
            assert other.poll() is None
        finally:
            other.communicate(b"\n", timeout=10)
    finally:
        stranger.communicate(b"\n", timeout=10)


@contextlib.contextmanager
def in_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ[name]
    os.environ[name] = value
    yield
    os.environ[name] = before


def test_reset_does_not_guess_who_serves_the_socket(
    weft: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (here / "run").mkdir(mode=0o700)
    monkeypatch.setattr(shutdown, "RESET_ANSWER_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(here / "run" / "weft.sock"))
        mute.listen()
        with pytest.raises(UserError, match="does not name it"):
            shutdown.reset(force=True)
    assert not (here / "kernel").exists()


def test_a_hung_daemons_full_queue_counts_as_running(here: Path) -> None:
    (here / "run").mkdir(mode=0o700)
    path = str(here / "run" / "weft.sock")
    with socket.socket(socket.AF_UNIX) as mute, contextlib.ExitStack() as waiting:
        mute.bind(path)
        mute.listen(0)
        with pytest.raises(client.DaemonSilent):
            for _ in range(8):
                waiting.callback(client.connect(path, timeout_s=0.2).close)
        assert shutdown.answers(str(here / "run"))
