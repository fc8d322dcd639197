"""Retries: exponential, jittered by half, bounded, and at an end."""

from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.retries import MAX_BACKOFF_MS, RetryPolicy, retry_delay_ms


@given(st.integers(1, 50), st.integers(1, 60_000), st.integers(1, 60), st.floats(0, 0.999))
def test_each_wait_lies_in_the_upper_half_of_its_step(
    attempts: int, backoff_ms: int, failures: int, jitter: float
) -> None:
    delay = retry_delay_ms(RetryPolicy(attempts, backoff_ms, 1000), failures, jitter)
    if failures >= attempts:
        assert delay is None
    else:
        step = min(backoff_ms * 2 ** (failures - 1), MAX_BACKOFF_MS)
        assert delay is not None and step // 2 <= delay <= step
