"""What a handler's ctx collects, without a socket."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.channels import check_channel, matches, template_filter
from edgeflow.core.events import BlobRef, Event
from edgeflow.core.tokens import Session
from edgeflow.errors import BadName, BadOutput, BadRequest, NotFound
from edgeflow.sdk.context import Context, FunctionInfo
from edgeflow.sdk.inputs import MAX_VALUE_BYTES, BodyCache, Input, make_inputs
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import JSON_TYPE, TEXT_TYPE, Outcome, encode_body
from edgeflow.sdk.stored import Value


class MemoryPort:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.keys: dict[str, int] = {}
        self.fetched: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.token = ""

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        self.fetched.append(digest)
        if digest not in self.blobs:
            raise NotFound(digest)
        return self.blobs[digest]

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        if request["t"] == "list":
            keys = sorted(key for key in self.keys if key.startswith(request["prefix"]) and key > request["after"])
            return {"items": [{"key": key, "version": "1", "size": self.keys[key]} for key in keys[: request["limit"]]]}
        key = request["key"]
        if request["t"] == "versions":
            return {"items": self.kept}
        found = {"key": key, "version": "1", "size": self.keys.get(key, 0), "data": b"", "content_type": None}
        return {"value": found if key in self.keys else None, "token": self.token}

    def session(self, token: str) -> str:
        return token or Session("vision").with_vector({("la", 1): 9}).text()

    def store_blob(self, digest: str, data: bytes) -> None:
        self.blobs[digest] = data


def stored(data: bytes = b"x", **more: Any) -> dict[str, Any]:
    return Event(
        "vision/frames", "e1", "s", "t", 1000, data=None if "ref" in more else data, **more
    ).encode_positioned()


def context(
    publish: tuple[str, ...] = ("vision/faces",),
    *,
    subject: str | None = "clip/1",
    keys: dict[str, str] | None = None,
    **more: Any,
) -> tuple[Context, Outcome, MemoryPort]:
    port = MemoryPort()
    outcome = Outcome(port)
    info = FunctionInfo("vision", "detect", publish=publish, context=keys or {}, has_state=more.pop("has_state", False))
    event = stored(subject=subject, attributes=more.pop("attributes", {}))
    inputs = [Input("frames", event, port, captures) for captures in more.pop("captures", [{}])]
    ctx = Context(
        info,
        port,
        outcome,
        invocation_id="a",
        attempt=1,
        deadline_ms=5000,
        inputs=inputs,
        context=more.pop("values", {}),
        log=Log({}),
        **more,
    )
    return ctx, outcome, port


@pytest.mark.parametrize(
    ("data", "body", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", None),
        (bytearray(b"x"), b"x", None),
        (memoryview(b"xy")[1:], b"y", None),
        ("gr\u00fcn", "gr\u00fcn".encode(), TEXT_TYPE),
        ({"n": [1, 2.5, None, "\u00fc"]}, '{"n":[1,2.5,null,"\u00fc"]}'.encode(), JSON_TYPE),
        ([], b"[]", JSON_TYPE),
        (False, b"false", JSON_TYPE),
        (0, b"0", JSON_TYPE),
    ],
)
def test_bodies(data: Any, body: bytes, content_type: str | None) -> None:
    assert encode_body(data, "test emitted") == (body, content_type)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({1, 2}, "set"),
        (float("inf"), "float"),
        ("\ud800", "str"),
        ({"a": object()}, "dict"),
        (Value("k", None), "edgeflow.sdk.stored.Value"),
    ],
)
def test_a_body_that_cannot_be_written_names_its_type(data: Any, kind: str) -> None:
    with pytest.raises(BadOutput, match=f"function 'f' emitted on 'c' a {kind}, which is neither"):
        encode_body(data, "function 'f' emitted on 'c'")


def test_a_circular_or_too_large_body_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadOutput):
        encode_body(loop, "x")
    with pytest.raises(BadOutput, match="the limit is"):
        encode_body(bytes(MAX_VALUE_BYTES + 1), "x")


def test_emit_takes_relative_and_full_names_and_keeps_the_order() -> None:
    ctx, outcome, _ = context(("vision/faces", "vision/deep/er"))
    ctx.emit("faces", b"1")
    ctx.emit(
        "vision/deep/er",
        "2",
        subject="own",
        attributes={"count": 500, "share": 0.5, "last": True, "x": "y"},
        type="face.found",
        datacontenttype="text/csv",
    )
    ctx.emit("deep/er", [3], subject="")
    assert [(o["channel"], o["data"], o["subject"]) for o in outcome.outputs] == [
        ("vision/faces", b"1", "clip/1"),
        ("vision/deep/er", b"2", "own"),
        ("vision/deep/er", b"[3]", None),
    ]
    assert outcome.outputs[1]["attributes"] == {"count": "500", "share": "0.5", "last": "true", "x": "y"}
    assert (outcome.outputs[1]["type"], outcome.outputs[1]["datacontenttype"]) == ("face.found", "text/csv")


def test_only_trace_attributes_are_inherited_and_can_be_replaced() -> None:
    ctx, outcome, _ = context(attributes={"traceparent": "00-a", "tracestate": "b", "count": "500"})
    ctx.emit("faces", b"1")
    ctx.emit("faces", b"1", attributes={"traceparent": "00-mine"})
    assert [o["attributes"] for o in outcome.outputs] == [
        {"traceparent": "00-a", "tracestate": "b"},
        {"traceparent": "00-mine", "tracestate": "b"},
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("matches", b"1"), "'matches', but it publishes vision/faces"),
        (("other/faces", b"1"), "'other/faces', but it publishes"),
        (("faces", None), "None"),
    ],
)
def test_emit_refuses(arguments: tuple[Any, ...], part: str) -> None:
    ctx, outcome, _ = context()
    with pytest.raises(BadOutput, match=part):
        ctx.emit(*arguments)
    assert not outcome.outputs


@pytest.mark.parametrize(
    "attributes", [{"Upper": "x"}, {"a" * 21: "x"}, {"id": "x"}, {"seq": "1"}, {"x": None}, {"x": "a\nb"}, {"x": ["y"]}]
)
def test_emit_refuses_attributes_that_cloudevents_has_not(attributes: Any) -> None:
    ctx, _, _ = context()
    with pytest.raises(BadOutput, match=r"detect.*faces"):
        ctx.emit("faces", b"1", attributes=attributes)
    with pytest.raises(BadOutput, match="subject"):
        ctx.emit("faces", b"1", subject="a\x00b")


def test_a_returned_value_needs_exactly_one_channel() -> None:
    ctx, outcome, _ = context()
    ctx.publish_returned(None)
    assert not outcome.outputs
    ctx.publish_returned(0)
    assert outcome.outputs[0]["data"] == b"0"
    for publish, named in ((), "publishes nothing"), (("vision/a", "vision/b"), "publishes vision/a, vision/b"):
        ctx, _, _ = context(publish)
        ctx.publish_returned(None)
        with pytest.raises(BadOutput, match=named):
            ctx.publish_returned(b"x")


def test_ctx_is_refused_after_the_handler() -> None:
    ctx, _, _ = context()
    ctx.close()
    with pytest.raises(BadOutput, match="after the handler"):
        ctx.emit("faces", b"1")


def test_the_ekv_reads_its_own_writes_and_the_last_one_counts() -> None:
    ctx, outcome, port = context()
    port.keys = {"m/a": 1}
    ctx.ekv.put("m/a", b"first")
    ctx.ekv.put("m/a", "second", content_type="text/x")
    value = ctx.ekv.get("m/a")
    assert value is not None
    assert (value.text(), value.content_type, value.version) == ("second", "text/x", None)
    assert ctx.ekv.get("m/a", version="1").version == "1"  # type: ignore[union-attr]
    ctx.ekv.delete("m/a")
    assert ctx.ekv.get("m/a") is None
    assert [v["delete"] for v in outcome.values.values()] == [True]
    with pytest.raises(BadName):
        ctx.ekv.put("a//b", b"")
    with pytest.raises(BadOutput, match="put under key 'k' a set"):
        ctx.ekv.put("k", {1})


@given(
    st.sets(st.sampled_from("abcdefgh")),
    st.dictionaries(st.sampled_from("abcdefghij"), st.booleans()),
    st.integers(1, 12),
    st.sampled_from(["", "c", "zz"]),
)
def test_a_listing_is_what_the_store_would_say_after_the_commit(
    there: set[str], writes: dict[str, bool], limit: int, after: str
) -> None:
    ctx, _, port = context()
    port.keys = dict.fromkeys(there, 1)
    for key, keep in writes.items():
        if keep:
            ctx.ekv.put(key, b"xy")
        else:
            ctx.ekv.delete(key)
    expected = sorted(
        key
        for key in (there | {k for k, keep in writes.items() if keep}) - {k for k, keep in writes.items() if not keep}
        if key > after
    )
    found: list[str] = []
    while page := ctx.ekv.list("", after=found[-1] if found else after, limit=limit):
        assert len(page) <= limit
        found += [one.key for one in page]
    assert found == expected


def test_a_read_asks_for_as_much_freshness_as_it_was_told_to() -> None:
    ctx, _, port = context()
    port.keys = {"k": 3}
    head = ctx.ekv.head("k", max_staleness_s=0.25, wait_s=2)
    assert head is not None
    assert (head.key, head.version, head.size, head.kind) == ("k", "1", 3, "register")
    ctx.ekv.get("k", version="v", wait_s=0.0001)
    assert ctx.ekv.get("none", strong=True) is None
    ctx.ekv.list("p", max_staleness_s=0)
    assert port.requests == [
        {"t": "head", "key": "k", "max_staleness_ms": 250, "wait_ms": 2000},
        {"t": "get", "key": "k", "version": "v", "wait_ms": 1},
        {"t": "get", "key": "none", "strong": True},
        {"t": "list", "prefix": "p", "after": "", "limit": 100, "max_staleness_ms": 0},
    ]
    for attempt in (
        lambda: ctx.ekv.get("k", version="v", strong=True),
        lambda: ctx.ekv.get("k", strong=True, max_staleness_s=1),
        lambda: ctx.ekv.get("k", wait_s=-1),
        lambda: ctx.ekv.head("k", max_staleness_s=float("nan")),
        lambda: ctx.ekv.list("k", wait_s="5s"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadRequest):
            attempt()


def test_heads_versions_and_all_keys() -> None:
    ctx, _, port = context()
    port.keys = {f"k/{n:02}": n for n in range(25)}
    ctx.ekv.put("k/00", "mine", content_type="text/x")
    ctx.ekv.delete("k/01")
    mine = ctx.ekv.head("k/00")
    assert mine is not None
    assert (mine.version, mine.size, mine.content_type) == (None, 4, "text/x")
    assert ctx.ekv.head("k/01") is None
    assert ctx.ekv.head("k/99") is None
    assert [one.key for one in ctx.ekv.scan("k/", page=4)] == [f"k/{n:02}" for n in range(25) if n != 1]
    port.kept = [{"version": "2", "size": 1, "content_type": None, "current": True, "origin": "la", "later": 1}]
    (version,) = ctx.ekv.versions("k/02")
    assert (version.version, version.current, version.origin) == ("2", True, "la")


def test_a_commit_is_bound_to_what_its_writes_ask_for() -> None:
    ctx, outcome, _ = context()
    ctx.ekv.put("a", b"1", if_version="7")
    ctx.ekv.put("a", b"2")
    ctx.ekv.put("b", b"1", if_absent=True)
    ctx.ekv.delete("b")
    ctx.ekv.delete("c", if_version="8")
    ctx.ekv.put("d", b"1")
    bound = {one["key"]: (one.get("if_version"), one.get("if_absent")) for one in outcome.commit_fields()["values"]}
    assert bound == {"a": ("7", None), "b": (None, True), "c": ("8", None), "d": (None, None)}
    for attempt in (
        lambda: ctx.ekv.put("a", b"3", if_version="8"),
        lambda: ctx.ekv.put("a", b"3", if_absent=True),
        lambda: ctx.ekv.put("e", b"3", if_version="8", if_absent=True),
        lambda: ctx.ekv.put("e", b"3", if_version=""),
        lambda: ctx.ekv.put("e", b"3", if_version=5),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadOutput, match=r"if_version|condition"):
            attempt()
    assert "e" not in outcome.values


@pytest.mark.parametrize("name", ["watch", "session", "batch", "counter", "set", "map", "change", "has", "standing"])
def test_what_makes_no_sense_in_a_handler_says_what_to_do_instead(name: str) -> None:
    ctx, _, _ = context()
    with pytest.raises(AttributeError, match=rf"ctx\.ekv has no {name}: .{{10}}"):
        getattr(ctx.ekv, name)
    with pytest.raises(AttributeError, match=r"ctx\.ekv has no 'putt'$"):
        ctx.ekv.putt("a", b"")  # type: ignore[attr-defined]


def test_context_values_are_attributes_and_unknown_names_are_refused() -> None:
    model = Value("models/poi", "3", data=b"[1]")
    ctx, _, _ = context(keys={"model": "models/poi", "none": "models/none"}, values={"model": model})
    assert ctx.context.model is model
    assert ctx.context["model"].json() == [1]  # type: ignore[union-attr]
    assert ctx.context.none is None
    with pytest.raises(AttributeError, match="no context value 'modle'; its manifest names model, none"):
        _ = ctx.context.modle


def test_log_lines_are_json_with_the_bound_fields() -> None:
    stream = io.StringIO()
    log = Log({"function": "detect", "invocation": "a", "attempt": 2}, stream)
    log.info("face_found", score=0.5, thing={1})
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("broken")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["event"], first["level"], first["invocation"], first["attempt"], first["score"], first["thing"]) == (
        "face_found",
        "info",
        "a",
        2,
        0.5,
        "{1}",
    )
    assert "ValueError: x" in second["exception"]


def test_inputs_show_the_event() -> None:
    port = MemoryPort()
    event = stored(
        b'{"a":1}', subject="s/1", datacontenttype=JSON_TYPE, attributes={"count": "5"}, origin="la", epoch=1, seq=7
    )
    one = Input("frames", event, port)
    assert (one.data, one.json(), one.text(), one.size_bytes) == (b'{"a":1}', {"a": 1}, '{"a":1}', 7)
    assert (one.id, one.channel, one.source, one.type, one.subject, one.datacontenttype) == (
        "e1",
        "vision/frames",
        "s",
        "t",
        "s/1",
        JSON_TYPE,
    )
    assert one.attributes["count"] == "5"
    assert (one.time_ms, one.time.isoformat(), one.ref) == (1000, "1970-01-01T00:00:01+00:00", None)
    assert (one.event.origin, one.event.seq) == ("la", 7)
    with pytest.raises(AttributeError):
        one.data = b""  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.attributes["count"] = "6"  # type: ignore[index]


def test_an_input_behind_a_reference_is_fetched_by_data_only() -> None:
    port = MemoryPort()
    port.blobs["sha256:a"] = b"body"
    one = Input("frames", stored(ref=BlobRef("sha256:a", 4)), port)
    assert (one.size_bytes, one.ref, repr(one).count("4 B"), port.fetched) == (4, BlobRef("sha256:a", 4), 1, [])
    assert one.data == b"body"
    with pytest.raises(NotFound):
        _ = Input("frames", stored(ref=BlobRef("sha256:b", 4)), port).data


def test_inputs_by_name() -> None:
    port = MemoryPort()
    items = [{"name": "faces", "event": stored(b"1")}, {"name": "frames", "event": stored(b"2")}]
    arguments, made = make_inputs(items, ("frames", "faces"), port)
    assert (arguments["frames"].data, arguments["faces"].data) == (b"2", b"1")
    assert made == [arguments["faces"], arguments["frames"]]
    collected, made = make_inputs([items[0], items[0]], ("faces",), port, lists={"faces"})
    assert [one.data for one in collected["faces"]] == [b"1", b"1"]
    assert made == collected["faces"]
    assert make_inputs([], ("faces", "frames"), port, lists={"faces"}) == ({"faces": [], "frames": None}, [])
    with pytest.raises(KeyError):
        make_inputs(items, ("faces",), port)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40))))
def test_the_body_cache_never_holds_more_than_its_limit(puts: list[tuple[int, int]]) -> None:
    cache = BodyCache(100)
    for digest, size in puts:
        body = bytes(size * 4)
        cache.put(str(digest), body)
        if len(body) <= 100:
            assert str(digest) in cache
        kept = [len(b) for n in range(10) if (b := cache.get(str(n))) is not None]
        assert sum(kept) == cache.size_bytes <= 100


def test_the_body_cache_drops_the_least_recently_used() -> None:
    cache = BodyCache(3)
    for name in "abc":
        cache.put(name, b"1")
    cache.get("a")
    cache.put("d", b"1")
    assert [name in cache for name in "abcd"] == [True, False, True, True]


# ------------------------------------------------------------------ templates


def test_any_channel_that_a_template_can_become_may_be_named() -> None:
    ctx, outcome, _ = context(("vision/cam/{id}/faces", "vision/log/+", "vision/all"), captures=[{"id": "7"}])
    for channel in ("cam/7/faces", "vision/cam/9/faces", "log/x", "all", "cam/{id}/faces", "log/{id}"):
        ctx.emit(channel, b"x")
    assert [one["channel"] for one in outcome.outputs] == [
        "vision/cam/7/faces",
        "vision/cam/9/faces",
        "vision/log/x",
        "vision/all",
        "vision/cam/7/faces",
        "vision/log/7",
    ]


@pytest.mark.parametrize(
    ("channel", "part"),
    [
        ("cam/7/frames", "'cam/7/frames', but it publishes vision/cam/{id}/faces, vision/log/"),
        ("cam/7/8/faces", "but it publishes"),
        ("log/+", "holds \\+"),
        ("log/{id}x", "'log/{id}x'|but it publishes"),
        ("cam/{lens}/faces", "needs the capture 'lens'"),
        ("log/{id}/+", "leaves a level open"),
        ("log/a\nb", "control character"),
        ("_dead/x", "reserved"),
    ],
)
def test_a_channel_outside_the_templates_is_refused(channel: str, part: str) -> None:
    ctx, outcome, _ = context(("vision/cam/{id}/faces", "vision/log/+", "vision/+/x"), captures=[{"id": "7"}])
    if channel == "log/{id}x":
        ctx.emit(channel, b"x")  # braces inside a level are characters like others
        return
    with pytest.raises(BadOutput, match=part):
        ctx.emit(channel, b"x")
    assert not outcome.outputs


def test_a_returned_value_goes_to_the_one_template_filled_from_the_first_input_that_can() -> None:
    ctx, outcome, _ = context(("vision/cam/{id}/faces",), captures=[{"id": "7"}, {"id": "8"}])
    ctx.publish_returned(b"x")
    ctx, later, _ = context(
        ("vision/cam/{id}/{part}",), captures=[{}, {"id": "8", "part": "a"}, {"id": "9", "part": "b"}]
    )
    ctx.publish_returned(b"x")
    assert [outcome.outputs[0]["channel"], later.outputs[0]["channel"]] == ["vision/cam/7/faces", "vision/cam/8/a"]
    ctx, _, _ = context(("vision/cam/{id}/faces",))
    with pytest.raises(BadOutput, match="needs the capture 'id'"):
        ctx.publish_returned(b"x")
    ctx, _, _ = context(("vision/cam/{id}/+",), captures=[{"id": "7"}])
    with pytest.raises(BadOutput, match="leaves a level open"):
        ctx.publish_returned(b"x")
    ctx, _, _ = context(("vision/{id}/faces",), captures=[{"id": "_re"}])
    with pytest.raises(BadOutput, match="reserved"):
        ctx.publish_returned(b"x")


@given(st.lists(st.text(st.sampled_from("ab_+{}#/"), max_size=6), min_size=1, max_size=4).map("/".join))
def test_what_emit_lets_through_is_a_channel_that_some_template_matches(name: str) -> None:
    publish = ("vision/a/{id}", "vision/+/b", "vision/ab")
    ctx, outcome, _ = context(publish, captures=[{"id": "7"}])
    try:
        ctx.emit(name, b"x")
    except BadOutput:
        return
    (output,) = outcome.outputs
    channel = check_channel(output["channel"])
    assert any(matches(template_filter(one), channel) for one in publish)
    assert not channel.removeprefix("vision/").startswith("_")


# ------------------------------------------------------------------ counters and reserved keys


def test_increments_add_up_per_key() -> None:
    ctx, outcome, port = context()
    port.keys = {"n": 1}
    ctx.ekv.increment("n")
    ctx.ekv.increment("n", 5)
    ctx.ekv.increment("m", by=-3)
    ctx.ekv.increment("zero", 0)
    ctx.ekv.increment("back", 2)
    ctx.ekv.increment("back", -2)
    assert outcome.commit_fields()["increments"] == [{"key": "n", "by": 6}, {"key": "m", "by": -3}]
    value = ctx.ekv.get("n")
    assert value is not None and value.version == "1", "reading a counter asks the agent"


@pytest.mark.parametrize("by", [1.0, "1", None, True, 2**53, -(2**53)])
def test_a_counter_counts_in_integers(by: Any) -> None:
    ctx, outcome, _ = context()
    with pytest.raises(BadOutput, match="'detect' incremented key 'n' by"):
        ctx.ekv.increment("n", by)
    assert not outcome.increments


def test_the_sum_of_a_counter_is_bounded_and_whole_numbers_of_other_kinds_count() -> None:
    class Whole:
        def __index__(self) -> int:
            return 4

    ctx, outcome, _ = context()
    ctx.ekv.increment("n", 2**53 - 5)
    ctx.ekv.increment("n", Whole())  # type: ignore[arg-type]
    with pytest.raises(BadOutput, match="in one attempt"):
        ctx.ekv.increment("n")
    assert outcome.increments == {"n": 2**53 - 1}
    assert type(outcome.increments["n"]) is int


def test_a_key_is_a_value_or_a_counter() -> None:
    ctx, _, _ = context()
    ctx.ekv.increment("n")
    for write in (lambda: ctx.ekv.put("n", b"x"), lambda: ctx.ekv.delete("n")):
        with pytest.raises(BadOutput, match="'n', which it also incremented"):
            write()
    ctx.ekv.put("v", b"x")
    ctx.ekv.delete("w")
    for key in "vw":
        with pytest.raises(BadOutput, match=f"'{key}', which it also wrote"):
            ctx.ekv.increment(key)


def test_reserved_keys_are_refused_by_name() -> None:
    ctx, outcome, _ = context()
    for write in (
        lambda: ctx.ekv.put("_consumers/a", b"x"),
        lambda: ctx.ekv.delete("_consumers/a"),
        lambda: ctx.ekv.increment("_consumers/a"),
    ):
        with pytest.raises(BadName, match="'_consumers/a' is reserved"):
            write()
    assert not outcome.values and not outcome.increments
    ctx.ekv.put("a/_b", b"x")
    assert ctx.ekv.get("_state/x") is None


# ------------------------------------------------------------------ what an attempt knows of itself, and its end


def test_what_an_attempt_knows_of_itself() -> None:
    ctx, _, _ = context()
    assert (ctx.key, ctx.window, ctx.replay, ctx.shadow) == (None, None, None, False)
    ctx, _, _ = context(key="a", window=(1000, 2000), replay="r1", shadow=True)
    assert (ctx.key, ctx.window, ctx.replay, ctx.shadow) == ("a", (1000, 2000), "r1", True)


def test_the_state_is_part_of_the_outcome_when_it_has_changed() -> None:
    stored_state = {"version": "1", "digest": None, "data": b'{"n":1}', "content_type": JSON_TYPE}
    ctx, outcome, _ = context(has_state=True, state=stored_state)
    assert ctx.state["n"] == 1
    ctx.end(None)
    assert "state" not in outcome.commit_fields()
    ctx, outcome, _ = context(has_state=True, state=stored_state)
    ctx.state["n"] += 1
    ctx.end(b"x")
    assert outcome.commit_fields()["state"] == {"data": b'{"n":2}', "content_type": JSON_TYPE, "delete": False}
    ctx, outcome, _ = context(has_state=True, state=stored_state)
    ctx.state.clear()
    ctx.end(None)
    assert outcome.commit_fields()["state"] == {"content_type": None, "delete": True}
    ctx, outcome, port = context(has_state=True)
    ctx.state["big"] = "x" * 5000
    ctx.end(None)
    state = outcome.commit_fields()["state"]
    assert json.loads(port.blobs[state["digest"]]) == {"big": "x" * 5000}
    assert state["size"] == len(port.blobs[state["digest"]])


def test_a_function_without_a_state_is_told_so() -> None:
    ctx, _, _ = context()
    with pytest.raises(BadOutput, match=r"'detect' used ctx\.state, but it has none"):
        ctx.state["n"] = 1


def test_nothing_can_be_written_after_the_end() -> None:
    ctx, outcome, _ = context()
    ekv = ctx.ekv
    ctx.end(None)
    for late in (
        lambda: ctx.emit("faces", b"x"),
        lambda: ekv.put("k", b"x"),
        lambda: ekv.delete("k"),
        lambda: ekv.increment("k"),
    ):
        with pytest.raises(BadOutput, match="after the handler"):
            late()
    assert outcome.commit_fields() == {"outputs": [], "values": []}


@pytest.mark.parametrize(
    "more", [{"type": 5}, {"type": "a\nb"}, {"datacontenttype": b"x"}, {"type": "\ud800"}, {"subject": 7}]
)
def test_emit_refuses_what_is_no_text_before_the_agent_does(more: Any) -> None:
    ctx, outcome, _ = context()
    with pytest.raises(BadOutput, match=r"'detect' emitted on channel 'faces'"):
        ctx.emit("faces", b"x", **more)
    with pytest.raises(BadOutput, match="put under key 'k'"):
        ctx.ekv.put("k", b"x", content_type=next(iter(more.values())))
    assert not outcome.outputs and not outcome.values


def test_a_log_line_never_fails_the_work() -> None:
    class Full:
        def write(self, _text: str) -> None:
            raise OSError(28, "No space left on device")

    class Closed:
        def write(self, _text: str) -> None:
            raise ValueError("I/O operation on closed file")

    class Hidden:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    for stream in (Full(), Closed()):
        Log({}, stream).info("x")  # type: ignore[arg-type]
    loop: list[Any] = []
    loop.append(loop)
    out = io.StringIO()
    Log({"function": "detect"}, out).info("odd", loop=loop, hidden=Hidden(), n=1)
    line = json.loads(out.getvalue())
    assert (line["event"], line["function"], line["n"], line["loop"]) == ("odd", "detect", 1, "[[...]]")
    assert "Hidden" in line["hidden"]


def test_captures_are_those_of_the_event() -> None:
    port = MemoryPort()
    items = [
        {"name": "frames", "event": stored(), "captures": {"id": "7"}},
        {"name": "faces", "event": stored()},
    ]
    arguments, _ = make_inputs(items, ("frames", "faces"), port)
    assert dict(arguments["frames"].captures) == {"id": "7"}
    assert dict(arguments["faces"].captures) == {}
    with pytest.raises(TypeError):
        arguments["frames"].captures["id"] = "8"


def test_an_output_carries_the_session_of_its_input_and_of_what_was_read() -> None:
    token = Session("vision").with_vector({("ny", 1): 4}).text()
    ctx, outcome, _ = context(attributes={"ekvsession": token})
    ctx.emit("faces", b"before")
    ctx.ekv.get("k")
    ctx.emit("faces", b"behind")
    told = [one["attributes"]["ekvsession"] for one in outcome.outputs]
    assert told[0] == token
    assert told[1] == Session("vision").with_vector({("ny", 1): 4, ("la", 1): 9}).text()
    plain, outcome, _ = context()
    plain.ekv.get("k")
    plain.emit("faces", b"x")
    assert "ekvsession" not in outcome.outputs[0]["attributes"]
