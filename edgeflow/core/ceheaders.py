"""CloudEvents attributes as HTTP headers: how a value is written and read (CloudEvents HTTP binding 1.0.2, 3.1.3.2).

What it is: the two directions for one value, and the media types of the structured and the batched mode.
What it is not: requests and responses (the API's binding, the adapter of the contract `http`).
What must stay true: `decode(name, encode(value)) == value` for every text.
"""

from urllib.parse import quote, unquote

from edgeflow.errors import BadEvent

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""What a header value may hold as it is."""


def encode(value: str) -> str:
    """A value as a header carries it: everything but printable ASCII, and `"`, `%` and space, percent-encoded."""
    return quote(value, safe=_SAFE)


def decode(name: str, value: str) -> str:
    """The value of the header `name`. Raises BadEvent when it is not percent-encoded UTF-8."""
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise BadEvent(f"header {name} is not percent-encoded UTF-8") from None


def media_type(content_type: str | None) -> str:
    """`text/plain` of `Text/Plain; charset=utf-8`; empty for none."""
    return (content_type or "").partition(";")[0].strip().lower()
