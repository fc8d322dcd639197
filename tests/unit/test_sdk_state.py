"""`ctx.state`: what is read, what is committed, what is refused."""

import copy
import hashlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeflow.errors import BadOutput, NotFound
from edgeflow.sdk.inputs import MAX_BODY_BYTES
from edgeflow.sdk.outcome import encode_body
from edgeflow.sdk.state import STATE_DEPTH, State


class Bodies:
    def __init__(self, bodies: dict[str, bytes] | None = None) -> None:
        self.bodies = bodies or {}
        self.fetched: list[str] = []

    def fetch(self, digest: str, ahead: Any = ()) -> bytes:
        self.fetched.append(digest)
        if digest not in self.bodies:
            raise NotFound(digest)
        return self.bodies[digest]


def state(document: Any = None, *, raw: bytes | None = None) -> State:
    """A state that holds this document; None = there is none."""
    data = raw if raw is not None else None if document is None else json.dumps(document).encode()
    stored = (
        None if data is None else {"version": "1", "digest": None, "data": data, "content_type": "application/json"}
    )
    return State("function 'count' (key 'a')", stored, Bodies())


def nested(depth: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(depth - 1):
        document = {"in": document}
    return document


# ------------------------------------------------------------------ what is committed


def test_a_state_that_is_only_read_is_not_committed() -> None:
    one = state({"n": 1, "seen": [1, {"a": "ü"}]})
    assert (one["n"], one.get("none"), "n" in one, len(one), list(one)) == (1, None, True, 2, ["n", "seen"])
    assert one["seen"][1]["a"] == "ü"
    assert one == {"n": 1, "seen": [1, {"a": "ü"}]}
    assert one.change() is None


def test_there_is_nothing_to_commit_where_nothing_was_and_nothing_is() -> None:
    one = state()
    assert (dict(one), one.change()) == ({}, None)
    one["n"] = 1
    del one["n"]
    assert one.change() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.__setitem__("n", 2),
        lambda s: s.update(n=2),
        lambda s: s["seen"].append(2),
        lambda s: s["seen"][1].update(b=3),
        lambda s: s.pop("n"),
        lambda s: s.setdefault("new", []).append(1),
        lambda s: next(iter(s.values())) and s.get("seen").clear(),
        lambda s: [value.append(1) for value in s.values() if isinstance(value, list)],
    ],
)
def test_any_change_is_committed_also_inside(change: Any) -> None:
    one = state({"n": 1, "seen": [1, {"a": 2}]})
    change(one)
    data = one.change()
    assert data
    assert json.loads(data) == dict(one) != {"n": 1, "seen": [1, {"a": 2}]}


def test_the_same_document_written_in_another_way_is_no_change() -> None:
    one = state(raw=b'{ "a" : [1, 2.50, "\\u00fc"] }')
    one["a"].append(1)
    one["a"].pop()
    assert one.change() is None
    one["a"][0] = True  # equal to 1 in Python, not in JSON
    assert one.change() == '{"a":[true,2.5,"ü"]}'.encode()


def test_an_empty_state_is_deleted_and_a_cleared_one_can_be_filled_again() -> None:
    one = state({"n": 1})
    one.clear()
    assert (dict(one), one.change()) == ({}, b"")
    one["m"] = 2
    assert one.change() == b'{"m":2}'
    again = state({"n": 1})
    again.clear()
    again["n"] = 1
    assert again.change() is None
    last = state({"n": 1})
    del last["n"]
    assert last.change() == b""


def test_a_large_state_is_fetched_when_it_is_touched() -> None:
    bodies = Bodies({"sha256:a": b'{"n":1}'})
    one = State("f", {"version": "1", "digest": "sha256:a", "data": None, "content_type": None}, bodies)
    assert (one.change(), bodies.fetched) == (None, [])
    one["m"] = 2
    assert one.change() == b'{"n":1,"m":2}'
    assert bodies.fetched == ["sha256:a"]
    data = b'{"n":1}'
    same = State("f", {"version": "1", "digest": "sha256:" + hashlib.sha256(data).hexdigest()}, Bodies())
    same.clear()
    same["n"] = 1
    assert same.change() is None
    gone = State("f", {"version": "1", "digest": "sha256:b", "data": None, "content_type": None}, bodies)
    with pytest.raises(NotFound):
        _ = gone["n"]


KEYS = st.sampled_from(["a", "b", "ü", ""])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("pop"), KEYS, st.none()),
        st.tuples(st.just("append"), KEYS, VALUES),
        st.tuples(st.just("read"), KEYS, st.none()),
        st.tuples(st.just("clear"), st.none(), st.none()),
    ),
    max_size=6,
)


def play(target: Any, steps: list[tuple[str, Any, Any]]) -> None:
    """The same steps on a State and on a dict."""
    for step, key, value in steps:
        value = copy.deepcopy(value)
        if step == "set":
            target[key] = value
        elif step == "pop":
            target.pop(key, None)
        elif step == "append":
            holder = target.setdefault(key, [])
            if isinstance(holder, list):
                holder.append(value)
        elif step == "read":
            target.get(key)
        else:
            target.clear()


def exact(document: Any) -> str:
    """Tells 1 from 1.0 and True, which == does not."""
    return json.dumps(document)


@settings(max_examples=200)
@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=5))
def test_a_state_over_attempts_is_what_a_dict_would_be(attempts: list[tuple[Any, bool]]) -> None:
    kept: bytes | None = None
    model: dict[str, Any] = {}
    for steps, is_committed in attempts:
        attempt = state(raw=kept)
        then = copy.deepcopy(model)
        play(attempt, steps)
        play(then, steps)
        assert exact(dict(attempt)) == exact(then)
        data = attempt.change()
        assert (data is None) == (exact(then) == exact(model))
        if is_committed:
            model = then
            kept = kept if data is None else data or None
        assert (kept is None) == (model == {})
        assert exact(model) == exact(json.loads(kept or b"{}"))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (float("nan"), r"state\['v'\] of function 'count' \(key 'a'\) is nan"),
        ([1, float("-inf")], r"state\['v'\]\[1\] of .* is -inf"),
        ({"x": {1, 2}}, r"state\['v'\]\['x'\] of .* is a set"),
        ({"x": [b"bytes"]}, r"state\['v'\]\['x'\]\[0\] of .* is a bytes"),
        ({1: "one"}, r"state\['v'\] of .* has the key 1, a int"),
        ({None: 0}, r"has the key None"),
        ([{True: 0}], r"state\['v'\]\[0\] of .* has the key True, a bool"),
        ({(1, 2): 0}, r"has the key \(1, 2\)"),
        ("\ud800", "not JSON-able"),
        ([10**5000], "not JSON-able"),
        (object(), "is a object, not JSON-able"),
    ],
)
def test_what_json_has_not_is_refused_by_name(value: Any, part: str) -> None:
    one = state({"n": 1})
    one["v"] = value
    with pytest.raises(BadOutput, match=part):
        one.change()


def test_keys_are_text() -> None:
    for key in (1, None, b"a", ("a",), [1]):
        with pytest.raises(BadOutput, match="not text"):
            state()[key] = 1  # type: ignore[index]


def test_depth_is_bounded_and_what_is_within_comes_back() -> None:
    one = state()
    one.update(nested(STATE_DEPTH))
    data = one.change()
    assert data is not None
    assert dict(state(raw=data)) == nested(STATE_DEPTH)
    for depth in (STATE_DEPTH + 1, sys.getrecursionlimit() * 50):
        deep = state()
        deep.update(nested(depth))
        with pytest.raises(BadOutput, match=f"more than {STATE_DEPTH} levels"):
            deep.change()


def test_a_state_that_holds_itself_is_refused() -> None:
    loop: list[Any] = [1, 2, 3]
    loop += [loop] * 50
    one = state()
    one["loop"] = loop
    with pytest.raises(BadOutput, match="Circular"):
        one.change()
    holder = state()
    holder["self"] = holder
    with pytest.raises(BadOutput, match="State, not JSON-able"):
        holder.change()


def test_a_state_that_is_too_large_is_refused() -> None:
    one = state()
    one["fits"] = "x" * (MAX_BODY_BYTES - 11)
    data = one.change()
    assert data is not None and len(data) == MAX_BODY_BYTES
    one["x"] = 1
    with pytest.raises(BadOutput, match=rf"has {MAX_BODY_BYTES + 6} bytes; the limit is"):
        one.change()


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "is a JSON list"),
        (b"null", "is a JSON NoneType"),
        pytest.param(b"[" * 200_000, "is not JSON", id="deep lists"),
        pytest.param(b'{"a":' * 200_000, "is not JSON", id="deep objects"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "is not JSON", id="long number"),
    ],
)
def test_a_stored_state_that_is_no_object_is_refused_and_can_be_cleared(raw: bytes, part: str) -> None:
    damaged = state(raw=raw)
    for use in (lambda: damaged["a"], lambda: len(damaged), lambda: damaged.__setitem__("a", 1)):
        with pytest.raises(BadOutput, match=part):
            use()
    assert damaged.change() is None
    damaged.clear()
    assert damaged.change() == b""


def test_a_state_can_be_published_as_it_is() -> None:
    one = state({"n": 1})
    assert encode_body(one, "x") == (b'{"n":1}', "application/json")
    assert encode_body({"state": one}, "x")[0] == b'{"state":{"n":1}}'
