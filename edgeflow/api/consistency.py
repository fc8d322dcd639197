"""What a request asks for beyond a value: how fresh a read must be, how safe a write, and the session that both belong to.

What it is: the query parameters and headers `consistency`, `max_staleness`, `wait`, `durability`, `Edgeflow-Session` and `Idempotency-Key`, and
what has to be waited for before a read or behind a write.
What it is not: the reads and writes (edgeflow.api.ekv), or the home of a key (edgeflow.api.writes).
What must stay true: a read that cannot be as fresh as was asked is refused, never answered with less; the token of an answer covers all that
the answer shows; a write that is durable here is told so even when nothing more could be reached in time.
"""

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Header, Query

from edgeflow.api.context import Api
from edgeflow.api.problems import BadParameter
from edgeflow.api.times import parse_duration_s
from edgeflow.core.cursors import Vector
from edgeflow.core.durability import DURABLE, copies_of
from edgeflow.core.durability import replicated as replicated_class
from edgeflow.core.tokens import Session, parse_session
from edgeflow.errors import Behind, EdgeflowError, NotFound, NotReplicated, Stale, Unavailable
from edgeflow.store.records import Receipt

SESSION_HEADER = "Edgeflow-Session"
DEFAULT_WAIT_S = 5.0
MAX_WAIT_S = 60.0
SYNC_S = 2.0
"""How long (s) the peers may take to say where they stand, when nobody gave a time."""
GRACE_S = 1.0
"""How much longer (s) than its own time an answer of the data process may take to get here."""
STAND_S = 0.25
"""So long what is known of the members' positions is good enough."""
STAND_WAIT_S = 0.5
"""Longest the data process may take to say it; then a token is longer than need be, for a while."""
NO_STAND_S = 2.0
MAX_ID = re.compile(r"[\x21-\x7e]{1,200}")


class Consistency(StrEnum):
    """How a value is read, or a write decided."""

    LOCAL = "local"
    SESSION = "session"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a read is to be answered. `session` None: it belongs to none."""

    consistency: Consistency = Consistency.LOCAL
    session: Session | None = None
    max_staleness_ms: int | None = None
    wait_s: float = DEFAULT_WAIT_S
    waits: bool = False
    """Whether the client said how long to wait: then also for a version that is not there yet."""

    @property
    def is_strong(self) -> bool:
        """Whether the home of the key answers."""
        return self.consistency is Consistency.STRONG


@dataclass(frozen=True, slots=True)
class Writing:
    """How a write is to be done. `copies` is the number of other PoPs that shall have it before the answer."""

    id: str
    session: Session
    is_strong: bool = False
    copies: int = 0
    wait_s: float = DEFAULT_WAIT_S


ConsistencyQuery = Annotated[
    Consistency | None,
    Query(description="`local` (default), `session` (default with a token), or `strong`: decided at the key's home"),
]
WaitQuery = Annotated[str | None, Query(description="Longest wait for what was asked, as in `500ms` or `5s` (default)")]
SessionHeader = Annotated[
    str | None, Header(alias=SESSION_HEADER, description="The token of the session's last answer")
]


def reading(
    namespace: str,
    consistency: ConsistencyQuery = None,
    max_staleness: Annotated[
        str | None,
        Query(description="Refuse (503 `stale`) rather than show what may be older than this, as in `200ms`"),
    ] = None,
    wait: WaitQuery = None,
    edgeflow_session: SessionHeader = None,
) -> Reading:
    """The dependency of a read. Raises BadParameter, BadSession."""
    session = parse_session(edgeflow_session, namespace) if edgeflow_session else None
    if consistency is None:
        consistency = Consistency.LOCAL if session is None else Consistency.SESSION
    if consistency is Consistency.SESSION and session is None:
        session = Session(namespace)
    staleness_ms = None if max_staleness is None else round(_duration_s(max_staleness, "max_staleness", "ms") * 1000)
    return Reading(consistency, session, staleness_ms, parse_wait_s(wait), wait is not None)


def writing(
    namespace: str,
    consistency: ConsistencyQuery = None,
    durability: Annotated[
        str | None, Query(description="`durable` (default), or `replicated:<k>`: also at k other PoPs, bodies included")
    ] = None,
    wait: WaitQuery = None,
    edgeflow_session: SessionHeader = None,
    idempotency_key: Annotated[
        str | None, Header(description="The same key within `limits.id_window_ms` is the same write, done once")
    ] = None,
) -> Writing:
    """The dependency of a write. Raises BadParameter, BadSession."""
    session = parse_session(edgeflow_session, namespace) if edgeflow_session else Session(namespace)
    if idempotency_key is not None and not MAX_ID.fullmatch(idempotency_key):
        raise BadParameter("Idempotency-Key: use 1 to 200 printable ASCII characters without blanks")
    id = f"key|{idempotency_key}" if idempotency_key is not None else f"once|{secrets.token_hex(16)}"
    return Writing(id, session, consistency is Consistency.STRONG, parse_durability(durability), parse_wait_s(wait))


ReadingDep = Annotated[Reading, Depends(reading)]
WritingDep = Annotated[Writing, Depends(writing)]


def parse_durability(text: str | None) -> int:
    """The number of other PoPs that a durability class asks for. Raises BadParameter for a class that there is not."""
    copies = 0 if text is None else copies_of(text)
    if copies is None:
        raise BadParameter(
            f"durability: {str(text)[:40]!r} is not a class",
            hint="Ask for `durable` or `replicated:<k>`, as in replicated:1.",
        )
    return copies


def parse_wait_s(text: str | None) -> float:
    """Seconds of a `wait`. Raises BadParameter."""
    seconds = DEFAULT_WAIT_S if text is None else parse_duration_s(text, "wait")
    if seconds > MAX_WAIT_S:
        raise BadParameter(f"wait: at most {MAX_WAIT_S:g} s, not {seconds:g} s")
    return seconds


def _duration_s(text: str, name: str, unit: str) -> float:
    return parse_duration_s(text + unit if text.strip().isdigit() else text, name)


# -- before a read or a write ------------------------------------------------------------------------------------------


async def ready_to_write(api: Api, namespace: str, how: Writing) -> None:
    """Return when this PoP has what the session has seen: only then is what it writes newer than that, whatever the clocks say. Raises Behind."""
    await _covered(api, namespace, how.session, how.wait_s)


async def ready_to_read(api: Api, namespace: str, how: Reading) -> None:
    """Return when this PoP may answer. Raises Behind, Stale."""
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + how.wait_s
    if how.consistency is Consistency.SESSION and how.session is not None:
        await _covered(api, namespace, how.session, how.wait_s)
    if how.max_staleness_ms is not None and not how.is_strong:
        await _fresh(api, namespace, how.max_staleness_ms, max(0.05, deadline_s - clock()))


async def _covered(api: Api, namespace: str, session: Session, wait_s: float) -> None:
    if session.is_wide:
        # More logs than a token can name: whoever has everything that was written anywhere until now has those too.
        clock = asyncio.get_running_loop().time
        asked_s = clock()
        staleness_ms = await sync(api, namespace, max(wait_s, SYNC_S))
        if staleness_ms is None or staleness_ms > (clock() - asked_s) * 1000 + 1:
            raise Behind(f"the session has seen more logs than PoP {api.settings.pop} can be sure to have")
        return
    if not session.seen:
        return

    def look(_system: object) -> bool | None:
        if not api.store.has_namespace(namespace):
            return None
        return True if session.missing(api.store.namespace(namespace).applied()) == 0 else None

    if await api.waits.until(api.store, namespace, look, "what a session has seen", wait_s) is None:
        raise Behind(f"PoP {api.settings.pop} has not got within {wait_s:g} s what the session has seen elsewhere")


async def _fresh(api: Api, namespace: str, max_staleness_ms: int, wait_s: float) -> None:
    clock = asyncio.get_running_loop().time
    known = await stand(api, namespace)
    if known.staleness_ms is not None and known.staleness_ms + (clock() - known.at_s) * 1000 <= max_staleness_ms:
        return
    staleness_ms = await sync(api, namespace, wait_s)
    if staleness_ms is None or staleness_ms > max_staleness_ms:
        age = "unknown: it has not heard of all others yet" if staleness_ms is None else f"up to {staleness_ms} ms"
        raise Stale(
            f"the age of what PoP {api.settings.pop} has of {namespace!r} is {age}; {max_staleness_ms} ms are allowed"
        )


async def sync(api: Api, namespace: str, wait_s: float) -> int | None:
    """For how long (ms) something may have been written elsewhere that is not readable here, after all others were asked; None: not known."""
    try:
        answer = await ask(api, "sync", {"ns": namespace}, wait_s)
    except Unavailable:
        return None
    staleness_ms: int | None = answer["staleness_ms"]
    return staleness_ms


# -- tokens ------------------------------------------------------------------------------------------------------------


async def token_header(api: Api, session: Session, seen: Vector) -> dict[str, str]:
    """The header with the session's token after it has seen `seen`, without what every member has passed."""
    grown = session.with_vector(seen)
    if len(grown.seen) > 1:
        # What all had passed a while ago they have passed: the newest need not be waited for.
        grown = grown.pruned((await last_stand(api, session.namespace)).passed)
    return {SESSION_HEADER: grown.text()}


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the cluster stands in a namespace, as this PoP's data process knows it."""

    passed: Vector
    staleness_ms: int | None
    at_s: float
    is_known: bool = True


async def last_stand(api: Api, namespace: str) -> Stand:
    """The stand of a namespace as it was known last, for what must not wait for the data process; it is asked for anew meanwhile."""
    known: Stand | None = api.stands.get(namespace)
    if known is None:
        return await stand(api, namespace)
    if _is_old(known) and namespace not in api.asking:
        api.asking[namespace] = asyncio.create_task(_ask_stand(api, namespace))
    return known


async def stand(api: Api, namespace: str) -> Stand:
    """The stand of a namespace, at most STAND_S old; one that says nothing when the data process does not answer."""
    known: Stand | None = api.stands.get(namespace)
    return await _ask_stand(api, namespace) if known is None or _is_old(known) else known


def _is_old(known: Stand) -> bool:
    return asyncio.get_running_loop().time() - known.at_s >= (STAND_S if known.is_known else NO_STAND_S)


async def _ask_stand(api: Api, namespace: str) -> Stand:
    now_s = asyncio.get_running_loop().time()
    try:
        answer = await ask(api, "stand", {"ns": namespace}, STAND_WAIT_S)
        passed = {(origin, epoch): seq for origin, epoch, seq in answer["passed"]}
        known = Stand(passed, answer["staleness_ms"], now_s)
    except EdgeflowError:
        before: Stand | None = api.stands.get(namespace)
        known = Stand({}, None, now_s, is_known=False)
        if before is not None:
            # What it was complete as of it still is: only older by now.
            aged_ms = None
            if before.staleness_ms is not None:
                aged_ms = before.staleness_ms + round((now_s - before.at_s) * 1000)
            known = Stand(before.passed, aged_ms, now_s, is_known=False)
    finally:
        api.asking.pop(namespace, None)
    api.stands[namespace] = known
    return known


# -- behind a write ----------------------------------------------------------------------------------------------------


async def replicated(api: Api, namespace: str, receipt: Receipt, copies: int, wait_s: float) -> dict[str, Any]:
    """The receipt as it is sent: of the class that was asked for. Raises NotReplicated with the durable one when the time is over."""
    document = receipt.to_json()
    if copies == 0 or receipt.class_ != DURABLE:
        return document
    arguments = {
        "ns": namespace, "origin": receipt.origin, "epoch": receipt.epoch, "seq": receipt.seq, "k": copies,
        "timeout_ms": round(wait_s * 1000),
    }  # fmt: skip
    try:
        answer = await ask(api, "await", arguments, wait_s + GRACE_S)
        confirmed, why = int(answer["confirmed"]), ""
    except EdgeflowError as error:
        confirmed, why = 0, f" ({error.message})"
    if confirmed < copies:
        raise NotReplicated(
            f"{confirmed} of {copies} other PoPs have confirmed the write within {wait_s:g} s{why}",
            details={"receipt": document, "confirmed": confirmed},
        )
    return {**document, "class": replicated_class(confirmed)}


def check_copies(api: Api, copies: int) -> None:
    """Raises BadParameter when there are not as many other PoPs as shall have a write."""
    others = len(api.members.fresh().others())
    if copies > others:
        raise BadParameter(f"durability: replicated:{copies} is more than the {others} other PoPs that there are")


# -- the data process --------------------------------------------------------------------------------------------------


async def ask(api: Api, kind: str, arguments: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """An answer of this PoP's data process. Raises what it refuses with, and Unavailable."""
    future = asyncio.wrap_future(api.store.mailbox.submit(kind, arguments, timeout_s))
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            return await future
    except TimeoutError:
        raise Unavailable(f"the data process of this PoP did not answer {kind!r} within {timeout_s:g} s") from None


def absent(api: Api, namespace: str, key: str, version: str | None) -> NotFound:
    """What is said of a value that is not here."""
    at = f" in version {version!r}" if version else ""
    return NotFound(f"there is no value {key!r}{at} in namespace {namespace!r} at PoP {api.settings.pop}")
