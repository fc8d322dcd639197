"""`/v1/policies/{namespace}`: where bodies under a prefix are kept, and which PoP decides its writes; the hand-over of a home.

What it is: the rules as a document with a version, and the move of a home from one PoP to another.
What it is not: what holds where (edgeflow.store.homes), or the strong operations (edgeflow.api.writes).
What must stay true: in a hand-over the old home stops before it says how far its log is, and the new one begins when it has applied all of that; a
move that ends in the middle leaves no home at work, loses nothing, and is completed by asking for it again.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.bodies import SmallBody, parse_json
from edgeflow.api.consistency import ask
from edgeflow.api.context import Api, ApiDep
from edgeflow.api.ekv import etag, version_of
from edgeflow.api.problems import Reserved, responses
from edgeflow.api.times import parse_duration_s
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.policies import Policies, check_prefix, moved, parse_rules, revised
from edgeflow.errors import BadPolicy, EdgeflowError, HomeUnreachable, NotFound, Unavailable, VersionMismatch

router = APIRouter(tags=["policies"])

MOVE_S = 30.0
STEP_S = 5.0
"""Longest one PoP may take for one step of a move."""
AGAIN_S = 0.1


class RulesBody(BaseModel):
    """All rules of a namespace, in place of those it has."""

    model_config = ConfigDict(extra="forbid")

    rules: list[Any] = Field(
        description='{"prefix": "models/", "place": "eager" | "lazy" | {"pin": [...]}, "home": "<pop>" | null}'
    )


class MoveBody(BaseModel):
    """A move of a home."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: str
    to: str = Field(description="The PoP that is to be the home")
    force: bool = Field(default=False, description="Also when the home that is cannot be reached; see docs/ekv.md")


class PoliciesView(BaseModel):
    """The policies of a namespace."""

    namespace: str
    term: int = Field(description="Highest term that was given to a home")
    rules: list[dict[str, Any]]
    version: str | None


class MoveView(BaseModel):
    """What a move did."""

    prefix: str
    home: str
    term: int
    before: str = Field(description="The home that it was")
    forced: bool
    lost: str | None = Field(description="What a forced move may have lost")


def _pops(api: Api) -> list[str]:
    return api.members.fresh().pops()


def _view(namespace: str, policies: Policies, version: str | None) -> PoliciesView:
    document = policies.to_json()
    return PoliciesView(namespace=namespace, term=document["term"], rules=document["rules"], version=version)


def _answer(view: PoliciesView) -> Response:
    headers = {"ETag": etag(view.version)} if view.version else None
    return JSONResponse(view.model_dump(), headers=headers)


def _check(namespace: str) -> None:
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("the namespace 'system' has no policies")


@router.get("/v1/policies/{namespace}", response_model=PoliciesView, responses=responses(400, 404))
def get_policies(
    api: ApiDep, namespace: str, key: Annotated[str | None, Query(description="Only what holds for this key")] = None
) -> Response:
    """The rules of a namespace; none is fine."""
    api.namespace(namespace)
    policies, version = api.policies.load(namespace)
    if key is not None:
        home, place = policies.home(key), policies.place(key)
        rule: dict[str, Any] = {
            "prefix": key,
            "place": {"pin": sorted(place)} if isinstance(place, frozenset) else place,
        }
        rule.update(home=home.pop if home else None, term=home.term if home else 0)
        return _answer(PoliciesView(namespace=namespace, term=policies.term, rules=[rule], version=version))
    return _answer(_view(namespace, policies, version))


@router.put(
    "/v1/policies/{namespace}", response_model=PoliciesView, responses=responses(400, 403, 412, 413, 422),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": RulesBody.model_json_schema()}}}},
)  # fmt: skip
def put_policies(
    api: ApiDep, namespace: str, body: SmallBody, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Set all rules of a namespace: here at once, at the other PoPs within a second of their hearing of it. A home that changes is refused: move it."""
    _check(namespace)
    rules = parse_rules(parse_json(RulesBody, body).rules, _pops(api))
    api.namespace_for_write(namespace)
    wanted = version_of(if_match, "If-Match") if if_match is not None else None
    while True:
        now, version = api.policies.load(namespace)
        if wanted is not None and version != wanted:
            raise VersionMismatch(f"the policies of {namespace!r} have version {version!r}")
        policies = revised(now, rules)
        try:
            return _answer(_view(namespace, policies, api.policies.save(namespace, policies, version)))
        except VersionMismatch:
            if wanted is not None:
                raise


@router.post(
    "/v1/policies/{namespace}/move", response_model=MoveView, responses=responses(400, 403, 404, 409, 422),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": MoveBody.model_json_schema()}}}},
)  # fmt: skip
async def move_home(
    api: ApiDep,
    namespace: str,
    body: SmallBody,
    wait: Annotated[str | None, Query(description="Longest it may take, as in `30s` (default)")] = None,
) -> MoveView:
    """Hand the home of a prefix over to another PoP, without loss. `force`: also when the one that is does not answer."""
    _check(namespace)
    wish = parse_json(MoveBody, body)
    check_prefix(wish.prefix)
    if wish.to not in _pops(api):
        raise BadPolicy(f"{wish.to[:40]!r} is no PoP; there are {', '.join(_pops(api))}")
    deadline_s = asyncio.get_running_loop().time() + (MOVE_S if wait is None else parse_duration_s(wait, "wait"))
    await run_in_threadpool(api.namespace, namespace)
    policies, version = await run_in_threadpool(api.policies.load, namespace)
    rule = policies.rule(wish.prefix)
    if rule is None or not rule.home:
        raise NotFound(
            f"no rule of {namespace!r} gives the prefix {wish.prefix!r} a home",
            hint="Set one with `edgeflow kv policy set`.",
        )
    term = rule.term + 1
    lost = None
    if rule.home == wish.to:
        # The hand-over may have got as far as this, and no further: that it is at work is made sure of.
        term = rule.term
    else:
        try:
            stopped = await _set_home(api, namespace, rule.home, wish, term)
            await _until_applied(api, namespace, wish, stopped, deadline_s)
        except (HomeUnreachable, Unavailable) as error:
            if not wish.force:
                raise HomeUnreachable(
                    f"the hand-over from {rule.home!r} to {wish.to!r} did not come to its end: {error.message}",
                    hint="Ask again; with --force the new home begins without what the old one may have had alone.",
                ) from None
            lost = (
                f"writes that {rule.home} has acknowledged and no other PoP had by now may be decided against by {wish.to}; "
                f"until {rule.home} hears of the move it takes writes and answers strong reads as before"
            )
    await _set_home(api, namespace, wish.to, wish, term)
    while True:
        try:
            await run_in_threadpool(api.policies.save, namespace, moved(policies, wish.prefix, wish.to, term), version)
            break
        except VersionMismatch:
            policies, version = await run_in_threadpool(api.policies.load, namespace)
    return MoveView(prefix=wish.prefix, home=wish.to, term=term, before=rule.home, forced=lost is not None, lost=lost)


async def _set_home(api: Api, namespace: str, at: str, wish: MoveBody, term: int) -> dict[str, Any]:
    """Tell one PoP who is the home; where its log was by then."""
    question = {"pop": at, "ns": namespace, "op": "set-home", "prefix": wish.prefix, "to": wish.to, "term": term}
    try:
        return await ask(api, "home", question, STEP_S)
    except Unavailable as error:
        raise HomeUnreachable(f"PoP {at!r} cannot be reached: {error.message}") from None


async def _until_applied(api: Api, namespace: str, wish: MoveBody, stopped: dict[str, Any], deadline_s: float) -> None:
    """Return when the new home has applied all that the old one has written. Raises Unavailable."""
    if stopped["seq"] == 0:
        return
    clock = asyncio.get_running_loop().time
    question = {"pop": wish.to, "ns": namespace, **{name: stopped[name] for name in ("origin", "epoch", "seq")}}
    while True:
        try:
            if (await ask(api, "has", question, STEP_S))["has"]:
                return
            why = f"{wish.to} has not got all that {stopped['origin']} has written"
        except EdgeflowError as error:
            why = error.message
        if clock() > deadline_s:
            raise Unavailable(why)
        await asyncio.sleep(AGAIN_S)
