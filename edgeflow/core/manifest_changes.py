"""What applying a manifest would change, and what it changed: function by function, field by field.

What it is: a comparison of two resolved manifests.
What must stay true: functions whose content is the same are not named, whatever else changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, with None for what is not there."""

    field: str
    """Its path: `retry.attempts`."""
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """One function that is not what it was."""

    function: str
    change: Literal["created", "changed", "removed"]
    fields: tuple[FieldChange, ...] = ()


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[FunctionChange]:
    """How the functions of two resolved manifests differ, by name; None: there is none."""
    old = (before or {}).get("functions") or {}
    new = (after or {}).get("functions") or {}
    found = []
    for name in sorted({*old, *new}):
        if name not in old:
            found.append(FunctionChange(name, "created"))
        elif name not in new:
            found.append(FunctionChange(name, "removed"))
        elif old[name] != new[name]:
            found.append(FunctionChange(name, "changed", tuple(_fields("", old[name], new[name]))))
    return found


def _fields(path: str, before: object, after: object) -> Iterator[FieldChange]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            inner = f"{path}.{name}" if path else str(name)
            yield from _fields(inner, before.get(name, _ABSENT), after.get(name, _ABSENT))
    elif before != after:
        yield FieldChange(path, None if before is _ABSENT else before, None if after is _ABSENT else after)
