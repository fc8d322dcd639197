"""Expressions over events: JMESPath for `where:`, `by:` and a counted `collect:`.

What it is: compiling an expression once, the document it looks at, and its value, with what a value may be as a key, a number or a decision.
What it is not: a place that fetches bodies: a function that gives the body is passed in, and called only for expressions that look at `data`.
What must stay true: the same expression and event give the same value at every PoP; nothing that an author or a publisher writes makes one
evaluation take more than a bounded number of steps or bytes, and whatever goes wrong in one is ExpressionFailed.

Reference: the JMESPath specification, https://jmespath.org/specification.html.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Never

import jmespath
from jmespath import exceptions as jmespath_errors
from jmespath import functions as jmespath_functions
from jmespath import lexer, visitor

from edgeflow.core.events import ATTRIBUTE_NAME, Event, time_text
from edgeflow.errors import BadExpression, ExpressionFailed

MAX_EXPRESSION_CHARS = 1000
MAX_EXPRESSION_DEPTH = 50
MAX_STEPS = 200_000
"""Work of one evaluation: parts of the expression visited, elements and characters that functions read."""
MAX_DATA_BYTES = 1024 * 1024
"""Longest body that an expression looks into."""
MAX_COUNT = 100_000

DOCUMENT_FIELDS = frozenset(
    {"channel", "id", "source", "type", "subject", "time", "datacontenttype", "attributes", "captures", "data"}
)
"""Names at the top of the document; an extension attribute of the same name is found below `attributes` only."""

_CALLS = jmespath_functions.Functions()
_FUNCTIONS: Mapping[str, Mapping[str, Any]] = _CALLS.FUNCTION_TABLE
_FREE = frozenset({"length", "type", "not_null", "to_array", "abs", "ceil", "floor"})
_DEEP = frozenset({"to_string", "contains", "join"})

Node = Mapping[str, Any]


class Document(dict[str, Any]):
    """What expressions look at. Its `data` is None until an expression needs it; then the body is read, once."""

    __slots__ = ("_body",)

    def __init__(self, fields: Mapping[str, Any], body: Callable[[], bytes | None]) -> None:
        super().__init__(fields)
        self._body: Callable[[], bytes | None] | None = body

    def load(self) -> None:
        """Read the body. Raises ExpressionFailed when it is longer than MAX_DATA_BYTES, and whatever the function that gives it raises."""
        if self._body is None:
            return
        body = self._body()
        if body is not None and len(body) > MAX_DATA_BYTES:
            raise ExpressionFailed(
                f"the body has {len(body)} bytes; an expression looks into bodies of at most {MAX_DATA_BYTES} bytes"
            )
        self["data"] = _json(body)
        self._body = None


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression. Equal texts give the same object."""

    text: str
    needs_data: bool
    """It may look at the body. When False, the body is never asked for."""
    attribute: str | None
    """Set when the expression is nothing but `subject` or the name of an extension attribute: its value needs no document."""
    captures: frozenset[str]
    """Captures that it names, as in `captures.camera`."""
    _tree: Node | None

    def value(self, document: dict[str, Any]) -> Any:
        """What the expression says about `document`: text, number, boolean, None, list or dict.

        Raises ExpressionFailed when a function gets a value of a wrong type, or the evaluation takes more than MAX_STEPS.
        """
        if self._tree is None:
            # A plain name: `subject`, or the extension attribute.
            return document["subject"] if self.attribute == "subject" else document["attributes"].get(self.attribute)
        if isinstance(document, Document):
            if self.needs_data:
                document.load()
            document = dict(document)  # JMESPath's functions know the type dict by its name
        try:
            return _Interpreter().visit(self._tree, document)
        except ExpressionFailed:
            raise
        except jmespath_errors.JMESPathTypeError as error:
            # Not its own text: that would write out the whole value.
            self._fail(f"{error.function_name}() got {error.actual_type}, not {' or '.join(error.expected_types)}")
        except RecursionError:
            self._fail("the data is nested too deeply")
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            self._fail(f"{type(error).__name__}: {str(error)[:200]}")

    def _fail(self, why: str) -> Never:
        raise ExpressionFailed(f"{shortened(self.text)}: {why}") from None


@lru_cache(maxsize=4096)
def compile_expression(text: str) -> Expression:
    """The expression of a text. A plain name is `subject` or the extension attribute of that name.

    Raises BadExpression that says at which character it stops being one.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise BadExpression(f"{shortened(text)} has {len(text)} characters; the most is {MAX_EXPRESSION_CHARS}")
    if ATTRIBUTE_NAME.fullmatch(text) and (text == "subject" or text not in DOCUMENT_FIELDS):
        return Expression(text, needs_data=False, attribute=text, captures=frozenset(), _tree=None)
    try:
        with warnings.catch_warnings():
            # A literal that is no JSON (`yes`) would be taken as text with a warning.
            warnings.simplefilter("error", PendingDeprecationWarning)
            tree: Node = jmespath.compile(text).parsed
    except PendingDeprecationWarning:
        raise BadExpression(f"{shortened(text)}: what stands in backquotes is JSON; text stands in 'quotes'") from None
    except jmespath_errors.ParseError as error:
        raise BadExpression(f"{shortened(text)}: {_parse_problem(text, error)}") from None
    except (ValueError, RecursionError) as error:
        problem = "is nested too deeply" if isinstance(error, RecursionError) else "is empty or cannot be read"
        raise BadExpression(f"{shortened(text)} {problem}") from None
    if max(_brackets(text), _depth(tree, MAX_EXPRESSION_DEPTH + 1)) > MAX_EXPRESSION_DEPTH:
        raise BadExpression(f"{shortened(text)} is nested more than {MAX_EXPRESSION_DEPTH} levels deep")
    _check_calls(text, tree)
    needs_data = any(_sees_data(node) for node in _nodes(tree))
    return Expression(text, needs_data, attribute=None, captures=frozenset(_captures(tree)), _tree=tree)


def document_of(
    event: Event, captures: Mapping[str, str], data: Callable[[], bytes | None] | None = None
) -> dict[str, Any]:
    """The document of an event. `data` gives its body, or None when there is none to look at; it is called when an expression needs it, once.

    A body that is not JSON, or not UTF-8, is null. Without `data` the event's own inline data is used.
    """
    fields: dict[str, Any] = {name: value for name, value in event.attributes.items() if name not in DOCUMENT_FIELDS}
    fields.update(
        channel=event.channel, id=event.id, source=event.source, type=event.type, subject=event.subject, time=time_text(event.time_ms),
        datacontenttype=event.datacontenttype, attributes=dict(event.attributes), captures=dict(captures), data=None,
    )  # fmt: skip
    return Document(fields, data if data is not None else lambda: event.data)


def key_of(value: object) -> str | None:
    """The value of a `by:` as the text of a key: text as it is, a number in its shortest form (5 and 5.0 are "5"). None when it is neither, or empty."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < 10**300 else None
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def count_of(value: object) -> int | None:
    """The value of a `collect:` as a number of events from 1 to MAX_COUNT; digits as text count as well. None when it is none."""
    if isinstance(value, str) and len(value) <= 6 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 1 <= value <= MAX_COUNT else None


def shortened(text: str) -> str:
    """`text` in quotes, cut to 80 characters, for messages."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


# ------------------------------------------------------------------ evaluation


class _Interpreter(visitor.TreeInterpreter):
    """JMESPath with a bound on the work of one evaluation.

    The bound is needed because `[@, @]` copies by reference: a short expression can name a value of exponential size, and functions,
    comparisons and flattening would walk all of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = MAX_STEPS

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ExpressionFailed(
                f"the expression takes more than {MAX_STEPS} steps on this event",
                hint="Look at less of the data, or filter inside the handler.",
            )

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend(1)
        return _VISITS[node["type"]](self, node, *args, **kwargs)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        self._spend(sum(len(element) if isinstance(element, list) else 1 for element in base))
        return [part for element in base for part in (element if isinstance(element, list) else (element,))]

    def visit_slice(self, node: Any, value: Any) -> Any:
        if isinstance(value, list):
            self._spend(len(value))
        return super().visit_slice(node, value)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        compare = self.COMPARATOR_FUNC[node["value"]]
        if node["value"] in ("eq", "ne"):
            if isinstance(left, list | dict) and isinstance(right, list | dict):
                self._spend(_weight((left, right), self._left))
            return compare(left, right)
        texts = isinstance(left, str) and isinstance(right, str)
        return compare(left, right) if texts or (_is_number(left) and _is_number(right)) else None

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        arguments = [self.visit(child, value) for child in node["children"]]
        name = node["value"]
        if name in _DEEP:
            self._spend(_weight(arguments, self._left))
        elif name not in _FREE:
            self._spend(sum(len(item) for item in arguments if isinstance(item, list | dict | str)))
        return _CALLS.call_function(name, arguments)


_VISITS = {
    name.removeprefix("visit_"): getattr(_Interpreter, name) for name in dir(_Interpreter) if name.startswith("visit_")
}
"""What is done with each type of node; found once, since there is an interpreter per evaluation."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _weight(value: object, limit: int) -> int:
    """Elements and characters of `value`, all levels; stops counting above `limit`."""
    count, waiting = 0, [value]
    while waiting and count <= limit:
        item = waiting.pop()
        count += 1
        if isinstance(item, str):
            count += len(item)
        elif isinstance(item, list | tuple):
            count += len(item)
            waiting.extend(item[: limit + 1])
        elif isinstance(item, dict):
            count += len(item)
            waiting.extend(item.values())
            waiting.extend(item)
    return count


def _json(body: bytes | None) -> Any:
    if not body:
        return None
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


# ------------------------------------------------------------------ compilation


def _nodes(tree: Node) -> Iterator[Node]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for child in node.get("children", ()) if isinstance(child, dict))


def _depth(tree: Node, limit: int) -> int:
    depth, level = 0, [tree]
    while level and depth < limit:
        depth += 1
        level = [child for node in level for child in node.get("children", ()) if isinstance(child, dict)]
    return depth


def _brackets(text: str) -> int:
    """How deep brackets stand in each other. They leave no trace in the tree, but the parser calls itself for each."""
    deepest = open_ones = 0
    for token in lexer.Lexer().tokenize(text):
        if token["type"] in ("lparen", "lbracket", "lbrace", "filter"):
            open_ones += 1
            deepest = max(deepest, open_ones)
        elif token["type"] in ("rparen", "rbracket", "rbrace"):
            open_ones -= 1
    return deepest


def _sees_data(node: Node) -> bool:
    """Whether this part may be the body: by its name, or because it takes all of what it stands on."""
    kind = node["type"]
    if kind == "field":
        return bool(node["value"] == "data")
    first = (node.get("children") or [None])[0]
    return kind == "current" or (kind == "value_projection" and isinstance(first, dict) and first["type"] == "identity")


def _captures(tree: Node) -> Iterator[str]:
    for node in _nodes(tree):
        children: Sequence[Any] = node.get("children") or ()
        if node["type"] == "subexpression" and len(children) > 1:
            first, second = children[0], children[1]
            if first["type"] == second["type"] == "field" and first["value"] == "captures":
                yield second["value"]


def _check_calls(text: str, tree: Node) -> None:
    """Unknown functions and wrong numbers of arguments, which JMESPath itself notices when it evaluates."""
    for node in _nodes(tree):
        if node["type"] != "function_expression":
            continue
        name, given = node["value"], len(node["children"])
        if name not in _FUNCTIONS:
            raise BadExpression(f"{shortened(text)}: there is no function {name}() (character {_call_at(text, name)})")
        signature = _FUNCTIONS[name]["signature"]
        variadic = bool(signature and signature[-1].get("variadic"))
        if given < len(signature) or (given > len(signature) and not variadic):
            wanted = f"{'at least ' if variadic else ''}{len(signature)}"
            raise BadExpression(
                f"{shortened(text)}: {name}() takes {wanted} argument{'s' if len(signature) != 1 else ''}, "
                f"not {given} (character {_call_at(text, name)})"
            )


def _call_at(text: str, name: str) -> int:
    tokens = list(lexer.Lexer().tokenize(text))
    for token, following in pairwise(tokens):
        if token["type"] == "unquoted_identifier" and token["value"] == name and following["type"] == "lparen":
            return int(token["start"]) + 1
    return 1


def _parse_problem(text: str, error: jmespath_errors.ParseError) -> str:
    if isinstance(error, jmespath_errors.IncompleteExpressionError):
        return f"something is missing at its end (character {len(text) + 1})"
    position = int(error.lex_position) + 1
    found = text[error.lex_position : error.lex_position + 20]
    if not found:
        return f"something is missing at its end (character {position})"
    return f"cannot be read from character {position} on, at {found!r}"
