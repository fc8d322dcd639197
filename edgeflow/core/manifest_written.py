"""A resolved manifest as it could have been written: what `edgeflow get manifests -o yaml` prints.

What it is: the way back from the resolved form to the YAML form, with archives and images by what they are.
What it is not: the file that somebody wrote: comments, folders and defaults that were left out are not in the resolved form.
What must stay true: applied again it is the same: each function has the revision that it has.
"""

from collections.abc import Mapping
from typing import Any

from edgeflow.core.manifest_wiring import input_name
from edgeflow.errors import BadManifest

_AS_IT_IS = ("command", "http", "stdio", "bundle", "image", "image_id", "network", "gpus", "secrets")


def written(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML form of a resolved manifest. Raises BadManifest when a function runs from a folder that is being edited."""
    document: dict[str, Any] = {"namespace": resolved["namespace"]}
    if resolved.get("channels"):
        document["channels"] = {pattern: _timed(policy) for pattern, policy in resolved["channels"].items()}
    document["functions"] = {name: _function(name, one) for name, one in resolved["functions"].items()}
    return document


def _function(name: str, function: Mapping[str, Any]) -> dict[str, Any]:
    if function.get("source") is not None:
        raise BadManifest(
            f"functions.{name} runs from a folder that is being edited ({function['source']['folder']})",
            hint="`edgeflow apply` its manifest, without `edgeflow dev`.",
        )
    found: dict[str, Any] = {} if function["contract"] == "sdk" else {"contract": function["contract"]}
    for field in _AS_IT_IS:
        if function.get(field) is not None:
            value = function[field]
            found[field] = (
                {one: said for one, said in value.items() if said is not None} if isinstance(value, Mapping) else value
            )
    found["subscribe"] = _subscribe(function)
    if function.get("latest"):
        found["latest"] = [_input(side) for side in function["latest"]]
    keyed = function.get("keyed")
    if keyed:
        found["state" if keyed["state"] else "ordered"] = {"by": keyed["by"]}
    for field in ("publish", "context", "env"):
        if function[field]:
            found[field] = function[field]
    if function["contract"] != "mqtt" and not _is_direct(function):  # those are not tried again
        found["retry"] = _timed(function["retry"])
    found["limits"] = dict(function["limits"])
    found["scale"] = _timed(function["scale"])
    if function.get("rollout"):
        found["rollout"] = _timed(function["rollout"])
    found["place"] = dict(function["place"])
    return found


def _is_direct(function: Mapping[str, Any]) -> bool:
    return any(one.get("qos") == 0 for one in function["inputs"])


def _subscribe(function: Mapping[str, Any]) -> Any:
    inputs = [_input(one) for one in function["inputs"]]
    join = function["join"]
    if join is None:
        if function["contract"] != "mqtt" and _is_direct(function):
            return {**inputs[0], "qos": 0}
        return inputs[0] if len(inputs) == 1 else inputs
    shape = {"by": join["by"], "within": _ms(join["within_ms"]), "on_timeout": join["on_timeout"]}
    shape |= {field: join[field] for field in ("duplicates", "max_pending") if join.get(field) is not None}
    if join["kind"] == "all":
        return {"join": inputs, **shape}
    if join["kind"] == "k":
        # The first of several cannot time out and chooses nothing: `any` says the same.
        if join["k"] == 1 and join["on_timeout"] == "dead-letter" and "duplicates" not in shape:
            del shape["on_timeout"]
            return {"join": {"any": inputs}, **shape}
        return {"join": {"k": join["k"], "of": inputs}, **shape}
    if join["kind"] == "collect":
        return {"join": {"collect": join["count"]}, **inputs[0], **shape}
    window = join["window"]
    every = {"every": _ms(window["every_ms"])} if window["type"] == "sliding" else {}
    kind = {window["type"]: _ms(window["size_ms"]), **every}
    times = {"idle": _ms(window["idle_ms"]), "lateness": _ms(window["lateness_ms"])}
    return {"join": kind, **inputs[0], **shape, **times}


def _input(one: Mapping[str, Any]) -> dict[str, Any]:
    """An input or side input, with its captures where they were."""
    levels = one["channel"].split("/")
    for capture, level in (one.get("captures") or {}).items():
        levels[level] = "{" + capture + "}"
    channel = "/".join(levels)
    found: dict[str, Any] = {"channel": channel}
    if one["name"] != input_name(channel):
        found["as"] = one["name"]
    return found | {field: one[field] for field in ("where", "by") if one.get(field) is not None}


def _timed(part: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in ms under the names that they are written with."""
    return {
        field.removesuffix("_ms"): _ms(value) if field.endswith("_ms") else value
        for field, value in part.items()
        if value is not None
    }


def _ms(value: int) -> str:
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}ms" if value else "0s"
