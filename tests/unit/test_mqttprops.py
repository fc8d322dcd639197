"""The properties codec against paho's, both ways, and against rubbish."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeflow.core.mqttprops import decode_properties, encode_properties, read_variable_int, variable_int
from edgeflow.errors import ProtocolError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
USER = st.lists(st.tuples(TEXT, TEXT), max_size=12)
MAYBE_TEXT = st.none() | TEXT
MAYBE_BYTES = st.none() | st.binary(max_size=40)


@given(USER, MAYBE_TEXT, MAYBE_BYTES)
def test_what_we_pack_paho_reads(
    user: list[tuple[str, str]], content_type: str | None, correlation: bytes | None
) -> None:
    packed = encode_properties(user, content_type=content_type, response_topic="a/b", correlation=correlation)
    theirs = Properties(PacketTypes.PUBLISH)
    theirs.unpack(packed)
    assert getattr(theirs, "UserProperty", []) == user
    assert (getattr(theirs, "ContentType", None), theirs.ResponseTopic, getattr(theirs, "CorrelationData", None)) == (
        content_type,
        "a/b",
        correlation,
    )


@given(USER, MAYBE_TEXT, st.integers(0, 1), st.integers(1, 2**32 - 1), st.binary(max_size=50))
def test_what_paho_packs_we_read(
    user: list[tuple[str, str]], content_type: str | None, form: int, expiry: int, rest: bytes
) -> None:
    theirs = Properties(PacketTypes.PUBLISH)
    theirs.PayloadFormatIndicator = form
    theirs.MessageExpiryInterval = expiry
    theirs.TopicAlias = 7
    if content_type is not None:
        theirs.ContentType = content_type
    if user:
        theirs.UserProperty = user
    packed = theirs.pack()
    found, end = decode_properties(b"xx" + packed + rest, 2)
    assert (found.user, found.content_type, end) == (user, content_type, 2 + len(packed))


@given(st.binary(max_size=60))
def test_rubbish_is_refused_and_nothing_else_happens(packet: bytes) -> None:
    try:
        _, end = decode_properties(packet, 0)
    except ProtocolError:
        return
    assert end <= len(packet)


@given(st.integers(0, 268_435_455))
def test_variable_integers(value: int) -> None:
    packed = variable_int(value)
    assert read_variable_int(packed, 0) == (value, len(packed))
    with pytest.raises(ProtocolError):
        read_variable_int(packed[:-1], 0)


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ProtocolError):
        encode_properties([("a", "x" * 65_536)])
