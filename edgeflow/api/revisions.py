"""`/v1/functions/{namespace}/{name}/revisions` and `/rollback`: what a function was, and going back to it.

What it is: the records that applying leaves in the system namespace (`revisions/<namespace>/<function>/<when>-<revision>`), written in one step with the
manifest, and a manifest with one function as it was in one of them.
What it is not: which revision serves: each PoP decides that by what gets ready there (edgeflow.runner.rollout).
What must stay true: a manifest that changed has its records; of each function the newest KEPT are kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from edgeflow.api.bodies import SmallBody, parse_json
from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.places import PREFIX, find_function, load_manifest, pops_of
from edgeflow.api.problems import responses
from edgeflow.core import manifest as manifests
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.core.manifest_changes import FunctionChange, changes
from edgeflow.errors import NotFound
from edgeflow.store.records import Delete, Put, Write

router = APIRouter(tags=["functions"])

KEPT = 20
"""Records of a function that are kept."""
BY_HEADER = "Edgeflow-By"
MAX_BY = 200
JSON = "application/json"

Change = Literal["created", "changed", "removed", "rolled-back", "again"]


class FieldView(BaseModel):
    """One field of a function that is not what it was."""

    field: str
    before: Any
    after: Any


class ChangeView(BaseModel):
    """One function that is not what it was."""

    function: str
    change: Literal["created", "changed", "removed"]
    fields: list[FieldView]


class RecordView(BaseModel):
    """One line of a function's history."""

    revision: str
    at_ms: int = Field(description="When it was applied, ms since 1970")
    by: str = Field(description="Who said to have applied it")
    pop: str = Field(description="The PoP that took it")
    change: Change
    fields: list[FieldView] = Field(description="What was not as before")
    state: str | None = Field(
        description="Of the newest record of a revision: what it is at its PoP now: `live`, `rolling`, `rolled-back`"
    )
    reason: str | None


class History(BaseModel):
    """The revisions of a function, the newest first."""

    namespace: str
    function: str
    at: str = Field(description="PoP where it is placed")
    live: str | None = Field(description="The revision that serves there, as far as it is known here")
    items: list[RecordView]


class RollbackRequest(BaseModel):
    """What to go back to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str | None = Field(
        default=None, description="A revision of the history, or its first digits; null: the one before"
    )


class RollbackView(BaseModel):
    """What the function is from now on."""

    namespace: str
    function: str
    revision: str
    before: str
    version: str = Field(description="Version of the manifest, its ETag")


@router.get("/v1/functions/{namespace}/{name}/revisions", responses=responses(404))
def history(api: ApiDep, namespace: str, name: str) -> History:
    """What the function was and is, the newest first; also of one that is gone."""
    check_namespace(namespace)
    records = _records(api, namespace, name)
    document = load_manifest(api, namespace) or {"functions": {}}
    function = document["functions"].get(name)
    if not records and function is None:
        find_function(api, namespace, name)
    at = pops_of(function)[0] if function else ""
    state = shared_state(api, namespace, name, at) if function else {}
    seen: set[str] = set()
    items = []
    for record in records:
        revision = record["revision"]
        standing = None if revision in seen or record["change"] == "removed" else _standing(revision, state)
        seen.add(revision)
        reason = (state.get("reason") or None) if standing in ("rolling", "rolled-back") else None
        items.append(
            RecordView(
                **{key: record[key] for key in ("revision", "at_ms", "by", "pop", "change", "fields")},
                state=standing,
                reason=reason,
            )
        )
    return History(namespace=namespace, function=name, at=at, live=state.get("live") or None, items=items)


@router.post(
    "/v1/functions/{namespace}/{name}/rollback",
    responses=responses(400, 404, 409, 412),
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": RollbackRequest.model_json_schema()}}},
    },
)
def rollback(api: ApiDep, request: Request, namespace: str, name: str, body: SmallBody) -> RollbackView:
    """Apply a function as it was; the other functions of the manifest stay as they are. It takes over as any new revision does."""
    asked = parse_json(RollbackRequest, body) if body else RollbackRequest()
    current = find_function(api, namespace, name)
    record = _find(api, namespace, name, str(current["revision"]), asked.to)
    value = api.store.namespace(SYSTEM_NAMESPACE).get(PREFIX + namespace)
    assert value is not None
    before = json.loads(value.data)
    document = {**before, "applied_ms": now_ms(), "functions": {**before["functions"], name: record["spec"]}}
    manifests.check_resolved(document)
    version = write_manifest(api, before, document, by_of(request), value.version, {name: "rolled-back"})
    return RollbackView(
        namespace=namespace, function=name, revision=record["revision"], before=current["revision"], version=version
    )


def by_of(request: Request) -> str:
    """Who says to send a request; nobody checks it."""
    return request.headers.get(BY_HEADER, "")[:MAX_BY] or "operator"


def write_manifest(
    api: Api, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, by: str, version: str | None,
    kinds: Mapping[str, Change] | None = None,
) -> str:  # fmt: skip
    """Write a manifest (None: remove it) with the records of what changed, in one step; its new version. `kinds`: what to call a change, if not what it is.

    Raises VersionMismatch when the manifest is not the one of `version` any more.
    """
    namespace = (after or before or {})["namespace"]
    at_ms = now_ms()
    batch: list[Write] = []
    found = changes(before, after)
    named = {one.function for one in found}
    # Applied again as it is, for another try.
    again = [(name, None) for name in kinds or {} if name not in named]
    for name, change in [*((one.function, one) for one in found), *again]:
        kind: Change = (kinds or {}).get(name) or (change.change if change else "again")
        function = ((after or {}).get("functions") or {}).get(name)
        revision = function["revision"] if function else (before or {})["functions"][name]["revision"]
        record = {
            "revision": revision, "at_ms": at_ms, "by": by, "pop": api.settings.pop, "change": kind, "spec": function,
            "fields": [asdict(field) for field in change.fields if field.field != "revision"] if change else [],
        }  # fmt: skip
        key = f"{_prefix(namespace, name)}{at_ms:013d}-{revision}"
        batch.append(Put(key, _pack(record), content_type=JSON))
        batch += [Delete(old, missing_ok=True) for old in _keys(api, namespace, name)[: -(KEPT - 1)]]
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    if after is None:
        batch.append(Delete(PREFIX + namespace, if_version=version))
    else:
        batch.append(
            Put(PREFIX + namespace, _pack(after), content_type=JSON, if_version=version, if_absent=version is None)
        )
    return system.write(batch).version or ""


def change_views(found: Sequence[FunctionChange]) -> list[ChangeView]:
    """Changes as the API shows them."""
    return [ChangeView.model_validate(asdict(one)) for one in found]


def shared_state(api: Api, namespace: str, name: str, pop: str) -> dict[str, Any]:
    """What the runner of a PoP said about a function, as far as it has arrived here."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(f"states/{namespace}/{name}/{pop}")
    document: dict[str, Any] = json.loads(value.data) if value is not None else {}
    return document


def _standing(revision: str, state: Mapping[str, Any]) -> str | None:
    if state.get("live") == revision:
        return "live"
    if state.get("revision") == revision:
        return "rolled-back" if state.get("state") == "rolled-back" else "rolling"
    return None


def _find(api: Api, namespace: str, name: str, current: str, to: str | None) -> dict[str, Any]:
    """The record to go back to. Raises NotFound that says what there is."""
    kept: dict[str, dict[str, Any]] = {}
    for record in _records(api, namespace, name):
        if record["spec"] is not None:
            kept.setdefault(record["revision"], record)
    others = [revision for revision in kept if revision != current]
    if to is None:
        state = shared_state(api, namespace, name, pops_of(find_function(api, namespace, name))[0])
        before = state.get("live") if state.get("live") in others else next(iter(others), None)
        if before is None:
            raise NotFound(
                f"{namespace}/{name} has no other revision to go back to",
                hint="`edgeflow history` lists what there is.",
            )
        return kept[before]
    matching = [revision for revision in kept if revision.startswith(to)] if to else []
    if len(matching) != 1:
        there = ", ".join(kept) or "none"
        how = "there is no revision" if not matching else "more than one revision begins with"
        raise NotFound(
            f"{how} {to[:40]!r} of {namespace}/{name}; there are {there}",
            hint="`edgeflow history` lists them with their times.",
        )
    return kept[matching[0]]


def _records(api: Api, namespace: str, name: str) -> list[dict[str, Any]]:
    """The newest first."""
    system = api.store.namespace(SYSTEM_NAMESPACE)
    values = [system.get(key) for key in reversed(_keys(api, namespace, name))]
    return [json.loads(value.data) for value in values if value is not None]


def _keys(api: Api, namespace: str, name: str) -> list[str]:
    """The oldest first. A function has KEPT of them, and a few more while two PoPs write at once."""
    system = api.store.namespace(SYSTEM_NAMESPACE)
    return [info.key for info in system.list(_prefix(namespace, name), limit=KEPT * 10)]


def _prefix(namespace: str, name: str) -> str:
    return f"revisions/{namespace}/{name}/"


def _pack(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
