"""Plain paho, used the plain way: the client that is measured from, and the bare echo that everything is compared with.

What it is: `Pinger` (publish, wait for the answer, one at a time) and `python -m bench.pahos` (answers every message with the same payload).
What must stay true: both set TCP_NODELAY, which paho never does (without it a round trip can take 44 ms); both sides carry the event attributes as
user properties, packed and unpacked for every message, as any CloudEvents client does.
"""

import argparse
import json
import select
import socket
import sys
import time
import uuid
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.packets import Attributes, Broker


class NoAnswer(Exception):
    """A message was published and nothing came back."""


def new_client(broker: Broker, client_id: str) -> Client:
    """A client that is not connected yet."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5)
    client.username_pw_set(broker.username, broker.password)
    client.on_socket_open = _no_delay
    return client


def _no_delay(_client: Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def properties_of(attributes: Attributes, content_type: str | None) -> Properties:
    """Properties of a PUBLISH; the attribute `id` gets a value of its own."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [(name, uuid.uuid4().hex if name == "id" else value) for name, value in attributes]
    if content_type is not None:
        properties.ContentType = content_type
    return properties


class Pinger:
    """One client in one thread: the time from before `publish` until the answer is decoded."""

    def __init__(self, broker: Broker, answers: str, *, qos: int = 1) -> None:
        self._client = new_client(broker, f"bench-pinger-{uuid.uuid4().hex}")
        self._subscribed = False
        self._answers = answers
        self._qos = qos
        self._number = 0
        self._payload = b""
        self._answered_s = 0.0
        self.last: MQTTMessage | None = None
        self._client.on_message = self._message
        self._client.on_connect = lambda client, *_: client.subscribe(answers, qos=qos)
        self._client.on_subscribe = self._on_subscribe
        self._client.connect(broker.host, broker.port, keepalive=600)
        self._serve(lambda: self._subscribed, 10.0)

    def ping(
        self, topic: str, attributes: Attributes, content_type: str | None, payload_bytes: int, timeout_s: float = 10.0
    ) -> float:
        """Seconds until the answer. Raises NoAnswer."""
        self._number += 1
        self._payload = b"%0*d" % (payload_bytes, self._number)
        self._answered_s = 0.0
        started_s = time.perf_counter()
        self._client.publish(topic, self._payload, qos=self._qos, properties=properties_of(attributes, content_type))
        if not self._serve(lambda: self._answered_s, timeout_s):
            raise NoAnswer(f"{topic}: nothing on {self._answers} within {timeout_s:g} s")
        return self._answered_s - started_s

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()

    def _serve(self, done: Any, timeout_s: float) -> bool:
        client, deadline_s = self._client, time.monotonic() + timeout_s
        while not done():
            sock = client.socket()
            if sock is None:
                raise NoAnswer("the broker closed the connection")
            readable, writable, _ = select.select([sock], [sock] if client.want_write() else [], [], 0.5)
            if readable:
                client.loop_read()
            if writable:
                client.loop_write()
            if not readable:
                client.loop_misc()
                if time.monotonic() > deadline_s:
                    return False
        return True

    def _message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.payload == self._payload:
            self._answered_s = time.perf_counter()
            self.last = message

    def _on_subscribe(self, _client: Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            raise NoAnswer(f"the broker refused the subscription to {self._answers}")
        self._subscribed = True


def serve_echo(
    broker: Broker, requests: str, answers: str, attributes: Attributes, content_type: str | None, qos: int
) -> None:
    """Answer for ever; prints a line once it is subscribed."""
    client = new_client(broker, f"bench-echo-{uuid.uuid4().hex}")

    def answer(_client: Client, _data: Any, message: MQTTMessage) -> None:
        client.publish(answers, message.payload, qos=qos, properties=properties_of(attributes, content_type))

    client.max_inflight_messages_set(1000)
    client.max_queued_messages_set(0)
    client.on_message = answer

    def subscribe(*_: Any) -> None:
        client.subscribe(requests, qos=qos)

    client.on_connect = subscribe
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect(broker.host, broker.port, keepalive=600)
    client.loop_forever()


def main() -> None:
    """The echo process: its parameters as JSON on the first line of stdin (the password does not belong on a command line)."""
    parser = argparse.ArgumentParser(
        prog="bench.pahos", description="A bare paho echo; parameters as one line of JSON on stdin."
    )
    parser.parse_args()
    asked = json.loads(sys.stdin.readline())
    attributes = [(name, value) for name, value in asked["attributes"]]
    serve_echo(
        Broker(**asked["broker"]), asked["requests"], asked["answers"], attributes, asked["content_type"], asked["qos"]
    )


if __name__ == "__main__":
    main()
