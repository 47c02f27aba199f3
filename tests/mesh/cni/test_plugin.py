"""The plugin's own parts that need no daemon: its JSON, and that it imports nothing that takes time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.cni import plugin

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.sampled_from(["", " ", "\n\t"]))
def test_json_is_read_and_written_as_the_library_does(value: Any, blank: str) -> None:
    text = blank + json.dumps(value) + blank
    assert plugin.loads(text.encode()) == value
    assert json.loads(plugin.dumps(value)) == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0 1tfn', max_size=20).map(str.encode))
def test_what_is_no_json_is_refused_as_the_library_does(data: bytes) -> None:
    try:
        expected = json.loads(data.decode())
    except ValueError:
        with pytest.raises(ValueError):
            plugin.loads(data)
    else:
        assert plugin.loads(data) == expected or expected != expected


def test_it_imports_next_to_nothing() -> None:
    """Every start of a container pays for it."""
    source = Path(plugin.__file__)
    code = f"import sys; exec(open({str(source)!r}).read(), {{'__name__': 'weft'}}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, env={}, check=False)
    loaded = set(done.stdout.split())
    assert "_socket" in loaded, done.stderr
    assert not loaded & {"json", "re", "socket", "subprocess", "argparse", "enum", "typing", "ipaddress"}
    assert "mesh" not in loaded


@pytest.mark.parametrize("verb_that_fails", ["ADD", "none", "reading"])
def test_a_plugin_that_gives_addresses_has_them_back_when_an_add_fails(tmp_path: Path, verb_that_fails: str) -> None:
    """Its own failure included: nobody knows how far it came. Here there is no daemon."""
    said = tmp_path / "said"
    giver = tmp_path / "giver"
    answer = '{"cniVersion": "1.0.0", "ips": [{"address": "10.22.0.2/24"}]}'
    giver.write_text(
        f"#!/bin/sh\necho $CNI_COMMAND >> {said}\n"
        f"[ \"$CNI_COMMAND {verb_that_fails}\" = 'ADD reading' ] && head -c 100000 /dev/zero | tr '\\0' '[' && exit 0\n"
        f'[ $CNI_COMMAND = {verb_that_fails} ] && echo \'{{"code": 7, "msg": "no"}}\' && exit 1\necho \'{answer}\'\n'
    )
    giver.chmod(0o755)
    config = {"cniVersion": "1.0.0", "name": "weft", "type": "weft", "ipam": {"type": "giver"}}
    words = {"COMMAND": "ADD", "CONTAINERID": "x", "NETNS": "/run/netns/x", "IFNAME": "eth0", "PATH": str(tmp_path)}
    text = Path(plugin.__file__).read_text().replace('RUN_DIR = "/run/weft"', f"RUN_DIR = {str(tmp_path)!r}")
    done = subprocess.run(
        [sys.executable, "-IS", "-c", text], input=json.dumps(config), capture_output=True, text=True, check=False,
        env={f"CNI_{key}": value for key, value in words.items()},
    )  # fmt: skip
    error = json.loads(done.stdout)
    code = {"ADD": 7, "none": plugin.TRY_LATER, "reading": plugin.DELEGATE}[verb_that_fails]
    assert (done.returncode, error["code"]) == (1, code)
    assert said.read_text().split() == ["ADD", "DEL"]
