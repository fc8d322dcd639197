"""Times and durations as a request writes them.

What must stay true: what is neither is refused by the name of its parameter.
"""

import re

from edgeflow.api.problems import BadParameter
from edgeflow.core.events import parse_time
from edgeflow.errors import BadEvent

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, None: 1.0}


def parse_duration_s(text: str, name: str) -> float:
    """Seconds of `500ms`, `30s`, `5m`, `1h`, `2d`, or of a plain number of seconds. Raises BadParameter that names the parameter."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise BadParameter(
            f"{name}: {text[:40]!r} is not a duration", hint="Write a number with ms, s, m, h or d, as in 500ms or 30s."
        )
    return float(found[1]) * _SECONDS[found[2]]


def parse_moment_ms(text: str, name: str, now_ms: int) -> int:
    """Milliseconds since 1970 of an RFC 3339 time, or of a duration ago. Raises BadParameter that names the parameter."""
    if _DURATION.fullmatch(text.strip()):
        return max(0, now_ms - round(parse_duration_s(text, name) * 1000))
    try:
        return parse_time(text.strip())
    except BadEvent:
        raise BadParameter(
            f"{name}: {text[:40]!r} is neither a time nor a duration",
            hint="Write RFC 3339 with an offset, as in 2026-01-02T03:04:05Z, or how long ago, as in 1h.",
        ) from None
