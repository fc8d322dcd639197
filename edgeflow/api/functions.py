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
from edgeflow.api.places import PREFIX, find_function, load_manifest, no_manifest
from edgeflow.api.problems import UnsupportedMediaType, responses
from edgeflow.core import manifest as manifests
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.errors import BadManifest
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


class FunctionView(BaseModel):
    """The status of one function, as this PoP knows it. Instances, inbox and stats are those of this PoP: empty for a function placed elsewhere."""

    namespace: str
    function: str
    revision: str
    at: str = Field(description="PoP where it is placed")
    state: str = Field(
        description="`building`, `starting`, `ready`, `failing`, `stopped`; `unknown` until the runner of that PoP has seen this revision"
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
def apply_manifest(api: ApiDep, request: Request, namespace: str, body: ManifestBody) -> Response:
    """Apply a manifest: its resolved form as JSON (`edgeflow apply` sends that), or YAML whose functions all have an `image:`.

    Applying the same content again changes nothing. Functions that are gone from it are stopped.
    """
    check_namespace(namespace)
    document = _read(api, stated_type(request.headers.get("content-type")), body)
    if document["namespace"] != namespace:
        raise BadManifest(f"the manifest's namespace is {document['namespace']!r}, the path says {namespace!r}")
    document = pin(document, partial(resolve_image, api))
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    for name, function in document["functions"].items():
        if function["bundle"] is not None and system.head(f"bundles/{function['bundle']}") is None:
            raise BadManifest(
                f"functions.{name}: its bundle {function['bundle'][:12]}... is not here",
                hint="PUT it to /v1/bundles/<sha256> first; `edgeflow apply` does so.",
            )
    api.namespace_for_write(namespace)
    key = PREFIX + namespace
    before = system.get(key)
    if before is not None and json.loads(before.data)["functions"] == document["functions"]:
        return _applied("unchanged", document, before.version, 200)
    body_json = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    receipt = system.put(
        key, body_json, content_type="application/json", if_version=before.version if before else None, if_absent=before is None
    )  # fmt: skip
    return _applied("updated" if before else "created", document, receipt.version or "", 200 if before else 201)


@router.get("/v1/functions/{namespace}", responses=responses(404), response_class=JSONResponse)
def get_manifest(api: ApiDep, namespace: str) -> Response:
    """The resolved manifest of a namespace."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(PREFIX + check_namespace(namespace))
    if value is None:
        raise no_manifest(namespace)
    return Response(value.data, media_type="application/json", headers={"ETag": etag(value.version)})


@router.delete("/v1/functions/{namespace}", status_code=204, response_class=Response, responses=responses(404))
def delete_manifest(api: ApiDep, namespace: str) -> Response:
    """Remove the manifest: its functions stop. Channels, values and dead letters stay."""
    system = api.store.namespace(SYSTEM_NAMESPACE)
    key = PREFIX + check_namespace(namespace)
    if system.head(key) is None:
        raise no_manifest(namespace)
    system.delete(key)
    return Response(status_code=204)


@router.get("/v1/functions/{namespace}/{name}", responses=responses(404))
def get_function(api: ApiDep, namespace: str, name: str) -> FunctionView:
    """The status of one function."""
    return _view(api, _Docs(api), namespace, (name, find_function(api, namespace, name)))


def _read(api: Api, content_type: str | None, body: bytes) -> dict[str, Any]:
    """The resolved manifest in a request body. Raises BadManifest or UnsupportedMediaType."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    pops = [api.settings.pop, *api.settings.link.peers]
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


def resolve_image(api: Api, name: str) -> str | None:
    """The id of the image that a name means now: pushed last under it, or so called by this PoP's engine; None: the PoP that runs it finds it."""
    if api.images is not None:
        return api.images.resolve(name)
    stored = ImageLibrary(api.store, api.settings.pop, api.settings.limits.image_bytes).find(name)
    return None if stored is None else stored.id


def _applied(
    status: Literal["created", "updated", "unchanged"], document: Mapping[str, Any], version: str, code: int
) -> Response:
    revisions = {name: function["revision"] for name, function in document["functions"].items()}
    view = AppliedView(namespace=document["namespace"], status=status, version=version, revisions=revisions)
    return JSONResponse(view.model_dump(), code, {"ETag": etag(version)})


def _shared_state(api: Api, namespace: str, name: str, pop: str) -> dict[str, Any]:
    """What the runner of another PoP said about a function, as far as it has arrived here."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(f"states/{namespace}/{name}/{pop}")
    document: dict[str, Any] = json.loads(value.data) if value is not None else {}
    return document


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
    at = function["place"]["pops"][0]
    is_here = api.settings.pop in function["place"]["pops"]
    state = docs.state.get(f"{namespace}/{name}", {}) if is_here else _shared_state(api, namespace, name, at)
    if state.get("revision") != function["revision"]:
        state = {}  # of an older revision: the runner there has not seen this manifest yet
    instances = [
        {"instance": key, **docs.instance_state.get(key, {"state": "starting"}), "revision": document.get("revision")}
        for key, document in docs.instances.items()
        if document.get("namespace") == namespace and document.get("function") == name
    ]
    inbox = None
    if is_here:
        stats = api.store.namespace(namespace).inbox_stats(name, function["revision"])
        inbox = {
            "ready": stats.ready, "delayed": stats.delayed, "claimed": stats.claimed, "turn": stats.turn, "oldest_ms": stats.oldest_ms,
        }  # fmt: skip
    return FunctionView(
        namespace=namespace, function=name, revision=function["revision"], at=at,
        state=state.get("state") or "unknown", reason=state.get("reason") or None,
        last_log_lines=list(state.get("last_log_lines") or []), inputs=[item["channel"] for item in function["inputs"]],
        publish=list(function["publish"]), join=function["join"], instances=instances, inbox=inbox,
        stats=docs.stats.get(f"{namespace}/{name}") if is_here else None,
    )  # fmt: skip
