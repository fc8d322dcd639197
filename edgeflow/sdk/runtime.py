"""One instance: `python -m edgeflow.sdk.runtime` loads a handler and runs invocations until it is told to stop.

What it is: the life of the process: connect, load, serve one connection after the other; and starting again when the agent restarts.
What it is not: the work on a connection (session.py), or durability. Whatever this process holds may be lost at any moment; the agent gives the work to
another attempt.
What must stay true: handler code runs in the main thread, and is loaded once; a lost socket voids everything claimed through it; a child that a handler
forks neither holds the socket open nor becomes a second instance.

Environment: EDGEFLOW_SOCKET (path of the agent's socket for this instance), EDGEFLOW_HANDLER (folder that holds handler.py).
Exit status: 0 told to stop; 1 no agent for RECONNECT_S seconds; 75 killed because an attempt ran too long; 78 the handler cannot be used.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeflow.core.wire import Message
from edgeflow.errors import BadHandler, ProtocolError
from edgeflow.sdk.attempt import Witness, Work
from edgeflow.sdk.connection import AgentPort, Connection, ConnectionLost, connect
from edgeflow.sdk.context import Context, FunctionInfo
from edgeflow.sdk.ending import EXIT_BAD_HANDLER, EXIT_NO_AGENT, EXIT_STOPPED, Stop
from edgeflow.sdk.function import Handle, check_signature, load_handler
from edgeflow.sdk.inputs import BodyCache
from edgeflow.sdk.log import Log
from edgeflow.sdk.printed import Printed
from edgeflow.sdk.raised import describe, traceback_of
from edgeflow.sdk.session import Session
from edgeflow.sdk.started import told
from edgeflow.sdk.stored import ContextCache
from edgeflow.sdk.watchdog import Watchdog
from edgeflow.sdk.welcome import HELLO, read_welcome

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

PREFETCH_S = 0.008
PREFETCH_MAX = 64
RECONNECT_S = 120.0
HANDSHAKE_S = 10.0


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
        witness: Witness | None = None,
    ) -> None:
        self.stop = stop or Stop()
        self.witness = witness
        self._socket_path = socket_path
        self._load = load
        self._handle: Handle | None = None
        self._cache = BodyCache()
        self._context_cache = ContextCache()
        self._is_child = False
        self._mean_s: float | None = None
        self.watchdog = Watchdog(self, self._cache, exit_now)
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
        self.watchdog.start()
        os.register_at_fork(after_in_child=self._forked)
        try:
            return self._serve()
        finally:
            self.watchdog.end()

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
                self.attach(connection)
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
                    self.attach(None)
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
        connection = connect(self._socket_path, on_kill=self.watchdog.killed, wake_fd=self.stop.read_fd)
        connection.queue(HELLO)
        return connection

    def attach(self, connection: Connection | None) -> None:
        """The connection that the watchdog looks at while a handler runs."""
        self.watchdog.connection = connection

    def handler(self) -> Handle:
        """The loaded handler."""
        assert self._handle is not None
        return self._handle

    def call(self, handle: Handle, context: Context, arguments: Mapping[str, Any]) -> Any:
        """Runs the handler under the watchdog's eyes."""
        self.watchdog.running_since_s = time.monotonic()
        try:
            return handle(context, **arguments)
        finally:
            self.watchdog.running_since_s = 0.0
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
        welcome = read_welcome(message)
        # The agent may have said more already.
        connection.put_back(received[1:])
        self.info, self._channel, self.grant = welcome.info, welcome.channel, welcome.grant
        self.log = self.current_log = Log({"logger": "sdk", **self.info.log_fields})
        if self._handle is None:
            started_s = time.monotonic()
            self._handle = self._load()
            self.log.info(
                "handler_loaded", revision=self.info.revision, load_ms=round((time.monotonic() - started_s) * 1000)
            )
        check_signature(self._handle, self.info.inputs)
        if self.grant is None:
            connection.queue({"t": "ready"})

    def _forked(self) -> None:
        """In a child that a handler forked: it must not hold the socket open after our end, which tells the agent that we are gone."""
        self._is_child = True
        if self.watchdog.connection is not None:
            self.watchdog.connection.forget()

    def _leave(self) -> None:
        """In a child that came back from the handler: two instances on one socket would take each other's work away, so it ends here."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, SystemExit):
            text, trace = describe(error)
            self.log.error("forked_child_failed", error=text, traceback=trace)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(0 if error is None else 1)


def main() -> int:
    """Entry point of `python -m edgeflow.sdk.runtime`; returns the exit status."""
    if (given := told("EDGEFLOW_SOCKET", "EDGEFLOW_HANDLER")) is None:
        return EXIT_BAD_HANDLER
    socket_path, folder = given
    stop = Stop()
    stop.on_signals()
    instance = Instance(socket_path, lambda: load_handler(Path(folder)), stop=stop)
    sys.stdout = printed = Printed(lambda: instance.current_log, sys.stdout)
    try:
        return instance.run()
    except BadHandler as error:
        if error.__cause__ is not None:
            print(traceback_of(error.__cause__), file=sys.stderr)
        print(f"edgeflow: {error.message}\nedgeflow: {error.hint}", file=sys.stderr, flush=True)
        instance.log.error("bad_handler", reason=error.message, hint=error.hint)
        return EXIT_BAD_HANDLER
    finally:
        printed.end_line()


if __name__ == "__main__":
    sys.exit(main())
