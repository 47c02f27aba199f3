"""prime, rmpeer and `weft ipam` as processes of their own, against the real API over canned answers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh import api, ipamcli, requests
from mesh.requests import ApiError


async def prime_twice(request: requests.Prime, send_row: Any) -> object:
    for text in ("2 more hosts", "2 more hosts", "the \x1bring"):
        await send_row({"waiting_for": text})
    if request.timeout_s is not None:
        raise ApiError("ipam-waiting", f"not ready after {request.timeout_s:g} s: waiting for the ring")
    return {"state": "ready"}


def test_prime_says_on_standard_error_what_it_waits_for(weft: Any, daemon: Any) -> None:
    """Each thing once."""
    daemon.answers["prime"] = prime_twice
    done = weft("prime")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "weft: waiting for 2 more hosts\nweft: waiting for the ?ring\n"
    done = weft("prime", "--timeout", "2.5")
    assert done.returncode == 1 and done.stderr.endswith("weft: not ready after 2.5 s: waiting for the ring\n")
    assert daemon.requests == [requests.Prime(None), requests.Prime(2.5)]


def test_rmpeer_without_a_terminal_does_not_ask(weft: Any, daemon: Any) -> None:
    daemon.answers["removepeers"] = {"removed": ["x"], "addresses": 4096}
    assert weft("rmpeer", "h2", "h3").stdout == "4,096 addresses of h2, h3 taken over by this host\n"
    assert json.loads(weft("rmpeer", "--force", "--json", "h2").stdout) == {"removed": ["x"], "addresses": 4096}
    assert daemon.requests == [requests.RemovePeers(("h2", "h3"), False), requests.RemovePeers(("h2",), True)]


@pytest.mark.parametrize(("answer", "status"), [("no", 1), ("", 1), ("y", 0)])
def test_rmpeer_on_a_terminal_says_first_what_it_does(daemon: Any, answer: str, status: int) -> None:
    daemon.answers["ipam"] = {"peers": [{"peer": "2a:2b", "nickname": "h2", "addresses": 1024}]}
    daemon.answers["removepeers"] = {"removed": ["x"], "addresses": 1024}
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    words = [sys.executable, "-m", "mesh", "rmpeer", "h2", "h9"]
    process = subprocess.Popen(words, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    os.write(main_end, answer.encode() + b"\n")
    output, errors = process.communicate(timeout=20)
    os.close(terminal)
    os.close(main_end)
    assert process.returncode == status
    assert b"h2: 1,024 addresses\nh9: no addresses known\n" in output and b"gone for good" in output
    asked = [request for request in daemon.requests if isinstance(request, requests.RemovePeers)]
    assert len(asked) == (status == 0)
    assert errors == (b"weft: nothing was taken over\n" if status else b"")


def test_join_names_the_ring_and_what_is_in_use_twice(weft: Any, daemon: Any) -> None:
    conflict = {"address": "10.32.0.1", "here": "web on h1", "there": "db on h2"}
    daemon.answers["ipamjoin"] = {"joined": "abcd", "conflicts": [conflict]}
    assert weft("ipam", "join", "--ring", "AB", "--force").stdout == (
        "joined ring abcd\nin use twice: 10.32.0.1: web on h1 and db on h2; detach one of them\n"
    )
    assert json.loads(weft("ipam", "join", "--json").stdout)["joined"] == "abcd"
    assert daemon.requests == [requests.IpamJoin("ab", True), requests.IpamJoin(None, False)]


def test_export_writes_a_file_that_import_takes_in_parts(weft: Any, daemon: Any, tmp_path: Path) -> None:
    entries = [{"owner": f"netns:c{number}", "addresses": [f"10.32.0.{number}/12"]} for number in range(250)]
    daemon.answers["ipamexport"] = {"format": 1, "owned": [["10.32.0.0", 9]] * 9, "entries": entries}
    path = tmp_path / "given.json"
    assert weft("ipam", "export", str(path)).stdout == ""
    assert json.loads(path.read_text()) == json.loads(weft("ipam", "export").stdout)

    async def take(request: requests.IpamImport, send_row: Any) -> object:
        refused = [{"owner": "netns:c7", "address": "10.32.0.7", "problem": "is taken"}] if not request.force else []
        return {"taken": len(request.document["entries"]) - len(refused), "refused": refused}

    daemon.answers["ipamimport"] = take
    done = weft("ipam", "import", str(path))
    assert (done.returncode, done.stdout) == (1, "249 addresses claimed\n10.32.0.7 of netns:c7: is taken\n")
    parts = [request for request in daemon.requests if isinstance(request, requests.IpamImport)]
    assert [part.force for part in parts] == [False, True, True]
    assert [entry for part in parts for entry in part.document["entries"]] == entries
    assert {part.document["format"] for part in parts} == {1}
    done = weft("ipam", "import", "--force", "--json", str(path))
    assert (done.returncode, json.loads(done.stdout)) == (0, {"taken": 250, "refused": []})


def test_no_part_of_a_file_is_too_large_for_a_request() -> None:
    entries = [{"owner": "x" * 3000, "addresses": []}] * 40
    parts = list(ipamcli._parts({"format": 1, "entries": entries}, "f"))
    assert max(len(json.dumps(part)) for part in parts) < api.REQUEST_BYTES_MAX - 1024
    assert sum(len(part["entries"]) for part in parts) == 40
    assert list(ipamcli._parts({"format": 1, "entries": []}, "f")) == [{"format": 1, "entries": []}]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'{"entries": 5}', b"\xff", b"[" * 100_000,
                json.dumps({"entries": [{"owner": "x" * 40_000}]}).encode()], ids=range(8)
)  # fmt: skip
def test_a_file_that_is_no_export_is_one_line(weft: Any, daemon: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    done = weft("ipam", "import", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"weft: {path} is not what `weft ipam export` writes; give a file that is\n"
    assert daemon.requests == []


def test_a_file_that_cannot_be_used_is_one_line(weft: Any, daemon: Any, tmp_path: Path) -> None:
    done = weft("ipam", "import", str(tmp_path / "absent"))
    assert done.returncode == 1 and f"cannot read {tmp_path}/absent (No such file" in done.stderr
    daemon.answers["ipamexport"] = {"entries": []}
    done = weft("ipam", "export", str(tmp_path / "no" / "file"))
    assert done.returncode == 1 and "cannot use" in done.stderr and len(done.stderr.splitlines()) == 1


def test_check_says_what_differs_and_fails_where_it_still_does(weft: Any, daemon: Any) -> None:
    row = {"address": "10.32.0.1/12", "owner": "netns:c1", "problem": "attached and not given", "repaired": False}
    daemon.answers["ipamcheck"] = [row]
    done = weft("ipam", "check")
    assert (done.returncode, done.stdout) == (1, "10.32.0.1/12 of netns:c1: attached and not given; found\n")
    daemon.answers["ipamcheck"] = [row | {"repaired": True}]
    done = weft("ipam", "check", "--repair")
    assert (done.returncode, done.stdout) == (0, "10.32.0.1/12 of netns:c1: attached and not given; repaired\n")
    daemon.answers["ipamcheck"] = [row | {"why": "h2 has it"}]
    assert weft("ipam", "check", "--repair").stdout.endswith("; not repaired (h2 has it)\n")
    daemon.answers["ipamcheck"] = []
    assert weft("ipam", "check").stdout == "what is given and what is attached are the same\n"
    assert json.loads(weft("ipam", "check", "--json").stdout) == []
    assert [request.repair for request in daemon.requests] == [False, True, True, False, False]


def test_status_ipam_is_text_or_json(weft: Any, daemon: Any) -> None:
    told = {"state": "ready", "range": "10.32.0.0/12", "peers": [], "entries": []}
    daemon.answers["ipam"] = told
    assert "range    10.32.0.0/12" in weft("status", "ipam").stdout
    assert json.loads(weft("status", "ipam", "--json").stdout) == told
