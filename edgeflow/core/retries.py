"""What happens to an invocation whose attempt failed: a pure function of its record and the manifest's `retry:`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`retry:` of a manifest."""

    attempts: int = 5
    """Failed attempts after which an invocation is given up."""
    backoff_ms: int = 200
    """Wait (ms) before the second attempt; doubled for each further one."""
    timeout_ms: int = 30_000
    """Longest time (ms) one attempt may take."""


MAX_BACKOFF_MS = 60_000


def retry_delay_ms(policy: RetryPolicy, failures: int, jitter: float) -> int | None:
    """Milliseconds until the next attempt after `failures` failed ones (>= 1), or None to give up.

    Exponential backoff with equal jitter: half of the step is fixed, the other half is scaled by `jitter` in [0, 1).
    """
    if failures >= policy.attempts:
        return None
    step = min(policy.backoff_ms * 2 ** (failures - 1), MAX_BACKOFF_MS)
    return int(step / 2 + step / 2 * jitter)
