"""Archives of small images, as engines write them, and spoilt ones."""

import gzip
import json
from collections.abc import Mapping
from typing import Any

from bench.archives import config_of, digest, tar
from bench.archives import docker_archive as docker_archive


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer that adds files."""
    return tar(files)


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
