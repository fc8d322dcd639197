"""HTTP/1.1 as bytes over kept-alive connections: a client that takes each message through a chain of functions.

What it is: as many messages under way as there are lanes; a lane has a connection to each function, and the answer of one is the request to the next.
What it is not: a client library: it reads of an answer its status, its length and the number at its end.
"""

import selectors
import socket
import struct
from collections.abc import Sequence

from bench.generator import Answer
from bench.packets import NUMBER_BYTES, Attributes

_NUMBER = struct.Struct("!Q")


class HttpGenerator:
    """Messages through the functions at `ports`, in that order."""

    def __init__(
        self, ports: Sequence[int], attributes: Attributes, content_type: str, payload_bytes: int, lanes: int
    ) -> None:
        lines = ["POST / HTTP/1.1", "host: bench", f"content-type: {content_type}", f"content-length: {payload_bytes}"]
        lines += [f"ce-{name}: {value}" for name, value in attributes]
        id = dict(attributes)["id"]
        self._head = ("\r\n".join(lines) + "\r\n\r\n").encode().split(id.encode())
        self._digits = b"%%0%dx" % len(id)
        self._filler = b"x" * (payload_bytes - NUMBER_BYTES)
        self._selector = selectors.DefaultSelector()
        self._lanes: list[list[socket.socket]] = []
        self._buffers: dict[socket.socket, bytes] = {}
        for _ in range(lanes):
            steps: list[socket.socket] = []
            for step, port in enumerate(ports):
                connection = socket.create_connection(("127.0.0.1", port), timeout=10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, (steps, step))
                steps.append(connection)
            self._lanes.append(steps)

    def start(self, number: int) -> None:
        """Send it to the first function. There must be a free lane."""
        self._send(self._lanes.pop()[0], number)

    def answered(self, timeout_s: float) -> list[Answer]:
        """Take what came back to the next function; the messages that have been through all."""
        found = []
        for key, _ in self._selector.select(timeout_s):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            number = self._answer(connection)
            if number is None:
                continue
            steps, step = key.data
            if step + 1 < len(steps):
                self._send(steps[step + 1], number)
            else:
                self._lanes.append(steps)
                found.append((number, 0))
        return found

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _send(self, connection: socket.socket, number: int) -> None:
        # One small request at a time on each connection: it always fits into the socket's buffer.
        head = (self._digits % number).join(self._head)
        connection.sendall(b"".join((head, self._filler, _NUMBER.pack(number))))

    def _answer(self, connection: socket.socket) -> int | None:
        """The number of a complete answer."""
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionError("an HTTP function closed its connection")
        data = self._buffers.pop(connection, b"") + data
        head, blank, body = data.partition(b"\r\n\r\n")
        if blank:
            at = head.lower().find(b"content-length:")
            size_bytes = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(f"an HTTP function answered {head[:100]!r}")
            if len(body) >= size_bytes:
                return int(_NUMBER.unpack_from(body, len(body) - NUMBER_BYTES)[0])
        self._buffers[connection] = data
        return None
