"""The least that a network plugin of Docker can do: a veth pair for each container, and addresses from Docker itself.

What a container costs with it is what Docker costs with any plugin: the bench measures ours beside it. Run as
`python -m bench.least SOCKET` in the network namespace of the engine.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from pyroute2 import IPRoute

NAME = "least"
SUBNET = "10.98.0.0/16"
_one_at_a_time = threading.Lock()


def answer(method: str, fields: dict[str, Any]) -> dict[str, Any]:
    pair = str(fields.get("EndpointID", ""))[:11]
    match method:
        case "Plugin.Activate":
            return {"Implements": ["NetworkDriver"]}
        case "NetworkDriver.GetCapabilities":
            return {"Scope": "local", "ConnectivityScope": "global"}
        case "NetworkDriver.CreateEndpoint":
            return {"Interface": {"MacAddress": f"02:{secrets.token_bytes(5).hex(':')}"}}
        case "NetworkDriver.Join":
            with _one_at_a_time:
                _route().link("add", ifname=f"la{pair}", kind="veth", state="up", peer={"ifname": f"li{pair}"})
            return {"InterfaceName": {"SrcName": f"li{pair}", "DstPrefix": "eth"}}
        case "NetworkDriver.Leave":
            with _one_at_a_time:
                _route().link("del", ifname=f"la{pair}")
    return {}


@cache
def _route() -> IPRoute:
    return IPRoute()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = json.dumps(answer(self.path[1:], json.loads(body or b"{}"))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def address_string(self) -> str:
        return "docker"  # a unix socket has none

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


def main() -> None:
    path = Path(sys.argv[1])
    path.unlink(missing_ok=True)
    with _Server(str(path), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
