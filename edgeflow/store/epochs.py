"""Epochs: counted outside Redis, with fsync, so that a store that comes back with less never reuses a log position.

What must stay true: a (origin, epoch, seq) names one entry for ever. A new epoch starts when Redis has lost what the file says it had. Its number is
the time in seconds, and always more than any that is known: so a PoP that lost the file as well does not begin again where it began once.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class EpochFile:
    """`epochs.json` in the state folder: per namespace the epoch and the highest seq that was recorded."""

    def __init__(self, state_dir: Path, now_s: Callable[[], float] = time.time) -> None:
        self._path = state_dir / "epochs.json"
        self._now_s = now_s

    def decide(self, namespace: str, store_epoch: int, store_seq: int) -> int:
        """The epoch to write in, given what Redis has (0 = nothing). Recorded with fsync before it is returned."""
        with self._locked() as known:
            epoch, seq = known.get(namespace, (0, 0))
            if store_epoch < epoch or (store_epoch == epoch and store_seq < seq) or epoch == store_epoch == 0:
                known[namespace] = (max(epoch + 1, store_epoch + 1, int(self._now_s())), 0)
            elif (store_epoch, store_seq) != (epoch, seq):
                known[namespace] = (store_epoch, store_seq)
            return known[namespace][0]

    def record(self, heads: dict[str, tuple[int, int]]) -> None:
        """Remember (epoch, seq) per namespace as the least that a healthy store must have."""
        with self._locked() as known:
            for namespace, position in heads.items():
                if position > known.get(namespace, (0, 0)):
                    known[namespace] = position

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, tuple[int, int]]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_suffix(".lock"), "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            before = json.loads(self._path.read_text()) if self._path.exists() else {}
            known = {name: (position[0], position[1]) for name, position in before.items()}
            changed = dict(known)
            yield changed
            if changed != known:
                temporary = self._path.with_suffix(".new")
                with open(temporary, "w") as out:
                    json.dump({name: list(position) for name, position in sorted(changed.items())}, out)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(temporary, self._path)
