"""Contract `stdio`: a program that reads its standard input and writes its standard output is run once for each invocation.

What it is: the invocation as the process's input and environment, and what its output and its end mean.
What it is not: how processes are run (runs.py, launched.py).
What must stay true: a process that takes too long ends before its attempt does, so its instance goes on.

Status 0: done, what it wrote is the output. 75 (EX_TEMPFAIL): later. Anything else: the attempt failed.
"""

import time
from collections.abc import Mapping
from typing import Any

from edgeflow.errors import BadOutput
from edgeflow.sdk.adapters import answers, requests
from edgeflow.sdk.adapters.adapter import Adapter, Facts
from edgeflow.sdk.adapters.effects import Effects
from edgeflow.sdk.adapters.launched import LaunchedRuns, LauncherGone
from edgeflow.sdk.adapters.program import in_words
from edgeflow.sdk.adapters.runs import LocalRuns, Runs
from edgeflow.sdk.adapters.setting import Setting
from edgeflow.sdk.context import Context
from edgeflow.sdk.ending import Stop
from edgeflow.sdk.function import Handle
from edgeflow.sdk.inputs import MAX_VALUE_BYTES
from edgeflow.sdk.outcome import Later

TEMPFAIL = 75
SPARE_S = 0.5
"""How much earlier than its attempt a process ends, at most a tenth of the attempt's time."""


class Stdio(Adapter):
    """The adapter of one instance."""

    def __init__(self, setting: Setting, stop: Stop, facts: Facts) -> None:
        super().__init__(setting, stop, facts)
        self._effects: Effects | None = None
        self._runs: Runs | None = None

    def load(self) -> Handle:
        """Be ready to run the program. Raises BadHandler, ConnectionLost when the instance is to end first."""
        self._effects = Effects(self._setting.effects_port)
        if self._setting.launcher_port:
            self._runs = LaunchedRuns(self._setting.launcher_port, self._stop)
        else:
            self._runs = LocalRuns(self._setting.command, {"EDGEFLOW_URL": self._effects.url})
        self._runs.start()

        def handle(ctx: Context, /, **inputs: Any) -> None:
            self._handle(ctx, inputs)

        return handle

    def kill(self) -> None:
        """End what runs at once."""
        if self._runs is not None:
            self._runs.kill()

    def close(self) -> None:
        """No more runs."""
        if self._runs is not None:
            self._runs.close()
        if self._effects is not None:
            self._effects.close()

    def exit_status(self, status: int) -> int:
        """What the process ends with, given what the runtime says."""
        return 1 if self.failed else status

    def _handle(self, ctx: Context, inputs: Mapping[str, Any]) -> None:
        info, _ = self._facts()
        timeout_s = info.timeout_ms / 1000
        events = requests.events_of(inputs)
        given = requests.content(events, joined=info.joined)
        assert self._effects is not None and self._runs is not None
        began_s = time.monotonic()
        with self._effects.of(ctx, info.publish):
            try:
                ended = self._runs.run(
                    requests.variables(given, ctx), given.body, timeout_s - min(SPARE_S, timeout_s / 10)
                )
            except LauncherGone as gone:
                self.failed = str(gone)
                raise
        said = requests.first_lines(b"\n".join(ended.stderr.splitlines()[-5:]))
        if ended.too_large:
            raise BadOutput(f"the program wrote more than {MAX_VALUE_BYTES} bytes")
        if ended.timed_out:
            raise answers.ProgramFailed(
                f"the program did not end within {time.monotonic() - began_s:.1f} s, and was killed: {said}"
            )
        if ended.status == TEMPFAIL:
            raise Later(answers.DEFAULT_LATER_S, f"the program ended with status {TEMPFAIL}: {said}")
        if ended.status != 0:
            raise answers.ProgramFailed(f"the program ended {in_words(ended.status)}: {said}")
        if info.publish and ended.stdout:
            kind = self._setting.stdio_content_type
            headers = {} if kind is None else {"content-type": kind}
            answers.emit(ctx, info.publish, {one.channel for one in events}, answers.answers(headers, ended.stdout))
