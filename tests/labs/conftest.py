"""Labs for whole-daemon tests: one that tests share, a maker for those that need their own, logs when one fails."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from mesh.lab import Lab

_LOG_LINES = 15
_numbers = itertools.count(1)
_open_labs: list[Lab] = []

MakeLab = Callable[..., Lab]


def _new_lab(**options: Any) -> Lab:
    lab = Lab(f"wt{os.getpid()}x{next(_numbers)}", **options)
    _open_labs.append(lab)
    return lab


@pytest.fixture(scope="module")
def make_lab() -> Iterator[MakeLab]:
    """`make_lab(hosts=2, ...)`: labs with names of their own, which go with the last test of the module."""
    made: list[Lab] = []

    def make(**options: Any) -> Lab:
        lab = _new_lab(**options)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.down()
        _open_labs.remove(lab)


@pytest.fixture(scope="module")
def mesh(make_lab: MakeLab) -> Lab:
    """Three hosts with two containers each, connected and attached: for tests that leave it as they found it."""
    lab = make_lab(hosts=3, containers=2)
    lab.up()
    return lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What daemons and workers wrote last belongs to the report of a failed test."""
    report = yield
    if report.failed:
        for lab in _open_labs:
            for node in lab.host_nodes():
                for name in ("weft.log", "sleeve.log"):
                    log = lab.state_dir(node) / name
                    tail = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
                    if tail:
                        report.sections.append((f"{node} of lab {lab.name}: {name}", "\n".join(tail)))
    return report
