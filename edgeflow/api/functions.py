"""`/v1/functions`: manifests and the status of functions."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from edgeflow.api.binding import stated_type
from edgeflow.api.bodies import ManifestBody
from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.ekv import etag
from edgeflow.api.places import PREFIX, find_function, load_manifest, no_manifest, pops_of
from edgeflow.api.problems import UnsupportedMediaType, responses
from edgeflow.api.revisions import Change, ChangeView, by_of, change_views, shared_state, write_manifest
from edgeflow.core import manifest as manifests
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.core.manifest_changes import FunctionChange, changes
from edgeflow.errors import BadManifest, Unavailable
from edgeflow.runner.library import ImageLibrary
from edgeflow.runner.pins import pin

router = APIRouter(tags=["functions"])

YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
MAX_NAMESPACES = 10_000
MANIFEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}, "application/yaml": {"schema": {"type": "string"}}},
    }
}  # fmt: skip


class AppliedView(BaseModel):
    """What applying a manifest did."""

    namespace: str
    status: Literal["created", "updated", "unchanged"]
    version: str = Field(description="Version of the manifest, its ETag")
    revisions: dict[str, str] = Field(description="Revision of each function")
    missing_images: list[str] = Field(
        description="Ids of images that neither the cluster nor this PoP's engine has; functions wait for them"
    )
    changes: list[ChangeView] = Field(description="What is not as before")


class FunctionView(BaseModel):
    """The status of one function, as this PoP knows it. Instances, inbox and stats are those of this PoP: empty for a function placed elsewhere."""

    namespace: str
    function: str
    revision: str
    at: str = Field(description="PoP that this is about: this one if it is placed here, else the first of `pops`")
    pops: list[str] = Field(description="PoPs where it is placed")
    run: str = Field(description="Who of several PoPs handles an event: `once`, `local` or `every`")
    state: str = Field(
        description="`building`, `starting`, `ready`, `failing`, `rolled-back`, `stopped`; `unknown` until the runner of that PoP has seen this revision"
    )
    live: str | None = Field(
        description="The revision that serves at that PoP: another one while this one is not ready or was rolled back"
    )
    reason: str | None = Field(description="Why it is in that state, when there is something to say")
    last_log_lines: list[str]
    inputs: list[str] = Field(description="Channels it subscribes to")
    publish: list[str] = Field(description="Channels it publishes to")
    join: dict[str, Any] | None
    instances: list[dict[str, Any]] = Field(
        description="Its instances here: id, state, in_flight, committed, failed, ..."
    )
    inbox: dict[str, int] | None = Field(
        description="Invocations here that are ready, delayed, claimed, or wait for their key's turn; age of the oldest ready one, ms"
    )
    stats: dict[str, Any] | None = Field(description="Counts and p50/p99 of platform, waiting and handler time, ms")


class FunctionList(BaseModel):
    """All functions of the cluster, as this PoP knows them."""

    items: list[FunctionView]


@router.get("/v1/functions", responses=responses())
def list_functions(api: ApiDep, namespace: str | None = None) -> FunctionList:
    """The functions of one or all namespaces with their status."""
    system = api.store.namespace(SYSTEM_NAMESPACE)
    names = (
        [namespace]
        if namespace
        else [info.key.removeprefix(PREFIX) for info in system.list(PREFIX, limit=MAX_NAMESPACES)]
    )
    found = [(name, load_manifest(api, name)) for name in names]
    docs = _Docs(api)
    return FunctionList(
        items=[
            _view(api, docs, name, function)
            for name, document in found
            if document
            for function in document["functions"].items()
        ]
    )


@router.put(
    "/v1/functions/{namespace}",
    openapi_extra=MANIFEST_BODY,
    responses={200: {"model": AppliedView}, 201: {"model": AppliedView}, **responses(400, 408, 413, 415)},
)
def apply_manifest(
    api: ApiDep, request: Request, namespace: str, body: ManifestBody, dry_run: bool = False
) -> Response:
    """Apply a manifest: its resolved form as JSON (`edgeflow apply` sends that), or YAML whose functions all have an `image:`.

    Applying the same content again changes nothing, except that a revision which was rolled back is tried again. Functions that are gone from it are
    stopped. `?dry_run=true` says what would change.
    """
    check_namespace(namespace)
    document = _read(api, stated_type(request.headers.get("content-type")), body)
    if document["namespace"] != namespace:
        raise BadManifest(f"the manifest's namespace is {document['namespace']!r}, the path says {namespace!r}")
    document = pin(document, partial(resolve_image, api))
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    value = system.get(PREFIX + namespace)
    before = None if value is None else json.loads(value.data)
    found = changes(before, document)
    if dry_run:
        status: Literal["created", "updated", "unchanged"] = (
            "updated" if found or _policies(before) != _policies(document) else "unchanged"
        )
        return _applied(
            api, "created" if before is None else status, document, found, value.version if value else "", 200
        )
    for name, function in document["functions"].items():
        if function.get("source") is not None and api.settings.runner.dev_dir is None:
            raise BadManifest(
                f"functions.{name}.source: this PoP runs no folders that are being edited",
                hint="That is for clusters of `edgeflow dev`; apply the manifest with `edgeflow apply`.",
            )
        if function["bundle"] is not None and system.head(f"bundles/{function['bundle']}") is None:
            raise BadManifest(
                f"functions.{name}: its bundle {function['bundle'][:12]}... is not here",
                hint="PUT it to /v1/bundles/<sha256> first; `edgeflow apply` does so.",
            )
    api.namespace_for_write(namespace)
    again = _rolled_back(api, namespace, document)
    if value is not None and not found and not again and _policies(before) == _policies(document):
        return _applied(api, "unchanged", document, found, value.version, 200)
    kinds: dict[str, Change] = dict.fromkeys(again, "again")
    version = write_manifest(api, before, document, by_of(request), value.version if value else None, kinds)
    return _applied(api, "updated" if value else "created", document, found, version, 200 if value else 201)


@router.get("/v1/functions/{namespace}", responses=responses(404), response_class=JSONResponse)
def get_manifest(api: ApiDep, namespace: str) -> Response:
    """The resolved manifest of a namespace."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(PREFIX + check_namespace(namespace))
    if value is None:
        raise no_manifest(namespace)
    return Response(value.data, media_type="application/json", headers={"ETag": etag(value.version)})


@router.delete("/v1/functions/{namespace}", status_code=204, response_class=Response, responses=responses(404))
def delete_manifest(api: ApiDep, request: Request, namespace: str) -> Response:
    """Remove the manifest: its functions stop. Channels, values and dead letters stay."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(PREFIX + check_namespace(namespace))
    if value is None:
        raise no_manifest(namespace)
    write_manifest(api, json.loads(value.data), None, by_of(request), value.version)
    return Response(status_code=204)


@router.get("/v1/functions/{namespace}/{name}", responses=responses(404))
def get_function(api: ApiDep, namespace: str, name: str) -> FunctionView:
    """The status of one function."""
    return _view(api, _Docs(api), namespace, (name, find_function(api, namespace, name)))


def _read(api: Api, content_type: str | None, body: bytes) -> dict[str, Any]:
    """The resolved manifest in a request body. Raises BadManifest or UnsupportedMediaType."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    pops = api.members.fresh().pops()
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadManifest("the manifest is not UTF-8") from None
    if kind == "application/json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadManifest(f"the manifest is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise BadManifest("the manifest is not a JSON object")
        manifests.check_resolved(document, known_pops=pops)
        return document
    if kind in YAML_TYPES:
        parsed = manifests.parse(text, known_pops=pops, default_pop=api.settings.pop)
        for name, function in parsed.functions.items():
            if function.build is not None:
                raise BadManifest(
                    f"functions.{name}.build: folders are built by `edgeflow apply`, not over HTTP; give `image:`"
                )
        return manifests.resolve(parsed, {}, applied_ms=now_ms(), default_pop=api.settings.pop)
    raise UnsupportedMediaType(
        f"{kind!r} is not a manifest", hint="Send application/json (resolved) or application/yaml."
    )


def _policies(document: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (document or {}).get("channels") or {}


def _rolled_back(api: Api, namespace: str, document: Mapping[str, Any]) -> list[str]:
    """The functions whose revision in `document` was rolled back: applied again, it is tried again."""
    found = []
    for name, function in document["functions"].items():
        states = [shared_state(api, namespace, name, pop) for pop in pops_of(function)]
        if any(
            state.get("state") == "rolled-back" and state.get("revision") == function["revision"] for state in states
        ):
            found.append(name)
    return found


def resolve_image(api: Api, name: str) -> str | None:
    """The id of the image that a name means now: pushed last under it, or so called by this PoP's engine; None: the PoP that runs it finds it."""
    if api.images is not None:
        return api.images.resolve(name)
    stored = ImageLibrary(api.store, api.settings.pop, api.settings.limits.image_bytes).find(name)
    return None if stored is None else stored.id


def missing_images(api: Api, document: Mapping[str, Any]) -> list[str]:
    """Ids in a manifest of images that neither the cluster nor this PoP's engine has."""
    library = ImageLibrary(api.store, api.settings.pop, api.settings.limits.image_bytes)
    ids = {function["image_id"] for function in document["functions"].values() if function.get("image_id")}
    try:
        return sorted(id for id in ids if library.get(id) is None and not (api.images and api.images.has(id)))
    except Unavailable:
        return []  # the engine does not answer: the PoP that runs a function says what it waits for


def _applied(
    api: Api, status: Literal["created", "updated", "unchanged"], document: Mapping[str, Any], found: list[FunctionChange], version: str,
    code: int,
) -> Response:  # fmt: skip
    revisions = {name: function["revision"] for name, function in document["functions"].items()}
    view = AppliedView(
        namespace=document["namespace"],
        status=status,
        version=version,
        revisions=revisions,
        missing_images=missing_images(api, document),
        changes=change_views(found),
    )
    return JSONResponse(view.model_dump(), code, {"ETag": etag(version)} if version else None)


class _Docs:
    """The status documents that runner and data process keep at this PoP, read once per request."""

    def __init__(self, api: Api) -> None:
        local = api.store.local
        self.state = local.docs("function_state")
        self.stats = local.docs("function_stats")
        self.instances = local.docs("instance")
        self.instance_state = local.docs("instance_state")


def _view(api: Api, docs: _Docs, namespace: str, entry: tuple[str, Mapping[str, Any]]) -> FunctionView:
    name, function = entry
    pops = pops_of(function)
    is_here = api.settings.pop in pops
    at = api.settings.pop if is_here else pops[0]
    state = docs.state.get(f"{namespace}/{name}", {}) if is_here else shared_state(api, namespace, name, at)
    live = state.get("live") or None
    if state.get("revision") != function["revision"]:
        state = {}  # of an older revision: the runner there has not seen this manifest yet
    instances = [
        {"instance": key, **docs.instance_state.get(key, {"state": "starting"}), "revision": document.get("revision")}
        for key, document in docs.instances.items()
        if document.get("namespace") == namespace and document.get("function") == name
    ]
    inbox = None
    if is_here:
        stats = api.store.namespace(namespace).inbox_stats(name, live or function["revision"])
        inbox = {
            "ready": stats.ready, "delayed": stats.delayed, "claimed": stats.claimed, "turn": stats.turn, "oldest_ms": stats.oldest_ms,
        }  # fmt: skip
    return FunctionView(
        namespace=namespace, function=name, revision=function["revision"], at=at, pops=pops,
        run=function["place"].get("run") or "once",
        state=state.get("state") or "unknown", live=live,
        reason=(api.runner_error() if is_here else "") or state.get("reason") or None,
        last_log_lines=list(state.get("last_log_lines") or []), inputs=[item["channel"] for item in function["inputs"]],
        publish=list(function["publish"]), join=function["join"], instances=instances, inbox=inbox,
        stats=docs.stats.get(f"{namespace}/{name}") if is_here else None,
    )  # fmt: skip
