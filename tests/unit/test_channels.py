"""Names and filters, against MQTT's own matching."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edgeflow.core.channels import check_channel, check_filter, check_key, check_namespace, full_channel, matches
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
