"""`edgeflow.sdk.testing`: what a user's unit test sees."""

from typing import Any

import pytest

from edgeflow.errors import BadHandler, BadOutput, Reject, VersionMismatch
from edgeflow.sdk.testing import call, event, events


def annotate(ctx: Any, frames: Any, faces: Any) -> bytes:
    ctx.log.info("annotating", faces=len(faces.json()))
    return bytes(frames.data) + b"!"


def test_a_returned_value() -> None:
    result = call(annotate, frames=event(b"jpeg", subject="clip/1"), faces=[[1, 2, 3, 4]], publish=["annotated"])
    assert (result.output.channel, result.output.data, result.output.subject) == ("annotated", b"jpeg!", "clip/1")
    assert (result.logs[0]["event"], result.logs[0]["faces"]) == ("annotating", 1)
    assert call(annotate, frames=b"jpeg", faces=[]).output.channel == "returned"


def test_large_bodies_context_and_ekv() -> None:
    def handle(ctx: Any, frames: Any) -> None:
        ctx.emit("big", frames.data * 2, attributes={"count": 2})
        ctx.emit(
            "small",
            [ctx.context.model.json(), ctx.context.absent is None, ctx.ekv.get("a").text(), ctx.ekv.get("b") is None],
        )
        ctx.ekv.put("a", b"new")
        ctx.ekv.delete("b")

    result = call(handle, frames=bytes(100_000), context={"model": {"eye": 1}, "absent": None}, ekv={"a": "old"})
    assert len(result.outputs[0].data) == 200_000
    assert result.outputs[0].attributes == {"count": "2"}
    assert result.outputs[1].json() == [{"eye": 1}, True, "old", True]
    assert result.values == {"a": b"new", "b": None}


def test_reads_of_every_kind_and_conditions() -> None:
    def handle(ctx: Any, frames: Any) -> list[Any]:
        old = ctx.ekv.get("a", strong=True, wait_s=1)
        ctx.ekv.put("a", "new", if_version=old.version)
        ctx.ekv.put("fresh", "x", if_absent=True)
        kept = [one.version for one in ctx.ekv.versions("b")]
        return [ctx.ekv.head("b", max_staleness_s=1).size, kept, [one.key for one in ctx.ekv.scan()]]

    result = call(handle, frames=b"", ekv={"a": "old", "b": "12"})
    assert result.output.json() == [2, ["1"], ["a", "b", "fresh"]]
    assert result.values == {"a": b"new", "fresh": b"x"}
    with pytest.raises(VersionMismatch, match=r"'fresh'.*has version"):
        call(handle, frames=b"", ekv={"a": "old", "b": "12", "fresh": "there"})

    def outdated(ctx: Any, frames: Any) -> None:
        ctx.ekv.put("a", b"x", if_version="0")

    for values in ({"a": "old"}, {}):
        with pytest.raises(VersionMismatch, match="'a'"):
            call(outdated, frames=b"", ekv=values)


def test_collected_inputs() -> None:
    def handle(ctx: Any, frames: Any) -> str:
        return ",".join(one.subject for one in frames)

    assert call(handle, frames=[event(b"1", subject="c/1"), event(b"2", subject="c/2")]).output.text() == "c/1,c/2"


def test_what_goes_wrong_reaches_the_test() -> None:
    def rejects(ctx: Any, frames: Any) -> None:
        raise Reject("not a picture")

    def emits(ctx: Any, frames: Any) -> None:
        ctx.emit("other", b"x")

    with pytest.raises(Reject):
        call(rejects, frames=b"")
    with pytest.raises(BadOutput, match="publishes test/faces"):
        call(emits, frames=b"", publish=["faces"])
    with pytest.raises(BadHandler, match="'frames'"):
        call(emits, pictures=b"")
    with pytest.raises(AssertionError, match="published 0 events"):
        _ = call(lambda ctx, frames: None, frames=b"").output


def count(ctx: Any, readings: Any) -> dict[str, Any]:
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    ctx.state.setdefault("seen", []).append(readings.subject)
    return dict(ctx.state)


def test_state_over_attempts() -> None:
    first = call(count, readings=event(b"", subject="a"))
    assert (first.state, first.state_changed) == ({"n": 1, "seen": ["a"]}, True)
    given = first.state
    second = call(count, readings=event(b"", subject="b"), state=given)
    assert second.state == second.output.json() == {"n": 2, "seen": ["a", "b"]}
    assert given == {"n": 1, "seen": ["a"]}, "a test's own dict stays as it is"


def test_what_becomes_of_the_state() -> None:
    def does(what: str) -> Any:
        def handle(ctx: Any, x: Any) -> None:
            if what == "clear":
                ctx.state.clear()
            elif what == "big":
                ctx.state["x"] = "y" * 10_000
            elif what == "bad":
                ctx.state["x"] = {1}

        return handle

    for what, before, after, is_changed in (
        ("nothing", None, None, False),
        ("nothing", {"a": 1}, {"a": 1}, False),
        ("clear", None, None, False),
        ("clear", {"a": 1}, None, True),
        ("big", {"a": 1}, {"a": 1, "x": "y" * 10_000}, True),
    ):
        result = call(does(what), x=b"", state=before)
        assert (result.state, result.state_changed) == (after, is_changed)
    with pytest.raises(BadOutput, match="is a set"):
        call(does("bad"), x=b"")


def test_captures_and_templates() -> None:
    def emits(ctx: Any, frames: Any) -> None:
        assert frames.channel == "test/cam/7/frames"
        ctx.emit("log/a", frames.captures["id"])
        ctx.emit("cam/{id}/faces", b"faces")

    frame = event(b"jpeg", channel="cam/7/frames", captures={"id": "7"})
    outputs = call(emits, frames=frame, publish=["cam/{id}/faces", "log/+"]).outputs
    assert [(one.channel, one.text()) for one in outputs] == [("log/a", "7"), ("cam/7/faces", "faces")]
    assert call(lambda ctx, frames: b"x", frames=frame, publish=["cam/{id}/faces"]).output.channel == "cam/7/faces"
    with pytest.raises(BadOutput, match="needs the capture 'id'"):
        call(lambda ctx, frames: b"x", frames=b"jpeg", publish=["cam/{id}/faces"])
    with pytest.raises(BadOutput, match="exactly one channel"):
        call(lambda ctx, frames: b"x", frames=frame, publish=["cam/{id}/faces", "log/+"])


def test_lists_windows_and_inputs_that_are_not_there() -> None:
    def handle(ctx: Any, readings: Any, settings: Any, alerts: Any) -> list[Any]:
        values = [one.json() for one in readings]
        return [
            values,
            None if settings is None else settings.json(),
            len(alerts),
            ctx.window,
            ctx.key,
            ctx.replay,
            ctx.shadow,
        ]

    result = call(
        handle, readings=events(1, event(2, subject="s"), "3"), settings={"a": 1}, alerts=events(), window=(0, 10), key="k",
        replay="r", shadow=True,
    )  # fmt: skip
    assert result.output.json() == [[1, 2, 3], {"a": 1}, 0, [0, 10], "k", "r", True]
    result = call(handle, readings=events(), settings=None, alerts=events(b""))
    assert result.output.json() == [[], None, 1, None, None, None, False]


def test_inputs_with_the_names_of_other_arguments() -> None:
    def handle(ctx: Any, state: Any, key: Any) -> str:
        return f"{state.text()} {key.text()} {ctx.key}"

    assert call(handle, {"state": "a", "key": "b"}, key="c").output.text() == "a b c"


def test_counters() -> None:
    def handle(ctx: Any, x: Any) -> int:
        ctx.ekv.increment("total", 3)
        ctx.ekv.increment("total")
        return ctx.ekv.get("total").json()  # type: ignore[no-any-return]

    result = call(handle, x=b"", ekv={"total": 41})
    assert (result.increments, result.values, result.output.json()) == ({"total": 4}, {}, 41)
