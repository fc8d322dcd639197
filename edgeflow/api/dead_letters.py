"""`/v1/dead-letters`: invocations given up, with reason and inputs; trying them again, and forgetting them.

What it is: pages over the dead letters of this PoP, and two actions on one of them or on all that match.
What must stay true: an action on many takes a bounded time and says where it stopped; what fails is named and stays; a letter that comes back while
an action on many runs is not touched twice.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.places import absent, elsewhere
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.views import InputView, input_view
from edgeflow.errors import EdgeflowError, NotFound, StoreUnavailable, Throttled
from edgeflow.store.records import DeadLetter
from edgeflow.store.replica import ReplicatedNamespace

router = APIRouter(tags=["dead letters"])

PAGE = 500
BUDGET_S = 2.0
"""How long one request works on many letters before it answers with `next`."""
STORE_RETRY_S = 1.0
"""When to ask again after the store went away in the middle."""

FunctionFilter = Annotated[str | None, Query(description="Only of this function")]
ReasonFilter = Annotated[str | None, Query(description="Only with this reason")]
BeforeFilter = Annotated[int | None, Query(ge=0, description="Only given up before this time, ms since 1970")]
ActionCursor = Annotated[str, Query(description="`next` of the answer before")]
ActionLimit = Annotated[int, Query(ge=1, le=100_000, description="Most letters of one request")]


class DeadLetterView(BaseModel):
    """One invocation that was given up at this PoP."""

    namespace: str
    id: str = Field(description="Id of the invocation")
    function: str
    revision: str
    reason: str = Field(description="Stable, for programs")
    detail: str = Field(description="What the last attempt said, or what was missing")
    at_ms: int = Field(description="When it was given up, ms since 1970")
    attempts: int
    inputs: list[InputView]


class DeadLetterList(BaseModel):
    """One page of dead letters, oldest first."""

    items: list[DeadLetterView]
    next: str | None = Field(description="`after` of the next page, only with `namespace`; null on the last one")


class RedrivenView(BaseModel):
    """What redriving one dead letter did."""

    id: str
    as_: str = Field(
        serialization_alias="as",
        description="`invocation`: it is in the inbox again. `arrivals`: its inputs go through the join once more",
    )


class FailedView(BaseModel):
    """A dead letter that stayed."""

    id: str
    code: str
    detail: str


class RedriveView(BaseModel):
    """What redriving all that match did so far."""

    redriven: int
    failed: list[FailedView]
    next: str | None = Field(description="`after` of the next request; null when all that matched have had their turn")
    retry_after_s: float | None = Field(
        default=None, description="It stopped for lack of room: ask again with `next` after so many seconds"
    )
    code: str | None = Field(
        default=None, description="Why it stopped early, for programs: `queue-full`, `store-unavailable`"
    )
    detail: str | None = Field(
        default=None, description="The same for people: it names the function whose inbox is full"
    )


class PurgeView(BaseModel):
    """What purging all that match did so far."""

    purged: int
    next: str | None = Field(description="`after` of the next request; null when all that matched are gone")


@router.get("/v1/dead-letters", responses=responses(404, 421, 422))
def list_dead_letters(
    api: ApiDep,
    namespace: str | None = None,
    after: Annotated[str, Query(description="`next` of the page before; needs `namespace`")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    function: FunctionFilter = None,
    reason: ReasonFilter = None,
    before_ms: BeforeFilter = None,
) -> DeadLetterList:
    """The dead letters of one namespace page by page, or the first `limit` of all."""
    names = [namespace] if namespace is not None else sorted(api.store.namespaces())
    found: list[tuple[str, DeadLetter]] = []
    for name in names:
        matching = _matching(_scan(api.namespace(name), after if namespace else ""), function, reason, before_ms)
        found += [(name, letter) for letter, _ in zip(matching, range(limit + 1), strict=False)]
    if not found and not after and namespace is not None:
        _check_here(api, namespace, function)
    found.sort(key=lambda pair: pair[1].at_ms)
    items = [_view(api, name, letter) for name, letter in found[:limit]]
    return DeadLetterList(items=items, next=items[-1].id if namespace and len(found) > limit else None)


@router.get("/v1/dead-letters/{namespace}/{id}", responses=responses(404))
def get_dead_letter(api: ApiDep, namespace: str, id: str) -> DeadLetterView:
    """One dead letter with its inputs."""
    letter = api.namespace(namespace).dead_letter(id)
    if letter is None:
        raise _absent(api, namespace, id)
    return _view(api, namespace, letter)


@router.post("/v1/dead-letters/{namespace}/redrive", responses=responses(404, 421, 422))
def redrive_dead_letters(
    api: ApiDep,
    namespace: str,
    function: FunctionFilter = None,
    reason: ReasonFilter = None,
    before_ms: BeforeFilter = None,
    after: ActionCursor = "",
    limit: ActionLimit = 10_000,
) -> RedriveView:
    """Try all that match again, for about two seconds; `next` says where to go on. Those given up after the first request are not touched."""
    handle = api.namespace(namespace)
    sweep = _Sweep(handle, function, reason, before_ms, after)
    failed: list[FailedView] = []
    redriven = 0

    def redrive(letters: Sequence[DeadLetter]) -> Collection[str]:
        nonlocal redriven
        (letter,) = letters
        try:
            handle.redrive(letter.id)
        except NotFound:
            return [letter.id]  # somebody else was faster
        except (Throttled, StoreUnavailable):
            raise
        except EdgeflowError as error:
            failed.append(FailedView(id=letter.id, code=error.code, detail=error.message))
            return []
        redriven += 1
        return [letter.id]

    try:
        following = sweep.run(redrive, limit, at_once=1)
    except (Throttled, StoreUnavailable) as error:
        if isinstance(error, StoreUnavailable) and not redriven and not failed:
            raise
        return RedriveView(
            redriven=redriven, failed=failed, next=sweep.cursor, code=error.code, detail=error.message,
            retry_after_s=error.retry_after_s if isinstance(error, Throttled) else STORE_RETRY_S,
        )  # fmt: skip
    if not sweep.matched and not after:
        _check_here(api, namespace, function)
    return RedriveView(redriven=redriven, failed=failed, next=following)


@router.post("/v1/dead-letters/{namespace}/{id}/redrive", responses=responses(404, 409, 429))
def redrive_dead_letter(api: ApiDep, namespace: str, id: str) -> RedrivenView:
    """Try one again: with the revision that the function has now, and with all attempts."""
    try:
        return RedrivenView(id=id, as_=api.namespace(namespace).redrive(id))
    except NotFound:
        raise _absent(api, namespace, id) from None


@router.delete("/v1/dead-letters/{namespace}", responses=responses(404, 421, 422))
def purge_dead_letters(
    api: ApiDep,
    namespace: str,
    function: FunctionFilter = None,
    reason: ReasonFilter = None,
    before_ms: BeforeFilter = None,
    after: ActionCursor = "",
    limit: ActionLimit = 100_000,
) -> PurgeView:
    """Forget all that match, for about two seconds; `next` says where to go on. Those given up after the first request are not touched."""
    handle = api.namespace(namespace)
    sweep = _Sweep(handle, function, reason, before_ms, after)
    purged = 0

    def purge(letters: Sequence[DeadLetter]) -> Collection[str]:
        nonlocal purged
        ids = [letter.id for letter in letters]
        purged += handle.purge(ids)
        return ids

    following = sweep.run(purge, limit, at_once=PAGE)
    if not sweep.matched and not after:
        _check_here(api, namespace, function)
    return PurgeView(purged=purged, next=following)


@router.delete("/v1/dead-letters/{namespace}/{id}", status_code=204, response_class=Response, responses=responses(404))
def purge_dead_letter(api: ApiDep, namespace: str, id: str) -> Response:
    """Forget one."""
    if not api.namespace(namespace).purge([id]):
        raise _absent(api, namespace, id)
    return Response(status_code=204)


class _Sweep:
    """One action on every letter that matches, oldest first, up to those that were there when the first request came.

    `cursor` is `<time of the first request>:<newest letter that was passed over>`: letters that were acted on are gone, so that one still has its place.
    """

    def __init__(
        self, handle: ReplicatedNamespace, function: str | None, reason: str | None, before_ms: int | None, cursor: str
    ) -> None:
        self._handle = handle
        self._function = function
        self._reason = reason
        self._until_ms, self._after = _parse_cursor(cursor) if cursor else (now_ms(), "")
        self._before_ms = before_ms
        self.matched = 0

    @property
    def cursor(self) -> str:
        """Where the next request goes on."""
        return f"{self._until_ms}:{self._after}"

    def run(self, act: Callable[[Sequence[DeadLetter]], Collection[str]], limit: int, *, at_once: int) -> str | None:
        """Call `act` for what matches, `at_once` letters at most, until the end (None), `limit` or the time budget (the cursor).

        `act` returns the ids of those that are gone.
        """
        deadline_s = time.monotonic() + BUDGET_S
        seen: set[str] = set()
        while True:
            page = self._handle.dead_letters(after=self._after, limit=PAGE)
            for first in range(0, len(page), at_once):
                if self.matched and (self.matched >= limit or time.monotonic() > deadline_s):
                    return self.cursor
                chunk = page[first : first + at_once]
                old = [letter for letter in chunk if letter.at_ms <= self._until_ms]
                wanted = [letter for letter in old if letter.id not in seen and self._is_match(letter)]
                if len(wanted) > limit - self.matched:
                    wanted = wanted[: limit - self.matched]
                    old = old[: old.index(wanted[-1]) + 1]
                gone = act(wanted) if wanted else ()
                self.matched += len(wanted)
                seen.update(letter.id for letter in wanted)
                for letter in old:
                    if letter.id not in gone:
                        self._after = letter.id
                if chunk[-1].at_ms > self._until_ms:
                    return None
            if len(page) < PAGE:
                return None

    def _is_match(self, letter: DeadLetter) -> bool:
        return _is_match(letter, self._function, self._reason, self._before_ms)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    until, _, after = cursor.partition(":")
    if not (until.isascii() and until.isdigit() and len(until) <= 15):
        raise BadParameter(
            f"after: {cursor[:80]!r} is not a cursor", hint="Send `next` of the answer before as it came."
        )
    return int(until), after


def _scan(handle: ReplicatedNamespace, after: str) -> Iterator[DeadLetter]:
    while True:
        page = handle.dead_letters(after=after, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def _matching(
    letters: Iterator[DeadLetter], function: str | None, reason: str | None, before_ms: int | None
) -> Iterator[DeadLetter]:
    return (letter for letter in letters if _is_match(letter, function, reason, before_ms))


def _is_match(letter: DeadLetter, function: str | None, reason: str | None, before_ms: int | None) -> bool:
    return (
        function in (None, letter.function)
        and reason in (None, letter.reason)
        and (before_ms is None or letter.at_ms < before_ms)
    )


def _check_here(api: Api, namespace: str, function: str | None) -> None:
    """Nothing matched: raises NotFound for a function that does not exist, AtAnotherPop for one that is placed elsewhere."""
    if function is not None and (error := elsewhere(api, namespace, function, "dead letters")) is not None:
        raise error


def _absent(api: Api, namespace: str, id: str) -> NotFound:
    return absent(api, namespace, f"dead letter {id[:80]!r}", "`edgeflow dlq list` lists those of all PoPs.")


def _view(api: Api, namespace: str, letter: DeadLetter) -> DeadLetterView:
    return DeadLetterView(
        namespace=namespace, id=letter.id, function=letter.function, revision=letter.revision, reason=letter.reason, detail=letter.detail,
        at_ms=letter.at_ms, attempts=letter.attempts, inputs=[input_view(item, api.blobs_url) for item in letter.inputs],
    )  # fmt: skip
