"""Finding a cluster of containers by what its init job left: stand-ins for its APIs."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgeflow.host import discover
from edgeflow.host.errors import NoCluster

TOKEN = "the-token"


@contextlib.contextmanager
def api(*, token=TOKEN, ready=True):
    """A PoP's API; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/readyz":
                status = 200 if ready else 503
            else:
                status = 200 if self.headers["Authorization"] == f"Bearer {token}" else 401
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_home(home, **urls):
    pops = {}
    for pop, url in urls.items():
        (home / "docker" / pop).mkdir(parents=True)
        (home / "docker" / pop / "operator.token").write_text(TOKEN)
        pops[pop] = {
            "id": pop,
            "state": "starting",
            "api": {"url": url, "token_file": f"docker/{pop}/operator.token"},
            "mqtt": {
                "host": "h",
                "port": 1,
                "ws_url": "ws://h",
                "username": "operator",
                "password_file": f"docker/{pop}/operator.password",
            },
        }
    document = {"cluster": "c-1", "mode": "docker", "state": "starting", "supervisor": None, "pops": pops, "wan": None}
    (home / "docker" / "cluster.json").write_text(json.dumps(document))


def test_all_ready_is_ready(tmp_path):
    with api() as one, api() as two:
        write_home(tmp_path, a=one, b=two)
        cluster = discover.find(tmp_path)
    assert (cluster.mode, cluster.state) == ("docker", "ready")
    assert cluster.pop("b").token == TOKEN
    assert cluster.pop("b").api_token_file.is_absolute()


def test_one_that_is_away_degrades_the_cluster(tmp_path):
    with api() as one, api(ready=False) as two:
        write_home(tmp_path, a=one, b=two, c="http://127.0.0.1:1")
        cluster = discover.find(tmp_path)
    assert cluster.state == "degraded"
    assert {pop.id: pop.state for pop in cluster.pops.values()} == {"a": "ready", "b": "degraded", "c": "stopped"}
    assert "does not answer" in cluster.pop("c").reason


@pytest.mark.parametrize("answering", ["nobody", "another cluster"])
def test_what_is_left_of_an_ended_cluster_is_none(tmp_path, answering):
    with api(token="another") as other:
        write_home(tmp_path, a=other if answering == "another cluster" else "http://127.0.0.1:1")
        with pytest.raises(NoCluster):
            discover.find(tmp_path)
