"""What a handler's ctx collects, without a socket."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.events import BlobRef, Event
from edgeflow.errors import BadName, BadOutput, NotFound
from edgeflow.sdk.context import (
    JSON_TYPE,
    MAX_BODY_BYTES,
    TEXT_TYPE,
    Context,
    FunctionInfo,
    Log,
    Outcome,
    Value,
    encode_body,
)
from edgeflow.sdk.inputs import BodyCache, Input, make_inputs


class MemoryPort:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.keys: dict[str, int] = {}
        self.fetched: list[str] = []

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        self.fetched.append(digest)
        if digest not in self.blobs:
            raise NotFound(digest)
        return self.blobs[digest]

    def get(self, key: str, version: str | None) -> dict[str, Any] | None:
        return {"key": key, "version": "1", "data": b"", "content_type": None} if key in self.keys else None

    def list(self, prefix: str, after: str, limit: int) -> Sequence[dict[str, Any]]:
        keys = sorted(key for key in self.keys if key.startswith(prefix) and key > after)
        return [{"key": key, "version": "1", "size": self.keys[key]} for key in keys[:limit]]

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
    info = FunctionInfo("vision", "detect", publish=publish, context=keys or {})
    parent = Input("frames", stored(subject=subject, attributes=more.pop("attributes", {})), port)
    ctx = Context(
        info,
        port,
        outcome,
        invocation_id="a",
        attempt=1,
        deadline_ms=5000,
        inputs=[parent],
        context=more.pop("values", {}),
        log=Log({}),
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
        (Value("k", None), "edgeflow.sdk.context.Value"),
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
        encode_body(bytes(MAX_BODY_BYTES + 1), "x")


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
