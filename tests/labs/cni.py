"""A container runtime's part of CNI, in a lab's host: it runs plugins one after the other, as libcni does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from mesh.lab import Lab
from mesh.namespaces import NAMESPACES_DIR

Json = dict[str, Any]
DEBIAN_PLUGINS = "/usr/lib/cni"
_numbers = itertools.count(1)


class CniError(Exception):
    """What a plugin said went wrong."""

    def __init__(self, answer: Json) -> None:
        super().__init__(answer.get("msg"))
        self.code: int = answer["code"]
        self.text: str = answer["msg"]
        assert set(answer) <= {"cniVersion", "code", "msg", "details"}, answer


class Runtime:
    """On one host, with folders of its own, the plugin installed."""

    def __init__(self, lab: Lab, node: str) -> None:
        self.lab = lab
        self.node = node
        self.bin_dir = lab.directory / node / "cni-bin"
        self.conf_dir = lab.directory / node / "cni-conf"
        lab.weft(node, ["setup-cni", "--bin-dir", str(self.bin_dir), "--conf-dir", str(self.conf_dir)])
        self.results: dict[tuple[str, str], Json] = {}
        self.version = "1.0.0"
        self.plugins: list[Json] = [{"type": "weft"}]
        self.name = "weft"

    def path(self, kind: str) -> Path:
        return self.bin_dir / kind if kind == "weft" else Path(DEBIAN_PLUGINS) / kind

    def run(
        self, command: str, config: Json | str, *, kind: str = "weft", drop: str = "", **words: str
    ) -> subprocess.CompletedProcess[str]:
        """One plugin, once: `words` are the variables without their `CNI_`."""
        variables = {
            "CNI_COMMAND": command,
            "CNI_PATH": f"{self.bin_dir}:{DEBIAN_PLUGINS}",
            "PATH": os.environ["PATH"],
            **{f"CNI_{key}": value for key, value in words.items()},
        }
        variables.pop(drop, None)
        line = ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), str(self.path(kind))]
        stdin = config if isinstance(config, str) else json.dumps(config)
        return self.lab.run(self.node, line, stdin=stdin, check=False)

    def ask(self, command: str, config: Json | str, **words: Any) -> Json:
        """The same; its answer. Raises `CniError`."""
        done = self.run(command, config, **words)
        answer: Json = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            assert answer, done
            raise CniError(answer)
        return answer

    def netns(self, name: str) -> str:
        return str(NAMESPACES_DIR / self.lab.namespace(name))

    # The chain, as a runtime goes along it.

    def add(
        self, container: str, node: str, ifname: str = "eth0", args: str = "", runtime: Json | None = None
    ) -> Json:
        """All plugins of the list; the last result. What fails is taken back by whoever calls, as a runtime does."""
        result: Json | None = None
        for plugin in self.plugins:
            config = self._config(plugin, result, runtime)
            result = self.ask(
                "ADD", config, kind=plugin["type"], CONTAINERID=container, NETNS=self.netns(node), IFNAME=ifname,
                ARGS=args,
            )  # fmt: skip
            assert result["cniVersion"] == self.version
        assert result is not None
        self.results[container, ifname] = result
        return result

    def delete(self, container: str, node: str = "", ifname: str = "eth0", runtime: Json | None = None) -> None:
        result = self.results.get((container, ifname))
        for plugin in reversed(self.plugins):
            netns = self.netns(node) if node else ""
            config = self._config(plugin, result, runtime)
            answer = self.ask(
                "DEL", config, kind=plugin["type"], CONTAINERID=container, NETNS=netns, IFNAME=ifname
            )
            assert answer == {}
        self.results.pop((container, ifname), None)

    def check(self, container: str, node: str, ifname: str = "eth0", runtime: Json | None = None) -> None:
        for plugin in self.plugins:
            config = self._config(plugin, self.results[container, ifname], runtime)
            words = {"CONTAINERID": container, "NETNS": self.netns(node), "IFNAME": ifname}
            assert self.ask("CHECK", config, kind=plugin["type"], **words) == {}

    def _config(self, plugin: Json, previous: Json | None, runtime: Json | None) -> Json:
        config = {"cniVersion": self.version, "name": self.name, **plugin}
        wanted = {key: value for key, value in (runtime or {}).items() if plugin.get("capabilities", {}).get(key)}
        if wanted:
            config["runtimeConfig"] = wanted
        if previous is not None:
            config["prevResult"] = previous
        return config


def new_id() -> str:
    return f"pod{next(_numbers)}"


def addresses_of(result: Json) -> list[str]:
    """Those of a result, without their lengths."""
    return [each["address"].partition("/")[0] for each in result["ips"]]
