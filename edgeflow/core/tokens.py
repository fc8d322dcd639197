"""Session tokens: what a session has seen and written, as a text that travels in headers and event attributes.

What it is: per log (origin, epoch) of one namespace how far the session has seen it, packed into at most 200 bytes. A PoP that has applied all of it
shows the session its own writes, and nothing older than what it was shown elsewhere.
What it is not: a cursor of events (edgeflow.core.cursors), a permission, or a lock.
What must stay true: a token never claims less than what the session has seen: logs that do not fit make it a wide one, which only a PoP that is
complete as of the moment of asking can serve; what every member has applied is left out, since any of them covers it.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgeflow.core.channels import NAMESPACE
from edgeflow.core.cursors import Log, Vector
from edgeflow.errors import BadSession

MAX_TOKEN_BYTES = 200
SESSION_ATTRIBUTE = "ekvsession"
"""The attribute of an event that carries the token of whoever published it."""
_FORMAT = 1
_WIDE = 2
_NAME_BYTES = 4
_MAX_VARINT_BYTES = 9


def log_name(log: Log) -> int:
    """The short name of a log inside a token. Two logs with the same name would only make a session wait for both."""
    origin, epoch = log
    return zlib.crc32(f"{origin}:{epoch}".encode())


@dataclass(frozen=True, slots=True)
class Session:
    """How far a session has seen the logs of a namespace. `is_wide`: it has seen more logs than a token has room for."""

    namespace: str
    seen: Mapping[int, int] = field(default_factory=dict)
    is_wide: bool = False

    def with_vector(self, vector: Vector) -> "Session":
        """The session after it has seen `vector`."""
        named: dict[int, int] = {}
        for log, seq in vector.items():
            name = log_name(log)
            named[name] = max(seq, named.get(name, 0))
        return self.merged(Session(self.namespace, named))

    def merged(self, other: "Session") -> "Session":
        """What both have seen. Raises BadSession when they are of two namespaces."""
        if other.namespace != self.namespace:
            raise _foreign(other.namespace, self.namespace)
        ahead = {name: seq for name, seq in other.seen.items() if seq > self.seen.get(name, 0)}
        is_wide = self.is_wide or other.is_wide
        return replace(self, seen={**self.seen, **ahead}, is_wide=is_wide) if ahead or is_wide != self.is_wide else self

    def pruned(self, passed: Vector) -> "Session":
        """The session without what every member has applied (`passed`)."""
        known = _lowest(passed)
        return replace(self, seen={name: seq for name, seq in self.seen.items() if seq > known.get(name, 0)})

    def missing(self, applied: Vector) -> int:
        """In how many logs a PoP that has applied `applied` is behind this session. A wide one is at least one behind."""
        known = _lowest(applied)
        return int(self.is_wide) + sum(seq > known.get(name, 0) for name, seq in self.seen.items())

    def text(self) -> str:
        """The token; at most MAX_TOKEN_BYTES long, whatever it holds. One that has seen nothing is `<namespace>:` too."""
        packed = bytearray([_FORMAT])
        for name, seq in sorted(self.seen.items()):
            if seq > 0:
                packed += name.to_bytes(_NAME_BYTES, "big") + _varint(seq)
        text = f"{self.namespace}:{_encode(bytes(packed))}"
        if self.is_wide or len(text) > MAX_TOKEN_BYTES:
            # Only a PoP that is complete can serve it, and that one covers whatever the list would say.
            return f"{self.namespace}:{_encode(bytes([_WIDE]))}"
        return text


def parse_session(text: str, namespace: str) -> Session:
    """Inverse of `Session.text` for a token that is to be used in `namespace`. Raises BadSession."""
    if len(text) > MAX_TOKEN_BYTES:
        raise BadSession(f"a session token has at most {MAX_TOKEN_BYTES} bytes, this one has {len(text)}")
    name, colon, body = text.strip().partition(":")
    if not colon or not NAMESPACE.fullmatch(name):
        raise BadSession(f"{text[:40]!r} is not a session token")
    if name != namespace:
        raise _foreign(name, namespace)
    packed = _decode(body)
    if packed == bytes([_WIDE]):
        return Session(namespace, is_wide=True)
    if not packed or packed[0] != _FORMAT:
        raise BadSession(f"{text[:40]!r} is not a session token of this version")
    seen: dict[int, int] = {}
    at = 1
    while at < len(packed):
        log = packed[at : at + _NAME_BYTES]
        seq, at = _read_varint(packed, at + _NAME_BYTES)
        seen[int.from_bytes(log, "big")] = seq
    return Session(namespace, seen)


def _foreign(namespace: str, wanted: str) -> BadSession:
    return BadSession(
        f"the session token is of namespace {namespace!r}, not of {wanted!r}",
        hint="A session belongs to one namespace; keep one token for each.",
    )


def _lowest(vector: Vector) -> dict[int, int]:
    known: dict[int, int] = {}
    for log, seq in vector.items():
        name = log_name(log)
        known[name] = min(seq, known.get(name, seq))
    return known


def _encode(packed: bytes) -> str:
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadSession(f"{text[:40]!r} is not what a session token holds") from None


def _varint(number: int) -> bytes:
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _read_varint(packed: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(_MAX_VARINT_BYTES):
        if at + shift >= len(packed):
            break
        byte = packed[at + shift]
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at + shift + 1
    raise BadSession("a session token ends in the middle of a number")
