"""Pinning: a manifest's images by the id that their names mean now.

What must stay true: what is pinned stays pinned, and a function without an image is left as it is; the revision belongs to the content.
"""

from collections.abc import Callable, Mapping
from typing import Any

from edgeflow.core.manifest import revision_of


def pin(document: Mapping[str, Any], resolve: Callable[[str], str | None]) -> dict[str, Any]:
    """A resolved manifest whose images have ids, as far as `resolve` (name to id) knows them."""
    functions: dict[str, Any] = {}
    for name, function in document["functions"].items():
        image = function.get("image")
        id = resolve(image) if image is not None and function.get("image_id") is None else None
        if id is not None:
            function = {**function, "image_id": id}
            function["revision"] = revision_of(function)
        functions[name] = function
    return {**document, "functions": functions}
