"""The instance against an agent that does only what the test says: connections that come, go, and say wrong things."""

import os
import socket
import struct
import threading
import time
from typing import Any

import pytest
from sdk_agent import FakeAgent, InstanceThread, Start, echo, give, item, referring, stored_event, welcome

from edgeflow.errors import BadHandler, EdgeflowError, NotFound
from edgeflow.sdk import runtime


def test_hello_names_protocol_and_sdk(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    hello = peer.welcome()
    assert hello["protocol"] == 1
    assert hello["sdk"].startswith("python/")
    assert peer.expect("claim")["max"] == 1
    thread.end()
    assert thread.status == 0


def test_the_agent_restarts_while_idle(agent: FakeAgent, start: Start) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.close()
    again = agent.accept()
    again.welcome()
    give(again, item("a"))
    again.expect("commit")


def test_claimed_work_is_discarded_with_the_lost_socket(agent: FakeAgent, start: Start) -> None:
    entered, go_on, ran = threading.Event(), threading.Event(), []

    def handle(ctx: Any, frames: Any) -> bytes:
        ran.append(ctx.invocation_id)
        end_s = time.monotonic() + 0.005  # long enough that its commit is not held back
        entered.set()
        go_on.wait(10)
        while time.monotonic() < end_s:
            pass
        return b"late"

    peer, _ = start(handle)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("b")]})
    assert entered.wait(10)
    peer.close()
    go_on.set()
    again = agent.accept()
    again.welcome()
    again.expect("claim")
    assert again.silent()
    assert ran == ["a"]


def test_a_handler_that_waits_for_the_agent_is_abandoned_when_the_agent_goes(agent: FakeAgent, start: Start) -> None:
    ends: list[str] = []

    def handle(ctx: Any, frames: Any) -> bytes:
        try:
            return bytes(frames.data)
        except Exception:
            ends.append("caught")
            raise
        finally:
            ends.append("finally")

    peer, _ = start(handle)
    give(peer, item("a", referring(b"p" * 10_000)))
    peer.expect("fetch")
    peer.close()
    again = agent.accept()
    again.welcome()
    again.expect("claim")
    assert ends == ["finally"]


def test_the_agent_may_come_late_and_the_handler_is_loaded_once(agent: FakeAgent) -> None:
    agent.close()
    thread = InstanceThread(agent.path, echo)
    loads: list[int] = []
    load = thread.instance._load
    thread.instance._load = lambda: (loads.append(1), load())[1]
    agent.listen()
    for _ in range(3):
        peer = agent.accept()
        peer.welcome()
        peer.expect("claim")
        peer.close()
    assert loads == [1]
    thread.end()


def test_no_agent_for_too_long_ends_the_instance(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RECONNECT_S", 0.2)
    agent.close()
    assert InstanceThread(agent.path, echo).join() == 1


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\xff\xffxxxx",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\x91\x01",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_rubbish_from_the_agent_ends_the_connection_not_the_instance(
    agent: FakeAgent, start: Start, rubbish: bytes
) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.sock.sendall(rubbish)
    again = agent.accept()
    again.welcome()
    give(again, item("a"))
    again.expect("commit")


@pytest.mark.parametrize(
    "message",
    [
        {"t": "work"},
        {"t": "work", "items": [{"invocation": "a"}]},
        {"t": "work", "items": 5},
        {"t": "committed", "invocation": ["a"], "attempt": 1, "status": "committed"},
        {"t": "reply"},
    ],
)
def test_a_damaged_message_ends_the_connection_not_the_instance(
    agent: FakeAgent, start: Start, message: dict[str, Any]
) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send(message)
    again = agent.accept()
    again.welcome()
    again.expect("claim")


def test_a_message_of_an_unknown_kind_is_ignored(start: Start) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send({"t": "news", "from": "the future"}, {"no": "kind"}, {"t": "work", "items": [item("a")]})
    peer.expect("commit")


@pytest.mark.parametrize("answer", [welcome(protocol=2), {"t": "park"}, {"t": "welcome", "protocol": 1}])
def test_a_wrong_welcome_is_not_worked_with(agent: FakeAgent, answer: dict[str, Any]) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(answer)
    assert peer.ended()
    agent.accept().welcome()
    thread.end()


def test_work_in_pieces_and_in_one_read(start: Start) -> None:
    from edgeflow.core.wire import encode_frame

    peer, _ = start(echo)
    peer.expect("claim")
    frame = encode_frame({"t": "work", "items": [item("a", stored_event(b"y" * 300))]})
    for start_at in range(0, len(frame), 7):
        peer.sock.sendall(frame[start_at : start_at + 7])
    assert peer.expect("commit")["outputs"][0]["data"] == b"y" * 300


def test_an_error_of_the_agent_is_logged(agent: FakeAgent, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send({"t": "error", "code": "protocol-error", "error": "claim needs max >= 1"})
    agent.accept().welcome()
    assert "claim needs max >= 1 (protocol-error)" in capfd.readouterr().err


def test_a_handler_whose_parameters_are_not_the_inputs_is_refused(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, lambda ctx, pictures: None)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    assert peer.ended()
    thread.join()
    assert isinstance(thread.error, BadHandler)
    assert "'frames'" in str(thread.error)


def test_what_comes_in_one_read_with_the_welcome_is_heard(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome(), {"t": "drain"})
    peer.expect("ready")
    assert peer.ended()
    assert thread.join() == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"window": 5},
        {"window": ["a", "b"]},
        {"window": [1]},
        {"inputs": 5},
        {"inputs": [{"name": "frames"}]},
        {"state": "x"},
    ],
)
def test_a_damaged_item_fails_or_ends_the_connection_and_the_instance_goes_on(
    agent: FakeAgent, start: Start, damage: dict[str, Any]
) -> None:
    peer, _ = start(lambda ctx, frames: str(ctx.state.get("n")), state=True)
    give(peer, {**item("a"), **damage})
    try:
        assert peer.next()["t"] == "fail"
    except (EOFError, ConnectionResetError):
        peer = agent.accept()
        peer.welcome(state=True)
    give(peer, item("b"))
    while (message := peer.next())["t"] != "commit":
        pass
    assert message["invocation"] == "b"


def test_errors_of_replies_are_of_the_tree() -> None:
    from edgeflow.sdk.connection import error_of

    assert type(error_of("not-found", "x")) is NotFound
    assert type(error_of("internal", "x")) is EdgeflowError
    assert "strange" in str(error_of("strange", "x"))


def test_a_slow_agent_does_not_lock_both_ends(start: Start) -> None:
    """Both send more than a socket holds; the instance reads while it writes."""

    def emits(ctx: Any, frames: Any) -> None:
        for _ in range(8):
            ctx.emit("faces", os.urandom(1_000_000))

    peer, _ = start(emits)
    give(peer, item("a"))
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    peer.send(*[{"t": "noise", "data": bytes(1_000_000)} for _ in range(8)])
    assert [peer.next()["t"] for _ in range(9)] == ["blob"] * 8 + ["commit"]
