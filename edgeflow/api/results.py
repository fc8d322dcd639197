"""Who waits for the result of an invocation, and the one thread that looks for them all.

What it is: the bridge from the store's hints ("something changed in this namespace") to asyncio, as `edgeflow.api.tails` is for the release stream.
What it is not: the result; that is what `ReplicatedNamespace.result` says.
What must stay true: outputs are readable here when they are told; no request waits inside one of the shared worker threads; a lost hint costs a poll interval and nothing else; a Redis that goes
away delays the answer and does not end the wait; the thread ends when nobody has waited for a while.
"""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool

from edgeflow.api.problems import Busy
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.store.client import Store
from edgeflow.store.records import Result
from edgeflow.store.replica import ReplicatedNamespace

log = structlog.get_logger(__name__)

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
    id: str
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Result]"


class ResultHub:
    """All waits of one process. `wait` is called on the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: list[_Wait] = []
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def waiting(self) -> int:
        """How many requests wait right now."""
        with self._lock:
            return len(self._waits)

    async def wait(self, store: Store, namespace: str, id: str, timeout_s: float) -> Result | None:
        """The result of invocation `id`, None when it has none within `timeout_s`. Raises Busy, Unavailable when this process ends."""
        loop = asyncio.get_running_loop()
        handle = store.namespace(namespace)
        wait = _Wait(handle, id, loop, loop.create_future())
        with self._lock:
            if len(self._waits) >= MAX_WAITING:
                raise Busy(f"{MAX_WAITING} requests wait for results at this PoP already")
            if self._stopping.is_set():
                raise Unavailable("this PoP's control process is ending")
            self._waits.append(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(store,), name="results", daemon=True)
                self._thread.start()
        try:
            deadline_s = loop.time() + timeout_s
            # It may have ended before the thread knew of it.
            with suppress(Unavailable):
                if (result := await run_in_threadpool(find_result, handle, id)) is not None:
                    return result
            async with asyncio.timeout_at(deadline_s):
                return await wait.future
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
            result = find_result(wait.handle, wait.id)
        except Unavailable:
            return  # the store is away; the next look is in a moment
        except EdgeflowError as error:
            _tell(wait, error)
            return
        except Exception as error:
            log.exception("result_unreadable", namespace=wait.handle.name, invocation=wait.id)
            _tell(wait, EdgeflowError(f"the result of {wait.id} cannot be read: {type(error).__name__}"))
            return
        if result is not None:
            _tell(wait, result)


def find_result(handle: ReplicatedNamespace, id: str) -> Result | None:
    """The result of an invocation, None while it has none, or while bodies of its outputs are still on their way to this PoP."""
    result = handle.result(id)
    if result is None:
        return None
    refs = [event.ref for event in result.events if event.ref is not None]
    return result if all(handle.blob_size(ref.digest) is not None for ref in refs) else None


def _tell(wait: _Wait, outcome: Result | EdgeflowError) -> None:
    def tell() -> None:
        if wait.future.done():
            return
        if isinstance(outcome, Result):
            wait.future.set_result(outcome)
        else:
            wait.future.set_exception(outcome)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        wait.loop.call_soon_threadsafe(tell)
