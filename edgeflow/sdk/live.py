"""One life of a function's code while it is being written: loads the handler when told to, serves when the one before it has left.

What it is: the child process of reload.py. It is forked ahead of the next change, so that Python, the SDK and the packages that the handler used last
are there already; then it loads the code as it is on disk, says how that went, and is an instance like any other.
What it is not: a watcher of files, or the one who decides when to change over.
What must stay true: code is loaded once per process, in a process that has never seen another version of it; it dies with its parent.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeflow.errors import BadHandler
from edgeflow.sdk.ending import EXIT_BAD_HANDLER, EXIT_STOPPED, Stop
from edgeflow.sdk.failures import Failures
from edgeflow.sdk.function import Handle, check_signature, load_handler
from edgeflow.sdk.printed import Printed
from edgeflow.sdk.runtime import Instance

WARM_AFTER_S = 0.3
"""A spare begins to import packages when the instance that has just begun to serve has had the processor for so long."""
SHOWN_FRAMES = 12
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def live(
    channel: socket.socket, parent: int, socket_path: str, folder: Path, packages: Sequence[str], failures: Path | None
) -> int:  # fmt: skip
    """The life of the child; returns its exit status. `packages` are imported while there is nothing to do."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return EXIT_STOPPED
    stop = Stop()
    stop.on_signals()
    if not select.select([channel.fileno(), stop.read_fd], [], [], WARM_AFTER_S)[0]:
        _warm(packages)
    wish = _receive(channel, stop)
    if wish is None:
        return EXIT_STOPPED
    before = set(sys.modules)
    try:
        handle = load_handler(folder)
        if wish.get("inputs") is not None:
            check_signature(handle, wish["inputs"])
    except BadHandler as error:
        _send(channel, {"refused": described(error, folder)})
        return EXIT_BAD_HANDLER
    _send(channel, {"loaded": _packages_since(before, folder)})
    if _receive(channel, stop) is None:
        return EXIT_STOPPED
    return _serve(channel, stop, socket_path, handle, folder, failures)


def _serve(
    channel: socket.socket, stop: Stop, socket_path: str, handle: Handle, folder: Path, failures: Path | None
) -> int:  # fmt: skip
    instance: Instance

    def load() -> Handle:
        _send(channel, {"inputs": list(instance.info.inputs)})
        return handle

    instance = Instance(socket_path, load, stop=stop, witness=None if failures is None else Failures(failures))
    sys.stdout = printed = Printed(lambda: instance.current_log, sys.stdout)
    try:
        return instance.run()
    except BadHandler as error:
        _send(channel, {"refused": described(error, folder)})
        return EXIT_BAD_HANDLER
    finally:
        printed.end_line()


def described(error: BadHandler, folder: Path) -> dict[str, Any]:
    """Why code cannot be used, for whoever has just written it: the message, the place, and what Python says of it."""
    cause = error.__cause__
    if cause is None:
        return {"error": error.message, "hint": error.hint, "file": None, "line": None, "shown": ""}
    file, line = None, None
    if isinstance(cause, SyntaxError) and cause.filename:
        file, line = cause.filename, cause.lineno
    else:
        own = [one for one in traceback.extract_tb(cause.__traceback__) if Path(one.filename).is_relative_to(folder)]
        if own:
            file, line = own[-1].filename, own[-1].lineno
    # The frames of the import machinery and of the SDK say nothing to the writer of the code.
    frames = [
        one for one in traceback.extract_tb(cause.__traceback__)
        if not one.filename.startswith("<frozen") and Path(one.filename).parent != Path(__file__).parent
    ]  # fmt: skip
    shown = [*traceback.format_list(frames[-SHOWN_FRAMES:]), *traceback.format_exception_only(cause)]
    return {
        "error": f"{type(cause).__name__}: {getattr(cause, 'msg', None) or cause}", "hint": error.hint,
        "file": file, "line": line, "shown": "".join(shown)[-8192:],
    }  # fmt: skip


def _warm(packages: Sequence[str]) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except Exception:
            return  # the load itself will tell


def _packages_since(before: set[str], folder: Path) -> list[str]:
    """What the handler imported that is not its own code."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in before or getattr(module, "__spec__", None) is None or name == "handler":
            continue
        if file is None or not Path(file).is_relative_to(folder):
            found.append(name)
    return found[:2000]


def _receive(channel: socket.socket, stop: Stop) -> dict[str, Any] | None:
    """The next wish of the parent; None when it is gone, or wants an end."""
    while not stop.requested:
        readable, _, _ = select.select([channel.fileno(), stop.read_fd], [], [])
        if channel.fileno() in readable:
            data = channel.recv(1 << 18)
            return json.loads(data) if data else None
    return None


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except OSError:
        pass  # the parent is gone, and so are we in a moment
