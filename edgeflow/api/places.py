"""Which PoP has what: the functions of a namespace by its manifest, and where they are placed.

What it is: lookups in the manifest as this PoP has it, and the errors that name another PoP.
What it is not: a proxy. A request is answered by the PoP that was asked, or refused with the name of the one to ask.
What must stay true: what is here is never refused because the manifest has moved its function elsewhere since.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgeflow.api.context import Api
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.errors import AtAnotherPop, NotFound

PREFIX = "manifests/"

Function = Mapping[str, Any]
"""An entry of a resolved manifest."""


def load_manifest(api: Api, namespace: str) -> dict[str, Any] | None:
    """The resolved manifest of a namespace, None when this PoP has none."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(PREFIX + namespace)
    document: dict[str, Any] | None = json.loads(value.data) if value is not None else None
    return document


def no_manifest(namespace: str) -> NotFound:
    """The error for a namespace without a manifest."""
    return NotFound(
        f"there is no manifest for namespace {namespace!r}", hint="Apply one with `edgeflow apply -f edgeflow.yaml`."
    )


def find_function(api: Api, namespace: str, name: str) -> Function:
    """A function by name. Raises BadName, and NotFound that lists those that are there."""
    document = load_manifest(api, check_namespace(namespace))
    if document is None:
        raise no_manifest(namespace)
    if name not in document["functions"]:
        there = ", ".join(sorted(document["functions"])) or "none"
        raise NotFound(
            f"there is no function {name[:80]!r} in namespace {namespace!r}; there are {there}",
            hint="`edgeflow get functions` lists them with their PoPs.",
        )
    function: Function = document["functions"][name]
    return function


def pops_of(function: Function) -> list[str]:
    """The PoPs where a function is placed."""
    return list(function["place"]["pops"])


def elsewhere(api: Api, namespace: str, name: str, what: str) -> AtAnotherPop | None:
    """The error that says where `what` of a function is, None when the function is placed here. Raises NotFound when there is no such function."""
    pops = pops_of(find_function(api, namespace, name))
    if api.settings.pop in pops:
        return None
    return AtAnotherPop(
        f"{what} of {namespace}/{name} are kept at PoP {_names(pops)}, where it is placed; this is {api.settings.pop}",
        details={"pops": pops},
    )


def absent(api: Api, namespace: str, what: str, hint: str) -> NotFound:
    """The error for something that this PoP does not have: it names the other PoPs of the namespace's functions, which may have it."""
    functions = (load_manifest(api, namespace) or {"functions": {}})["functions"].values()
    others = sorted({pop for function in functions for pop in pops_of(function)} - {api.settings.pop})
    message = f"there is no {what} in namespace {namespace!r} at PoP {api.settings.pop}"
    if not others:
        return NotFound(message, hint=hint)
    return NotFound(
        f"{message}; its functions also run at {_names(others)}", hint=f"Ask PoP {_names(others)}. {hint}", details={"pops": others}
    )  # fmt: skip


def _names(pops: Sequence[str]) -> str:
    return " or ".join(pops)
