"""The control document of the link proxy, and beside it what the proxy says of it.

What it is: `wan.json`: `{"version": 7, "links": [{"a": "chicago", "b": "la", "listen_host": "127.0.0.1", "listen_port": 7201, "target_host": "127.0.0.1",
"target_port": 7102, "delay_ms": 0, "cut": false, "kbit_s": 0, "back": null}]}`. `a` dials, `b` answers; `delay_ms`, `cut` and `kbit_s` (0 = as fast as it
goes) apply in each direction, unless `back` says something else of the one from `b` to `a`; what `kbit_s` allows is shared by all connections of the pair. And
`wan.json.applied`: the version that the proxy has carried out; whoever serves the links holds a lock on that file. And `wan.json.carried`: how many bytes have
gone over each pair, in each direction.
What it is not: the proxy (wan.py).
What must stay true: changes that are made at the same time all hold; when `change_link` returns, the running proxy does what it says. Where none runs
it returns at once: the next one begins with it.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeflow.host.errors import BadClusterSpec, LinkNotApplied
from edgeflow.host.files import read_json, write_json

APPLIED_S = 10.0
"""Longest a change waits for the proxy."""
LOOK_S = 0.01


@dataclass(frozen=True)
class Line:
    """One direction of a link."""

    delay_ms: float = 0.0
    cut: bool = False
    kbit_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """One pair of PoPs."""

    a: str
    b: str
    listen_host: str
    listen_port: int
    target_host: str
    target_port: int
    delay_ms: float = 0.0
    cut: bool = False
    kbit_s: float = 0.0
    back: Line | None = None
    """The direction from `b` to `a`, where it is not as the other."""

    def line(self, origin: str) -> Line:
        """The direction that begins at `origin`."""
        there = Line(self.delay_ms, self.cut, self.kbit_s)
        return there if origin == self.a else self.back or there

    def with_lines(self, there: Line, back: Line) -> "Link":
        """The same link with other directions."""
        return replace(
            self, delay_ms=there.delay_ms, cut=there.cut, kbit_s=there.kbit_s, back=None if back == there else back
        )


@dataclass(frozen=True)
class Links:
    """The document. `version` rises with each change."""

    version: int
    links: Sequence[Link]


def load_links(path: Path) -> Links:
    """The document. Raises OSError, ValueError, KeyError and TypeError for one that cannot be read."""
    document = json.loads(path.read_text())
    return Links(int(document.get("version", 0)), [_link(item) for item in document["links"]])


def save_links(path: Path, links: Iterable[Link]) -> None:
    """Write all links anew, and return when a running proxy has them. Raises LinkNotApplied."""
    with _alone(path):
        version = _save(path, links)
    _wait_applied(path, version)


def change_link(
    path: Path, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
    one_way: bool = False,
) -> Link:  # fmt: skip
    """Change delay (ms, one way), cut or width (kbit/s, 0 = no bound) of the pair `a`,`b` (in either order), and return when it is so.

    `one_way`: only what goes from `a` to `b`. Raises BadClusterSpec if there is no such pair, LinkNotApplied.
    """
    if kbit_s is not None and not kbit_s >= 0:
        raise BadClusterSpec(f"A line of {kbit_s} kbit/s is not possible.", hint="Give 0 (no bound) or more.")
    if delay_ms is not None and not 0 <= delay_ms <= 60_000:
        raise BadClusterSpec(f"A delay of {delay_ms} ms is not possible.", hint="Give 0 to 60000 ms.")
    with _alone(path):
        links = list(load_links(path).links)
        position = next((n for n, link in enumerate(links) if {link.a, link.b} == {a, b}), None)
        if position is None:
            known = ", ".join(f"{link.a},{link.b}" for link in links) or "none"
            raise BadClusterSpec(f"There is no link between {a!r} and {b!r}.", hint=f"Links of this cluster: {known}.")
        link = links[position]

        def direction(origin: str) -> Line:
            line = link.line(origin)
            if one_way and origin != a:
                return line
            return Line(
                delay_ms=line.delay_ms if delay_ms is None else float(delay_ms),
                cut=line.cut if cut is None else cut,
                kbit_s=line.kbit_s if kbit_s is None else float(kbit_s),
            )

        changed = links[position] = link.with_lines(direction(link.a), direction(link.b))
        version = _save(path, links)
    _wait_applied(path, version)
    return changed


class Applied:
    """The proxy's word: while this is open it serves, and `tell` says which version it has carried out."""

    def __init__(self, path: Path) -> None:
        """`path` of the document. Raises OSError, BlockingIOError when another proxy serves it."""
        self._fd = os.open(_applied_file(path), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
        except OSError:
            os.close(self._fd)
            raise

    def tell(self, version: int) -> None:
        """The links are as this version of the document has them."""
        os.pwrite(self._fd, b"%020d\n" % version, 0)

    def close(self) -> None:
        """Nobody serves any more."""
        os.close(self._fd)

    def _lock(self) -> None:
        # Whoever looks whether somebody serves holds the lock for a moment.
        deadline_s = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(LOOK_S)


def carried_file(path: Path) -> Path:
    """Where the proxy counts what it carries."""
    return path.with_name(path.name + ".carried")


def carried_bytes(path: Path) -> dict[tuple[str, str], int]:
    """How many bytes have gone from one PoP to another since the proxy's first start, a moment ago; nothing where none ran."""
    return _flat(read_json(carried_file(path)) or {})


def save_carried(path: Path, carried: Mapping[tuple[str, str], int]) -> None:
    """Write down what `carried_bytes` tells."""
    write_json(carried_file(path), _nested(carried), mode=0o644)


def described(path: Path) -> dict[str, Any]:
    """The links and what they carried, for a reader who is not on this machine (`from_description`)."""
    return {
        "links": [asdict(link) for link in load_links(path).links],
        "carried": _nested(carried_bytes(path)),
    }


def from_description(document: Mapping[str, Any]) -> tuple[list[Link], dict[tuple[str, str], int]]:
    """What `described` has said."""
    return [_link(item) for item in document["links"]], _flat(document["carried"])


def _nested(carried: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    document: dict[str, dict[str, int]] = {}
    for (origin, to), count in carried.items():
        document.setdefault(origin, {})[to] = count
    return document


def _flat(document: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], int]:
    return {(origin, to): int(count) for origin, others in document.items() for to, count in others.items()}


def _link(item: Mapping[str, Any]) -> Link:
    back = item.get("back")
    return Link(**{**item, "back": None if back is None else Line(**back)})


def _applied_file(path: Path) -> Path:
    return path.with_name(path.name + ".applied")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else changes the document meanwhile."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _save(path: Path, links: Iterable[Link]) -> int:
    """The version that says so: what is as it was is not written; else above all before it, also where the document was made anew."""
    owner, version, links = None, time.time_ns(), list(links)
    if path.exists():
        status = path.stat()
        owner = (status.st_uid, status.st_gid)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = load_links(path)
        if before.links == links:
            return before.version
        version = max(version, before.version + 1)
    write_json(path, {"version": version, "links": [asdict(link) for link in links]}, owner=owner)
    return version


def _wait_applied(path: Path, version: int) -> None:
    deadline_s = time.monotonic() + APPLIED_S
    while not _is_applied(path, version):
        if time.monotonic() > deadline_s:
            raise LinkNotApplied(f"The link proxy has not taken the change within {APPLIED_S:g} s.")
        time.sleep(LOOK_S)


def _is_applied(path: Path, version: int) -> bool:
    """Whether the links are as this version says, or nobody serves them."""
    try:
        descriptor = os.open(_applied_file(path), os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(descriptor, 32, 0).strip() or 0) >= version
    else:
        return True
    finally:
        os.close(descriptor)
