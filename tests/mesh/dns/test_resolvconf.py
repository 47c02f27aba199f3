"""resolv.conf: what counts of the host's, and what becomes of the files of namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dns import resolvconf
from mesh.dns.resolvconf import HostFile, NamespaceFiles, ResolvConf, compose, parse

TEXT = """# a comment
; another
domain old.example
search corp.example  lab.example corp.example $(evil)
nameserver 192.0.2.1
nameserver fe80::1%eth0
nameserver not-an-address
nameserver 192.0.2.1 trailing
options ndots:2
nameserver
"""


def test_servers_and_search_domains_are_read() -> None:
    """Each once, the last list of domains, nothing that is no address or no name."""
    assert parse(TEXT) == ResolvConf(("192.0.2.1", "fe80::1%eth0"), ("corp.example", "lab.example"))


@given(st.text())
def test_no_file_is_too_strange(text: str) -> None:
    parsed = parse(text)
    assert len(parsed.servers) <= resolvconf.SERVERS_MAX and len(parsed.search) <= resolvconf.SEARCH_MAX


def test_what_is_written_is_read_again() -> None:
    """Our domain first, then the host's, each once; our server alone."""
    text = compose("169.254.6.53", "weft.local.", ["corp.example", "weft.local"], "/state")
    assert parse(text) == ResolvConf(("169.254.6.53",), ("weft.local", "corp.example"))


def test_the_hosts_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Also when another takes its place, and when there is none."""
    path = tmp_path / "resolv.conf"
    host = HostFile(path)
    assert not host.look() and host.content == ResolvConf()
    path.write_text("nameserver 192.0.2.1\n")
    assert host.look() and not host.look() and host.content.servers == ("192.0.2.1",)
    (tmp_path / "other").write_text("nameserver 192.0.2.2\n")
    os.replace(tmp_path / "other", path)
    assert host.look() and host.content.servers == ("192.0.2.2",)
    path.unlink()
    assert host.look() and host.content == ResolvConf()


def test_a_file_comes_and_goes_with_its_directory(tmp_path: Path) -> None:
    """Readable for all, whatever the umask; nothing else is in the directory on the way."""
    files = NamespaceFiles(tmp_path / "netns", "/state")
    old = os.umask(0o077)
    try:
        files.write("c1", compose("169.254.6.53", "weft.local", [], "/state"))
    finally:
        os.umask(old)
    path = tmp_path / "netns" / "c1" / "resolv.conf"
    assert path.stat().st_mode & 0o777 == 0o644 and os.listdir(path.parent) == ["resolv.conf"]
    files.remove("c1")
    assert not path.parent.exists() and files.troubles == {}


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    """And said to be there; neither written over nor removed."""
    files, path = NamespaceFiles(tmp_path, "/state"), tmp_path / "c1" / "resolv.conf"
    path.parent.mkdir()
    path.write_text("nameserver 9.9.9.9\n")
    files.write("c1", compose("169.254.6.53", "weft.local", [], "/state"))
    assert path.read_text() == "nameserver 9.9.9.9\n" and "somebody else's" in files.troubles["c1"]
    files.remove("c1")
    assert path.exists() and files.troubles == {}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_somebody_elses_whether_it_leads_anywhere_or_not(tmp_path: Path, there: bool) -> None:
    files, path = NamespaceFiles(tmp_path, "/state"), tmp_path / "c1" / "resolv.conf"
    text = compose("169.254.6.53", "weft.local", [], "/state")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    if there:
        (tmp_path / "elsewhere").write_text(text)
    files.write("c1", text)
    assert path.is_symlink() and "somebody else's" in files.troubles["c1"]
    files.remove("c1")
    assert path.is_symlink() and (tmp_path / "elsewhere").exists() == there


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    files = NamespaceFiles(tmp_path, "/state")
    files.write("c1", compose("169.254.6.53", "weft.local", [], "/state"))
    (tmp_path / "c1" / "hosts").write_text("")
    files.remove("c1")
    assert os.listdir(tmp_path / "c1") == ["hosts"]


def test_only_this_daemons_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several daemons on one machine write into one directory; namespaces that are gone are everybody's to forget."""
    monkeypatch.setattr(resolvconf, "NETNS_DIRECTORY", tmp_path)
    for name, owner in (("c1", "/a"), ("c2", "/b"), ("c3", "/a")):
        NamespaceFiles(tmp_path, owner).write(name, compose("169.254.6.53", "weft.local", [], owner))
    NamespaceFiles(tmp_path, "/a").remove_all(but=["c3"])
    assert sorted(os.listdir(tmp_path)) == ["c2", "c3"]
    resolvconf.forget("c2")
    assert sorted(os.listdir(tmp_path)) == ["c3"]


def test_a_file_that_cannot_be_written_is_a_trouble_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "c1").write_text("no directory")
    files = NamespaceFiles(tmp_path, "/state")
    files.write("c1", "text")
    assert "cannot write" in files.troubles["c1"]
