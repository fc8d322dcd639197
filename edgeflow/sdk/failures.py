"""Failed invocations as files that can be run again: all inputs with their data, and why it failed.

What it is: `Failures.ended`, called by the runtime after each attempt while somebody develops the function (`edgeflow dev`).
What it is not: the dead letter, which the PoP keeps whether or not anybody develops.
What must stay true: saving never fails the work; the folder holds the newest KEPT files; a file is whole or not there.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeflow.core import gathered
from edgeflow.core.events import Event
from edgeflow.core.wire import Message
from edgeflow.errors import EdgeflowError
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.inputs import Bodies, Input
from edgeflow.sdk.log import Log

KEPT = 100
MAX_BYTES = 11 * 1024 * 1024
"""Data of all inputs: as much as goes into one event again, as base64."""


class Failures:
    """The folder of failed invocations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(
        self, info: FunctionInfo, log: Log, items: Sequence[Mapping[str, Any]], message: Message, took_s: float, bodies: Bodies
    ) -> None:  # fmt: skip
        """An attempt has ended with `message`: one line about one that went well, a file about one that did not."""
        took_ms = round(took_s * 1000, 1)
        if message["t"] == "commit":
            log.info("invocation_done", took_ms=took_ms, outputs=[_relative(one, info) for one in message["outputs"]])
            return
        if all("p" not in item["event"] for item in items):
            return  # it was run again from a file, and is no other failure
        try:
            path = self._save(info, items, message, bodies)
        except (EdgeflowError, OSError, ValueError) as error:
            log.warning("failure_not_saved", reason=str(error))
        else:
            log.info("failure_saved", file=str(path), function_name=f"{info.namespace}/{info.function}")

    def _save(
        self, info: FunctionInfo, items: Sequence[Mapping[str, Any]], message: Message, bodies: Bodies
    ) -> Path:  # fmt: skip
        inputs = [Input(item["name"], item["event"], bodies) for item in items]
        size = sum(one.size_bytes for one in inputs)
        if size > MAX_BYTES:
            raise ValueError(f"its inputs have {size} bytes, more than {MAX_BYTES}")
        read: list[tuple[str, Event, bytes]] = [(one.name, one.event, one.data) for one in inputs]
        document = {
            "function": f"{info.namespace}/{info.function}", "invocation": message["invocation"], "attempt": message["attempt"],
            "error": message["error"], "traceback": message["traceback"], "at_ms": int(time.time() * 1000), "inputs": gathered.pack(read),
        }  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{info.function}-{message['invocation'][:12]}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False))
        temporary.replace(path)
        for old in sorted(self._folder.glob("*.json"), key=lambda one: one.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
        return path


def _relative(output: Mapping[str, Any], info: FunctionInfo) -> str:
    return str(output["channel"]).removeprefix(info.namespace + "/")
