"""What has changed in a folder, seen by looking: path, size and time of every file that can be part of a function.

What it is: `Folder.changed()`, asked again and again; it tells of a change once, when the files have come to rest.
What it is not: inotify: a look at a few dozen files costs 0.1 ms and works on every file system, mounted ones too.
What must stay true: a change is told once, with the names; a file that is just being written is not taken yet.
"""

import os
import time
from pathlib import Path

EVERY_S = 0.05
"""Time between two looks at a small folder."""
SHARE = 20
"""A look at a large folder may take one part of so many of the time."""
MAX_FILES = 5000
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv"})
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".swp", ".swx", ".tmp", "~")

_Look = dict[str, tuple[int, int, int]]


class Folder:
    """The files below one folder, apart from what begins with a dot and what no function is made of."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._look()
        self._pending: _Look | None = None
        self.pause_s = EVERY_S
        """How long to wait before the next look."""

    def changed(self) -> list[str]:
        """Names of the files that were written, made or removed since this was last said; empty while some are still being written."""
        started_s = time.monotonic()
        now = self._look()
        self.pause_s = max(EVERY_S, SHARE * (time.monotonic() - started_s))
        if now == self._seen:
            self._pending = None
            return []
        if now != self._pending:
            self._pending = now
            return []
        before, self._seen, self._pending = self._seen, now, None
        return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))

    def _look(self) -> _Look:
        found: _Look = {}
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if name[0] != "." and name not in _SKIPPED_FOLDERS]
            for name in files:
                if name[0] == "." or name.endswith(_SKIPPED_SUFFIXES):
                    continue
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # gone since
                found[os.path.relpath(path, self._root)] = (status.st_mtime_ns, status.st_size, status.st_ino)
            if len(found) > MAX_FILES:
                break
        return found
