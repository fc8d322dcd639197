"""`edgeflow.sdk.testing`: what a user's unit test sees."""

from typing import Any

import pytest

from edgeflow.errors import BadHandler, BadOutput, Reject
from edgeflow.sdk.testing import call, event


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
