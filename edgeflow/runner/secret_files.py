"""Secrets as files of one instance.

What it is: a folder beside the instance's socket with one file per secret, and a name for the versions that it was made of.
What it is not: where secrets are kept (edgeflow.store.sealed), or who may use which (the reconciler: those of the function's namespace).
What must stay true: a file is readable by its instance only from its first byte on; the folder goes with the instance's own folder.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = "secrets"
INSIDE = "/run/secrets"
"""The folder as a container sees it."""


def fingerprint(versions: Mapping[str, str]) -> str:
    """Names these versions of these secrets; empty for none. It says nothing about what is in them."""
    text = "\n".join(f"{name}={version}" for name, version in sorted(versions.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""


def write(folder: Path, secrets: Mapping[str, bytes], *, reader: int | None) -> None:
    """Write the files. `reader`: the account that reads them (uid = gid), None = the one that writes.

    They are given to the reader where this process may do that (as root); else the group of this process may read them, and the reader has to be in
    it (`groups`).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    is_own = reader in (None, os.geteuid())
    can_give = not is_own and os.geteuid() == 0
    for name, data in secrets.items():
        path = folder / name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        path.chmod(0o400 if is_own or can_give else 0o440)
        if can_give and reader is not None:
            os.chown(path, reader, reader)
    if can_give and reader is not None:
        os.chown(folder, reader, reader)
        folder.chmod(0o500)
    elif not is_own:
        folder.chmod(0o750)


def groups(folder: Path, reader: int) -> list[int]:
    """Groups that the reader has to be in besides its own."""
    status = folder.stat()
    return [] if status.st_uid == reader else [status.st_gid]
