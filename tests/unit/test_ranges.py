"""Ranges: what is asked for, of what is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.api.ranges import BadRange, Span, parse_range, whole

SIZES = st.integers(0, 50)
NUMBERS = st.integers(0, 60)


@given(SIZES, NUMBERS, NUMBERS)
def test_a_range_gives_just_those_bytes_that_are_there(size: int, first: int, last: int) -> None:
    body = bytes(range(size))
    header = f"bytes={first}-{last}"
    if last < first:
        assert parse_range(header, size) == whole(size)
    elif first >= size:
        with pytest.raises(BadRange):
            parse_range(header, size)
    else:
        span = parse_range(header, size)
        assert body[span.offset : span.offset + span.length] == body[first : last + 1]
        assert span.header == f"bytes {first}-{min(last, size - 1)}/{size}"


@given(SIZES, NUMBERS)
def test_open_ends(size: int, number: int) -> None:
    body = bytes(range(size))
    if number < size:
        span = parse_range(f"bytes={number}-", size)
        assert body[span.offset : span.offset + span.length] == body[number:]
    else:
        with pytest.raises(BadRange) as refused:
            parse_range(f"bytes={number}-", size)
        assert refused.value.size == size
    if number and size:
        span = parse_range(f"bytes=-{number}", size)
        assert body[span.offset : span.offset + span.length] == body[-number:]
    else:
        with pytest.raises(BadRange):
            parse_range(f"bytes=-{number}", size)


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=x-y", "bytes=1", "bytes=-1-2", "bytes=" + "9" * 30 + "-"]
)  # fmt: skip
def test_what_is_not_understood_means_everything(header: str | None) -> None:
    assert parse_range(header, 10) == Span(0, 10, 10)
    assert parse_range(header, 10).is_whole
