"""A process beside an adapter that ends what the adapter's runs have left, when the adapter is gone, however it went.

What it is: a shell of two megabytes that waits for the end of a pipe, whose other end is the adapter's, and then kills what is left of the adapter's session.
What it is not: for a program that runs as long as its adapter: that is bound to its parent by the kernel (program.py), which takes a copy of this
process (fork) where it is started. For each invocation that would be most of the work; with a warden it is a vfork.
What must stay true: the adapter leads a session of its own, as the runner starts it: nobody else's process is in it. While the warden is in it, the
session's number cannot become another's.
"""

import os
import subprocess

from edgeflow.errors import BadHandler

_WATCH = """
read -r _
found=1
while [ "$found" ]; do
  found=
  for file in /proc/[0-9]*/stat; do
    read -r line <"$file" || continue
    pid=${line%% *}
    set -- ${line##*) }
    if [ "$4" = "$0" ] && [ "$pid" != "$$" ] && [ "$1" != Z ] && [ "$1" != X ]; then kill -KILL "$pid"; found=1; fi
  done
done
"""
"""`$0` is the session. A stat line is `pid (name) state parent group session ...`, and a name may hold anything."""


class Warden:
    """Stands as long as this process does."""

    def __init__(self) -> None:
        """Post it. Raises BadHandler when this process leads no session, or the kernel cannot tell of a process's end."""
        if os.getsid(0) != os.getpid():
            raise BadHandler(
                "an adapter of `stdio` has to lead a session", hint="Start it with `setsid`, as the runner does."
            )
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            raise BadHandler(
                f"pidfd_open: {error.strerror}", hint="`stdio` as a process needs Linux 5.3 or newer."
            ) from None
        held, self._end = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, str(os.getpid())], stdin=held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
            )  # fmt: skip
        finally:
            os.close(held)

    def close(self) -> None:
        """Nothing runs any more: it ends without a look."""
        self._process.kill()
        self._process.wait()
        os.close(self._end)
