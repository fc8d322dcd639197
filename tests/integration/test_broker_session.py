"""A session with a real Mosquitto that is not read for a while: nothing is lost or reordered, nothing piles up here, and the connection stays."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.flow import broker
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.pahofast import Message
from edgeflow.flow.reactor import Reactor
from edgeflow.host.programs import find_program
from edgeflow.settings import MqttSettings

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(60)]
MESSAGES = 3000
KEEPALIVE_S = 1
UNREAD_S = 4.0
"""Several keepalives: the broker ends a connection that was silent for 1.5 of them, a client one whose pings have no answer."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[MqttSettings]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 256\nmax_queued_messages 0\n"
    )
    password = tmp_path / "password"
    password.write_text("any")
    process = subprocess.Popen([str(find_program("mosquitto")), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield MqttSettings(host="127.0.0.1", port=port, username="gateway", password_file=password)
    finally:
        process.kill()
        process.wait()


def test_a_session_that_is_not_read_stays_and_goes_on_where_it_was(
    settings: MqttSettings, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(broker, "_KEEPALIVE_S", KEEPALIVE_S)
    reactor = Reactor()
    seen: list[bytes] = []
    seen_unread: list[int] = []
    ready: list[str] = []
    lost: list[int] = []

    def take(message: Message) -> None:
        seen.append(bytes(message.payload))
        session.ack(message)
        if len(seen) == 10:
            session.read(False)
            reactor.call_later(UNREAD_S, go_on)
        if len(seen) == MESSAGES:
            reactor.stop()

    def go_on() -> None:
        seen_unread.append(len(seen))
        session.read(True)

    def flush() -> bool:
        session.flush()
        return False

    session = BrokerSession(
        reactor, settings, "one", "n/#", on_message=take, on_ready=ready.append, on_lost=lambda: lost.append(len(seen)), on_published=lambda _mid: None
    )  # fmt: skip
    reactor.call_every(KEEPALIVE_S / 5, session._keep_alive)
    reactor.after_round.append(flush)
    loop = threading.Thread(target=reactor.run, daemon=True)
    loop.start()
    wait_until(lambda: ready, "the session")
    lost_before = list(lost)
    lines = "".join(f"{number}\n" for number in range(MESSAGES)).encode()
    publish = ["mosquitto_pub", "-h", settings.host, "-p", str(settings.port), "-t", "n/x", "-q", "1", "-l"]
    subprocess.run(publish, input=lines, check=True, timeout=20)
    loop.join(30)
    reactor.stop()
    assert seen == [b"%d" % number for number in range(MESSAGES)]
    # What came in the same piece as the tenth was taken as well; nothing after it.
    assert seen_unread[0] < MESSAGES
    assert lost == lost_before and len(ready) == 1
