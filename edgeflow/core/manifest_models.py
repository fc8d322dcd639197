"""The YAML form of a manifest as models: its fields, their defaults, and what each is for.

What it is: the source of `manifest.schema.json` and of the field tables' content.
What it is not: rules over more than one field (manifest_rules), or what PoPs read (manifest_resolved).
What must stay true: a field that is not here is refused by name, never ignored; values hold what was written, durations as milliseconds and
channels with their namespace.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from edgeflow.core.manifest_scalars import (
    POPS,
    QOS,
    Amount,
    Build,
    Bundle,
    By,
    Command,
    ContextName,
    Count,
    Cpus,
    Duration,
    FunctionName,
    Gpus,
    HttpPath,
    Image,
    ImageId,
    InputName,
    Key,
    Lateness,
    MediaType,
    Namespace,
    OutputCount,
    Pids,
    PolicyFilter,
    Pop,
    Secrets,
    Side,
    Size,
    Subscribed,
    Template,
    Variable,
    Where,
    one_of,
    only,
    refuse,
)

DEFAULT_WITHIN_MS = 60_000
DEFAULT_WINDOW_WITHIN_MS = 10_000
DEFAULT_IDLE_MS = 10_000
DEFAULT_MAX_PENDING = 10_000
MAX_PENDING = 1_000_000
MAX_INSTANCES = 64
DEFAULT_PIDS = 256
DEFAULT_TMPFS = "64Mi"
DEFAULT_LOG = "8Mi"

DEFAULT_HTTP_PORT = 8080

Contract = Annotated[Literal["sdk", "http", "stdio", "mqtt"], one_of("sdk", "http", "stdio", "mqtt")]
HttpFormat = Annotated[Literal["binary", "structured"], one_of("binary", "structured")]
OnTimeout = Annotated[Literal["dead-letter", "drop", "partial"], one_of("dead-letter", "drop", "partial")]
Duplicates = Annotated[Literal["first", "last", "all"], one_of("first", "last", "all")]
OnFull = Annotated[Literal["refuse", "drop-oldest", "keep-latest"], one_of("refuse", "drop-oldest", "keep-latest")]
Priority = Annotated[Literal["high", "normal", "low"], one_of("high", "normal", "low")]
Pending = Annotated[int, Field(ge=1, le=MAX_PENDING)]


class Part(BaseModel):
    """A part of a manifest: strict types, no unknown fields, not changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


# ------------------------------------------------------------------ subscriptions


class Named(Part):
    """One channel or filter among several."""

    channel: Subscribed
    """The channel, relative to the namespace; `+` is any level, `#` all that follow, `{name}` a level that is captured."""
    as_: InputName | None = Field(default=None, alias="as")
    """Name of the handler's parameter; the channel's last level."""
    where: Where | None = None
    """Expression that an event must make true to come in."""


class Single(Named):
    """One channel or filter."""

    qos: Annotated[Literal[0, 1], QOS] = 1
    """0: the instance itself subscribes at the broker; one hop, nothing kept, nothing tried again. 1: durable."""


def _item_kind(value: object) -> str:
    return "<named>" if isinstance(value, dict) else "<channel>"


Item = Annotated[Annotated[Subscribed, Tag("<channel>")] | Annotated[Named, Tag("<named>")], Discriminator(_item_kind)]


class _Join(Part):
    where: Where | None = None
    """Expression that an event must make true to come in, on any of the channels."""
    max_pending: Pending = DEFAULT_MAX_PENDING
    """Most joins of this function that wait at a PoP; when one more opens, the oldest ends as on_timeout says."""


class _KeyedJoin(_Join):
    by: By = "subject"
    """What must be equal: `subject`, an event attribute, or an expression."""
    within: Duration = Field(default=DEFAULT_WITHIN_MS, json_schema_extra={"default": "60s"})
    """How long the first arrival waits for the others; 60s."""


class JoinAll(_KeyedJoin):
    """One invocation per key, when one event of each channel is there."""

    join: list[Item]
    """The channels, at least two."""
    on_timeout: OnTimeout = "dead-letter"
    """What happens to an incomplete join: a dead letter, counted and dropped, or handled with what is there."""
    duplicates: Duplicates = "first"
    """Of several events of one channel and key: the first, the last, or all of them (the parameter is a list)."""


class AnyOf(Part):
    """The first of several channels."""

    any: list[Item]
    """The channels, at least two."""


class JoinAny(_KeyedJoin):
    """One invocation per key, with the first event of any of the channels; what else comes for the key within `within` belongs to it."""

    join: AnyOf
    """What to wait for."""


class KOf(Part):
    """Some of several channels."""

    k: Annotated[int, Field(ge=1, le=1000)]
    """How many of the channels must have had an event."""
    of: list[Item]
    """The channels, more than k."""


class JoinK(_KeyedJoin):
    """One invocation per key, when k of the channels have had an event; what else comes for the key within `within` belongs to it."""

    join: KOf
    """What to wait for."""
    on_timeout: OnTimeout = "dead-letter"
    """What happens to an incomplete join: a dead letter, counted and dropped, or handled with what is there."""
    duplicates: Duplicates = "first"
    """Of several events of one channel and key: the first, the last, or all of them (the parameter is a list)."""


class _Gathered(_Join):
    channel: Subscribed
    """The channel or filter, relative to the namespace."""
    as_: InputName | None = Field(default=None, alias="as")
    """Name of the handler's parameter (a list of events); the channel's last level."""
    by: By
    """What events of one group share: `subject`, an event attribute, or an expression."""


class Collect(Part):
    """How many events of one channel belong together."""

    collect: Count
    """A number, the event attribute that says it, or an expression."""


class JoinCollect(_Gathered):
    """One invocation per key, when as many events of one channel are there as they say."""

    join: Collect
    """What to collect."""
    within: Duration = Field(default=DEFAULT_WITHIN_MS, json_schema_extra={"default": "60s"})
    """How long the first arrival waits for the others; 60s."""
    on_timeout: OnTimeout = "dead-letter"
    """What happens to an incomplete group: a dead letter, counted and dropped, or handled with what is there."""


class Tumbling(Part):
    """Windows of one length, one after the other."""

    tumbling: Duration
    """Length of each window."""


class Sliding(Part):
    """Windows of one length that overlap."""

    sliding: Duration
    """Length of each window."""
    every: Duration
    """Time from the start of one window to the start of the next; at least a hundredth of the length."""


class Session(Part):
    """Windows that last as long as events come."""

    session: Duration
    """Time without an event that ends a session."""


def _window_kind(value: object) -> str:
    if isinstance(value, dict):
        for name in ("session", "sliding"):
            if name in value:
                return f"<{name}>"
    return "<tumbling>"


Window = Annotated[
    Annotated[Tumbling, Tag("<tumbling>")]
    | Annotated[Sliding, Tag("<sliding>")]
    | Annotated[Session, Tag("<session>")],
    Discriminator(_window_kind),
]


class JoinWindow(_Gathered):
    """One invocation per key and window of event time."""

    join: Window
    """The kind and length of the windows."""
    lateness: Lateness = Field(default=0, json_schema_extra={"default": "0s"})
    """How long after its end a window still takes events, in event time; 0s."""
    idle: Duration = Field(default=DEFAULT_IDLE_MS, json_schema_extra={"default": "10s"})
    """A PoP that sent nothing for that long does not hold the windows open; 10s."""
    within: Duration = Field(default=DEFAULT_WINDOW_WITHIN_MS, json_schema_extra={"default": "10s"})
    """How much longer than its length and lateness a window waits on the wall clock; 10s."""
    on_timeout: OnTimeout = "partial"
    """What happens to a window that was not closed by event time: handled with what is there, a dead letter, or counted and dropped."""


WINDOWS = ("tumbling", "sliding", "session")


def _subscribe_kind(value: object) -> str:
    if isinstance(value, list):
        return "<several>"
    if not isinstance(value, dict):
        return "<one>"
    if "join" not in value:
        return "<single>"
    join = value["join"]
    if not isinstance(join, dict):
        return "<all>"
    if any(name in join for name in WINDOWS):
        return "<window>"
    if "any" in join:
        return "<any>"
    return "<k>" if "k" in join or "of" in join else "<collect>"


Subscribe = Annotated[
    Annotated[Subscribed, Tag("<one>")]
    | Annotated[Single, Tag("<single>")]
    | Annotated[list[Item], Tag("<several>")]
    | Annotated[JoinAll, Tag("<all>")]
    | Annotated[JoinAny, Tag("<any>")]
    | Annotated[JoinK, Tag("<k>")]
    | Annotated[JoinCollect, Tag("<collect>")]
    | Annotated[JoinWindow, Tag("<window>")],
    Discriminator(_subscribe_kind),
]


class SideInput(Part):
    """The newest event of a channel, beside what starts the function."""

    channel: Side
    """The channel or filter, relative to the namespace."""
    as_: InputName | None = Field(default=None, alias="as")
    """Name of the handler's parameter; the channel's last level."""
    by: By | None = None
    """The newest event for which this has the value that it has for the event that starts the function; without it the newest of all."""


def _side_kind(value: object) -> str:
    return "<side>" if isinstance(value, dict) else "<channel>"


SideItem = Annotated[Annotated[Side, Tag("<channel>")] | Annotated[SideInput, Tag("<side>")], Discriminator(_side_kind)]


def _list_kind(value: object) -> str:
    return "<several>" if isinstance(value, list) else "<one>"


Latest = Annotated[
    Annotated[SideItem, Tag("<one>")] | Annotated[list[SideItem], Tag("<several>")], Discriminator(_list_kind)
]
Publish = Annotated[
    Annotated[Template, Tag("<one>")] | Annotated[list[Template], Tag("<several>")], Discriminator(_list_kind)
]


# ------------------------------------------------------------------ functions


class State(Part):
    """State of each key, committed with the outputs."""

    by: By
    """What the key is: `subject`, an event attribute, or an expression."""


class Ordered(Part):
    """Order per key."""

    by: By = "subject"
    """What the key is: `subject`, an event attribute, or an expression."""


def _ordered_kind(value: object) -> str:
    return "<by>" if isinstance(value, dict) else "<flag>"


def _check_flag(value: object) -> object:
    if not isinstance(value, bool):
        refuse(f"{value!r} is not available; write true (in order per subject) or {{by: <attribute or expression>}}")
    return value


OrderedOrNot = Annotated[
    Annotated[bool, BeforeValidator(_check_flag), Tag("<flag>")] | Annotated[Ordered, Tag("<by>")],
    Discriminator(_ordered_kind),
]


class Retry(Part):
    """What happens when an attempt fails."""

    attempts: int = Field(default=5, ge=1, le=100)
    """Failed attempts after which the invocation becomes a dead letter."""
    backoff: Duration = Field(default=200, json_schema_extra={"default": "200ms"})
    """Wait before the second attempt, doubled for each further one; 200ms."""
    timeout: Duration = Field(default=30_000, json_schema_extra={"default": "30s"})
    """Longest time one attempt may take; 30s."""


class Http(Part):
    """How a program of the contract `http` is asked."""

    port: int = Field(default=DEFAULT_HTTP_PORT, ge=1, le=65_535)
    """Where it listens in its container; as a process it is told a free port by PORT."""
    path: HttpPath = "/"
    """Where invocations are posted to."""
    format: HttpFormat = "binary"
    """Form of a single event: attributes as headers and the data as the body, or one JSON document."""
    ready: HttpPath | None = None
    """Path that answers 2xx when the program is ready; without it a program is ready when it accepts connections."""


class Stdio(Part):
    """How the output of a program of the contract `stdio` is taken."""

    content_type: MediaType | None = None
    """Media type of what it writes to its standard output."""


class Limits(Part):
    """What one instance may use (enforced for containers), and what one invocation may publish (always enforced)."""

    cpus: Cpus = 1.0
    """CPUs, also as a fraction."""
    memory: Size = "512Mi"
    """Memory."""
    pids: Pids | None = Field(default=None, json_schema_extra={"default": DEFAULT_PIDS})
    """Processes and threads; 256."""
    tmpfs: Amount | None = Field(default=None, json_schema_extra={"default": DEFAULT_TMPFS})
    """Room in /tmp, which counts as memory; 64Mi."""
    log: Amount | None = Field(default=None, json_schema_extra={"default": DEFAULT_LOG})
    """What is kept of its log; 8Mi."""
    outputs: OutputCount | None = None
    """Most events that one invocation may publish; without it the PoP's limits.outputs."""
    output_bytes: Amount | None = None
    """Most bytes of all events that one invocation publishes; without it each event has its own limit only."""


class Scale(Part):
    """How many instances run."""

    instances: int = Field(default=1, ge=1, le=MAX_INSTANCES)
    """Number of instances at the PoP, fixed; or give min and max."""
    min: int | None = Field(default=None, ge=0, le=MAX_INSTANCES)
    """Least number of instances that are awake; 0: none while there is nothing to do."""
    max: int | None = Field(default=None, ge=1, le=MAX_INSTANCES)
    """Most instances, by what arrives and what waits."""
    idle: Duration = Field(default=60_000, json_schema_extra={"default": "60s"})
    """Time without work after which the last instance sleeps (min: 0)."""
    pool: int | None = Field(default=None, ge=0, le=MAX_INSTANCES)
    """Least number of instances that exist, awake or paused; 1 with min: 0."""


class Rollout(Part):
    """How a new revision takes over from the one that serves."""

    deadline: Duration = Field(default=60_000, json_schema_extra={"default": "60s"})
    """Time from when it can be started until it is ready, and time after that in which it must not crash-loop; else the one before serves on; 60s."""


class Place(Part):
    """Where the function runs."""

    pops: Annotated[list[Pop], POPS]
    """One PoP or several."""
    run: Annotated[Literal["once", "local", "every"], one_of("once", "local", "every")] = "once"
    """Each event is handled: once in the cluster, by the PoP where it entered, by every one of the PoPs."""


class Function(Part):
    """One function: what it reads, what it writes, what runs."""

    contract: Contract = "sdk"
    """How events get to the program: the SDK, a POST, a process each, or the program's own MQTT session."""
    command: Command | None = None
    """Program and arguments, in place of the image's own; never a shell."""
    http: Http | None = None
    """Contract `http`: how the program is asked."""
    stdio: Stdio | None = None
    """Contract `stdio`: how its output is taken."""
    build: Build | None = None
    """Folder with handler.py and requirements.txt (or a Dockerfile), relative to the manifest."""
    bundle: Bundle | None = None
    """Archive of a folder that the cluster has, by its SHA-256: what `edgeflow get manifests -o yaml` writes in place of `build`."""
    image: Image | None = None
    """Container image instead of a folder (Docker mode)."""
    image_id: ImageId | None = None
    """Which image that name means; without it the one that it means when the manifest is applied."""
    qos: Annotated[Literal[1], only(1, "it belongs to the channel: `subscribe: {channel: <channel>, qos: 0}`")] = 1
    """Durable subscription; `qos: 0` is written at the channel."""
    subscribe: Subscribe
    """One channel, several, or a join."""
    latest: Latest = []
    """Side inputs: the newest event of each of these channels, or None; they start nothing."""
    state: State | None = None
    """State of each key as ctx.state, committed with the outputs; invocations of one key are handled one at a time, in order."""
    ordered: OrderedOrNot = False
    """Invocations of one key (true: of one subject) are handled one at a time, in order."""
    publish: Publish = []
    """Channels the handler may publish on, `{name}` filled from captures, `+` named by emit; with exactly one, what it returns goes there."""
    context: dict[ContextName, Key] = {}
    """EKV keys handed to the handler with their latest values, by the name it reads them under."""
    retry: Retry = Field(default=Retry(), json_schema_extra={"default": {}})
    """What happens when an attempt fails."""
    limits: Limits = Limits()
    """What one instance may use."""
    network: Annotated[Literal["none", "egress"], one_of("none", "egress")] = "none"
    """What its containers reach beside the agent: nothing, or the outside (`egress`), but neither each other nor the parts of the PoP."""
    gpus: Gpus | None = None
    """GPUs of the machine for each instance: `all`, or how many (Docker mode)."""
    secrets: Secrets = []
    """Secrets of the namespace, given as files: /run/secrets/<name>, or below EDGEFLOW_SECRETS."""
    env: dict[Variable, str] = {}
    """Environment variables of the instances."""
    scale: Scale = Scale()
    """How many instances run."""
    rollout: Rollout = Field(default=Rollout(), json_schema_extra={"default": {}})
    """How a new revision takes over."""
    place: Place | None = None
    """Where it runs; without it at the PoP the manifest is applied at."""


class Policy(Part):
    """What holds for all events of a channel or filter."""

    max_pending: Pending | None = None
    """Most events of the channel that may wait for one function at a PoP."""
    on_full: OnFull = "refuse"
    """At max_pending: refuse what is published, drop the oldest that waits, or (always) let only the newest of each subject wait."""
    deadline: Duration | None = None
    """An invocation that no instance has begun that long after its event was logged is dropped, counted as expired."""
    priority: Priority = "normal"
    """Whose bodies go first on the links while a PoP catches up: those of `high`, then of `normal`, then of `low`; entries of the log stay in order."""
    gated: bool = False
    """MQTT clients may not publish on it: all of it comes from HTTP, the SDK or functions."""


class Manifest(Part):
    """An edgeflow application."""

    namespace: Namespace
    """First level of all channels and keys; [a-z0-9-]+."""
    channels: dict[PolicyFilter, Policy] = {}
    """Policies of channels, by channel or filter."""
    functions: dict[FunctionName, Function] = Field(min_length=1)
    """The functions by name."""
