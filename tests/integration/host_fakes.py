"""Stand-ins for the agent's two processes: one that listens, one that says it is ready, and one that only runs."""

import sys

IDLE = "import signal; signal.pause()"
DATA = """
import json, signal, socket, sys
listener = socket.create_server(("127.0.0.1", json.load(open(sys.argv[1]))["link"]["port"]))
while True: signal.pause()
"""
API = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", json.load(open(sys.argv[1]))["api"]["port"]), Handler).serve_forever()
"""


def commands(*, data=DATA, control=API):
    return {"data": [sys.executable, "-c", data, "{config}"], "control": [sys.executable, "-c", control, "{config}"]}
