"""How much one connection may send of each namespace: a bucket each.

What it is: counting of bytes against a rate; time is an argument.
What it is not: where rates come from (the quota of a namespace), or what waits meanwhile (sender.py).
What must stay true: on average no more than the rate is sent; a namespace without a rate is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

AT_ONCE_S = 0.5
"""So much of a second's worth may go at once: links look four times a second."""

RateOf = Callable[[str], float | None]


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Rates:
    """The buckets of one connection; `rate_of` gives bytes a second, None without a bound."""

    def __init__(self, rate_of: RateOf) -> None:
        self._rate_of = rate_of
        self._buckets: dict[str, _Bucket] = {}
        self.waits: set[str] = set()
        """Namespaces that had something to send and were not let, since they last were."""

    def may(self, namespace: str, now_s: float) -> bool:
        """Whether something of the namespace may be sent now. What is sent may be more than is left: then it takes longer until the next."""
        rate = self._rate_of(namespace)
        if rate is None:
            self._buckets.pop(namespace, None)
            self.waits.discard(namespace)
            return True
        bucket = self._buckets.setdefault(namespace, _Bucket(rate * AT_ONCE_S, now_s))
        bucket.left = min(rate * AT_ONCE_S, bucket.left + rate * (now_s - bucket.at_s))
        bucket.at_s = now_s
        if bucket.left > 0:
            self.waits.discard(namespace)
            return True
        self.waits.add(namespace)
        return False

    def sent(self, namespace: str, size: int) -> None:
        """So many bytes of it were sent."""
        bucket = self._buckets.get(namespace)
        if bucket is not None:
            bucket.left -= size
