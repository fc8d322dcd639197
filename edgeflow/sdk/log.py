"""JSON lines on stderr: `ctx.log`, and the runtime's own.

What must stay true: a line that cannot be written, whatever the reason, does not fail the work it tells of.
"""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from edgeflow.sdk.state import type_name


class Log:
    """JSON lines with the same fields as the agent's log: `ctx.log.info("face_found", score=0.9)`."""

    __slots__ = ("_bound", "_stream")

    def __init__(self, bound: Mapping[str, Any], stream: TextIO | None = None) -> None:
        self._bound = bound
        self._stream = stream

    def debug(self, event: str, **fields: Any) -> None:
        """Details for whoever debugs."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something worth knowing happened."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something is odd, and the work goes on."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something failed."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Something failed: with the traceback of the exception being handled."""
        import traceback

        self._write("error", event, {**fields, "exception": traceback.format_exc()})

    def _write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"event": event, "level": level, "timestamp": timestamp, **self._bound, **fields}
        stream = self._stream if self._stream is not None else sys.stderr
        try:
            stream.write(_line(record))
            stream.flush()
        except (OSError, ValueError):
            # Nobody reads it, or the disk is full: a line that is lost does not fail the work it tells of.
            pass


def _line(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, default=repr, ensure_ascii=False, skipkeys=True) + "\n"
    except Exception:  # a value that holds itself, or whose repr fails
        shown = {name: value if isinstance(value, (str, int)) else _shown(value) for name, value in record.items()}
        return json.dumps(shown, ensure_ascii=False) + "\n"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:1000]
    except Exception:
        return f"<a {type_name(value)} that cannot be shown>"
