"""Publishing with the fast client: packets as paho writes them, sent again after a reconnect, kept back when the broker takes no more."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeflow.core.mqttprops import encode_properties, read_variable_int
from edgeflow.flow.pahofast import FastClient, encode_publish

TOPIC, BODY = "app/ü/x", b"x" * 200
PROPERTIES = encode_properties([("specversion", "1.0"), ("id", "1")], content_type="text/plain")
CONNACK = b"\x20\x03\x01\x00\x00"  # the session is there


class Broker:
    """A listening socket, and a client that connects to it. Reads packets and says what a test tells it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.confirmed: list[int] = []
        self.client = FastClient(
            CallbackAPIVersion.VERSION2, client_id="one", protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        self.client.on_publish = lambda _client, _data, mid, _reason, _properties: self.confirmed.append(mid)
        self.client.on_socket_register_write = lambda *_: None
        self._sock: socket.socket | None = None
        self._left = b""

    def connect(self) -> None:
        self.drop()
        self.client.connect("127.0.0.1", self._listener.getsockname()[1], clean_start=False)
        self.client.start_reading()
        self._sock, _ = self._listener.accept()
        self._sock.settimeout(10)
        self.flush()
        assert self.read() >> 4 == PacketTypes.CONNECT
        self.say(CONNACK)

    def say(self, packet: bytes) -> None:
        assert self._sock is not None
        self._sock.sendall(packet)
        sock: Any = self.client.socket()
        sock.setblocking(True)
        self.client.read_packets()
        self.flush()

    def flush(self) -> None:
        while self.client.want_write():
            self.client.loop_write()

    def packet(self) -> bytes:
        """The next packet, whole."""
        assert self._sock is not None
        while True:
            if len(self._left) > 4:
                size, body = read_variable_int(self._left, 1)
                if len(self._left) >= body + size:
                    packet, self._left = self._left[: body + size], self._left[body + size :]
                    return packet
            data = self._sock.recv(65536)
            assert data
            self._left += data

    def read(self) -> int:
        return self.packet()[0]

    def silent(self) -> bool:
        assert self._sock is not None
        self._sock.setblocking(False)
        try:
            return not self._left and not self._sock.recv(1)
        except BlockingIOError:
            return True
        finally:
            self._sock.settimeout(10)

    def drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock, self._left = None, b""
            self.client.read_packets()

    def close(self) -> None:
        self.drop()
        self._listener.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    one = Broker()
    yield one
    one.close()


def publish(broker: Broker) -> int:
    mid = broker.client.publish_packed(TOPIC, BODY, PROPERTIES)
    broker.flush()
    return mid


def again(packet: bytes) -> bytes:
    return bytes([packet[0] | 8]) + packet[1:]


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("size", [0, 50, 200, 20_000])
def test_a_packet_is_what_paho_writes(retain: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(Client, "_packet_queue", lambda _self, _command, packet, *_more: written.append(bytes(packet)))
    paho = Client(CallbackAPIVersion.VERSION2, client_id="one", protocol=MQTTProtocolVersion.MQTTv5)
    monkeypatch.setattr(paho, "_sock", object())
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("id", "1")]
    mid = paho.publish(TOPIC, b"x" * size, qos=1, retain=retain, properties=properties).mid
    monkeypatch.setattr(paho, "_sock", None)
    assert written == [encode_publish(mid, TOPIC.encode(), b"x" * size, encode_properties([("id", "1")]), retain)]


def test_it_is_sent_and_confirmed(broker: Broker) -> None:
    broker.connect()
    mid = publish(broker)
    assert broker.packet() == encode_publish(mid, TOPIC.encode(), BODY, PROPERTIES, False)
    broker.say(b"\x40\x02" + mid.to_bytes(2, "big"))
    assert broker.confirmed == [mid]
    broker.connect()
    assert broker.silent()


def test_what_was_not_confirmed_is_sent_again_after_a_reconnect(broker: Broker) -> None:
    broker.connect()
    mids = [publish(broker) for _ in range(3)]
    sent = [broker.packet() for _ in mids]
    broker.say(b"\x40\x02" + mids[1].to_bytes(2, "big"))
    broker.connect()
    assert [broker.packet() for _ in range(2)] == [again(sent[0]), again(sent[2])]
    broker.say(b"\x40\x02" + mids[2].to_bytes(2, "big") + b"\x40\x02" + mids[0].to_bytes(2, "big"))
    assert broker.confirmed == [mids[1], mids[2], mids[0]]


def test_a_refusal_of_the_broker_ends_it_too(broker: Broker) -> None:
    broker.connect()
    mid = publish(broker)
    broker.packet()
    broker.say(b"\x40\x03" + mid.to_bytes(2, "big") + b"\x87")  # not authorized
    assert broker.confirmed == [mid]
    broker.connect()
    assert broker.silent()


def test_what_is_published_without_a_connection_is_sent_with_the_next(broker: Broker) -> None:
    mid = publish(broker)
    broker.connect()
    assert broker.packet() == encode_publish(mid, TOPIC.encode(), BODY, PROPERTIES, False)


def test_above_the_receive_maximum_it_waits_for_room(broker: Broker) -> None:
    broker.client.max_inflight_messages_set(2)
    broker.connect()
    mids = [publish(broker) for _ in range(3)]
    first, _ = broker.packet(), broker.packet()
    assert broker.silent()
    broker.say(b"\x40\x02" + mids[0].to_bytes(2, "big"))
    assert broker.packet() == encode_publish(mids[2], TOPIC.encode(), BODY, PROPERTIES, False)
    assert first == encode_publish(mids[0], TOPIC.encode(), BODY, PROPERTIES, False)


def test_a_message_id_that_is_in_use_is_not_used_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.connect()
    first = publish(broker)
    monkeypatch.setattr(broker.client, "_last_mid", first - 1)
    assert publish(broker) == first + 1
