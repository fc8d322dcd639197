"""Frames: a 4-byte big-endian length and a msgpack map.

What it is: the framing that the instance protocol and the links share, without I/O.
What it is not: the meaning of any message.
What must stay true: a reader never holds more than one frame of `max_bytes` plus one read; rubbish raises ProtocolError and nothing else.
"""

from collections.abc import Mapping
from typing import Any

import msgpack

from edgeflow.errors import ProtocolError

MAX_FRAME_BYTES = 32 * 1024 * 1024
_LENGTH_BYTES = 4

Message = dict[str, Any]


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """One frame. Raises ProtocolError when it is larger than MAX_FRAME_BYTES or cannot be packed."""
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"a message cannot be packed: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is larger than {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into messages."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order. Raises ProtocolError on a bad frame; the stream is then unusable."""
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        available = len(buffer)
        while available - start >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big")
            if size > self._max_bytes:
                raise ProtocolError(f"a frame announces {size} bytes, the limit is {self._max_bytes}")
            end = start + _LENGTH_BYTES + size
            if end > available:
                break
            messages.append(_decode(bytes(buffer[start + _LENGTH_BYTES : end])))
            start = end
        if start:
            del buffer[:start]
        return messages


def _decode(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (
        Exception
    ) as error:  # msgpack raises many kinds (ValueError, FormatError, StackError, UnicodeDecodeError, ...)
        raise ProtocolError(f"a frame is not msgpack: {error!r}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame holds a {type(message).__name__}, not a map")
    return message
