"""Windows in event time: every event is in exactly the windows that hold it."""

from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.windows import AHEAD_MS, EARLIEST_MS, Window, time_problem


@given(st.integers(EARLIEST_MS, 4_000_000_000_000), st.integers(1, 600_000), st.integers(1, 100))
def test_an_event_is_in_each_window_that_holds_it_and_in_no_other(time_ms: int, every_ms: int, overlap: int) -> None:
    size_ms = every_ms * overlap
    windows = Window("sliding", size_ms, every_ms, 0, 1).of(time_ms)
    # All windows that could hold it start within one size before it.
    first = (time_ms - size_ms) // every_ms * every_ms
    wanted = [[s, s + size_ms] for s in range(first, time_ms + every_ms, every_ms) if s <= time_ms < s + size_ms]
    assert windows == wanted and len(windows) == overlap


@given(st.integers(EARLIEST_MS, 4_000_000_000_000), st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_step_that_does_not_divide_the_size_is_exact_as_well(time_ms: int, size_ms: int, every_ms: int) -> None:
    size_ms = max(size_ms, every_ms)
    windows = Window("sliding", size_ms, every_ms, 0, 1).of(time_ms)
    assert windows
    for start, end in windows:
        assert start <= time_ms < end and end - start == size_ms and start % every_ms == 0
    assert not (windows[0][0] - every_ms <= time_ms < windows[0][1] - every_ms)
    assert windows[-1][0] + every_ms > time_ms


def test_a_session_has_no_fixed_windows() -> None:
    assert Window("session", 1000, 0, 0, 1).of(EARLIEST_MS) == []


def test_clocks_that_cannot_be_right_are_named() -> None:
    now = 1_800_000_000_000
    assert time_problem(now, now) is None and time_problem(now + AHEAD_MS, now) is None
    assert "not set" in str(time_problem(5, now))
    assert "ahead" in str(time_problem(now + AHEAD_MS + 1000, now))
