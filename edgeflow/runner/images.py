"""Container images of functions: built from a folder, found, or refused with a reason.

What it is: `build_image` (a folder becomes an image whose tag is its content) and `need_image` (an image by name is on the engine).
What it is not: a registry client: an image that is not here is pulled by the engine or not at all.
What must stay true: the same folder on the same base gets the same tag, and is built once; a failed build shows its last lines.

Certificates: the base image holds the extra CA certificates of deploy/certs, and function images inherit them.
"""

import hashlib
import io
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors

from edgeflow.errors import Unavailable
from edgeflow.runner import bundles
from edgeflow.runner.driver import Progress
from edgeflow.runner.venvs import BuildFailed

BASE = "function"
"""The base image of folders without a Dockerfile: `<image_prefix>/function` (deploy/Dockerfile, target function)."""
LABEL = "edgeflow.function"
CLUSTER_LABEL, BUNDLE_LABEL = "edgeflow.image.cluster", "edgeflow.image.bundle"
"""Of images that a PoP built: of which cluster, from what. Containers inherit them, hence not the names of instances' labels."""
_LAST_LINES = 20
_PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_DOCKERFILE = """\
FROM {base}
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
USER root
{requirements}COPY function/ /function/
USER 65534:65534
"""
_REQUIREMENTS = """\
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt && rm /tmp/requirements.txt
"""


class EngineUnavailable(Unavailable):
    """The Docker engine is not reachable."""

    code = "engine-unavailable"
    hint = "Start it (`dockerd`, Docker Desktop), and check DOCKER_HOST and the rights on its socket."


def engine() -> docker.DockerClient:
    """A client of the local engine (DOCKER_HOST and so on apply). Raises EngineUnavailable."""
    try:
        client = docker.from_env(version="auto", timeout=120)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error
    return client


def build_image(
    client: docker.DockerClient,
    folder: Path,
    name: str,
    *,
    prefix: str = "edgeflow",
    progress: Progress = lambda line: None,
    labels: Mapping[str, str] | None = None,
    find_base: Callable[[str], str | None] = lambda name: None,
) -> str:
    """Build the image of a function folder and return its tag; returns at once when it is there.

    `name` is `<namespace>/<function>`. `find_base` is asked for the base image when the engine has none of that name: what it gives gets that
    name. Raises BuildFailed with the last lines, BadManifest for a folder that cannot be packed.
    """
    digest, _ = bundles.pack(folder)
    own = (folder / "Dockerfile").is_file()
    base = f"{prefix}/{BASE}"
    below = "" if own else base_id(client, base, find_base)
    version = hashlib.sha256(f"{digest}\0{below}\0{_DOCKERFILE}{_REQUIREMENTS}".encode()).hexdigest()[:12]
    tag = f"{prefix}/{_repository(name)}:{version}"
    if find_image(client, tag) is not None:
        return tag
    progress(f"building {tag}")
    context = _own_context(folder) if own else _context(folder, base)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        for line in _build(client, context, tag, {LABEL: name, **(labels or {})}):
            last.append(line)
            progress(line)
    except docker.errors.APIError as error:
        raise BuildFailed(f"the image of {name} cannot be built: {error.explanation or error}", list(last)) from error
    except OSError as error:
        raise EngineUnavailable(f"the Docker engine went away while it built {name}: {error}") from error
    return tag


def need_image(client: docker.DockerClient, image: str, progress: Progress = lambda line: None) -> str:
    """The id of an image, pulled when it is not on the engine. Raises BuildFailed when it cannot be had."""
    found = find_image(client, image)
    if found is not None:
        return found
    progress(f"pulling {image}")
    try:
        client.images.pull(image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest")
    except (docker.errors.APIError, OSError) as error:
        reason = getattr(error, "explanation", None) or error
        failed = BuildFailed(f"image {image!r} is not on this engine and cannot be pulled: {reason}")
        failed.hint = f"Build it (`docker build -t {image} ...`) or correct `image:` in the manifest."
        raise failed from error
    found = find_image(client, image)
    if found is None:
        raise BuildFailed(f"image {image!r} was pulled but is not on this engine")
    return found


def _build(client: docker.DockerClient, context: bytes, tag: str, labels: Mapping[str, str]) -> Iterator[str]:
    """The lines of a build. Raises BuildFailed when the engine reports an error in them."""
    arguments = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    last: deque[str] = deque(maxlen=_LAST_LINES)
    parts = client.api.build(
        fileobj=io.BytesIO(context), custom_context=True, dockerfile="Dockerfile", tag=tag, rm=True, forcerm=True, decode=True,
        labels=dict(labels), buildargs=arguments,
    )  # fmt: skip
    for part in parts:
        # The engine colours what a step writes to stderr.
        text = _COLOUR.sub("", str(part.get("stream") or part.get("status") or ""))
        for line in text.splitlines():
            if line.strip():
                last.append(line.rstrip())
                yield line.rstrip()
        if "error" in part:
            lines = [line for line in last if line.lower().startswith("error")]
            raise BuildFailed(
                f"the image {tag} cannot be built: {lines[0] if lines else str(part['error']).strip()}", list(last)
            )


def _context(folder: Path, base: str) -> bytes:
    """Build context of a folder without a Dockerfile: a generated one, and the folder below function/."""
    requirements = folder / "requirements.txt"
    has_requirements = requirements.is_file() and bool(requirements.read_text(errors="replace").strip())
    dockerfile = _DOCKERFILE.format(base=base, requirements=_REQUIREMENTS if has_requirements else "")
    files = {"Dockerfile": dockerfile.encode()}
    if has_requirements:
        files["requirements.txt"] = requirements.read_bytes()
    return _tar(files, folder, "function/")


def _own_context(folder: Path) -> bytes:
    """Build context of a folder with a Dockerfile: the folder itself."""
    return _tar({}, folder, "")


def _tar(files: Mapping[str, bytes], folder: Path, below: str) -> bytes:
    _, packed = bundles.pack(folder)
    context = io.BytesIO()
    with (
        tarfile.open(fileobj=context, mode="w") as out,
        tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as source,
    ):
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            out.addfile(member, io.BytesIO(data))
        for member in source:
            data_file = source.extractfile(member)
            member.name = below + member.name
            out.addfile(member, data_file)
    return context.getvalue()


def base_id(client: docker.DockerClient, base: str, find_base: Callable[[str], str | None] = lambda name: None) -> str:
    """The id of the base image, which `find_base` may give. Raises BuildFailed when it is not on the engine."""
    found = find_image(client, base)
    if found is None and (other := find_base(base)) is not None:
        client.images.get(other).tag(base)
        found = find_image(client, base)
    if found is None:
        failed = BuildFailed(f"the base image {base} is not on this engine")
        failed.hint = "Build it in a clone of edgeflow: docker build -f deploy/Dockerfile --target function -t edgeflow/function . - or push it from a machine that has it: edgeflow images push edgeflow/function"
        raise failed
    return found


def command_of(client: docker.DockerClient, image: str) -> list[str]:
    """Entrypoint and command of an image, together."""
    try:
        config = client.images.get(image).attrs.get("Config") or {}
    except (docker.errors.DockerException, OSError):
        return []
    return [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]


def find_image(client: docker.DockerClient, image: str) -> str | None:
    """The id of an image that is on the engine, by its name or id; None when it is not. Raises EngineUnavailable."""
    try:
        return str(client.images.get(image).id)
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        if error.status_code == 400:  # not a name that the engine takes
            return None
        raise EngineUnavailable(f"the Docker engine answered: {error.explanation or error}") from error
    except (docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error


def _repository(name: str) -> str:
    """`vision/detect` -> `vision-detect`: what the engine takes as a repository name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "function"


def labels_of(container: Any) -> dict[str, str]:
    """Labels in an entry of the engine's container list."""
    return dict(container.get("Labels") or {})
