"""What is wrong with a manifest, in one line each: the line, the path, the problem and what to write instead.

What it is: problems, the error that carries them, and the words for what pydantic finds.
What it is not: the finding of problems (the models, manifest_rules).
What must stay true: a field that this version does not have is refused by name with what to write instead; no message shows a Python type
or an internal tag.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Never

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from edgeflow.core import manifest_models as models
from edgeflow.core import yamldoc
from edgeflow.core.manifest_rules import EVERY_EVENT_COUNTS, FIRST_STARTS
from edgeflow.core.manifest_scalars import listed
from edgeflow.errors import BadManifest

_DURABLE_JOIN = (
    "what waits for other events is kept, so a join is durable; remove the field, or subscribe to one channel"
)
_ONE_POP = "name one PoP: `place: {pops: [<pop>]}`"

NOT_AVAILABLE: dict[str, str] = {
    "channels.*.deliver": "every PoP of the namespace gets the data; remove the field",
    "functions.*.subscribe.qos": _DURABLE_JOIN,
    "functions.*.subscribe.*.qos": "`qos: 0` is for functions with one channel: `subscribe: {channel: <channel>, qos: 0}`; remove the field",
    "functions.*.subscribe.join.qos": _DURABLE_JOIN,
    "functions.*.subscribe.join.*.qos": _DURABLE_JOIN,
    "functions.*.subscribe.join.any.*.qos": _DURABLE_JOIN,
    "functions.*.subscribe.join.of.*.qos": _DURABLE_JOIN,
    "functions.*.scale.concurrency": "an instance handles one event at a time, so that handlers need not be thread-safe; write `scale: {max: n}`",
    "functions.*.scale.prefetch": "the agent chooses it; remove the field",
    "functions.*.place.near": _ONE_POP,
    "functions.*.place.prefer": _ONE_POP,
}
"""Fields of the full manifest that this version refuses, with what to write instead."""

_WINDOW = "goes with windows: subscribe: {join: {tumbling: 10s}, channel: <channel>, by: subject}"
_JOINED = "goes with a join, as in {join: [<channel>, <channel>], by: subject, within: 10s}"
_EACH = "each channel of a join has its own: join: [{channel: <channel>, as: <name>}, ...]"
_BESIDE = "stands beside `subscribe`, not in it"

MISPLACED: dict[str, str] = {
    "channels.*.qos": "belongs to the subscription: subscribe: {channel: <channel>, qos: 0}",
    "functions.*.where": "belongs to the subscription: subscribe: {channel: <channel>, where: ...}",
    "functions.*.window": "belongs to the subscription: subscribe: {join: {tumbling: 10s}, channel: <channel>, by: subject}",
    "functions.*.windows": "belongs to the subscription: subscribe: {join: {tumbling: 10s}, channel: <channel>, by: subject}",
    "functions.*.join": "belongs to the subscription: subscribe: {join: [<channel>, <channel>]}",
    "functions.*.gated": "belongs to the channel: channels: {<channel>: {gated: true}}",
    "functions.*.deadline": "belongs to the channel: channels: {<channel>: {deadline: 2s}}",
    "functions.*.max_pending": "belongs to the channel (channels: {<channel>: {max_pending: 1000}}), or to a join",
    "functions.*.on_full": "belongs to the channel: channels: {<channel>: {max_pending: 1000, on_full: drop-oldest}}",
    "functions.*.deliver": "belongs to the channel, and is not available in this version; remove the field",
    "functions.*.subscribe.window": _WINDOW,
    "functions.*.subscribe.lateness": _WINDOW,
    "functions.*.subscribe.idle": _WINDOW,
    "functions.*.subscribe.every": "goes with sliding windows: join: {sliding: 10s, every: 2s}",
    "functions.*.subscribe.join.every": "goes with sliding windows: join: {sliding: 10s, every: 2s}",
    "functions.*.subscribe.join.k": "goes with a list of channels: join: {k: 2, of: [<channel>, <channel>, <channel>]}",
    "functions.*.subscribe.by": _JOINED,
    "functions.*.subscribe.within": _JOINED,
    "functions.*.subscribe.on_timeout": _JOINED,
    "functions.*.subscribe.duplicates": _JOINED,
    "functions.*.subscribe.max_pending": _JOINED + "; for a channel it is channels: {<channel>: {max_pending: 1000}}",
    "functions.*.subscribe.as": _EACH,
    "functions.*.subscribe.channel": "stands beside the channels of the join; name all of them there",
    "functions.*.subscribe.latest": _BESIDE,
    "functions.*.subscribe.state": _BESIDE,
    "functions.*.subscribe.ordered": _BESIDE,
    "functions.*.latest.where": "side inputs are not filtered; look at the event in the handler",
    "functions.*.latest.*.where": "side inputs are not filtered; look at the event in the handler",
    "functions.*.latest.qos": "side inputs are kept, so they are durable; remove the field",
    "functions.*.latest.*.qos": "side inputs are kept, so they are durable; remove the field",
}
"""Fields that exist, but not there, with where they go."""

_MISPLACED_IN = {
    ("<collect>", "duplicates"): EVERY_EVENT_COUNTS,
    ("<window>", "duplicates"): EVERY_EVENT_COUNTS,
    ("<any>", "duplicates"): FIRST_STARTS,
    ("<any>", "on_timeout"): "the first event starts the function, so nothing times out; remove the field",
}

_JOINS = (models.JoinAll, models.JoinAny, models.JoinK, models.JoinCollect, models.JoinWindow)
_FIELDS: dict[str, tuple[type[BaseModel], ...]] = {
    "": (models.Manifest,),
    "channels.*": (models.Policy,),
    "functions.*": (models.Function,),
    "functions.*.http": (models.Http,),
    "functions.*.stdio": (models.Stdio,),
    "functions.*.retry": (models.Retry,),
    "functions.*.limits": (models.Limits,),
    "functions.*.scale": (models.Scale,),
    "functions.*.rollout": (models.Rollout,),
    "functions.*.place": (models.Place,),
    "functions.*.state": (models.State,),
    "functions.*.ordered": (models.Ordered,),
    "functions.*.latest": (models.SideInput,),
    "functions.*.latest.*": (models.SideInput,),
    "functions.*.subscribe": (*_JOINS, models.Single),
    "functions.*.subscribe.*": (models.Named,),
    "functions.*.subscribe.join": (models.Collect, models.AnyOf, models.KOf, models.Tumbling, models.Sliding, models.Session),
    "functions.*.subscribe.join.*": (models.Named,),
    "functions.*.subscribe.join.any.*": (models.Named,),
    "functions.*.subscribe.join.of.*": (models.Named,),
}  # fmt: skip

_MISSING = {
    "namespace": "is missing; write `namespace: <name>`",
    "functions": "is missing; write `functions:` with one entry per function",
    "functions.*.subscribe": "is missing; name the channel that starts the function: subscribe: <channel>",
    "functions.*.subscribe.by": "is missing; name what events of one group share, as in by: chunk (by: \"'all'\" is one group for all)",
    "functions.*.subscribe.channel": "is missing; name the channel",
    "functions.*.subscribe.*.channel": "is missing; name the channel",
    "functions.*.subscribe.join.of": "is missing; list the channels: join: {k: 2, of: [<channel>, <channel>, <channel>]}",
    "functions.*.subscribe.join.k": "is missing; say how many of the channels are needed: join: {k: 2, of: [...]}",
    "functions.*.subscribe.join.every": "is missing; say how often a window starts: join: {sliding: 10s, every: 2s}",
    "functions.*.subscribe.join.collect": "is missing; a join is a list of channels, or one of {any: [...]}, {k: 2, of: [...]}, {collect: 5}, "
    "{tumbling: 10s}, {sliding: 10s, every: 2s} and {session: 30s}",
    "functions.*.state.by": "is missing; say what the key is, as in state: {by: subject}",
    "functions.*.place.pops": "is missing; name one PoP, as in pops: [la]",
}

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a map of names to values",
    "list_type": "a list",
    "model_type": "a map of fields",
}

_TAGS = frozenset(
    {
        "<one>", "<named>", "<single>", "<several>", "<all>", "<any>", "<k>", "<collect>", "<window>", "<channel>", "<tumbling>", "<sliding>",
        "<session>", "<side>", "<flag>", "<by>", "[key]",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    line: int | None
    path: yamldoc.Path
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        place = ".".join(str(part) for part in self.path)
        return f"{where}{place or 'manifest'}: {self.text}"


def raise_problems(name: str, problems: Iterable[Problem]) -> Never:
    """Raise BadManifest with one line per problem, in order of their lines."""
    lines = sorted({str(problem): (problem.line or 0, str(problem)) for problem in problems}.values())
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise BadManifest(f"{name}: {count}\n" + "\n".join(f"  {text}" for _, text in lines))


def problem_of(detail: ErrorDetails, document: yamldoc.Document) -> Problem:
    """What pydantic found, in the words of the manifest."""
    path = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part in _TAGS))
    return Problem(document.line_of(path), path, _explain(detail, path))


def is_key_type(detail: ErrorDetails) -> bool:
    """Whether a key of a map is not text (the YAML reader says that with its line)."""
    return detail["type"] == "string_type" and detail["loc"][-1:] == ("[key]",)


def _explain(detail: ErrorDetails, path: yamldoc.Path) -> str:
    kind, value = detail["type"], detail["input"]
    pattern = _pattern(path)
    if kind == "edgeflow":
        return detail["msg"]
    if kind == "extra_forbidden":
        return _explain_unknown(detail, path, pattern)
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


def _explain_unknown(detail: ErrorDetails, path: yamldoc.Path, pattern: str) -> str:
    field = str(path[-1])
    tags = [part for part in detail["loc"] if part in _TAGS]
    special = next((_MISPLACED_IN[tag, field] for tag in map(str, tags) if (tag, field) in _MISPLACED_IN), None)
    if special is not None:
        return special
    if pattern in NOT_AVAILABLE:
        return f"not available in this version; {NOT_AVAILABLE[pattern]}"
    if pattern in MISPLACED:
        return MISPLACED[pattern]
    known = _fields_at(pattern.rpartition(".")[0])
    close = difflib.get_close_matches(field, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close and close[0] != field else ""
    return f"unknown field; {guess}here are possible: {listed(known)}" if known else "unknown field; remove it"


def _pattern(path: yamldoc.Path) -> str:
    """`functions.detect.scale.max` -> `functions.*.scale.max`: names of functions and channels, and list positions become `*`."""
    names = ["*" if isinstance(part, int) or index == 1 else str(part) for index, part in enumerate(path)]
    return ".".join(names)


def _fields_at(pattern: str) -> list[str]:
    fields: set[str] = set()
    for model in _FIELDS.get(pattern, ()):
        fields |= {item.alias or name for name, item in model.model_fields.items()}
    return sorted(fields)
