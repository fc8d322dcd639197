"""Wakes paused instances the moment work arrives for them.

What it is: a thread of the control process that takes the data process's hints from a list in the store and lets the driver resume.
What it is not: the decision how many are to be awake, which the reconciler makes; it finds out by itself what was woken here.
What must stay true: an instance that was woken is not paused again before the reconciler has heard of it; a hint that is lost is given again.
"""

import threading
import time
from typing import Protocol

import structlog

from edgeflow.core.failpoints import hit
from edgeflow.errors import EdgeflowError, StoreUnavailable
from edgeflow.runner.driver import Driver

log = structlog.get_logger()

WAIT_S = 1.0
FRESH_S = 3.0
"""How long after it was woken an instance is not paused: what the data process says of it is older before that."""
PAUSE_S = 0.5


class Hints(Protocol):
    """See edgeflow.store.client.LocalState."""

    def wait_hint(self, kind: str, timeout_s: float) -> str | None: ...


class Waker:
    """The thread, and the one way to pause an instance."""

    def __init__(self, hints: Hints, driver: Driver) -> None:
        self._hints = hints
        self._driver = driver
        self._lock = threading.Lock()
        self._woken_s: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="waker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=WAIT_S + 5)

    def pause(self, instance: str) -> bool:
        """Pause an instance that has said `parked`, unless it has just been woken; whether it is."""
        with self._lock:
            now_s = time.monotonic()
            self._woken_s = {one: at_s for one, at_s in self._woken_s.items() if now_s - at_s < FRESH_S}
            if instance in self._woken_s:
                return False
            self._driver.pause(instance)
            hit("runner-paused")
            return True

    def resume(self, instance: str) -> None:
        """Let an instance go on; nothing happens when it does."""
        with self._lock:
            self._woken_s[instance] = time.monotonic()
            self._driver.resume(instance)
            hit("runner-resumed")

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                instance = self._hints.wait_hint("wake", WAIT_S)
                if instance:
                    self.resume(instance)
            except StoreUnavailable:
                self._stop.wait(PAUSE_S)
            except (EdgeflowError, OSError) as error:
                log.warning("instance_not_resumed", reason=str(error))
            except Exception:
                log.exception("waker_failed")
                self._stop.wait(PAUSE_S)
