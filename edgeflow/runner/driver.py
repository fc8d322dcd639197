"""What the reconciler needs from something that can run instances.

What it is: the `Driver` protocol and the values that go through it.
What it is not: policy. A driver does what it is told and reports what it sees; when to start, stop and give up is the reconciler's.
What must stay true: `observe` shows what really runs, also what an earlier life of this process started; every call may be repeated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeflow.core.manifest import ResolvedFunction, size_bytes
from edgeflow.core.manifest_models import DEFAULT_LOG, DEFAULT_PIDS, DEFAULT_TMPFS
from edgeflow.errors import EdgeflowError

Progress = Callable[[str], None]


class CannotStart(EdgeflowError):
    """An instance cannot be started."""

    code = "cannot-start"
    status = 500
    hint = "The message says what the operating system or the engine answered."


class NotHereYet(Exception):
    """What a revision is made from is on its way to this PoP; the text says what is waited for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What instances of one revision are started from: a folder and an interpreter, or an image."""

    folder: Path | None = None
    python: Path | None = None
    image: str | None = None
    is_live: bool = False
    """The folder is being edited: instances follow its changes."""


@dataclass(frozen=True, slots=True)
class StartSpec:
    """One instance to start."""

    namespace: str
    function: str
    revision: str
    instance: str
    """Unique at this PoP; also the name of its socket's folder."""
    socket: Path
    """Its own socket, as the agent sees it."""
    prepared: Prepared
    cpus: float = 1.0
    memory_bytes: int = 512 * 1024 * 1024
    pids: int = DEFAULT_PIDS
    tmpfs_bytes: int = size_bytes(DEFAULT_TMPFS)
    log_bytes: int = size_bytes(DEFAULT_LOG)
    egress: bool = False
    """Whether it reaches the outside (`network: egress`)."""
    gpus: str | int | None = None
    """`all`, or how many."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Content of the files below /run/secrets; never in a log, a label or an environment."""
    content: str = ""
    """Which versions of the secrets these are (secret_files.fingerprint); `observe` gives it back."""
    contract: str = "sdk"
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """What the adapter of another contract than `sdk` is told (edgeflow/sdk/adapters/setting.py)."""
    direct: bool = False
    """Whether it subscribes at the broker itself (`qos: 0`), so that it needs the broker's socket for functions."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One instance as the driver sees it."""

    instance: str
    namespace: str
    function: str
    revision: str
    started_ms: int
    running: bool
    ended: str | None = None
    """How it ended, in words, when it does not run any more."""
    content: str = ""
    """The `content` that it was started with."""
    paused: bool = False


class Driver(Protocol):
    """Runs instances at one PoP."""

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        """Make what instances of this revision are started from; may take minutes. Raises EdgeflowError with the reason,
        and NotHereYet when a part of it is on its way."""
        ...

    def observe(self) -> list[Observed]:
        """All instances of this PoP, ended ones too until they are removed."""
        ...

    def start(self, spec: StartSpec) -> None:
        """Start one instance. Raises EdgeflowError when it cannot be started."""
        ...

    def stop(self, instance: str) -> None:
        """Ask an instance, paused or not, to finish what it does and leave. Returns at once."""
        ...

    def kill(self, instance: str) -> None:
        """End an instance now."""
        ...

    def pause(self, instance: str) -> None:
        """Let an instance stand still. It has said `parked`."""
        ...

    def resume(self, instance: str) -> None:
        """Let an instance go on; nothing happens when it does."""
        ...

    def remove(self, instance: str) -> None:
        """Forget an instance that has ended. Its log may be kept for a while."""
        ...

    def tail(self, instance: str, lines: int) -> list[str]:
        """Its last log lines."""
        ...

    def upkeep(self) -> None:
        """Bound logs and the like. Called about once a second."""
        ...


def instance_prefix(namespace: str, function: str) -> str:
    """What the ids of a function's instances start with; short, because a socket's path has at most 107 bytes."""
    return f"{namespace[:12]}.{function[:20]}"
