"""Instances that wait until this PoP has what a session has seen: the token came with an input, and the handler is about to read.

What it is: the request `session` of the instance protocol: who waits, for what, and how long.
What it is not: the reads behind it, which are answered as ever.
What must stay true: an answer is given once all is applied here that the token names, and names at least what this PoP shows from then on; nobody
waits for longer than WAIT_S, and the loop never waits at all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeflow.core.cursors import Vector
from edgeflow.core.tokens import Session as Token
from edgeflow.core.tokens import parse_session
from edgeflow.core.wire import Message
from edgeflow.errors import BadSession, Behind, EdgeflowError
from edgeflow.flow.bodies import answer
from edgeflow.flow.sessions import Session
from edgeflow.store.client import Store
from edgeflow.store.records import LogId

WAIT_S = 5.0


@dataclass(slots=True)
class _Waiting:
    session: Session
    message: Message
    token: Token
    since_s: float


class Covering:
    """All that wait at this PoP."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self.passed: Callable[[str], Mapping[LogId, int]] = lambda _namespace: {}
        """What every member has applied; left out of tokens."""
        self.staleness_ms: Callable[[str], int | None] = lambda _namespace: None
        """For how long something may have been written elsewhere that is not readable here."""

    def ask(self, session: Session, message: Message) -> None:
        """Answer now, or as soon as it is so. A token that is none is refused by name."""
        text, name = message.get("token"), session.spec.namespace

        def begin() -> None:
            try:
                token = parse_session(text, name) if isinstance(text, str) and text else Token(name)
            except BadSession as trouble:
                wrong = trouble
                answer(session, message, lambda: _refuse(wrong))
                return
            waiting = _Waiting(session, message, token, time.monotonic())
            if not self._settle(waiting, waiting.since_s):
                self._waiting.append(waiting)

        session.read(begin)

    def look(self, namespace: str | None = None) -> None:
        """Something was applied in a namespace; None: time has passed."""
        if not self._waiting:
            return
        now_s = time.monotonic()
        looked_at, self._waiting = self._waiting, []
        for waiting in looked_at:
            is_meant = namespace in (None, waiting.session.spec.namespace)
            if not waiting.session.closed and not (is_meant and self._settle(waiting, now_s)):
                self._waiting.append(waiting)

    def _settle(self, waiting: _Waiting, now_s: float) -> bool:
        """Answers if it is so, or too late; whether it did."""
        session = waiting.session
        if not self._is_covered(waiting, now_s):
            if now_s - waiting.since_s < WAIT_S:
                return False

            late = Behind(f"this PoP has not got within {WAIT_S:g} s what the session of the input has seen elsewhere")
            answer(session, waiting.message, lambda: _refuse(late))
        else:
            answer(session, waiting.message, lambda: {"token": self._token(waiting.token)})
        session.flush()
        return True

    def _is_covered(self, waiting: _Waiting, now_s: float) -> bool:
        name = waiting.session.spec.namespace
        if waiting.token.is_wide:
            staleness_ms = self.staleness_ms(name)
            return staleness_ms is not None and staleness_ms <= (now_s - waiting.since_s) * 1000
        return waiting.token.missing(self._store.namespace(name).applied()) == 0

    def _token(self, token: Token) -> str:
        heads: Vector = {
            (origin, epoch): seq for (origin, epoch), seq in self._store.namespace(token.namespace).logs().items()
        }
        return Token(token.namespace).with_vector(heads).pruned(dict(self.passed(token.namespace).items())).text()


def _refuse(error: EdgeflowError) -> dict[str, Any]:
    raise error
