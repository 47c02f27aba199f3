"""One frozen `LaunchConfig`: everything the daemon is told, read from flags, environment and file, checked once.

Flags win over the environment, the environment wins over the file. Nothing below the daemon's composition root reads
flags, files or the environment; it gets values. Knows nothing of what a setting does.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh import arguments, directories
from mesh.dns import words
from mesh.errors import UsageError, UserError
from mesh.ipam import ranges
from mesh.ipam.ranges import Allocation
from mesh.usage import Parsed

DEFAULT_CONFIG_PATH = "/etc/weft/weft.toml"
DEFAULT_DOCKER_PLUGIN = "/run/docker/plugins/weft.sock"
DEFAULT_DOCKER_SOCKET = "/var/run/docker.sock"
CONFIG_BYTES_MAX = 1024 * 1024

DATA_PORTS = 2
"""VXLAN takes the port after the links' one, WireGuard the next."""

MTU_MIN = 576
"""Every IPv4 host must take packets of this size (RFC 791); IPv6 needs 1280 (RFC 8200)."""
MTU_MAX = 65535 - 50

PASSWORDS_MAX = 8
"""Whoever is dialled tries each of them on a stranger's handshake."""
PASSWORD_BYTES_MAX = 1024

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """What one daemon is told at launch."""

    run_dir: str
    """Absolute; socket and pid file live there."""
    state_dir: str
    """Absolute; documents, keys and log live there."""
    peers: tuple[str, ...] | None = None
    """Peers to connect to, as `arguments.format_peer` writes them; None: those of the last launch stay."""
    passwords: tuple[str, ...] = field(default=(), repr=False)
    """The first is sent, all are accepted. Empty: no secret, links are not authenticated and frames go in clear."""
    port: int = arguments.DEFAULT_PORT
    host: str = ""
    """The one address to listen on; empty: all, IPv4 and IPv6."""
    advertise: tuple[str, ...] = ()
    """Addresses others are told to reach us at; empty: what is found out."""
    nickname: str = ""
    mtu: int | None = None
    """Bytes of the largest overlay packet; None: found out."""
    discovery: bool = True
    vxlan: bool = True
    offloads_off: tuple[str, ...] = ()
    """What the sleeve and VXLAN do without, of `arguments.OFFLOADS`, sorted."""
    ipalloc: Allocation = field(default_factory=Allocation)
    """Which addresses are given, and who may begin."""
    dns: bool = True
    dns_domain: str = words.DEFAULT_DOMAIN
    """Without its final dot."""
    dns_upstreams: tuple[tuple[str, int], ...] = ()
    """Addresses and ports; empty: what the host's resolv.conf says."""
    docker_socket: str = DEFAULT_DOCKER_SOCKET
    """Absolute; where Docker is asked, when there is something to ask."""
    docker_plugin: str | None = None
    """Absolute; where Docker finds its network plugin. None: nowhere."""
    log_level: str = "info"
    log_file: str | None = None
    """None: standard error, for systemd and containers."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """One setting that may stand in the file: what it must be there, and how a text becomes its value."""

    kind: type
    parse: Callable[[str], Any]
    many: bool = False
    number: bool = False
    """Whether a text that is a number may stand there without quotes."""


def load(parsed: Parsed, environment: Mapping[str, str], *, background: bool) -> LaunchConfig:
    """The configuration of this launch. `background`: the daemon logs to its file.

    Raises `UsageError` where a flag is wrong, `UserError` where the file or the environment is.
    """
    path = os.path.abspath(parsed.value("--config") or DEFAULT_CONFIG_PATH)
    from_file = _read_file(path)
    from_flags = _read_flags(parsed)
    passwords = _passwords(parsed, environment, from_file, path)
    chosen = {**from_file, **from_flags}
    run_dir, state_dir = directories.run_dir(), directories.state_dir()
    return LaunchConfig(
        run_dir=run_dir,
        state_dir=state_dir,
        peers=tuple(dict.fromkeys(chosen["peers"])) if "peers" in chosen else None,
        passwords=passwords,
        port=chosen.get("port", arguments.DEFAULT_PORT),
        host=chosen.get("host", ""),
        advertise=tuple(dict.fromkeys(chosen.get("advertise", ()))),
        nickname=chosen.get("nickname") or _host_name(),
        mtu=chosen.get("mtu"),
        discovery=not chosen.get("no-discovery", False),
        vxlan=not chosen.get("no-vxlan", False),
        offloads_off=tuple(sorted({name for names in chosen.get("without-offload", ()) for name in names})),
        ipalloc=_ipalloc(chosen, from_flags, path),
        dns=not chosen.get("no-dns", False),
        dns_domain=chosen.get("dns-domain", words.DEFAULT_DOMAIN),
        dns_upstreams=tuple(dict.fromkeys(chosen.get("dns-upstream", ()))),
        docker_socket=_docker_socket(environment),
        docker_plugin=chosen.get("docker-plugin", _docker_plugin(run_dir)),
        log_level=chosen.get("log-level", "info"),
        log_file=directories.log_path(state_dir) if background else None,
    )


def _port(text: str) -> int:
    highest = arguments.PORT_MAX - DATA_PORTS
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= highest):
        raise ValueError(f"{text!r} is not a port: a number from 1 to {highest}, as two more ports follow it")
    return int(text)


def _mtu(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and MTU_MIN <= int(text) <= MTU_MAX):
        raise ValueError(f"{text!r} is not an MTU: a number of bytes from {MTU_MIN} to {MTU_MAX}")
    return int(text)


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise ValueError(f"{text!r} is not a log level: it is one of {', '.join(LOG_LEVELS)}")
    return text


def _switch(text: str) -> bool:
    return text == "true"


def _docker_plugin(run_dir: str) -> str | None:
    """Where Docker looks, for the one daemon of a machine that is not told otherwise: several would take turns."""
    return DEFAULT_DOCKER_PLUGIN if run_dir == directories.DEFAULT_RUN_DIR else None


def _plugin_path(text: str) -> str | None:
    if text == "none":
        return None
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is neither an absolute path, such as {DEFAULT_DOCKER_PLUGIN}, nor none")
    return os.path.normpath(text)


_SETTINGS = {
    "peers": _Setting(str, arguments.parse_peer, many=True),
    "password": _Setting(str, str),
    "password-file": _Setting(str, str),
    "port": _Setting(int, _port),
    "host": _Setting(str, arguments.parse_underlay_address),
    "advertise": _Setting(str, arguments.parse_advertised, many=True),
    "nickname": _Setting(str, arguments.parse_nickname),
    "mtu": _Setting(int, _mtu),
    "no-discovery": _Setting(bool, _switch),
    "no-vxlan": _Setting(bool, _switch),
    "without-offload": _Setting(str, arguments.parse_offloads, many=True),
    "ipalloc-range": _Setting(str, ranges.parse_range4),
    "ipalloc-range6": _Setting(str, ranges.parse_range6),
    "ipalloc-default-subnet": _Setting(str, ranges.parse_default_subnet),
    "ipalloc-init": _Setting(str, ranges.parse_init),
    "ipalloc-lease": _Setting(str, ranges.parse_lease, number=True),
    "dns-domain": _Setting(str, words.parse_domain),
    "dns-upstream": _Setting(str, words.parse_upstream, many=True),
    "no-dns": _Setting(bool, _switch),
    "docker-plugin": _Setting(str, _plugin_path),
    "log-level": _Setting(str, _log_level),
}

_KINDS = {str: "a text in quotes", int: "a number", bool: "true or false"}


def _read_flags(parsed: Parsed) -> dict[str, Any]:
    """The settings given on the command line, passwords excepted."""
    chosen: dict[str, Any] = {}
    if parsed.words:
        chosen["peers"] = [_flag("launch", arguments.parse_peer, word) for word in parsed.words]
        _flag("launch", _check_peer_count, chosen["peers"])
    for name, setting in _SETTINGS.items():
        flag = f"--{name}"
        if not parsed.has(flag):
            continue
        if setting.many:
            chosen[name] = [_flag(flag, setting.parse, value) for value in parsed.values(flag)]
        elif setting.kind is bool:
            chosen[name] = True
        else:
            chosen[name] = _flag(flag, setting.parse, parsed.value(flag) or "")
    return chosen


def _flag(where: str, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _check_peer_count(peers: list[str]) -> None:
    if len(peers) > arguments.PEERS_MAX:
        raise ValueError(
            f"{len(peers)} peers are too many to name: at most {arguments.PEERS_MAX}; a few are enough, "
            "the others are found through them"
        )


def _read_file(path: str) -> dict[str, Any]:
    """The settings in the file, checked; nothing where there is no file."""
    try:
        with open(path, "rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path} ({error.strerror}); check its path and mode") from None
    if len(text) > CONFIG_BYTES_MAX:
        raise UserError(f"the configuration {path} is larger than {CONFIG_BYTES_MAX} bytes; is it the right file?")
    try:
        table = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"the configuration {path} is not valid TOML ({error}); correct it") from None
    return {name: _file_value(name, value, path) for name, value in table.items()}


def _file_value(name: str, value: Any, path: str) -> Any:
    setting = _SETTINGS.get(name)
    if setting is None:
        raise UserError(f"{path}: there is no setting {name!r}; there are {', '.join(_SETTINGS)}")
    values = value if setting.many and isinstance(value, list) else [value]
    # bool is a subclass of int, and `port = true` is no port.
    if any(type(each) is not setting.kind and not (setting.number and type(each) is int) for each in values):
        many = " or a list of them" if setting.many else ""
        raise UserError(f"{path}: {name} must be {_KINDS[setting.kind]}{many}, not {value!r}")
    try:
        parsed = [setting.parse("true" if each is True else str(each)) for each in values]
        if name == "peers":
            _check_peer_count(parsed)
    except ValueError as error:
        raise UserError(f"{path}: {name}: {error}") from None
    return parsed if setting.many else parsed[0]


def _ipalloc(chosen: Mapping[str, Any], from_flags: Mapping[str, Any], path: str) -> Allocation:
    """What is said of address allocation, each part in whatever place says it. The parts must fit."""
    names = ("ipalloc-range", "ipalloc-range6", "ipalloc-default-subnet", "ipalloc-init", "ipalloc-lease")
    try:
        return ranges.allocation(*(chosen.get(name) for name in names))
    except ValueError as error:
        if any(name in from_flags for name in names):
            raise UsageError(f"launch: {error}") from None
        raise UserError(f"{path}: {error}") from None


def _passwords(parsed: Parsed, environment: Mapping[str, str], from_file: dict[str, Any], path: str) -> tuple[str, ...]:
    """The secrets from the first place that names any: flags, environment, file.

    A place that is named and turns out empty is an error, never "no secret": somebody wanted encryption. An empty
    environment variable alone is what unit and compose files leave behind when nothing was filled in.
    """
    if parsed.has("--password") and parsed.has("--password-file"):
        raise UsageError("launch: --password and --password-file are both given; give one")
    if parsed.has("--password"):
        return _secrets(parsed.value("--password") or "", "--password")
    if parsed.has("--password-file"):
        return _secrets_from_file(parsed.value("--password-file") or "", "--password-file")
    if environment.get("WEFT_PASSWORD"):
        return _secrets(environment["WEFT_PASSWORD"], "WEFT_PASSWORD")
    if "password" in from_file and "password-file" in from_file:
        raise UserError(f"{path}: password and password-file are both given; give one")
    if "password" in from_file:
        return _secrets(from_file["password"], f"{path}: password")
    if "password-file" in from_file:
        beside = os.path.join(os.path.dirname(path), from_file["password-file"])
        return _secrets_from_file(beside, f"{path}: password-file")
    return ()


def _secrets_from_file(path: str, where: str) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            raw = file.read(PASSWORDS_MAX * (PASSWORD_BYTES_MAX + 2) + 1)
        text = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: {path} is not text in UTF-8; write one password a line") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{where}: cannot read {path} ({cause}); check its path and mode") from None
    return _secrets(text, f"{where}: {path}")


def _secrets(text: str, where: str) -> tuple[str, ...]:
    lines = tuple(dict.fromkeys(line for line in text.replace("\r\n", "\n").split("\n") if line))
    if not lines:
        raise UserError(f"{where} holds no password; fill it in, or leave it out to run without encryption")
    if len(lines) > PASSWORDS_MAX:
        raise UserError(f"{where} holds {len(lines)} passwords; at most {PASSWORDS_MAX} are tried, remove old ones")
    for line in lines:
        if not line.isprintable() or len(line.encode()) > PASSWORD_BYTES_MAX:
            raise UserError(
                f"{where}: a password is at most {PASSWORD_BYTES_MAX} bytes of printable text in UTF-8; choose another"
            )
    return lines


def _docker_socket(environment: Mapping[str, str]) -> str:
    """As the `docker` command finds it, unless we are told otherwise. A Docker on another host has no namespaces here,
    so any other kind of DOCKER_HOST is passed over."""
    told = environment.get("WEFT_DOCKER_SOCKET", "")
    scheme, _, path = environment.get("DOCKER_HOST", "").partition("://")
    if not told and scheme == "unix":
        told = path
    return os.path.abspath(told) if told else DEFAULT_DOCKER_SOCKET


def _host_name() -> str:
    printable = "".join(char for char in os.uname().nodename if char.isprintable())
    return printable[: arguments.NICKNAME_MAX] or "unnamed"


def daemon_flags(parsed: Parsed) -> list[str]:
    """The same launch as flags for the daemon's own command line. Secrets are left out: `ps` shows it to everybody."""
    flags: list[str] = []
    for name, setting in _SETTINGS.items():
        flag = f"--{name}"
        if name in ("password", "password-file") or not parsed.has(flag):
            continue
        flags += [flag] if setting.kind is bool else _pairs(flag, parsed.values(flag))
    if parsed.has("--config"):
        flags += ["--config", os.path.abspath(parsed.value("--config") or "")]
    return [*flags, "--", *parsed.words]


def _pairs(flag: str, values: Iterable[str]) -> list[str]:
    return [f"{flag}={value}" for value in values]
