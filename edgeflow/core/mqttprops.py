"""The properties of an MQTT 5 PUBLISH, packed and unpacked.

What it is: the two functions of the codec that run once per message; paho's general one costs 150 to 200 us for the eight attributes of an event.
What it is not: an MQTT client. Sessions, flow control and redelivery are paho's.
What must stay true: for every legal PUBLISH both directions agree with paho (a test compares them); rubbish raises ProtocolError.

MQTT 5.0: 1.5 data representation, 2.2.2 properties, 3.3.2.3 PUBLISH properties.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeflow.errors import ProtocolError

_PAYLOAD_FORMAT, _EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _SUBSCRIPTION_ID, _TOPIC_ALIAS, _USER = (
    1,
    2,
    3,
    8,
    9,
    11,
    35,
    38,
)
_FIXED_BYTES = {_PAYLOAD_FORMAT: 1, _EXPIRY: 4, _TOPIC_ALIAS: 2}


@dataclass(slots=True)
class PublishProperties:
    """What edgeflow reads of a PUBLISH's properties."""

    user: list[tuple[str, str]] = field(default_factory=list)
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None


class PackedProperties:
    """Properties that are bytes already; paho asks a publish's properties for nothing but `pack`."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def pack(self) -> bytes:
        """The bytes, their length in front."""
        return self._packed


def encode_properties(
    user: Iterable[tuple[str, str]] = (), *, content_type: str | None = None, response_topic: str | None = None, correlation: bytes | None = None
) -> bytes:  # fmt: skip
    """The packed properties with their length in front. Raises ProtocolError when a text is longer than 65,535 bytes."""
    parts = bytearray()
    if content_type is not None:
        parts += b"\x03" + _text(content_type)
    if response_topic is not None:
        parts += b"\x08" + _text(response_topic)
    if correlation is not None:
        parts += b"\x09" + _sized(correlation)
    for name, value in user:
        parts += b"\x26" + _text(name) + _text(value)
    return bytes(variable_int(len(parts)) + parts)


def decode_properties(packet: bytes | bytearray, at: int) -> tuple[PublishProperties, int]:
    """The properties that begin at offset `at` of a PUBLISH's variable header, and the offset behind them. Raises ProtocolError."""
    found = PublishProperties()
    size, at = read_variable_int(packet, at)
    end = at + size
    if end > len(packet):
        raise ProtocolError("the properties are longer than their packet")
    try:
        while at < end:
            kind = packet[at]
            at += 1
            if kind == _USER:
                name, at = _read_text(packet, at)
                value, at = _read_text(packet, at)
                found.user.append((name, value))
            elif kind == _CONTENT_TYPE:
                found.content_type, at = _read_text(packet, at)
            elif kind == _RESPONSE_TOPIC:
                found.response_topic, at = _read_text(packet, at)
            elif kind == _CORRELATION:
                size = packet[at] << 8 | packet[at + 1]
                found.correlation = bytes(packet[at + 2 : at + 2 + size])
                at += 2 + size
            elif kind in _FIXED_BYTES:
                at += _FIXED_BYTES[kind]
            elif kind == _SUBSCRIPTION_ID:
                _, at = read_variable_int(packet, at)
            else:
                raise ProtocolError(f"property {kind} does not belong in a PUBLISH")
    except IndexError:
        raise ProtocolError("the properties end in the middle of one") from None
    if at != end:
        raise ProtocolError("a property is longer than the properties")
    return found, end


def variable_int(value: int) -> bytes:
    """A variable byte integer (MQTT 5.0, 1.5.5)."""
    out = bytearray()
    while True:
        value, low = value >> 7, value & 127
        out.append(low | 128 if value else low)
        if not value:
            return bytes(out)


def read_variable_int(packet: bytes | bytearray, at: int) -> tuple[int, int]:
    """(value, offset behind it). Raises ProtocolError when it is cut off or longer than four bytes."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(packet):
            break
        byte = packet[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ProtocolError("a variable byte integer is malformed")


def _text(text: str) -> bytes:
    return _sized(text.encode())


def _sized(data: bytes) -> bytes:
    if len(data) > 65_535:
        raise ProtocolError(f"a property of {len(data)} bytes is longer than MQTT allows")
    return len(data).to_bytes(2, "big") + data


def _read_text(packet: bytes | bytearray, at: int) -> tuple[str, int]:
    end = at + 2 + (packet[at] << 8 | packet[at + 1])
    if end > len(packet):
        raise ProtocolError("a text is longer than its packet")
    try:
        return packet[at + 2 : end].decode(), end
    except UnicodeDecodeError:
        raise ProtocolError("a text property is not UTF-8") from None
