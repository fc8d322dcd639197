"""Contract `http`: a program that serves HTTP gets each invocation as a POST.

What it is: the program's start and readiness, one request for each invocation, and its end.
What it is not: what a request holds (requests.py) and a response means (answers.py).
What must stay true: `ready` is not said before the program is; a request that may have reached the program is never sent again within its attempt; a
program that does not listen has failed at nothing, so what it could not be asked is given back without blame.

Embedded mode: the program is a child of this process, told its port by PORT. Docker mode: it is the other container in this network namespace.
"""

import http.client
import time
from collections.abc import Mapping
from typing import Any

from edgeflow.errors import BadOutput
from edgeflow.sdk.adapters import answers, ports, requests
from edgeflow.sdk.adapters.adapter import Adapter, Facts
from edgeflow.sdk.adapters.effects import Effects
from edgeflow.sdk.adapters.exchange import Exchange, TooMuch
from edgeflow.sdk.adapters.program import Program, environment, in_words
from edgeflow.sdk.adapters.setting import Setting
from edgeflow.sdk.connection import ConnectionLost
from edgeflow.sdk.context import Context
from edgeflow.sdk.ending import Stop
from edgeflow.sdk.function import Handle
from edgeflow.sdk.inputs import MAX_VALUE_BYTES
from edgeflow.sdk.outcome import Later

FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.5
SAY_EVERY_S = 10.0
"""How often the log says that the program is not ready yet."""
READY_ANSWER_S = 5.0
AWAY_S = 10.0
"""How long a program may refuse connections before its instance ends, to be replaced."""
AWAY_LATER_S = 0.5


class Http(Adapter):
    """The adapter of one instance."""

    def __init__(self, setting: Setting, stop: Stop, facts: Facts) -> None:
        super().__init__(setting, stop, facts)
        self._port = setting.http_port
        self._effects: Effects | None = None
        self._program: Program | None = None
        self._exchange: Exchange | None = None
        self._away_since_s: float | None = None

    # -- for the instance ----------------------------------------------------------------------------------------------

    def load(self) -> Handle:
        """Start the program and wait until it is ready. Raises BadHandler, and ConnectionLost when it or the instance is to end."""
        self._effects = Effects(self._setting.effects_port)
        if self._setting.command:
            self._port = self._setting.http_port or ports.free_port()
            env = environment({"PORT": str(self._port), "EDGEFLOW_URL": self._effects.url})
            self._program = Program(self._setting.command, env, self._stop.request)
        self._wait_ready()

        def handle(ctx: Context, /, **inputs: Any) -> None:
            self._handle(ctx, inputs)

        return handle

    def _handle(self, ctx: Context, inputs: Mapping[str, Any]) -> None:
        info, _ = self._facts()
        events = requests.events_of(inputs)
        given = requests.content(events, joined=info.joined, mode=self._setting.http_format)
        headers = requests.headers(given, ctx)
        assert self._effects is not None
        with self._effects.of(ctx, info.publish):
            status, said, body = self._ask(headers, given.body)
        answers.settle(ctx, info.publish, {one.channel for one in events}, status, said, body)

    def kill(self) -> None:
        """End the program at once."""
        if self._program is not None:
            self._program.kill()

    def close(self) -> None:
        """End the program, and what is open."""
        self._forget_connection()
        if self._program is not None:
            self._program.stop()
        if self._effects is not None:
            self._effects.close()

    def exit_status(self, status: int) -> int:
        """What the process ends with, given what the runtime says: the program's own status when that was the reason."""
        program = self._program
        if program is not None and program.ended_by_itself is not None:
            self.failed = f"the program ended {in_words(program.ended_by_itself)}"
            status = program.exit_status()
        elif self.failed:
            status = 1
        return status

    # -- readiness -----------------------------------------------------------------------------------------------------

    def _wait_ready(self) -> None:
        _, log = self._facts()
        wait_s, started_s = FIRST_LOOK_S, time.monotonic()
        said_s = started_s
        while (reason := self._not_ready()) is not None:
            if self._stop.requested:
                raise ConnectionLost("the program has ended, or the instance is to end, before it was ready")
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                log.info("program_not_ready", reason=reason, waited_s=round(said_s - started_s))
            self._stop.wait(wait_s)
            wait_s = min(LONGEST_LOOK_S, wait_s * 1.5)
        log.info("program_ready", port=self._port, took_ms=round((time.monotonic() - started_s) * 1000))

    def _not_ready(self) -> str | None:
        if not ports.accepts(self._port):
            return f"nobody accepts connections on port {self._port}"
        if self._program is not None and not ports.is_ours(self._port):
            return f"another program listens on port {self._port}"
        path = self._setting.http_ready
        if path is None:
            return None
        connection = http.client.HTTPConnection(ports.HOST, self._port, timeout=READY_ANSWER_S)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"{path} gives no answer: {error}"
        finally:
            connection.close()
        return None if 200 <= status < 300 else f"{path} answers {status}"

    # -- one request ---------------------------------------------------------------------------------------------------

    def _ask(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body). Raises Later when the program does not listen, ProgramFailed when it breaks off, BadOutput."""
        exchange = self._connected()
        try:
            return exchange.post(self._setting.http_path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            self._forget_connection()
            raise answers.ProgramFailed(f"the program gave no answer: {type(error).__name__}: {error}") from None
        except TooMuch:
            self._forget_connection()
            raise BadOutput(f"the program's answer is larger than {MAX_VALUE_BYTES} bytes") from None

    def _connected(self) -> Exchange:
        if self._exchange is not None:
            if self._exchange.is_usable:
                return self._exchange
            self._forget_connection()
        try:
            self._exchange = Exchange(self._port)
        except OSError as error:
            now_s = time.monotonic()
            self._away_since_s = self._away_since_s or now_s
            if now_s - self._away_since_s > AWAY_S:
                self.failed = f"the program has not accepted connections on port {self._port} for {AWAY_S:g} s"
                self._stop.request()
            raise Later(AWAY_LATER_S, f"the program does not accept connections: {error.strerror or error}") from None
        self._away_since_s = None
        return self._exchange

    def _forget_connection(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
