"""What a handler prints, as lines of the log: so that a line says which invocation it belongs to.

What it is: a text stream in the place of sys.stdout that turns each line into a record `printed` of the log that is current then.
What it is not: a capture of what C code or a child process writes: that goes to the log of the instance as it is.
What must stay true: a line is written whole or not at all, whatever threads print; printing never fails the work.
"""

import io
import threading
from collections.abc import Callable
from typing import BinaryIO, TextIO

from edgeflow.sdk.log import Log

MAX_LINE = 8192
"""Characters after which a line without an end is written as it is."""


class Printed(io.TextIOBase):
    """Writes lines to `current()`."""

    encoding = "utf-8"

    def __init__(self, current: Callable[[], Log], under: TextIO) -> None:
        """`under`: the stream that this takes the place of; bytes, and what child processes write, go there."""
        self._current = current
        self._under = under
        self._lock = threading.Lock()
        self._begun = ""

    @property
    def buffer(self) -> BinaryIO:
        """For those who write bytes."""
        return self._under.buffer

    def fileno(self) -> int:
        return self._under.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + str(text)).split("\n")
            if len(self._begun) > MAX_LINE:
                lines.append(self._begun)
                self._begun = ""
        for line in lines:
            if line.strip():
                self._current().info("printed", text=line.rstrip())
        return len(text)

    def end_line(self) -> None:
        """Writes what has been printed without an end of line."""
        if self._begun:
            self.write("\n")
