"""Log lines of instances for people: time, function, what happened, and the invocation it belongs to.

What it is: `read` makes a record of a line of JSON or of plain text, `render` a coloured line of it; `Follower` gives the new lines of growing files.
What it is not: a log format: programs read the files (or `logs -o json`).
What must stay true: a line that is no record is shown as it is; nothing that a function writes is taken for markup.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_cyan", "bright_magenta", "bright_yellow")
LEVELS = {"error": "red", "warning": "yellow", "debug": "dim"}
SHORT = 8
"""Characters of an invocation's id that are shown."""
_KNOWN = frozenset(
    {"event", "level", "timestamp", "logger", "pop", "namespace", "function", "instance", "invocation", "attempt"}
)
_BLOCKS = ("traceback", "exception", "handler_was_at", "shown")
MAX_VALUE = 200

Record = Mapping[str, Any]


def read(line: str) -> Record:
    """The record of a line; one that is not JSON is a record `printed`."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if isinstance(record, dict) and isinstance(record.get("event"), str):
        return record
    return {"event": "printed", "text": line}


def colour_of(function: str) -> str:
    """Always the same one for a function."""
    return COLOURS[sum(function.encode()) % len(COLOURS)]


def render(record: Record, label: str, *, width: int = 0) -> Text:
    """A record as one coloured line, with what has lines of its own below it."""
    level = str(record.get("level") or "")
    style = LEVELS.get(level, "")
    line = Text()
    line.append(f"{_clock(record.get('timestamp'))} ", "dim")
    line.append(f"{label:{width}} ", colour_of(label))
    invocation = str(record.get("invocation") or "")
    line.append(f"{invocation[:SHORT]:{SHORT}} ", "dim")
    line.append_text(_what(record, style))
    for name in _BLOCKS:
        block = record.get(name)
        if isinstance(block, str) and block.strip():
            line.append("\n" + "\n".join("    " + part for part in block.rstrip().splitlines()), style)
    return line


def _what(record: Record, style: str) -> Text:
    event = record["event"]
    if event == "printed":
        return Text(str(record.get("text", "")))
    text = Text(event, style or "bold")
    for name, value in record.items():
        if name not in _KNOWN and name not in _BLOCKS and value is not None:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text.append(f" {name}=", "dim")
            text.append(shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 3] + "...", style)
    if isinstance(attempt := record.get("attempt"), int) and attempt > 1:
        text.append(f" attempt={attempt}", "dim")
    return text


def _clock(timestamp: object) -> str:
    try:
        at = datetime.fromisoformat(str(timestamp)).astimezone()
    except ValueError:
        return " " * 12
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"


class Follower:
    """The complete lines that files have grown by since they were last looked at."""

    def __init__(self) -> None:
        self._offsets: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def skip(self, files: Iterable[Path]) -> None:
        """What these files hold already is not news."""
        for file in files:
            self._offsets[file] = file.stat().st_size if file.exists() else 0

    def lines(self, files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
        """(file, line) of what is new; a file that was not known is new as a whole, one that was cut begins again."""
        for file in files:
            try:
                size = file.stat().st_size
                start = self._offsets.get(file, 0)
                if size < start:
                    start = 0
                if size == start:
                    continue
                with file.open("rb") as handle:
                    handle.seek(start)
                    data = self._rest.pop(file, b"") + handle.read(size - start)
            except OSError:
                continue
            self._offsets[file] = size
            complete, newline, unfinished = data.rpartition(b"\n")
            self._rest[file] = unfinished
            for line in complete.decode(errors="replace").split("\n") if newline else []:
                yield file, line
