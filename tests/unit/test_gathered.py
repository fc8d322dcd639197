"""Several inputs in one event: the batch, who refuses what, and what the routing and the SDK make of it."""

import json
from typing import Any

import pytest

from edgeflow.core import gathered
from edgeflow.core.events import Event, make_event
from edgeflow.core.routing import RouteTable, compile_routes
from edgeflow.errors import BadEvent, Reject
from edgeflow.sdk.inputs import spread

NOW_MS = 1_763_640_000_000


def batch(*documents: dict[str, Any]) -> bytes:
    return json.dumps([{"specversion": "1.0", **one} for one in documents]).encode()


def unpack(body: bytes) -> list[tuple[str, Event]]:
    return gathered.unpack(body, namespace="hall", source="urn:test", now_ms=NOW_MS)


def test_what_was_packed_comes_out_again_without_its_place_in_the_log() -> None:
    text = make_event("hall/room/7/in", b"warm", id="a", source="s", now_ms=NOW_MS, subject="7", datacontenttype="text/plain", attributes={"colour": "red"})  # fmt: skip
    picture = make_event("hall/pictures", bytes(range(256)), id="b", source="s", now_ms=NOW_MS)
    body = gathered.dump(
        gathered.pack([("inp", text.at("la", 1, 2, 3, 4), b"warm"), ("pictures", picture, bytes(range(256)))])
    )
    assert unpack(body) == [("inp", text), ("pictures", picture)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "JSON array"),
        (b"[]", "at least one"),
        (b"[1]", "event 0 of the batch is not a JSON object"),
        (batch({"data": 1}), "which input"),
        (batch({"input": "a", "data": 1}, {"input": "b", "dataref": "ekv:hall/x"}), "event 1 of the batch has a dataref"),
        (batch({"input": "a", "channel": "other/x", "data": 1}), "not in the namespace"),
        (b'[{"input": "a", "data": 1}]', "specversion"),
        (batch(*[{"input": "a", "data": 1}] * 1001), "limit of 1000"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused_by_its_number(body: bytes, says: str) -> None:
    with pytest.raises(BadEvent) as caught:
        unpack(body)
    assert says in caught.value.message


def table(join: dict[str, Any] | None, keyed: dict[str, Any] | None) -> RouteTable:
    function = {
        "revision": "r1", "join": join, "latest": [], "keyed": keyed, "publish": [], "context": {}, "place": {"pops": ["la"]},
        "inputs": [{"name": "left", "channel": "hall/room/+/left", "captures": {"room": 2}}, {"name": "right", "channel": "hall/right"}],
        "retry": {"attempts": 1, "backoff_ms": 1, "timeout_ms": 1000},
    }  # fmt: skip
    return compile_routes({"functions": {"pair": function}}, "la")


JOIN = {"kind": "all", "by": "subject", "within_ms": 1000, "on_timeout": "drop"}


def called(body: bytes, content_type: str | None) -> Event:
    return make_event("hall/_invoke/pair", body, id="i", source="s", now_ms=NOW_MS, datacontenttype=content_type)


def test_a_function_that_joins_is_called_with_a_batch_and_not_with_one_event() -> None:
    one = table(JOIN, None)
    (refused,) = one.route(called(b"x", None), NOW_MS, lambda event: event.data or b"")
    assert refused["k"] == "reject" and "joins" in refused["why"]
    (taken,) = one.route(called(batch({"input": "left"}), gathered.BATCH), NOW_MS, lambda event: event.data or b"")
    assert taken["k"] == "one" and taken["y"] == 1


def test_the_key_of_a_batch_is_that_of_the_input_in_it() -> None:
    keyed = table(None, {"by": "captures.room", "state": True})
    body = batch({"input": "right", "data": 1}, {"input": "left", "channel": "hall/room/attic/left", "data": 2})
    (directive,) = keyed.route(called(body, gathered.BATCH), NOW_MS, lambda event: event.data or b"")
    assert directive["k"] == "reject"  # the first input is on a channel without a room
    body = batch({"input": "left", "channel": "hall/room/attic/left", "data": 2})
    (directive,) = keyed.route(called(body, gathered.BATCH), NOW_MS, lambda event: event.data or b"")
    assert (directive["q"], directive["k"], directive["y"]) == ("attic", "one", 1)
    (directive,) = keyed.route(called(b"rubbish", gathered.BATCH), NOW_MS, lambda event: event.data or b"")
    assert directive["k"] == "reject" and "JSON" in directive["why"]


class NoBodies:
    """Bodies of events that hold theirs."""

    def fetch(self, digest: str, ahead: Any = ()) -> bytes:
        raise AssertionError(digest)

    fetch_piece = fetch


LEVELS = {"left": {"room": 2}, "right": {}}


def test_the_sdk_takes_the_inputs_out_of_the_batch_with_their_captures() -> None:
    body = batch({"input": "left", "channel": "hall/room/attic/left", "data": 2}, {"input": "right", "data": 1})
    items = spread([{"name": "left", "event": called(body, gathered.BATCH).encode()}], LEVELS, "hall", NoBodies())
    assert [(item["name"], item["captures"], item["event"]["c"]) for item in items] == [
        ("left", {"room": "attic"}, "hall/room/attic/left"),
        ("right", {}, "hall/right"),
    ]


def test_the_sdk_leaves_other_events_alone_and_rejects_what_no_attempt_can_use() -> None:
    published = make_event("hall/right", b"[]", id="i", source="s", now_ms=NOW_MS, datacontenttype=gathered.BATCH)
    items = [{"name": "right", "event": published.encode()}]
    assert spread(items, LEVELS, "hall", NoBodies()) is items
    for body in (b"rubbish", batch({"input": "middle", "data": 1})):
        with pytest.raises(Reject):
            spread([{"name": "left", "event": called(body, gathered.BATCH).encode()}], LEVELS, "hall", NoBodies())
