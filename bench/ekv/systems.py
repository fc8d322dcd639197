"""The stores that are compared, each behind the same four calls: put, get, put of a large body, get of a large body.

What it is: edgeflow over its HTTP API and through its own store library, raw Redis with the same settings, and NATS JetStream (KV up to 1 MB, above it the object store).
What must stay true: each returns from a put when its system acknowledges it, with its own promise; each get returns the whole body, which the caller compares.
"""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import redis

from bench.flow.nats_server import version as nats_version
from bench.stage import Stage
from edgeflow.host import programs
from edgeflow.host.storeconf import StoreParams, redis_conf
from edgeflow.settings import PopSettings
from edgeflow.store import Store

NAMESPACE = "benchkv"
PIECE_BYTES = 1024 * 1024
READY_S = 10.0
KV_BYTES = 1_000_000
"""Largest value of a NATS KV bucket with the server's default payload limit."""


class System(Protocol):
    """One connection to a store; used by one thread."""

    def put(self, key: str, data: bytes) -> None:
        """Write; returns when it is acknowledged."""

    def get(self, key: str) -> bytes:
        """Read the whole of it."""

    def close(self) -> None:
        """Leave."""


class Failed(Exception):
    """A store said something else than that it is done."""


class HttpStore:
    """edgeflow's HTTP API over one kept connection, with as little of a client as there can be."""

    def __init__(self, api_url: str, token: str) -> None:
        parts = urllib.parse.urlsplit(api_url)
        self._head = f"Host: bench\r\nAuthorization: Bearer {token}\r\n".encode()
        self._sock = socket.create_connection((str(parts.hostname), int(parts.port or 80)), timeout=60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, key: str, data: bytes) -> None:
        """Write; in pieces when it is large, as a client that streams a file does."""
        head = b"PUT /v1/ekv/%s/%s HTTP/1.1\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n%s\r\n" % (
            NAMESPACE.encode(), key.encode(), len(data), self._head,
        )  # fmt: skip
        if len(data) <= PIECE_BYTES:
            self._sock.sendall(head + data)
        else:
            self._sock.sendall(head)
            view = memoryview(data)
            for start in range(0, len(data), PIECE_BYTES):
                self._sock.sendall(view[start : start + PIECE_BYTES])
        status, body = self._answer()
        if status not in (200, 201, 204):
            raise Failed(f"PUT: {status} {bytes(body[:200])!r}")

    def get(self, key: str) -> bytes:
        """Read."""
        self._sock.sendall(b"GET /v1/ekv/%s/%s HTTP/1.1\r\n%s\r\n" % (NAMESPACE.encode(), key.encode(), self._head))
        status, body = self._answer()
        if status != 200:
            raise Failed(f"GET: {status} {bytes(body[:200])!r}")
        return bytes(body)

    def close(self) -> None:
        """Leave."""
        self._sock.close()

    def _answer(self) -> tuple[int, bytearray]:
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            if not (part := self._sock.recv(65536)):
                raise Failed("the connection was closed")
            received += part
        head = bytes(received[:end]).lower()
        status = int(head[9:12])
        body = received[end + 4 :]
        marker = head.find(b"content-length:")
        if marker < 0:
            return self._chunked(status, body) if b"transfer-encoding: chunked" in head else (status, body)
        length = int(head[marker + 15 :].split(b"\r\n", 1)[0])
        have = len(body)
        body.extend(bytes(length - have))
        view = memoryview(body)
        while have < length:
            count = self._sock.recv_into(view[have:])
            if not count:
                raise Failed("the connection was closed")
            have += count
        view.release()
        return status, body

    def _chunked(self, status: int, rest: bytearray) -> tuple[int, bytearray]:
        body = bytearray()
        while True:
            while (end := rest.find(b"\r\n")) < 0:
                rest += self._more()
            length = int(bytes(rest[:end]), 16)
            while len(rest) < end + 2 + length + 2:
                rest += self._more()
            body += rest[end + 2 : end + 2 + length]
            del rest[: end + 2 + length + 2]
            if length == 0:
                return status, body

    def _more(self) -> bytes:
        part = self._sock.recv(PIECE_BYTES)
        if not part:
            raise Failed("the connection was closed")
        return part


class LibraryStore:
    """edgeflow's store library in this process: what the agent itself uses, without HTTP."""

    def __init__(self, store: Store) -> None:
        self._handle = store.namespace(NAMESPACE)

    def put(self, key: str, data: bytes) -> None:
        """Write."""
        self._handle.put(key, data)

    def get(self, key: str) -> bytes:
        """Read."""
        value = self._handle.get(key)
        if value is None:
            raise Failed(f"no value {key}")
        return value.data

    def close(self) -> None:
        """The store is closed by who opened it."""


class RedisStore:
    """Raw redis-py."""

    def __init__(self, path: str) -> None:
        self._redis = redis.Redis(unix_socket_path=path, protocol=2, socket_timeout=60)

    def put(self, key: str, data: bytes) -> None:
        """SET."""
        self._redis.set(key, data)

    def get(self, key: str) -> bytes:
        """GET."""
        found = self._redis.get(key)
        if not isinstance(found, bytes):
            raise Failed(f"no value {key}")
        return found

    def close(self) -> None:
        """Leave."""
        self._redis.close()


class NatsStore:
    """nats-py with a loop of its own: a KV bucket for what fits into one message, the object store for the rest."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client, self._bucket, self._objects = self._loop.run_until_complete(_open_nats(url))

    def put(self, key: str, data: bytes) -> None:
        """Put into the bucket or the object store."""
        where = self._bucket if len(data) <= KV_BYTES else self._objects
        self._loop.run_until_complete(where.put(key, data))

    def get(self, key: str) -> bytes:
        """Get from whichever has it; large ones have names that say so."""
        if key.startswith("large"):
            return bytes(self._loop.run_until_complete(self._objects.get(key)).data)
        return bytes(self._loop.run_until_complete(self._bucket.get(key)).value)

    def close(self) -> None:
        """Leave."""
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


async def _open_nats(url: str) -> tuple[Any, Any, Any]:
    # Here, because nats-py is optional: what else is in this module works without it.
    import nats
    from nats.js.errors import BucketNotFoundError

    client = await nats.connect(url)
    stored = client.jetstream(timeout=60)
    try:
        bucket = await stored.key_value("benchkv")
    except BucketNotFoundError:
        bucket = await stored.create_key_value(bucket="benchkv", history=1)
    try:
        objects = await stored.object_store("benchobj")
    except BucketNotFoundError:
        objects = await stored.create_object_store("benchobj")
    return client, bucket, objects


@contextlib.contextmanager
def library(stage: Stage, pop: str) -> Iterator[Store]:
    """The store library on a PoP of the running cluster."""
    store = Store.open(PopSettings.load(stage.cluster.home.config_file(pop)))
    try:
        store.create_namespace(NAMESPACE)
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, port: int = 0) -> Iterator[tuple[str, int]]:
    """A Redis with the settings of a PoP's; its socket and pid."""
    folder.mkdir(parents=True)
    path = folder / "r.sock"
    conf = folder / "redis.conf"
    text = redis_conf(StoreParams(path, folder, 4 * 2**30))
    conf.write_text(text.replace("port 0", f"port {port}\nbind 127.0.0.1") if port else text)
    program = programs.require("redis-server")
    process = subprocess.Popen(
        [str(program), str(conf), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(path.exists, "Redis")
        yield str(path), process.pid
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def nats_server(program: Path, folder: Path) -> Iterator[tuple[str, int, str]]:
    """A NATS server as it comes, with its files in `folder`; url, pid and version."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = folder / "server.conf"
    conf.write_text(f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{folder / "files"}" }}\n')
    process = subprocess.Popen([program, "-c", conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: _listens(port), "nats-server")
        yield f"nats://127.0.0.1:{port}", process.pid, nats_version(program)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise Failed(f"{what} did not start")
        time.sleep(0.02)
