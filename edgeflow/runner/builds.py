"""Builds in the background: what revisions are started from, made by a few threads so that the reconciler never waits.

What must stay true: one build per revision at a time; a failed one is tried again after a wait that grows, and says why it failed.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from edgeflow.core.manifest import ResolvedFunction
from edgeflow.errors import EdgeflowError
from edgeflow.runner.driver import Driver, NotHereYet, Prepared
from edgeflow.runner.plan import backoff_ms

log = structlog.get_logger()

Key = tuple[str, str, str]
"""Namespace, function, revision."""

_THREADS = 4
"""More than there are processors: an image that is fetched over a narrow link, or from a PoP that is away, must not hold up what can be built."""
_LAST_LINES = 20


@dataclass(slots=True)
class Build:
    """One build and how it stands."""

    prepared: Prepared | None = None
    error: str = ""
    last_lines: list[str] = field(default_factory=list)
    failures: int = 0
    retry_from_ms: int = 0
    progress: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    future: Future[Prepared] | None = None


class Builds:
    """All builds of a PoP."""

    def __init__(self, driver: Driver, fetch: Callable[[str], bytes | None]) -> None:
        """`fetch` gives the bundle of a digest, None while it has not arrived at this PoP."""
        self._driver = driver
        self._fetch = fetch
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="build")
        self._builds: dict[Key, Build] = {}

    def get(self, namespace: str, name: str, function: ResolvedFunction, now_ms: int) -> Build:
        """The build of this revision, as it stands; starts it when there is none, or when a failed one is due again."""
        build = self._builds.setdefault((namespace, name, function.revision), Build())
        if build.prepared is not None:
            return build
        if build.future is None:
            if now_ms >= build.retry_from_ms:
                build.progress.clear()
                build.future = self._threads.submit(self._run, namespace, name, function, build)
            return build
        if build.future.done():
            self._collect(build, (namespace, name, function.revision), now_ms)
        return build

    def forget_others(self, wanted: set[Key]) -> None:
        """Drop builds of revisions that are not wanted any more."""
        for key in set(self._builds) - wanted:
            if (future := self._builds[key].future) is None or future.done():
                del self._builds[key]

    def redo(self, key: Key) -> None:
        """Build again: what was built has gone (an image that was removed, a folder that was cleaned)."""
        self._builds.pop(key, None)

    def close(self) -> None:
        """Start nothing more; what runs is left to end by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, namespace: str, name: str, function: ResolvedFunction, build: Build) -> Prepared:
        bundle = None
        if function.bundle is not None and function.image is None:
            bundle = self._fetch(function.bundle)
            if bundle is None:
                raise NotHereYet("waiting for the bundle to arrive at this PoP")
        return self._driver.prepare(namespace, name, function, bundle, build.progress.append)

    def _collect(self, build: Build, key: Key, now_ms: int) -> None:
        future, build.future = build.future, None
        assert future is not None
        error = future.exception()
        if error is None:
            build.prepared, build.error, build.last_lines, build.failures = future.result(), "", [], 0
            return
        if isinstance(error, NotHereYet):
            build.progress.append(str(error))
            build.retry_from_ms = now_ms + 200
            return
        build.failures += 1
        build.retry_from_ms = now_ms + max(5_000, backoff_ms(build.failures + 5))
        build.error = (
            f"{error.message} ({error.hint})"
            if isinstance(error, EdgeflowError)
            else f"{type(error).__name__}: {error}"
        )
        build.last_lines = list(getattr(error, "last_lines", [])) or list(build.progress)
        log.warning(
            "build_failed",
            namespace=key[0],
            function=key[1],
            revision=key[2],
            reason=build.error,
            failures=build.failures,
        )
