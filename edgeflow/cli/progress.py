"""How long work shows that it goes on: one line that changes on a terminal, a line now and then elsewhere. Always on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from edgeflow.cli.reach import errors

EVERY_S = 2.0


class Progress:
    """A line of text that follows the work: `with Progress() as progress: progress.say("120 of 500")`."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """What is known now. Elsewhere than on a terminal it is printed at most every two seconds."""
        if sys.stderr.isatty():
            if self._live is None:
                self._live = Live(console=errors, refresh_per_second=8, transient=True)
                self._live.start()
            self._live.update(Text(text))
        elif time.monotonic() - self._said_s >= EVERY_S:
            self._said_s = time.monotonic()
            errors.print(text, markup=False, highlight=False)
