"""A non-blocking mutual-TLS connection on the reactor.

What it is: handshake, read, write, close, and who the peer is by its certificate.
What it is not: the protocol; bytes come from and go to its owner.
What must stay true: no call blocks; one connection never keeps the loop for itself (reads and writes stop after TURN_BYTES); the owner hears
`on_closed` exactly once.
"""

import contextlib
import socket
import ssl
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Protocol

from edgeflow.cluster.ports import Reactor
from edgeflow.settings import LinkSettings

HANDSHAKE_S = 10.0
TURN_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_UNSENT_BYTES = 256 * 1024
"""What the kernel takes before it has sent the rest: so that the choice of what goes next is made late."""
_LAST_WORDS_S = 1.0


class Owner(Protocol):
    """Whose connection it is."""

    def on_open(self, peer: str, valid_ms: int) -> None: ...
    def on_data(self, data: bytes) -> None: ...
    def next_output(self) -> bytes: ...
    def on_closed(self, reason: str) -> None: ...


def contexts(link: LinkSettings) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(for dialling, for accepting): TLS 1.3, both sides show a certificate of the cluster's CA. Raises OSError, ssl.SSLError for bad files."""
    made = []
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(link.ca)
        context.load_cert_chain(link.cert, link.key)
        made.append(context)
    made[1].num_tickets = 0
    return made[0], made[1]


class TlsStream:
    """One connection, from the handshake on. `server_hostname` is the PoP that was dialled, None for an accepted socket."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        context: ssl.SSLContext,
        owner: Owner,
        *,
        server_hostname: str | None,
    ) -> None:
        self._reactor = reactor
        self._owner = owner
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._sock = context.wrap_socket(
            sock, server_side=server_hostname is None, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        self._events = EVENT_READ | EVENT_WRITE
        self._is_open = False
        self._is_closed = False
        self._read_wants_write = False
        self._last_words: bytes | None = None
        self._out = memoryview(b"")
        reactor.register(self._sock, self._events, self._on_events)
        self._deadline = reactor.call_later(HANDSHAKE_S, lambda: self.close("the TLS handshake took too long"))

    def flush(self) -> None:
        """Sends what the owner has, as far as the socket takes it now."""
        if not self._is_open or self._is_closed:
            return
        left = TURN_BYTES
        try:
            while left > 0:
                if not self._out:
                    self._out = memoryview(self._next_output())
                    if not self._out:
                        break
                sent = self._sock.send(self._out)
                self._out = self._out[sent:]
                left -= sent
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError) as error:
            self.close(reason_of(error))
            return
        if self._last_words is not None and not self._out:
            self.close("")
            return
        self._interest(EVENT_READ | (EVENT_WRITE if self._out or left <= 0 or self._read_wants_write else 0))

    def end(self, last_words: bytes) -> None:
        """Sends what is half sent and `last_words`, then closes."""
        if self._is_closed or self._last_words is not None:
            return
        self._last_words = last_words
        self._deadline.cancel()
        self._deadline = self._reactor.call_later(_LAST_WORDS_S, lambda: self.close(""))
        self._reactor.call_soon(self.flush)  # `end` may be called from within `flush`

    def close(self, reason: str) -> None:
        """Closes now. The owner's `on_closed` is called with `reason`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._deadline.cancel()
        self._reactor.unregister(self._sock)
        with contextlib.suppress(OSError):
            self._sock.close()
        self._owner.on_closed(reason)

    def _on_events(self, events: int) -> None:
        if self._is_closed:
            return
        if not self._is_open:
            self._handshake()
            return
        if events & EVENT_READ or self._read_wants_write:
            self._read()
        if not self._is_closed:
            self.flush()

    def _handshake(self) -> None:
        try:
            self._sock.do_handshake()
            peer, valid_ms = common_name(self._sock), valid_from_ms(self._sock)
        except ssl.SSLWantReadError:
            self._interest(EVENT_READ)
            return
        except ssl.SSLWantWriteError:
            self._interest(EVENT_WRITE)
            return
        except (OSError, ValueError) as error:
            self.close(reason_of(error))
            return
        self._deadline.cancel()
        self._is_open = True
        self._owner.on_open(peer, valid_ms)
        if not self._is_closed:
            self._read()
            self.flush()

    def _read(self) -> None:
        self._read_wants_write = False
        parts = []
        size = 0
        reason = None
        try:
            while size < TURN_BYTES:
                part = self._sock.recv(_READ_BYTES)
                if not part:
                    reason = "the peer closed the connection"
                    break
                parts.append(part)
                size += len(part)
            else:
                self._reactor.call_soon(self._read_on)  # OpenSSL may hold decrypted bytes that no selector sees
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
        except (OSError, ValueError) as error:
            reason = reason_of(error)
        if parts and self._last_words is None:
            self._owner.on_data(b"".join(parts))
        if reason is not None:
            self.close(reason)

    def _read_on(self) -> None:
        if not self._is_closed:
            self._read()
        self.flush()

    def _next_output(self) -> bytes:
        if self._last_words is not None:
            words, self._last_words = self._last_words, b""
            return words
        return self._owner.next_output()

    def _interest(self, events: int) -> None:
        if events != self._events and not self._is_closed:
            self._events = events
            self._reactor.modify(self._sock, events)


def common_name(sock: ssl.SSLSocket) -> str:
    """The one common name of the peer's certificate. Raises ValueError when there is none."""
    subject: Any = (sock.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for name, value in part if name == "commonName"]
    if len(names) != 1:
        raise ValueError(f"the peer's certificate has {len(names)} common names")
    return str(names[0])


def valid_from_ms(sock: ssl.SSLSocket) -> int:
    """From when on the peer's certificate is valid. Raises ValueError when it does not say."""
    since = (sock.getpeercert() or {}).get("notBefore")
    if not isinstance(since, str):
        raise ValueError("the peer's certificate does not say from when on it is valid")
    return int(ssl.cert_time_to_seconds(since)) * 1000


def reason_of(error: Exception) -> str:
    """A failed connection in words for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
