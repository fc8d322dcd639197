"""What instances with a `qos: 0` input say about themselves: counts and times, which the agent does not see.

What must stay true: what an instance says is untrusted: it can spoil its own figures only.
"""

from typing import Any

from edgeflow.core.wire import Message
from edgeflow.errors import ProtocolError

_COUNTS = ("processed", "failed", "repeated")


class DirectStats:
    """The figures of one function at this PoP, over the lives of its instances."""

    def __init__(self) -> None:
        self._total = dict.fromkeys(_COUNTS, 0)
        self._before: dict[str, dict[str, int]] = {}
        self._subscribed: dict[str, bool] = {}
        self._handler: dict[str, float | None] = _times(None)
        self._platform: dict[str, float | None] = _times(None)

    def take(self, instance: str, message: Message) -> tuple[int, int]:
        """Count one `stats` message; (processed, failed) of that instance's life. Raises ProtocolError when it is damaged."""
        counts = {name: message.get(name) for name in _COUNTS}
        known: dict[str, int] = {}
        for name, count in counts.items():
            if type(count) is not int or not 0 <= count < 1 << 53:
                raise ProtocolError(f"stats needs {name}, a count")
            known[name] = count
        before = self._before.get(instance, {})
        for name, count in known.items():
            # A count that went back belongs to a new life of the process.
            self._total[name] += count - before.get(name, 0) if count >= before.get(name, 0) else count
        self._before[instance] = known
        self._subscribed[instance] = bool(message.get("subscribed"))
        self._handler, self._platform = _times(message.get("handler_us")), _times(message.get("platform_us"))
        return known["processed"], known["failed"]

    def forget(self, instance: str) -> None:
        """The instance is gone."""
        self._before.pop(instance, None)
        self._subscribed.pop(instance, None)

    def to_json(self) -> dict[str, Any]:
        """As the timings of a durable function, with `repeated` (events heard twice and dropped) and `subscribed`."""
        return {
            "invocations": self._total["processed"], "failed": self._total["failed"], "platform_ms": self._platform,
            "waiting_ms": _times(None), "handler_ms": self._handler, "repeated": self._total["repeated"],
            "subscribed": any(self._subscribed.values()),
        }  # fmt: skip


def _times(pair_us: Any) -> dict[str, float | None]:
    if isinstance(pair_us, list) and len(pair_us) == 2 and all(isinstance(one, int | float) for one in pair_us):
        return {"p50": round(pair_us[0] / 1000, 3), "p99": round(pair_us[1] / 1000, 3)}
    return {"p50": None, "p99": None}
