"""The work on one connection to the agent: claim, run, commit; park, drain, stop.

What it is: `Session.serve`, the order of work on the instance protocol (docs/protocol.md) from `ready` to the end of the connection.
What it is not: the connection itself, or the life of the process (runtime.py).
What must stay true: an attempt sends either one commit or one fail, after all its blobs; a lost connection voids everything claimed through it; at most
one claim is outstanding and at most UNCONFIRMED_MAX commits are unanswered.
"""

import time
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from edgeflow.core.failpoints import hit
from edgeflow.core.wire import Message
from edgeflow.errors import BadOutput, EdgeflowError, Reject
from edgeflow.sdk.attempt import Work
from edgeflow.sdk.connection import Abandoned, AgentPort, Connection, ConnectionLost
from edgeflow.sdk.context import Context
from edgeflow.sdk.ending import EXIT_STOPPED
from edgeflow.sdk.inputs import make_inputs, spread
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import Later, Outcome
from edgeflow.sdk.raised import describe

if TYPE_CHECKING:
    from edgeflow.sdk.runtime import Instance

UNCONFIRMED_MAX = 64
FLUSH_COMMITS = 32
FLUSH_S = 0.001
SLOW_S = 0.1
FAREWELL_S = 5.0


class Mode(Enum):
    """Whether this instance asks for work."""

    OPEN = "open"
    PARKING = "parking"
    PARKED = "parked"
    DRAINING = "draining"


class Session:
    """The work on one connection, from `ready` to its end."""

    def __init__(self, instance: "Instance", connection: Connection, port: AgentPort) -> None:
        self._instance = instance
        self._connection = connection
        self._port = port
        self._info = instance.info
        self._log_fields = self._info.log_fields
        self._mode = Mode.OPEN
        self._todo: deque[Work] = deque()
        self._unconfirmed: set[tuple[str, int]] = set()
        self._claiming = False
        self._held = 0
        self._held_since_s = 0.0
        self._claim_from_s = 0.0

    def serve(self) -> int:
        """Works until drained or stopped; returns the exit status. Raises ConnectionLost when the agent is gone."""
        connection, stop = self._connection, self._instance.stop
        while True:
            self._dispatch(connection.take())
            if stop.requested:
                return self._farewell()
            if self._todo:
                if len(self._unconfirmed) >= UNCONFIRMED_MAX:
                    self._flush()
                    self._dispatch(connection.receive())
                    continue
                self._run(self._todo.popleft())
                continue
            if self._mode is Mode.DRAINING:
                return self._farewell()
            if self._mode is Mode.PARKING and not self._unconfirmed:
                connection.queue({"t": "parked"})
                self._mode = Mode.PARKED
            rest_s = self._claim_from_s - time.monotonic()
            if self._mode is Mode.OPEN and not self._claiming and rest_s <= 0:
                connection.queue({"t": "claim", "max": self._instance.prefetch()})
                self._claiming = True
            self._flush()
            self._dispatch(connection.receive(rest_s if rest_s > 0 else None))

    def _dispatch(self, messages: Sequence[Message]) -> None:
        for message in messages:
            kind = message.get("t")
            try:
                if kind == "committed":
                    self._committed(message)
                elif kind == "work":
                    now_s = time.perf_counter()
                    self._todo.extend(Work(item, now_s) for item in message["items"])
                    self._instance.watchdog.batching = self._instance.watchdog.batching or len(self._todo) > 1
                    self._claiming = False
                elif kind == "park":
                    # An unanswered claim is void from here on: the agent sends what it claimed before `park`, or not at all.
                    if self._mode is Mode.OPEN:
                        self._mode = Mode.PARKING
                    self._claiming = False
                elif kind == "unpark":
                    if self._mode in (Mode.PARKING, Mode.PARKED):
                        self._mode = Mode.OPEN
                elif kind == "drain":
                    self._mode = Mode.DRAINING
                    self._claiming = False
                elif kind == "error":
                    raise ConnectionLost(f"the agent refused a message: {message.get('error')} ({message.get('code')})")
                # A message of a kind not known here comes from a newer agent and is for newer SDKs.
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise ConnectionLost(f"the agent sent a damaged {kind!r}: {error!r}") from None

    def _committed(self, message: Message) -> None:
        self._unconfirmed.discard((message["invocation"], message["attempt"]))
        status = message["status"]
        if status == "committed":
            return
        fields = {"invocation": message["invocation"], "attempt": message["attempt"], "reason": message.get("error")}
        if status == "stale":
            self._instance.log.warning("commit_stale", **fields)
        elif status == "failed":
            self._instance.log.warning("commit_failed", **fields)
        else:
            self._instance.log.error("commit_refused", **fields)

    def _run(self, work: Work) -> None:
        instance, port = self._instance, self._port
        outcome = Outcome(port)
        log = Log({**self._log_fields, "invocation": work.invocation, "attempt": work.attempt})
        port.waited_s = 0.0
        context: Context | None = None
        items = work.inputs
        started_s = time.perf_counter()
        try:
            items = spread(work.inputs, self._info.channels, self._info.namespace, port)
            arguments, inputs = make_inputs(items, self._info.inputs, port, lists=self._info.lists)
            context = Context(
                self._info, port, outcome, invocation_id=work.invocation, attempt=work.attempt, deadline_ms=work.deadline_ms, inputs=inputs,
                context=instance.context_values(work, port), log=log, state=work.state, key=work.key, window=work.window, replay=work.replay,
                shadow=work.shadow,
            )  # fmt: skip
            hit("sdk-before-handler")
            instance.current_log, instance.current = log, (work, items)
            context.end(instance.call(instance.handler(), context, arguments))
            hit("sdk-after-handler")
            message = {
                "t": "commit",
                "invocation": work.invocation,
                "attempt": work.attempt,
                **outcome.commit_fields(),
            }
        except Abandoned as lost:
            raise ConnectionLost(str(lost)) from None
        except Later as later:
            log.info("put_off", reason=str(later), after_s=later.after_s)
            self._claim_from_s = time.monotonic() + later.after_s
            self._todo.appendleft(work)
            self._release()
            return
        except (
            BaseException
        ) as error:  # SystemExit too: a handler's sys.exit() is a failed attempt, not the end of the instance
            message = self._failure(work, error, log)
        finally:
            if context is not None:
                context.close()
            instance.current_log, instance.current = instance.log, None
        ended_s = time.perf_counter()
        took_s = ended_s - started_s
        instance.took(took_s)
        if message["t"] == "commit":
            message["timing"] = {
                "queued_us": int((started_s - work.arrived_s) * 1e6),
                "handler_us": int(took_s * 1e6),
                "fetch_us": int(port.waited_s * 1e6),
            }
            self._unconfirmed.add((work.invocation, work.attempt))
        if instance.witness is not None:
            try:
                instance.witness.ended(self._info, log, items, message, took_s, port)
            except Abandoned as lost:
                raise ConnectionLost(str(lost)) from None
        self._send(message, work, ended_s, took_s)
        if took_s > SLOW_S and self._todo:
            # They were claimed on the guess that each takes little time; another instance can have them now.
            self._release()

    def _send(self, message: Message, work: Work, now_s: float, took_s: float) -> None:
        try:
            self._connection.queue(message)
        except EdgeflowError as error:  # the frame is too large
            self._unconfirmed.discard((work.invocation, work.attempt))
            refusal = BadOutput(
                f"the commit of function {self._info.function!r} is too large: {error.message}",
                hint="Emit fewer or smaller events.",
            )
            self._connection.queue(self._failure(work, refusal, self._instance.log))
        if not self._held:
            self._held_since_s = now_s
        self._held += 1
        held_s = max(took_s, now_s - self._held_since_s)
        if self._todo and (self._held >= FLUSH_COMMITS or held_s >= FLUSH_S):
            self._flush()

    def _failure(self, work: Work, error: BaseException, log: Log) -> Message:
        text, trace = describe(error)
        retry = not isinstance(error, (Reject, BadOutput))
        log.error(
            "handler_failed",
            invocation=work.invocation,
            attempt=work.attempt,
            error=text,
            retry=retry,
            traceback=trace,
        )
        return {
            "t": "fail",
            "invocation": work.invocation,
            "attempt": work.attempt,
            "error": text,
            "traceback": trace,
            "retry": retry,
        }

    def _flush(self) -> None:
        held, self._held = self._held, 0
        self._connection.flush()
        if held:
            hit("sdk-commit-sent")

    def _release(self) -> None:
        if self._todo:
            self._connection.queue(
                {"t": "release", "invocations": [[work.invocation, work.attempt] for work in self._todo]}
            )
            self._todo.clear()

    def _farewell(self) -> int:
        """The end: gives back what has not begun, and waits a while until the last commits are answered."""
        self._release()
        if self._mode is not Mode.DRAINING:
            # The answer to a claim may be on its way, and nobody will read it.
            self._connection.queue({"t": "leave"})
        self._flush()
        deadline_s = time.monotonic() + FAREWELL_S
        try:
            while self._unconfirmed and (left_s := deadline_s - time.monotonic()) > 0:
                self._dispatch(self._connection.receive(left_s))
                self._release()
                self._flush()
        except ConnectionLost:
            pass
        return EXIT_STOPPED
