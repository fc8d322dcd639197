"""`edgeflow up` with a data process that does not stay up, as a program of its own (a test runs it)."""

import sys

from edgeflow.host import supervisor

usual = supervisor.default_commands
supervisor.default_commands = lambda: {
    **usual(),
    "data": [sys.executable, "-c", "print('no such thing: y'); raise SystemExit(4)"],
}

if __name__ == "__main__":
    from edgeflow.cli.main import app

    app()
