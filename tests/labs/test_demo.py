"""`make demo` as a program: it shows traffic, says so by its exit status, and leaves nothing however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab import LABS_DIR, Lab
from mesh.namespaces import NAMESPACES_DIR

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def name() -> Iterator[str]:
    unique = f"wt{os.getpid()}demo"
    yield unique
    Lab(unique).down()


def _start(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "labs.demo", "--name", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _left(name: str) -> list[str]:
    namespaces = [path.name for path in NAMESPACES_DIR.glob(f"{name}-*")] if NAMESPACES_DIR.exists() else []
    return namespaces + ([str(LABS_DIR / name)] if (LABS_DIR / name).exists() else [])


def _daemons(name: str) -> list[str]:
    """Command lines of daemons that belong to this demo."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if f"/{name}/" in line:
            found.append(line)
    return found


def test_the_demo_shows_traffic_and_leaves_nothing(name: str) -> None:
    """All sixty pings, TCP with its path, exit 0."""
    process = _start(name)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    assert "60 of 60 pings answered" in stdout
    assert "Gbit/s by path vxlan" in stdout
    assert _left(name) == []
    assert _daemons(name) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["== launching", "== attaching", "== ping over IPv6"])
def test_an_interrupted_demo_leaves_nothing(name: str, signum: signal.Signals, moment: str) -> None:
    """Ctrl-C (to the whole group) and SIGTERM (to one process): cleaned up first, then told by the exit status."""
    process = _start(name)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(moment):
            break
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signum, stderr
    assert "Traceback" not in stderr
    assert _left(name) == []
    assert _daemons(name) == []


def test_a_killed_demo_does_not_stand_in_the_way_of_the_next(name: str) -> None:
    """What `kill -9` leaves, the next demo removes before it begins."""
    process = _start(name)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("== attaching"):
            break
    process.kill()
    process.communicate(timeout=30)
    assert _left(name) != []

    again = _start(name)
    again.communicate(timeout=90)

    assert again.returncode == 0
    assert _left(name) == []
    assert _daemons(name) == []
