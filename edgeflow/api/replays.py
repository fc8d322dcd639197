"""`/v1/replays`: what a channel kept, handed to a function once more, for real or as a shadow beside what was recorded."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from edgeflow.api.bodies import SmallBody, parse_json
from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.places import absent, elsewhere, find_function
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.times import parse_moment_ms
from edgeflow.api.views import event_view
from edgeflow.core.channels import check_filter, overlap
from edgeflow.errors import BadName
from edgeflow.store.records import ReplayInfo, ReplaySpec

router = APIRouter(tags=["replays"])

MAX_DIFFS = 500


class ReplayRequest(BaseModel):
    """What to replay."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channel: str = Field(
        description="A channel that the function subscribes to, or a filter; relative to the namespace or in full"
    )
    function: str = Field(description="`name`, or `name@revision`")
    from_: str | None = Field(
        default=None, alias="from", description="RFC 3339, or how long ago, as in 1h; null: all that is kept"
    )
    to: str | None = Field(default=None, description="RFC 3339, or how long ago; null: until now")
    shadow: bool = Field(default=False, description="Keep the outputs for comparison and publish nothing")


class ReplayView(BaseModel):
    """A replay and how far it is."""

    namespace: str
    id: str
    channel: str
    function: str
    revision: str
    from_ms: int | None = Field(description="ms since 1970; null: all that was kept")
    to_ms: int | None
    shadow: bool
    state: str = Field(description="`running`, `done` or `cancelled`")
    read: int = Field(description="Events read from the log")
    invoked: int = Field(description="Invocations that they made")
    committed: int
    dead: int = Field(description="Invocations given up")
    started_ms: int


class ReplayList(BaseModel):
    """The replays of a namespace at this PoP, the newest first."""

    items: list[ReplayView]


class DiffView(BaseModel):
    """One invocation of a shadow beside what was recorded for the same input."""

    invocation: str
    same: bool
    recorded: list[dict[str, Any]] | None = Field(
        description="Outputs at that time; null when they are not kept any more"
    )
    shadow: list[dict[str, Any]] = Field(description="Outputs of the replay")


class DiffList(BaseModel):
    """One page of comparisons."""

    items: list[DiffView]
    next: str | None = Field(description="`after` of the next page; null on the last one")


@router.post(
    "/v1/replays/{namespace}",
    status_code=201,
    response_model=ReplayView,
    responses=responses(400, 404, 413, 421, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ReplayRequest.model_json_schema()}},
        }
    },
)
def start_replay(api: ApiDep, namespace: str, body: SmallBody) -> Response:
    """Start a replay at the PoP where the function is placed; 421 names that PoP. It goes on by itself."""
    asked = parse_json(ReplayRequest, body)
    handle = api.namespace(namespace)
    spec = _spec(api, namespace, asked)
    info = handle.start_replay(spec)
    view = _view(namespace, info)
    return JSONResponse(view.model_dump(), 201, {"Location": f"/v1/replays/{namespace}/{info.id}"})


@router.get("/v1/replays/{namespace}", responses=responses(404))
def list_replays(api: ApiDep, namespace: str) -> ReplayList:
    """The replays of a namespace at this PoP, the newest first."""
    infos = sorted(api.namespace(namespace).replays(), key=lambda info: info.started_ms, reverse=True)
    return ReplayList(items=[_view(namespace, info) for info in infos])


@router.get("/v1/replays/{namespace}/{id}", responses=responses(404))
def get_replay(api: ApiDep, namespace: str, id: str) -> ReplayView:
    """One replay and how far it is."""
    return _view(namespace, _find(api, namespace, id))


@router.get("/v1/replays/{namespace}/{id}/diff", responses=responses(404, 422))
def diff_replay(
    api: ApiDep,
    namespace: str,
    id: str,
    after: Annotated[str, Query(description="`next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_DIFFS)] = 100,
) -> DiffList:
    """What a shadow gave, beside what was recorded for the same inputs. Also while it runs."""
    info = _find(api, namespace, id)
    if not info.shadow:
        raise BadParameter(
            f"replay {id[:80]!r} is not a shadow: its outputs are on the function's channels",
            hint="Start it with shadow to compare.",
        )
    diffs = api.namespace(namespace).replay_diff(id, after, limit)
    items = [
        DiffView(
            invocation=diff.invocation,
            same=diff.same,
            recorded=None if diff.recorded is None else [event_view(event, api.blobs_url) for event in diff.recorded],
            shadow=[event_view(event, api.blobs_url) for event in diff.shadow],
        )
        for diff in diffs
    ]
    return DiffList(items=items, next=items[-1].invocation if len(items) == limit else None)


@router.delete("/v1/replays/{namespace}/{id}", status_code=204, response_class=Response, responses=responses(404))
def cancel_replay(api: ApiDep, namespace: str, id: str) -> Response:
    """End a replay: nothing more is read. Invocations that it made already go on. Ending one that has ended changes nothing."""
    _find(api, namespace, id)
    api.namespace(namespace).cancel_replay(id)
    return Response(status_code=204)


def _spec(api: Api, namespace: str, asked: ReplayRequest) -> ReplaySpec:
    name, at, revision = asked.function.partition("@")
    if at and not revision:
        raise BadParameter(f"function: {asked.function[:80]!r} has no revision behind the @")
    function = find_function(api, namespace, name)
    if (other := elsewhere(api, namespace, name, "replays")) is not None:
        raise other
    try:
        relative = not asked.channel.startswith(namespace + "/")
        channel = check_filter(f"{namespace}/{asked.channel}" if relative else asked.channel)
    except BadName as error:
        raise BadParameter(f"channel: {error.message}", hint=error.hint) from None
    inputs = [item["channel"] for item in function["inputs"]]
    if revision in ("", function["revision"]) and not any(overlap(wanted, channel) for wanted in inputs):
        raise BadParameter(
            f"channel: {namespace}/{name} does not subscribe to {channel!r}",
            hint=f"It subscribes to {', '.join(inputs)}.",
        )
    now = now_ms()
    from_ms = parse_moment_ms(asked.from_, "from", now) if asked.from_ is not None else None
    to_ms = parse_moment_ms(asked.to, "to", now) if asked.to is not None else None
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise BadParameter(f"from ({asked.from_}) is not before to ({asked.to})")
    return ReplaySpec(channel, name, revision or None, from_ms, to_ms, asked.shadow)


def _find(api: Api, namespace: str, id: str) -> ReplayInfo:
    info = api.namespace(namespace).replay(id)
    if info is None:
        raise absent(api, namespace, f"replay {id[:80]!r}", "`edgeflow get replays` lists those of all PoPs.")
    return info


def _view(namespace: str, info: ReplayInfo) -> ReplayView:
    return ReplayView(
        namespace=namespace, id=info.id, channel=info.channel, function=info.function, revision=info.revision, from_ms=info.from_ms,
        to_ms=info.to_ms, shadow=info.shadow, state=info.state, read=info.read, invoked=info.invoked, committed=info.committed,
        dead=info.dead, started_ms=info.started_ms,
    )  # fmt: skip
