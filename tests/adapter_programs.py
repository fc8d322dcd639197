"""For the tests of adapters: an adapter process between an agent that does what the test says, and a program that does what the event says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdk_agent import FakeAgent, Peer, item, stored_event

SERVER = '''
"""A server that does what the event says: {"status": 503, "headers": {...}, "body": "...", "then": "exit"}."""
import json, os, signal, sys, time, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status = 200 if os.path.exists("ready") else 503
        self.send_response(status); self.send_header("Content-Length", "0"); self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        order = json.loads(body) if body.startswith(b"{") else {}
        if order.get("put"):
            url = os.environ["EDGEFLOW_URL"] + "/ekv/" + order["put"]
            urllib.request.urlopen(urllib.request.Request(url, data=b"written", method="PUT", headers={
                "Edgeflow-Invocation": self.headers["Edgeflow-Invocation"]}))
        if order.get("then") == "exit":
            print("giving up", file=sys.stderr, flush=True)
            os._exit(7)
        if order.get("then") == "hang":
            time.sleep(3600)
        if order.get("then") == "close":
            self.close_connection = True
            return
        answer = order.get("body", json.dumps({"got": body.decode("utf-8", "replace"), "headers": dict(self.headers)})).encode()
        self.send_response(order.get("status", 200))
        for name, value in order.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_): pass

if len(sys.argv) > 1 and sys.argv[1] == "child":
    open("child", "w").write(str(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "3600")))
if len(sys.argv) > 1 and sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''


class Adapted:
    """An adapter process and its agent."""

    def __init__(self, folder: Path, setting: dict[str, Any]) -> None:
        self.folder = folder
        self.setting = setting
        self.agent = FakeAgent(folder)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, **setting: Any) -> subprocess.Popen[str]:
        document = {**self.setting, **setting}
        environment = {**os.environ, "EDGEFLOW_SOCKET": self.agent.path, "EDGEFLOW_ADAPTER": json.dumps(document)}
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgeflow.sdk.adapters"], env=environment, cwd=self.folder, start_new_session=True, text=True, stderr=log
            )  # fmt: skip
        self.processes.append(process)
        return process

    def ready(self, command: list[str] | None = None, **more: Any) -> tuple[Peer, subprocess.Popen[str]]:
        process = self.start(**({} if command is None else {"command": command}))
        peer = self.agent.accept()
        peer.welcome(**more)
        return peer, process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.agent.close()


def ask(peer: Peer, order: Any, invocation: str = "i1", **more: Any) -> dict[str, Any]:
    """What the instance says after it was given an event with this data."""
    peer.expect("claim")
    data = order if isinstance(order, bytes) else json.dumps(order).encode()
    peer.send({"t": "work", "items": [item(invocation, stored_event(data), **more)]})
    return peer.next()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
