"""Archives of small images as `docker save` writes them.

What it is not: an engine: nothing in them can be run.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any


def tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of files, and of symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config_of(layers: Iterable[bytes], **more: Any) -> bytes:
    """A configuration over uncompressed layers."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
    }
    return json.dumps({**document, **more}).encode()


def docker_archive(
    layers: list[bytes], *names: str, config: bytes | None = None, manifest: Any = None, **files: bytes
) -> bytes:
    """As `docker save` wrote it for long: a layer that occurs twice is a link."""
    config = config_of(layers) if config is None else config
    content: dict[str, bytes] = {}
    links: dict[str, str] = {}
    known: dict[str, str] = {}
    paths = []
    for number, data in enumerate(layers):
        path = f"l{number}/layer.tar"
        paths.append(path)
        if data in known:
            links[path] = f"../{known[data]}"
        else:
            content[path], known[data] = data, path
    content["config.json"] = config
    about = (
        [{"Config": "config.json", "RepoTags": list(names) or None, "Layers": paths}] if manifest is None else manifest
    )
    content["manifest.json"] = json.dumps(about).encode()
    return tar({**content, **files}, links)
