"""Runs a command again at once whenever a signal ended it: `python respawn.py COMMAND...`.

The supervisor waits longer after each of many ends in a row, as it should. A sweep that kills one process thirty times would do nothing but wait.
"""

import ctypes
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def main(command: list[str]) -> int:
    """Serve until told to stop, or until the command ends by itself."""
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        child = subprocess.Popen(command, preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        if stopping:
            child.terminate()
        if child.wait() >= 0:
            return child.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
