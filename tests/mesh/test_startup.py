"""Start-up is what people feel at every command, so what `weft --help` and `weft status` import is on a list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2]

BARE = {"os", "os.path", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "abc", "_abc"}
"""What every interpreter imports by itself unless it is told not to, as the tests here do for a clean count."""
HELP = {"__future__", "mesh", "mesh.cli", "mesh.errors", "mesh.usage"}
JSON = {
    "json", "json.decoder", "json.encoder", "json.scanner", "_json", "re", "re._casefix", "re._compiler",
    "re._constants", "re._parser", "_sre", "enum", "types", "operator", "_operator", "functools", "_functools",
    "collections", "_collections", "itertools", "keyword", "reprlib", "copyreg", "sre_compile", "sre_constants",
    "sre_parse",
}  # fmt: skip
"""What `json` brings: it takes half as long as the interpreter, and reading an answer needs it."""
ASK = BARE | HELP | JSON | {"mesh.client", "mesh.directories", "_socket", "errno"}
STATUS = ASK | {"mesh.render"}


def imported(run_dir: Path, *words: str) -> set[str]:
    """The modules that a command imports beyond what the bare interpreter does."""
    program = """
import sys
before = set(sys.modules)
from mesh.cli import main
status = main(sys.argv[1:])
loaded = sorted(set(sys.modules) - before)
import json
print(json.dumps([status, loaded]), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *words], capture_output=True, text=True, timeout=60, check=True,
        env={"PYTHONPATH": str(SOURCE), "WEFT_RUN_DIR": str(run_dir), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    status, modules = json.loads(done.stderr)
    assert status == 0
    return set(modules)


def test_help_imports_its_own_three_modules(run_dir: Path) -> None:
    assert imported(run_dir, "--help") <= HELP
    assert imported(run_dir, "attach", "--help") <= HELP


@pytest.mark.parametrize("words", [["status"], ["status", "peers"], ["ps"]], ids=" ".join)
def test_status_imports_nothing_that_takes_time_but_json(daemon: Any, run_dir: Path, words: list[str]) -> None:
    daemon.answers.update(status={"version": "0"}, peers=[], ps=[])
    found = imported(run_dir, *words)
    assert found - STATUS == set()
    assert "mesh.client" in found


def test_json_output_does_without_the_text_renderer(daemon: Any, run_dir: Path) -> None:
    daemon.answers["endpoints"] = []
    assert imported(run_dir, "status", "endpoints", "--json") - ASK == set()
