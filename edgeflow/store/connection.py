"""The connection to this PoP's Redis: loads the Lua library, waits out a restart, repeats what was under way.

What must stay true: a call whose outcome is unknown is repeated with `again` set, and every operation is written so that a repetition is
harmless; nobody else talks to this Redis.
"""

import hashlib
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hiredis
import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from edgeflow.errors import HomeElsewhere, StaleHome, StoreFull, StoreTooOld, StoreUnavailable

log = structlog.get_logger(__name__)

LIBRARY = "edgeflow"
_OUTAGES = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)
CALL_S = 30.0
READ_BYTES = 256 * 1024
_RAW = frozenset({"FCALL", "HSET", "PUBLISH"})
Command = tuple[Any, ...]
Meanwhile = Callable[[socket.socket], None]


def error_of(reply: redis.ResponseError) -> Exception:
    """The error that an error reply stands for."""
    if isinstance(reply, redis.exceptions.OutOfMemoryError) or "OOM command not allowed" in str(reply):
        return StoreFull("this PoP's Redis has reached its memory limit")
    return home_error(str(reply)) or reply


def home_error(text: str) -> HomeElsewhere | StaleHome | None:
    """What a script says of a key whose writes are not decided here."""
    why, _, about = text.partition(" ")
    pop, _, key = about.partition(" ")
    if why == "STALEHOME":
        return StaleHome(f"the home of {key!r} is {pop!r} now", details={"home": pop})
    if why == "HOMEELSEWHERE":
        return HomeElsewhere(f"the home of {key!r} is {pop!r}", details={"home": pop})
    return None


def library_text() -> str:
    """The Lua library: one file per group of operations, in the order of their names."""
    folder = Path(__file__).parent / "lua"
    parts = [path.read_text() for path in sorted(folder.glob("*.lua"))]
    body = "\n".join(parts)
    return f"#!lua name={LIBRARY}\n-- {hashlib.sha256(body.encode()).hexdigest()[:16]}\n{body}"


class Connection:
    """One thread-safe door to Redis. `outages` counts how often it was lost and came back."""

    def __init__(self, path: Path, retry_s: float | None) -> None:
        self._socket = path
        self._retry_s = retry_s
        # No retries inside redis-py: a call that is sent again has to say so (see `run`).
        self._redis = redis.Redis(
            unix_socket_path=str(path), socket_timeout=30, protocol=2, retry=Retry(NoBackoff(), 0), retry_on_error=[]
        )  # fmt: skip
        self._idle: deque[Pipe] = deque()
        callbacks = dict(self._redis.response_callbacks)
        # Replies that are wanted as they are: they come most often.
        self._callbacks = {name: callback for name, callback in callbacks.items() if name not in _RAW}
        self._library = library_text()
        self.outages = 0

    def client(self) -> redis.Redis:
        """A client with its own connections, for blocking reads."""
        return redis.Redis(unix_socket_path=str(self._socket), socket_timeout=None, protocol=2)

    def run(
        self, commands: Sequence[Command], *, on_outage: Callable[[], Sequence[Command]] | None = None, meanwhile: Meanwhile | None = None
    ) -> list[Any]:  # fmt: skip
        """Send all `commands` in one round trip; their replies in order, an error reply as an exception object in its place.

        `meanwhile` is called when they are sent, and should return when the socket can be read: the time of the answer is its caller's to use.
        After an outage the commands are sent again, as `on_outage` returns them if it is given. Raises StoreUnavailable after `retry_s`.
        """
        deadline = None if self._retry_s is None else time.monotonic() + self._retry_s
        wait_s = 0.02
        lost = False
        while True:
            try:
                replies = self._send(commands, meanwhile)
            except _OUTAGES as error:
                if not lost:
                    lost = True
                    log.warning("store_lost", error=str(error))
                if deadline is not None and time.monotonic() > deadline:
                    raise StoreUnavailable(f"the store did not come back within {self._retry_s} s: {error}") from None
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 0.5)
                if on_outage is not None:
                    commands = on_outage()
                continue
            if lost:
                self.outages += 1
                log.info("store_back")
            if any(isinstance(reply, redis.ResponseError) and "unction not found" in str(reply) for reply in replies):
                self.load_library()
                continue
            return replies

    def one(self, *command: Any) -> Any:
        """One command; its reply. Raises the error that Redis answered."""
        reply = self.run([command])[0]
        if isinstance(reply, redis.ResponseError):
            raise error_of(reply)
        return reply

    def load_library(self) -> None:
        """Make sure that Redis has this version of the library. Raises StoreTooOld when it knows no Functions."""
        try:
            self.one("FUNCTION", "LOAD", "REPLACE", self._library)
        except redis.ResponseError as error:
            if "unknown command" in str(error).lower():
                raise StoreTooOld() from None
            raise

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        while self._idle:
            self._idle.pop().close()

    def _send(self, commands: Sequence[Command], meanwhile: Meanwhile | None = None) -> list[Any]:
        try:
            pipe = self._idle.pop()
        except IndexError:
            pipe = Pipe(self._socket)
        try:
            replies = pipe.exchange(commands, meanwhile)
        except BaseException:
            pipe.close()
            raise
        self._idle.append(pipe)
        callbacks = self._callbacks
        for position, reply in enumerate(replies):
            if isinstance(reply, hiredis.ReplyError):
                replies[position] = _error(str(reply))
            elif (callback := callbacks.get(commands[position][0])) is not None:
                replies[position] = callback(reply)
        return replies


class Pipe:
    """One socket to Redis, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CALL_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise redis.ConnectionError(f"{path}: {error}") from None

    def exchange(self, commands: Sequence[Command], meanwhile: Meanwhile | None = None) -> list[Any]:
        """The replies to `commands`, in order. Raises redis.ConnectionError; the pipe is then unusable."""
        try:
            self._socket.sendall(b"".join([hiredis.pack_command(command) for command in commands]))
            if meanwhile is not None:
                meanwhile(self._socket)
            replies: list[Any] = []
            reader = self._reader
            while len(replies) < len(commands):
                reply = reader.gets()
                if reply is not False:
                    replies.append(reply)
                    continue
                data = self._socket.recv(READ_BYTES)
                if not data:
                    raise redis.ConnectionError("Redis closed the connection")
                reader.feed(data)
            return replies
        except OSError as error:
            raise redis.ConnectionError(str(error)) from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()


def _error(text: str) -> redis.ResponseError:
    if text.startswith("LOADING"):
        raise redis.exceptions.BusyLoadingError(text)
    code, _, rest = text.partition(" ")
    return redis.ResponseError(rest if code == "ERR" else text)
