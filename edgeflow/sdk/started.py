"""How the runner starts a program of the SDK: what it finds in its environment.

What it is not: for users: who starts such a program by hand is told so.
"""

import os
import sys


def told(*names: str) -> tuple[str, ...] | None:
    """The values of these environment variables; None when one is missing, which is said on stderr."""
    for name in names:
        if not os.environ.get(name):
            print(f"edgeflow: {name} is not set; the runner starts this program, not a user", file=sys.stderr)
            return None
    return tuple(os.environ[name] for name in names)
