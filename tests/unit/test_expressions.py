"""Expressions: what they see, what they may cost, and how each failure is said."""

import json
import time
from typing import Any

import jmespath
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeflow.core import expressions
from edgeflow.core.events import Event, make_event
from edgeflow.core.expressions import compile_expression, count_of, document_of, key_of
from edgeflow.errors import BadExpression, EdgeflowError, ExpressionFailed


def event(data: bytes = b"", **more: Any) -> Event:
    return make_event("vision/cam/3/frames", data, id="i1", source="camera", now_ms=1_700_000_000_123, **more)


def value(expression: str, data: object = None, **more: Any) -> Any:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return compile_expression(expression).value(document_of(event(body, **more), {"id": "3"}))


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("channel", "vision/cam/3/frames"),
        ("id", "i1"),
        ("source", "camera"),
        ("type", "alarm"),
        ("subject", "s"),
        ("time", "2023-11-14T22:13:20.123Z"),
        ("datacontenttype", "application/json"),
        ("attributes.level", "7"),
        ("level", "7"),
        ("captures.id", "3"),
        ("data.size", 12),
        ("data.size > `10`", True),
        ("data.size > `10` && type == 'alarm'", True),
        ("starts_with(subject, 't')", False),
        ("data.tags[?@ == 'x'] | length(@)", 2),
        ("contains(data.tags, 'y')", True),
        ("data.tags[]", ["x", "y", "x"]),
        ("data.tags[:2]", ["x", "y"]),
        ("to_number(level) == `7`", True),
        ("data.missing > `1`", None),
        ("data.size > 'a'", None),
        ("data.missing == `null`", True),
        ("(data.missing > `1`) == `true`", False),
        ("keys(attributes)", ["level"]),
        ("length(@) > `5`", True),
        ("@.data.size", 12),
        ("* | length(@) > `5`", True),
    ],
)
def test_what_expressions_see(expression: str, wanted: object) -> None:
    data = {"size": 12, "tags": ["x", "y", "x"]}
    more = {"subject": "s", "type": "alarm", "datacontenttype": "application/json", "attributes": {"level": "7"}}
    assert value(expression, data, **more) == wanted


def test_a_plain_name_is_the_subject_or_an_attribute() -> None:
    chunk = compile_expression("chunk")
    assert chunk.attribute == "chunk" and not chunk.needs_data
    assert value("chunk", attributes={"chunk": "c"}) == "c" and value("chunk") is None
    assert value("2d", attributes={"2d": "yes"}) == "yes"
    assert compile_expression("subject").attribute == "subject" and value("subject", subject="a") == "a"
    # Names of the document itself are not attributes.
    assert compile_expression("type").attribute is None and value("type", type="alarm") == "alarm"
    assert value("data", "text", attributes={"data": "attribute"}) == "text"
    assert value("attributes.data", "text", attributes={"data": "attribute"}) == "attribute"


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{", b"NaN", b"[" * 100_000, b"9" * 5000])
def test_a_body_that_is_not_json_is_null(body: bytes) -> None:
    assert value("data", body) is None


def test_the_body_is_read_once_and_only_when_it_is_needed() -> None:
    reads: list[int] = []

    def read() -> bytes:
        reads.append(1)
        return b'{"size": 1}'

    document = document_of(event(), {}, read)
    for expression in ("type == 'x'", "captures.id", "attributes.*", "subject", "length(attributes)", "keys(captures)"):
        assert not compile_expression(expression).needs_data, expression
        compile_expression(expression).value(document)
    assert not reads
    for expression in ("data.size", "@", "length(@)", "*", "[data]", "keys(@)", "@ | data", "{a: data}"):
        assert compile_expression(expression).needs_data, expression
        compile_expression(expression).value(document)
    assert reads == [1]


def test_long_bodies_are_not_looked_into() -> None:
    body = json.dumps("x" * expressions.MAX_DATA_BYTES).encode()
    with pytest.raises(ExpressionFailed, match="looks into bodies of at most"):
        value("data", body)
    assert value("type", body) == "edgeflow.message"


def test_what_the_reading_raises_passes_through() -> None:
    def read() -> bytes:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        compile_expression("data").value(document_of(event(), {}, read))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data.size > 10", "cannot be read from character 13 on, at '10'"),
        ("type = 'x'", "cannot be read from character 6 on"),
        ("a && ", "something is missing at its end (character 6)"),
        ("a.", "something is missing at its end (character 3)"),
        ("", "is empty"),
        ("  ", "missing at its end"),
        ("type == 'x", "cannot be read from character"),
        ("data.n > `ten`", "what stands in backquotes is JSON"),
        ("nope(data)", "there is no function nope() (character 1)"),
        ("type == 'x' && len (data)", "there is no function len() (character 16)"),
        ("length(data, id)", "length() takes 1 argument, not 2 (character 1)"),
        ("merge()", "merge() takes at least 1 argument, not 0"),
        ("a" * 1001, "has 1001 characters; the most is 1000"),
        ("(" * 400 + "a" + ")" * 400, "nested"),
        ("!" * 999 + "a", "nested"),
        ("(" * 60 + "a" + ")" * 60, "nested more than 50 levels deep"),
        ("!" * 60 + "a", "nested more than 50 levels deep"),
    ],
)
def test_what_is_not_an_expression_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(BadExpression) as caught:
        compile_expression(text)
    assert words in caught.value.message, caught.value.message
    assert caught.value.code == "bad-expression" and "backquotes" in caught.value.hint
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("length(subject)", "length() got null, not string or array or object"),
        ("sum(data.list)", "sum() got"),
        ("sort_by(data.list, &@)", "sort_by() got"),
        ("ceil(data.large)", "OverflowError"),
        ("data.list[::0]", "ValueError"),
        ("min_by(data.list, &x)", "min_by() got null"),
    ],
)
def test_what_fails_is_said_without_the_data(expression: str, words: str) -> None:
    body = b'{"list": [{"a": "secret"}, 1], "large": 1e999}'
    with pytest.raises(ExpressionFailed) as caught:
        value(expression, body)
    assert words in caught.value.message and "secret" not in caught.value.message
    assert caught.value.code == "expression-failed"


DOUBLED = "[@,@]" + "|[@,@]" * 40


@pytest.mark.parametrize(
    "expression",
    [
        "[data,data]" + "|[@,@][]" * 45,
        "to_string(" + DOUBLED + ")",
        f"({DOUBLED}) == ({DOUBLED} | [@,@] | [0])",
        f"contains([{DOUBLED}], {DOUBLED})",
        f"sum({DOUBLED})",
        "['aaaaaaaa','aaaaaaaa']" + "|[join('', @), join('', @)]" * 30,
        " && ".join(["sort(data.numbers)"] * 45),
        "data.numbers[?contains(`[1]`, @)][?contains(`[1]`, @)] | " * 10 + "@",
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    body = json.dumps({"numbers": list(range(100_000))}).encode()
    document = document_of(event(body), {})
    compiled = compile_expression(expression)
    compile_expression("data").value(document)  # reading is not what is measured
    started = time.process_time()
    with pytest.raises(ExpressionFailed) as caught:
        compiled.value(document)
    assert time.process_time() - started < 3
    assert len(caught.value.message) < 500


def test_a_long_list_may_be_filtered() -> None:
    body = json.dumps([{"n": n} for n in range(20_000)]).encode()
    assert value("length(data[?n > `19000`]) == `999`", body) is True


def test_the_captures_that_an_expression_names() -> None:
    assert compile_expression('captures.cam || captures."room" || attributes.x').captures == {"cam", "room"}
    assert compile_expression("subject").captures == frozenset()


def test_expressions_are_compiled_once() -> None:
    assert compile_expression("data.size > `10`") is compile_expression("data.size > `10`")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a", "a"), ("", None), (5, "5"), (5.0, "5"), (-0.0, "0"), (2.5, "2.5"), (1e300, "1e+300"), (2**60, str(2**60)), (True, None),
        (None, None), ([], None), ({}, None), (float("inf"), None), (float("nan"), None), (10**400, None),
    ],
)  # fmt: skip
def test_keys(given: object, wanted: str | None) -> None:
    assert key_of(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (5, 5), ("5", 5), ("005", 5), (5.0, 5), (0, None), ("0", None), (-1, None), ("-1", None), (100_000, 100_000), (100_001, None),
        ("100001", None), ("9" * 9000, None), (2.5, None), (True, None), (None, None), ("", None), ("٣", None), ([1], None),
    ],
)  # fmt: skip
def test_counts(given: object, wanted: int | None) -> None:
    assert count_of(given) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8,
)  # fmt: skip
PIECES = ["a", "b", "data", "data.a", "@", "`1`", "'a'", "[0]", "*", "[]", "[*]", "[?a]", " == ", " < ", " && ", " || ", "!", "(", ")", ".", "|", "length(@)",
          "[a, b]", "{a: b}", "keys(@)", "sort(@)", "to_string(@)", "&a", "[::2]"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), JSON)
@example("data.a == data.a", {"a": 0})
def test_the_value_is_jmespaths_own_where_that_has_one(text: str, data: Any) -> None:
    try:
        compiled = compile_expression(text)
    except BadExpression:
        return  # jmespath refuses the same, some of it only when it evaluates
    document = document_of(event(json.dumps(data).encode()), {})
    try:
        ours: Any = compiled.value(document)
    except ExpressionFailed:
        ours = ExpressionFailed
    if compiled.attribute is not None:
        return
    compile_expression("data").value(document)
    try:
        theirs: Any = jmespath.search(text, dict(document))
    except TypeError:
        return  # it compares text with numbers that way; here that is null
    except Exception:
        theirs = ExpressionFailed
    if not isinstance(theirs, jmespath.visitor._Expression):
        assert ours == theirs


@given(st.text(max_size=60))
def test_no_text_fails_in_any_other_way(text: str) -> None:
    try:
        compile_expression(text).value(document_of(event(b'{"a": [1]}'), {}))
    except EdgeflowError as error:
        assert error.code in ("bad-expression", "expression-failed")
