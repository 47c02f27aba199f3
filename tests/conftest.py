"""What all tests share: their order, who may run those that need root, and proof that they leave nothing behind."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# A run under sudo must leave no files of root's in a user's checkout.
_home_of_hypothesis = tempfile.TemporaryDirectory(prefix="weft-hypothesis-")
set_hypothesis_home_dir(_home_of_hypothesis.name)
settings.register_profile("weft", database=None, deadline=None)
settings.load_profile("weft")

# A shell that starts us in its background has us ignore Ctrl-C, and whatever we start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_LABS = Path(__file__).parent / "labs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, whole daemons last; without root, those that need it say so instead of failing."""
    items.sort(key=lambda item: (_LABS in item.path.parents, item.get_closest_marker("root") is not None))
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root") is not None:
                item.add_marker(pytest.mark.skip(reason="needs root: make test runs it"))


def _namespaces_of_ours() -> set[str]:
    names = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    return {name for name in names if name.startswith(f"wt{os.getpid()}")}


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Whatever namespaces the tests of this process made are gone when they have ended."""
    yield
    assert _namespaces_of_ours() == set(), "tests left network namespaces behind"
