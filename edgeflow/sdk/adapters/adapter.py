"""What the adapters of all contracts have in common: what they are told, what an instance asks of them, and why the instance has to end.

What it is: the part of an adapter that its contract does not change.
What it is not: a program, which one contract keeps running (program.py) and another starts each time (runs.py).
What must stay true: `load`, and so the start of a program, happens in the main thread; `kill` and `close` may be called at any time, also before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from edgeflow.sdk.adapters.setting import Setting
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.ending import Stop
from edgeflow.sdk.function import Handle
from edgeflow.sdk.log import Log

Facts = Callable[[], tuple[FunctionInfo, Log]]
"""What the agent said of this function, once it has, and the log."""


class Adapter(ABC):
    """The adapter of one instance."""

    def __init__(self, setting: Setting, stop: Stop, facts: Facts) -> None:
        self._setting = setting
        self._stop = stop
        self._facts = facts
        self.failed = ""
        """Why the instance has to end although nobody asked it to."""

    @abstractmethod
    def load(self) -> Handle:
        """Start, and wait until ready. Raises BadHandler, and ConnectionLost when the instance is to end first."""

    @abstractmethod
    def kill(self) -> None:
        """End the program at once."""

    @abstractmethod
    def close(self) -> None:
        """End the program, and what is open."""

    @abstractmethod
    def exit_status(self, status: int) -> int:
        """What the process ends with, given what the runtime says."""
