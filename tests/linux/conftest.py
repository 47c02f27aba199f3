"""The lab as fixtures; it is gone when the test has ended, whatever happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.linux.hosts import Lab, Pair


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pair(lab: Lab) -> Pair:
    made = Pair(lab)
    made.start()
    return made
