"""Events: what a client may say, what is stored, and what a CloudEvents reader sees."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.events import (
    BlobRef,
    Event,
    dataref_of,
    from_cloudevent,
    make_event,
    parse_cloudevent,
    parse_ekv_ref,
    parse_time,
    time_text,
)
from edgeflow.errors import BadEvent, BadName

PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
NAMES = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)


def make(**more: Any) -> Event:
    values: dict[str, Any] = {
        "channel": "vision/frames",
        "data": b"x",
        "id": "1",
        "source": "/s",
        "now_ms": 1_700_000_000_123,
    }
    return make_event(**{**values, **more})


@given(
    st.binary(max_size=200), PRINTABLE, PRINTABLE, st.none() | PRINTABLE, st.dictionaries(NAMES, PRINTABLE, max_size=5),
    st.integers(0, 253_402_300_799_000), st.integers(0, 20),
)  # fmt: skip
def test_what_is_stored_comes_back(
    data: bytes, id: str, source: str, subject: str | None, attributes: dict[str, str], now_ms: int, hop: int
) -> None:
    event = make(data=data, id=id, source=source, subject=subject, attributes=attributes, now_ms=now_ms, hop=hop)
    assert Event.decode(event.encode()) == event
    positioned = event.at("la", 2, 77, 1, 60)
    assert Event.decode(positioned.encode_positioned()) == positioned


def test_a_reference_is_stored_as_a_reference() -> None:
    event = Event("a/b", "1", "/s", "t", 1, ref=BlobRef("sha256:" + "0" * 64, 5))
    assert Event.decode(event.encode()) == event and event.size_bytes == 5


def test_the_position_of_the_log_is_never_a_clients() -> None:
    event = make(attributes={"origin": "evil", "epoch": "9", "seq": "9", "prev": "9", "mine": "kept"})
    assert dict(event.attributes) == {"mine": "kept"} and event.origin == ""
    assert event.at("la", 1, 5, 0, 4).wire_attributes()["seq"] == "5"


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""}, {"source": ""}, {"id": "a\nb"}, {"subject": "\x00"}, {"attributes": {"Upper": "x"}}, {"attributes": {"a": "\x1f"}},
        {"attributes": {"a-b": "x"}}, {"attributes": {"x" * 21: "x"}}, {"time": "yesterday"}, {"time": "2026-01-01T00:00:00"}, {"type": "\ud800"},
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadEvent):
        make(**wrong)


@pytest.mark.parametrize(
    "channel", ["frames", "vision/", "vision//x", "Vision/x", "vision/+", "vision/#", "vision/$x", "/x", "vision/a\nb"]
)
def test_what_is_no_channel_is_refused_by_name(channel: str) -> None:
    with pytest.raises(BadName):
        make(channel=channel)


@given(st.integers(0, 253_402_300_799_000))
def test_times_survive_text(time_ms: int) -> None:
    assert parse_time(time_text(time_ms)) == time_ms


def test_time_of_1970_and_other_zones() -> None:
    assert parse_time("1970-01-01T00:00:00Z") == 0
    assert parse_time("2026-01-01T01:00:00+01:00") == parse_time("2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("content_type", "data", "field", "value"),
    [
        ("application/json", b'{"a": 1}', "data", {"a": 1}),
        ("application/vnd.x+json; charset=utf-8", b"[1]", "data", [1]),
        ("application/json", b"{broken", "data_base64", "e2Jyb2tlbg=="),
        ("text/plain", "é".encode(), "data", "é"),
        ("text/plain", b"\xff", "data_base64", "/w=="),
        ("image/jpeg", b"\xff\xd8", "data_base64", "/9g="),
        (None, b"x", "data_base64", "eA=="),
    ],
)
def test_structured_form(content_type: str | None, data: bytes, field: str, value: Any) -> None:
    document = make(data=data, datacontenttype=content_type, subject="s").at("la", 1, 2, 0, 1).to_cloudevent(data)
    assert document[field] == value and document["specversion"] == "1.0" and document["seq"] == 2
    again, dataref = from_cloudevent(
        json.loads(json.dumps(document)), "vision/frames", id="other", source="other", now_ms=0
    )
    assert (again.id, again.subject, dataref) == ("1", "s", None)
    assert (
        json.loads(again.data or b"") == json.loads(data)
        if field == "data" and content_type != "text/plain"
        else again.data == data
    )


@pytest.mark.parametrize(
    "document",
    [
        [], "text", {"id": "1"}, {"specversion": "0.3"}, {"specversion": "1.0", "data": 1, "data_base64": "eA=="},
        {"specversion": "1.0", "data_base64": "not base64!"}, {"specversion": "1.0", "subject": {"a": 1}}, {"specversion": "1.0", "data_base64": 5},
    ],
)  # fmt: skip
def test_what_is_no_cloudevent_is_refused(document: Any) -> None:
    with pytest.raises(BadEvent):
        from_cloudevent(document, "vision/x", id="1", source="/s", now_ms=0)


def test_datarefs() -> None:
    assert dataref_of(b' {"dataref": "ekv:vision/clip"} ') == "ekv:vision/clip"
    for payload in (
        b"{}",
        b'{"dataref": 1}',
        b'{"dataref": "x", "more": 1}',
        b"[1]",
        b"\xff",
        b"",
        b'{"dataref": "' + b"x" * 3000 + b'"}',
    ):
        assert dataref_of(payload) is None
    assert parse_ekv_ref("ekv:vision/a/b@1.2@la", "vision") == ("a/b", "1.2@la")
    assert parse_ekv_ref("ekv:vision/a", "vision") == ("a", None)
    for wrong in ("http://x", "ekv:other/a", "ekv:vision/", "ekv:vision"):
        with pytest.raises(BadEvent):
            parse_ekv_ref(wrong, "vision")


@given(
    st.dictionaries(
        st.sampled_from("ciysturdmahp"),
        st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=5),
    )
)
def test_a_damaged_stored_event_is_said_so(stored: dict[str, Any]) -> None:
    try:
        Event.decode(stored)
    except BadEvent:
        return


@pytest.mark.parametrize("depth", [101, 5_000, 200_000])
def test_json_that_is_nested_too_deeply_is_refused_or_passed_on_as_bytes(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    with pytest.raises(BadEvent, match="inside each other"):
        parse_cloudevent(b'{"specversion": "1.0", "data": ' + deep + b"}")
    event = make_event("a/b", deep, id="1", source="s", now_ms=1, datacontenttype="application/json")
    assert base64.b64decode(event.to_cloudevent(deep)["data_base64"]) == deep
    assert dataref_of(b'{"dataref": ' + deep[:2000]) is None


def test_json_with_many_brackets_that_is_not_deep_stays_json() -> None:
    flat = b"[" + b",".join([b"[1]"] * 500) + b"]"
    event = make_event("a/b", flat, id="1", source="s", now_ms=1, datacontenttype="application/json")
    assert event.to_cloudevent(flat)["data"] == [[1]] * 500
