"""Epochs: counted outside Redis, with fsync, so that a store that comes back with less never reuses a log position.

What it is: one small file, and beside it one that is made once and never touched: a restored copy of both is recognised by it.
What must stay true: a (origin, epoch, seq) names one entry for ever. A new epoch starts when Redis has lost what the file says it had, when the file
is a copy, and when the machine was started anew (its disk may have been set back). Its number is the time in seconds, and always more than any that
is known: so a PoP that lost the file as well does not begin again where it began once.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Known(NamedTuple):
    epoch: int = 0
    seq: int = 0
    where: str = ""
    """The life of the disk in which the epoch was in use; empty = not recorded."""

    @property
    def position(self) -> tuple[int, int]:
        return (self.epoch, self.seq)


class EpochFile:
    """`epochs.json` in the state folder: per namespace the epoch, the highest seq that was recorded, and where that was."""

    def __init__(self, state_dir: Path, now_s: Callable[[], float] = time.time) -> None:
        self._path = state_dir / "epochs.json"
        self._now_s = now_s

    def decide(self, namespace: str, store_epoch: int, store_seq: int) -> int:
        """The epoch to write in, given what Redis has (0 = nothing). Recorded with fsync before it is returned."""
        with self._locked() as known:
            here = self._where()
            before = known.get(namespace, _Known())
            is_elsewhere = before.where not in ("", here)
            if (store_epoch, store_seq) < before.position or before.epoch == store_epoch == 0 or is_elsewhere:
                epoch = max(before.epoch + 1, store_epoch + 1, int(self._now_s()))
                known[namespace] = _Known(epoch, 0, here)
            else:
                known[namespace] = _Known(store_epoch, store_seq, here)
            return known[namespace].epoch

    def record(self, heads: dict[str, tuple[int, int]]) -> None:
        """Remember (epoch, seq) per namespace as the least that a healthy store must have."""
        with self._locked() as known:
            for namespace, position in heads.items():
                before = known.get(namespace, _Known())
                if position > before.position:
                    known[namespace] = _Known(*position, before.where)

    def _where(self) -> str:
        """Says which life of which disk this is. A copy of the mark has another inode or time of change, which nothing can set."""
        mark = self._path.with_suffix(".mark")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        status = mark.stat()
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        return f"{boot}:{status.st_ino}:{status.st_ctime_ns}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, _Known]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_suffix(".lock"), "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            before = json.loads(self._path.read_text()) if self._path.exists() else {}
            known = {name: _Known(*fields) for name, fields in before.items()}
            changed = dict(known)
            yield changed
            if changed != known:
                temporary = self._path.with_suffix(".new")
                with open(temporary, "w") as out:
                    json.dump({name: list(one) for name, one in sorted(changed.items())}, out)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(temporary, self._path)
