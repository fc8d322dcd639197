"""The Range header: which bytes of a body a request asks for (RFC 9110, 14).

What it is not: the reading of the bytes.
What must stay true: a header that is not understood, or asks for several ranges, means the whole body, as the RFC allows; one that lies
behind the end of the body is refused by 416 with the size.
"""

import re
from dataclasses import dataclass

from edgeflow.errors import EdgeflowError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class BadRange(EdgeflowError):
    """The value has no such bytes."""

    code = "bad-range"
    status = 416
    hint = "Content-Range says how many bytes it has."

    def __init__(self, message: str | None = None, *, hint: str | None = None, size: int = 0) -> None:
        """`size`: of the whole body, in bytes."""
        super().__init__(message, hint=hint, details={"size": size})
        self.size = size


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a body of `size` bytes."""

    offset: int
    length: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all of them."""
        return self.length == self.size

    @property
    def header(self) -> str:
        """Content-Range of an answer with these bytes."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{self.size}"


def whole(size: int) -> Span:
    """All bytes."""
    return Span(0, size, size)


def parse_range(header: str | None, size: int) -> Span:
    """The bytes that a Range header asks for. Raises BadRange when none of them is there."""
    found = _RANGE.fullmatch((header or "").strip().lower())
    if found is None or not (found[1] or found[2]):
        return whole(size)
    if not found[1]:
        length = min(int(found[2]), size)
        if length == 0:
            raise BadRange(f"the last {found[2]} bytes of {size} were asked for", size=size)
        return Span(size - length, length, size)
    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return whole(size)
    if first >= size:
        raise BadRange(f"byte {first} was asked for; the value has {size} bytes", size=size)
    return Span(first, min(last, size - 1) - first + 1, size)
