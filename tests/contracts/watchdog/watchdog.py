"""What OpenFaaS' of-watchdog does in its http mode, in a few lines: /_/health says 503 until the function behind it is up, each call gets an
X-Call-Id, and the function's answer is passed on.
"""

import http.client
import os
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

ready = threading.Event()


class Function(BaseHTTPRequestHandler):
    """The function behind the watchdog (`upstream_url`)."""

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        answer(self, 200, data[::-1], {"Content-Type": "text/plain"})

    def log_message(self, *_):
        pass


class Watchdog(BaseHTTPRequestHandler):
    """The server that the platform knows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        healthy = self.path == "/_/health" and ready.is_set()
        answer(self, 200 if healthy else 503, b"OK" if healthy else b"not ready", {})

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        upstream = http.client.HTTPConnection("127.0.0.1", behind.server_port)
        call_id = self.headers.get("X-Call-Id") or str(uuid.uuid4())
        upstream.request("POST", self.path, body=data, headers={**self.headers, "X-Call-Id": call_id})
        said = upstream.getresponse()
        answer(self, said.status, said.read(), {"X-Call-Id": call_id, "Content-Type": said.headers["Content-Type"]})

    def log_message(self, *_):
        pass


def answer(handler, status, body, headers):
    handler.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


behind = HTTPServer(("127.0.0.1", 0), Function)
threading.Thread(target=behind.serve_forever, daemon=True).start()
threading.Thread(target=lambda: (time.sleep(0.5), ready.set()), daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Watchdog).serve_forever()
