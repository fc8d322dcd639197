"""What the reconciler remembers about one revision between two rounds; lost at a restart without harm."""

from dataclasses import dataclass, field

from edgeflow.runner.plan import backoff_ms

FunctionKey = tuple[str, str]
"""Namespace and function."""


@dataclass(slots=True)
class Memory:
    """Failures in a row of one revision."""

    content: str = ""
    """Names the secrets that instances are started with (secret_files.fingerprint)."""
    failures: int = 0
    start_from_ms: int = 0
    reason: str = ""
    last_log_lines: list[str] = field(default_factory=list)
    waits: str = ""
    """Why the last start was put off for lack of room."""

    def failed(self, reason: str, last_log_lines: list[str], now_ms: int) -> None:
        """One more failure in a row; the next start waits."""
        self.failures += 1
        self.start_from_ms = now_ms + backoff_ms(self.failures)
        self.reason = reason
        self.last_log_lines = last_log_lines

    def stable(self) -> None:
        """What runs now has run for long enough."""
        self.failures, self.reason, self.last_log_lines = 0, "", []
