"""Starts a process of a PoP when it may: `python held.py FOLDER CLOCK COMMAND...`.

While the file FOLDER/hold exists the PoP is a machine that is off. CLOCK is a library that makes its clock wrong by what FOLDER/skew says, or `-`.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main(folder: Path, clock: str, command: list[str]) -> None:
    """Wait for the machine to be on, then become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    while (folder / "hold").exists():
        time.sleep(0.02)
    if clock != "-":
        os.environ |= {"LD_PRELOAD": clock, "CLOCKSKEW_MS": str(folder / "skew")}
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
