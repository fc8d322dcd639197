"""structlog without rich: the agent's log is JSON, and the console renderer that would colour tracebacks with it is never used there.

What it is: an import that the two composition roots (`edgeflow.pop`, `edgeflow.api`) do before all others; it saves each process about 3 MB.
What it is not: for the CLI, which prints with rich, or for functions.
What must stay true: structlog does without rich by itself; once this has been imported, rich can be imported as always.
"""

import sys


def _load() -> None:
    # None in `sys.modules`: whoever imports it is told that it is not installed.
    is_hidden = sys.modules.setdefault("rich", None) is None  # type: ignore[arg-type]
    try:
        import structlog  # noqa: F401
    finally:
        if is_hidden:
            del sys.modules["rich"]


_load()
