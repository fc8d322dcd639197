"""The instance's end of its socket when several threads, signals and lost agents meet on it."""

import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeflow.core.wire import FrameReader, encode_frame
from edgeflow.sdk.connection import Abandoned, AgentPort, Connection, ConnectionLost
from edgeflow.sdk.inputs import BodyCache

TIMEOUT_S = 10.0


class Pair:
    """A Connection and the socket of an agent at its other end."""

    def __init__(self) -> None:
        mine, self.agent = socket.socketpair()
        self.agent.settimeout(TIMEOUT_S)
        self.kills: list[int] = []
        self.connection = Connection(mine, on_kill=lambda: self.kills.append(1))
        self._reader = FrameReader()

    def say(self, *messages: dict[str, Any]) -> None:
        self.agent.sendall(b"".join(map(encode_frame, messages)))

    def hear(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        while not messages:
            messages = self._reader.feed(self.agent.recv(1 << 20))
        assert len(messages) == 1
        return messages[0]

    def read_elsewhere(self) -> None:
        """Another thread reads what is there, as one does whose own sending is held up."""

        def read() -> None:
            with self.connection._lock:
                self.connection._read()

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.connection.close()
    made.agent.close()


class Before:
    """A poll object that does something after its thread has decided to wait, and before it waits."""

    def __init__(self, poll: Any, action: Callable[[], None]) -> None:
        self._poll = poll
        self._action: Callable[[], None] | None = action

    def poll(self, *arguments: Any) -> Any:
        action, self._action = self._action, None
        if action is not None:
            action()
        return self._poll.poll(*arguments)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that runs `work`, and where its result or exception will be."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def test_a_reply_that_another_thread_reads_wakes_the_one_that_waits(pair: Pair) -> None:
    def steal() -> None:
        pair.say({"t": "reply", "r": pair.hear()["r"], "ok": True, "value": 5})
        pair.read_elsewhere()

    pair.connection._reads = Before(pair.connection._reads, steal)  # type: ignore[assignment]
    thread, found = in_thread(lambda: pair.connection.request({"t": "get", "key": "k"}))
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the reply has been read, and nobody told the thread that waits for it"
    assert found[0]["value"] == 5


def test_work_that_another_thread_reads_wakes_the_main_thread(pair: Pair) -> None:
    def steal() -> None:
        pair.say({"t": "work", "items": []})
        pair.read_elsewhere()

    pair.connection._main = Before(pair.connection._main, steal)  # type: ignore[assignment]
    thread, found = in_thread(pair.connection.receive)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert found == [[{"t": "work", "items": []}]]


def test_rubbish_that_another_thread_reads_wakes_whoever_waits(pair: Pair) -> None:
    def rubbish() -> None:
        pair.agent.sendall(b"\xff\xff\xff\xffrubbish")
        pair.read_elsewhere()

    pair.connection._reads = Before(pair.connection._reads, rubbish)  # type: ignore[assignment]
    thread, found = in_thread(lambda: pair.connection.request({"t": "get", "key": "k"}))
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert isinstance(found[0], Abandoned)


def test_closing_ends_the_wait_of_a_thread_that_outlived_its_handler(pair: Pair) -> None:
    thread, found = in_thread(lambda: pair.connection.request({"t": "get", "key": "k"}))
    pair.hear()
    pair.connection.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert isinstance(found[0], Abandoned)


def test_a_request_on_a_lost_socket_is_abandoned_however_large_it_is(pair: Pair) -> None:
    pair.agent.close()
    for size in (1, 1_000_000):
        with pytest.raises(Abandoned):
            pair.connection.request({"t": "get", "key": "k" * size})
    with pytest.raises(Abandoned):
        AgentPort(pair.connection, BodyCache()).store_blob("sha256:a", bytes(1_000_000))


def test_nothing_follows_a_frame_that_was_sent_by_half(pair: Pair) -> None:
    """A function may have a signal handler that raises, to limit its own time."""

    class TooSlow(Exception):
        pass

    def on_signal(_number: int, _frame: Any) -> None:
        raise TooSlow

    def interrupt() -> None:
        select.select(
            [pair.agent], [], [], TIMEOUT_S
        )  # the first half has come; the rest waits for an agent that reads
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(TooSlow):
            pair.connection.queue({"t": "blob", "digest": "d", "data": bytes(20_000_000)})
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    pair.connection.queue({"t": "commit"})
    with pytest.raises(ConnectionLost, match="sending was interrupted"):
        pair.connection.flush()


def test_what_is_put_back_comes_first(pair: Pair) -> None:
    pair.say({"t": "a"}, {"t": "b"}, {"t": "c"})
    received = pair.connection.receive(TIMEOUT_S)
    pair.connection.put_back(received[1:])
    pair.say({"t": "d"})
    seen: list[Any] = []
    while len(seen) < 3:
        seen += pair.connection.receive(TIMEOUT_S)
    assert [one["t"] for one in seen] == ["b", "c", "d"]


def test_kill_is_heard_whoever_reads_it(pair: Pair) -> None:
    pair.say({"t": "kill"})
    pair.read_elsewhere()
    assert pair.kills == [1]
