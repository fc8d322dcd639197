"""The way of a foreign MQTT program to the broker: what is rewritten, what is counted, who is turned away."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from edgeflow.errors import ProtocolError
from edgeflow.sdk.adapters import mqttpackets as mqtt
from edgeflow.sdk.adapters.relay import Relay
from edgeflow.sdk.log import Log

ACCOUNT = {"username": "function/v/f/1", "password": "real", "client_id": "function-secret", "spare_id": "spare"}


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + mqtt._as_length(len(body)) + body


def connect(
    level: int = 4,
    client: bytes = b"me",
    user: bytes | None = None,
    password: bytes | None = None,
    will: bytes | None = None,
) -> bytes:
    flags = (
        (0x80 if user is not None else 0)
        | (0x40 if password is not None else 0)
        | (0x2C if will is not None else 0)
        | 2
    )
    body = text(b"MQTT") + bytes([level, flags]) + b"\0\x3c"
    if level == 5:
        body += b"\x05\x11\0\0\0\x0a"  # session expiry
    body += text(client)
    if will is not None:
        body += (b"\0" if level == 5 else b"") + text(b"v/will") + text(will)
    for one in (user, password):
        body += text(one) if one is not None else b""
    return packet(0x10, body)


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("will", [None, b"gone" * 50])
@pytest.mark.parametrize(("user", "password"), [(None, None), (b"u", None), (b"u", b"p")])
def test_the_account_of_a_connect_is_ours_and_the_rest_the_programs(
    level: int, will: bytes | None, user: bytes | None, password: bytes | None
) -> None:
    made = mqtt.rewritten(connect(level, b"me", user, password, will), **ACCOUNT)
    assert made == connect(level, b"function-secret-me", b"function/v/f/1", b"real", will)
    assert mqtt.password_of(connect(level, b"me", user, password, will)) == password


def test_a_program_without_an_id_of_its_own_gets_one() -> None:
    assert mqtt.rewritten(connect(client=b""), **ACCOUNT) == connect(
        4, b"function-secret-spare", b"function/v/f/1", b"real"
    )


@pytest.mark.parametrize("cut", range(2, 20))
def test_a_damaged_connect_is_refused(cut: int) -> None:
    whole = connect(5, b"me", b"u", b"p")
    with pytest.raises(ProtocolError):
        mqtt.rewritten(packet(0x10, whole[2:][:cut]), **ACCOUNT)


def test_what_is_not_connect_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not CONNECT"):
        mqtt.rewritten(packet(0x30, text(b"v/x")), **ACCOUNT)
    with pytest.raises(ProtocolError):
        mqtt.packet_size(b"\x10\xff\xff\xff\xff")


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_messages_are_counted_however_they_are_cut(step: int) -> None:
    stream = (
        packet(0x20, b"\0\0")
        + packet(0x31, text(b"v/x") + b"y" * 300)
        + packet(0xD0, b"")
        + packet(0x32, text(b"v/x") + b"\0\1z")
    )
    counter = mqtt.Counter()
    for at in range(0, len(stream), step):
        counter.feed(stream[at : at + step])
    assert counter.messages == 2


# ------------------------------------------------------------------ the relay


class Broker:
    """Takes one connection after the other, remembers its CONNECT and answers with this code."""

    def __init__(self, path: str, code: int = 0) -> None:
        self.seen: list[bytes] = []
        self._code = code
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.seen.append(sock.recv(65536))
            sock.sendall(packet(0x20, bytes([0, self._code])) + packet(0x30, text(b"v/x") + b"hello"))
            with sock:
                while sock.recv(65536):
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ef-") as one:
        yield Path(one)


def grant(folder: Path) -> dict[str, str]:
    return {
        "socket": str(folder / "b"),
        "username": "function/v/f/1",
        "password": "real",
        "client_id": "function-secret",
    }


def ask(port: int, what: bytes) -> bytes:
    """What comes back until the connection ends or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(what)
        sock.settimeout(0.5)
        answer = b""
        try:
            while piece := sock.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def test_a_session_goes_through_with_the_account(folder: Path) -> None:
    broker, relay = Broker(str(folder / "b")), Relay(0, "token", lambda: Log({}, StringIO()))
    try:
        relay.use(grant(folder))
        answer = ask(relay.port, connect(user=b"any", password=b"token"))
        assert answer == packet(0x20, b"\0\0") + packet(0x30, text(b"v/x") + b"hello")
        assert broker.seen == [connect(4, b"function-secret-me", b"function/v/f/1", b"real")]
        assert relay.heard == 1 and not relay.refused
    finally:
        relay.close()
        broker.close()
    assert relay.sessions == 0


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (connect(), b"\x20\x02\0\x04"),
        (connect(user=b"u", password=b"wrong"), b"\x20\x02\0\x04"),
        (connect(5, user=b"u", password=b"wrong"), b"\x20\x03\0\x86\0"),
        (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b""),
    ],
)
def test_who_does_not_show_the_password_is_turned_away(folder: Path, said: bytes, answer: bytes) -> None:
    log = StringIO()
    broker, relay = Broker(str(folder / "b")), Relay(0, "token", lambda: Log({}, log))
    try:
        relay.use(grant(folder))
        assert ask(relay.port, said) == answer and broker.seen == [] and not relay.was_accepted
    finally:
        relay.close()
        broker.close()
    assert "session_ended" in log.getvalue()


def test_a_paused_relay_lets_nobody_through(folder: Path) -> None:
    broker, relay = Broker(str(folder / "b")), Relay(0, None, lambda: Log({}, StringIO()))
    try:
        threading.Timer(0.2, relay.use, (grant(folder),)).start()
        assert ask(relay.port, connect()) != b"", "it waits for the account"
        with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as sock:
            sock.sendall(connect())
            assert sock.recv(65536)
            relay.pause()
            while sock.recv(65536):
                pass
        assert ask(relay.port, connect()) == b""
        relay.resume()
        assert ask(relay.port, connect()) != b""
    finally:
        relay.close()
        broker.close()


def test_a_refused_account_is_noticed(folder: Path) -> None:
    broker, relay = Broker(str(folder / "b"), code=5), Relay(0, None, lambda: Log({}, StringIO()))
    try:
        relay.use(grant(folder))
        assert ask(relay.port, connect())[:4] == packet(0x20, b"\0\x05")
        assert "code 5" in relay.refused
        relay.use({**grant(folder), "password": "newer"})
        assert relay.refused == ""
    finally:
        relay.close()
        broker.close()
