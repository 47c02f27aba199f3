"""Links that are deleted: gone when `delete` comes back, in every namespace, and taken up again at once."""

from __future__ import annotations

import errno
import json

import pytest

from dataplane.linux import links, removal
from tests.linux.hosts import Lab, Space

pytestmark = pytest.mark.root


def names(space: Space) -> set[str]:
    return {link["ifname"] for link in json.loads(space.run("ip", "-json", "link"))} - {"lo"}


def index(space: Space, name: str) -> int:
    return int(json.loads(space.run("ip", "-json", "link", "show", name))[0]["ifindex"])


def make(space: Space, inner: Space, number: int) -> int:
    space.run("ip", "link", "add", f"vw{number}", "type", "veth", "peer", f"eth{number}", "netns", inner.name)
    inner.run("ip", "link", "set", f"eth{number}", "up")
    space.run("ip", "link", "set", f"vw{number}", "master", "wall", "up")
    return index(space, f"vw{number}")


@pytest.fixture
def spaces(lab: Lab) -> tuple[Space, Space]:
    outer, inner = lab.space("o"), lab.space("i")
    outer.run("ip", "link", "add", "wall", "type", "bridge")
    return outer, inner


def test_a_pair_is_gone_from_both_sides_and_its_names_are_free(spaces: tuple[Space, Space]) -> None:
    outer, inner = spaces
    for _ in range(20):
        made = make(outer, inner, 0)
        outer.inside(lambda made=made: removal.delete(links.one(made), [made]))
        assert names(outer) == {"wall"} and not names(inner)


def test_many_are_gone_together(spaces: tuple[Space, Space]) -> None:
    outer, inner = spaces
    made = [make(outer, inner, number) for number in range(12)]
    for number in range(12):
        outer.run("ip", "link", "set", f"vw{number}", "group", "77")
    outer.inside(lambda: removal.delete(links.all_of_group(77), made))
    assert names(outer) == {"wall"} and not names(inner)


def test_what_the_kernel_refuses_is_told(spaces: tuple[Space, Space]) -> None:
    with pytest.raises(OSError) as refused:
        spaces[0].inside(lambda: removal.delete(links.one(4711), [4711]))
    assert refused.value.errno == errno.ENODEV
