"""The NATS protocol as bytes, for a load generator that costs as little as the one for MQTT.

What it is: a client that publishes messages with headers into a stream and hears what another stream stored. What it is not: a client library.
What must stay true: each publish asks for its acknowledgement, and one that says that the message was not stored ends the measurement.
"""

import json
import select
import socket
import struct

from bench.flow.nats_server import MESSAGE_ID
from bench.generator import Answer
from bench.packets import NUMBER_BYTES, Attributes

_NUMBER = struct.Struct("!Q")
_HEARD, _STORED = b"1", b"2"
_INBOX = "_INBOX.bench"


class NatsGenerator:
    """Messages into `requests`, answers from `answers`; with `stored` = False the two are plain subjects and nothing is kept."""

    def __init__(
        self,
        port: int,
        requests: str,
        answers: str,
        attributes: Attributes,
        content_type: str,
        payload_bytes: int,
        *,
        stored: bool = True,
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._out = bytearray()
        lines = [f"ce-{name}: {value}" for name, value in (*attributes, ("datacontenttype", content_type))]
        id = dict(attributes)["id"]
        headers = ("\r\n".join(["NATS/1.0", *lines, f"{MESSAGE_ID}: {id}"]) + "\r\n\r\n").encode()
        self._headers = headers.split(id.encode())
        self._digits = b"%%0%dx" % len(id)
        reply = f" {_INBOX}" if stored else ""
        self._head = f"HPUB {requests}{reply} {len(headers)} {len(headers) + payload_bytes}\r\n".encode()
        self._filler = b"x" * (payload_bytes - NUMBER_BYTES)
        hello = json.dumps({"verbose": False, "pedantic": False, "headers": True, "lang": "bench", "version": "1"})
        subscriptions = f"SUB {answers} {_HEARD.decode()}\r\nSUB {_INBOX} {_STORED.decode()}\r\n"
        self._socket.sendall(f"CONNECT {hello}\r\n{subscriptions}PING\r\n".encode())
        while b"PONG\r\n" not in self._buffer:
            self._buffer += self._received()
        self._buffer = b""
        self._socket.setblocking(False)

    def start(self, number: int) -> None:
        """Queue it."""
        headers = (self._digits % number).join(self._headers)
        self._out += b"".join((self._head, headers, self._filler, _NUMBER.pack(number), b"\r\n"))

    def answered(self, timeout_s: float) -> list[Answer]:
        """The answers that arrived."""
        if self._out:
            self._write()
        readable, writable, _ = select.select([self._socket], [self._socket] if self._out else [], [], timeout_s)
        if writable:
            self._write()
        if not readable:
            return []
        self._buffer += self._received()
        found = self._scan()
        if self._out:
            self._write()
        return found

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _scan(self) -> list[Answer]:
        buffer, start = self._buffer, 0
        found: list[Answer] = []
        while (line_end := buffer.find(b"\r\n", start)) >= 0:
            words = buffer[start:line_end].split()
            kind = words[0] if words else b""
            if kind in (b"MSG", b"HMSG"):
                end = line_end + 2 + int(words[-1])
                if len(buffer) < end + 2:
                    break
                if words[2] == _HEARD:
                    found.append((_NUMBER.unpack_from(buffer, end - NUMBER_BYTES)[0], 0))
                elif b'"error"' in buffer[line_end:end]:
                    raise ConnectionError(f"nats-server did not store a message: {buffer[line_end:end]!r}")
                start = end + 2
            else:
                if kind == b"PING":
                    self._out += b"PONG\r\n"
                elif kind == b"-ERR":
                    raise ConnectionError(f"nats-server: {buffer[start:line_end]!r}")
                start = line_end + 2
        self._buffer = buffer[start:]
        return found

    def _received(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("nats-server closed the connection of the load generator")
        return data

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        del self._out[:sent]
