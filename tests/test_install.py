"""What `make install` says to others who manage network devices, beside the program itself."""

from __future__ import annotations

import configparser
import fnmatch
import subprocess
import tomllib
from pathlib import Path

import pytest

from mesh.attachment import ifname_of

ROOT = Path(__file__).resolve().parent.parent
SHARE = ROOT / "mesh" / "share"
PLACES = {
    "NetworkManager": ["NetworkManager/conf.d/weft.conf"],
    "systemd/network": ["systemd/network/05-weft.link", "systemd/network/05-weft.network"],
}
OURS = ["weft", "weft-vx", "weft-vx6", "weft-tap", "weft-wg", ifname_of("/run/netns/web", (4, 1), None, "weft")]
OTHERS = ["eth0", "docker0", "veth1a2b", "wlan0", "virbr0", "br-weft", "enp1s0"]


def make(target: str, etc: Path) -> str:
    command = ["make", "--no-print-directory", target, f"ETCDIR={etc}", "SUDO="]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def files(etc: Path) -> list[str]:
    return sorted(str(path.relative_to(etc)) for path in etc.rglob("*") if path.is_file())


@pytest.mark.parametrize("there", [[], ["NetworkManager"], ["systemd/network"], ["NetworkManager", "systemd/network"]])
def test_only_who_is_there_is_told_and_all_of_it_is_taken_back(tmp_path: Path, there: list[str]) -> None:
    """A folder of theirs says that they are. Told twice is told once; what else they have stays."""
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "theirs").write_text("x")
    before = files(tmp_path)
    for _ in range(2):
        make(".leave-alone", tmp_path)
        assert files(tmp_path) == sorted([*before, *(place for folder in there for place in PLACES[folder])])
    for folder in there:
        for place in PLACES[folder]:
            path = tmp_path / place
            assert path.read_text() == next(SHARE.rglob(path.name)).read_text()
            assert path.stat().st_mode & 0o777 == 0o644
    for _ in range(2):
        make(".manage-again", tmp_path)
        assert files(tmp_path) == before


def test_the_files_are_in_the_package() -> None:
    """All of them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {path for pattern in settings["package-data"]["mesh"] for path in (ROOT / "mesh").glob(pattern)}
    assert {path for path in SHARE.rglob("*") if path.is_file()} == packed != set()


def test_they_name_our_devices_and_nobody_elses() -> None:
    """In the words of each: NetworkManager's list, networkd's and udevd's patterns."""
    manager = configparser.ConfigParser(delimiters=("=",))
    manager.read(SHARE / "networkmanager" / "weft.conf")
    value = manager["keyfile"]["unmanaged-devices+"]
    patterns = {"NetworkManager": [word.removeprefix("interface-name:") for word in value.split(";")]}
    for name, key in (("05-weft.network", "Name"), ("05-weft.link", "OriginalName")):
        unit = configparser.ConfigParser()
        unit.read(SHARE / "systemd" / name)
        patterns[name] = unit["Match"][key].split()
    for name, words in patterns.items():
        assert all(any(fnmatch.fnmatchcase(device, word) for word in words) for device in OURS), name
        assert not any(fnmatch.fnmatchcase(device, word) for word in words for device in OTHERS), name
