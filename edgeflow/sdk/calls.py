"""One call of the HTTP API, repeated while it cannot be taken: at one PoP, or at the next one that can.

What it is: the loop of tries, and which calls may be tried where.
What it is not: the choice among PoPs (edgeflow.sdk.finder), or what a call means.
What must stay true: a call whose outcome is unknown is repeated only if that is the same call again: at the same PoP because it has an id there, at
another one only if it has an id that every PoP knows, or changes nothing; each token goes to its own PoP.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import httpx

from edgeflow.errors import EdgeflowError, NotFound, StoreFull, Unauthorized, Unavailable
from edgeflow.sdk.finder import Finder
from edgeflow.sdk.pops import Pop

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

_WAITED = frozenset({"behind", "stale", "home-unreachable"})
"""What a PoP has waited for already, as long as it was told to."""
_DOWN = frozenset({"unavailable", "store-unavailable"})
"""The PoP answers, and cannot work."""
_BUSY = frozenset({"busy", "shedding"})
"""The PoP has looked at nothing of the call."""


class Calls:
    """The calls of one client: all at `pops[0]`, or where its `finder` says."""

    def __init__(
        self, pops: Sequence[Pop], retry_s: float, error_of: Callable[[httpx.Response], EdgeflowError], finder: Finder | None
    ) -> None:  # fmt: skip
        self._pops = pops
        self._retry_s = retry_s
        self._error_of = error_of
        self._finder = finder

    @property
    def pop(self) -> Pop:
        """The PoP that calls go to."""
        return self._pops[0 if self._finder is None else self._finder.current]

    def __call__(
        self, method: str, path: str, *, content: bytes | Iterable[bytes] | None = None, headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None, is_repeatable: bool = True, pops: Sequence[Pop] = (), timeout_s: float | None = None,
    ) -> httpx.Response:  # fmt: skip
        """One call. One that is not repeatable is repeated only if it certainly did nothing. `pops`: at these in turn, wherever else calls go."""
        finder = None if pops else self._finder
        turns = itertools.cycle(pops or self._pops[:1]) if finder is None else _tries(self._pops, finder)
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        deadline_s = time.monotonic() + self._retry_s
        is_anywhere = is_repeatable and is_same_anywhere(method, path, headers or {})
        wait_s = FIRST_WAIT_S
        repeated = False
        tried: set[str] = set()
        while True:
            pop = next(turns)
            at = self._pops.index(pop) if finder is not None else 0
            try:
                response = pop.http.request(
                    method, path, content=content, headers=headers, params=params, timeout=timeout
                )
                if response.is_success:
                    if finder is not None:
                        finder.answered(at, response)
                    return response
                error = self._error_of(response)
                if finder is not None and error.code in _DOWN:
                    finder.failed(at, error.message)
                elif finder is not None:
                    finder.answered(at, response)
                if method == "DELETE" and repeated and isinstance(error, NotFound):
                    return response
                did_nothing = error.code in _BUSY or isinstance(error, StoreFull | Unauthorized)
            except httpx.TransportError as trouble:
                error = Unavailable(f"{pop.url} cannot be reached: {trouble!r}")
                did_nothing = isinstance(trouble, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if finder is not None:
                    finder.failed(at, repr(trouble))
            if finder is not None and isinstance(error, Unauthorized):
                finder.refused(at, error.message)
            is_passing = isinstance(error, Unavailable) and error.code not in _WAITED
            is_elsewhere = finder is not None and isinstance(error, Unauthorized) and len(tried) + 1 < len(self._pops)
            if not ((is_passing or is_elsewhere) and (is_repeatable or did_nothing)):
                raise error
            if finder is not None and not (is_anywhere or did_nothing):
                # Whether it was done only this PoP can say, which knows it by its id.
                turns, finder = itertools.cycle([pop]), None
            tried.add(pop.url)
            is_next = finder is not None and len(tried) < len(self._pops)
            if time.monotonic() + (0 if is_next else wait_s) > deadline_s:
                raise error
            if not is_next:
                time.sleep(wait_s * _chance.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
                tried.clear()
            repeated = True


def _tries(pops: Sequence[Pop], finder: Finder) -> Iterator[Pop]:
    """The PoPs to try: each once before any is tried again."""
    while True:
        tried: set[int] = set()
        while (at := next((one for one in finder.order() if one not in tried), None)) is not None:
            tried.add(at)
            yield pops[at]
        if not tried:
            raise Unauthorized("no PoP of the cluster takes this client's tokens")


def is_same_anywhere(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Whether a call that may have been carried out at one PoP is the same call when it is made at another one."""
    if method in ("GET", "HEAD"):
        return True
    if method == "POST":
        # Events have ids that every PoP knows; what else is posted is known where it was decided.
        return "ce-id" in headers and (path.startswith("/v1/channels/") or path.endswith("/invoke"))
    return method in ("PUT", "DELETE") and not ("if-match" in headers or "if-none-match" in headers)
