"""Headless Chromium without a driver: a page of the test's own reports back by POST; a page of the product is asked over the browser's own pipe.

What must stay true: nothing leaves the loopback interface; the browser and its profile are gone at the end of the test.
"""

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from needs import missing

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server",
)  # fmt: skip


def need_chromium() -> str:
    """Path of Chromium."""
    path = shutil.which("chromium")
    if path is None:
        missing("Chromium", "scripts/browser installs it")
    return str(path)


def need_mqtt_js() -> bytes:
    """MQTT.js as one script."""
    found = sorted((ROOT / "build" / "browser").glob("mqtt-*.min.js"))
    if (
        not found
        and shutil.which("npm") is not None
        and subprocess.run([ROOT / "scripts" / "browser"], check=False).returncode == 0
    ):
        found = sorted((ROOT / "build" / "browser").glob("mqtt-*.min.js"))
    if not found:
        missing("MQTT.js", "scripts/browser downloads it")
    return found[-1].read_bytes()


@contextmanager
def chromium(*arguments: str, pipe: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A running browser with a profile of its own. With `pipe`, stdin and stdout carry its debugging protocol (JSON, each ended by a zero byte)."""
    profile = tempfile.mkdtemp(prefix="edgeflow-chromium-")
    command = [need_chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments]
    if pipe:
        # Chromium reads commands from descriptor 3 and answers on 4.
        command = ["bash", "-c", 'exec "$@" 3<&0 4>&1 1>/dev/null', "bash", *command, "--remote-debugging-pipe"]
    streams = (
        {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        if pipe
        else {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    )
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, **streams)
    try:
        yield process
    finally:
        kill(process)
        shutil.rmtree(profile, ignore_errors=True)


class Page:
    """One page of a browser that was started with `pipe`."""

    def __init__(self, browser: subprocess.Popen[bytes], url: str) -> None:
        assert browser.stdin is not None
        assert browser.stdout is not None
        self._to, self._from = browser.stdin, browser.stdout
        self._number = 0
        self._buffer = b""
        target = self._call("Target.createTarget", {"url": url})["targetId"]
        self._session: str | None = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})[
            "sessionId"
        ]

    def text(self, id: str) -> str:
        """The text of one element; empty while it is not there."""
        return str(self.evaluate(f"document.getElementById({json.dumps(id)})?.textContent") or "")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; None while there is no page to evaluate it in."""
        result = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "error" in result:
            return None
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", {"format": "png"})["data"])

    def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                found: dict[str, Any] = answer.get("result", answer)
                return found

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from.fileno(), 65536)
            assert chunk, "the browser ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        document: dict[str, Any] = json.loads(text)
        return document


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a browser and its helpers, as a crash would."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


class Reporter:
    """A small site: `/` is the page, other paths its files; what the page POSTs to /report comes out of `take`."""

    def __init__(self, page: str, files: Mapping[str, bytes]) -> None:
        self._reports: queue.Queue[Any] = queue.Queue()
        reports = self._reports
        content = {"/": page.encode(), **files}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = content.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", "text/html" if self.path == "/" else "text/javascript")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_POST(self) -> None:
                reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def take(self, timeout_s: float) -> Any:
        """The next report. Fails the test after `timeout_s`."""
        try:
            return self._reports.get(timeout=timeout_s)
        except queue.Empty:
            pytest.fail(f"the page did not report within {timeout_s:g} s")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
