"""The mailbox: how the control process asks the data process for what only that one can do, such as to speak with other PoPs.

What it is: a list of questions in the store that belongs to the PoP alone, one list of answers per asking process, and a hint that wakes.
What it is not: durable work. A question lives as long as whoever asks it waits; what it causes is made safe by the ids inside it.
What must stay true: every question ends within its time, with an answer, the error that the data process names, or Unavailable; questions and
answers that nobody takes are bounded and go away by themselves.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

import msgpack
import redis

from edgeflow.errors import EdgeflowError, Unavailable, describe, described
from edgeflow.store.connection import Connection

MAIL = "@mail"
"""What the hint names; no namespace can be called so."""
QUESTIONS = 1000
"""Most questions that wait to be taken."""
BODY_BYTES = 2 * 1024 * 1024
"""Longest question or answer."""
_KEY = "ef:{local}:mail"
_WAKE = msgpack.packb([MAIL, "", []])
_ANSWER_S = 60
"""How long an answer waits to be fetched."""
_POLL_S = 0.2
_IDLE_S = 30.0
"""Without a question for this long, the thread that fetches the answers ends."""


@dataclass(slots=True)
class Asked:
    """A question to the data process. One of `answer` and `refuse` is called once; nobody may wait any more by then."""

    id: str
    kind: str
    args: dict[str, Any]
    deadline_s: float
    """Wall clock, seconds since the epoch: whoever asked waits no longer."""
    _connection: Connection = field(repr=False)
    _answers: str = field(repr=False)

    @property
    def left_s(self) -> float:
        """How long whoever asked still waits."""
        return self.deadline_s - time.time()

    def answer(self, body: Mapping[str, Any]) -> None:
        """The answer; values are what msgpack takes."""
        self._send({"id": self.id, "body": dict(body)})

    def refuse(self, error: EdgeflowError) -> None:
        """The error that the asking process raises."""
        self._send({"id": self.id, "error": describe(error)})

    def _send(self, reply: dict[str, Any]) -> None:
        packed = msgpack.packb(reply)
        if len(packed) > BODY_BYTES:
            packed = msgpack.packb({
                "id": self.id, "error": describe(Unavailable(f"the answer has {len(packed)} bytes, at most {BODY_BYTES} fit")),
            })  # fmt: skip
        self._connection.run([("RPUSH", self._answers, packed), ("EXPIRE", self._answers, _ANSWER_S)])


@dataclass(slots=True)
class _Waiting:
    kind: str
    deadline_s: float
    """Monotonic clock."""
    future: "Future[dict[str, Any]]" = field(default_factory=Future)

    def end(self, outcome: "dict[str, Any] | EdgeflowError") -> None:
        """Once; nothing happens when whoever asked has given up."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, EdgeflowError):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Mailbox:
    """Both sides of it. Thread-safe; a thread of its own fetches answers while some are awaited."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answers = f"{_KEY}:{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._n = 0

    # The asking side

    def ask(self, kind: str, args: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The data process's answer. Raises the error that it refuses with, and Unavailable after `timeout_s`."""
        future = self.submit(kind, args, timeout_s)
        try:
            return future.result(timeout_s + 2 * _POLL_S)
        except FutureTimeout:
            raise _late(kind, timeout_s) from None

    def submit(self, kind: str, args: Mapping[str, Any], timeout_s: float) -> "Future[dict[str, Any]]":
        """Like `ask`, for whoever must not hold a thread: the answer, or the error, comes through the future."""
        now_s = time.time()
        with self._lock:
            if self._is_closed:
                raise Unavailable("this process is ending")
            self._n += 1
            id = f"{self._answers}:{self._n}"
            waiting = self._waiting[id] = _Waiting(kind, time.monotonic() + timeout_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch, name="mailbox", daemon=True)
                self._thread.start()
        packed = msgpack.packb({
            "id": id, "kind": kind, "args": dict(args), "until": now_s + timeout_s, "to": self._answers,
        })  # fmt: skip
        try:
            if len(packed) > BODY_BYTES:
                raise Unavailable(f"a question of {len(packed)} bytes; at most {BODY_BYTES} fit into the mailbox")
            waiting_there, _ = self._connection.run([("RPUSH", _KEY, packed), ("PUBLISH", "ef:wake", _WAKE)])
            if isinstance(waiting_there, redis.ResponseError):
                raise Unavailable(f"the store does not take the question: {waiting_there}")
            if waiting_there > QUESTIONS:
                self._connection.one("LREM", _KEY, -1, packed)
                raise Unavailable("the data process of this PoP does not answer: too many questions wait")
        except EdgeflowError as error:
            self._end(id)
            waiting.end(error)
        return waiting.future

    def close(self) -> None:
        """Questions that wait end with Unavailable."""
        with self._lock:
            self._is_closed = True
            left, self._waiting = list(self._waiting.values()), {}
        for waiting in left:
            waiting.end(Unavailable("this process is ending"))

    def _end(self, id: str) -> _Waiting | None:
        with self._lock:
            return self._waiting.pop(id, None)

    def _fetch(self) -> None:
        client = self._connection.client()
        idle_from_s = time.monotonic()
        try:
            while True:
                try:
                    found: Any = client.blpop([self._answers], timeout=_POLL_S)
                except (redis.RedisError, OSError):
                    time.sleep(_POLL_S)  # the store is away: what waits ends at its own time
                    found = None
                now_s = time.monotonic()
                if found is not None:
                    self._deliver(found[1])
                self._expire(now_s)
                with self._lock:
                    if self._waiting:
                        idle_from_s = now_s
                    if self._is_closed or now_s - idle_from_s > _IDLE_S:
                        self._thread = None
                        return
        finally:
            client.close()

    def _deliver(self, packed: bytes) -> None:
        reply = msgpack.unpackb(packed)
        waiting = self._end(reply["id"])
        if waiting is None:
            return
        if "error" in reply:
            waiting.end(described(reply["error"]))
        else:
            waiting.end(reply["body"])

    def _expire(self, now_s: float) -> None:
        with self._lock:
            late = [(id, waiting) for id, waiting in self._waiting.items() if now_s > waiting.deadline_s]
            for id, _ in late:
                del self._waiting[id]
        for _, waiting in late:
            waiting.end(_late(waiting.kind, None))

    # The data process's side

    def take(self, limit: int = 100) -> list[Asked]:
        """The questions that wait, oldest first; those that nobody waits for any more are left out."""
        now_s = time.time()
        asked = []
        for packed in self._connection.one("LPOP", _KEY, limit) or ():
            with contextlib.suppress(ValueError, KeyError, TypeError, msgpack.UnpackException):
                question = msgpack.unpackb(packed)
                if question["until"] > now_s:
                    asked.append(
                        Asked(
                            question["id"], question["kind"], question["args"], question["until"], self._connection,
                            question["to"],
                        )
                    )  # fmt: skip
        return asked


def _late(kind: str, timeout_s: float | None) -> Unavailable:
    within = "in time" if timeout_s is None else f"within {timeout_s:g} s"
    return Unavailable(f"the data process of this PoP did not answer {kind!r} {within}")
