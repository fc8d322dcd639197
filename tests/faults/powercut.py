"""Starts a Redis that has just lost power: `python powercut.py LIBRARY FOLDER COMMAND...`.

What it is: the half of the power cut that comes after it. Every file of Redis is cut to the length it had at its last fsync (as powercut.c noted
it), then the command runs with the library, in the same process.
What must stay true: a file that was never synced is empty afterwards; the journal is what would be on the disk, no more.
"""

import os
import re
import sys
from pathlib import Path


def cut(folder: Path, data: Path) -> int:
    """Take from the files in `data` what no fsync has covered; how many bytes that was."""
    journal = folder / "journal"
    synced: dict[int, int] = {}
    if journal.exists():
        for line in journal.read_text().splitlines():
            inode, _, length = line.partition(" ")
            synced[int(inode)] = int(length)
    taken = 0
    lines = []
    for path in data.rglob("*"):
        if not path.is_file():
            continue
        about = path.stat()
        kept = min(about.st_size, synced.get(about.st_ino, 0 if journal.exists() else about.st_size))
        taken += about.st_size - kept
        os.truncate(path, kept)
        lines.append(f"{about.st_ino} {kept}\n")
    folder.mkdir(exist_ok=True)
    journal.write_text("".join(lines))
    return taken


def main(library: str, folder: Path, command: list[str]) -> None:
    """Cut, then become the command."""
    conf = next(Path(part) for part in command if part.endswith("redis.conf"))
    found = re.search(r'^dir "?([^"\n]+)"?$', conf.read_text(), re.MULTILINE)
    assert found is not None
    taken = cut(folder, Path(found.group(1)))
    with (folder / "cuts").open("a") as cuts:
        cuts.write(f"{taken}\n")
    os.environ |= {
        "LD_PRELOAD": library, "POWERCUT_JOURNAL": str(folder / "journal"), "POWERCUT_FULL": str(folder / "full"),
    }  # fmt: skip
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
