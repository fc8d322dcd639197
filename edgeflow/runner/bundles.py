"""Function folders as archives: packed the same way everywhere, unpacked without trust.

What it is: `pack` for the one who applies a manifest, `unpack` for the PoP that runs the function, `look` for what is wrong with a folder.
What it is not: a build: requirements are installed by venvs.py, images are built by images.py.
What must stay true: the same files give the same bytes; nothing in an archive is written outside its target folder, whatever its names say.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgeflow.errors import BadManifest, TooLarge

MAX_PACKED_BYTES = 32 * 1024 * 1024
"""Largest archive: it travels to every PoP as one value of the EKV."""
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
"""Largest sum of file sizes in an archive."""
MAX_FILES = 20_000

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", ".git", ".venv", "venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".edgeflow"}
)
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".swp", "~")
_SKIPPED_FILES = frozenset({".DS_Store"})


def look(folder: Path, needs_handler: bool = True) -> str | None:
    """What is wrong with a build folder, with its fix; None if nothing is. `needs_handler`: its contract is `sdk`."""
    if not folder.exists():
        return f"the folder {folder} does not exist; create it with a handler.py, or correct the path (it is relative to the manifest)"
    if not folder.is_dir():
        return f"{folder} is not a folder; name the folder that holds handler.py"
    if needs_handler and not (folder / "handler.py").is_file() and not (folder / "Dockerfile").is_file():
        return f"the folder {folder} has neither handler.py nor Dockerfile; add a handler.py with a function marked @function"
    return None


def pack(folder: Path) -> tuple[str, bytes]:
    """(SHA-256 in hex, tar.gz) of the files in `folder`. Raises BadManifest for links, TooLarge above 32 MiB."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in _files(folder):
            data = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(member, io.BytesIO(data))
            if raw.tell() > MAX_UNPACKED_BYTES:
                raise TooLarge(
                    f"the folder {folder} is larger than {MAX_UNPACKED_BYTES} bytes",
                    hint="Move data that the function only reads into the EKV (`context:`), and files it does not need out of the folder.",
                )
    packed = gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)
    if len(packed) > MAX_PACKED_BYTES:
        raise TooLarge(
            f"the folder {folder} packs to {len(packed)} bytes, the limit is {MAX_PACKED_BYTES}",
            hint="Move data that the function only reads into the EKV (`context:`), and files it does not need out of the folder.",
        )
    return hashlib.sha256(packed).hexdigest(), packed


def unpack(data: bytes, digest: str, target: Path) -> Path:
    """Unpack an archive whose SHA-256 is `digest` into `target`, which appears complete or not at all. Returns `target`.

    Does nothing if `target` exists. Raises BadManifest when the archive is damaged or holds anything but plain files.
    """
    if target.is_dir():
        return target
    if hashlib.sha256(data).hexdigest() != digest:
        raise BadManifest(f"bundle {digest[:12]} does not match its digest", hint="Apply the manifest again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        _unpack_into(data, digest, temporary)
        temporary.chmod(0o755)
        # Another builder may have been faster: then its result is as good.
        with contextlib.suppress(OSError):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _unpack_into(data: bytes, digest: str, folder: Path) -> None:
    total = files = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                relative = _safe_name(member, digest)
                total += member.size
                files += 1
                if total > MAX_UNPACKED_BYTES or files > MAX_FILES:
                    raise BadManifest(
                        f"bundle {digest[:12]} unpacks to more than {MAX_UNPACKED_BYTES} bytes or {MAX_FILES} files"
                    )
                path = folder / relative
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None
                with path.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadManifest(
            f"bundle {digest[:12]} cannot be unpacked: {error}", hint="Apply the manifest again."
        ) from error


def _safe_name(member: tarfile.TarInfo, digest: str) -> PurePosixPath:
    name = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise BadManifest(
            f"bundle {digest[:12]}: {member.name!r} is not a plain file", hint="Replace links in the folder by files."
        )
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise BadManifest(
            f"bundle {digest[:12]}: {member.name!r} leads outside the folder", hint="Pack it with `edgeflow apply`."
        )
    return name


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of the files that belong to the function, sorted by name."""
    found: list[tuple[str, Path]] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in [*folders, *files]:
            path = Path(root, name)
            if path.is_symlink():
                raise BadManifest(
                    f"{path} is a symbolic link", hint="Replace it by the file itself: a bundle holds plain files only."
                )
        for name in files:
            if name in _SKIPPED_FILES or name.endswith(_SKIPPED_SUFFIXES):
                continue
            path = Path(root, name)
            if not path.is_file():
                raise BadManifest(f"{path} is not a plain file", hint="Remove it from the folder of the function.")
            found.append((path.relative_to(folder).as_posix(), path))
    if len(found) > MAX_FILES:
        raise TooLarge(
            f"the folder {folder} holds {len(found)} files, the limit is {MAX_FILES}",
            hint="Remove what the function does not need.",
        )
    yield from sorted(found)
