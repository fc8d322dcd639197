"""YAML text as plain data, together with the line on which each part stands.

What it is: what lets an error about a manifest name its line.
What it is not: a general YAML loader: one document, safe types, text keys, no key twice. It reads more than YAML in one point: a level in braces
(`cam/{id}/frames`) needs no quotes inside `{...}` and `[...]`, where YAML has no meaning for it.
What must stay true: nothing in the text can make it run code or take exponential time; what is YAML means what it means everywhere.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_TEXT_BYTES = 1024 * 1024

_LEVEL = re.compile(r"(?<=/)\{([A-Za-z]\w*)\}|\{([A-Za-z]\w*)\}(?=/)", re.ASCII)
_OPEN, _CLOSE = "\ue000", "\ue001"
_HIDDEN = re.compile(f"{_OPEN}(\\w*){_CLOSE}")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something wrong with the text itself."""

    line: int | None
    path: Path
    text: str


@dataclass(slots=True)
class Document:
    """The data of a YAML text, and where it stands."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    """Line (from 1) of each key or list item by its path."""
    flaws: list[Flaw] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """Line of `path`, or of the nearest part above it that is in the text."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def load(text: str) -> Document:
    """Read YAML text. Never raises: what is wrong with the text is in `flaws`, and `data` is then None or partial."""
    document = Document()
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        document.flaws.append(Flaw(None, (), f"is larger than {MAX_TEXT_BYTES} bytes; split the application"))
        return document
    loader = yaml.SafeLoader("")
    hidden = _hide(text)
    show = _show if hidden != text else str
    try:
        loader = yaml.SafeLoader(hidden)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), document, set(), show)
            document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = show(error.problem or error.context or "cannot be read")
        document.flaws.append(
            Flaw(mark.line + 1 if mark else None, (), f"is not YAML: {problem}; correct the text there")
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        document.flaws.append(Flaw(None, (), f"is not YAML: {error}; correct the text"))
    finally:
        loader.dispose()
    return document


def _hide(text: str) -> str:
    """`text` with the braces of `/{name}` and `{name}/` as characters that YAML takes for letters; `_show` brings them back."""
    if _OPEN in text or _CLOSE in text or "\\ue00" in text.lower() or "\\u0000e00" in text.lower():
        return text
    return _LEVEL.sub(lambda found: f"{_OPEN}{found[1] or found[2]}{_CLOSE}", text)


def _show(text: str) -> str:
    return _HIDDEN.sub(r"{\1}", text)


def _walk(node: yaml.Node, path: Path, document: Document, seen: set[int], show: Callable[[str], str]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        node.value = show(node.value)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.value = show(key.value)
            name = str(key.value)
            line = key.start_mark.line + 1
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                document.flaws.append(Flaw(line, (*path, name), 'is not text as a key; put it in quotes ("...")'))
            elif name in keys:
                document.flaws.append(Flaw(line, (*path, name), "stands here twice; keep one of them"))
            keys.add(name)
            document.lines.setdefault((*path, name), line)
            _walk(value, (*path, name), document, seen, show)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            document.lines.setdefault((*path, index), value.start_mark.line + 1)
            _walk(value, (*path, index), document, seen, show)
