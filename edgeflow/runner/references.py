"""What manifests and kept revisions refer to: images and bundles that must not go.

What it is: a walk over what is stored about functions, in whatever form: every `image_id`, `image` and `bundle` in it counts.
What must stay true: a document that cannot be read stops the walk: nothing is taken for unused because of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeflow.core.channels import SYSTEM_NAMESPACE

MANIFESTS = "manifests/"
REVISIONS = "revisions/"
"""Where in the system namespace functions are described, as they are and as they were."""


class _Info(Protocol):
    @property
    def key(self) -> str: ...


@dataclass(slots=True)
class References:
    """Ids, names and digests, each with who refers to it."""

    images: dict[str, set[str]] = field(default_factory=dict)
    """By id (`sha256:<hex>`), and by name where no id is known."""
    bundles: dict[str, set[str]] = field(default_factory=dict)

    def add(self, document: object, who: str) -> None:
        """Everything in `document` that refers to something."""
        if isinstance(document, Mapping):
            image, id, bundle = document.get("image"), document.get("image_id"), document.get("bundle")
            if isinstance(id, str):
                self.images.setdefault(id, set()).add(who)
            elif isinstance(image, str):
                self.images.setdefault(image, set()).add(who)
            if isinstance(bundle, str):
                self.bundles.setdefault(bundle, set()).add(who)
            for name, part in document.items():
                inner = (
                    f"{who}/{name}" if who.count("/") < 1 and isinstance(part, Mapping) and name != "functions" else who
                )
                self.add(part, inner)
        elif isinstance(document, list):
            for part in document:
                self.add(part, who)


def references(store: Any, *, kept: bool = True) -> References:
    """What the manifests of the cluster refer to; `kept`: also what can be gone back to, and what this PoP keeps for work that is left.

    A function that is in no manifest any more has nothing to go back to. Raises ValueError for a document that cannot be read.
    """
    found = References()
    system = store.namespace(SYSTEM_NAMESPACE)
    there: set[str] = set()
    for key in _keys(system, MANIFESTS):
        value = system.get(key)
        if value is not None:
            document = json.loads(value.data)
            found.add(document, key.removeprefix(MANIFESTS))
            there |= {f"{key.removeprefix(MANIFESTS)}/{name}" for name in document["functions"]}
    if not kept:
        return found
    for key in _keys(system, REVISIONS):
        who = "/".join(key.removeprefix(REVISIONS).split("/")[:2])
        value = system.get(key) if who in there else None
        if value is not None:
            found.add(json.loads(value.data), who)
    for document in store.local.docs("revision").values():
        found.add(document.get("spec"), f"{document.get('namespace')}/{document.get('function')}")
    return found


def _keys(system: Any, prefix: str) -> Iterator[str]:
    after = ""
    while page := system.list(prefix, after=after, limit=500):
        yield from (info.key for info in page)
        after = page[-1].key
