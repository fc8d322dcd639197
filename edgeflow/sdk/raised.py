"""What a handler raised, in words.

What it is: one line and a traceback for the agent and the log.
What it is not: whether it is tried again (session.py).
What must stay true: both have a bound; an exception whose own text fails is told, too; the SDK's frames are not shown.
"""

import errno
import traceback
from pathlib import Path

from edgeflow.errors import BadOutput

ERROR_BYTES = 1024
TRACEBACK_BYTES = 8192
_SDK = Path(__file__).parent


def describe(error: BaseException) -> tuple[str, str]:
    """(one line, traceback) of what a handler raised, each cut to its limit."""
    text = _text_of(error)
    if isinstance(error, BadOutput):
        text = f"{text} ({error.hint})"
    elif limit := _limit_of(error):
        text = f"{_cut(text, ERROR_BYTES // 2)} ({limit})"
    return _cut(text, ERROR_BYTES), traceback_of(error)


def _text_of(error: BaseException) -> str:
    """`KeyError: 'x'`, also for an exception whose own __str__ fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its message cannot be shown)"


def _limit_of(error: BaseException) -> str:
    """Which limit of the manifest a handler ran into, if its error says so."""
    if isinstance(error, MemoryError):
        return "it may use no more memory: `limits: {memory: ...}`"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the instance's /tmp is full: `limits: {tmpfs: ...}`"
    is_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if is_thread or (isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN):
        return "the instance may have no more processes and threads, if one was to be started: `limits: {pids: ...}`"
    return ""


def traceback_of(error: BaseException) -> str:
    """The traceback from the handler on, at most TRACEBACK_BYTES, the innermost frames kept."""
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_SDK):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= TRACEBACK_BYTES:
        return encoded.decode()
    return "...\n" + encoded[-(TRACEBACK_BYTES - 4) :].decode("utf-8", "ignore")


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return (
        encoded.decode()
        if len(encoded) <= limit_bytes
        else encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "..."
    )
