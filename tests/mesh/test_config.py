"""One configuration from flags, environment and file: who wins, and what each mistake is answered with."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from dataplane.desired import VXLAN_OFFLOADS
from dataplane.sleeve.control import OFFLOADS
from mesh import arguments, config, usage
from mesh.errors import UsageError, UserError
from mesh.ipam.ranges import Allocation


@pytest.fixture(autouse=True)
def _directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("WEFT_STATE_DIR", str(tmp_path / "state"))


def parse(*words: str) -> usage.Parsed:
    parsed = usage.parse(usage.find_verb("launch"), words)
    assert parsed is not None
    return parsed


def load(tmp_path: Path, *words: str, file: str | None = None, **environment: str) -> config.LaunchConfig:
    path = tmp_path / "weft.toml"
    if file is not None:
        path.write_text(file)
    return config.load(parse("--config", str(path), *words), environment, background=True)


def test_defaults_need_no_file(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.run_dir == str(tmp_path / "run")
    assert found.log_file == str(tmp_path / "state" / "weft.log")
    assert (found.peers, found.passwords, found.port, found.host) == (None, (), 6783, "")
    assert (found.mtu, found.discovery, found.vxlan, found.log_level) == (None, True, True, "info")
    assert found.nickname


def test_offloads_have_the_names_that_the_worker_knows() -> None:
    assert (*OFFLOADS, *VXLAN_OFFLOADS) == arguments.OFFLOADS


def test_in_the_foreground_the_log_goes_to_standard_error(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    assert config.load(parse("--config", absent), {}, background=False).log_file is None


def test_every_flag_has_its_place(tmp_path: Path) -> None:
    found = load(
        tmp_path, "host2", "[fd00::3]:6800", "host2", "--port", "7000", "--host", "10.0.0.1",
        "--advertise", "192.0.2.1", "--advertise=fd00::1", "--nickname", "left", "--mtu=1400",
        "--no-discovery", "--no-vxlan", "--log-level", "debug", "--without-offload", "udp-gro,tap",
        "--without-offload=tap",
    )  # fmt: skip
    assert found.peers == ("host2", "[fd00::3]:6800")
    assert (found.port, found.host, found.advertise) == (7000, "10.0.0.1", ("192.0.2.1", "fd00::1"))
    assert (found.nickname, found.mtu, found.discovery, found.vxlan) == ("left", 1400, False, False)
    assert (found.log_level, found.offloads_off) == ("debug", ("tap", "udp-gro"))


FILE = """
peers = ["host5", "10.0.0.7:6800"]
port = 7001
host = "10.0.0.2"
advertise = "192.0.2.2"
nickname = "from-file"
mtu = 8950
no-discovery = true
no-vxlan = false
log-level = "warning"
without-offload = ["udp-segment"]
password = "from file"
"""


def test_the_file_has_the_names_of_the_flags(tmp_path: Path) -> None:
    found = load(tmp_path, file=FILE)
    assert found.peers == ("host5", "10.0.0.7:6800")
    assert (found.port, found.host, found.advertise) == (7001, "10.0.0.2", ("192.0.2.2",))
    assert (found.nickname, found.mtu, found.discovery, found.vxlan) == ("from-file", 8950, False, True)
    assert (found.log_level, found.passwords) == ("warning", ("from file",))
    assert found.offloads_off == ("udp-segment",)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    flagged = load(tmp_path, "h", "--port=7002", "--password", "flag", file=FILE, WEFT_PASSWORD="environment")
    assert (flagged.peers, flagged.port, flagged.passwords) == (("h",), 7002, ("flag",))
    assert load(tmp_path, file=FILE, WEFT_PASSWORD="environment").passwords == ("environment",)


def test_docker_is_asked_where_its_own_command_would_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless we are told otherwise. A Docker on another host has no namespaces here."""
    monkeypatch.chdir(tmp_path)
    for environment, path in (
        ({}, "/var/run/docker.sock"),
        ({"DOCKER_HOST": "unix:///run/user/0/docker.sock"}, "/run/user/0/docker.sock"),
        ({"DOCKER_HOST": "tcp://10.1.2.3:2375"}, "/var/run/docker.sock"),
        ({"DOCKER_HOST": "ssh://host2"}, "/var/run/docker.sock"),
        ({"DOCKER_HOST": "unix://"}, "/var/run/docker.sock"),
        ({"DOCKER_HOST": "unix:///a.sock", "WEFT_DOCKER_SOCKET": "/b.sock"}, "/b.sock"),
        ({"WEFT_DOCKER_SOCKET": "here.sock"}, str(tmp_path / "here.sock")),
    ):
        assert load(tmp_path, **environment).docker_socket == path


def test_passwords_are_one_a_line_in_their_order(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_bytes(b"new one\r\n\r\nold\nnew one\n")
    assert load(tmp_path, "--password-file", str(secrets)).passwords == ("new one", "old")
    assert load(tmp_path, WEFT_PASSWORD="a\nb").passwords == ("a", "b")


def test_a_password_file_in_the_file_is_found_beside_it(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("beside\n")
    assert load(tmp_path, file='password-file = "secrets"').passwords == ("beside",)


def test_passwords_are_not_in_the_text_of_a_configuration(tmp_path: Path) -> None:
    assert "hush" not in repr(load(tmp_path, WEFT_PASSWORD="hush"))


def test_an_empty_environment_variable_means_no_password(tmp_path: Path) -> None:
    assert load(tmp_path, WEFT_PASSWORD="").passwords == ()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--password="], "holds no password"),
        (["--password", "a\tb"], "printable"),
        (["--password", "a\udcffb"], "printable"),
        (["--password", "p" * 1025], "at most 1024 bytes"),
        (["--password", "\n".join("abcdefghi")], "9 passwords"),
        (["--password-file", "/nonexistent/secrets"], "cannot read /nonexistent/secrets"),
        (["--password-file", "/"], "cannot read /"),
        (["--password-file", ""], "cannot read"),
        (["--password-file=/dev/null"], "holds no password"),
        (["--password=x", "--password-file=/dev/null"], "both given"),
        (["--port=0"], "not a port"),
        (["--port=65534"], "two more ports"),
        (["--port=x"], "not a port"),
        (["--port="], "not a port"),
        (["--mtu=575"], "not an MTU"),
        (["--mtu=65486"], "not an MTU"),
        (["--host=host1"], "not an IP address"),
        (["--host="], "not an IP address"),
        (["--advertise=0.0.0.0"], "not the address of one host"),
        (["--advertise=fe80::1%eth0"], "means nothing on another host"),
        (["--nickname="], "not a nickname"),
        (["--without-offload=tso"], "'tso' is not an offload: there are tap, udp-segment, udp-gro"),
        (["--without-offload="], "not an offload"),
        (["--log-level=loud"], "debug, info, warning, error"),
        (["host:port"], "no valid port"),
        ([f"h{n}" for n in range(257)], "too many"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load(tmp_path, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("prot = 1", "no setting 'prot'"),
        ("[launch]\nport = 1", "no setting 'launch'"),
        ('port = "6783"', "port must be a number"),
        ("port = true", "port must be a number"),
        ("port = 1.5", "port must be a number"),
        ("port = 0", "not a port"),
        ("nickname = 7", "nickname must be a text"),
        ('no-vxlan = "yes"', "no-vxlan must be true or false"),
        ("advertise = [1]", "advertise must be a text in quotes or a list"),
        ('host = ["10.0.0.1"]', "host must be a text"),
        ('peers = "a b"', "only letters"),
        ("port = ", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ('password = ""', "holds no password"),
        ('password = "a"\npassword-file = "b"', "both given"),
        ('password-file = "a\\u0000b"', "cannot read"),
        (f"peers = {[f'h{n}' for n in range(257)]}", "too many"),
        ("#" * config.CONFIG_BYTES_MAX + "#", "larger than"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, file: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load(tmp_path, file=file)
    assert "\n" not in str(caught.value)
    assert "weft.toml" in str(caught.value)
    assert not isinstance(caught.value, UsageError)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weft.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid TOML"):
        load(tmp_path)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the configuration"):
        config.load(parse("--config", str(tmp_path)), {}, background=True)


def test_the_daemons_command_line_says_the_same_without_secrets(tmp_path: Path) -> None:
    words = [
        "host2", "--port", "7000", "--advertise", "192.0.2.1", "--advertise", "fd00::1", "--no-vxlan", "--nickname=-x",
        "--password", "hush", "--config", "relative.toml",
    ]  # fmt: skip
    flags = config.daemon_flags(parse(*words))
    assert not any("hush" in flag or "password" in flag for flag in flags)
    again, first = parse(*flags), parse(*words)
    assert again.words == ["host2"]
    assert again.value("--config") == str(Path.cwd() / "relative.toml")
    for flag in ("--port", "--advertise", "--nickname", "--no-vxlan", "--no-discovery"):
        assert again.values(flag) == first.values(flag)


# Address allocation


def test_allocation_is_read_from_flags_and_file(tmp_path: Path) -> None:
    """Each part from whatever place says it."""
    assert load(tmp_path).ipalloc == Allocation()
    file = 'ipalloc-range = "10.0.0.0/8"\nipalloc-init = "seed=h1,h2"\nipalloc-lease = 90\n'
    found = load(tmp_path, "--ipalloc-range6", "none", "--ipalloc-default-subnet", "10.1.0.0/16", file=file).ipalloc
    assert found == Allocation(
        range4=ip_network("10.0.0.0/8"), is_named=True, makes_range6=False, default_subnet=ip_network("10.1.0.0/16"),
        init="seed", seeds=("h1", "h2"), lease_s=90,
    )  # fmt: skip
    assert load(tmp_path, "--ipalloc-lease=2m", "--ipalloc-init", "consensus=3", file=file).ipalloc.hosts == 3
    assert load(tmp_path, file='ipalloc-lease = "1h"\nipalloc-range6 = "fd00::/64"').ipalloc.lease_s == 3600
    assert load(tmp_path, "--ipalloc-range", "none", file=file).ipalloc.range4 is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ipalloc-range", "10.32.5.0/12"], "--ipalloc-range: .* the network itself is written 10.32.0.0/12"),
        (["--ipalloc-range", "10.0.0.0/30"], "--ipalloc-range: .*a /8 to a /29"),
        (["--ipalloc-range6", "10.0.0.0/8"], "--ipalloc-range6: .*not a range of IPv6"),
        (["--ipalloc-init", "first"], "--ipalloc-init: .*none of consensus"),
        (["--ipalloc-lease", "5"], "--ipalloc-lease: .*30s at least, 12h at most"),
        (["--ipalloc-default-subnet", "net:default"], "--ipalloc-default-subnet: "),
        (["--ipalloc-default-subnet", "10.1.0.0/16"], "launch: the default subnet 10.1.0.0/16 is not inside"),
    ],
)
def test_wrong_allocation_flags_are_wrong_usage(tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load(tmp_path, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ('ipalloc-range = "127.0.0.0/8"', "ipalloc-range: .*loopback"),
        ("ipalloc-lease = true", "ipalloc-lease must be"),
        ("ipalloc-lease = 1.5", "ipalloc-lease must be"),
        ("ipalloc-range = 10", "ipalloc-range must be a text"),
        ('ipalloc-range = "none"\nipalloc-default-subnet = "10.32.0.0/16"', "lies in no range"),
    ],
)
def test_wrong_allocation_in_the_file_names_the_file(tmp_path: Path, file: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path, file=file)
    assert not isinstance(caught.value, UsageError)
    assert str(tmp_path / "weft.toml") in str(caught.value)


def test_allocation_flags_reach_the_daemon_as_they_were_given() -> None:
    words = ["--ipalloc-range=none", "--ipalloc-init=seed=h1,h2", "--ipalloc-lease=2h"]
    assert config.daemon_flags(parse(*words)) == [*words, "--"]
