"""Names and filters, against MQTT's own matching."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edgeflow.core.channels import (
    captures_of,
    check_channel,
    check_filter,
    check_key,
    check_namespace,
    delivers,
    fill,
    full_channel,
    matches,
    overlap,
    parse_filter,
    template_filter,
)
from edgeflow.errors import BadName

LEVEL = st.sampled_from(["a", "b", "cam", "1"])
CHANNEL = st.lists(LEVEL, min_size=1, max_size=4).map(lambda levels: "/".join(["ns", *levels]))
FILTER = st.tuples(st.lists(st.one_of(LEVEL, st.just("+")), min_size=1, max_size=4), st.booleans()).map(
    lambda drawn: "/".join(["ns", *drawn[0], *(["#"] if drawn[1] else [])])
)


@given(FILTER, CHANNEL)
def test_filters_match_as_in_mqtt(pattern: str, channel: str) -> None:
    assert check_filter(pattern) == pattern
    assert matches(pattern, channel) == topic_matches_sub(pattern, channel)


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "x" * 64, "é"])
def test_namespaces(name: str) -> None:
    assert check_namespace("a-1") == "a-1"
    with pytest.raises(BadName):
        check_namespace(name)


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "a+b", "#", "$x", "a\x00", "x" * 513, "\ud800"])
def test_keys(key: str) -> None:
    assert check_key("a/b.c-d_é") == "a/b.c-d_é"
    with pytest.raises(BadName):
        check_key(key)


@pytest.mark.parametrize("pattern", ["ns/a#", "ns/#/a", "ns//a", "ns/a+", "+/a", "ns"])
def test_filters_that_are_none(pattern: str) -> None:
    with pytest.raises(BadName):
        check_filter(pattern)


def test_relative_names() -> None:
    assert full_channel("ns", "a/b") == "ns/a/b" == full_channel("ns", "ns/a/b")
    with pytest.raises(BadName):
        full_channel("ns", "")
    with pytest.raises(BadName):
        check_channel("ns")


CAPTURING = st.lists(st.one_of(LEVEL, st.just("+"), st.sampled_from(["{x}", "{y}", "{left_eye}"])), min_size=1, max_size=5).filter(
    lambda levels: all(levels.count(level) == 1 for level in levels if level.startswith("{"))
)  # fmt: skip


@given(CAPTURING, st.lists(LEVEL, min_size=5, max_size=5), st.booleans())
def test_captures_of_a_channel_fill_a_template_back_to_it(levels: list[str], values: list[str], rest: bool) -> None:
    pattern = "/".join(["ns", *levels, *(["#"] if rest else [])])
    mqtt_filter, captures = parse_filter(pattern)
    assert check_filter(mqtt_filter) == mqtt_filter == template_filter(pattern) and "{" not in mqtt_filter
    channel = "/".join(
        ["ns", *(value if level[0] in "{+" else level for level, value in zip(levels, values, strict=False))]
    )
    assert matches(mqtt_filter, channel)
    found = captures_of(captures, channel)
    assert found == {level[1:-1]: values[index] for index, level in enumerate(levels) if level[0] == "{"}
    template = "/".join(
        ["ns", *(channel.split("/")[index + 1] if level == "+" else level for index, level in enumerate(levels))]
    )
    assert fill(template, found) == channel and matches(template_filter(template), channel)


def test_what_the_levels_of_captures_are() -> None:
    assert parse_filter("ns/cam/{id}/frames") == ("ns/cam/+/frames", {"id": 2})
    assert parse_filter("ns/{a}/+/{b}/#") == ("ns/+/+/+/#", {"a": 1, "b": 3})
    assert parse_filter("ns/frames") == ("ns/frames", {})
    assert captures_of({"id": 2}, "ns/cam/7/frames") == {"id": "7"} and captures_of({}, "ns/a") == {}
    assert captures_of({"id": 2}, "ns/cam") == {}


@pytest.mark.parametrize("pattern", [
    "ns/{id}/{id}", "ns/a{id}", "ns/{id", "ns/{}", "ns/{a-b}", "ns/{1}", "ns/#/{id}", "ns//{id}", "{id}/a", "ns/$x/{id}", "ns", "ns/" + "x/" * 300 + "y"])  # fmt: skip
def test_captures_that_are_none(pattern: str) -> None:
    with pytest.raises(BadName):
        parse_filter(pattern)


@pytest.mark.parametrize("template", ["ns/{other}", "ns/+/a", "ns/#"])
def test_templates_that_cannot_be_filled(template: str) -> None:
    with pytest.raises(BadName) as caught:
        fill(template, {"id": "7"})
    assert "ctx.emit" in caught.value.hint


def test_wildcards_do_not_deliver_what_belongs_to_edgeflow() -> None:
    assert delivers("ns/#", "ns/a/b") and delivers("ns/+/b", "ns/a/b")
    assert not delivers("ns/#", "ns/_dead/f") and not delivers("ns/+/f", "ns/_dead/f")
    assert delivers("ns/_dead/+", "ns/_dead/f") and not delivers("ns/_dead/+", "ns/dead/f")


@given(FILTER, FILTER, CHANNEL)
def test_what_two_filters_match_lies_in_their_overlap(one: str, other: str, channel: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    if matches(one, channel) and matches(other, channel):
        assert overlap(one, other)
    if overlap(one, other):
        # A channel of both: the levels that are named in either, and anything where neither names one.
        first, second = one.split("/"), other.split("/")
        length = max(len(first), len(second))
        levels = [
            next((level for level in pair if level not in ("+", "#", "")), "x")
            for pair in zip(first + [""] * (length - len(first)), second + [""] * (length - len(second)), strict=True)
        ]
        assert any(
            matches(one, "/".join(levels[:n])) and matches(other, "/".join(levels[:n])) for n in range(2, length + 1)
        )


@pytest.mark.parametrize(("one", "other", "wanted"), [
    ("ns/a/b", "ns/a/b/c/#", False), ("ns/a/b", "ns/a/b/#", True), ("ns/a/b", "ns/a/b/+", False), ("ns/+/b", "ns/a/+", True), ("ns/a", "ns/b", False),
    ("ns/#", "ns/a/b/c", True)])  # fmt: skip
def test_overlaps(one: str, other: str, wanted: bool) -> None:
    assert overlap(one, other) is wanted
