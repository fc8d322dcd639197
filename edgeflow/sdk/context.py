"""What a handler is given besides its inputs: `ctx`.

What it is: emit, the EKV view, the context values, the state, the log and the facts of one attempt.
What it is not: the socket, or what is collected for the commit (outcome.py).
What must stay true: nothing a handler emits or writes is visible anywhere before the commit; after the handler has returned nothing more is
taken.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeflow.core.channels import check_channel, fill, is_reserved, matches, template_filter
from edgeflow.core.events import ATTRIBUTE_NAME, CORE_ATTRIBUTES, LOG_ATTRIBUTES, check_text
from edgeflow.core.tokens import SESSION_ATTRIBUTE
from edgeflow.errors import BadName, BadOutput, EdgeflowError
from edgeflow.sdk.ekv import Ekv, InputSession
from edgeflow.sdk.inputs import Input
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import JSON_TYPE, Outcome, Port, encode_body, too_late
from edgeflow.sdk.state import State, type_name
from edgeflow.sdk.stored import ContextValues, Value

_TRACE_ATTRIBUTES = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """What the agent says about this function when an instance connects."""

    namespace: str
    function: str
    revision: str = ""
    instance: str = ""
    pop: str = ""
    inputs: tuple[str, ...] = ()
    lists: frozenset[str] = frozenset()
    """Inputs whose parameter is a list of events."""
    joined: bool = False
    """Whether an invocation may have more than one event: a join, a window, or side inputs."""
    captures: Mapping[str, int] = field(default_factory=dict)
    """Level of each capture of a `qos: 0` input; events of other functions come with theirs."""
    channels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The same by the name of the input, for inputs that come all in one event."""
    publish: tuple[str, ...] = ()
    """Full channel names and templates."""
    context: Mapping[str, str] = field(default_factory=dict)
    has_state: bool = False
    timeout_ms: int = 30_000
    any_channel: bool = False
    """Unit tests only: emit may use any channel."""

    @property
    def log_fields(self) -> dict[str, str]:
        """Who speaks, in each line of the log."""
        return {"pop": self.pop, "namespace": self.namespace, "function": self.function, "instance": self.instance}

    def channel(self, name: str, captures: Callable[[], Mapping[str, str]] = dict) -> str:
        """The full name of a channel that may be published on: one of `publish`, or one that a template there can become.

        Levels like `{id}` are filled from `captures`. Raises BadOutput for any other name.
        """
        full = name if name.startswith(self.namespace + "/") else f"{self.namespace}/{name}"
        if full in self.publish and not is_template(full):
            return full
        what = f"function {self.function!r} emitted on channel {name!r}"
        try:
            if "{" in full:
                full = fill(full, captures())
            if self.any_channel or full in self.publish or self._is_of_a_template(full):
                if is_reserved(check_channel(full)):
                    raise BadName(f"{full!r} is reserved", hint="Levels that begin with _ belong to edgeflow.")
                return full
        except BadName as error:
            raise BadOutput(f"{what}: {error.message}", hint=error.hint) from None
        listed = ", ".join(self.publish) or "nothing"
        raise BadOutput(f"{what}, but it publishes {listed}", hint="Add the channel to `publish:` in the manifest.")

    def _is_of_a_template(self, full: str) -> bool:
        return any(is_template(one) and matches(template_filter(one), full) for one in self.publish)


def is_template(channel: str) -> bool:
    """Whether an item of `publish` stands for more than one channel."""
    return "{" in channel or "+" in channel


class Context:
    """`ctx`: what one attempt of an invocation may use. Valid until the handler has returned."""

    __slots__ = (
        "_info", "_inputs", "_outcome", "_port", "_session", "_state", "_stored_state", "attempt", "context", "deadline", "ekv", "invocation_id", "key", "log",
        "replay", "shadow", "window",
    )  # fmt: skip

    def __init__(
        self, info: FunctionInfo, port: Port, outcome: Outcome, *, invocation_id: str, attempt: int, deadline_ms: int, inputs: Sequence[Input],
        context: Mapping[str, Value | None], log: Log, state: Mapping[str, Any] | None = None, key: str | None = None,
        window: tuple[int, int] | None = None, replay: str | None = None, shadow: bool = False,
    ) -> None:  # fmt: skip
        self._info = info
        self._port = port
        self._outcome: Outcome | None = outcome
        self._inputs = inputs
        self._state: State | None = None
        self._stored_state = state
        self.invocation_id = invocation_id
        self.attempt = attempt
        self.deadline = deadline_ms / 1000
        """Unix time in seconds at which the agent gives this attempt up."""
        self._session = InputSession(info.namespace, (one.attributes.get(SESSION_ATTRIBUTE) for one in inputs), port)
        self.ekv = Ekv(info.function, port, outcome, self._session)
        self.context = ContextValues(info.function, info.context, context)
        self.log = log
        self.key = key
        """The key of this invocation: what `by:` says of a join, a window, keyed state or an order; None for a function without one."""
        self.window = window
        """(start, end) of this invocation's window in ms since 1970, the end not included; None for a function without windows."""
        self.replay = replay
        """Id of the replay that this invocation belongs to, or None."""
        self.shadow = shadow
        """Whether what this invocation puts out is only compared with what was recorded, and seen by nobody."""

    @property
    def state(self) -> State:
        """The JSON object of this invocation's key: a dict that is committed with the outputs when it has changed; `clear()` deletes it.

        Raises BadOutput for a function without `state:` in its manifest, and when what is stored is not a JSON object.
        """
        if self._state is None:
            name = self._info.function
            if not self._info.has_state:
                raise BadOutput(
                    f"function {name!r} used ctx.state, but it has none",
                    hint="Add `state: {by: subject}` to the function in the manifest.",
                )
            self._state = State(f"function {name!r} (key {self.key!r})", self._stored_state, self._port)
        return self._state

    @property
    def namespace(self) -> str:
        """Namespace of the function."""
        return self._info.namespace

    @property
    def function(self) -> str:
        """Name of the function."""
        return self._info.function

    @property
    def pop(self) -> str:
        """Id of the PoP where this runs."""
        return self._info.pop

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.time()

    def emit(
        self, channel: str, data: Any, *, subject: str | None = None, attributes: Mapping[str, str | int | float] | None = None,
        datacontenttype: str | None = None, type: str | None = None,
    ) -> None:  # fmt: skip
        """Adds an event to the commit: `data` (bytes, str or JSON-able) on one of the function's publish channels.

        Where `publish:` has a template, any channel that it can become may be named; levels like `{id}` are filled from the captures of the
        inputs, the first that has one. `subject` is the first input's unless given. Extension attributes are not inherited, except traceparent, tracestate
        and the session of the inputs (`ekvsession`), with what this attempt has read.
        Raises BadOutput for another channel, for data that cannot be written, and for an attribute that CloudEvents does not allow.
        """
        outcome = self._outcome
        if outcome is None:
            raise too_late()
        what = f"function {self._info.function!r} emitted on channel {channel!r}"
        full = self._info.channel(channel, self._captures)
        if data is None:
            raise BadOutput(f"{what} None", hint="Emit b'' for an event with an empty body.")
        body, guessed = encode_body(data, what)
        parent = self._inputs[0] if self._inputs else None
        extensions: dict[str, str] = {}
        if parent is not None:
            inherited = parent.attributes
            if inherited:
                extensions = {name: inherited[name] for name in _TRACE_ATTRIBUTES if name in inherited}
            if subject is None:
                subject = parent.subject
            token = self._session.for_output()
            if token:
                extensions[SESSION_ATTRIBUTE] = token
        try:
            if attributes:
                extensions.update(_check_attributes(attributes))
            if subject:
                check_text("subject", subject)
            if type:
                check_text("type", type)
            if datacontenttype:
                check_text("datacontenttype", datacontenttype)
        except (EdgeflowError, TypeError, AttributeError) as error:
            raise BadOutput(
                f"{what}: {error}", hint="Attribute names are [a-z0-9]{1,20}; values are text or numbers."
            ) from None
        output = outcome.body(body)
        output.update(
            channel=full,
            subject=subject or None,
            type=type,
            datacontenttype=datacontenttype or guessed,
            attributes=extensions,
        )
        outcome.outputs.append(output)

    def publish_returned(self, data: Any) -> None:
        """Emits what the handler returned on its only publish channel; None publishes nothing. Raises BadOutput."""
        if data is None:
            return
        publish = self._info.publish
        if len(publish) != 1 or "+" in publish[0]:
            listed = ", ".join(publish) or "nothing"
            problem = "which leaves a level open" if len(publish) == 1 else "a returned value needs exactly one channel"
            raise BadOutput(
                f"function {self._info.function!r} returned a {type_name(data)}, but it publishes {listed}: {problem}",
                hint="Call ctx.emit(channel, data), or name one channel under `publish:` in the manifest.",
            )
        self.emit(publish[0], data)

    def end(self, returned: Any) -> None:
        """The handler has returned: publishes what it returned, settles the state, and closes. Raises BadOutput."""
        self.publish_returned(returned)
        change = self._state.change() if self._state is not None else None
        if change is not None and self._outcome is not None:
            what = {"delete": False, "content_type": JSON_TYPE} if change else {"delete": True, "content_type": None}
            self._outcome.state = {**(self._outcome.body(change) if change else {}), **what}
        self.close()

    def close(self) -> None:
        """Later use is refused."""
        if self._outcome is not None:
            self._outcome.closed = True
            self._outcome = None

    def _captures(self) -> Mapping[str, str]:
        """The captures of all inputs; of two with the same name the earlier input's."""
        merged: dict[str, str] = {}
        for one in reversed(self._inputs):
            merged |= one.captures
        return merged


def _check_attributes(attributes: Mapping[str, Any]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in attributes.items():
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise TypeError(f"attribute name {name!r} is not [a-z0-9]{{1,20}}")
        if name in CORE_ATTRIBUTES or name in LOG_ATTRIBUTES:
            raise TypeError(f"attribute {name!r} is set by edgeflow or has an argument of its own")
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, (int, float)):
            value = str(value)
        elif not isinstance(value, str):
            raise TypeError(f"attribute {name!r} has a {type_name(value)} as its value")
        checked[name] = check_text(name, value)
    return checked
