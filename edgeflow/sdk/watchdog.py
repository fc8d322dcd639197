"""The watchdog of an instance: a thread that looks at the handler from outside.

What it is: it sends what was held back before a handler that turned out to be long, and ends the process when an attempt ran too long.
What it is not: the one that measures the timeout of a durable attempt: that is the agent, which says `kill`.
What must stay true: it ends the process although the handler hangs, nobody reads the log, or the agent is gone; while no handler runs it touches nothing.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeflow.sdk.connection import Connection, ConnectionLost
from edgeflow.sdk.ending import EXIT_KILLED
from edgeflow.sdk.inputs import BodyCache
from edgeflow.sdk.raised import TRACEBACK_BYTES

if TYPE_CHECKING:
    from edgeflow.sdk.runtime import Instance

KILLED_S = 1.0
AFTER_S = 1.0
EVERY_S = 0.5
BATCHES_EVERY_S = 0.02


class Watchdog:
    """Looks at one instance; `exit_now` ends the process from any thread."""

    def __init__(self, instance: "Instance", cache: BodyCache, exit_now: Callable[[int], Any]) -> None:
        self._instance = instance
        self._cache = cache
        self._exit_now = exit_now
        self._main_thread = threading.get_ident()
        self._ended = threading.Event()
        self.connection: Connection | None = None
        """The one that the handler's attempt came through."""
        self.running_since_s = 0.0
        """Since when a handler runs; 0 while none does."""
        self.batching = False
        """Whether several invocations came at once lately: only then can a commit be held back behind another handler."""

    def start(self) -> None:
        """From the thread that will run the handler."""
        self._main_thread = threading.get_ident()
        threading.Thread(target=self._watch, name="edgeflow-watchdog", daemon=True).start()

    def end(self) -> None:
        """There will be no more handlers to look at."""
        self._ended.set()

    def killed(self) -> None:
        """The attempt that runs now has run too long: say so, and end the process. From any thread."""
        # Whoever holds up the log (nobody reads it, and the handler hangs on writing to it) does not hold up the end.
        end = threading.Timer(KILLED_S, self._exit_now, (EXIT_KILLED,))
        end.daemon = True
        try:
            end.start()
        except RuntimeError:
            pass  # the function has used up its threads: the log is all there is to hope for
        frame = sys._current_frames().get(self._main_thread)
        where = "".join(traceback.format_stack(frame)[-12:]) if frame is not None and self.running_since_s else ""
        self._instance.log.error(
            "killed",
            reason="the attempt ran longer than its timeout",
            timeout_ms=self._instance.info.timeout_ms,
            handler_was_at=where[-TRACEBACK_BYTES:],
        )
        self._tell_of_the_end(where[-TRACEBACK_BYTES:])
        end.cancel()
        self._exit_now(EXIT_KILLED)

    def _watch(self) -> None:
        instance = self._instance
        idle = 0
        while not self._ended.wait(BATCHES_EVERY_S if self.batching else EVERY_S):
            since_s, connection = self.running_since_s, self.connection
            idle = 0 if since_s else idle + 1
            if idle > EVERY_S / BATCHES_EVERY_S:
                self.batching = False
            if not since_s:
                continue
            ran_s = time.monotonic() - since_s
            timeout_s = instance.info.timeout_ms / 1000
            if instance.grant is not None and since_s == self.running_since_s and ran_s > timeout_s:
                # The agent does not know of this event: nobody else looks at the clock.
                self.killed()
            if connection is None:
                continue
            try:
                if ran_s >= BATCHES_EVERY_S:
                    connection.flush()
                if ran_s >= AFTER_S:
                    connection.watch(EVERY_S)
            except (ConnectionLost, OSError):
                pass
            if connection.lost and since_s == self.running_since_s and ran_s > timeout_s + AFTER_S:
                # The agent that would say `kill` is gone or has given up on this socket.
                self.killed()

    def _tell_of_the_end(self, where: str) -> None:
        """To the witness, of an attempt that ends with this process. Bodies come from the cache: the connection belongs to the handler, which hangs."""
        instance, current = self._instance, self._instance.current
        if instance.witness is None or current is None:
            return
        work, items = current
        timeout_ms = instance.info.timeout_ms
        message = {
            "t": "fail", "invocation": work.invocation, "attempt": work.attempt, "traceback": where,
            "error": f"TimeoutError: it ran longer than {timeout_ms} ms",
        }  # fmt: skip
        instance.witness.ended(instance.info, instance.current_log, items, message, timeout_ms / 1000, self._cache)
