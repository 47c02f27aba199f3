"""Log lines: one event each, fields that cannot forge others, a size that is bounded."""

from __future__ import annotations

import io
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.EventFormatter())
    logger = logging.getLogger("weft")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_a_line_is_time_level_event_and_fields(lines: io.StringIO) -> None:
    logs.EventLog("links").warning("link-down", peer="host2", after_s=1.5, reason="no heartbeat")
    time, rest = lines.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert len(time) == len("2026-01-31T12:00:00.123Z")
    assert rest == 'warning link-down peer=host2 after_s=1.5 reason="no heartbeat"\n'


def test_levels_below_the_chosen_one_are_silent(lines: io.StringIO) -> None:
    log = logs.EventLog("links")
    log.debug("quiet")
    log.info("said")
    log.error("said-too")
    assert [line.split()[2] for line in lines.getvalue().splitlines()] == ["said", "said-too"]


def test_what_a_stranger_wrote_cannot_forge_a_line(lines: io.StringIO) -> None:
    hostile = 'x\n2026-01-31T12:00:00.123Z info link-up peer="host9" \x1b[2J \u202e\u2028'
    logs.EventLog("links").info("greeted", nickname=hostile)
    assert len(lines.getvalue().splitlines()) == 1
    assert lines.getvalue().rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"), (7, "7"), (None, "None"), ("", '""'), ("a b", '"a b"'), ("a=b", '"a=b"'),
        ("zoë", "zoë"), ("zoë x", '"zoë x"'), ("\udcff", '"\\udcff"'), ("x" * 1025, "x" * 1024 + "..."),
    ],
)  # fmt: skip
def test_a_value_is_one_word(value: object, text: str) -> None:
    assert logs.format_value(value) == text


def test_a_traceback_is_indented_under_its_event(lines: io.StringIO) -> None:
    try:
        raise RuntimeError("inside")
    except RuntimeError:
        logs.EventLog("api").exception("request-crashed", verb="attach")
    first, *rest = lines.getvalue().splitlines()
    assert first.endswith("error request-crashed verb=attach")
    assert rest[-1] == "  RuntimeError: inside"
    assert all(line.startswith("  ") for line in rest)


def test_a_librarys_record_is_an_event_of_its_name(lines: io.StringIO) -> None:
    logging.getLogger("weft.other").info("%d things happened", 2)
    assert lines.getvalue().endswith('info weft.other message="2 things happened"\n')


def in_a_process(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`configure` takes the standard streams of the whole process, so it is tried in one of its own."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\nfrom mesh import logs\n{program}", *words],
        capture_output=True, text=True, timeout=60, check=True, env=environment,
    )  # fmt: skip


def test_the_file_is_rotated_private_and_bounded(tmp_path: Path) -> None:
    program = """
logs.LOG_BYTES_MAX = 2000
logs.configure("info", sys.argv[1])
log = logs.EventLog("test")
for number in range(200):
    log.info("filling", number=number)
os.write(2, b"the last words of the interpreter\\n")
"""
    in_a_process(program, str(tmp_path / "weft.log"))
    names = sorted(os.listdir(tmp_path))
    assert names == ["weft.log", *(f"weft.log.{number}" for number in range(1, logs.LOG_FILES_KEPT + 1))]
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in names)
    assert all((tmp_path / name).stat().st_size <= 2100 for name in names)
    assert (tmp_path / "weft.log").read_text().endswith("number=199\nthe last words of the interpreter\n")


def test_without_a_file_the_log_goes_to_standard_error() -> None:
    program = 'logs.configure("warning", None)\nlog = logs.EventLog("t")\nlog.warning("here")\nlog.info("not here")'
    done = in_a_process(program)
    assert done.stderr.endswith("warning here\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    done = in_a_process('logs.configure("info", "/dev/full")\nlogs.EventLog("t").info("lost")\nos._exit(7 - 7)')
    assert done.returncode == 0
