"""Calls over one connection: a question to the peer's data process, and its answer.

What it is: which calls are open in either direction, their bounds and deadlines, without I/O; time is an argument.
What it is not: what a question means (desk.py).
What must stay true: every call that was made ends once: answered, refused by name, too late, or lost with the connection; what a peer asks costs
bounded memory here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Answer, Call, Message
from edgeflow.errors import EdgeflowError, ProtocolError, TooLarge, Unavailable, describe, described

OPEN_CALLS = 1000
"""Most calls that are open over one connection, in each direction."""

Body = dict[str, Any]
Outcome = Body | EdgeflowError
Done = Callable[[Outcome], None]
Answerer = Callable[[str, Call, Body, Done], None]
"""(peer, the call, its body, where the answer goes)."""


def pack_body(body: Mapping[str, Any]) -> bytes:
    """A body as it travels. Raises TooLarge, ProtocolError."""
    try:
        packed: bytes = msgpack.packb(dict(body), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the body of a call cannot be packed: {error}") from None
    if len(packed) > linkproto.CALL_BYTES:
        raise TooLarge(
            f"the body of a call has {len(packed)} bytes, at most {linkproto.CALL_BYTES} travel between PoPs"
        )
    return packed


def unpack_body(packed: bytes) -> Body:
    """Inverse of `pack_body`. Raises ProtocolError."""
    try:
        body = msgpack.unpackb(packed, raw=False)
    except Exception as error:  # msgpack raises many kinds
        raise ProtocolError(f"the body of a call is not msgpack: {error!r}") from None
    if not isinstance(body, dict):
        raise ProtocolError("the body of a call is not a map")
    return body


@dataclass(slots=True)
class _Open:
    kind: str
    until_s: float
    done: Done


class Calls:
    """Both directions of one connection. `send` queues a message, `answerer` answers what the peer asks."""

    def __init__(self, peer: str, send: Callable[[Message], None], answerer: Answerer) -> None:
        self._peer = peer
        self._send = send
        self._answerer = answerer
        self._open: dict[int, _Open] = {}
        self._n = 0
        self._asked: dict[int, float] = {}
        self._is_closed = False

    def call(self, kind: str, ns: str, body: Mapping[str, Any], timeout_s: float, done: Done, now_s: float) -> None:
        """Asks the peer; `done` is called once, perhaps before this returns."""
        if self._is_closed or len(self._open) >= OPEN_CALLS:
            done(
                Unavailable(
                    f"the link to {self._peer} is down"
                    if self._is_closed
                    else f"too many calls to {self._peer} are open"
                )
            )
            return
        try:
            packed = pack_body(body)
        except EdgeflowError as error:
            done(error)
            return
        self._n += 1
        self._open[self._n] = _Open(kind, now_s + timeout_s, done)
        self._send(Call(self._n, kind, ns, max(0, round(timeout_s * 1000)), packed))

    def on_answer(self, message: Answer) -> None:
        """The peer answers; one that nobody waits for any more is passed over. Raises ProtocolError for one that was never asked for."""
        if not 0 < message.id <= self._n:
            raise ProtocolError(f"{self._peer} answers call {message.id}, which was not made")
        found = self._open.pop(message.id, None)
        if found is None:
            return
        outcome: Outcome
        try:
            body = unpack_body(message.body)
            outcome = described({**body, "code": message.error}) if message.error else body
        except ProtocolError as error:
            outcome = error
        found.done(outcome)

    def on_call(self, message: Call, now_s: float) -> None:
        """The peer asks. Whatever goes wrong is an answer too."""

        def reply(outcome: Outcome) -> None:
            if self._asked.pop(message.id, None) is not None and not self._is_closed:
                self._reply(message.id, outcome)

        if message.id in self._asked:
            raise ProtocolError(f"{self._peer} makes call {message.id} twice")
        if len(self._asked) >= OPEN_CALLS:
            self._reply(message.id, Unavailable(f"too many calls of {self._peer} are open here"))
            return
        self._asked[message.id] = now_s + message.within_ms / 1000
        try:
            self._answerer(self._peer, message, unpack_body(message.body), reply)
        except Exception as error:  # a question that fails here must not end the link
            reply(error if isinstance(error, EdgeflowError) else described(describe(error)))

    def expire(self, now_s: float) -> None:
        """Ends what is too late."""
        for id, late in [(id, open) for id, open in self._open.items() if now_s > open.until_s]:
            del self._open[id]
            late.done(Unavailable(f"{self._peer} did not answer {late.kind!r} in time"))
        for id in [id for id, until_s in self._asked.items() if now_s > until_s]:
            del self._asked[id]

    def close(self) -> None:
        """The connection is gone."""
        self._is_closed = True
        left, self._open = list(self._open.values()), {}
        self._asked.clear()
        for one in left:
            one.done(Unavailable(f"the link to {self._peer} went down"))

    def _reply(self, id: int, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, EdgeflowError):
                self._send(Answer(id, outcome.code, pack_body(describe(outcome))))
            else:
                self._send(Answer(id, "", pack_body(outcome)))
        except (TooLarge, ProtocolError) as error:
            self._send(Answer(id, error.code, pack_body({"message": error.message})))
