"""Small files that must never be half-written or readable by others."""

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

Owner = tuple[int, int]
"""(uid, gid) a file is given to; None in the calls below = leave it with the caller."""


def ensure_dir(path: Path, *, mode: int = 0o700, owner: Owner | None = None) -> Path:
    """Make the folder `path` with exactly `mode`, parents included (those with the default mode)."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)
    _give(path, owner)
    return path


def write_file(path: Path, content: str | bytes, *, mode: int = 0o600, owner: Owner | None = None) -> None:
    """Replace `path` by `content` in one step; a reader sees the old or the new file, never a part."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(mode)
        _give(Path(temporary), owner)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any, *, mode: int = 0o600, owner: Owner | None = None) -> None:
    write_file(path, json.dumps(document, indent=2) + "\n", mode=mode, owner=owner)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`, or None when there is no such file or it is not one."""
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return document if isinstance(document, dict) else None


def ensure_secret(path: Path, *, owner: Owner | None = None) -> str:
    """The secret in `path` (0600); a new one of 256 bits is made when there is none. No newline inside."""
    try:
        secret = path.read_text().strip()
        if secret:
            path.chmod(0o600)
            _give(path, owner)
            return secret
    except FileNotFoundError:
        pass
    secret = secrets.token_urlsafe(32)
    write_file(path, secret, owner=owner)
    return secret


def _give(path: Path, owner: Owner | None) -> None:
    if owner is not None:
        status = path.stat()
        if (status.st_uid, status.st_gid) != owner:
            os.chown(path, *owner)


def tail_lines(path: Path, count: int, *, max_bytes: int = 65536) -> list[str]:
    """The last `count` lines of a log file, from at most its last `max_bytes` bytes; [] when it does not exist."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
