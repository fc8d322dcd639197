"""The benchmark counts every answer: its loop, its clients' parsers and its tables."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.flow import functions, report
from bench.flow.cells import Measured
from bench.flow.http_generator import HttpGenerator
from bench.flow.nats_generator import NatsGenerator
from bench.generator import Answer, Flood, drive
from edgeflow.core import manifest

ATTRIBUTES = [("id", "0" * 32), ("subject", "s")]


class Loopback:
    """A generator whose messages are answered at once, `copies` times; every `lose`th never."""

    def __init__(self, copies: int = 1, parts: int = 1, lose: int = 0) -> None:
        self.copies, self.parts, self.lose = copies, parts, lose
        self.started = 0
        self.waiting: list[Answer] = []

    def start(self, number: int) -> None:
        self.started += 1
        if self.lose and self.started % self.lose == 0:
            return
        self.waiting += [(number, part) for part in range(self.parts) for _ in range(self.copies)]

    def answered(self, timeout_s: float) -> list[Answer]:
        found, self.waiting = self.waiting, []
        return found

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.generator.DRAIN_S", 0.05)
    monkeypatch.setattr("bench.generator.LISTEN_S", 0.01)
    monkeypatch.setattr("bench.generator.FILL_S", 0.05)


def test_answers_are_counted_once() -> None:
    result = drive(Loopback(), 0.05, 10, pids={})
    assert result.events > 0 and (result.lost, result.twice) == (0, 0)


def test_answers_of_several_parts_are_complete_when_all_came() -> None:
    result = drive(Loopback(parts=10), 0.05, 10, answers=10, pids={})
    assert result.events > 0 and (result.lost, result.twice) == (0, 0)


def test_a_missing_part_is_a_loss() -> None:
    assert drive(Loopback(parts=9), 0.05, 10, answers=10, pids={}).lost == 10


def test_what_is_lost_is_reported() -> None:
    assert drive(Loopback(lose=7), 0.05, 10, pids={}).lost == 10


@pytest.mark.parametrize("parts", [1, 3])
def test_what_comes_twice_is_reported(parts: int) -> None:
    assert drive(Loopback(copies=2, parts=parts), 0.05, 1, answers=parts, pids={}).twice > 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def serve(listener: socket.socket, talk: Any) -> threading.Thread:
    def run() -> None:
        with listener.accept()[0] as connection:
            talk(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def read(connection: socket.socket, wanted: bytes, count: int = 1, before: bytes = b"") -> bytes:
    """Everything up to the `count`th `wanted`, or to the end."""
    received = before
    while received.count(wanted) < count and (data := connection.recv(4096)):
        received += data
    return received


def until(generator: Any, count: int) -> list[int]:
    numbers: list[int] = []
    for _ in range(200):
        numbers += [number for number, _ in generator.answered(0.05)]
        if len(numbers) >= count:
            break
    return numbers


def test_nats_messages_are_cut_wherever_the_socket_cuts_them(listener: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        read(connection, b"PING\r\n")
        connection.sendall(b"INFO {}\r\nPONG\r\n")
        received = read(connection, b"HPUB", 2)
        payloads = [b"x" * 8 + struct.pack("!Q", number) for number in (5, 6)]
        out = b'MSG _INBOX.bench 2 17\r\n{"stream":"a"....\r\nPING\r\n'
        out += b"HMSG out 1 12 28\r\nNATS/1.0\r\n\r\n" + payloads[0] + b"\r\nMSG out 1 16\r\n" + payloads[1] + b"\r\n"
        for byte in out:
            connection.sendall(bytes([byte]))
        assert b"PONG\r\n" in read(connection, b"PONG\r\n", before=received)

    thread = serve(listener, talk)
    with closing(NatsGenerator(listener.getsockname()[1], "in", "out", ATTRIBUTES, "text/plain", 16)) as generator:
        generator.start(5)
        generator.start(6)
        assert until(generator, 2) == [5, 6]
        thread.join(5)


def test_a_message_that_was_not_stored_ends_the_measurement(listener: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        read(connection, b"PING\r\n")
        connection.sendall(b"PONG\r\n")
        read(connection, b"HPUB")
        said = b'{"error":{"code":503}}'
        connection.sendall(b"MSG _INBOX.bench 2 %d\r\n%s\r\n" % (len(said), said))

    thread = serve(listener, talk)
    generator = NatsGenerator(listener.getsockname()[1], "in", "out", ATTRIBUTES, "text/plain", 16)
    generator.start(1)
    with closing(generator), pytest.raises(ConnectionError, match="did not store"):
        until(generator, 1)
    thread.join(5)


def test_http_takes_a_message_from_function_to_function(listener: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        read(connection, struct.pack("!Q", 7))
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 16\r", b"\n\r\n", b"y" * 8, struct.pack("!Q", 7)):
            connection.sendall(piece)
        connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as second:
        threads = [serve(listener, talk), serve(second, talk)]
        ports = [listener.getsockname()[1], second.getsockname()[1]]
        with closing(HttpGenerator(ports, ATTRIBUTES, "text/plain", 16, 1)) as generator:
            generator.start(7)
            assert until(generator, 1) == [7]
        for thread in threads:
            thread.join(5)


def test_the_application_is_a_manifest(tmp_path: Path) -> None:
    for write in (functions.write_all, functions.write_chain_of_one, functions.write_overloaded):
        document = json.loads(write(tmp_path, "la").read_text())
        manifest.parse(document)
        for function in document["functions"].values():
            assert (tmp_path / function["build"] / "handler.py").exists()


def flood(rate: float, lost: int = 0) -> Flood:
    return Flood(rate, 1.0, 2.0, 100, lost, 0, {"solo/data": 200.0, "solo/instance chain1 x": 30.0, "elsewhere": 50.0})


OVERLOAD = {"times": 5, "seconds": 6.0, "max_pending": 200, "subjects": 50}
POLICY = {
    "handler": "slow",
    "policy": "refuse",
    "capacity_per_s": 180.0,
    "handled_per_s": 160.0,
    "offered": 5000,
    "handled": 1000,
    "refused": {"full": 4000},
    "dropped": {},
    "missing": 0,
    "twice": 0,
    "p50_ms": 900.0,
    "p99_ms": 1100.0,
    "memory_mib": dict.fromkeys(("redis", "data", "control"), (10.0, 30.0, 20.0)),
}


def document(lost: int) -> dict[str, Any]:
    measured = report.cell_json(Measured([flood(500)], [flood(2000, lost), flood(1000), flood(3000)]))
    machine = {"cpu": "c", "cores": 2, "system": "s", "mosquitto": "2", "redis": "7", "python": "3", "commit": "abc"}
    settings = {"rounds": 3, "low_s": 1.0, "full_s": 2.0, "window": 300, "http_window": 64, "payload_bytes": 100}
    return {
        "cells": {f"edgeflow: {functions.chain(1).name}": measured, "NATS: chain of 1": measured},
        "machine": machine,
        "settings": {**settings, "slow_handler_ms": 5.0},
        "nats": {"version": "2.9", "sync_always": False},
        "fdatasync_ms": {"p50": 0.2, "p99": 0.4},
        "overload": {**OVERLOAD, "results": [dict(POLICY)]},
        "busy_elsewhere_percent": 3.0,
    }


def test_tables_show_medians_and_what_was_lost() -> None:
    text = report.markdown(document(lost=0))
    assert "| 1 | 1.00 / 2.00 ms; 2,000/s | 1.00 / 2.00 ms; 2,000/s |" in text
    assert "answered exactly once" in text and "LOST" not in text
    assert "has no `sync_interval: always`" in text
    broken = report.markdown(document(lost=2))
    assert "2 LOST" in broken and "ANSWERS WERE LOST" in broken


def test_overload_shows_what_became_of_each() -> None:
    wrong = document(0)
    wrong["overload"]["results"].append({**POLICY, "policy": "keep-latest", "missing": 3})
    text = report.markdown(wrong)
    first = "| a function of 5 ms, 180/s | `refuse` | 5,000 | 1,000 | 4,000 (full) | 0 | 160/s | 900 / 1,100 ms | 10 / 30 / 20 |"
    assert first in text
    assert "| `keep-latest` | 5,000 | 1,000 (3 MISSING, 0 TWICE) |" in text


def test_processor_time_is_by_kind_and_without_others() -> None:
    cell = document(0)["cells"]["NATS: chain of 1"]
    assert cell["full"]["processor_us"] == {"data": 200.0, "elsewhere": 50.0, "instances": 30.0}
    assert "| 230 us |" in report.markdown(document(0))
