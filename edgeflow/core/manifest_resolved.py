"""The resolved form of a manifest: what every PoP reads, with a revision per function.

What it is: its models, the check of one that came from elsewhere, and the revision.
What it is not: trust: nothing of a resolved manifest is used that did not pass here.
What must stay true: the same content of a function has the same revision everywhere; every channel lies in the manifest's namespace; parts
that say nothing are absent, so that revisions of what did not change stay what they are.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgeflow.core import channels, yamldoc
from edgeflow.core import manifest_models as models
from edgeflow.core.manifest_contracts import contract_rules
from edgeflow.core.manifest_places import place_rules
from edgeflow.core.manifest_problems import Problem, problem_of, raise_problems
from edgeflow.core.manifest_rules import gate_rules, policy_rules, wiring_rules
from edgeflow.core.manifest_scalars import (
    MAX_DURATION_MS,
    By,
    Command,
    ContextName,
    Count,
    FullSubscribed,
    FullTemplate,
    FullUnreserved,
    FunctionName,
    Gpus,
    Image,
    ImageId,
    InputName,
    Key,
    Namespace,
    Secrets,
    Variable,
)
from edgeflow.core.manifest_wiring import Wiring, as_wiring

_HEX64 = re.compile(r"[0-9a-f]{64}")
_CAPTURE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


class ResolvedInput(models.Part):
    """One input: the handler's parameter, the MQTT filter of its channels, and the levels (namespace = 0) of its captures."""

    name: InputName
    channel: FullSubscribed
    captures: dict[str, int] = Field(default_factory=dict)
    where: str | None = None
    qos: Literal[0, 1] = 1


class ResolvedSide(models.Part):
    """One side input."""

    name: InputName
    channel: FullUnreserved
    captures: dict[str, int] = Field(default_factory=dict)
    by: By | None = None


class ResolvedWindow(models.Part):
    """Shape of windows, in ms of event time; `every_ms` is the size for tumbling windows and 0 for sessions, whose gap is the size."""

    type: Literal["tumbling", "sliding", "session"]
    size_ms: int = Field(ge=1, le=MAX_DURATION_MS)
    every_ms: int = Field(ge=0, le=MAX_DURATION_MS)
    lateness_ms: int = Field(ge=0, le=MAX_DURATION_MS)
    idle_ms: int = Field(ge=1, le=MAX_DURATION_MS)


class ResolvedJoin(models.Part):
    """How events become one invocation; `k` of an `any` is 1."""

    kind: Literal["all", "k", "collect", "window"]
    by: By
    count: Count | None = None
    within_ms: int = Field(ge=1, le=MAX_DURATION_MS)
    on_timeout: Literal["dead-letter", "drop", "partial"]
    k: int | None = Field(default=None, ge=1)
    window: ResolvedWindow | None = None
    duplicates: Literal["last", "all"] | None = None
    max_pending: int | None = Field(default=None, ge=1, le=models.MAX_PENDING)


class ResolvedKeyed(models.Part):
    """Whose invocations go one after the other, and whether they have state."""

    by: By
    state: bool


class ResolvedRetry(models.Part):
    """What happens when an attempt fails."""

    attempts: int = Field(ge=1, le=100)
    backoff_ms: int = Field(ge=1, le=MAX_DURATION_MS)
    timeout_ms: int = Field(ge=1, le=MAX_DURATION_MS)


class ResolvedScale(models.Part):
    """How many instances: a fixed number, or between two as there is work."""

    instances: int | None = Field(default=None, ge=1, le=models.MAX_INSTANCES)
    min: int = Field(default=1, ge=0, le=models.MAX_INSTANCES)
    max: int = Field(default=1, ge=1, le=models.MAX_INSTANCES)
    idle_ms: int = Field(default=60_000, ge=1, le=MAX_DURATION_MS)
    pool: int = Field(default=0, ge=0, le=models.MAX_INSTANCES)

    @property
    def is_elastic(self) -> bool:
        """Whether the number follows the work."""
        return self.instances is None

    @property
    def least(self) -> int:
        """Least number that are awake."""
        return self.min if self.instances is None else self.instances

    @property
    def most(self) -> int:
        """Most that there are."""
        return self.max if self.instances is None else self.instances

    @property
    def kept(self) -> int:
        """Least number that exist, awake or paused."""
        return self.most if self.instances is not None else min(self.max, max(self.min, self.pool))


class ResolvedRollout(models.Part):
    """How a new revision takes over."""

    deadline_ms: int = Field(default=60_000, ge=1, le=MAX_DURATION_MS)


class ResolvedPolicy(models.Part):
    """What holds for all events of a channel or filter."""

    on_full: Literal["refuse", "drop-oldest", "keep-latest"]
    max_pending: int | None = Field(default=None, ge=1, le=models.MAX_PENDING)
    deadline_ms: int | None = Field(default=None, ge=1, le=MAX_DURATION_MS)
    gated: bool = False
    priority: Literal["high", "low"] | None = None
    """None: normal."""


class ResolvedSource(models.Part):
    """A folder that is being edited on the PoP's own machine: instances run from it, and follow its changes."""

    folder: str = Field(pattern=r"^/", max_length=4096)
    requirements: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its requirements.txt: other requirements are another revision."""


class ResolvedFunction(models.Part):
    """One function as the PoPs read it."""

    revision: str
    contract: models.Contract
    command: Command | None = None
    http: models.Http | None = None
    stdio: models.Stdio | None = None
    bundle: str | None
    """SHA-256 (hex) of the folder's archive, kept at the system key bundles/<hex>."""
    image: Image | None
    source: ResolvedSource | None = None
    """Only at PoPs of `edgeflow dev`."""
    image_id: ImageId | None = None
    """`sha256:<hex>`: which image that name meant when the manifest was applied; that one runs, whatever the name means later."""
    inputs: list[ResolvedInput] = Field(min_length=1)
    join: ResolvedJoin | None
    latest: list[ResolvedSide] = Field(default_factory=list)
    keyed: ResolvedKeyed | None = None
    publish: list[FullTemplate]
    context: dict[ContextName, Key]
    retry: ResolvedRetry
    limits: models.Limits
    network: Literal["egress"] | None = None
    gpus: Gpus | None = None
    secrets: Secrets = Field(default_factory=list)
    env: dict[Variable, str]
    scale: ResolvedScale
    rollout: ResolvedRollout = ResolvedRollout()
    place: models.Place

    @property
    def direct(self) -> bool:
        """Whether the instance itself subscribes at the broker (`qos: 0`)."""
        return any(item.qos == 0 for item in self.inputs)


class ResolvedManifest(models.Part):
    """A manifest as it stands at the system key manifests/<namespace>."""

    namespace: Namespace
    applied_ms: int
    functions: dict[FunctionName, ResolvedFunction]
    channels: dict[FullUnreserved, ResolvedPolicy] = Field(default_factory=dict)


def revision_of(content: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a resolved function's content.

    Everything counts but `revision` itself, `scale` and `rollout`: more instances of the same thing are the same thing, and its inbox stays.
    """
    counted = {key: value for key, value in content.items() if key not in ("revision", "scale", "rollout")}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_resolved(document: Mapping[str, Any], *, known_pops: Iterable[str] | None = None) -> ResolvedManifest:
    """Check a resolved manifest that came from elsewhere. Raises BadManifest naming everything that is wrong."""
    context = {"namespace": document.get("namespace"), "pops": None if known_pops is None else sorted(known_pops)}
    try:
        resolved = ResolvedManifest.model_validate(document, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise_problems("resolved manifest", [problem_of(detail, yamldoc.Document()) for detail in details])
    found: list[tuple[yamldoc.Path, str]] = []
    wirings: dict[str, Wiring] = {}
    for name, function in resolved.functions.items():
        wirings[name] = as_wiring(document["functions"][name])
        of_function = [*_capture_rules(function), *_content_rules(function, document["functions"][name])]
        of_function += wiring_rules(name, wirings[name], resolved.functions, function.contract)
        of_function += contract_rules(document["functions"][name])
        of_function += place_rules(document["functions"][name].get("place"), wirings[name])
        found += [(("functions", name, *place), text) for place, text in of_function]
    policies = document.get("channels") or {}
    found += [
        (("channels", *place), text)
        for place, text in policy_rules((pattern, pattern, policy) for pattern, policy in policies.items())
    ]
    found += [(("functions", *place), text) for place, text in gate_rules(wirings, policies)]
    if found:
        raise_problems("resolved manifest", [Problem(None, path, text) for path, text in found])
    return resolved


def _content_rules(function: ResolvedFunction, document: Mapping[str, Any]) -> Iterator[tuple[yamldoc.Path, str]]:
    if function.bundle is None and function.image is None and function.source is None:
        yield (), "has neither bundle nor image; apply it with `edgeflow apply`"
    if function.bundle is not None and not _HEX64.fullmatch(function.bundle):
        yield ("bundle",), "is not a SHA-256 in hex; apply it with `edgeflow apply`"
    if function.contract == "mqtt" and not function.direct:
        yield ("inputs",), "are not heard by the program itself; apply it with `edgeflow apply`"
    if function.scale.is_elastic and not function.scale.min <= function.scale.max >= function.scale.pool:
        yield ("scale",), "min and pool are at most max; apply it with `edgeflow apply`"
    if function.direct and function.scale.instances != 1:
        yield (
            ("scale", "instances"),
            "`qos: 0` goes with one channel, no join and one instance; subscribe with qos 1",
        )
    if function.direct and (function.limits.outputs or function.limits.output_bytes):
        yield ("limits",), "nothing is committed with `qos: 0`, so outputs are not counted; subscribe with qos 1"
    expected = revision_of(document)
    if function.revision != expected:
        yield (
            ("revision",),
            f"{function.revision!r} does not belong to this content, whose revision is {expected!r}; apply it again",
        )


def _capture_rules(function: ResolvedFunction) -> Iterator[tuple[yamldoc.Path, str]]:
    sources: list[tuple[str, ResolvedInput | ResolvedSide]] = [("inputs", item) for item in function.inputs]
    sources += [("latest", item) for item in function.latest]
    for place, item in sources:
        levels = item.channel.split("/")
        for name, level in item.captures.items():
            fits = 0 < level < len(levels) and levels[level] == channels.ONE_LEVEL
            if not fits or not _CAPTURE.fullmatch(name) or len(set(item.captures.values())) != len(item.captures):
                yield (
                    (place,),
                    f"the capture {name!r} is not a level of {item.channel!r}; apply it with `edgeflow apply`",
                )
