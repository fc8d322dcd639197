"""Programs for the tests of adapters: what users have, in as few lines as possible."""

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
