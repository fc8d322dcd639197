"""The few parts of MQTT that the relay looks at: CONNECT, which it rewrites, CONNACK, and the count of what passes.

What it is: pure functions on the packets of MQTT 3.1, 3.1.1 and 5.
What it is not: an MQTT client or server: what is not named here goes through as it is.
What must stay true: the account and the client id that reach the broker are those that we say, whatever the program says.

Reference: MQTT 5.0 (OASIS), 2.1.4 "Remaining Length", 3.1 CONNECT, 3.2 CONNACK.
"""

from edgeflow.errors import ProtocolError

CONNECT, CONNACK, PUBLISH = 1, 2, 3
MAX_CONNECT_BYTES = 256 * 1024
_HAS_USERNAME, _HAS_PASSWORD, _HAS_WILL = 0x80, 0x40, 0x04
_REFUSED_ACCOUNT = frozenset({4, 5, 0x86, 0x87, 0x85})
"""CONNACK codes that a new account may help with: bad name or password, not authorized, client id not valid (5.0)."""


def packet_size(data: bytes) -> int | None:
    """Bytes of the packet that `data` begins with; None while its length is not there yet. Raises ProtocolError."""
    size, shift = 0, 0
    for index, byte in enumerate(data[1:5]):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return 2 + index + size
    if len(data) >= 5:
        raise ProtocolError("a packet's length has more than four bytes")
    return None


def rewritten(packet: bytes, *, username: str, password: str, client_id: str, spare_id: str) -> bytes:
    """A CONNECT with this account, and `client_id` in front of the program's own id (`spare_id` when it has none). Raises ProtocolError."""
    if packet[0] != CONNECT << 4:
        raise ProtocolError("the first packet of a connection is not CONNECT")
    body = packet[_start(packet) :]
    name, at = _text(body, 0)
    if at + 4 > len(body):
        raise ProtocolError("a CONNECT ends too early")
    level, flags, keepalive = body[at], body[at + 1], body[at + 2 : at + 4]
    at += 4
    properties, at = _properties(body, at) if level >= 5 else (b"", at)
    own_id, at = _text(body, at)
    will = b""
    if flags & _HAS_WILL:
        began = at
        if level >= 5:
            _, at = _properties(body, at)
        for _ in range(2):
            _, at = _text(body, at)
        will = body[began:at]
    made = _as_text(name) + bytes([level, flags | _HAS_USERNAME | _HAS_PASSWORD]) + keepalive + properties
    made += _as_text(client_id.encode() + b"-" + (own_id or spare_id.encode())) + will
    made += _as_text(username.encode()) + _as_text(password.encode())
    return bytes([packet[0]]) + _as_length(len(made)) + made


def password_of(packet: bytes) -> bytes | None:
    """The password of a CONNECT, None for one without. Raises ProtocolError."""
    body = packet[_start(packet) :]
    _, at = _text(body, 0)
    if at + 4 > len(body):
        raise ProtocolError("a CONNECT ends too early")
    level, flags = body[at], body[at + 1]
    at += 4
    if level >= 5:
        _, at = _properties(body, at)
    _, at = _text(body, at)
    if flags & _HAS_WILL:
        if level >= 5:
            _, at = _properties(body, at)
        for _ in range(2):
            _, at = _text(body, at)
    if flags & _HAS_USERNAME:
        _, at = _text(body, at)
    return _text(body, at)[0] if flags & _HAS_PASSWORD else None


def refusal(packet: bytes) -> bytes:
    """The CONNACK that answers this CONNECT with "bad user name or password". Raises ProtocolError."""
    body = packet[_start(packet) :]
    _, at = _text(body, 0)
    if at >= len(body):
        raise ProtocolError("a CONNECT ends too early")
    return b"\x20\x03\x00\x86\x00" if body[at] >= 5 else b"\x20\x02\x00\x04"


def connack_code(packet: bytes) -> int:
    """The reason of a CONNACK; 0: accepted. Raises ProtocolError."""
    if packet[0] >> 4 != CONNACK or len(packet) < 4:
        raise ProtocolError("the broker did not answer with CONNACK")
    return packet[_start(packet) + 1]


def wants_account(code: int) -> bool:
    """Whether a refused connection may be accepted with an account made anew."""
    return code in _REFUSED_ACCOUNT


class Counter:
    """Counts the messages (PUBLISH) of one direction of a connection, fed with its bytes as they come."""

    def __init__(self) -> None:
        self.messages = 0
        self._head = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> int:
        """How many messages began in these bytes. Raises ProtocolError."""
        began, at = 0, 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            size = packet_size(bytes(self._head))
            if size is not None:
                began += self._head[0] >> 4 == PUBLISH
                self._skip = size - len(self._head)
                self._head.clear()
        self.messages += began
        return began


def _start(packet: bytes) -> int:
    """Where a packet's body begins."""
    for index in range(1, min(5, len(packet))):
        if packet[index] < 0x80:
            return index + 1
    raise ProtocolError("a packet ends too early")


def _text(body: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    if at + 2 > len(body) or end > len(body):
        raise ProtocolError("a CONNECT ends too early")
    return body[at + 2 : end], end


def _properties(body: bytes, at: int) -> tuple[bytes, int]:
    """Properties with their length, and where they end."""
    size = packet_size(b"\0" + body[at : at + 4])
    if size is None or at + size - 1 > len(body):
        raise ProtocolError("a CONNECT ends too early")
    return body[at : at + size - 1], at + size - 1


def _as_text(text: bytes) -> bytes:
    if len(text) > 0xFFFF:
        raise ProtocolError("a text of a CONNECT is too long")
    return len(text).to_bytes(2, "big") + text


def _as_length(size: int) -> bytes:
    out = bytearray()
    while True:
        byte, size = size & 0x7F, size >> 7
        out.append(byte | (0x80 if size else 0))
        if not size:
            return bytes(out)
