"""A PoP whose wall clock is wrong: `python -m edgeflow.lab.clock LIBRARY FOLDER COMMAND...` becomes the command, with the clock of a file in FOLDER.

What it is: a small C library (clockskew.c), compiled where a compiler is, that the agent's processes are started with; what the file says holds within 50 ms.
What it is not: for Redis (which hangs with one such library, and never decides by the clock) or for the monotonic clock.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from edgeflow.host.supervisor import default_commands
from edgeflow.lab.errors import NotPossibleHere

SOURCE = Path(__file__).with_name("clockskew.c")
FILE = "skew"
"""In the PoP's folder: by how many ms its clock is off."""


def library(folder: Path) -> Path:
    """The compiled library, made in `folder` if need be. Raises NotPossibleHere without a compiler."""
    if shutil.which("cc") is None:
        raise NotPossibleHere("A wrong clock needs a C compiler.", hint="Debian: apt-get install gcc libc6-dev")
    target = folder / "clockskew.so"
    if not target.exists():
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(target), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
    return target


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands of a cluster whose agents' clocks can be set wrong."""
    made, usual = library(folder), default_commands()
    start = [sys.executable, "-m", "edgeflow.lab.clock", str(made), "{dir}"]
    return {name: [*start, *usual[name]] for name in ("data", "control")}


def skew(pop_folder: Path, off_ms: int) -> None:
    """The wall clock of a PoP is off by so much from now on."""
    new = pop_folder / f"{FILE}.new"
    new.write_text(str(off_ms))
    new.replace(pop_folder / FILE)


def main(made: str, folder: str, command: list[str]) -> None:
    """Become the command. The supervisor's kernel signal at its end survives the change of program."""
    os.environ |= {"LD_PRELOAD": made, "CLOCKSKEW_MS": str(Path(folder) / FILE)}
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
