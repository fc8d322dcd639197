"""Sets: what was applied together from one folder, so that what is gone from the folder can be removed from the cluster.

What it is: the documents that a folder may hold, the parts that they declare, and the record of a set (`sets/<name>` of the system namespace).
What it is not: reading of folders or talking to a PoP (edgeflow.cli.folders).
What must stay true: a part is declared once; what another set holds is never one's own to remove; what was applied is in the record before it is
applied, so that nothing that was applied is ever forgotten.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeflow.errors import BadSet

Kind = Literal["manifest", "policies", "quota"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SET_KEYS = "sets/"
MAX_PARTS = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NAMESPACE = re.compile(r"[a-z0-9-]{1,63}")
_MANIFEST = frozenset({"functions", "channels"})
_SETTINGS = ("policies", "quota")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One thing that a set declares."""

    namespace: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} of {self.namespace}"


@dataclass(frozen=True, slots=True)
class SetRecord:
    """What is known of a set."""

    name: str
    parts: frozenset[Part] = frozenset()
    at_ms: int = 0
    by: str = ""
    source: str = ""
    """The folder that it was applied from last, as whoever applied it called it."""

    def to_json(self) -> dict[str, Any]:
        """The record as it is stored and shown."""
        parts = [{"kind": part.kind, "namespace": part.namespace} for part in sorted(self.parts)]
        return {"name": self.name, "parts": parts, "at_ms": self.at_ms, "by": self.by, "source": self.source}


def check_set_name(name: str) -> str:
    """`name` itself. Raises BadSet."""
    if not _NAME.fullmatch(name):
        raise BadSet(
            f"{name[:80]!r} is not the name of a set", hint="1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-': --set apps."
        )
    return name


def parse_record(document: object) -> SetRecord:
    """A record, as `to_json` writes it. Raises BadSet."""
    try:
        assert isinstance(document, Mapping)
        items = document["parts"]
        if len(items) > MAX_PARTS:
            raise BadSet(f"a set has at most {MAX_PARTS} parts, not {len(items)}")
        parts = [Part(item["namespace"], item["kind"]) for item in items]
        for part in parts:
            if part.kind not in KINDS or not _NAMESPACE.fullmatch(part.namespace):
                raise BadSet(f"{part} is no part of a set; kinds are {', '.join(KINDS)}")
        return SetRecord(
            check_set_name(document["name"]), frozenset(parts), int(document.get("at_ms", 0)), str(document.get("by", ""))[:200],
            str(document.get("source", ""))[:1000],
        )  # fmt: skip
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadSet(f"the record of a set cannot be read: {error!r}") from None


def load_record(data: bytes) -> SetRecord:
    """A stored record. Raises BadSet."""
    try:
        return parse_record(json.loads(data))
    except ValueError as error:
        raise BadSet(f"the record of a set cannot be read: {error}") from None


def kinds_of(document: object, where: str) -> list[Kind]:
    """What one YAML document declares: a manifest, or settings of a namespace. Raises BadSet that says what it would have to be."""
    hint = "A document has `namespace:` and either `functions:` (a manifest) or `policies:` and `quota:` (settings of a namespace); other YAML stays outside the folder, or in a function's own."
    if not isinstance(document, Mapping) or not (_MANIFEST | set(_SETTINGS)) & set(document):
        raise BadSet(f"{where} is neither a manifest nor settings of a namespace", hint=hint)
    if _MANIFEST & set(document):
        mixed = [name for name in _SETTINGS if name in document]
        if mixed:
            raise BadSet(
                f"{where}: `{mixed[0]}` stands in a manifest; put it into a document of its own, behind a line `---`",
                hint=hint,
            )
        return ["manifest"]
    unknown = sorted(str(name) for name in document if name not in ("namespace", *_SETTINGS))
    if unknown:
        raise BadSet(f"{where} has a field {unknown[0][:40]!r}, which settings of a namespace do not have", hint=hint)
    namespace = document.get("namespace")
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace) or namespace == "system":
        raise BadSet(
            f"{where}: the namespace is {str(namespace)[:40]!r}",
            hint="namespace: 1 to 63 of a-z, 0-9 and '-'; `system` is taken.",
        )
    return [kind for kind in KINDS if kind in document]


def left_behind(record: SetRecord, declared: Collection[Part], others: Iterable[SetRecord]) -> list[Part]:
    """What the set held and does not declare any more, without what another set holds now."""
    elsewhere = {part for other in others if other.name != record.name for part in other.parts}
    return sorted(record.parts - set(declared) - elsewhere)
