"""Fail points: places where a test can end or stop a process at an exact step.

What it is: `hit(name)` at each step where a crash could lose or double something, and the list of those steps.
What it is not: a switch for users. Off (the environment has no EDGEFLOW_FAILPOINTS) a call looks at one global and returns.
What must stay true: each armed point strikes once, in one process, and leaves a file that says so; `POINTS` names exactly the calls in the code
(a test compares them). This is the one module of core that touches the operating system, and only when a test has armed it.

A test sets EDGEFLOW_FAILPOINTS to a folder before the cluster starts. A file `<folder>/<name>` arms a point. Its content is `kill` or `stop`
(SIGKILL or SIGSTOP of the process that comes by), then optionally `skip N` (let N passes of a process go by first) and `pid P` (only that process).
The process that strikes takes the file away, writes its pid into it, and leaves it as `<name>.fired`.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

VARIABLE = "EDGEFLOW_FAILPOINTS"

POINTS: dict[str, str] = {
    "gateway-received": "a message came from the broker, nothing is done with it yet",
    "gateway-before-ingest": "messages are about to be ingested",
    "gateway-after-ingest": "messages are in the log, not acknowledged to the broker",
    "gateway-acked": "their acknowledgements are on the way to the broker",
    "round-before-store": "arrivals, commits and claims are collected, the store was not called",
    "round-under-way": "the store works on a round, its answer is not read",
    "round-after-store": "the store has carried out a round, nobody got an answer",
    "claim-after-store": "invocations are claimed, the instance does not know",
    "claim-handed-over": "the instance has its work",
    "sdk-before-handler": "an instance is about to call the handler",
    "sdk-after-handler": "the handler has returned, nothing is sent",
    "sdk-commit-sent": "the commit is on the way to the agent",
    "commit-collected": "the agent has a commit, the store has not",
    "commit-stored": "a commit is in the log, the instance does not know",
    "commit-answered": "the instance knows that its commit is in the log",
    "fail-before": "an attempt has failed, the store does not know",
    "fail-after": "the store knows that an attempt has failed",
    "publisher-published": "an event is on the way to the broker's subscribers, unconfirmed",
    "publisher-confirmed": "the broker has confirmed an event, the cursor is not stored",
    "publisher-cursor": "the publisher's cursor is stored",
    "link-sender-read": "entries are read for a peer, not sent",
    "link-sender-flushed": "what there was for a peer is written to its socket",
    "link-sender-acked": "a peer has acknowledged entries",
    "link-receiver-before-mirror": "entries of a peer are here, not mirrored",
    "link-receiver-mirrored": "entries of a peer are mirrored, not acknowledged",
    "link-blob-stored": "a blob of a peer is stored, not acknowledged",
    "tick-before": "delays, leases and joins are about to be looked at",
    "tick-after": "delays, leases and joins have been looked at",
    "api-before-ingest": "an event came over HTTP, nothing is done with it yet",
    "api-after-ingest": "it is in the log, the client has no answer",
    "runner-documented": "an instance has its document, the driver was not asked to start it",
    "runner-started": "the driver has started an instance",
    "runner-rollout-noted": "it is written down which revision serves, events still go to the other",
    "runner-routes-installed": "events go to another revision",
    "runner-handed-over": "what a revision that was rolled back had left is with the one that serves",
    "runner-parked": "an instance is asked to park, or to work again",
    "runner-paused": "an instance stands still",
    "runner-resumed": "an instance goes on",
}
"""Name: where the process is when it strikes."""

_FOLDER = os.environ.get(VARIABLE)
_passes: Counter[str] = Counter()


def hit(name: str, before: Callable[[], object] | None = None) -> None:
    """Ends or stops this process here if the point is armed; `before` is called first, so that what is queued leaves."""
    if _FOLDER is not None:
        _strike(Path(_FOLDER) / name, before)


def _strike(armed: Path, before: Callable[[], object] | None) -> None:
    try:
        action, *rest = armed.read_text().split()
    except (OSError, ValueError):
        return  # not armed, or another process was faster
    options = dict(zip(rest[::2], map(int, rest[1::2]), strict=True))
    if options.get("pid", os.getpid()) != os.getpid():
        return
    _passes[armed.name] += 1
    if _passes[armed.name] <= options.get("skip", 0):
        return
    if before is not None:
        before()
    taken = armed.with_suffix(f".{os.getpid()}")
    try:
        armed.rename(taken)
    except OSError:
        return
    taken.write_text(str(os.getpid()))
    # At last, so that whoever sees it can read it.
    taken.rename(armed.with_suffix(".fired"))
    signal.raise_signal(signal.SIGKILL if action == "kill" else signal.SIGSTOP)
