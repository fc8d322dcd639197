"""The store's benchmark compares every body, and its table says what was wrong or could not be measured."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.ekv import across, cells, report
from bench.ekv.cells import Measured, Size
from bench.ekv.systems import Failed, HttpStore

SIZE = Size("100 B", 100, 2)


class Shelf:
    """A store in memory; `spoils` every so manieth body that is read."""

    def __init__(self, bodies: dict[str, bytes], spoils: int = 0) -> None:
        self.bodies, self.spoils, self.reads = bodies, spoils, 0

    def put(self, key: str, data: bytes) -> None:
        self.bodies[key] = data

    def get(self, key: str) -> bytes:
        self.reads += 1
        return b"x" if self.spoils and self.reads % self.spoils == 0 else self.bodies[key]

    def close(self) -> None:
        pass


def measured(spoils: int, size: Size = SIZE) -> dict[tuple[str, str, Any], Measured]:
    bodies: dict[str, bytes] = {}
    return cells.measure({"shelf": lambda: Shelf(bodies, spoils)}, [size], 1, 0.05, lambda _: None)


@pytest.mark.parametrize("size", [SIZE, Size("big", 1000, 1, large=True)])
def test_bodies_are_compared(size: Size) -> None:
    right = measured(0, size)["shelf", size.name, "get"]
    assert right.count > 0 and right.wrong == 0
    wrong = measured(1, size)["shelf", size.name, "get"]
    assert wrong.wrong > 0
    assert "WRONG" in report._cell(wrong.to_json(100), large=size.large)


def test_what_cannot_be_measured_says_so() -> None:
    class Broken(Shelf):
        def put(self, key: str, data: bytes) -> None:
            raise Failed("no room")

    found = cells.measure({"broken": lambda: Broken({})}, [SIZE], 1, 0.02, lambda _: None)["broken", "100 B", "put"]
    assert "no room" in report._cell(found.to_json(100), large=False)


def test_no_body_is_put_twice() -> None:
    body = bytes(100)
    made = {cells.fresh(body) for _ in range(100)}
    assert len(made) == 100 and all(len(one) == 100 for one in made)


def test_staleness_begins_with_the_acknowledgement() -> None:
    shown: list[bytes] = []
    found = across.one_by_one(shown.append, lambda: shown[-1], 5.0, 3)
    assert len(found.samples_ms) == 3 and max(found.samples_ms) < 0  # it was there at once: less than the delay


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for start in range(0, len(answer), 7):
                    connection.sendall(answer[start : start + 7])

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n",
    ],
)
def test_the_client_reads_whole_bodies(answer: bytes) -> None:
    with answering(answer) as url:
        store = HttpStore(url, "token")
        assert store.get("k") == b"hello, world"
        store.close()


def test_the_client_passes_refusals_on() -> None:
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}") as url:
        store = HttpStore(url, "token")
        with pytest.raises(Failed, match="404"):
            store.get("k")
        store.close()


def test_the_page_has_everything() -> None:
    cell = {"p50_ms": 1.0, "p99_ms": 2.0, "per_s": 900.0, "mb_per_s": 0.1, "count": 5, "wrong": 0, "note": ""}
    one = {"delay_ms": 5, "p50_ms": 1.5, "p99_ms": 2.5, "writes": 9}
    outage = {"values": 1000, "size": 65536, "took_s": 2.0, "per_s": 500, "mb_per_s": 33.0, "link_per_s": 900}
    text = report.markdown(
        {
            "machine": {"cpu": "c", "cores": 2, "system": "s", "redis": "7", "python": "3", "commit": "x"}, "nats": "2", "sizes": ["100 B", "100 MB"],
            "cells": {f"{name}: {what} {size}": cell for name in report.SYSTEMS for what in ("put", "get") for size in ("100 B", "100 MB")},
            "staleness": {"edgeflow": [one], "Redis": [one]}, "catch_up": {"edgeflow": [outage], "Redis": [outage]},
            "memory": {"edgeflow": {"keys": 9, "bytes_per_key": 700, "of_it_log_and_ids": 300}, "Redis": {"bytes_per_key": 150}, "NATS": {"bytes_per_key": 90}},
            "fdatasync_ms": {"p50": 0.1, "p99": 0.2}, "busy_elsewhere_percent": 3, "took_s": 200,
            "settings": {"clients": {"100 B": 8}, "staleness_writes": 9, "rounds": 3, "seconds": 1.6},
        }
    )  # fmt: skip
    for word in (
        "put 100 B",
        "get 100 MB",
        "5 ms apart",
        "1,000 values of 64 KiB",
        "| 400 |",
        "40 bodies were read and are right",
    ):
        assert word in text
