"""Who waits until something is so in the store (a result, a version, everything a session has seen), and the one thread that looks for them all.

What it is: the bridge from the store's hints ("something changed in this namespace") to asyncio, as `edgeflow.api.tails` is for the release stream.
What it is not: what is waited for; whoever waits says how to look.
What must stay true: no request waits inside one of the shared worker threads; a lost hint costs a poll interval and nothing else; a Redis that goes
away delays the answer and does not end the wait; the thread ends when nobody has waited for a while.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from starlette.concurrency import run_in_threadpool

from edgeflow.api.problems import Busy
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.store.client import Store
from edgeflow.store.replica import ReplicatedNamespace

log = structlog.get_logger(__name__)
Found = TypeVar("Found")

MAX_WAITING = 1000
POLL_S = 0.2
"""Longest time between two looks at the same wait, also without a hint."""
SHORTEST_S = 0.01
"""Shortest time between two looks without a hint."""
IDLE_S = 30.0
"""So long the thread stays after the last wait: the next one finds it listening."""


@dataclass(eq=False, slots=True)
class _Wait:
    handle: ReplicatedNamespace
    look: Callable[[ReplicatedNamespace], Any]
    what: str
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class WaitHub:
    """All waits of one process. `until` is called on the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: list[_Wait] = []
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def waiting(self) -> int:
        """How many requests wait right now."""
        with self._lock:
            return len(self._waits)

    async def until(
        self, store: Store, namespace: str, look: Callable[[ReplicatedNamespace], Found | None], what: str, timeout_s: float
    ) -> Found | None:  # fmt: skip
        """What `look` finds, None when it finds nothing within `timeout_s`. `what` names it in the log.

        Raises what `look` raises (but for Unavailable, after which it looks again), Busy, and Unavailable when this process ends.
        """
        loop = asyncio.get_running_loop()
        handle = store.namespace(namespace)
        wait = _Wait(handle, look, what, loop, loop.create_future())
        with self._lock:
            if len(self._waits) >= MAX_WAITING:
                raise Busy(f"{MAX_WAITING} requests wait at this PoP already")
            if self._stopping.is_set():
                raise Unavailable("this PoP's control process is ending")
            self._waits.append(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(store,), name="waits", daemon=True)
                self._thread.start()
        try:
            deadline_s = loop.time() + timeout_s
            # It may have become so before the thread knew of it.
            with suppress(Unavailable):
                if (found := await run_in_threadpool(look, handle)) is not None:
                    return found
            async with asyncio.timeout_at(deadline_s):
                outcome: Found = await wait.future
                return outcome
        except TimeoutError:
            return None
        finally:
            with self._lock:
                self._waits.remove(wait)

    def stop(self) -> None:
        """End all waits: their requests answer 503 and can be sent again with the same id."""
        self._stopping.set()
        with self._lock:
            waits = list(self._waits)
        for wait in waits:
            _tell(wait, Unavailable("this PoP's control process is ending"))

    def _run(self, store: Store) -> None:
        wakeups = store.wakeups()
        needed_at_s = time.monotonic()
        try:
            while not self._stopping.is_set():
                began_s = time.monotonic()
                # What comes first is the confirmation of the subscription itself, without a name: everything is looked at once more.
                changed = wakeups.wait(POLL_S)
                with self._lock:
                    waits = [wait for wait in self._waits if not changed or wait.handle.name in changed]
                    if self._waits:
                        needed_at_s = time.monotonic()
                    elif time.monotonic() - needed_at_s > IDLE_S:
                        self._thread = None
                        return
                for wait in waits:
                    self._look(wait)
                if not changed and time.monotonic() - began_s < SHORTEST_S:
                    self._stopping.wait(SHORTEST_S)  # no hints come while Redis is away
        finally:
            wakeups.close()

    def _look(self, wait: _Wait) -> None:
        try:
            found = wait.look(wait.handle)
        except Unavailable:
            return  # the store is away; the next look is in a moment
        except EdgeflowError as error:
            _tell(wait, error)
            return
        except Exception as error:
            log.exception("wait_failed", namespace=wait.handle.name, what=wait.what)
            _tell(wait, EdgeflowError(f"{wait.what} cannot be read: {type(error).__name__}"))
            return
        if found is not None:
            _tell(wait, found)


def _tell(wait: _Wait, outcome: object) -> None:
    def tell() -> None:
        if wait.future.done():
            return
        if isinstance(outcome, EdgeflowError):
            wait.future.set_exception(outcome)
        else:
            wait.future.set_result(outcome)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        wait.loop.call_soon_threadsafe(tell)
