"""`weft setup-cni`: put the plugin and a network list where container runtimes look for them, or take them away.

Part of the command's process: the standard library only. Runtimes watch these folders and run what is there at any
moment, so every file is written beside its place and renamed into it. A list that somebody has edited is theirs.
"""

from __future__ import annotations

import json
import os
import sys

from mesh import directories
from mesh.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mesh.usage import Parsed

BIN_DIR = "/opt/cni/bin"
CONF_DIR = "/etc/cni/net.d"
PLUGIN = "weft"
CONFLIST = "10-weft.conflist"
MARK = "# This file was written by `weft setup-cni`."
SHEBANG_BYTES_MAX = 250
"""The kernel reads no more of a first line."""


def setup_cni(parsed: Parsed) -> int:
    """Install, or with `--uninstall` remove; say what was done. Raises `UserError`."""
    plugin = os.path.join(os.path.abspath(parsed.value("--bin-dir") or BIN_DIR), PLUGIN)
    conflist = os.path.join(os.path.abspath(parsed.value("--conf-dir") or CONF_DIR), CONFLIST)
    try:
        done = _remove(plugin, conflist) if parsed.has("--uninstall") else _install(plugin, conflist)
    except OSError as error:
        cure = "root is needed: try again with sudo" if error.errno in (1, 13) else "see --bin-dir and --conf-dir"
        raise UserError(f"{error.filename} cannot be changed ({error.strerror}); {cure}") from None
    if parsed.has("--json"):
        print(json.dumps(done, indent=2))
    else:
        for path, what in done.items():
            print(f"{what} {path}")
    return 0


def _install(plugin: str, conflist: str) -> dict[str, str]:
    """What was done, by path."""
    os.makedirs(os.path.dirname(plugin), mode=0o755, exist_ok=True)
    os.makedirs(os.path.dirname(conflist), mode=0o755, exist_ok=True)
    wanted = plugin_text(_interpreter(), directories.run_dir())
    before = _read(plugin)
    if before is not None and not _is_ours(before):
        raise UserError(f"{plugin} is there and is not Weft's; move it away, or choose another --bin-dir")
    done = {plugin: "unchanged" if before == wanted else "wrote"}
    if before != wanted:
        _write(plugin, wanted, 0o755)
    # The list last: a runtime that reads it runs the plugin.
    chained = os.access(os.path.join(os.path.dirname(plugin), "portmap"), os.X_OK)
    if _read(conflist) is not None:
        done[conflist] = "kept"
    else:
        _write(conflist, json.dumps(network_list(chained), indent=2) + "\n", 0o644)
        done[conflist] = "wrote"
    return done


def _remove(plugin: str, conflist: str) -> dict[str, str]:
    done = {}
    for path, is_ours in ((conflist, _names_weft), (plugin, _is_ours)):
        text = _read(path)
        if text is None:
            done[path] = "was not there:"
        elif is_ours(text):
            os.unlink(path)
            done[path] = "removed"
        else:
            done[path] = "left alone, as it is not Weft's:"
    return done


def plugin_text(interpreter: str, run_dir: str) -> str:
    """The plugin as it is installed: who runs it, isolated from everybody's packages, and where the daemon is."""
    with open(os.path.join(os.path.dirname(__file__), "plugin.py"), encoding="utf-8") as file:
        text = file.read()
    ours = f'RUN_DIR = "{directories.DEFAULT_RUN_DIR}"\n'
    assert ours in text
    return f"#!{interpreter} -IS\n{MARK}\n" + text.replace(ours, f"RUN_DIR = {json.dumps(run_dir)}\n")


def network_list(chained: bool) -> dict[str, Any]:
    """`chained`: whether the plugin that publishes ports is there."""
    weft = {
        "type": PLUGIN,
        "isDefaultGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "capabilities": {"ips": True, "mac": True, "ipRanges": True, "aliases": True},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "weft",
        "plugins": [weft, portmap] if chained else [weft],
    }


def _interpreter() -> str:
    """The one beneath an environment of packages: it starts sooner, and what it needs does not move with them."""
    path = os.path.realpath(sys.executable)
    if len(os.fsencode(path)) > SHEBANG_BYTES_MAX or any(char.isspace() for char in path):
        raise UserError(f"{path}, this Python's path, cannot stand in the first line of a program; use another one")
    return path


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, text: str, mode: int) -> None:
    pending = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.new")
    try:
        with open(pending, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(pending, path)
    except OSError:
        if os.path.exists(pending):
            os.unlink(pending)
        raise


def _is_ours(text: str) -> bool:
    return MARK in text.splitlines()[:2]


def _names_weft(text: str) -> bool:
    try:
        plugins = json.loads(text)["plugins"]
        return any(each["type"] == PLUGIN for each in plugins)
    except (ValueError, KeyError, TypeError):
        return False
