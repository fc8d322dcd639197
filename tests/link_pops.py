"""PoPs that are nothing but a store, links and a loop in a thread: over real TLS, with the store in memory or on a real Redis."""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edgeflow.cluster.manager import Links
from edgeflow.flow.reactor import Reactor
from edgeflow.host.certs import ensure_ca, ensure_pop_certificate
from edgeflow.settings import Peer, PopSettings
from edgeflow.store import Store


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_settings(
    folder: Path, pop: str, ports: dict[str, int], *, cluster: str = "c1", ca: str = "ca", **limits: int
) -> PopSettings:
    """Settings of one PoP below `folder`, its certificate made by the CA in `folder/<ca>`."""
    ensure_ca(folder / ca, cluster)
    (folder / pop / "secrets").mkdir(parents=True, exist_ok=True)
    ensure_pop_certificate(folder / ca, folder / pop / "secrets", pop)
    secrets = folder / pop / "secrets"
    return PopSettings.model_validate(
        {
            "pop": pop,
            "cluster": cluster,
            "mode": "embedded",
            "state_dir": folder / pop / "state",
            "run_dir": folder / pop,
            "store": {"redis_socket": folder / pop / "r.sock"},
            "mqtt": {"password_file": "x"},
            "link": {
                "port": ports[pop],
                "ca": secrets / "ca.pem",
                "cert": secrets / "link.pem",
                "key": secrets / "link.key",
                "peers": {name: {"host": "127.0.0.1", "port": port} for name, port in ports.items() if name != pop},
            },
            "api": {"port": 1, "token_file": "x"},
            "public": {
                "api_url": "x",
                "api_token_file": "x",
                "mqtt_host": "x",
                "mqtt_port": 1,
                "mqtt_ws_url": "x",
                "mqtt_password_file": "x",
            },
            "limits": limits,
        }
    )


class MemoryDocs:
    """The local documents of a store in memory."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}

    def put_doc(self, kind: str, id: str, document: dict[str, Any], *, wake: bool = True) -> None:
        self.documents[kind, id] = document

    def delete_doc(self, kind: str, id: str) -> None:
        self.documents.pop((kind, id), None)

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        return {id: document for (of, id), document in self.documents.items() if of == kind}


class MemoryMail:
    """The mailbox of a store in memory: questions are put in by hand."""

    def __init__(self) -> None:
        self.questions: list[Any] = []

    def take(self) -> list[Any]:
        taken, self.questions = self.questions, []
        return taken


class LinkPop:
    """One PoP. Everything but `start` and `stop` happens in its loop."""

    def __init__(self, settings: PopSettings, store: Any) -> None:
        self.settings = settings
        self.store = store
        self.reactor = Reactor()
        self.released: list[str] = []
        self.links = Links(settings, store, self.reactor, self.released.append)
        self._thread = threading.Thread(target=self.reactor.run, daemon=True)

    def start(self) -> "LinkPop":
        self._thread.start()
        try:
            self.call(self.links.start)
        except BaseException:
            self.stop()
            raise
        return self

    def call(self, step: Callable[[], Any], deadline_s: float = 20.0) -> Any:
        """`step()` in the loop; its result or exception."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(step())
            except Exception as error:
                future.set_exception(error)

        self.reactor.call_soon(run)
        self.reactor.wake()
        return future.result(deadline_s)

    def state(self, peer: str) -> dict[str, Any]:
        return self.call(self.links.states)[peer]

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.call(self.links.stop)
        self.reactor.stop()
        self._thread.join(10)


class Line:
    """A TCP proxy in front of a PoP that can be cut, and that counts and may alter what goes through."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self.is_open = True
        self.cut_after_bytes: int | None = None
        """Cuts by itself once this many bytes more have gone to the target."""
        self.passed_bytes = 0
        """How many have gone to the target."""
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self.is_open = False
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def heal(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            threading.Thread(target=self._copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                self.passed_bytes += len(data) if counted else 0
                if counted and self.cut_after_bytes is not None:
                    self.cut_after_bytes -= len(data)
                    if self.cut_after_bytes <= 0:
                        self.cut_after_bytes = None
                        self.cut()
                        return
                sink.sendall(data)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)


class RedisServer:
    """A real Redis on a unix socket, as a PoP has it."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [
            "redis-server", "--port", "0", "--unixsocket", str(socket_path), "--dir", str(folder), "--appendonly", "yes",
            "--appendfsync", "always", "--save", "", "--logfile", str(folder / "redis.log"),
        ]  # fmt: skip
        self._socket_path = socket_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RedisServer":
        self._process = subprocess.Popen(self._command)
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self._socket_path))
                return self
            time.sleep(0.02)
        raise AssertionError("Redis did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class LinkedPair:
    """PoPs a and b with real stores; a dials b through a line that can be cut."""

    def __init__(self, folder: Path, **limits: int) -> None:
        ports = {"a": free_port(), "b": free_port()}
        self.line = Line(ports["b"])
        self.settings: dict[str, PopSettings] = {}
        self.redis: dict[str, RedisServer] = {}
        self.stores: dict[str, Store] = {}
        self.pops: dict[str, LinkPop] = {}
        for name in ports:
            settings = make_settings(folder, name, ports, **limits)
            if name == "a":
                peers = {"b": Peer(host="127.0.0.1", port=self.line.port)}
                settings = settings.model_copy(update={"link": settings.link.model_copy(update={"peers": peers})})
            self.settings[name] = settings
            self.redis[name] = RedisServer(folder / name / "redis", settings.store.redis_socket).start()
            self.stores[name] = Store.open(settings)
            self.pops[name] = LinkPop(settings, self.stores[name]).start()

    def stop(self) -> None:
        for pop in self.pops.values():
            pop.stop()
        self.line.close()
        for store in self.stores.values():
            store.close()
        for redis in self.redis.values():
            redis.kill()


@contextlib.contextmanager
def closing_all(*things: Any) -> Iterator[None]:
    """Calls `stop`, `close` or `kill` of each at the end."""
    try:
        yield
    finally:
        for thing in things:
            for name in ("stop", "close", "kill"):
                if hasattr(thing, name):
                    getattr(thing, name)()
                    break
