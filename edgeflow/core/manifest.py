"""The manifest of an application: from YAML to the resolved form that every PoP reads.

What it is: the fields with their defaults and rules (`Manifest`), one error that names everything that is wrong with its line
and its fix (`parse`), and the resolved form (`resolve`, `check_resolved`) with a revision per function.
What it is not: a place that looks at folders, images or clusters: what must be known about them is passed in.
What must stay true: a field that is not implemented is refused by name, never ignored; the same function content has the same revision everywhere;
every channel of a resolved manifest lies in its namespace; `manifest.schema.json` is generated from these models.
"""

import difflib
import hashlib
import json
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Never

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from edgeflow.core import channels, yamldoc
from edgeflow.errors import BadManifest, BadName

DEFAULT_WITHIN_MS = 60_000
MAX_DURATION_MS = 7 * 24 * 3600 * 1000
MIN_MEMORY_BYTES = 16 * 1024 * 1024
MAX_INSTANCES = 64

NOT_AVAILABLE: dict[str, str] = {
    "channels": "channel policies (gated, deliver, ...) come later; remove the field",
    "functions.*.where": "filter inside the handler and return None for events that do not matter",
    "functions.*.window": "use `subscribe: {join: {collect: <count attribute>}, ...}` or collect inside the handler",
    "functions.*.windows": "use `subscribe: {join: {collect: <count attribute>}, ...}` or collect inside the handler",
    "functions.*.state": "keep state as values with ctx.ekv, which are committed with the outputs",
    "functions.*.ordered": "events of one function may be handled out of order; remove the field",
    "functions.*.gated": "remove the field",
    "functions.*.deliver": "remove the field",
    "functions.*.subscribe.where": "filter inside the handler and return None for events that do not matter",
    "functions.*.subscribe.window": "use `join: {collect: <count attribute>}` or collect inside the handler",
    "functions.*.subscribe.qos": "what waits for other events is kept, so a join is durable; remove the field, or subscribe to one channel",
    "functions.*.subscribe.*.qos": "`qos: 0` is for functions with one channel: `subscribe: {channel: <channel>, qos: 0}`; remove the field",
    "functions.*.subscribe.join.qos": "what waits for other events is kept, so a join is durable; remove the field, or subscribe to one channel",
    "functions.*.subscribe.join.*.qos": "what waits for other events is kept, so a join is durable; remove the field, or subscribe to one channel",
    "functions.*.scale.min": "the number of instances is fixed; write `scale: {instances: n}`",
    "functions.*.scale.max": "the number of instances is fixed; write `scale: {instances: n}`",
    "functions.*.scale.concurrency": "an instance handles one event at a time; write `scale: {instances: n}`",
    "functions.*.scale.idle": "instances keep running; write `scale: {instances: n}`",
    "functions.*.scale.prefetch": "the agent chooses it; remove the field",
    "functions.*.place.near": "name one PoP: `place: {pops: [<pop>]}`",
    "functions.*.place.prefer": "name one PoP: `place: {pops: [<pop>]}`",
}
"""Fields of the full manifest that this version refuses, with what to write instead."""


def _refuse(problem: str) -> Never:
    # The text goes in as a value because pydantic reads the first argument as a template.
    raise PydanticCustomError("edgeflow", "{problem}", {"problem": problem})


# ------------------------------------------------------------------ scalars

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|k|M|G)?")
_SIZE_BYTES = {None: 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "k": 1000, "M": 1000**2, "G": 1000**3}
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,20}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_HEX64 = re.compile(r"[0-9a-f]{64}")


def duration_ms(value: object) -> int:
    """Milliseconds of a duration such as `200ms`, `10s`, `5m` or `1h`. Raises PydanticCustomError."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        _refuse(f"{value!r} is not a duration; write a number with ms, s, m or h, as in 200ms or 10s")
    milliseconds = float(found[1]) * _DURATION_MS[found[2]]
    if milliseconds < 1 or milliseconds > MAX_DURATION_MS:
        _refuse(f"{value!r} is out of range; the shortest is 1ms, the longest 168h")
    return round(milliseconds)


def size_bytes(text: str) -> int:
    """Bytes of a size such as `512Mi` or `1G`. Raises ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size; write a number with Ki, Mi or Gi, as in 512Mi")
    return int(float(found[1]) * _SIZE_BYTES[found[2]])


def _check_size(value: object) -> str:
    if not isinstance(value, str):
        _refuse(f"{value!r} is not a size; write a number with Ki, Mi or Gi, as in 512Mi")
    try:
        size = size_bytes(value)
    except ValueError as error:
        _refuse(str(error))
    if size < MIN_MEMORY_BYTES:
        _refuse(f"{value!r} is too little to start Python; give at least 16Mi")
    return value


def _check_cpus(value: float) -> float:
    if not (math.isfinite(value) and 0.01 <= value <= 256):
        _refuse(f"{value} is not a number of CPUs; write one between 0.01 and 256")
    return value


def _check_namespace(value: str) -> str:
    try:
        channels.check_namespace(value)
    except BadName as error:
        _refuse(f"{error.message}; use 1 to 63 of a-z, 0-9 and -")
    if value == channels.SYSTEM_NAMESPACE:
        _refuse("'system' belongs to edgeflow; choose another namespace")
    return value


def _check_function_name(value: str) -> str:
    if not channels.NAME.fullmatch(value):
        _refuse(f"{value!r} is not a function name; use 1 to 63 of a-z, 0-9, - and _, with a letter or digit first")
    return value


def _check_channel(value: object, info: ValidationInfo) -> str:
    """The full name of a channel written relative to the namespace."""
    context: Mapping[str, Any] = info.context or {}
    namespace = str(context.get("namespace") or "namespace")
    if not isinstance(value, str) or not value:
        _refuse(f"{value!r} is not a channel; write its name as text, as in frames or cam/left")
    if "+" in value or "#" in value:
        _refuse(f"{value!r}: wildcards are not available in this version; name each channel")
    first, slash, _ = value.partition("/")
    if value.startswith("/"):
        other = value[1:].partition("/")[0]
        _refuse(
            f"{value!r} is outside the namespace {namespace!r}"
            + (f" (it names {other!r})" if other else "")
            + "; channels are relative to the namespace, without a slash at the start"
        )
    if slash and first != namespace and first in context.get("namespaces", ()):
        _refuse(
            f"{value!r} is outside the namespace {namespace!r}: {first!r} is another namespace; "
            f"use a channel of {namespace!r} (for a channel of that very name write {namespace}/{value})"
        )
    try:
        channel = channels.full_channel(namespace, value)
    except BadName as error:
        _refuse(f"{error.message}; a channel is levels of text with / between them, without +, # and $")
    if channels.is_reserved(channel):
        _refuse(f"{value!r} is reserved: names that start with _ belong to edgeflow; choose another")
    return channel


def _check_full_channel(value: str, info: ValidationInfo) -> str:
    namespace = str((info.context or {}).get("namespace", ""))
    try:
        channels.check_channel(value)
    except BadName as error:
        _refuse(f"{error.message}; a channel is <namespace>/<path> without +, # and $")
    if channels.namespace_of(value) != namespace:
        _refuse(f"{value!r} is outside the namespace {namespace!r}; a function reaches its own namespace only")
    if channels.is_reserved(value):
        _refuse(f"{value!r} is reserved: names that start with _ belong to edgeflow; choose another")
    return value


def _check_input_name(value: str) -> str:
    if not value.isidentifier() or keyword.iskeyword(value) or value == "ctx":
        _refuse(
            f"{value!r} cannot be the name of a handler's parameter; give one with `as:`, as in {{channel: ..., as: picture}}"
        )
    return value


def _check_attribute(value: str) -> str:
    if not _ATTRIBUTE.fullmatch(value):
        _refuse(f"{value!r} is not the name of an event attribute; use 1 to 20 of a-z and 0-9")
    return value


def _check_by(value: str) -> str:
    if value in ("id", "source", "specversion", "time", "dataref", "datacontenttype"):
        _refuse(
            f"{value!r} differs from event to event, so nothing would meet; use subject or an attribute of your own"
        )
    return _check_attribute(value)


def _check_context_name(value: str) -> str:
    if not value.isidentifier() or keyword.iskeyword(value):
        _refuse(f"{value!r} cannot be read as ctx.context.<name>; use letters, digits and _")
    return value


def _check_key(value: str) -> str:
    try:
        return channels.check_key(value)
    except BadName as error:
        _refuse(f"{error.message}; a key is text with / between its levels, relative to the namespace")


def _check_variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        _refuse(f"{value!r} is not the name of an environment variable; use letters, digits and _")
    if value.startswith("EDGEFLOW_"):
        _refuse(f"{value!r} is reserved: EDGEFLOW_* is set by the runner; choose another name")
    return value


def _check_image(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        _refuse(f"{value!r} is not an image name; write it as in vision/augment:3")
    return value


def _check_build(value: str, info: ValidationInfo) -> str:
    look: Callable[[str], str | None] | None = (info.context or {}).get("look")
    problem = look(value) if look else None
    if problem:
        _refuse(problem)
    if not value:
        _refuse("is empty; name the folder with handler.py, as in ./detect")
    return value


def _check_pop(value: str, info: ValidationInfo) -> str:
    known: Iterable[str] | None = (info.context or {}).get("pops")
    if not channels.NAMESPACE.fullmatch(value):
        _refuse(f"{value!r} is not the id of a PoP; use a-z, 0-9 and -")
    if known is not None and value not in known:
        _refuse(f"PoP {value!r} does not exist; there are {_listed(known)}")
    return value


def _check_pops(value: object) -> object:
    if isinstance(value, list) and len(value) != 1:
        if not value:
            _refuse("names no PoP; name one, as in [la]")
        _refuse(f"{len(value)} PoPs are not available in this version; name one, as in [{value[0]}]")
    return value


def _check_qos(value: object) -> object:
    if type(value) is not int or value not in (0, 1):
        _refuse(f"{value!r} is not available; write 0 (the instance subscribes itself, nothing is kept) or 1 (durable)")
    return value


def _only(allowed: object, why: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value != allowed or type(value) is not type(allowed):
            _refuse(f"{value!r} is not available in this version; {why}")
        return value

    return BeforeValidator(check)


def _one_of(*allowed: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in allowed:
            _refuse(f"{value!r} is not available in this version; write one of {_listed(allowed)}")
        return value

    return BeforeValidator(check)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


_DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h)$", "examples": ["200ms", "10s"]}
)
_SIZE_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?(Ki|Mi|Gi|k|M|G)?$", "examples": ["512Mi"]})
_CHANNEL_SCHEMA = WithJsonSchema(
    {"type": "string", "minLength": 1, "pattern": "^[^/+#$][^+#$]*$", "examples": ["frames"]}
)

Duration = Annotated[int, PlainValidator(duration_ms), _DURATION_SCHEMA]
Size = Annotated[str, PlainValidator(_check_size), _SIZE_SCHEMA]
Channel = Annotated[str, PlainValidator(_check_channel), _CHANNEL_SCHEMA]
InputName = Annotated[str, AfterValidator(_check_input_name)]
Attribute = Annotated[str, AfterValidator(_check_attribute)]
By = Annotated[str, AfterValidator(_check_by)]


# ------------------------------------------------------------------ the YAML form


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Named(_Part):
    """One channel under a name of one's own."""

    channel: Channel
    """The channel, relative to the namespace."""
    as_: InputName = Field(alias="as")
    """Name of the handler's parameter."""


class Single(_Part):
    """One channel with the quality of its subscription."""

    channel: Channel
    """The channel, relative to the namespace."""
    qos: Annotated[Literal[0, 1], BeforeValidator(_check_qos)]
    """0: the instance itself subscribes at the broker; one hop, nothing kept, nothing tried again. 1: durable, as without the field."""
    as_: InputName | None = Field(default=None, alias="as")
    """Name of the handler's parameter; the channel's last level."""


def _item_kind(value: object) -> str:
    return "<named>" if isinstance(value, dict) else "<channel>"


Item = Annotated[Annotated[Channel, Tag("<channel>")] | Annotated[Named, Tag("<named>")], Discriminator(_item_kind)]


class JoinAll(_Part):
    """One invocation per key, when one event of each channel is there."""

    join: list[Item]
    """The channels, at least two."""
    by: By = "subject"
    """What must be equal: `subject` or an event attribute."""
    within: Duration = Field(default=DEFAULT_WITHIN_MS, json_schema_extra={"default": "60s"})
    """How long the first arrival waits for the others; 60s."""
    on_timeout: Annotated[Literal["dead-letter", "drop"], _one_of("dead-letter", "drop")] = "dead-letter"
    """What happens to an incomplete join: kept as a dead letter, or counted and dropped."""


class Collect(_Part):
    """How many events of one channel belong together."""

    collect: Attribute
    """The event attribute that says how many events belong together."""


class JoinCollect(_Part):
    """One invocation per key, when as many events of one channel are there as they say."""

    join: Collect
    """What to collect."""
    channel: Channel
    """The channel, relative to the namespace."""
    as_: InputName | None = Field(default=None, alias="as")
    """Name of the handler's parameter (a list of events); the channel's last level."""
    by: By
    """The attribute that events of one group share (or `subject`)."""
    within: Duration = Field(default=DEFAULT_WITHIN_MS, json_schema_extra={"default": "60s"})
    """How long the first arrival waits for the others; 60s."""
    on_timeout: Annotated[Literal["dead-letter", "drop"], _one_of("dead-letter", "drop")] = "dead-letter"
    """What happens to an incomplete group: kept as a dead letter, or counted and dropped."""


def _subscribe_kind(value: object) -> str:
    if isinstance(value, list):
        return "<several>"
    if not isinstance(value, dict):
        return "<one>"
    if "join" not in value:
        return "<single>" if "qos" in value else "<named>"
    return "<collect>" if isinstance(value["join"], dict) else "<all>"


Subscribe = Annotated[
    Annotated[Channel, Tag("<one>")]
    | Annotated[Named, Tag("<named>")]
    | Annotated[Single, Tag("<single>")]
    | Annotated[list[Item], Tag("<several>")]
    | Annotated[JoinAll, Tag("<all>")]
    | Annotated[JoinCollect, Tag("<collect>")],
    Discriminator(_subscribe_kind),
]


def _publish_kind(value: object) -> str:
    return "<several>" if isinstance(value, list) else "<one>"


Publish = Annotated[
    Annotated[Channel, Tag("<one>")] | Annotated[list[Channel], Tag("<several>")],
    Discriminator(_publish_kind),
]


class Retry(_Part):
    """What happens when an attempt fails."""

    attempts: int = Field(default=5, ge=1, le=100)
    """Failed attempts after which the invocation becomes a dead letter."""
    backoff: Duration = Field(default=200, json_schema_extra={"default": "200ms"})
    """Wait before the second attempt, doubled for each further one; 200ms."""
    timeout: Duration = Field(default=30_000, json_schema_extra={"default": "30s"})
    """Longest time one attempt may take; 30s."""


class Limits(_Part):
    """What one instance may use (enforced for containers)."""

    cpus: Annotated[float, AfterValidator(_check_cpus)] = 1.0
    """CPUs, also as a fraction."""
    memory: Size = "512Mi"
    """Memory."""


class Scale(_Part):
    """How many instances run."""

    instances: int = Field(default=1, ge=1, le=MAX_INSTANCES)
    """Number of instances at the PoP, fixed."""


class Place(_Part):
    """Where the function runs."""

    pops: Annotated[list[Annotated[str, AfterValidator(_check_pop)]], BeforeValidator(_check_pops)]
    """Exactly one PoP."""
    run: Annotated[Literal["once"], _only("once", "write once: each event is handled at one PoP")] = "once"
    """Each event is handled once in the cluster."""


class Function(_Part):
    """One function: what it reads, what it writes, what runs."""

    build: Annotated[str, AfterValidator(_check_build)] | None = None
    """Folder with handler.py and requirements.txt (or a Dockerfile), relative to the manifest."""
    image: Annotated[str, AfterValidator(_check_image)] | None = None
    """Container image instead of a folder (Docker mode)."""
    contract: Annotated[Literal["sdk"], _only("sdk", "write sdk: the image speaks the instance protocol")] = "sdk"
    """How the agent and the container talk."""
    qos: Annotated[Literal[1], _only(1, "it belongs to the channel: `subscribe: {channel: <channel>, qos: 0}`")] = 1
    """Durable subscription; `qos: 0` is written at the channel."""
    subscribe: Subscribe
    """One channel, several, or a join."""
    publish: Publish = []
    """Channels the handler may publish on; with exactly one, what it returns goes there."""
    context: dict[Annotated[str, AfterValidator(_check_context_name)], Annotated[str, AfterValidator(_check_key)]] = {}
    """EKV keys handed to the handler with their latest values, by the name it reads them under."""
    retry: Retry = Field(default=Retry(), json_schema_extra={"default": {}})
    """What happens when an attempt fails."""
    limits: Limits = Limits()
    """What one instance may use."""
    env: dict[Annotated[str, AfterValidator(_check_variable)], str] = {}
    """Environment variables of the instances."""
    scale: Scale = Scale()
    """How many instances run."""
    place: Place | None = None
    """Where it runs; without it at the PoP the manifest is applied at."""


class Manifest(_Part):
    """An edgeflow application."""

    namespace: Annotated[str, AfterValidator(_check_namespace)]
    """First level of all channels and keys; [a-z0-9-]+."""
    functions: dict[Annotated[str, AfterValidator(_check_function_name)], Function] = Field(min_length=1)
    """The functions by name."""


# ------------------------------------------------------------------ the resolved form


class ResolvedInput(_Part):
    name: InputName
    channel: Annotated[str, AfterValidator(_check_full_channel)]
    qos: Literal[0, 1] = 1


class ResolvedJoin(_Part):
    kind: Literal["all", "collect"]
    by: By
    count: Attribute | None = None
    within_ms: int = Field(ge=1, le=MAX_DURATION_MS)
    on_timeout: Literal["dead-letter", "drop"]


class ResolvedRetry(_Part):
    attempts: int = Field(ge=1, le=100)
    backoff_ms: int = Field(ge=1, le=MAX_DURATION_MS)
    timeout_ms: int = Field(ge=1, le=MAX_DURATION_MS)


class ResolvedFunction(_Part):
    """One function as the PoPs read it."""

    revision: str
    contract: Literal["sdk"]
    bundle: str | None
    """SHA-256 (hex) of the folder's archive, kept at the system key bundles/<hex>."""
    image: Annotated[str, AfterValidator(_check_image)] | None
    inputs: list[ResolvedInput] = Field(min_length=1)
    join: ResolvedJoin | None
    publish: list[Annotated[str, AfterValidator(_check_full_channel)]]
    context: dict[Annotated[str, AfterValidator(_check_context_name)], Annotated[str, AfterValidator(_check_key)]]
    retry: ResolvedRetry
    limits: Limits
    env: dict[Annotated[str, AfterValidator(_check_variable)], str]
    scale: Scale
    place: Place

    @property
    def direct(self) -> bool:
        """Whether the instance itself subscribes at the broker (`qos: 0`)."""
        return any(item.qos == 0 for item in self.inputs)


class ResolvedManifest(_Part):
    """A manifest as it stands at the system key manifests/<namespace>."""

    namespace: Annotated[str, AfterValidator(_check_namespace)]
    applied_ms: int
    functions: dict[Annotated[str, AfterValidator(_check_function_name)], ResolvedFunction]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What runs: the archive of a folder, or an image. At least one of them is given."""

    bundle: str | None = None
    image: str | None = None


# ------------------------------------------------------------------ reading


def parse(
    source: str | Mapping[str, Any],
    *,
    name: str = "edgeflow.yaml",
    known_pops: Iterable[str] | None = None,
    known_namespaces: Iterable[str] = (),
    look: Callable[[str], str | None] | None = None,
    default_pop: str | None = None,
) -> Manifest:
    """Read a manifest from YAML text or from its data.

    `known_pops`: the cluster's PoPs, None = not known, do not check. `known_namespaces`: namespaces of other applications; a
    channel that starts with one of them is taken for a mistake. `look`: says what is wrong with a build folder, or None.
    `default_pop`: where a function without `place:` runs; without it `place:` is needed.
    Raises BadManifest that names everything that is wrong, one line each: line, path, problem; fix.
    """
    if isinstance(source, str):
        document = yamldoc.load(source)
    else:
        document = yamldoc.Document(data=dict(source))
    problems = [_Problem(flaw.line, flaw.path, flaw.text) for flaw in document.flaws]
    data = document.data
    manifest: Manifest | None = None
    if not isinstance(data, dict):
        if not problems:
            problems.append(_Problem(None, (), "is not a map; it starts with `namespace: <name>` and `functions:`"))
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
            problems += [_problem_of(detail, document) for detail in details if not _is_key_type(detail)]
        functions = data.get("functions")
        for function_name, function in functions.items() if isinstance(functions, dict) else ():
            path = ("functions", str(function_name))
            if isinstance(function, dict):
                problems += _cross_checks(path, function, context, document, default_pop)
    if problems or manifest is None:
        _raise(name, problems)
    return manifest


def resolve(
    manifest: Manifest, artifacts: Mapping[str, Artifact], *, applied_ms: int, default_pop: str | None = None
) -> dict[str, Any]:
    """The resolved form (JSON-able) of a manifest whose functions have been built.

    `artifacts`: what each function with `build:` became; those with `image:` need none. `applied_ms`: wall clock, ms since 1970.
    Raises BadManifest when a function has no artifact or no place.
    """
    functions: dict[str, Any] = {}
    for name, function in manifest.functions.items():
        artifact = artifacts.get(name, Artifact(image=function.image))
        if artifact.bundle is None and artifact.image is None:
            raise BadManifest(f"functions.{name}.build: was not built; run `edgeflow apply`, or give `image:`")
        pops = function.place.pops if function.place else [default_pop] if default_pop else []
        if not pops:
            raise BadManifest(f"functions.{name}.place: is missing; name one PoP: place: {{pops: [<pop>]}}")
        inputs, join = _inputs(function.subscribe)
        content: dict[str, Any] = {
            "contract": function.contract,
            "bundle": artifact.bundle,
            "image": artifact.image,
            "inputs": inputs,
            "join": join,
            "publish": _publish(function.publish),
            "context": dict(function.context),
            "retry": {
                "attempts": function.retry.attempts,
                "backoff_ms": function.retry.backoff,
                "timeout_ms": function.retry.timeout,
            },
            "limits": {"cpus": float(function.limits.cpus), "memory": function.limits.memory},
            "env": dict(function.env),
            "scale": {"instances": function.scale.instances},
            "place": {"pops": pops},
        }
        functions[name] = {"revision": revision_of(content), **content}
    return {"namespace": manifest.namespace, "applied_ms": applied_ms, "functions": functions}


def check_resolved(document: Mapping[str, Any], *, known_pops: Iterable[str] | None = None) -> ResolvedManifest:
    """Check a resolved manifest that came from elsewhere. Raises BadManifest naming everything that is wrong."""
    context = {"namespace": document.get("namespace"), "pops": None if known_pops is None else sorted(known_pops)}
    try:
        resolved = ResolvedManifest.model_validate(document, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        _raise("resolved manifest", [_problem_of(detail, yamldoc.Document()) for detail in details])
    problems: list[_Problem] = []
    for name, function in resolved.functions.items():
        path = ("functions", name)
        if function.bundle is None and function.image is None:
            problems.append(_Problem(None, path, "has neither bundle nor image; apply it with `edgeflow apply`"))
        if function.bundle is not None and not _HEX64.fullmatch(function.bundle):
            problems.append(
                _Problem(None, (*path, "bundle"), "is not a SHA-256 in hex; apply it with `edgeflow apply`")
            )
        names = [item.name for item in function.inputs]
        for twice in sorted({item for item in names if names.count(item) > 1}):
            problems.append(_Problem(None, (*path, "inputs"), f"two inputs are named {twice!r}; rename one with `as:`"))
        if function.direct and (len(function.inputs) > 1 or function.join or function.scale.instances != 1):
            text = "`qos: 0` goes with one channel, no join and one instance; subscribe with qos 1"
            problems.append(_Problem(None, (*path, "inputs"), text))
        if function.join and (function.join.kind == "collect") != (function.join.count is not None):
            problems.append(_Problem(None, (*path, "join"), "`count` belongs to the kind collect, and only to it"))
        expected = revision_of(document["functions"][name])
        if function.revision != expected:
            text = (
                f"{function.revision!r} does not belong to this content, whose revision is {expected!r}; apply it again"
            )
            problems.append(_Problem(None, (*path, "revision"), text))
    if problems:
        _raise("resolved manifest", problems)
    return resolved


def revision_of(content: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a resolved function's content.

    Everything counts but `revision` itself and `scale`: more instances of the same thing are the same thing, and its inbox stays.
    """
    counted = {key: value for key, value in content.items() if key not in ("revision", "scale")}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the YAML form, as shipped in manifest.schema.json."""
    schema = Manifest.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgeflow manifest"}


# ------------------------------------------------------------------ inputs and outputs


def input_name(channel: str) -> str:
    """The handler's parameter for a channel: its last level as an identifier (`cam/left-eye` -> `left_eye`)."""
    return re.sub(r"\W", "_", channel.rpartition("/")[2])


def _inputs(subscribe: object) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Inputs and join of the resolved form, from a validated `subscribe:`."""
    join: dict[str, Any] | None = None
    if isinstance(subscribe, JoinAll):
        items: list[object] = list(subscribe.join)
        join = _join("all", subscribe.by, None, subscribe.within, subscribe.on_timeout)
    elif isinstance(subscribe, JoinCollect):
        name = subscribe.as_ or input_name(subscribe.channel)
        join = _join("collect", subscribe.by, subscribe.join.collect, subscribe.within, subscribe.on_timeout)
        return [{"name": name, "channel": subscribe.channel}], join
    elif isinstance(subscribe, Single):
        item: dict[str, Any] = {"name": subscribe.as_ or input_name(subscribe.channel), "channel": subscribe.channel}
        # Only what differs from the default is part of the content: durable functions keep their revisions.
        return [item | ({"qos": 0} if subscribe.qos == 0 else {})], None
    else:
        items = list(subscribe) if isinstance(subscribe, list) else [subscribe]
    inputs = []
    for one in items:
        if isinstance(one, Named):
            inputs.append({"name": one.as_, "channel": one.channel})
        else:
            inputs.append({"name": input_name(str(one)), "channel": str(one)})
    return inputs, join


def _join(kind: str, by: str, count: str | None, within_ms: int, on_timeout: str) -> dict[str, Any]:
    return {"kind": kind, "by": by, "count": count, "within_ms": within_ms, "on_timeout": on_timeout}


def _publish(publish: object) -> list[str]:
    return [str(item) for item in publish] if isinstance(publish, list) else [str(publish)]


_SUBSCRIBE: TypeAdapter[Any] = TypeAdapter(Subscribe)
_PUBLISH: TypeAdapter[Any] = TypeAdapter(Publish)


def _cross_checks(
    path: yamldoc.Path,
    function: Mapping[str, Any],
    context: dict[str, Any],
    document: yamldoc.Document,
    default_pop: str | None,
) -> list["_Problem"]:
    """Rules over more than one field. Works on the raw data, so that they are reported beside the errors of single fields."""
    problems: list[_Problem] = []

    def add(below: yamldoc.Path, text: str) -> None:
        full = (*path, *below)
        problems.append(_Problem(document.line_of(full), full, text))

    if function.get("build") is None and function.get("image") is None:
        add((), "has nothing to run; give the folder (`build: ./folder`) or an image (`image: name:tag`)")
    if function.get("build") is not None and function.get("image") is not None:
        add(("image",), "stands beside build; keep one of them")
    if function.get("place") is None and default_pop is None:
        add(("place",), "is missing; name one PoP: place: {pops: [<pop>]}")
    inputs: list[dict[str, Any]] = []
    try:
        subscribe = _SUBSCRIBE.validate_python(function.get("subscribe"), context=context)
    except ValidationError:
        pass  # reported as errors of that field
    else:
        inputs, join = _inputs(subscribe)
        if not inputs:
            add(("subscribe",), "names no channel; name at least one")
        if join and join["kind"] == "all" and len(inputs) < 2:
            add(("subscribe", "join"), "joins one channel only; name two or more, or write `subscribe: <channel>`")
        for item in inputs:
            try:
                _check_input_name(item["name"])
            except PydanticCustomError as error:
                add(("subscribe",), f"channel {item['channel']!r}: {error.message()}")
        for what, where in (("name", "as:"), ("channel", "")):
            values = [item[what] for item in inputs]
            for twice in sorted({value for value in values if values.count(value) > 1}):
                if what == "channel":
                    add(("subscribe",), f"channel {twice!r} stands here twice; keep one of them")
                elif len({item["channel"] for item in inputs if item["name"] == twice}) > 1:
                    add(
                        ("subscribe",),
                        f"two inputs are named {twice!r}; rename one with `{{channel: ..., {where} <name>}}`",
                    )
    if any(item.get("qos") == 0 for item in inputs):
        _check_direct(function, add)
    try:
        outputs = _publish(_PUBLISH.validate_python(function.get("publish", []), context=context))
    except ValidationError:
        outputs = []
    for twice in sorted({channel for channel in outputs if outputs.count(channel) > 1}):
        add(("publish",), f"channel {twice!r} stands here twice; keep one of them")
    return problems


def _check_direct(function: Mapping[str, Any], add: Callable[[yamldoc.Path, str], None]) -> None:
    """What a function with a `qos: 0` input cannot have."""
    scale, retry = function.get("scale"), function.get("retry")
    if isinstance(scale, dict) and isinstance(scale.get("instances"), int) and scale["instances"] != 1:
        add(
            ("scale", "instances"),
            f"{scale['instances']} instances would each hear every event with `qos: 0`; write 1, or subscribe with qos 1",
        )
    for name in ("attempts", "backoff"):
        if isinstance(retry, dict) and name in retry:
            add(("retry", name), "nothing is tried again with `qos: 0`; remove the field, or subscribe with qos 1")


# ------------------------------------------------------------------ problems


@dataclass(frozen=True, slots=True)
class _Problem:
    line: int | None
    path: yamldoc.Path
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        place = ".".join(str(part) for part in self.path)
        return f"{where}{place or 'manifest'}: {self.text}"


_FIELDS: dict[str, tuple[type[BaseModel], ...]] = {
    "": (Manifest,),
    "functions.*": (Function,),
    "functions.*.retry": (Retry,),
    "functions.*.limits": (Limits,),
    "functions.*.scale": (Scale,),
    "functions.*.place": (Place,),
    "functions.*.subscribe": (JoinAll, JoinCollect, Named, Single),
    "functions.*.subscribe.*": (Named,),
    "functions.*.subscribe.join": (Collect,),
    "functions.*.subscribe.join.*": (Named,),
}

_MISSING = {
    "namespace": "is missing; write `namespace: <name>`",
    "functions": "is missing; write `functions:` with one entry per function",
    "functions.*.subscribe": "is missing; name the channel that starts the function: subscribe: <channel>",
    "functions.*.subscribe.by": "is missing; name the attribute that events of one group share, as in by: chunk",
    "functions.*.subscribe.channel": "is missing; name the channel to collect",
    "functions.*.subscribe.as": "is missing; name the handler's parameter, or write the channel alone",
    "functions.*.place.pops": "is missing; name one PoP, as in pops: [la]",
}

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "dict_type": "a map of names to values",
    "list_type": "a list",
    "model_type": "a map of fields",
}


def _problem_of(detail: ErrorDetails, document: yamldoc.Document) -> _Problem:
    path = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part in _TAGS))
    return _Problem(document.line_of(path), path, _explain(detail, path))


_TAGS = frozenset({"<one>", "<named>", "<single>", "<several>", "<all>", "<collect>", "<channel>", "[key]"})


def _explain(detail: ErrorDetails, path: yamldoc.Path) -> str:
    kind, value = detail["type"], detail["input"]
    pattern = _pattern(path)
    if kind == "edgeflow":
        return detail["msg"]
    if kind == "extra_forbidden":
        if pattern in NOT_AVAILABLE:
            return f"not available in this version; {NOT_AVAILABLE[pattern]}"
        known = _fields_at(pattern.rpartition(".")[0])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown field; {guess}here are possible: {_listed(known)}" if known else "unknown field; remove it"
    if kind == "missing":
        return _MISSING.get(pattern, "is missing; add it")
    if kind in _WANTED:
        shown = (
            "empty"
            if value is None
            else repr(value)
            if isinstance(value, str | int | float)
            else f"a {type(value).__name__}"
        )
        quotes = f'; put it in quotes: "{value}"' if kind == "string_type" and isinstance(value, int | float) else ""
        return f"is {shown}; write {_WANTED[kind]}{quotes}"
    if kind == "too_short" and pattern == "functions":
        return "is empty; write one entry per function"
    return f"{value!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}; see docs/manifest.md"


def _is_key_type(detail: ErrorDetails) -> bool:
    return detail["type"] == "string_type" and detail["loc"][-1:] == ("[key]",)


def _pattern(path: yamldoc.Path) -> str:
    """`functions.detect.scale.max` -> `functions.*.scale.max`: function names and list positions become `*`."""
    names = ["*" if isinstance(part, int) or index == 1 else str(part) for index, part in enumerate(path)]
    return ".".join(names)


def _fields_at(pattern: str) -> list[str]:
    fields: set[str] = set()
    for model in _FIELDS.get(pattern, ()):
        fields |= {item.alias or name for name, item in model.model_fields.items()}
    return sorted(fields)


def _raise(name: str, problems: list[_Problem]) -> Never:
    lines = sorted({str(problem): (problem.line or 0, str(problem)) for problem in problems}.values())
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise BadManifest(f"{name}: {count}\n" + "\n".join(f"  {text}" for _, text in lines))


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
