"""Scalars of the manifest: durations, sizes, names, channels and expressions, each with the words it is refused with.

What it is: one validator per kind of value, and the annotated types that the models are made of.
What it is not: rules over more than one field (manifest_rules).
What must stay true: every refusal says what to write instead; a channel that passes lies in the manifest's namespace, and the only channels
that begin with `_` and pass are those of dead letters, where a function subscribes.
"""

import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Never

from pydantic import AfterValidator, BeforeValidator, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from edgeflow.core import channels
from edgeflow.core.events import ATTRIBUTE_NAME
from edgeflow.core.expressions import DOCUMENT_FIELDS, MAX_COUNT, Expression, compile_expression
from edgeflow.errors import BadExpression, BadName

MAX_DURATION_MS = 7 * 24 * 3600 * 1000
MIN_MEMORY_BYTES = 16 * 1024 * 1024
MIN_AMOUNT_BYTES = 64 * 1024
MAX_PIDS = 32_768
MAX_GPUS = 64

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|k|M|G)?")
_SIZE_BYTES = {None: 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "k": 1000, "M": 1000**2, "G": 1000**3}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_MEDIA_TYPE = re.compile(r"[!-~]+/[!-~]+(;[ -~]*)?")
_WORD = re.compile(r"\w+")
_DIFFERS = frozenset({"id", "specversion", "time", "dataref", "datacontenttype"})
_MAPS = frozenset({"attributes", "captures"})


def refuse(problem: str) -> Never:
    """Fail the field that is being validated with this text."""
    # The text goes in as a value because pydantic reads the first argument as a template.
    raise PydanticCustomError("edgeflow", "{problem}", {"problem": problem})


def listed(names: Iterable[str]) -> str:
    """The names in order, for messages."""
    return ", ".join(sorted(names)) or "none"


# ------------------------------------------------------------------ numbers


def duration_ms(value: object) -> int:
    """Milliseconds of a duration such as `200ms`, `10s`, `5m` or `1h`. Raises PydanticCustomError."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        refuse(f"{value!r} is not a duration; write a number with ms, s, m or h, as in 200ms or 10s")
    milliseconds = float(found[1]) * _DURATION_MS[found[2]]
    if milliseconds < 1 or milliseconds > MAX_DURATION_MS:
        refuse(f"{value!r} is out of range; the shortest is 1ms, the longest 168h")
    return round(milliseconds)


def _check_lateness(value: object) -> int:
    return 0 if isinstance(value, str) and re.fullmatch(r"0+(\.0+)?(ms|s|m|h)", value) else duration_ms(value)


def size_bytes(text: str) -> int:
    """Bytes of a size such as `512Mi` or `1G`. Raises ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size; write a number with Ki, Mi or Gi, as in 512Mi")
    return int(float(found[1]) * _SIZE_BYTES[found[2]])


def _check_size(value: object) -> str:
    if not isinstance(value, str):
        refuse(f"{value!r} is not a size; write a number with Ki, Mi or Gi, as in 512Mi")
    try:
        size = size_bytes(value)
    except ValueError as error:
        refuse(str(error))
    if size < MIN_MEMORY_BYTES:
        refuse(f"{value!r} is too little to start Python; give at least 16Mi")
    return value


def _check_amount(value: object) -> str:
    """A size that is not the memory of an instance."""
    try:
        size = size_bytes(value) if isinstance(value, str) else 0
    except ValueError as error:
        refuse(str(error))
    if not isinstance(value, str):
        refuse(f"{value!r} is not a size; write a number with Ki, Mi or Gi, as in 64Mi")
    if size < MIN_AMOUNT_BYTES:
        refuse(f"{value!r} is too little to be of use; give at least 64Ki")
    return value


def _check_pids(value: object) -> int:
    if type(value) is not int or not 8 <= value <= MAX_PIDS:
        refuse(f"{value!r} is not a number of processes; write one between 8 and {MAX_PIDS}")
    return value


def _check_outputs(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 1_000_000:
        refuse(f"{value!r} is not a number of events; write one between 1 and 1000000")
    return value


def _check_gpus(value: object) -> str | int:
    if value == "all":
        return "all"
    if type(value) is not int or not 1 <= value <= MAX_GPUS:
        refuse(f"{value!r} is not available; write all, or how many (1 to {MAX_GPUS})")
    return value


def _check_cpus(value: float) -> float:
    if not (math.isfinite(value) and 0.01 <= value <= 256):
        refuse(f"{value} is not a number of CPUs; write one between 0.01 and 256")
    return value


def _check_qos(value: object) -> object:
    if type(value) is not int or value not in (0, 1):
        refuse(f"{value!r} is not available; write 0 (the instance subscribes itself, nothing is kept) or 1 (durable)")
    return value


# ------------------------------------------------------------------ names


def _check_namespace(value: str) -> str:
    try:
        channels.check_namespace(value)
    except BadName as error:
        refuse(f"{error.message}; use 1 to 63 of a-z, 0-9 and -")
    if value == channels.SYSTEM_NAMESPACE:
        refuse("'system' belongs to edgeflow; choose another namespace")
    return value


def _check_function_name(value: str) -> str:
    if not channels.NAME.fullmatch(value):
        refuse(f"{value!r} is not a function name; use 1 to 63 of a-z, 0-9, - and _, with a letter or digit first")
    return value


def check_input_name(value: str) -> str:
    """`value` itself, if it can be a handler's parameter. Raises PydanticCustomError."""
    if not value.isidentifier() or keyword.iskeyword(value) or value == "ctx":
        refuse(
            f"{value!r} cannot be the name of a handler's parameter; give one with `as:`, as in {{channel: ..., as: picture}}"
        )
    return value


def _check_context_name(value: str) -> str:
    if not value.isidentifier() or keyword.iskeyword(value):
        refuse(f"{value!r} cannot be read as ctx.context.<name>; use letters, digits and _")
    return value


def _check_key(value: str) -> str:
    try:
        return channels.check_key(value)
    except BadName as error:
        refuse(f"{error.message}; a key is text with / between its levels, relative to the namespace")


def _check_variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        refuse(f"{value!r} is not the name of an environment variable; use letters, digits and _")
    if value.startswith("EDGEFLOW_"):
        refuse(f"{value!r} is reserved: EDGEFLOW_* is set by the runner; choose another name")
    return value


def check_secret_name(value: str) -> str:
    """`value` itself, if it can be the name of a secret and of its file. Raises PydanticCustomError."""
    if not _SECRET.fullmatch(value):
        refuse(
            f"{value!r} is not the name of a secret; use 1 to 63 letters, digits, `.`, `_` and `-`, with a letter or digit first"
        )
    return value


def _check_secrets(value: list[str]) -> list[str]:
    for name in value:
        if value.count(name) > 1:
            refuse(f"{name!r} stands here twice; keep one of them")
    return value


def _check_image(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        refuse(f"{value!r} is not an image name; write it as in vision/augment:3")
    return value


def _check_command(value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        refuse(
            f"{value!r} is not a list of texts; write the program and its arguments, as in [python, server.py]"
            " (a line of shell is [sh, -c, '...'])"
        )
    if not value[0] or any("\0" in one for one in value):
        refuse("its program is empty, or a part of it holds a zero byte; write the program and its arguments")
    return value


def _check_http_path(value: str) -> str:
    if not value.startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        refuse(f"{value!r} is not a path; begin it with /, and percent-encode what is not plain ASCII")
    return value


def _check_media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(value):
        refuse(f"{value!r} is not a media type; write one as in application/json")
    return value


def _check_build(value: str, info: ValidationInfo) -> str:
    look: Callable[[str, bool], str | None] | None = (info.context or {}).get("look")
    # Fields are checked in the order of the model: `contract` before `build`.
    problem = look(value, info.data.get("contract", "sdk") == "sdk") if look else None
    if problem:
        refuse(problem)
    if not value:
        refuse("is empty; name the folder with handler.py, as in ./detect")
    return value


def _check_bundle(value: str) -> str:
    if not _HEX64.fullmatch(value):
        refuse(f"{value[:80]!r} is not the SHA-256 of an archive (64 hex digits); give the folder: `build: ./folder`")
    return value


def check_image_id(value: str) -> str:
    """The id of an image."""
    if not _IMAGE_ID.fullmatch(value):
        refuse("is not the id of an image (sha256: and 64 hex digits); leave it out")
    return value


def _check_pop(value: str, info: ValidationInfo) -> str:
    known: Iterable[str] | None = (info.context or {}).get("pops")
    if not channels.NAMESPACE.fullmatch(value):
        refuse(f"{value!r} is not the id of a PoP; use a-z, 0-9 and -")
    if known is not None and value not in known:
        refuse(f"PoP {value!r} does not exist; there are {listed(known)}")
    return value


def _check_pops(value: object) -> object:
    if isinstance(value, list) and not value:
        refuse("names no PoP; name one, as in [la]")
    return value


# ------------------------------------------------------------------ channels


def _full_name(value: object, info: ValidationInfo) -> str:
    """A channel, filter or template written relative to the namespace, with the namespace in front."""
    context: Mapping[str, Any] = info.context or {}
    namespace = str(context.get("namespace") or "namespace")
    if not isinstance(value, str) or not value:
        refuse(f"{value!r} is not a channel; write its name as text, as in frames or cam/left")
    first, slash, _ = value.partition("/")
    if value.startswith("/"):
        other = value[1:].partition("/")[0]
        refuse(
            f"{value!r} is outside the namespace {namespace!r}"
            + (f" (it names {other!r})" if other else "")
            + "; channels are relative to the namespace, without a slash at the start"
        )
    if slash and first != namespace and first in context.get("namespaces", ()):
        refuse(
            f"{value!r} is outside the namespace {namespace!r}: {first!r} is another namespace; "
            f"use a channel of {namespace!r} (for a channel of that very name write {namespace}/{value})"
        )
    return value if value.startswith(namespace + "/") else f"{namespace}/{value}"


def _parsed(full: str) -> tuple[str, dict[str, int]]:
    try:
        return channels.parse_filter(full)
    except BadName as error:
        more = error.hint if error.hint != BadName.hint else "a channel is levels of text with / between them"
        refuse(f"{error.message}; {more[:1].lower()}{more[1:].removesuffix('.')}")


def _refuse_reserved(value: object) -> Never:
    refuse(f"{value!r} is reserved: names that start with _ belong to edgeflow; choose another")


def is_of_dead_letters(full: str) -> bool:
    """Whether a full filter is `<namespace>/_dead/<one level>`: the reserved channels that a function may subscribe to."""
    levels = full.split("/")
    return len(levels) == 3 and levels[1] == channels.DEAD_LEVEL and levels[2] != "#"


def _check_subscribed(value: object, info: ValidationInfo) -> str:
    """Full name of what a function subscribes to: a channel, or a filter with wildcards and captures."""
    full = _full_name(value, info)
    _parsed(full)
    if channels.is_reserved(full) and not is_of_dead_letters(full):
        if full.split("/")[1] == channels.DEAD_LEVEL:
            refuse(f"{value!r} is reserved; the dead letters of a function are `_dead/<function>`, of all `_dead/+`")
        _refuse_reserved(value)
    return full


def _check_side(value: object, info: ValidationInfo) -> str:
    full = _full_name(value, info)
    _parsed(full)
    if channels.is_reserved(full):
        _refuse_reserved(value)
    return full


def _check_template(value: object, info: ValidationInfo) -> str:
    """Full name of what a function publishes on: a channel, or a template with captures and open levels (`+`)."""
    full = _full_name(value, info)
    pattern, _ = _parsed(full)
    if pattern.endswith("#"):
        refuse(
            f"{value!r}: `#` is for subscriptions; write `+` for each level that emit names, or {{name}} for a capture"
        )
    if channels.is_reserved(full):
        _refuse_reserved(value)
    return full


def _check_policy(value: object, info: ValidationInfo) -> str:
    """Full name of what a channel policy is for: a channel, or a filter."""
    full = _full_name(value, info)
    pattern, captures = _parsed(full)
    if captures:
        refuse(f"{value!r}: a policy has no use for captures; write + in place of {{{next(iter(captures))}}}")
    if channels.is_reserved(full):
        _refuse_reserved(value)
    return pattern


def _check_full(value: str, info: ValidationInfo) -> str:
    """`value` itself, a full name in the resolved form, if it lies in the manifest's namespace."""
    namespace = str((info.context or {}).get("namespace", ""))
    _parsed(value)
    if channels.namespace_of(value) != namespace:
        refuse(f"{value!r} is outside the namespace {namespace!r}; a function reaches its own namespace only")
    return value


def _check_full_filter(value: str, info: ValidationInfo) -> str:
    if "{" in _check_full(value, info):
        refuse(f"{value!r} is not resolved: captures stand beside the filter; apply it with `edgeflow apply`")
    return value


def _check_full_subscribed(value: str, info: ValidationInfo) -> str:
    if channels.is_reserved(_check_full_filter(value, info)) and not is_of_dead_letters(value):
        _refuse_reserved(value)
    return value


def _check_full_unreserved(value: str, info: ValidationInfo) -> str:
    if channels.is_reserved(_check_full_filter(value, info)):
        _refuse_reserved(value)
    return value


def _check_full_template(value: str, info: ValidationInfo) -> str:
    if _check_full(value, info).endswith("#"):
        refuse(f"{value!r}: `#` is for subscriptions; write `+`")
    if channels.is_reserved(value):
        _refuse_reserved(value)
    return value


# ------------------------------------------------------------------ expressions


def _compiled(text: str) -> Expression:
    """The expression of a text; refuses the field when it is none, or a name that no event can have."""
    if _WORD.fullmatch(text) and text not in DOCUMENT_FIELDS and not ATTRIBUTE_NAME.fullmatch(text):
        refuse(f"{text!r} is not the name of an event attribute; use 1 to 20 of a-z and 0-9")
    try:
        return compile_expression(text)
    except BadExpression as error:
        refuse(f"{error.message}; {error.hint[:1].lower()}{error.hint[1:].removesuffix('.')}")


def _check_where(value: str) -> str:
    expression = _compiled(value)
    if expression.attribute is not None:
        refuse(f"{value!r} is text, neither true nor false; compare it, as in {value} == 'yes'")
    return value


def _check_by(value: str) -> str:
    if value in _DIFFERS:
        refuse(f"{value!r} differs from event to event, so nothing would meet; use subject or an attribute of your own")
    if value in _MAPS:
        refuse(f"{value!r} is a map; name one of its values, as in {value}.camera")
    _compiled(value)
    return value


def _check_collect(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        refuse(
            f"{value!r} is no count; write a number, the attribute that holds it, or an expression, as in data.total"
        )
    if isinstance(value, int):
        if not 1 <= value <= MAX_COUNT:
            refuse(f"{value} is out of range; collect 1 to {MAX_COUNT} events")
        return value
    _compiled(value)
    return value


# ------------------------------------------------------------------ the types


def only(allowed: object, why: str) -> BeforeValidator:
    """One value is available; `why` says what to write."""

    def check(value: object) -> object:
        if value != allowed or type(value) is not type(allowed):
            refuse(f"{value!r} is not available in this version; {why}")
        return value

    return BeforeValidator(check)


def one_of(*allowed: str) -> BeforeValidator:
    """One of these texts."""

    def check(value: object) -> object:
        if value not in allowed:
            refuse(f"{value!r} is not available; write one of {listed(allowed)}")
        return value

    return BeforeValidator(check)


_DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h)$", "examples": ["200ms", "10s"]}
)
_SIZE_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?(Ki|Mi|Gi|k|M|G)?$", "examples": ["512Mi"]})
_GPUS_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "const": "all"}, {"type": "integer", "minimum": 1, "maximum": MAX_GPUS}]}
)
_PIDS_SCHEMA = WithJsonSchema({"type": "integer", "minimum": 8, "maximum": MAX_PIDS})
_OUTPUTS_SCHEMA = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1_000_000})
_FILTER_SCHEMA = WithJsonSchema(
    {"type": "string", "minLength": 1, "pattern": "^[^/]", "examples": ["frames", "cam/{id}/frames", "cam/+/alerts"]}
)
_TEMPLATE_SCHEMA = WithJsonSchema(
    {"type": "string", "minLength": 1, "pattern": "^[^/#][^#]*$", "examples": ["faces", "cam/{id}/faces"]}
)
_COMMAND_SCHEMA = WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1})
_COLLECT_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_COUNT}, {"type": "string", "minLength": 1}]}
)

Namespace = Annotated[str, AfterValidator(_check_namespace)]
FunctionName = Annotated[str, AfterValidator(_check_function_name)]
Duration = Annotated[int, PlainValidator(duration_ms), _DURATION_SCHEMA]
Lateness = Annotated[int, PlainValidator(_check_lateness), _DURATION_SCHEMA]
Size = Annotated[str, PlainValidator(_check_size), _SIZE_SCHEMA]
Cpus = Annotated[float, AfterValidator(_check_cpus)]
Amount = Annotated[str, PlainValidator(_check_amount), _SIZE_SCHEMA]
Pids = Annotated[int, PlainValidator(_check_pids), _PIDS_SCHEMA]
OutputCount = Annotated[int, PlainValidator(_check_outputs), _OUTPUTS_SCHEMA]
Gpus = Annotated[str | int, PlainValidator(_check_gpus), _GPUS_SCHEMA]
SecretName = Annotated[str, AfterValidator(check_secret_name)]
Secrets = Annotated[list[SecretName], AfterValidator(_check_secrets)]
Subscribed = Annotated[str, PlainValidator(_check_subscribed), _FILTER_SCHEMA]
Side = Annotated[str, PlainValidator(_check_side), _FILTER_SCHEMA]
Template = Annotated[str, PlainValidator(_check_template), _TEMPLATE_SCHEMA]
PolicyFilter = Annotated[str, PlainValidator(_check_policy), _FILTER_SCHEMA]
FullSubscribed = Annotated[str, AfterValidator(_check_full_subscribed)]
FullUnreserved = Annotated[str, AfterValidator(_check_full_unreserved)]
FullTemplate = Annotated[str, AfterValidator(_check_full_template)]
InputName = Annotated[str, AfterValidator(check_input_name)]
Where = Annotated[str, AfterValidator(_check_where)]
By = Annotated[str, AfterValidator(_check_by)]
Count = Annotated[int | str, PlainValidator(_check_collect), _COLLECT_SCHEMA]
ContextName = Annotated[str, AfterValidator(_check_context_name)]
Key = Annotated[str, AfterValidator(_check_key)]
Variable = Annotated[str, AfterValidator(_check_variable)]
Image = Annotated[str, AfterValidator(_check_image)]
Command = Annotated[list[str], PlainValidator(_check_command), _COMMAND_SCHEMA]
HttpPath = Annotated[str, AfterValidator(_check_http_path)]
MediaType = Annotated[str, AfterValidator(_check_media_type)]
Build = Annotated[str, AfterValidator(_check_build)]
Bundle = Annotated[str, AfterValidator(_check_bundle)]
ImageId = Annotated[str, AfterValidator(check_image_id)]
Pop = Annotated[str, AfterValidator(_check_pop)]
POPS = BeforeValidator(_check_pops)
QOS = BeforeValidator(_check_qos)
