"""What a handler raises or returns wrongly, as the agent is told of it."""

from typing import Any

import pytest
from sdk_agent import Start, give, item

from edgeflow.errors import Reject
from edgeflow.sdk.raised import describe


def test_a_raising_handler_fails_with_its_traceback_and_the_next_runs(start: Start) -> None:
    def bad(ctx: Any, frames: Any) -> bytes:
        if ctx.invocation_id == "a":
            raise ValueError("no face here")
        return b"ok"

    peer, _ = start(bad)
    give(peer, item("a", attempt=4))
    failure = peer.expect("fail")
    assert (failure["invocation"], failure["attempt"], failure["retry"]) == ("a", 4, True)
    assert failure["error"] == "ValueError: no face here"
    assert 'raise ValueError("no face here")' in failure["traceback"]
    assert "edgeflow/sdk/" not in failure["traceback"]
    give(peer, item("b"))
    assert peer.expect("commit")["invocation"] == "b"


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text", "retry"),
    [
        (Reject("not a video"), "Reject: not a video", False),
        (SystemExit(3), "SystemExit: 3", True),
        (BadText(), "BadText (its message cannot be shown)", True),
        (ValueError("x" * 100_000), "ValueError: " + "x" * 1009 + "...", True),
    ],
)
def test_what_a_handler_raises_becomes_a_bounded_failure(
    start: Start, error: BaseException, text: str, retry: bool
) -> None:
    def bad(ctx: Any, frames: Any) -> None:
        raise error

    peer, _ = start(bad)
    give(peer, item("a"))
    failure = peer.expect("fail")
    assert (failure["error"], failure["retry"]) == (text, retry)
    assert len(failure["traceback"].encode()) <= 8192


@pytest.mark.parametrize(
    ("publish", "result", "parts"),
    [
        (["vision/faces"], {1, 2}, ["detect", "vision/faces", "set"]),
        ([], b"x", ["detect", "bytes", "publishes nothing"]),
        (["vision/a", "vision/b"], [1], ["detect", "list", "vision/a, vision/b"]),
        (["vision/faces"], float("nan"), ["detect", "float"]),
    ],
)
def test_an_unpublishable_result_fails_at_once_and_says_why(
    start: Start, publish: list[str], result: Any, parts: list[str]
) -> None:
    peer, _ = start(lambda ctx, frames: result, publish=publish)
    give(peer, item("a"))
    failure = peer.expect("fail")
    assert failure["retry"] is False
    for part in parts:
        assert part in failure["error"]


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError(28, "No space left on device"), "limits: {tmpfs: ...}"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "limits: {pids: ...}"),
        (RuntimeError("can't start new thread"), "limits: {pids: ...}"),
        (MemoryError(), "limits: {memory: ...}"),
    ],
)
def test_an_error_that_comes_from_a_limit_names_it(error: Exception, limit: str) -> None:
    text, _ = describe(error)
    assert limit in text
    assert "limits:" not in describe(RuntimeError("something else"))[0]
