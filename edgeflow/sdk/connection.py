"""The instance's end of its socket: frames out in batches, frames in, requests that wait for their reply.

What it is: the instance protocol's transport (docs/protocol.md) on one unix stream socket, and `AgentPort`, the `Port` of outcome.py on top of it.
What it is not: the order of work (session.py).
What must stay true: the handler's thread does its own reads, because a hand-over between threads costs more than a short handler takes; the
watchdog reads only while nobody else waits; whoever reads what another thread waits for wakes it; `kill` ends the process whoever reads it; after
a frame that was sent or read by half nothing more goes over the socket.
"""

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeflow import errors
from edgeflow.core.wire import FrameReader, Message, encode_frame
from edgeflow.errors import EdgeflowError, ProtocolError
from edgeflow.sdk.inputs import BodyCache

READ_BYTES = 256 * 1024
HELD_BYTES = 256 * 1024
MAX_AHEAD_REQUESTS = 16
PIECE_BYTES = 4 * 1024 * 1024
"""A larger body is sent in pieces of this size; the agent sends pieces of its own size."""


class ConnectionLost(Exception):
    """The agent closed the socket, or sent what is not the protocol."""


class Abandoned(BaseException):
    """The socket was lost while a handler waited for the agent: its attempt has become void. Not an Exception, so that handlers do not catch it."""


class Nudge:
    """Wakes a thread that polls `fd`, from any other. Lives as long as somebody may poll it, and closes itself."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def give(self) -> None:
        """`fd` is readable from now on, until `drain_fd`."""
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            pass  # it is full, so it is readable

    def __del__(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Connection:
    """One connected socket. `queue`, `flush` and `request` may be called from any thread, `receive` from the main thread only."""

    def __init__(self, sock: socket.socket, *, on_kill: Callable[[], None], wake_fd: int | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_kill = on_kill
        self._reader = FrameReader()
        self._lock = threading.RLock()
        self._request_lock = threading.Lock()
        self._inbox: deque[Message] = deque()
        self._replies: dict[int, Message] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._next_request = 0
        # Set under the lock by the thread that is about to poll, cleared by itself afterwards: another thread that reads meanwhile nudges it.
        self._main_waits = self._reply_waits = False
        self._main_nudge, self._reply_nudge = Nudge(), Nudge()
        self.lost: str = ""
        """Why the connection is unusable; empty while it is not."""
        self._reads = select.poll()
        self._reads.register(sock, select.POLLIN)
        self._reads.register(self._reply_nudge.fd, select.POLLIN)
        # The watchdog's own: a poll object serves one thread at a time.
        self._watched = select.poll()
        self._watched.register(sock, select.POLLIN)
        self._both = select.poll()
        self._both.register(sock, select.POLLIN | select.POLLOUT)
        self._main = select.poll()
        self._main.register(sock, select.POLLIN)
        self._main.register(self._main_nudge.fd, select.POLLIN)
        if wake_fd is not None:
            self._main.register(wake_fd, select.POLLIN)
        self._wake_fd = wake_fd

    def fileno(self) -> int:
        """The socket's descriptor, for an owner that waits for more than this connection."""
        return self._sock.fileno()

    # --- out

    def queue(self, message: Mapping[str, Any]) -> None:
        """Adds a frame to the next flush; flushes by itself when much is held. Raises ProtocolError for a frame that is too large."""
        frame = encode_frame(message)
        with self._lock:
            self._out.append(frame)
            self._out_bytes += len(frame)
            if self._out_bytes >= HELD_BYTES:
                self.flush()

    def flush(self) -> None:
        """Sends what is queued in one go. Raises ConnectionLost."""
        with self._lock:
            if not self._out:
                return
            try:
                data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
                self._out.clear()
                self._out_bytes = 0
                view = memoryview(data)
                while view:
                    self._raise_if_lost()
                    try:
                        view = view[self._sock.send(view) :]
                    except BlockingIOError:
                        # An agent that is itself blocked on sending to us would wait for ever if we did not read meanwhile.
                        self._both.poll()
                        self._read()
                    except OSError as error:
                        self._read()
                        self.lost = self.lost or f"{error.strerror or error}"
            except BaseException:
                # Of a signal handler that the function has set, perhaps: half a frame may be out, and nothing can follow it.
                self.lost = self.lost or "sending was interrupted"
                raise

    # --- in

    def take(self) -> Sequence[Message]:
        """Frames that were read while something else was waited for. Does not read."""
        if not self._inbox:
            return ()
        with self._lock:
            messages = list(self._inbox)
            self._inbox.clear()
        return messages

    def receive(self, timeout_s: float | None = None) -> Sequence[Message]:
        """At least one frame; none after `timeout_s` seconds or when the wake-up descriptor, which is emptied, was readable. Raises ConnectionLost."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._read()
                if self._inbox:
                    messages = list(self._inbox)
                    self._inbox.clear()
                    return messages
                self._raise_if_lost()
                self._main_waits = True
            try:
                wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
                ready = self._main.poll(wait_ms)
            finally:
                self._main_waits = False
            if not ready:
                return ()
            for fd, _ in ready:
                if fd == self._main_nudge.fd:
                    drain_fd(fd)
                elif fd == self._wake_fd:
                    drain_fd(fd)
                    return ()

    def put_back(self, messages: Sequence[Message]) -> None:
        """Frames that `receive` or `take` returned and that are to be returned again, first."""
        with self._lock:
            self._inbox.extendleft(reversed(messages))

    def watch(self, wait_s: float) -> None:
        """For the watchdog: reads for up to `wait_s` seconds unless another thread does, so that a `kill` or a closed socket is noticed."""
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            if self._somebody_waits() or self.lost:
                time.sleep(left_s)
                return
            if not self._watched.poll(left_s * 1000):
                return
            with self._lock:
                if not self._somebody_waits():
                    self._read()

    def _somebody_waits(self) -> bool:
        return self._main_waits or self._reply_waits

    def request(self, message: dict[str, Any]) -> Message:
        """Sends a request together with all that is queued, and waits for its reply. Raises EdgeflowError for a refusal, Abandoned for a lost socket."""
        return self.wait_reply(self.send_request(message))

    def send_request(self, message: dict[str, Any]) -> int:
        """Queues a request; returns its number for `wait_reply`. Raises Abandoned for a lost socket."""
        try:
            with self._lock:
                self._next_request += 1
                number = self._next_request
                self.queue({**message, "r": number})
        except ConnectionLost as lost:
            raise Abandoned(str(lost)) from None
        return number

    def wait_reply(self, number: int) -> Message:
        """The reply to that request. Raises EdgeflowError for a refusal, Abandoned for a lost socket."""
        with self._request_lock:
            try:
                self.flush()
                while True:
                    with self._lock:
                        self._read()
                        reply = self._replies.pop(number, None)
                        if reply is not None:
                            break
                        self._raise_if_lost()
                        self._reply_waits = True
                    try:
                        ready = self._reads.poll()
                    finally:
                        self._reply_waits = False
                    if len(ready) > 1 or ready[0][0] == self._reply_nudge.fd:
                        drain_fd(self._reply_nudge.fd)
            except ConnectionLost as lost:
                raise Abandoned(str(lost)) from None
        if not reply.get("ok", True):
            raise error_of(str(reply.get("code")), str(reply.get("error") or "the agent refused a request"))
        return reply

    def arrived_reply(self, number: int) -> Message | None:
        """The reply to that request if it has been read already."""
        with self._lock:
            return self._replies.pop(number, None)

    def close(self) -> None:
        """Closes the socket. Threads that wait for a reply get Abandoned."""
        self.lost = self.lost or "closed"
        try:
            # A poll does not notice that its descriptor is closed.
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._main_nudge.give()
        self._reply_nudge.give()
        self._sock.close()

    def forget(self) -> None:
        """Closes this process's descriptors: in a forked child, whose parent goes on with the connection."""
        self.lost = self.lost or "closed"
        self._sock.close()

    def _read(self) -> None:
        """Reads what is there, without waiting. The caller holds the lock."""
        if self.lost:
            return
        try:
            data = self._sock.recv(READ_BYTES)
            if data:
                self._sort(data)
            else:
                self.lost = "the agent closed the socket"
        except BlockingIOError:
            return
        except OSError as error:
            self.lost = error.strerror or str(error)
        except (ProtocolError, KeyError, TypeError) as error:
            self.lost = f"the agent sent what is not the instance protocol: {error}"
        except BaseException:
            # Of a signal handler that the function has set, perhaps: what was read is gone.
            self.lost = "reading was interrupted"
            raise
        finally:
            if self._main_waits:
                self._main_nudge.give()
            if self._reply_waits:
                self._reply_nudge.give()

    def _sort(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            kind = message.get("t")
            if kind == "kill":
                self._on_kill()
            elif kind == "reply":
                self._replies[message["r"]] = message
            else:
                self._inbox.append(message)

    def _raise_if_lost(self) -> None:
        if self.lost:
            raise ConnectionLost(self.lost)


class AgentPort:
    """The Port of a running instance: one per connection, with the cache of bodies that outlives it."""

    def __init__(self, connection: Connection, cache: BodyCache) -> None:
        self._connection = connection
        self._cache = cache
        self._lock = threading.Lock()
        self._ahead: dict[str, int] = {}
        self.waited_s = 0.0
        """Seconds spent waiting for the agent since the runtime set this to zero."""

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        """The body with that digest, from the cache or the agent."""
        with self._lock:
            body = self._cache.get(digest)
            if body is not None:
                return body
            started_s = time.perf_counter()
            self._collect_arrived()
            body = self._cache.get(digest)
            if body is None:
                number = self._ahead.pop(digest, None)
                if number is None:
                    number = self._connection.send_request({"t": "fetch", "digest": digest})
                    for later in ahead:
                        if (
                            len(self._ahead) < MAX_AHEAD_REQUESTS
                            and later not in self._ahead
                            and later not in self._cache
                            and later != digest
                        ):
                            self._ahead[later] = self._connection.send_request({"t": "fetch", "digest": later})
                body = self._rest(digest, self._connection.wait_reply(number))
                self._cache.put(digest, body)
            self.waited_s += time.perf_counter() - started_s
            return body

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        """Some bytes of a body from `offset`, none at its end; not kept in the cache."""
        body = self._cache.get(digest)
        if body is not None:
            return body[offset : offset + PIECE_BYTES]
        started_s = time.perf_counter()
        piece: bytes = self._connection.request({"t": "fetch", "digest": digest, "off": offset})["data"]
        self.waited_s += time.perf_counter() - started_s
        return piece

    def _rest(self, digest: str, first: Message) -> bytes:
        """The whole body, of which a reply has brought the beginning."""
        data: bytes = first["data"]
        if len(data) >= first.get("size", 0):
            return data
        body = bytearray(data)
        while len(body) < first["size"]:
            piece = self._connection.request({"t": "fetch", "digest": digest, "off": len(body)})["data"]
            if not piece:
                raise ProtocolError(f"a body ends at {len(body)} of {first['size']} bytes")
            body += piece
        return bytes(body)

    def read(self, request: dict[str, Any]) -> Message:
        """The reply to a request that reads values of the namespace."""
        started_s = time.perf_counter()
        try:
            return self._connection.request(request)
        finally:
            self.waited_s += time.perf_counter() - started_s

    def session(self, token: str) -> str:
        """Waits until this PoP has what the token names; the token of what it has."""
        started_s = time.perf_counter()
        answer: str = self._connection.request({"t": "session", "token": token})["token"]
        self.waited_s += time.perf_counter() - started_s
        return answer

    def context(self) -> Mapping[str, Any]:
        """The heads of the function's context values, as in a work item."""
        values: Mapping[str, Any] = self._connection.request({"t": "context"})["values"]
        return values

    def store_blob(self, digest: str, data: bytes) -> None:
        """Sends a body ahead of the commit that refers to it."""
        try:
            if len(data) <= PIECE_BYTES:
                self._connection.queue({"t": "blob", "digest": digest, "data": data})
                return
            view = memoryview(data)
            for off in range(0, len(data), PIECE_BYTES):
                piece = bytes(view[off : off + PIECE_BYTES])
                self._connection.queue({"t": "blob", "digest": digest, "data": piece, "off": off, "size": len(data)})
        except ConnectionLost as lost:
            raise Abandoned(str(lost)) from None

    def _collect_arrived(self) -> None:
        for digest, number in list(self._ahead.items()):
            reply = self._connection.arrived_reply(number)
            if reply is not None:
                del self._ahead[digest]
                if reply.get("ok", True) and len(reply["data"]) >= reply.get("size", 0):
                    self._cache.put(digest, reply["data"])


def connect(path: str, *, on_kill: Callable[[], None], wake_fd: int | None = None) -> Connection:
    """A connection to the agent's socket. Raises OSError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, READ_BYTES)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Connection(sock, on_kill=on_kill, wake_fd=wake_fd)


def error_of(code: str, message: str) -> EdgeflowError:
    """The error of the tree with that code, so that a handler can catch e.g. NotFound."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, EdgeflowError) and vars(kind).get("code") == code:
            return kind(message)
    return EdgeflowError(f"{message} ({code})")


def drain_fd(fd: int) -> None:
    """Empties a non-blocking wake-up descriptor."""
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass
