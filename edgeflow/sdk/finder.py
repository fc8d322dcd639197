"""Measures the PoPs of a cluster, and says which one a client is to use.

What it is: one thread for each PoP that asks it how it is (`GET /v1/load`), the choice of edgeflow.core.nearest over the answers, and the news of a move.
What it is not: the rules of the choice, or the calls themselves (edgeflow.sdk.calls), which tell here what became of them.
What must stay true: a PoP that hangs holds up nobody: what is under way there is cut when it is given up; a client that does nothing measures seldom.
"""

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from edgeflow.core.nearest import Choice, Weights
from edgeflow.sdk.pops import Pop

log = logging.getLogger(__name__)
_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

BUSY_EVERY_S = 0.7
"""Time between two measurements of the PoP in use, while it is in use."""
OTHER_EVERY_S = 2.0
"""Of the others meanwhile."""
IDLE_EVERY_S = 10.0
"""Of all of them, when nothing was asked for IDLE_AFTER_S and nothing is subscribed to."""
IDLE_AFTER_S = 10.0
LEAST_WAIT_S, MOST_WAIT_S = 0.4, 3.0
"""How long a measurement may take: four times what it usually does, within these."""
SOON_S = 0.05
"""When a measurement failed once it is repeated so soon."""
FIRST_S = 0.3
"""At the beginning, how long others may take to answer when one has."""
LOAD_PATH = "/v1/load"
MOVE_HEADER = "edgeflow-move"


class Finder:
    """One client's choice. Thread-safe."""

    def __init__(self, pops: Sequence[Pop], weights: Weights | None = None) -> None:
        self._pops = pops
        self._lock = threading.Lock()
        self._choice = Choice(len(pops), weights)
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._used_s = time.monotonic()
        self._wake = [threading.Event() for _ in pops]
        self._news = threading.Event()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def start(self, timeout_s: float) -> bool:
        """Measure all, and take the best; False when none answered within `timeout_s`."""
        for at in range(len(self._pops)):
            thread = threading.Thread(target=_run, args=(weakref.ref(self), at), name=f"finder-{at}", daemon=True)
            self._threads.append(thread)
            thread.start()
        deadline_s = time.monotonic() + timeout_s
        first_s: float | None = None
        while True:
            now_s = time.monotonic()
            with self._lock:
                known = [one for one in self._choice.estimates if one.is_usable]
                is_complete = all(
                    one.latency_ms is not None or one.failures or one.refused for one in self._choice.estimates
                )
            if known and first_s is None:
                first_s = now_s
            if known and (is_complete or now_s - (first_s or now_s) >= FIRST_S):
                break
            if now_s >= deadline_s:
                return False
            self._news.wait(0.02)
            self._news.clear()
        with self._lock:
            self._choice.begin(time.monotonic())
        return True

    def close(self) -> None:
        """Measure no more."""
        self._closed = True
        for wake in self._wake:
            wake.set()

    # -- for calls -----------------------------------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """The PoP to use."""
        with self._lock:
            return self._choice.current

    def order(self) -> list[int]:
        """The PoPs to try, the one to use first."""
        now_s = time.monotonic()
        was_idle, self._used_s = now_s - self._used_s > IDLE_AFTER_S, now_s
        self._look()
        with self._lock:
            if was_idle:
                self._wake[self._choice.current].set()
            return self._choice.order(now_s)

    def answered(self, at: int, response: httpx.Response) -> None:
        """A call was answered."""
        with self._lock:
            self._choice.answered(at)
        if MOVE_HEADER in response.headers:
            self.told_to_move(at)

    def failed(self, at: int, why: object, waited_ms: float | None = None) -> None:
        """A call was not answered, or the PoP cannot work."""
        now_s = time.monotonic()
        with self._lock:
            was_usable = self._choice.estimates[at].is_usable
            self._choice.failed(at, now_s, _chance.random(), waited_ms)
            known = self._choice.estimates[at]
        if was_usable and not known.is_usable:
            log.warning("%s does not answer: %s", self._pops[at].url, why)
            self._pops[at].lines.cut()
        if known.breaker != "open":
            self._wake[at].set()
        self._look()

    def refused(self, at: int, why: str) -> None:
        """The PoP does not take this client."""
        with self._lock:
            is_news = not self._choice.estimates[at].refused
            self._choice.refused(at, why)
        if is_news:
            log.warning("%s does not take this client: %s", self._pops[at].url, why)
        self._look()

    def told_to_move(self, at: int) -> None:
        """The PoP asks its clients to go elsewhere."""
        with self._lock:
            self._choice.told_to_move(at, time.monotonic())
        self._look()

    def listen(self, listener: "Listener") -> None:
        """Tell `listener` when the PoP to use is another one; it is not kept alive for that."""
        self._listeners.add(listener)

    def table(self) -> list[dict[str, Any]]:
        """What is known of each PoP, the best first."""
        now_s = time.monotonic()
        with self._lock:
            choice = self._choice
            rows = [
                {
                    "url": pop.url, "current": at == choice.current, "latency_ms": known.latency_ms, "jitter_ms": known.jitter_ms, "load": known.load,
                    "cost": known.cost, "state": "refused" if known.refused else known.breaker,
                    "score": choice.score(at, now_s) if known.is_usable else None,
                }
                for at, (pop, known) in enumerate(zip(self._pops, choice.estimates, strict=True))
            ]  # fmt: skip
        return sorted(rows, key=lambda row: (row["score"] is None, row["score"] or 0.0))

    # -- measuring -----------------------------------------------------------------------------------------------------

    def measure(self, at: int) -> None:
        """Ask one PoP how it is."""
        pop = self._pops[at]
        with self._lock:
            known = self._choice.estimates[at]
        begin_s = time.monotonic()
        try:
            answer = pop.http.get(LOAD_PATH, timeout=known.patience_s(LEAST_WAIT_S, MOST_WAIT_S))
        except (httpx.TransportError, RuntimeError) as trouble:
            if not self._closed:
                is_slow = isinstance(trouble, httpx.TimeoutException)
                self.failed(at, repr(trouble), (time.monotonic() - begin_s) * 1000 if is_slow else None)
            return
        took_ms = (time.monotonic() - begin_s) * 1000
        if answer.status_code in (401, 403):
            self.refused(at, f"HTTP {answer.status_code}: another token is needed there")
        elif answer.status_code >= 500:
            self.failed(at, f"HTTP {answer.status_code}")
        else:
            load, cost = _figures(answer)
            with self._lock:
                self._choice.measured(at, took_ms, load, cost)
            if MOVE_HEADER in answer.headers:
                self.told_to_move(at)
            self._look()
        self._news.set()

    def wait_s(self, at: int) -> float:
        """How long to wait before the next measurement of a PoP."""
        now_s = time.monotonic()
        with self._lock:
            known, current = self._choice.estimates[at], self._choice.current
        if known.breaker == "open":
            return max(SOON_S, known.paused_until_s - now_s)
        if known.failures:
            return SOON_S
        if now_s - self._used_s > IDLE_AFTER_S and not any(one.is_listening for one in list(self._listeners)):
            return IDLE_EVERY_S * _chance.uniform(0.8, 1.2)
        return (BUSY_EVERY_S if at == current else OTHER_EVERY_S) * _chance.uniform(0.8, 1.0)

    def _look(self) -> None:
        with self._lock:
            before = self._choice.current
            now = self._choice.look(time.monotonic(), _chance.random())
        if now != before:
            log.warning("going on at %s, not at %s", self._pops[now].url, self._pops[before].url)
        for listener in list(self._listeners):
            listener.chosen(now)
        self._news.set()


class Listener:
    """Somebody who holds a connection for long."""

    is_listening = True

    def chosen(self, at: int) -> None:
        """This is the PoP to use now; said again and again."""


def _run(finder_of: Callable[[], Finder | None], at: int) -> None:
    """The thread of one PoP: it ends when the finder is closed, or nobody has it any more."""
    while (finder := finder_of()) is not None and not finder._closed:
        finder.measure(at)
        wake, wait_s = finder._wake[at], finder.wait_s(at)
        del finder
        if wake.wait(wait_s):
            wake.clear()
            # What failed is asked again, though not at once: others say so too.
            time.sleep(SOON_S)


def _figures(answer: httpx.Response) -> tuple[float | None, float | None]:
    try:
        document = answer.json()
        return max(0.0, float(document["load"])), max(0.0, float(document["cost"]))
    except (ValueError, KeyError, TypeError):
        return None, None
