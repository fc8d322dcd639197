"""A NATS server with JetStream on files, and the streams, the bucket and the consumers of the comparison.

What it is: a process in a folder of its own on a free port, ended at the end. What it is not: a tuned server: its settings are the defaults, but for where its files are
and, where asked for and known to this version, `sync_interval: always`.
What must stay true: storage is on files; the client hears a result only when it is stored, as edgeflow's does.
"""

import asyncio
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.processes import python_process

MESSAGE_ID = "Nats-Msg-Id"
KEEP = ("keep0", "keep1")
"""The streams before and behind the worker that keeps a value."""
BUCKET = "last"
READY_S = 10.0


class NatsFailed(Exception):
    """The server did not start; the message says what it said."""


@dataclass
class NatsStage:
    """A running server with streams "chain0" to "chain<n>", a worker between each and the next, and a worker that keeps a value between two more."""

    port: int
    length: int
    """Of the chain."""
    version: str
    always: bool
    """Whether each message is synced to the disk before it is acknowledged."""
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"


def version(program: Path) -> str:
    """Version of the server."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"v(\d[\w.]*)", said)
    return found.group(1) if found else said.strip()


def knows_sync_always(program: Path) -> bool:
    """Whether this server's configuration has `sync_interval: always`."""
    with tempfile.TemporaryDirectory(prefix="bench-nats-") as folder:
        file = _configuration(Path(folder), 4222, always=True)
        return subprocess.run([program, "-t", "-c", file], capture_output=True, timeout=10, check=False).returncode == 0


def step_name(step: int) -> str:
    """Subject and stream of a step of the chain."""
    return f"chain{step}"


def deliveries(stream: str) -> str:
    """Where the client hears what was stored in `stream`."""
    return f"deliver.{stream}"


@contextmanager
def running(program: Path, folder: Path, length: int, *, always: bool) -> Iterator[NatsStage]:
    """The server, a chain of `length` workers, and one more whose worker keeps a value."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stage = NatsStage(port, length, version(program), always)
        with log.open("wb") as output:
            server = subprocess.Popen(
                [program, "-c", _configuration(folder, port, always=always)], stdout=output, stderr=output, start_new_session=True
            )  # fmt: skip
        stack.callback(_end, server)
        _wait_listening(server, port, log)
        stage.pids["nats-server"] = server.pid
        results = asyncio.run(_prepare(stage.url, length))
        for name, asked in results.items():
            stage.pids[f"worker {name}"] = stack.enter_context(
                python_process("bench.flow.nats_worker", {"url": stage.url, **asked})
            )
        yield stage


async def _prepare(url: str, length: int) -> dict[str, dict[str, Any]]:
    """Make everything; the parameters of each worker."""
    # Here, because nats-py is optional: what else is in this module works without it.
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, KeyValueConfig, StorageType, StreamConfig

    client = await nats.connect(url)
    try:
        stored = client.jetstream()
        chain = [step_name(step) for step in range(length + 1)]
        pairs = [*pairwise(chain), KEEP]
        for stream in (*chain, *KEEP):
            await stored.add_stream(StreamConfig(name=stream, subjects=[stream], storage=StorageType.FILE))
        await stored.create_key_value(KeyValueConfig(bucket=BUCKET, history=1, storage=StorageType.FILE))
        for stream, _ in pairs:
            await stored.add_consumer(
                stream, ConsumerConfig(durable_name="worker", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000)
            )
        for stream in (chain[-1], KEEP[1]):
            hears = ConsumerConfig(
                durable_name="client", deliver_subject=deliveries(stream), deliver_policy=DeliverPolicy.NEW, ack_policy=AckPolicy.NONE
            )  # fmt: skip
            await stored.add_consumer(stream, hears)
    finally:
        await client.close()
    return {
        source: {"stream": source, "durable": "worker", "publish": target, "keep": source == KEEP[0]}
        for source, target in pairs
    }


def _configuration(folder: Path, port: int, *, always: bool) -> Path:
    lines = [
        f"listen: 127.0.0.1:{port}",
        f'jetstream {{ store_dir: "{folder / "files"}"{", sync_interval: always" if always else ""} }}',
    ]
    file = folder / "server.conf"
    file.write_text("\n".join(lines) + "\n")
    return file


def _wait_listening(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    while server.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise NatsFailed(f"nats-server did not start: {log.read_text()[-500:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
