"""One kept HTTP connection to the program, and one request at a time over it.

What it is: a request written as one piece, and its response read by the standard library.
What it is not: a decision: when to connect, to ask again, to give up is http.py's.
What must stay true: head and body leave in one write, because a program that is woken for each of them takes twice as long; after anything unexpected the
connection is not used again.
"""

import http.client
import re
import select
import socket
from collections.abc import Mapping

from edgeflow.sdk.adapters.ports import HOST
from edgeflow.sdk.inputs import MAX_VALUE_BYTES

ONE_WRITE_BYTES = 256 * 1024
"""Up to this size a body is copied behind its head."""
_BREAKS = re.compile(r"[\r\n\0]")


class TooMuch(Exception):
    """The answer is larger than an event can be."""


class Exchange:
    """A connection to the program."""

    def __init__(self, port: int) -> None:
        """Connect. Raises OSError."""
        self._sock = socket.create_connection((HOST, port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"{HOST}:{port}"
        self._is_over = False

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent. Readable before one: the program has closed it, or said what nobody asked."""
        return not self._is_over and not select.select([self._sock], [], [], 0)[0]

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body). Raises OSError, HTTPException, TooMuch."""
        self._is_over = True
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {self._host}",
            "Accept-Encoding: identity",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {_BREAKS.sub(' ', value)}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if len(body) <= ONE_WRITE_BYTES:
            self._sock.sendall(head + body)
        else:
            self._sock.sendall(head)
            self._sock.sendall(body)
        response = http.client.HTTPResponse(self._sock, method="POST")
        try:
            response.begin()
            said = {name.lower(): value for name, value in response.getheaders()}
            answer = response.read(MAX_VALUE_BYTES + 1)
        finally:
            response.close()
        if len(answer) > MAX_VALUE_BYTES:
            raise TooMuch
        self._is_over = response.will_close
        return response.status, said, answer

    def close(self) -> None:
        """End it."""
        self._is_over = True
        self._sock.close()
