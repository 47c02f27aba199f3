"""The two directories of a daemon: made private, never loosened, locked, and emptied of our own files only."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from mesh import directories, shutdown
from mesh.directories import DirectoryError, RunDirectory


def test_directories_come_from_the_environment_and_are_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEFT_RUN_DIR", raising=False)
    monkeypatch.setenv("WEFT_STATE_DIR", "")
    assert (directories.run_dir(), directories.state_dir()) == ("/run/weft", "/var/lib/weft")
    monkeypatch.setenv("WEFT_RUN_DIR", "here/../run")
    assert directories.run_dir() == str(Path.cwd() / "run")


def test_a_new_directory_is_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        directories.private_directory(str(tmp_path / "a" / "b"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    directories.private_directory(str(tmp_path / "run"))
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_directory_others_can_write_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(DirectoryError, match="not ours alone"):
        directories.private_directory(str(tmp_path / "run"))
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == mode


@pytest.mark.root
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(DirectoryError, match="owner 65534"):
        directories.private_directory(str(tmp_path / "run"))


@pytest.mark.parametrize("path", ["file", "file/run", "/proc/run"])
def test_a_place_where_no_directory_can_be_is_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match="directory"):
        directories.private_directory(os.path.join(tmp_path, path))


def test_two_daemons_cannot_share_a_run_directory(tmp_path: Path) -> None:
    with RunDirectory(str(tmp_path / "run")):
        assert directories.read_pid(str(tmp_path / "run")) == os.getpid()
        with pytest.raises(DirectoryError, match="in use by another"), RunDirectory(str(tmp_path / "run")):
            pass
        assert directories.read_pid(str(tmp_path / "run")) == os.getpid()
    assert directories.read_pid(str(tmp_path / "run")) is None
    with RunDirectory(str(tmp_path / "run")):
        pass


def test_a_dead_daemons_pid_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "weft.pid").write_text("999999999\n")
    with RunDirectory(str(tmp_path)):
        assert directories.read_pid(str(tmp_path)) == os.getpid()


def test_a_pid_file_that_cannot_be_written_gives_the_directory_free_again(tmp_path: Path) -> None:
    (tmp_path / "weft.pid").mkdir()
    with pytest.raises(DirectoryError, match=r"cannot write .*weft.pid"), RunDirectory(str(tmp_path)):
        pass
    os.close(directories.lock_directory(str(tmp_path), purpose="run"))


@pytest.mark.parametrize("content", [b"", b"\n", b"x", b"-5", b"0", b"12 13", b"1" * 100, b"\xff", "١٢".encode()])
def test_what_is_no_pid_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weft.pid").write_bytes(content)
    pid = directories.read_pid(str(tmp_path))
    assert pid is None or pid == int(b"1" * 32)


def test_reset_removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    ours = ["identity.weft", "peers.weft.new", "weft.log", "weft.log.1", "weft.log.12"]
    ours += ["ipam.journal", "ipam.journal.new"]
    theirs = ["notes.txt", "weft.log.old", "weft.logs", "weft", "identity.weft.bak", "ipam.journal.bak", "journal"]
    for name in ours + theirs:
        (tmp_path / name).write_text("")
    directories.remove_state(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(theirs)


def test_a_directory_with_nothing_else_in_it_goes_too(tmp_path: Path) -> None:
    for name, remove, file in (
        ("state", directories.remove_state, "identity.weft"),
        ("run", directories.remove_run_files, "weft.pid"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
        remove(str(tmp_path / name))
        assert not (tmp_path / name).exists()
        remove(str(tmp_path / name))


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity.weft").mkdir()
    with pytest.raises(DirectoryError, match=r"cannot remove .*identity.weft"):
        directories.remove_state(str(tmp_path))


def test_reset_waits_for_a_daemon_that_is_dying(tmp_path: Path) -> None:
    """Killed, it has no name in /proc any more and holds its directory for a moment longer."""
    held = directories.lock_directory(str(tmp_path), purpose="state")
    threading.Timer(0.2, os.close, [held]).start()
    lock = shutdown._lock_state(str(tmp_path))
    assert lock is not None
    os.close(lock)
