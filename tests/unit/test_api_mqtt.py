"""The relay of MQTT over WebSockets, in front of a stand-in for the broker."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from api_fakes import TOKEN, FakeStore, make_api, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from edgeflow.api.__main__ import FRAME_OVERHEAD_BYTES
from edgeflow.api.context import Api

MQTT = Subprotocol("mqtt")


class FakeBroker:
    """Listens where the broker would; echoes, or does what the test wants."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.connections: list[socket.socket] = []
        self.reading = threading.Event()
        self.reading.set()
        self.echoes = True
        self.read_bytes = 0
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        try:
            while True:
                self.reading.wait()
                data = connection.recv(65536)
                if not data:
                    break
                self.read_bytes += len(data)
                if self.echoes:
                    connection.sendall(data)
        except OSError:
            pass
        self.ended.set()

    def close(self) -> None:
        self.reading.set()
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return make_api(tmp_path, FakeStore())


@pytest.fixture
def broker(api: Api) -> Iterator[FakeBroker]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(api.settings.mqtt.socket))
    listener.listen()
    broker = FakeBroker(listener)
    yield broker
    broker.close()


@pytest.fixture
def url(api: Api) -> Iterator[str]:
    with served(api) as url:
        yield url.replace("http://", "ws://") + "/mqtt"


def open_socket(url: str, *subprotocols: str, **options: Any) -> ClientConnection:
    return connect(
        url,
        subprotocols=[Subprotocol(name) for name in subprotocols or (MQTT,)],
        compression=None,
        proxy=None,
        max_size=None,
        ping_interval=None,
        **options,
    )


def test_bytes_go_both_ways_unchanged(url: str, broker: FakeBroker) -> None:
    with open_socket(url) as websocket:
        assert websocket.subprotocol == "mqtt"
        for size in (1, 125, 126, 70_000, 3_000_000):
            data = os.urandom(size)
            websocket.send(data)
            received = b""
            while len(received) < size:
                part = websocket.recv(5)
                assert isinstance(part, bytes)
                received += part
            assert received == data


def test_fragmented_messages(url: str, broker: FakeBroker) -> None:
    with open_socket(url) as websocket:
        websocket.send([b"ab", b"cd", b"ef"])
        received = b""
        while len(received) < 6:
            received += bytes(websocket.recv(5))  # type: ignore[arg-type]
        assert received == b"abcdef"


def test_the_older_subprotocol_and_the_order_of_choice(url: str, broker: FakeBroker) -> None:
    with open_socket(url, "mqttv3.1") as websocket:
        assert websocket.subprotocol == "mqttv3.1"
    with open_socket(url, "mqttv3.1", "other", "mqtt") as websocket:
        assert websocket.subprotocol == "mqtt"


def test_over_tcp(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker = FakeBroker(listener)
        mqtt = api.settings.mqtt.model_copy(
            update={"socket": None, "host": "127.0.0.1", "port": listener.getsockname()[1]}
        )
        api.settings = api.settings.model_copy(update={"mqtt": mqtt})
        with served(api) as url, open_socket(url.replace("http", "ws") + "/mqtt") as websocket:
            websocket.send(b"hello")
            assert websocket.recv(5) == b"hello"
        broker.close()


def test_no_token_is_asked_for_but_the_subprotocol_is(url: str, broker: FakeBroker) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(url, proxy=None)
    assert caught.value.response.status_code == 400
    assert b"no-subprotocol" in caught.value.response.body
    assert not broker.connections


def test_an_absent_broker_is_a_problem_and_not_an_upgrade(url: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        open_socket(url)
    assert caught.value.response.status_code == 503
    assert caught.value.response.headers["content-type"] == "application/problem+json"
    assert b"broker-unavailable" in caught.value.response.body


def test_plain_http_is_told_so(url: str) -> None:
    import httpx

    response = httpx.get(url.replace("ws://", "http://"), headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)
    assert response.status_code in (404, 405, 426)
    assert response.headers["content-type"] == "application/problem+json"


def test_text_frames_end_it(url: str, broker: FakeBroker) -> None:
    with open_socket(url) as websocket:
        websocket.send("text")
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1003
    assert broker.ended.wait(5)


def test_a_frame_over_the_limit_ends_it(url: str, broker: FakeBroker, api: Api) -> None:
    with open_socket(url) as websocket:
        with pytest.raises(ConnectionClosed) as caught:
            websocket.send(bytes(api.settings.limits.event_bytes + FRAME_OVERHEAD_BYTES + 1))
            websocket.recv(5)
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009
    assert broker.ended.wait(5)


def test_the_broker_leaving_ends_the_browser(url: str, broker: FakeBroker) -> None:
    with open_socket(url) as websocket:
        websocket.send(b"x")
        assert websocket.recv(5) == b"x"
        broker.connections[0].shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001


@pytest.mark.parametrize("is_graceful", [True, False])
def test_the_browser_leaving_ends_the_broker_side(
    url: str, broker: FakeBroker, wait_until: Callable[..., Any], is_graceful: bool
) -> None:
    with open_socket(url) as websocket:
        websocket.send(b"last words")
        if not is_graceful:
            wait_until(lambda: broker.read_bytes == 10, "the broker has it")
            websocket.socket.shutdown(socket.SHUT_RDWR)
    assert broker.ended.wait(5)
    assert broker.read_bytes == 10


def test_a_broker_that_does_not_read_holds_the_browser_back(url: str, broker: FakeBroker) -> None:
    """Backpressure: what the relay has taken stays bounded, and everything arrives in the end."""
    broker.reading.clear()
    broker.echoes = False  # this client library does not read while it cannot send
    piece, pieces = bytes(100_000), 200
    sent = threading.Semaphore(0)
    count = [0]
    with open_socket(url) as websocket:

        def send() -> None:
            for _ in range(pieces):
                websocket.send(piece)
                count[0] += 1
            sent.release()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        steady, before = 0, -1
        end = time.monotonic() + 10
        while steady < 10 and time.monotonic() < end:
            time.sleep(0.05)
            steady = steady + 1 if count[0] == before else 0
            before = count[0]
        assert count[0] < pieces * 0.8, "the relay took everything in"
        broker.reading.set()
        assert sent.acquire(timeout=20)
        end = time.monotonic() + 10
        while broker.read_bytes < pieces * len(piece) and time.monotonic() < end:
            time.sleep(0.02)
        assert broker.read_bytes == pieces * len(piece)


def test_the_server_leaving_ends_relays(api: Api, broker: FakeBroker) -> None:
    with ExitStack() as server:
        url = server.enter_context(served(api))
        with open_socket(url.replace("http", "ws") + "/mqtt") as websocket:
            websocket.send(b"x")
            assert websocket.recv(5) == b"x"
            begin = time.monotonic()
            server.close()
            assert time.monotonic() - begin < 4
            with pytest.raises(ConnectionClosed):
                websocket.recv(5)
    assert broker.ended.wait(5)
