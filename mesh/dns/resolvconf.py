"""`resolv.conf`: the host's, which says whom to ask for other names, and those of named namespaces, which we write.

`ip netns exec NAME` puts /etc/netns/NAME/resolv.conf in the place of /etc/resolv.conf; so that is where a namespace's
belongs. A file there that is not ours is left alone: ours says so in its first line, with the state directory of the
daemon that wrote it, as several may run on one machine. Knows nothing of DNS. Format: resolv.conf(5).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

HOST_FILE: Final = Path("/etc/resolv.conf")
NETNS_DIRECTORY: Final = Path("/etc/netns")
FILE_MAX_BYTES: Final = 64 * 1024
SERVERS_MAX: Final = 8
SEARCH_MAX: Final = 16
_MARK: Final = "# Written by weft"
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
_NAME: Final = "resolv.conf"


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What counts of one file."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse(text: str) -> ResolvConf:
    """What cannot be understood is passed over, as resolvers do."""
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            with contextlib.suppress(ValueError):
                ip_address(values[0])
                servers.append(values[0])
        elif keyword in ("search", "domain"):
            search = [value for value in values if _HOST_NAME.fullmatch(value)]
    return ResolvConf(tuple(dict.fromkeys(servers))[:SERVERS_MAX], tuple(dict.fromkeys(search))[:SEARCH_MAX])


def compose(server: str, domain: str, search: Collection[str], owner: str) -> str:
    """A namespace's file: our server alone, our domain before the host's."""
    domains = dict.fromkeys([domain.removesuffix("."), *search])
    lines = [
        f"{_MARK} (state in {owner}). `weft detach` removes it; an own file in its place is left alone.",
        f"search {' '.join(domains)}",
        f"nameserver {server}",
    ]
    return "\n".join(lines) + "\n"


class HostFile:
    """The host's file, looked at again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.content = ResolvConf()
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def look(self) -> bool:
        """Whether it says something else than before. A file that cannot be read says nothing."""
        try:
            status = self._path.stat()
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return False
            with self._path.open("rb") as file:
                content = parse(file.read(FILE_MAX_BYTES).decode(errors="replace"))
        except OSError:
            seen, content = None, ResolvConf()
        self._seen = seen
        before, self.content = self.content, content
        return content != before


class NamespaceFiles:
    """The files of named namespaces that one daemon wrote."""

    def __init__(self, directory: Path, owner: str) -> None:
        """`owner`: the daemon's state directory, which tells its files from another daemon's."""
        self.troubles: dict[str, str] = {}
        """By namespace: why it has no file of ours."""
        self._directory = directory
        self.owner = owner

    def write(self, name: str, text: str) -> None:
        """Put it in its place at once and whole, unless somebody else's is there."""
        path = self._directory / name / _NAME
        try:
            if (there := _content(path)) == text:
                self.troubles.pop(name, None)
                return
            if there is not None and not there.startswith(_MARK):
                self.troubles[name] = f"{path} is somebody else's and was left alone"
                return
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            beside = path.with_name(f".{_NAME}.weft")
            beside.write_text(text)
            beside.chmod(0o644)
            os.replace(beside, path)
            self.troubles.pop(name, None)
        except OSError as error:
            self.troubles[name] = f"cannot write {path} ({error.strerror})"

    def remove(self, name: str) -> None:
        """Ours, and its directory where nothing else is in it."""
        path = self._directory / name / _NAME
        self.troubles.pop(name, None)
        with contextlib.suppress(OSError):
            if self._is_ours(_content(path)):
                path.unlink()
                path.parent.rmdir()

    def remove_all(self, but: Collection[str] = ()) -> None:
        """All of ours, but those of these namespaces."""
        with contextlib.suppress(OSError):
            for each in sorted(self._directory.iterdir()):
                if each.name not in but:
                    self.remove(each.name)

    def _is_ours(self, content: str | None) -> bool:
        return content is not None and content.startswith(f"{_MARK} (state in {self.owner}).")


def forget(prefix: str) -> None:
    """Remove the files of namespaces whose names begin so and which are gone, whichever daemon wrote them."""
    for path in NETNS_DIRECTORY.glob(f"{prefix}*/{_NAME}"):
        with contextlib.suppress(OSError):
            if (_content(path) or "").startswith(_MARK):
                path.unlink()
                path.parent.rmdir()


def _content(path: Path) -> str | None:
    """None where there is none. A link is somebody else's, wherever it leads, and says nothing. Raises OSError."""
    if path.is_symlink():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(FILE_MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
