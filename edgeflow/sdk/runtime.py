"""One instance: `python -m edgeflow.sdk.runtime` loads a handler and runs invocations until it is told to stop.

What it is: the order of work on the instance protocol: connect, load, claim, run, commit; park, drain, stop; and starting again when the agent restarts.
What it is not: durability. Whatever this process holds may be lost at any moment; the agent gives the work to another attempt.
What must stay true: handler code runs in the main thread; an attempt sends either one commit or one fail, after all its blobs; a lost socket
voids everything claimed through it; at most one claim is outstanding and at most UNCONFIRMED_MAX commits are unanswered.

Environment: EDGEFLOW_SOCKET (path of the agent's socket for this instance), EDGEFLOW_HANDLER (folder that holds handler.py).
Exit status: 0 told to stop; 1 no agent for RECONNECT_S seconds; 75 killed because an attempt ran too long; 78 the handler cannot be used.
"""

import errno
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from edgeflow import __version__
from edgeflow.core.failpoints import hit
from edgeflow.core.wire import Message
from edgeflow.errors import BadHandler, BadOutput, EdgeflowError, ProtocolError, Reject
from edgeflow.sdk.connection import Abandoned, AgentPort, Connection, ConnectionLost, connect
from edgeflow.sdk.context import Context, FunctionInfo
from edgeflow.sdk.function import Handle, check_signature, load_handler
from edgeflow.sdk.inputs import Bodies, BodyCache, make_inputs, spread
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import Later, Outcome
from edgeflow.sdk.printed import Printed
from edgeflow.sdk.stored import ContextCache

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

PROTOCOL = 1
PREFETCH_S = 0.008
PREFETCH_MAX = 64
UNCONFIRMED_MAX = 64
FLUSH_COMMITS = 32
FLUSH_S = 0.001
SLOW_S = 0.1
RECONNECT_S = 120.0
HANDSHAKE_S = 10.0
FAREWELL_S = 5.0
KILLED_S = 1.0
WATCH_AFTER_S = 1.0
WATCH_EVERY_S = 0.5
WATCH_BATCHES_EVERY_S = 0.02
ERROR_BYTES = 1024
TRACEBACK_BYTES = 8192

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SDK = Path(__file__).parent
EXIT_STOPPED, EXIT_NO_AGENT, EXIT_KILLED, EXIT_BAD_HANDLER = 0, 1, 75, 78


class Mode(Enum):
    """Whether this instance asks for work."""

    OPEN = "open"
    PARKING = "parking"
    PARKED = "parked"
    DRAINING = "draining"


class Work:
    """One claimed invocation."""

    __slots__ = (
        "arrived_s", "attempt", "context", "deadline_ms", "inputs", "invocation", "key", "replay", "shadow", "state", "window",
    )  # fmt: skip

    def __init__(self, item: Mapping[str, Any], arrived_s: float) -> None:
        self.invocation: str = item["invocation"]
        self.attempt: int = item["attempt"]
        self.deadline_ms: int = item["deadline_ms"]
        self.inputs: Sequence[Mapping[str, Any]] = item["inputs"]
        self.context: Mapping[str, Any] = item.get("context") or {}
        self.state: Mapping[str, Any] | None = item.get("state")
        self.key: str | None = item.get("key")
        self.replay: str | None = item.get("replay")
        self.shadow = bool(item.get("shadow"))
        window = item.get("window")
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self.arrived_s = arrived_s


class Stop:
    """The wish to end, from a signal or another thread, that also wakes a waiting main thread."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.requested = False

    def request(self) -> None:
        """Asks the instance to finish its current invocation and leave."""
        self.requested = True
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            pass

    def on_signals(self) -> None:
        """SIGTERM and SIGINT mean `request`, in this process only.

        A child that a handler forks shares the wake-up descriptor, and Python forgets a signal that reaches the child before its first
        bytecode: so signals wait while it forks, and then do what they do in any process.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: self.request())

        def hold() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)

        def let_go() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

        def let_go_in_child() -> None:
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            let_go()

        os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=let_go_in_child)

    def wait(self, timeout_s: float) -> None:
        """Returns after `timeout_s` seconds, or earlier when a stop is requested."""
        if not self.requested:
            select.select([self.read_fd], [], [], timeout_s)


class Witness(Protocol):
    """Who wants to know how each attempt ended."""

    def ended(
        self,
        info: FunctionInfo,
        log: Log,
        items: Sequence[Mapping[str, Any]],
        message: Message,
        took_s: float,
        bodies: Bodies,
    ) -> None:
        """`message` is the commit or the fail that is about to be sent, `items` are the inputs of the attempt."""


class Instance:
    """The life of one instance process.

    `load` returns the handler and is called once, after the first welcome. `exit_now` ends the process from any thread.
    """

    def __init__(
        self,
        socket_path: str,
        load: Callable[[], Handle],
        *,
        stop: Stop | None = None,
        exit_now: Callable[[int], Any] = os._exit,
        witness: "Witness | None" = None,
    ) -> None:
        self.stop = stop or Stop()
        self.witness = witness
        self._socket_path = socket_path
        self._load = load
        self._exit_now = exit_now
        self._handle: Handle | None = None
        self._cache = BodyCache()
        self._context_cache = ContextCache()
        self._connection: Connection | None = None
        self._main_thread = threading.get_ident()
        self._running_since_s = 0.0
        self._ended = threading.Event()
        self._is_child = False
        self._mean_s: float | None = None
        self.batching = False
        """Whether several invocations came at once lately: only then can a commit be held back behind another handler."""
        self.grant: Mapping[str, str] | None = None
        """Account at the broker of a function whose input has qos 0."""
        self._channel = ""
        self.info = FunctionInfo(namespace="", function="")
        self.log = self.current_log = Log({"logger": "sdk"})
        """Its own log; that of the invocation that runs now."""
        self.current: tuple[Work, Sequence[Mapping[str, Any]]] | None = None
        """The attempt that runs now, with its inputs."""

    def run(self) -> int:
        """Serves until told to stop, reconnecting when the agent restarts; returns the exit status. Raises BadHandler."""
        self._main_thread = threading.get_ident()
        threading.Thread(target=self._watch, name="edgeflow-watchdog", daemon=True).start()
        os.register_at_fork(after_in_child=self._forked)
        try:
            return self._serve()
        finally:
            self._ended.set()

    def _serve(self) -> int:
        pause_s = 0.05
        last_good_s = time.monotonic()
        while not self.stop.requested:
            started_s = time.monotonic()
            try:
                connection = self.connect()
            except OSError as error:
                reason = f"{error.strerror or error}"
            else:
                self._connection = connection
                try:
                    self._welcome(connection)
                    last_good_s = time.monotonic()
                    if self.grant is not None:
                        return self._serve_direct(self.grant, connection)
                    return Session(self, connection, AgentPort(connection, self._cache)).serve()
                except ConnectionLost as lost:
                    reason = str(lost)
                    self.log.warning("agent_lost", reason=reason)
                finally:
                    self._connection = None
                    connection.close()
                if time.monotonic() - started_s > 1.0:
                    pause_s, last_good_s = 0.05, time.monotonic()
            if time.monotonic() - last_good_s > RECONNECT_S:
                self.log.error("no_agent", socket=self._socket_path, reason=reason, waited_s=RECONNECT_S)
                return EXIT_NO_AGENT
            self.stop.wait(pause_s * _chance.uniform(0.8, 1.2))
            pause_s = min(2.0, pause_s * 2)
        return EXIT_STOPPED

    def _serve_direct(self, grant: Mapping[str, str], connection: Connection) -> int:
        # Imported here because only a function with a qos 0 input has paho in its environment.
        try:
            from edgeflow.sdk.direct import Direct
        except ModuleNotFoundError as missing:
            raise BadHandler(
                f"an input with qos 0 needs paho-mqtt, and the function's environment has no {missing.name}",
                hint="Add paho-mqtt>=2.1,<3 to the image; environments and images that edgeflow makes have it.",
            ) from None
        try:
            direct = Direct(self, grant, self._channel, reconnect_s=RECONNECT_S)
        except ProtocolError as error:
            raise ConnectionLost(error.message) from None
        return direct.serve(connection)

    def connect(self) -> Connection:
        """A new connection to the agent, hello queued. Raises OSError when nobody listens."""
        if self._is_child:
            self._leave()
        connection = connect(self._socket_path, on_kill=self._killed, wake_fd=self.stop.read_fd)
        connection.queue({"t": "hello", "protocol": PROTOCOL, "sdk": f"python/{__version__}"})
        return connection

    def attach(self, connection: Connection | None) -> None:
        """The connection that the watchdog looks at while a handler runs."""
        self._connection = connection

    @staticmethod
    def describe(error: BaseException) -> tuple[str, str]:
        """(one line, traceback) of what a handler raised, each cut to its limit."""
        text = _text_of(error)
        if isinstance(error, BadOutput):
            text = f"{text} ({error.hint})"
        elif limit := _limit_of(error):
            text = f"{_cut(text, ERROR_BYTES // 2)} ({limit})"
        return _cut(text, ERROR_BYTES), _traceback_of(error)

    def handler(self) -> Handle:
        """The loaded handler."""
        assert self._handle is not None
        return self._handle

    def call(self, handle: Handle, context: Context, arguments: Mapping[str, Any]) -> Any:
        """Runs the handler under the watchdog's eyes."""
        self._running_since_s = time.monotonic()
        try:
            return handle(context, **arguments)
        finally:
            self._running_since_s = 0.0
            if self._is_child:
                self._leave()

    def took(self, seconds: float) -> None:
        """Counts a handler's time into the mean that decides the prefetch."""
        self._mean_s = seconds if self._mean_s is None else self._mean_s * 0.8 + seconds * 0.2

    def prefetch(self) -> int:
        """How many invocations to claim at once: so many as fit into PREFETCH_S, one while nothing is known."""
        if self._mean_s is None:
            return 1
        return max(1, min(PREFETCH_MAX, int(PREFETCH_S / max(self._mean_s, 1e-6))))

    def context_values(self, work: Work, port: AgentPort) -> Mapping[str, Any]:
        """The context values of a work item."""
        return self._context_cache.values(work.context, self.info.context, port)

    def _welcome(self, connection: Connection) -> None:
        connection.flush()
        message: Message | None = None
        received: Sequence[Message] = ()
        deadline_s = time.monotonic() + HANDSHAKE_S
        while message is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ConnectionLost(f"no welcome within {HANDSHAKE_S:g} s")
            received = connection.receive(left_s)
            if self.stop.requested:
                raise ConnectionLost("stopped")
            if received:
                message = received[0]
        if message.get("t") == "error":
            raise ConnectionLost(f"the agent refused hello: {message.get('error')} ({message.get('code')})")
        if message.get("t") != "welcome" or message.get("protocol") != PROTOCOL:
            raise ConnectionLost(
                f"the agent answered hello with {message.get('t')!r}, protocol {message.get('protocol')!r}; this SDK speaks {PROTOCOL}"
            )
        # The agent may have said more already.
        connection.put_back(received[1:])
        try:
            inputs = message["inputs"]
            all_lists = message["join"] == "collect"
            self.info = FunctionInfo(
                namespace=message["namespace"], function=message["function"], revision=message["revision"], instance=message["instance"],
                pop=message["pop"], inputs=tuple(item["name"] for item in inputs),
                lists=frozenset(item["name"] for item in inputs if item.get("list", all_lists)),
                joined=message["join"] is not None or any(item.get("optional") for item in inputs), captures=inputs[0].get("captures") or {},
                channels={item["name"]: item.get("captures") or {} for item in inputs},
                publish=tuple(message["publish"]), context=message["context"] or {}, has_state=bool(message.get("state")),
                timeout_ms=message["timeout_ms"],
            )  # fmt: skip
            self._channel = inputs[0]["channel"]
            self.grant = message.get("mqtt")
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ConnectionLost(f"the agent's welcome is incomplete: {error!r}") from None
        bound = {
            "pop": self.info.pop,
            "namespace": self.info.namespace,
            "function": self.info.function,
            "instance": self.info.instance,
        }
        self.log = self.current_log = Log({"logger": "sdk", **bound})
        if self._handle is None:
            started_s = time.monotonic()
            self._handle = self._load()
            self.log.info(
                "handler_loaded", revision=self.info.revision, load_ms=round((time.monotonic() - started_s) * 1000)
            )
        check_signature(self._handle, self.info.inputs)
        if self.grant is None:
            connection.queue({"t": "ready"})

    def _watch(self) -> None:
        """The watchdog: sends what was held back before a handler that turned out to be long, and looks for `kill` and for a socket that is gone."""
        idle = 0
        while not self._ended.wait(WATCH_BATCHES_EVERY_S if self.batching else WATCH_EVERY_S):
            since_s, connection = self._running_since_s, self._connection
            idle = 0 if since_s else idle + 1
            if idle > WATCH_EVERY_S / WATCH_BATCHES_EVERY_S:
                self.batching = False
            if not since_s:
                continue
            ran_s = time.monotonic() - since_s
            if self.grant is not None and since_s == self._running_since_s and ran_s > self.info.timeout_ms / 1000:
                # The agent does not know of this event: nobody else looks at the clock.
                self._killed()
            if connection is None:
                continue
            try:
                if ran_s >= WATCH_BATCHES_EVERY_S:
                    connection.flush()
                if ran_s >= WATCH_AFTER_S:
                    connection.watch(WATCH_EVERY_S)
            except (ConnectionLost, OSError):
                pass
            if (
                connection.lost
                and since_s == self._running_since_s
                and ran_s > self.info.timeout_ms / 1000 + WATCH_AFTER_S
            ):
                # The agent that would say `kill` is gone or has given up on this socket.
                self._killed()

    def _forked(self) -> None:
        """In a child that a handler forked: it must not hold the socket open after our end, which tells the agent that we are gone."""
        self._is_child = True
        if self._connection is not None:
            self._connection.forget()

    def _leave(self) -> None:
        """In a child that came back from the handler: two instances on one socket would take each other's work away, so it ends here."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, SystemExit):
            text, trace = self.describe(error)
            self.log.error("forked_child_failed", error=text, traceback=trace)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(0 if error is None else 1)

    def _killed(self) -> None:
        # Whoever holds up the log (nobody reads it, and the handler hangs on writing to it) does not hold up the end.
        end = threading.Timer(KILLED_S, self._exit_now, (EXIT_KILLED,))
        end.daemon = True
        try:
            end.start()
        except RuntimeError:
            pass  # the function has used up its threads: the log is all there is to hope for
        frame = sys._current_frames().get(self._main_thread)
        where = "".join(traceback.format_stack(frame)[-12:]) if frame is not None and self._running_since_s else ""
        self.log.error(
            "killed",
            reason="the attempt ran longer than its timeout",
            timeout_ms=self.info.timeout_ms,
            handler_was_at=where[-TRACEBACK_BYTES:],
        )
        self._tell_of_the_end(where[-TRACEBACK_BYTES:])
        end.cancel()
        self._exit_now(EXIT_KILLED)

    def _tell_of_the_end(self, where: str) -> None:
        """To the witness, of an attempt that ends with this process. Bodies come from the cache: the connection belongs to the handler, which hangs."""
        current = self.current
        if self.witness is None or current is None:
            return
        work, items = current
        message = {
            "t": "fail", "invocation": work.invocation, "attempt": work.attempt, "traceback": where,
            "error": f"TimeoutError: it ran longer than {self.info.timeout_ms} ms",
        }  # fmt: skip
        self.witness.ended(self.info, self.current_log, items, message, self.info.timeout_ms / 1000, self._cache)


class Session:
    """The work on one connection, from `ready` to its end."""

    def __init__(self, instance: Instance, connection: Connection, port: AgentPort) -> None:
        self._instance = instance
        self._connection = connection
        self._port = port
        self._info = instance.info
        self._log_fields = {
            "pop": self._info.pop,
            "namespace": self._info.namespace,
            "function": self._info.function,
            "instance": self._info.instance,
        }
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
                    self._instance.batching = self._instance.batching or len(self._todo) > 1
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
        text, trace = self._instance.describe(error)
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


def _text_of(error: BaseException) -> str:
    """`KeyError: 'x'`, also for an exception whose own __str__ fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its message cannot be shown)"


def _limit_of(error: BaseException) -> str:
    """Which limit of the manifest a handler ran into, if its error says so."""
    if isinstance(error, MemoryError):
        return "it may use no more memory: `limits: {memory: ...}`"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the instance's /tmp is full: `limits: {tmpfs: ...}`"
    is_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if is_thread or (isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN):
        return "the instance may have no more processes and threads, if one was to be started: `limits: {pids: ...}`"
    return ""


def _traceback_of(error: BaseException) -> str:
    """The traceback from the handler on, at most TRACEBACK_BYTES, the innermost frames kept."""
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_SDK):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= TRACEBACK_BYTES:
        return encoded.decode()
    return "...\n" + encoded[-(TRACEBACK_BYTES - 4) :].decode("utf-8", "ignore")


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return (
        encoded.decode()
        if len(encoded) <= limit_bytes
        else encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "..."
    )


def main() -> int:
    """Entry point of `python -m edgeflow.sdk.runtime`; returns the exit status."""
    socket_path, folder = os.environ.get("EDGEFLOW_SOCKET"), os.environ.get("EDGEFLOW_HANDLER")
    if not socket_path or not folder:
        missing = "EDGEFLOW_SOCKET" if not socket_path else "EDGEFLOW_HANDLER"
        print(f"edgeflow: {missing} is not set; the runner starts this program, not a user", file=sys.stderr)
        return EXIT_BAD_HANDLER
    stop = Stop()
    stop.on_signals()
    instance = Instance(socket_path, lambda: load_handler(Path(folder)), stop=stop)
    sys.stdout = printed = Printed(lambda: instance.current_log, sys.stdout)
    try:
        return instance.run()
    except BadHandler as error:
        if error.__cause__ is not None:
            print(_traceback_of(error.__cause__), file=sys.stderr)
        print(f"edgeflow: {error.message}\nedgeflow: {error.hint}", file=sys.stderr, flush=True)
        instance.log.error("bad_handler", reason=error.message, hint=error.hint)
        return EXIT_BAD_HANDLER
    finally:
        printed.end_line()


if __name__ == "__main__":
    sys.exit(main())
