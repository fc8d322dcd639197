"""The instance as a process of its own: signals, exit statuses, children that a handler forks."""

import os
import signal
from pathlib import Path

import pytest
from sdk_agent import (
    FakeAgent,
    give,
    item,
    start_process,
    stored_event,
    welcome,
)

HANDLER = """
import os, time
from edgeflow import function

@function
def handle(ctx, frames):
    if frames.data == b"hang":
        ctx.emit("faces", bytes(5000))
        ctx.emit("faces", bytes(300_000))
        time.sleep(60)
    if frames.data == b"slow":
        time.sleep(0.5)
    if frames.data in (b"fork and return", b"fork and raise"):
        child = os.fork()
        if child == 0 and frames.data == b"fork and raise":
            raise RuntimeError("in the child")
        if child:
            os.waitpid(child, 0)
    if frames.data == b"fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        return str(child)
    return frames.data
"""


def test_process_sigterm_finishes_the_current_invocation_and_exits_0(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a", stored_event(b"slow")), item("b")]})
    peer.silent(0.2)
    process.send_signal(signal.SIGTERM)
    messages = [peer.next(), peer.next()]
    assert [m["t"] for m in messages] == ["commit", "release"]
    peer.send(peer.committed(messages[0]))
    assert process.communicate(timeout=10)[1] is not None
    assert process.returncode == 0


def test_process_sigterm_while_idle_and_while_no_agent_is_there(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    peer.expect("claim")
    agent.close()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_process_kill_exits_75_and_says_where_the_handler_was(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    give(peer, item("a", stored_event(b"hang")))
    peer.expect("blob")
    peer.send({"t": "kill"})
    peer.close()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 75
    assert "time.sleep(60)" in errors


def test_process_hangs_past_its_timeout_after_the_agent_is_gone(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome(timeout_ms=500)
    give(peer, item("a", stored_event(b"hang")))
    peer.expect("blob")
    peer.close()
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_process_a_forked_child_neither_holds_the_socket_nor_stops_the_instance(
    agent: FakeAgent, tmp_path: Path
) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    give(peer, item("a", stored_event(b"fork")))
    child = int(peer.expect("commit")["outputs"][0]["data"])
    try:
        os.kill(child, signal.SIGTERM)
        give(peer, item("b", stored_event(b"fork")))
        second = int(peer.expect("commit")["outputs"][0]["data"])
        process.kill()
        process.wait(10)
        peer.expect("claim")
        assert peer.ended()  # though the second child lives
        os.kill(second, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=10)  # ends when the last holder of its stderr does: both children are gone


@pytest.mark.parametrize("way", [b"fork and return", b"fork and raise"])
def test_process_a_forked_child_that_leaves_the_handler_is_no_second_instance(
    agent: FakeAgent, tmp_path: Path, way: bytes
) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    try:
        for invocation in "ab":
            give(peer, item(invocation, stored_event(way)))
            commit = peer.expect("commit")  # once, although two processes came out of the handler
            assert (commit["invocation"], commit["outputs"][0]["data"]) == (invocation, way)
        peer.expect("claim")
        assert peer.silent()
        assert agent.nobody_comes()
    finally:
        process.kill()
        _, errors = process.communicate(timeout=10)
    assert ("forked_child_failed" in errors) == (way == b"fork and raise")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import nothing_of_that_name\n", ["cannot be imported", "nothing_of_that_name", "requirements.txt"]),
        ("x = \n", ["cannot be imported", "SyntaxError", "handler.py"]),
        ("def handle(ctx, frames): pass\n", ["marks no function with @function"]),
        (
            "from edgeflow import function\n@function\nasync def handle(ctx, frames): pass\n",
            ["is async", "plain functions"],
        ),
        (
            "from edgeflow import function\n@function\ndef handle(ctx, pics): pass\n",
            ["'frames'", "def handle(ctx, frames):"],
        ),
    ],
)
def test_process_an_unusable_handler_exits_78_and_says_why(
    agent: FakeAgent, tmp_path: Path, source: str, parts: list[str]
) -> None:
    process = start_process(agent.path, tmp_path, source)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 78
    for part in parts:
        assert part in errors


def test_process_without_its_environment_says_so(tmp_path: Path) -> None:
    process = start_process("", tmp_path, HANDLER)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 78
    assert "EDGEFLOW_SOCKET is not set" in errors
