"""The manifest of an application: from YAML to the resolved form that every PoP reads.

What it is: one error that names everything that is wrong with its line and its fix (`parse`), the resolved form (`resolve`, `check_resolved`)
with a revision per function, and the names that the rest of the code uses. The fields are in manifest_models, the rules over them in
manifest_scalars and manifest_rules, the resolved form in manifest_resolved, the words for problems in manifest_problems.
What it is not: a place that looks at folders, images or clusters: what must be known about them is passed in.
What must stay true: a field that is not implemented is refused by name, never ignored; the same function content has the same revision everywhere;
every channel of a resolved manifest lies in its namespace; `manifest.schema.json` is generated from the models.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgeflow.core import manifest_models as models
from edgeflow.core import manifest_wiring as wirings
from edgeflow.core import yamldoc
from edgeflow.core.manifest_contracts import contract_rules, mqtt_rules
from edgeflow.core.manifest_models import Function, Manifest
from edgeflow.core.manifest_places import place_rules
from edgeflow.core.manifest_problems import MISPLACED, NOT_AVAILABLE, Problem, is_key_type, problem_of, raise_problems
from edgeflow.core.manifest_resolved import (
    ResolvedFunction,
    ResolvedInput,
    ResolvedJoin,
    ResolvedManifest,
    check_resolved,
    revision_of,
)
from edgeflow.core.manifest_rules import Finding, direct_rules, gate_rules, policy_rules, scale_rules, wiring_rules
from edgeflow.core.manifest_scalars import PolicyFilter, duration_ms, size_bytes
from edgeflow.core.manifest_wiring import Wiring, input_name
from edgeflow.errors import BadManifest

__all__ = [
    "MISPLACED",
    "NOT_AVAILABLE",
    "Artifact",
    "Function",
    "Manifest",
    "ResolvedFunction",
    "ResolvedInput",
    "ResolvedJoin",
    "ResolvedManifest",
    "check_resolved",
    "duration_ms",
    "input_name",
    "json_schema",
    "parse",
    "resolve",
    "revision_of",
    "size_bytes",
]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What runs: the archive of a folder, an image, or a folder as it is (resolved form: `source`). One of them is given."""

    bundle: str | None = None
    image: str | None = None
    source: Mapping[str, str] | None = None
    image_id: str | None = None
    """Which image the name means, where that is known already."""


def parse(
    source: str | Mapping[str, Any],
    *,
    name: str = "edgeflow.yaml",
    known_pops: Iterable[str] | None = None,
    known_namespaces: Iterable[str] = (),
    look: Callable[[str, bool], str | None] | None = None,
    default_pop: str | None = None,
) -> Manifest:
    """Read a manifest from YAML text or from its data.

    `known_pops`: the cluster's PoPs, None = not known, do not check. `known_namespaces`: namespaces of other applications; a
    channel that starts with one of them is taken for a mistake. `look`: says what is wrong with a build folder (and whether it
    needs a handler.py), or None.
    `default_pop`: where a function without `place:` runs; without it `place:` is needed.
    Raises BadManifest that names everything that is wrong, one line each: line, path, problem; fix.
    """
    if isinstance(source, str):
        document = yamldoc.load(source)
    else:
        document = yamldoc.Document(data=dict(source))
    problems = [Problem(flaw.line, flaw.path, flaw.text) for flaw in document.flaws]
    data = document.data
    manifest: Manifest | None = None
    if not isinstance(data, dict):
        if not problems:
            problems.append(Problem(None, (), "is not a map; it starts with `namespace: <name>` and `functions:`"))
    elif not (document.flaws and not document.lines):
        context = {
            "namespace": data.get("namespace"),
            "pops": None if known_pops is None else sorted(known_pops),
            "namespaces": frozenset(known_namespaces) - {str(data.get("namespace"))},
            "look": look,
        }
        try:
            manifest = Manifest.model_validate(data, context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
            # A key that is not text is already among the document's flaws.
            problems += [problem_of(detail, document) for detail in details if not is_key_type(detail)]
        problems += [
            Problem(document.line_of(path), path, text) for path, text in _cross_checks(data, context, default_pop)
        ]
    if problems or manifest is None:
        raise_problems(name, problems)
    return manifest


def resolve(
    manifest: Manifest, artifacts: Mapping[str, Artifact], *, applied_ms: int, default_pop: str | None = None
) -> dict[str, Any]:
    """The resolved form (JSON-able) of a manifest whose functions have been built.

    `artifacts`: what each function with `build:` became; those with `image:` or `bundle:` need none. `applied_ms`: wall clock, ms since 1970.
    Raises BadManifest when a function has no artifact or no place.
    """
    functions: dict[str, Any] = {}
    for name, function in manifest.functions.items():
        artifact = artifacts.get(name, Artifact(function.bundle, function.image, image_id=function.image_id))
        if artifact.bundle is None and artifact.image is None and artifact.source is None:
            raise BadManifest(f"functions.{name}.build: was not built; run `edgeflow apply`, or give `image:`")
        pops = function.place.pops if function.place else [default_pop] if default_pop else []
        if not pops:
            raise BadManifest(f"functions.{name}.place: is missing; name one PoP: place: {{pops: [<pop>]}}")
        content: dict[str, Any] = {
            "contract": function.contract,
            "bundle": artifact.bundle,
            "image": artifact.image,
            **({"source": dict(artifact.source)} if artifact.source else {}),
            **({"image_id": artifact.image_id} if artifact.image_id is not None else {}),
            **_contract_of(function),
            **wirings.wire(function).content(),
            "context": dict(function.context),
            "retry": {
                "attempts": function.retry.attempts,
                "backoff_ms": function.retry.backoff,
                "timeout_ms": function.retry.timeout,
            },
            "limits": {
                "cpus": float(function.limits.cpus),
                **function.limits.model_dump(exclude_none=True, exclude={"cpus"}),
            },
            **_confinement(function),
            "env": dict(function.env),
            "scale": _scale(function.scale),
            "place": _place(pops, function.place),
        }
        if function.rollout != models.Rollout():
            content["rollout"] = {"deadline_ms": function.rollout.deadline}
        functions[name] = {"revision": revision_of(content), **content}
    resolved = {"namespace": manifest.namespace, "applied_ms": applied_ms, "functions": functions}
    policies = wirings.policies(manifest)
    return {**resolved, "channels": policies} if policies else resolved


def _confinement(function: Function) -> dict[str, Any]:
    """What its instances may reach; parts that say nothing are absent."""
    content: dict[str, Any] = {} if function.network == "none" else {"network": function.network}
    if function.gpus is not None:
        content["gpus"] = function.gpus
    if function.secrets:
        content["secrets"] = list(function.secrets)
    return content


def _contract_of(function: Function) -> dict[str, Any]:
    """What the resolved form says of a contract that is not `sdk`; nothing else, so that other functions keep their revisions."""
    said: dict[str, Any] = {}
    if function.command is not None:
        said["command"] = list(function.command)
    if function.contract == "http":
        said["http"] = (function.http or models.Http()).model_dump()
    if function.contract == "stdio" and function.stdio is not None:
        said["stdio"] = function.stdio.model_dump()
    return said


def _place(pops: list[str], place: models.Place | None) -> dict[str, Any]:
    # Only what is said, so that functions without it keep their revisions.
    return {"pops": pops} if place is None or place.run == "once" else {"pops": pops, "run": place.run}


def _scale(scale: models.Scale) -> dict[str, int]:
    if scale.min is None and scale.max is None:
        return {"instances": scale.instances}
    least = 1 if scale.min is None else scale.min
    most = max(1, least) if scale.max is None else scale.max
    pool = (1 if least == 0 else 0) if scale.pool is None else scale.pool
    return {"min": least, "max": most, "idle_ms": scale.idle, "pool": pool}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the YAML form, as shipped in manifest.schema.json."""
    schema = Manifest.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgeflow manifest"}


# ------------------------------------------------------------------ rules over the raw data

_SUBSCRIBE: TypeAdapter[Any] = TypeAdapter(models.Subscribe)
_LATEST: TypeAdapter[Any] = TypeAdapter(models.Latest)
_STATE: TypeAdapter[Any] = TypeAdapter(models.State | None)
_ORDERED: TypeAdapter[Any] = TypeAdapter(models.OrderedOrNot)
_PUBLISH: TypeAdapter[Any] = TypeAdapter(models.Publish)
_POLICY: TypeAdapter[Any] = TypeAdapter(dict[PolicyFilter, models.Policy])


def _cross_checks(data: Mapping[str, Any], context: dict[str, Any], default_pop: str | None) -> Iterator[Finding]:
    """Rules over more than one field. Works on the raw data, so that they are reported beside the errors of single fields."""
    functions = data.get("functions")
    named = {str(name): one for name, one in functions.items()} if isinstance(functions, dict) else {}
    wired: dict[str, Wiring] = {}
    for name, function in named.items():
        if not isinstance(function, dict):
            continue
        found = [*_function_rules(function, default_pop)]
        wiring = _wiring(function, context)
        if wiring is not None:
            wired[name] = wiring
            contract = function.get("contract", "sdk")
            found += wiring_rules(name, wiring, named, contract)
            found += place_rules(function.get("place"), wiring)
            if contract == "mqtt":
                found += mqtt_rules(function)
            elif any(item.get("qos") == 0 for item in wiring.inputs):
                found += direct_rules(function)
        yield from ((("functions", name, *place), text) for place, text in found)
    policies = list(_policies(data.get("channels"), context))
    yield from ((("channels", *place), text) for place, text in policy_rules(policies))
    by_filter = {full: policy for _, full, policy in policies}
    yield from ((("functions", *place), text) for place, text in gate_rules(wired, by_filter))


def _function_rules(function: Mapping[str, Any], default_pop: str | None) -> Iterator[Finding]:
    given = [name for name in ("build", "bundle", "image") if function.get(name) is not None]
    if not given:
        yield (), "has nothing to run; give the folder (`build: ./folder`) or an image (`image: name:tag`)"
    for name in given[1:]:
        yield (name,), f"stands beside {given[0]}; keep one of them"
    if function.get("image_id") is not None and function.get("image") is None:
        yield ("image_id",), "says which image `image` means; without that remove it"
    yield from contract_rules(function)
    yield from scale_rules(function.get("scale"))
    if function.get("place") is None and default_pop is None:
        yield ("place",), "is missing; name one PoP: place: {pops: [<pop>]}"
    if function.get("state") is not None and function.get("ordered"):
        yield ("ordered",), "stands beside state, which is in order per key already; remove the field"


def _wiring(function: Mapping[str, Any], context: dict[str, Any]) -> Wiring | None:
    """How a function is wired, as far as its parts are valid; None when its subscription is not."""
    try:
        inputs, join = wirings.subscription(_SUBSCRIBE.validate_python(function.get("subscribe"), context=context))
        inputs = wirings.heard(inputs, function.get("contract"))
    except ValidationError:
        return None  # reported as errors of that field

    def part(adapter: TypeAdapter[Any], name: str, default: object) -> Any:
        try:
            return adapter.validate_python(function.get(name, default), context=context)
        except ValidationError:
            return default

    keyed = wirings.keyed(part(_STATE, "state", None), part(_ORDERED, "ordered", False))
    latest = wirings.side_inputs(part(_LATEST, "latest", []))
    return Wiring(inputs, join, latest, keyed, wirings.published(part(_PUBLISH, "publish", [])))


def _policies(channels: object, context: dict[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The channel policies that are valid: as written, full filter, resolved policy."""
    for written, policy in channels.items() if isinstance(channels, dict) else ():
        try:
            valid = _POLICY.validate_python({written: policy}, context=context)
        except ValidationError:
            continue
        yield from ((str(written), full, wirings.policy_of(one)) for full, one in valid.items())


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
