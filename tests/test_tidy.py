"""Tidiness that a machine can check: headers, sizes, names, and nothing left for later.

The limits are the point at which a file or a function has become a design question. Runs over every Python file of the
project, tests included, and tries its own checks on planted faults.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gossip", "dataplane", "mesh", "bench", "labs", "tests")

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "managers"}
# Written apart, so that this file does not find itself.
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")


def findings(name: str, source: str) -> list[str]:
    """What is untidy in one file, as `name:line: what`."""
    tree = ast.parse(source)
    lines = source.splitlines()
    found = []
    if Path(name).stem in BANNED_NAMES:
        found.append(f"{name}:1: a drawer's name: call the module by the noun it serves")
    if lines and not (ast.get_docstring(tree) or "").strip():
        found.append(f"{name}:1: no header: say what the module is for and what it does not know")
    if len(lines) > FILE_LINES_MAX:
        found.append(f"{name}:{len(lines)}: {len(lines)} lines, more than {FILE_LINES_MAX}: which two things is it?")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(f"{name}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES_MAX}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{name}:{node.lineno}: a bare except swallows cancellation and Ctrl-C: name what is expected")
    for number, line in enumerate(lines, start=1):
        if MARKERS.search(line):
            found.append(f"{name}:{number}: left for later: do it, or say in words what is not there")
    return found


def python_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_every_file_is_tidy() -> None:
    """No file breaks a rule of this page."""
    assert [line for path in python_files() for line in findings(str(path.relative_to(ROOT)), path.read_text())] == []


def test_there_is_something_to_check() -> None:
    """A list of files that came out empty would make the test above a lie."""
    folders = {path.relative_to(ROOT).parts[0] for path in python_files()}
    assert {"gossip", "dataplane", "mesh", "bench", "tests"} <= folders


HEADER = '"""What it is for."""\n'


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("mesh/helpers.py", HEADER, "a drawer's name"),
        ("mesh/x.py", "import os\n", "no header"),
        ("mesh/x.py", HEADER + "x = 1\n" * FILE_LINES_MAX, "which two things"),
        ("mesh/x.py", HEADER + "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, "f has 81 lines"),
        ("mesh/x.py", HEADER + "# TO" + "DO: later\n", "left for later"),
        ("mesh/x.py", HEADER + "try:\n    x = 1\nexcept:\n    pass\n", "a bare except"),
    ],
)
def test_a_planted_fault_is_found(name: str, source: str, expected: str) -> None:
    """Each rule finds what it is for, and nothing else in the same file."""
    found = findings(name, source)
    assert len(found) == 1
    assert expected in found[0]


def test_a_file_at_the_limits_is_tidy() -> None:
    """The limits are what is still allowed."""
    function = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)
    rest = "x = 1\n" * (FILE_LINES_MAX - 1 - FUNCTION_LINES_MAX)
    assert findings("mesh/x.py", HEADER + function + rest) == []
