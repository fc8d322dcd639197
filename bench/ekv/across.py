"""From one PoP to the other: how old what a reader sees is, how fast a peer catches up after an outage, and what keys cost in memory.

What it is: measurements of two PoPs behind the link proxy, and of Redis with a replica of its own behind the same kind of proxy.
What must stay true: both ends of a staleness are times of one process; it begins when the writer was told, and ends when a reader at the other end, which looks every
LOOK_S, is shown the new value.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench.ekv.systems import NAMESPACE, Failed, HttpStore, redis_server
from bench.generator import quantile
from bench.machine import resident_mib
from bench.stage import Stage
from edgeflow.host.files import read_json
from edgeflow.host.linkfile import Link, save_links
from edgeflow.store import Store

LOOK_S = 0.0003
LIMIT_S = 20.0
DELAYS_MS = (0, 5, 50)
PAUSE_S = 0.002
"""Between two writes: one at a time, the link idle in between."""
CATCH_UP_S = 120.0
WRITERS = 12

Say = Callable[[str], None]


def socket_of(stage: Stage, pop: str) -> str:
    """The unix socket of a PoP's Redis."""
    return str((read_json(stage.cluster.home.config_file(pop)) or {})["store"]["redis_socket"])


@dataclass
class Staleness:
    """Samples (ms) at one delay: from the acknowledgement until it could be read at the other end, the delay itself left out."""

    delay_ms: float
    samples_ms: list[float]

    def to_json(self) -> dict[str, Any]:
        """Quantiles."""
        return {
            "delay_ms": self.delay_ms, "p50_ms": round(quantile(self.samples_ms, 0.5), 2), "p99_ms": round(quantile(self.samples_ms, 0.99), 2),
            "writes": len(self.samples_ms),
        }  # fmt: skip


def one_by_one(
    write: Callable[[bytes], None], shown: Callable[[], bytes | None], delay_ms: float, count: int
) -> Staleness:
    """`count` writes one after the other, each waited for at the other end."""
    samples = []
    for number in range(count):
        body = b"%d %s" % (number, os.urandom(45).hex().encode())
        write(body)
        told_s = time.perf_counter()
        while shown() != body:
            if time.perf_counter() - told_s > LIMIT_S:
                raise Failed(f"not at the other end within {LIMIT_S:g} s")
            time.sleep(LOOK_S)
        samples.append((time.perf_counter() - told_s) * 1000 - delay_ms)
        time.sleep(PAUSE_S)
    return Staleness(delay_ms, samples)


def edgeflow_staleness(stage: Stage, to: str, delay_ms: float, count: int) -> Staleness:
    """Writes over HTTP at the measured PoP, seen in the other PoP's store."""
    stage.cluster.set_link(stage.pop, to, delay_ms=delay_ms)
    key = f"ef:{{{NAMESPACE}}}:value:fresh"
    with (
        closing(HttpStore(stage.access.api_url, stage.access.token)) as writer,
        closing(_redis(socket_of(stage, to))) as reader,
    ):
        one_by_one(lambda body: writer.put("fresh", body), lambda: reader.hget(key, "data"), delay_ms, 10)
        return one_by_one(lambda body: writer.put("fresh", body), lambda: reader.hget(key, "data"), delay_ms, count)


@dataclass
class Replica:
    """A Redis and its own replica behind the link proxy."""

    writer: str
    reader: str
    control: Path
    links: list[Link]

    def set_link(self, *, delay_ms: float = 0.0, cut: bool = False) -> None:
        """Change the line between them."""
        save_links(self.control, [Link(**{**link.__dict__, "delay_ms": delay_ms, "cut": cut}) for link in self.links])

    def staleness(self, delay_ms: float, count: int) -> Staleness:
        """The same as with edgeflow."""
        self.set_link(delay_ms=delay_ms)
        with closing(_redis(self.writer)) as writer, closing(_redis(self.reader)) as reader:
            one_by_one(lambda body: writer.set("fresh", body), lambda: reader.get("fresh"), delay_ms, 10)
            return one_by_one(lambda body: writer.set("fresh", body), lambda: reader.get("fresh"), delay_ms, count)


@contextmanager
def replica(folder: Path) -> Iterator[Replica]:
    """Two servers with a PoP's settings; the second is the first one's replica."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    port, through = ports
    folder.mkdir(parents=True)
    control = folder / "wan.json"
    links = [Link("replica", "writer", "127.0.0.1", through, "127.0.0.1", port)]
    save_links(control, links)
    options = (
        "--repl-diskless-sync-delay",
        "0",
        "--protected-mode",
        "no",
        "--repl-backlog-size",
        "256mb",
        "--repl-timeout",
        "600",
    )
    with redis_server(folder / "writer", *options, port=port) as (writer, _):
        wan = subprocess.Popen(
            [sys.executable, "-m", "edgeflow.host.wan", "--config", str(control)], stdout=subprocess.DEVNULL
        )
        try:
            with redis_server(folder / "reader", *options, "--replicaof", f"127.0.0.1 {through}") as (reader, _):
                with closing(_redis(reader)) as client:
                    until(lambda: client.info("replication").get("master_link_status") == "up", "the replica")
                yield Replica(writer, reader, control, links)
        finally:
            wan.kill()
            wan.wait()


@dataclass
class CatchUp:
    """How fast what was written while the line was dead came over."""

    values: int
    size: int
    took_s: float
    link_per_s: float | None = None
    """Entries per second from the first that came over the healed line to the last; None where that is not to be seen."""

    def to_json(self) -> dict[str, Any]:
        """With rates."""
        return {
            "values": self.values, "size": self.size, "took_s": round(self.took_s, 2), "per_s": round(self.values / self.took_s),
            "mb_per_s": round(self.values * self.size / self.took_s / 1e6, 1),
            "link_per_s": None if self.link_per_s is None else round(self.link_per_s),
        }  # fmt: skip


def edgeflow_catch_up(stage: Stage, store: Store, to: str, count: int, size: int) -> CatchUp:
    """Cut the line, write, heal: until the other PoP has applied the last of it."""
    stage.cluster.set_link(stage.pop, to, cut=True)
    fill(store, f"away{size}", count, size)
    return heal_and_wait(stage, to, count, size)


def heal_and_wait(stage: Stage, to: str, count: int, size: int) -> CatchUp:
    """Heal the line and wait until the other PoP has this one's log to its end, readable."""
    heads = f"ef:{{{NAMESPACE}}}:heads"
    with closing(_redis(socket_of(stage, stage.pop))) as here, closing(_redis(socket_of(stage, to))) as there:
        wanted = {name: int(seq) for name, seq in here.hgetall(heads).items()}

        def missing() -> int:
            have = {name: int(seq) for name, seq in there.hgetall(heads).items()}
            return sum(max(0, seq - have.get(name, 0)) for name, seq in wanted.items())

        def caught_up() -> bool:
            return not missing() and not there.zcard(f"ef:{{{NAMESPACE}}}:held")

        at_first = missing()
        assert at_first
        began_s = time.perf_counter()
        stage.cluster.set_link(stage.pop, to, cut=False)
        until(lambda: missing() < at_first, "the line to be noticed", CATCH_UP_S, 0.005)
        left, noticed_s = missing(), time.perf_counter()
        until(caught_up, "the other PoP to catch up", CATCH_UP_S, 0.02)
        ended_s = time.perf_counter()
        return CatchUp(count, size, ended_s - began_s, left / (ended_s - noticed_s) if left else None)


def replica_catch_up(pair: Replica, count: int, size: int) -> CatchUp:
    """The same with Redis and its replica."""
    with closing(_redis(pair.writer)) as writer, closing(_redis(pair.reader)) as reader:
        pair.set_link(cut=True)
        filler = os.urandom(size)
        for start in range(0, count, 1000):
            batch = writer.pipeline(transaction=False)
            for number in range(start, min(count, start + 1000)):
                batch.set(f"away{size}/{number}", b"%016d" % number + filler[16:])
            batch.execute()
        last = f"{count}-{size}".encode()
        writer.set("last", last)
        began_s = time.perf_counter()
        pair.set_link()
        until(lambda: reader.get("last") == last, "the replica to catch up", CATCH_UP_S, 0.02)
        return CatchUp(count, size, time.perf_counter() - began_s)


def fill(store: Store, prefix: str, count: int, size: int) -> float:
    """`count` different values through the store library, by several processes' worth of threads; seconds it took."""
    import threading

    handle = store.namespace(NAMESPACE)
    filler = os.urandom(size)
    failures: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for number in range(first, count, WRITERS):
                handle.put(f"{prefix}/{number}", b"%016d" % number + filler[16:])
        except BaseException as error:
            failures.append(error)

    began_s = time.perf_counter()
    threads = [threading.Thread(target=write, args=(first,)) for first in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - began_s


def memory_of_keys(stage: Stage, store: Store, count: int) -> dict[str, Any]:
    """Memory (bytes) that `count` values of 100 B take in a PoP's Redis: in all, and without the log, which goes when all PoPs have it and its time is over."""
    with closing(_redis(socket_of(stage, stage.pop))) as client:
        before = int(client.info("memory")["used_memory"])
        logs = {name: _memory(client, name) for name in client.scan_iter(match="ef:[{]" + NAMESPACE + "[}]:log:*")}
        took_s = fill(store, "many", count, 100)
        after = int(client.info("memory")["used_memory"])
        log = sum(
            _memory(client, name) - logs.get(name, 0)
            for name in client.scan_iter(match="ef:[{]" + NAMESPACE + "[}]:log:*")
        )
        ids = sum(_memory(client, f"ef:{{{NAMESPACE}}}:{name}".encode()) for name in ("ids", "ids:at"))
    return {
        "keys": count, "bytes_per_key": round((after - before) / count), "of_it_log_and_ids": round((log + ids) / count),
        "puts_per_s": round(count / took_s),
    }  # fmt: skip


def memory_of_redis(path: str, count: int) -> dict[str, Any]:
    """The same in a Redis by itself."""
    with closing(_redis(path)) as client:
        before = int(client.info("memory")["used_memory"])
        for start in range(0, count, 1000):
            batch = client.pipeline(transaction=False)
            for number in range(start, min(count, start + 1000)):
                batch.set(f"many/{number}", b"%016d" % number + b"x" * 84)
            batch.execute()
        return {"keys": count, "bytes_per_key": round((int(client.info("memory")["used_memory"]) - before) / count)}


def memory_of_nats(url: str, pid: int, count: int) -> dict[str, Any]:
    """The same in a NATS KV bucket: resident memory of the server, whose values are in files."""
    import asyncio

    from bench.ekv.systems import _open_nats

    async def fill_bucket() -> None:
        client, bucket, _ = await _open_nats(url)
        gate = asyncio.Semaphore(200)

        async def put(number: int) -> None:
            async with gate:
                await bucket.put(f"many.{number}", b"%016d" % number + b"x" * 84)

        for start in range(0, count, 5000):
            await asyncio.gather(*(put(number) for number in range(start, min(count, start + 5000))))
        await client.close()

    before = resident_mib(pid)
    asyncio.run(fill_bucket())
    return {"keys": count, "bytes_per_key": round((resident_mib(pid) - before) * 2**20 / count)}


def _memory(client: Any, name: bytes) -> int:
    return int(client.memory_usage(name, samples=0) or 0)


def _redis(path: str) -> Any:
    return redis.Redis(unix_socket_path=path, protocol=2, socket_timeout=120)


def until(condition: Callable[[], Any], what: str, deadline_s: float = 30.0, every_s: float = 0.05) -> None:
    """Wait for a condition. Raises Failed."""
    end_s = time.perf_counter() + deadline_s
    while not condition():
        if time.perf_counter() > end_s:
            raise Failed(f"not within {deadline_s:g} s: {what}")
        time.sleep(every_s)


def medians(rounds: Sequence[Staleness]) -> dict[str, Any]:
    """The middle round by its p99."""
    ordered = sorted(rounds, key=lambda one: quantile(one.samples_ms, 0.99))
    return ordered[len(ordered) // 2].to_json()
