"""The loop of the data process: one thread, sockets, timers, and a flush after each round.

What it is: selectors with callbacks. Handlers of ready sockets only collect; `after_round` hooks then do the batched work.
What must stay true: everything in the data process runs here, so nothing in it needs a lock; a handler that raises is logged and does not stop
the others.
"""

import heapq
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from edgeflow.core.failpoints import hit

log = structlog.get_logger(__name__)

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A callback that is due later."""

    __slots__ = ("callback", "cancelled", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Never call it."""
        self.cancelled = True


class Reactor:
    """The loop. All methods belong to its own thread, except `stop` and `wake`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, READ, self._drain_wake)
        self.waited_s = 0.0
        """Time in which there was nothing to do."""
        self.after_round: list[Callable[[], bool]] = []
        """Called after each round of ready sockets; one that returns True has more to do and wants another round at once."""

    def register(self, fileobj: Any, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` whenever `fileobj` is ready."""
        self._selector.register(fileobj, events, callback)

    def modify(self, fileobj: Any, events: int) -> None:
        """Wait for other events on a registered `fileobj`."""
        self._selector.modify(fileobj, events, self._selector.get_key(fileobj).data)

    def unregister(self, fileobj: Any) -> None:
        """Forget `fileobj`; call it before closing it."""
        self._selector.unregister(fileobj)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, in `delay_s` seconds."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def call_every(self, period_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` every `period_s` seconds until the loop ends."""

        def again() -> None:
            self.call_later(period_s, again)
            callback()

        self.call_later(period_s, again)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in this round, after the sockets."""
        self._soon.append(callback)

    def stop(self) -> None:
        """End `run` after the current round; safe in signal handlers."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """End the current wait."""
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass

    def run(self) -> None:
        """Serve until `stop`."""
        busy = False
        while not self._stopping:
            if busy or self._soon:
                ready = self._selector.select(0)
            else:
                begin_s = time.monotonic()
                ready = self._selector.select(self._wait_s())
                self.waited_s += time.monotonic() - begin_s
            for key, events in ready:
                self._guard(key.data, events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    self._guard(timer.callback)
            for _ in range(len(self._soon)):
                self._guard(self._soon.popleft())
            busy = False
            for hook in self.after_round:
                busy = bool(self._guard(hook)) or busy

    def serve_until(self, fileobj: Any) -> None:
        """Let sockets be read until `fileobj` can be: what they bring is collected for the next round. No timers, no hooks.

        For whoever waits for an answer that takes about as long as reading what has come meanwhile.
        """
        self._selector.register(fileobj, READ, None)
        hit("round-under-way")
        try:
            ready = False
            while not ready:
                for key, events in self._selector.select():
                    if key.data is None:
                        ready = True
                    else:
                        self._guard(key.data, events)
        finally:
            self._selector.unregister(fileobj)

    def _wait_s(self) -> float | None:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _guard(self, callback: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return callback(*arguments)
        except Exception:
            log.exception("handler_failed", handler=getattr(callback, "__qualname__", repr(callback)))
            return False

    def _drain_wake(self, _events: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
