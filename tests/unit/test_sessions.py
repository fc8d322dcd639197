"""An instance's connection at the agent: what is read, and when it counts as closed."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from edgeflow.core.routing import FunctionRoute, compile_routes
from edgeflow.core.wire import Message, encode_frame
from edgeflow.flow.reactor import Reactor
from edgeflow.flow.sessions import InstanceSpec, Session

FUNCTION = {
    "revision": "r", "contract": "sdk", "inputs": [{"name": "x", "channel": "app/x"}], "join": None, "publish": [], "context": {},
    "retry": {"attempts": 1, "backoff_ms": 1, "timeout_ms": 1000}, "place": {"pops": ["a"]},
}  # fmt: skip


class Connected:
    """A session and the other end of its socket; `seen` is what it told its owner, in order."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.reactor = Reactor()
        self.seen: list[Any] = []
        spec = InstanceSpec("app", "f", "r", "one", "s")

        def message(_session: Session, message: Message) -> None:
            self.seen.append(message["t"])

        def closed(_session: Session) -> None:
            self.seen.append("closed")
            self.reactor.stop()

        self.session = Session(self.reactor, ours, spec, route(), "a", message, closed)

    def say(self, *kinds: str) -> None:
        more: Message = {"protocol": 1, "sdk": "test"}
        self.theirs.sendall(b"".join(encode_frame({"t": kind, **more}) for kind in kinds))


def route() -> FunctionRoute:
    found = compile_routes({"functions": {"f": FUNCTION}}, "a").find("f", "r")
    assert found is not None
    return found


@pytest.fixture
def connected() -> Iterator[Connected]:
    one = Connected()
    yield one
    one.theirs.close()
    one.session.close()


def test_what_an_instance_said_before_it_went_is_read_although_it_hears_nothing_any_more(connected: Connected) -> None:
    connected.say("hello", "leave")
    connected.theirs.close()
    connected.session.send({"t": "work", "items": []})
    connected.session.flush()
    connected.reactor.run()
    assert connected.seen == ["leave", "closed"]


def test_a_read_waits_for_the_commits_before_it(connected: Connected) -> None:
    session, answers = connected.session, list[str]()
    session.read(lambda: answers.append("at once"))
    session.committing = 2
    session.read(lambda: answers.append("first"))
    session.read(lambda: answers.append("second"))
    assert answers == ["at once"]
    session.answer_reads()
    session.answer_reads()
    assert answers == ["at once", "first", "second"]
