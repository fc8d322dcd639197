"""paho's client, with what runs once per message replaced: reading packets, a PUBLISH's properties, and publishing with QoS 1.

What it is: `Client` with one receive buffer for many packets, PUBLISH decoded by `core.mqttprops`, confirmations without their property objects, messages
without the lock that paho makes for whoever waits for one, and one write for all packets that are queued.
What it is not: another MQTT client. Connecting, sessions, acknowledgements, flow control and redelivery are paho's, untouched.
What must stay true: each packet that is not a QoS 0 or 1 PUBLISH or the PUBACK of a message goes through paho's own code. This relies on names that paho does not promise
(`_in_packet`, `_packet_handle`, `_handle_on_message`, `_out_messages`, `_inflight_messages`, `_max_inflight_messages`, `_update_inflight`, `_mid_generate`,
`_out_packet`, `_packet_write`, the fields of MQTTMessage), so its version is bounded in pyproject.toml and tests run both ways against a real broker.
"""

import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import (
    Client,
    MQTTMessage,
    mqtt_ms_invalid,
    mqtt_ms_publish,
    mqtt_ms_queued,
    mqtt_ms_wait_for_puback,
)
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgeflow.core.mqttprops import PackedProperties, PublishProperties, decode_properties, read_variable_int
from edgeflow.errors import ProtocolError

_READ_BYTES = 256 * 1024
_PUBLISH = 0x30
_PUBACK = 0x40
_DISCONNECT = 0xE0
_FAILURE = 0x80
_SUCCESS = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]
_JOINED_BYTES = 64 * 1024
"""Packets up to this size are written together; a copy of a larger one costs more than a write."""


class _Nobody:
    """Stands for those who wait until a message is published: here nobody does."""

    def _set_as_published(self) -> None:
        pass


_NOBODY: Any = _Nobody()


class Message(MQTTMessage):
    """A received PUBLISH; `decoded` has its properties."""

    decoded: PublishProperties

    def __init__(self, mid: int, topic: bytes) -> None:
        # All that paho's own constructor does but for the object (with a lock) that waits for publishes.
        self.mid, self._topic, self.info = mid, topic, _NOBODY
        self.timestamp, self.state, self.properties = 0.0, mqtt_ms_invalid, None
        self.payload, self.qos, self.retain, self.dup = b"", 0, False, False


class Outgoing(MQTTMessage):
    """A QoS 1 PUBLISH that is not confirmed; paho sends it (again) from these fields after a reconnect, or when there is room."""

    __slots__ = ()

    def __init__(self, mid: int, topic: bytes, payload: bytes, retain: bool, properties: Any) -> None:
        self.mid, self._topic, self.info = mid, topic, _NOBODY
        self.timestamp, self.state, self.properties = time.monotonic(), mqtt_ms_queued, properties
        self.payload, self.qos, self.retain, self.dup = payload, 1, retain, False


class FastClient(Client):
    """An MQTT 5 client whose messages are `Message`s."""

    ignores: Callable[[bytes], bool] | None = None
    """Says of a topic that its QoS 0 messages are not wanted; they are dropped before anything is decoded."""
    _received: bytearray = bytearray()

    def read_packets(self) -> MQTTErrorCode:
        """Read what the socket has, once, and handle every packet that is complete. Use in place of `loop_read`."""
        sock: Any = self._sock
        if sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError:
            data = b""
        if not data:
            return self._lost(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        with self._msgtime_mutex:
            self._last_bytes_received = time.monotonic()
        self._received += data
        try:
            return self._handle_received(sock)
        except ProtocolError:
            return self._lost(MQTTErrorCode.MQTT_ERR_PROTOCOL)

    def publish_packed(self, topic: str, payload: bytes, properties: bytes, *, retain: bool = False) -> int:
        """Queue a QoS 1 publish; its message id. In place of `publish`, after which it is to be flushed by whoever drives the client: nobody is told."""
        name = topic.encode()
        with self._out_message_mutex:
            mid = self._mid_generate()
            while mid in self._out_messages:
                mid = self._mid_generate()
            message = Outgoing(mid, name, payload, retain, PackedProperties(properties))
            self._out_messages[mid] = message
            if not 0 < self._max_inflight_messages <= self._inflight_messages:
                if self._sock is None:
                    message.state = mqtt_ms_publish
                    return mid
                self._inflight_messages += 1
                message.state = mqtt_ms_wait_for_puback
                packet = encode_publish(mid, name, payload, properties, retain)
                self._out_packet.append(
                    {"command": packet[0], "mid": mid, "qos": 1, "pos": 0, "to_process": len(packet), "packet": packet, "info": None}
                )  # fmt: skip
        return mid

    def start_reading(self) -> None:
        """Forget what an earlier connection left in the buffer; call when a socket was opened."""
        self._received = bytearray()

    def _handle_received(self, sock: Any) -> MQTTErrorCode:
        buffer = self._received
        start = 0
        while len(buffer) - start >= 2:
            try:
                size, body = read_variable_int(buffer, start + 1)
            except ProtocolError:
                if len(buffer) - start < 5:
                    break
                raise
            end = body + size
            if end > len(buffer):
                break
            command, packet = buffer[start], bytes(buffer[body:end])
            start = end
            if command & 0xF0 == _PUBLISH and command & 0x06 != 0x04:
                self._publish_received(command, packet)
                status = MQTTErrorCode.MQTT_ERR_SUCCESS
            elif command == _PUBACK and (size == 2 or (size > 2 and packet[2] < _FAILURE)):
                status = self._confirmed(packet[0] << 8 | packet[1])
            else:
                status = self._hand_to_paho(command, packet)
            if self._sock is not sock:
                return status  # a handler closed the connection; the buffer belongs to it
            if status > 0:
                return self._lost(status)
        del buffer[:start]
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _publish_received(self, command: int, packet: bytes) -> None:
        size = int.from_bytes(packet[:2], "big")
        at = 2 + size
        topic = packet[2:at]
        qos = command >> 1 & 3
        if not qos and self.ignores is not None and self.ignores(topic):
            return
        mid = 0
        if qos:
            mid = int.from_bytes(packet[at : at + 2], "big")
            at += 2
        message = Message(mid, topic)
        message.decoded, at = decode_properties(packet, at)
        message.dup, message.qos, message.retain = bool(command & 8), qos, bool(command & 1)
        message.payload = packet[at:]
        self._handle_on_message(message)

    def _confirmed(self, mid: int) -> MQTTErrorCode:
        # As paho's _handle_pubackcomp and _do_on_publish, but it looks through the messages only when some of them wait for room.
        status = MQTTErrorCode.MQTT_ERR_SUCCESS
        with self._out_message_mutex:
            message = self._out_messages.pop(mid, None)
            if message is None:
                return status
            message.info._set_as_published()
            self._inflight_messages -= 1
            if len(self._out_messages) > self._inflight_messages:
                status = self._update_inflight()
        callback: Any = self.on_publish
        if callback is not None:
            callback(self, self._userdata, mid, _SUCCESS, _NO_PROPERTIES)
        return status

    def _packet_write(self) -> MQTTErrorCode:
        queue: Any = self._out_packet
        if len(queue) > 1:
            joined = []
            while queue and _joinable(queue[0]):
                joined.append(queue.popleft())
            if joined:
                data = b"".join([packet["packet"][packet["pos"] :] for packet in joined])
                # A PUBACK is the kind after whose writing paho does nothing.
                queue.appendleft(
                    {"command": _PUBACK, "mid": 0, "qos": 0, "pos": 0, "to_process": len(data), "packet": data, "info": None}
                )  # fmt: skip
        return super()._packet_write()

    def _hand_to_paho(self, command: int, packet: bytes) -> MQTTErrorCode:
        self._in_packet = {
            "command": command, "have_remaining": 1, "remaining_count": [], "remaining_mult": 1, "remaining_length": len(packet),
            "packet": bytearray(packet), "to_process": 0, "pos": 0,
        }  # fmt: skip
        try:
            return self._packet_handle()
        except Exception:  # paho lets many kinds through for a malformed packet
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _lost(self, status: MQTTErrorCode) -> MQTTErrorCode:
        self._received = bytearray()
        return self._loop_rc_handle(status)


def encode_publish(mid: int, topic: bytes, payload: bytes, properties: bytes, retain: bool) -> bytes:
    """A PUBLISH with QoS 1 that is sent for the first time (MQTT 5, 3.3); `properties` with their length in front."""
    head = bytearray((_PUBLISH | 2 | retain,))
    left = 4 + len(topic) + len(properties) + len(payload)
    while left > 127:
        head.append(left & 127 | 128)
        left >>= 7
    head.append(left)
    return b"".join((head, len(topic).to_bytes(2, "big"), topic, mid.to_bytes(2, "big"), properties, payload))


def _joinable(packet: Any) -> bool:
    """Whether nothing has to happen once this packet is written, and it is small."""
    kind = packet["command"] & 0xF0
    return (
        kind != _DISCONNECT and not (kind == _PUBLISH and packet["qos"] == 0) and packet["to_process"] <= _JOINED_BYTES
    )
