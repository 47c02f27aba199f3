"""The verbs of address allocation as the command sees them: `prime`, `rmpeer` and `ipam`."""

from __future__ import annotations

import sys

from mesh import client
from mesh.errors import UsageError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mesh.usage import Parsed

FOREVER_S = 10 * 365 * 86_400.0
JOIN_TIMEOUT_S = 60.0
FILE_BYTES_MAX = 64 * 1024 * 1024


def prime(parsed: Parsed) -> int:
    """Wait until addresses can be given, saying what for."""
    text = parsed.value("--timeout") or "0"
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s <= 86_400 or (parsed.has("--timeout") and timeout_s == 0):
        raise UsageError(f"prime: --timeout {text!r} is not a number of seconds from 1 to 86400")

    def tell(row: Any) -> None:
        print(f"waiting for {row['waiting_for']}", file=sys.stderr, flush=True)

    client.call("prime", {"timeout_s": timeout_s}, on_row=tell, timeout_s=FOREVER_S)
    return 0


def rmpeer(parsed: Parsed) -> int:
    names = ", ".join(parsed.words)
    if not parsed.has("--force") and sys.stdin.isatty():
        print(f"The addresses of {names} will be given to others, whatever still runs there.", file=sys.stderr)
        print("Only do this for hosts that are gone for good. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError("nothing was removed")
    answer = client.call("rmpeer", {"peers": parsed.words}, timeout_s=JOIN_TIMEOUT_S)
    if parsed.has("--json"):
        _print_json(answer)
    else:
        print(f"removed {names}: {answer['addresses']} addresses are this host's to give now")
    return 0


def ipam(parsed: Parsed) -> int:
    what, *rest = parsed.words
    allowed = {"join": 0, "export": 1, "import": 1, "check": 0}
    if what not in allowed:
        raise UsageError(f"ipam: there is no `ipam {what}`; there are {', '.join(allowed)}")
    if len(rest) > allowed[what]:
        raise UsageError(f"ipam {what}: {rest[-1]!r} is too much")
    return {"join": _join, "export": _export, "import": _import, "check": _check}[what](parsed, rest)


def _join(parsed: Parsed, _: list[str]) -> int:
    request = {"ring": (parsed.value("--ring") or "").lower(), "force": parsed.has("--force")}
    answer = client.call("ipam-join", request, timeout_s=JOIN_TIMEOUT_S)
    if parsed.has("--json"):
        _print_json(answer)
        return 0
    for row in answer["conflicts"]:
        print(f"in use twice: {row['address']}, {row['here']} and {row['there']}")
    print(f"joined ring {answer['joined'][:8]}")
    return 0


def _export(parsed: Parsed, rest: list[str]) -> int:
    import json

    text = json.dumps(client.call("ipam-export", {}, timeout_s=JOIN_TIMEOUT_S), indent=1)
    if not rest or rest[0] == "-":
        print(text)
        return 0
    import os

    pending = f"{rest[0]}.pending"
    with open(pending, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(pending, rest[0])
    return 0


def _import(parsed: Parsed, rest: list[str]) -> int:
    import json

    if not rest:
        raise UsageError("ipam import: FILE is missing")
    try:
        with open(rest[0], "rb") as file:
            document = json.loads(file.read(FILE_BYTES_MAX))
    except ValueError:
        raise UserError(f"{rest[0]} is not what `weft ipam export` writes; give it one that is") from None
    answer = client.call("ipam-import", {"document": document, "force": parsed.has("--force")}, timeout_s=FOREVER_S)
    if parsed.has("--json"):
        _print_json(answer)
    else:
        print(f"{answer['taken']} addresses are given again")
        for row in answer["refused"]:
            print(f"{row['address']} of {row['owner']}: {row['problem']}", file=sys.stderr)
    return 1 if answer["refused"] else 0


def _check(parsed: Parsed, _: list[str]) -> int:
    findings = client.call("ipam-check", {"repair": parsed.has("--repair")}, timeout_s=JOIN_TIMEOUT_S)
    if parsed.has("--json"):
        _print_json(findings)
    else:
        for row in findings:
            mended = " (repaired)" if row["repaired"] else f" ({row['why']})" if "why" in row else ""
            print(f"{row['address']} of {row['owner']}: {row['problem']}{mended}")
        if not findings:
            print("everything that is given is attached, and the other way round")
    return 1 if any(not row["repaired"] for row in findings) else 0


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))
