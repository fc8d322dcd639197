"""The adapter of the contract `http` as a process, between an agent that does what the test says and a server that does what the event says."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from adapter_programs import SERVER, Adapted, alive, ask, session_of
from sdk_agent import item, stored_event, welcome

from edgeflow.sdk.adapters.exchange import Exchange
from edgeflow.sdk.adapters.ports import free_port

Wait = Callable[..., Any]


@pytest.fixture
def adapted() -> Iterator[Adapted]:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        one = Adapted(Path(folder), {"contract": "http", "command": [sys.executable, "server.py"]})
        (one.folder / "server.py").write_text(SERVER)
        yield one
        one.close()


def test_an_event_is_posted_and_its_answer_committed(adapted: Adapted) -> None:
    peer, process = adapted.ready()
    message = ask(peer, b"hello", attempt=3)
    assert message["t"] == "commit" and message["attempt"] == 3
    said = json.loads(message["outputs"][0]["data"])
    assert said["got"] == "hello" and said["headers"]["ce-subject"] == "clip/1"
    assert said["headers"]["Edgeflow-Invocation"] == "i1" and said["headers"]["Edgeflow-Attempt"] == "3"
    peer.send(peer.committed(message))
    second = ask(peer, {"put": "a/b", "status": 204, "body": ""}, "i2")
    assert [(one["key"], one["data"]) for one in second["values"]] == [("a/b", b"written")] and second["outputs"] == []
    peer.send(peer.committed(second))
    process.terminate()
    peer.expect("claim")
    peer.expect("leave")
    assert process.wait(10) == 0


def test_joined_inputs_are_a_batch(adapted: Adapted) -> None:
    inputs = [{"name": "frames", "channel": "vision/frames"}, {"name": "faces", "channel": "vision/faces"}]
    peer, _ = adapted.ready(inputs=inputs, join="all")
    peer.expect("claim")
    events = [
        {"name": "faces", "event": stored_event(b"f", channel="vision/faces")},
        {"name": "frames", "event": stored_event(b"x")},
    ]
    peer.send({"t": "work", "items": [item("i1", inputs=events)]})
    said = json.loads(peer.next()["outputs"][0]["data"])
    assert said["headers"]["Content-Type"] == "application/cloudevents-batch+json"
    assert [one["input"] for one in json.loads(said["got"])] == ["frames", "faces"]


def test_later_gives_back_and_claims_nothing_meanwhile(adapted: Adapted) -> None:
    peer, _ = adapted.ready()
    message = ask(peer, {"status": 503, "headers": {"Retry-After": "1"}, "body": "model loads"})
    assert message == {"t": "release", "invocations": [["i1", 1]]}
    started_s = time.monotonic()
    assert ask(peer, b"x", "i2")["t"] == "commit"
    assert 0.9 < time.monotonic() - started_s < 5


@pytest.mark.parametrize(
    ("order", "retry", "words"),
    [
        ({"status": 500, "body": "no model\nat all"}, True, "the program answered 500: no model / at all"),
        ({"status": 404, "body": "nothing"}, False, "the program answered 404: nothing"),
        ({"then": "close"}, True, "the program gave no answer: RemoteDisconnected"),
    ],
)
def test_attempts_fail_with_what_the_program_said(adapted: Adapted, order: Any, retry: bool, words: str) -> None:
    peer, _ = adapted.ready()
    message = ask(peer, order)
    assert message["t"] == "fail" and message["retry"] is retry and words in message["error"]
    assert ask(peer, b"x", "i2")["t"] == "commit", "the program is asked on a new connection"


def test_a_program_that_ends_takes_its_instance_with_it(adapted: Adapted) -> None:
    peer, process = adapted.ready()
    message = ask(peer, {"then": "exit"})
    assert message["t"] == "fail" and message["retry"]
    assert process.wait(10) == 7
    assert "giving up" in adapted.log() and "the program ended with status 7" in adapted.log()


def test_a_program_that_cannot_be_started_is_named(adapted: Adapted) -> None:
    process = adapted.start(command=["no-such-program"])
    hello = adapted.agent.accept()
    hello.expect("hello")
    hello.send(welcome())
    assert process.wait(10) == 78
    assert "the program 'no-such-program' cannot be started: No such file" in adapted.log()


def test_a_program_that_ends_at_once_is_never_ready(adapted: Adapted) -> None:
    process = adapted.start(command=["sh", "-c", "echo no model file >&2; exit 3"])
    peer = adapted.agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    assert process.wait(10) == 3 and "no model file" in adapted.log()
    assert peer.ended(), "it must not have said ready"


def test_ready_is_said_when_the_program_says_so(adapted: Adapted) -> None:
    adapted.start(http_ready="/healthz")
    peer = adapted.agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    assert peer.silent(1.0)
    (adapted.folder / "ready").touch()
    peer.expect("ready")


def test_the_port_of_another_program_is_not_taken_for_ours(adapted: Adapted) -> None:
    """A server of another session listens on the port that the program was told, and the program does not."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        adapted.start(command=["sleep", "60"], http_port=stranger.getsockname()[1])
        peer = adapted.agent.accept()
        peer.expect("hello")
        peer.send(welcome())
        assert peer.silent(1.0)


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_nothing_of_the_program_outlives_its_adapter(adapted: Adapted, wait_until: Wait, end: str) -> None:
    peer, process = adapted.ready(command=[sys.executable, "server.py", "child" if end == "terminate" else "stubborn"])
    peer.expect("claim")
    ours = [
        int(one.name)
        for one in Path("/proc").iterdir()
        if one.name.isdigit() and session_of(int(one.name)) == process.pid
    ]
    assert len(ours) == (3 if end == "terminate" else 2)
    getattr(process, end)()
    process.wait(10)
    wait_until(lambda: not any(alive(pid) for pid in ours), "all of them end")


def test_a_program_that_hangs_ends_with_the_attempt(adapted: Adapted) -> None:
    peer, process = adapted.ready()
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("i1", stored_event(b'{"then": "hang"}'))]})
    assert peer.silent(0.5)
    peer.send({"t": "kill"})
    assert process.wait(10) == 75


def test_a_program_that_stops_listening_blames_no_event(adapted: Adapted, wait_until: Wait) -> None:
    """The server is in a container of its own here: its end is not this process's to see."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "server.py"], cwd=adapted.folder, env={**os.environ, "PORT": str(port)})
    try:
        process = adapted.start(command=[], http_port=port)
        peer = adapted.agent.accept()
        peer.welcome()
        assert ask(peer, b"x")["t"] == "commit"
    finally:
        server.kill()
        server.wait()
    assert ask(peer, b"x", "i2") == {"t": "release", "invocations": [["i2", 1]]}
    assert process.poll() is None


@pytest.mark.parametrize(
    ("said", "body", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\nTrailer: x\r\n\r\n",
            b"hi",
            True,
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi", False),
    ],
)
def test_an_answer_may_have_any_framing(said: bytes, body: bytes, goes_on: bool) -> None:
    """What it asks is one request, whatever stands in its values; what is answered is read to its end and not beyond."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        exchange = Exchange(listener.getsockname()[1])
        program, _ = listener.accept()
        with program, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                exchange.post, "/here", {"ce-subject": "a\r\nContent-Length: 0\r\n\r\nPOST /there"}, b"data"
            )
            heard = b""
            while not heard.endswith(b"data"):
                heard += program.recv(4096)
            assert (
                heard.count(b"\r\n\r\n") == 1
                and heard.count(b"\r\nContent-Length:") == 1
                and b"/here HTTP/1.1\r\n" in heard
            )
            program.sendall(said)
            if said.startswith(b"HTTP/1.0"):
                program.shutdown(socket.SHUT_WR)
            status, _, answer = asked.result(30)
            assert status in (200, 204) and answer == body
            assert exchange.is_usable is goes_on
            exchange.close()
