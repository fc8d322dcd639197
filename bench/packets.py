"""MQTT 5 packets as bytes, for a load generator that costs little beside what it measures.

What it is: a blocking client for one publisher and one subscription: CONNECT, SUBSCRIBE, QoS 1 PUBLISH from a template, a scan of what arrives.
What it is not: a client library. It knows no reconnect, no QoS 2, and reads of a PUBLISH only its message id and the end of its payload.
What must stay true: everything it receives with QoS 1 is acknowledged; it never blocks in a send while the broker waits for it to read.

MQTT 5.0: 2.1 structure of a packet, 2.2.2 properties, 3.1, 3.3, 3.4, 3.8.
"""

import select
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Attributes = Sequence[tuple[str, str]]

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
_CONTENT_TYPE, _USER_PROPERTY = 0x03, 0x26
_NUMBER = struct.Struct("!Q")
NUMBER_BYTES = _NUMBER.size
_MOST_MESSAGE_IDS = 0xFFFF


def variable_int(value: int) -> bytes:
    """A variable byte integer (1.5.5)."""
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def text(value: str) -> bytes:
    """A UTF-8 string with its length (1.5.4)."""
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded


def publish_properties(attributes: Attributes, content_type: str | None) -> bytes:
    """The properties of a PUBLISH, their length included."""
    packed = b"".join(bytes([_USER_PROPERTY]) + text(name) + text(value) for name, value in attributes)
    if content_type is not None:
        packed = bytes([_CONTENT_TYPE]) + text(content_type) + packed
    return variable_int(len(packed)) + packed


class Template:
    """A PUBLISH whose message id, numbered attributes and number are filled in. The number is the last NUMBER_BYTES of the payload.

    A numbered attribute has the number as its value, in hexadecimal digits, as many as its value in `attributes` has characters; modulo what stands
    beside its name, if anything does.
    """

    def __init__(
        self,
        topic: str,
        attributes: Attributes,
        content_type: str | None,
        payload_bytes: int,
        *,
        numbered: Mapping[str, int | None],
        qos: int = 1,
    ) -> None:
        properties = publish_properties(attributes, content_type)
        marks = [(value.encode(), numbered[name]) for name, value in attributes if name in numbered]
        self._qos = qos
        size_bytes = 2 + len(topic.encode()) + (2 if qos else 0) + len(properties) + payload_bytes
        self._head = bytes([0x30 | qos << 1]) + variable_int(size_bytes) + text(topic)
        self._pieces = []
        for mark, modulus in marks:
            before, _, properties = properties.partition(mark)
            self._pieces.append((before, b"%%0%dx" % len(mark), modulus))
        self._tail = properties + b"x" * (payload_bytes - NUMBER_BYTES)

    def packet(self, number: int, message_id: int) -> bytes:
        """The packet of message `number`."""
        parts = [self._head]
        if self._qos:
            parts.append(message_id.to_bytes(2, "big"))
        for before, digits, modulus in self._pieces:
            parts += (before, digits % (number if modulus is None else number % modulus))
        parts += (self._tail, _NUMBER.pack(number))
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker listens, and an account there."""

    host: str
    port: int
    username: str
    password: str


class Peer:
    """One connected session, subscribed to `topic`."""

    def __init__(self, broker: Broker, client_id: str, topic: str, *, qos: int = 1) -> None:
        self._sock = socket.create_connection((broker.host, broker.port), timeout=10)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._out = bytearray()
        self._message_id = 0
        flags = 0b1100_0010  # user name, password, clean start
        account = text(client_id) + text(broker.username) + text(broker.password)
        self._say(0x10, text("MQTT") + bytes([5, flags]) + struct.pack("!H", 60) + variable_int(0) + account)
        self._expect(CONNACK, 1)
        self._say(0x82, struct.pack("!H", 1) + variable_int(0) + text(topic) + bytes([qos]))
        self._expect(SUBACK, 3)
        self._sock.setblocking(False)

    def close(self) -> None:
        """Close the connection without a farewell."""
        self._sock.close()

    def next_message_id(self) -> int:
        """One that has not been used for long."""
        self._message_id = self._message_id % _MOST_MESSAGE_IDS + 1
        return self._message_id

    def send(self, packets: bytes) -> None:
        """Queue packets; `receive` writes them."""
        self._out += packets

    def receive(self, timeout_s: float) -> list[tuple[int, int]]:
        """Write what is queued, wait until something arrives (at most `timeout_s`), acknowledge it; of each message that came its number, and the last
        character of its topic."""
        if self._out:
            self._write()
        readable, writable, _ = select.select([self._sock], [self._sock] if self._out else [], [], timeout_s)
        if writable and not readable:
            self._write()
        if not readable:
            return []
        data = self._sock.recv(1 << 18)
        if not data:
            raise ConnectionError("the broker closed the connection of the load generator")
        self._buffer += data
        numbers = self._scan()
        if self._out:
            self._write()
        return numbers

    def _scan(self) -> list[tuple[int, int]]:
        buffer, start = bytes(self._buffer), 0
        numbers: list[tuple[int, int]] = []
        available = len(buffer)
        while available - start >= 2:
            size, shift, at = 0, 0, start + 1
            while at < available:
                byte = buffer[at]
                at += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
                shift += 7
            else:
                break
            end = at + size
            if end > available:
                break
            if buffer[start] >> 4 == PUBLISH:
                topic_end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
                if buffer[start] & 0b110:
                    self._out += b"\x40\x02" + buffer[topic_end : topic_end + 2]
                numbers.append((_NUMBER.unpack_from(buffer, end - NUMBER_BYTES)[0], buffer[topic_end - 1]))
            start = end
        if start:
            del self._buffer[:start]
        return numbers

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        del self._out[:sent]

    def _say(self, kind: int, body: bytes) -> None:
        self._sock.sendall(bytes([kind]) + variable_int(len(body)) + body)

    def _expect(self, kind: int, reason_at: int) -> None:
        """Read one short packet; its reason code is at `reason_at` of the body (for SUBACK behind its properties, which must be empty)."""
        head = self._exactly(2)
        body = self._exactly(head[1])
        if head[0] >> 4 != kind or body[reason_at] >= 128:
            raise ConnectionError(f"the broker answered {head.hex()} {body.hex()}")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._sock.recv(count - len(data))
            if not part:
                raise ConnectionError("the broker closed the connection of the load generator")
            data += part
        return data
