"""What an instance says it produced is untrusted: each wrong part is refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from edgeflow.core.retries import RetryPolicy
from edgeflow.core.routing import FunctionRoute, InputRoute
from edgeflow.errors import BadEvent, BadName, EdgeflowError, OutputLimit, TooLarge
from edgeflow.flow.outputs import build_events, build_increments, build_ops, build_state, build_values
from edgeflow.settings import Limits
from edgeflow.store.records import MapPut, MapRemove, SetAdd, SetRemove

ROUTE = FunctionRoute(
    "detect", "r1", (InputRoute("frames", "vision/frames"),), None, (), None, ("vision/faces",), {}, RetryPolicy()
)


def build(*outputs: Any, hop: int = 1, **limits: int) -> Any:
    return build_events(
        outputs,
        invocation="i" * 40,
        namespace="vision",
        route=ROUTE,
        pop="la",
        hop=hop,
        now_ms=5,
        limits=Limits(**limits),
    )


def test_outputs_get_deterministic_ids_and_their_hop() -> None:
    first, again = (
        build({"channel": "faces", "data": b"1"}, {"channel": "vision/faces", "data": b"2"}, hop=3),
        build({"channel": "faces", "data": b"1"}),
    )
    assert first[0].id == again[0].id != first[1].id
    assert (first[0].channel, first[0].source, first[0].hop) == ("vision/faces", "/vision/detect", 3)


@pytest.mark.parametrize(
    "output",
    [
        None, "x", {}, {"channel": 5}, {"channel": "elsewhere", "data": b""}, {"channel": "../faces", "data": b""}, {"channel": "faces", "data": "text"},
        {"channel": "faces", "digest": "sha256:00"}, {"channel": "faces", "digest": 5, "size": 1}, {"channel": "faces", "data": b"", "subject": 5},
        {"channel": "faces", "data": b"", "attributes": {"a": 1}}, {"channel": "faces", "data": b"", "attributes": []},
        {"channel": "faces", "data": b"", "attributes": {"A": "x"}}, {"channel": "faces", "digest": "sha256:0", "size": 1 << 40},
        {"channel": "faces", "data": b"", "type": "\n"},
    ],
)  # fmt: skip
def test_wrong_outputs_are_refused(output: Any) -> None:
    if isinstance(output, dict) and output.get("attributes") == []:
        assert build(output)[0].attributes == {}
        return
    with pytest.raises(EdgeflowError):
        build(output)


def test_templates_allow_what_they_can_become_and_nothing_that_belongs_to_edgeflow() -> None:
    route = replace(ROUTE, publish=("vision/cam/{id}/faces", "vision/+/log"))

    def emit(channel: str) -> str:
        (event,) = build_events(
            [{"channel": channel, "data": b""}], invocation="i", namespace="vision", route=route, pop="la", hop=1, now_ms=5, limits=Limits()
        )  # fmt: skip
        return event.channel

    assert [emit(one) for one in ("cam/7/faces", "vision/a/log")] == ["vision/cam/7/faces", "vision/a/log"]
    for channel in ("cam/7/8/faces", "cam/+/faces", "a/b/log", "_dead/log", "_re/log"):
        with pytest.raises(EdgeflowError):
            emit(channel)


def test_limits_of_a_commit() -> None:
    good = {"channel": "faces", "data": b"12345"}
    for wrong in ({"outputs": 1}, {"commit_bytes": 9}, {"event_bytes": 4}):
        with pytest.raises(TooLarge):
            build(good, good, **wrong)
    with pytest.raises(TooLarge, match="went through 16 functions"):
        build(good, hop=17)
    assert len(build(good, good, hop=16)) == 2 and build(hop=17) == []


def test_limits_of_the_manifest_count_events_and_all_their_bytes() -> None:
    inline, blob = (
        {"channel": "faces", "data": b"12345"},
        {"channel": "faces", "digest": "sha256:" + "0" * 64, "size": 100},
    )

    def publish(route: FunctionRoute, *outputs: Any) -> int:
        return len(
            build_events(
                outputs, invocation="i", namespace="vision", route=route, pop="la", hop=1, now_ms=5, limits=Limits()
            )
        )

    two = replace(ROUTE, max_outputs=2)
    assert publish(two, inline, inline) == 2
    with pytest.raises(OutputLimit, match="published 3 events in one invocation, its manifest allows 2"):
        publish(two, inline, inline, inline)
    some = replace(ROUTE, max_output_bytes=105)
    assert publish(some, inline, blob) == 2
    with pytest.raises(OutputLimit, match="published 110 bytes in one invocation, its manifest allows 105"):
        publish(some, inline, blob, inline)


@pytest.mark.parametrize(
    "value",
    [None, {}, {"key": ""}, {"key": "a//b"}, {"key": "k", "data": 5}, {"key": "k", "data": b"", "content_type": 5}],
)
def test_wrong_values_are_refused(value: Any) -> None:
    with pytest.raises(EdgeflowError):
        build_values([value], function="detect", limits=Limits())


def test_values() -> None:
    put, deleted = build_values(
        [{"key": "k", "data": b"v", "content_type": "text/plain"}, {"key": "gone", "delete": True}],
        function="f",
        limits=Limits(),
    )
    assert (put.data, put.content_type, deleted.data, deleted.ref) == (b"v", "text/plain", None, None)


def test_values_may_be_bound_to_what_is_there() -> None:
    put, deleted, plain = build_values(
        [{"key": "k", "data": b"v", "if_version": "7"}, {"key": "l", "delete": True, "if_absent": True}, {"key": "m", "data": b""}],
        function="f", limits=Limits(),
    )  # fmt: skip
    assert (put.if_version, put.if_absent) == ("7", False)
    assert (deleted.if_version, deleted.if_absent) == (None, True)
    assert (plain.if_version, plain.if_absent) == (None, False)
    for wrong in ({"if_version": 7}, {"if_absent": 1}, {"if_absent": "yes", "delete": True}):
        with pytest.raises(BadEvent, match="if_"):
            build_values([{"key": "k", "data": b"", **wrong}], function="f", limits=Limits())


@pytest.mark.parametrize("wrong", [5, "text", {"a": 1}])
def test_what_is_no_list_is_refused_by_name(wrong: Any) -> None:
    limits = Limits()
    with pytest.raises(BadEvent, match="outputs"):
        build_events(wrong, invocation="i", namespace="vision", route=ROUTE, pop="la", hop=1, now_ms=1, limits=limits)
    with pytest.raises(BadEvent, match="values"):
        build_values(wrong, function="detect", limits=limits)
    with pytest.raises(BadEvent, match="increments"):
        build_increments(wrong, function="detect", limits=limits)


@pytest.mark.parametrize(
    "item", [{"key": "k", "by": 1.5}, {"key": "k", "by": True}, {"key": "k", "by": 2**60}, {"by": 1}, 7]
)
def test_an_increment_that_is_none_is_refused(item: Any) -> None:
    with pytest.raises(BadEvent):
        build_increments([item], function="detect", limits=Limits())


def test_keys_of_edgeflow_and_states_without_a_state_are_refused() -> None:
    with pytest.raises(BadName):
        build_values([{"key": "_state/f/k", "data": b""}], function="detect", limits=Limits())
    with pytest.raises(BadName):
        build_increments([{"key": "_x", "by": 1}], function="detect", limits=Limits())
    with pytest.raises(BadEvent, match="has no state"):
        build_state({"data": b"{}"}, key="", function="detect", limits=Limits())
    assert build_state(None, key="", function="detect", limits=Limits()) == []
    assert build_state({"delete": True}, key="_state/f/k", function="f", limits=Limits())[0].data is None


def test_operations_on_sets_and_maps_are_taken() -> None:
    sent = [
        {"op": "add", "key": "online", "elements": ["ann", "bob"]},
        {"op": "remove", "key": "online", "elements": ["carl"]},
        {"op": "set", "key": "seats", "fields": {"1": b"ann"}, "content_type": "text/plain"},
        {"op": "unset", "key": "seats", "fields": ["2"]},
    ]
    assert build_ops(sent, function="f", limits=Limits()) == [
        SetAdd("online", ("ann", "bob")), SetRemove("online", ("carl",)), MapPut("seats", {"1": b"ann"}, "text/plain"), MapRemove("seats", ("2",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ("add", BadEvent),
        ({"op": "add", "elements": ["a"]}, BadEvent),
        ({"op": "add", "key": "_x", "elements": ["a"]}, BadName),
        ({"op": "grow", "key": "k", "elements": ["a"]}, BadEvent),
        ({"op": "add", "key": "k", "elements": "abc"}, BadEvent),
        ({"op": "add", "key": "k", "elements": [1]}, BadEvent),
        ({"op": "add", "key": "k", "elements": [""]}, BadName),
        ({"op": "remove", "key": "k", "elements": ["x" * 1025]}, BadName),
        ({"op": "set", "key": "k", "fields": {"f": "text"}}, BadEvent),
        ({"op": "set", "key": "k", "fields": {1: b""}}, BadEvent),
        ({"op": "set", "key": "k", "fields": {"f": b"x" * 5000}}, TooLarge),
        ({"op": "set", "key": "k", "fields": {"f": b"x"}, "content_type": 1}, BadEvent),
        ({"op": "unset", "key": "k", "fields": None}, BadEvent),
    ],
)
def test_an_operation_that_is_none_is_refused(item: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        build_ops([item], function="f", limits=Limits())


@pytest.mark.parametrize("ttl_ms", [0, -1, True, "5", 1.5])
def test_a_ttl_that_is_none_is_refused(ttl_ms: Any) -> None:
    with pytest.raises(BadEvent, match="ttl_ms"):
        build_values([{"key": "k", "data": b"x", "ttl_ms": ttl_ms}], function="f", limits=Limits())
