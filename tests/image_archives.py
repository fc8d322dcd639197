"""Archives of small images, as engines write them, and spoilt ones."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer that adds files."""
    return tar(files)


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


def oci_archive(layers: list[bytes], name: str | None = None, *, compressed: bool = True, index: Any = None) -> bytes:
    """An OCI layout with gzip layers, and what a build tool says about itself beside the image."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        blobs["blobs/" + digest(data).replace(":", "/")] = data
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    config = blob(config_of(layers), "application/vnd.oci.image.config.v1+json")
    packed = [gzip.compress(one, mtime=0) if compressed else one for one in layers]
    described = [blob(one, "application/vnd.oci.image.layer.v1.tar+gzip") for one in packed]
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": described}).encode()
    entry = blob(manifest, "application/vnd.oci.image.manifest.v1+json")
    if name is not None:
        entry["annotations"] = {"io.containerd.image.name": f"docker.io/{name}"}
    said = blob(b"{}", "application/vnd.oci.image.manifest.v1+json") | {
        "platform": {"os": "unknown", "architecture": "unknown"}
    }
    top = {"schemaVersion": 2, "manifests": [entry, said]} if index is None else index
    return tar({**blobs, "index.json": json.dumps(top).encode(), "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'})
