"""Images on this PoP's engine: found, loaded from the cluster's library, or pulled; and given to the library when another PoP needs one.

What it is: `need` (an image is on the engine, whatever that takes), `resolve` (which image a name means here) and `give` (from the engine into the library).
What it is not: a build (images.py), or the library itself (library.py).
What must stay true: an image that is asked for by its id is that image or none; only the layers that the engine lacks are fetched; a name that a user
gave to an image on the engine is never moved. What is loaded is called `<image_prefix>/loaded:<start of its id>`, so that it can be told apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import docker.errors
import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import EdgeflowError, TooLarge
from edgeflow.runner import archives, images
from edgeflow.runner.driver import NotHereYet, Progress
from edgeflow.runner.images import EngineUnavailable
from edgeflow.runner.library import ImageAway, ImageLibrary, StoredImage
from edgeflow.runner.ports import ImageStorePort
from edgeflow.runner.venvs import BuildFailed

log = structlog.get_logger()

WANTS = "image-wants/"
"""`image-wants/<id>/<pop>`: that PoP needs an image that is not in the library; a PoP whose engine has it gives it."""
_ID_CHARS = 24


@dataclass(frozen=True, slots=True)
class OurImage:
    """An image on the engine that is there because of edgeflow."""

    name: str
    id: str
    bundle: str | None
    """Of what bundle it was built; None: it was loaded."""


class EngineImages:
    """The images of one engine, beside the library."""

    def __init__(
        self, client: docker.DockerClient, library: ImageLibrary, store: ImageStorePort, pop: str, prefix: str
    ) -> None:
        self._client = client
        self._api: Any = client.api
        self._library = library
        self._store = store
        self._pop = pop
        self._prefix = prefix

    def resolve(self, name: str) -> str | None:
        """The id of the image that a name means now: what was pushed last under it, else what the engine calls so; None when neither knows it."""
        stored = self._library.find(name)
        return stored.id if stored is not None else images.find_image(self._client, name)

    def need(self, name: str, id: str | None, progress: Progress = lambda line: None) -> str:
        """What containers are made from: the image `id`, or without one what `name` means now.

        Raises BuildFailed, EngineUnavailable, and NotHereYet while another PoP may still give it, or a part of it.
        """
        if id is None:
            id = self.resolve(name)
        if id is None:
            digest = name.rpartition("@")[2]
            try:
                return images.need_image(self._client, name, progress)
            except BuildFailed:
                if not archives.ID.fullmatch(digest):
                    raise
                id = digest  # no registry knows it: then it is the id of an image of another PoP's engine
        if (found := self._on_engine(id)) is not None:
            return found
        stored = self._library.get(id)
        if stored is not None:
            self._forget_want(id)
            try:
                return self.load(stored, progress)
            except ImageAway as error:
                # No failure of the revision: what has come stays, and the rest may come as soon as a link is back.
                raise NotHereYet(f"waiting for a part of image {name}: {error.message}") from error
        self._want(id)
        raise NotHereYet(f"waiting for image {name} ({id[7:19]}): no PoP that can be reached has given it yet")

    def stored(self, name: str, progress: Progress = lambda line: None) -> str | None:
        """What the library knows under that name, loaded; None when it does not know it."""
        image = self._library.find(name)
        return None if image is None else self.load(image, progress)

    def load(self, image: StoredImage, progress: Progress = lambda line: None) -> str:
        """Have an image of the library on the engine, and what it is called there. Raises BuildFailed, ImageAway."""
        if (found := self._on_engine(image.id)) is not None:
            return found
        skip = self._shared_layers(image)
        self._library.fetch(image, skip, progress)
        progress(f"loading image {image.id[7:19]}")
        try:
            self._load(image, skip)
        except BuildFailed:
            if not skip:
                raise
            # An engine that lays out images in another way needs all layers.
            self._library.fetch(image, 0, progress)
            self._load(image, 0)
        found = self._on_engine(image.id)
        if found is None:
            raise BuildFailed(f"image {image.id[7:19]} was loaded but is not on this engine")
        log.info("image_loaded", image=image.id, names=list(image.names), layers=len(image.layers), had=skip)
        return found

    def has(self, id: str) -> bool:
        """Whether the engine has the image. Raises EngineUnavailable."""
        return self._on_engine(id) is not None

    def give(self, id: str) -> StoredImage | None:
        """Store an image of the engine in the library, without a name: nobody pushed it under one. None when the engine has no such image. Raises BadImage, StoreFull, EngineUnavailable."""
        if images.find_image(self._client, id) is None:
            return None
        system = self._store.namespace(SYSTEM_NAMESPACE)
        writer = system.blob_writer(self._library.limit_bytes)
        try:
            for chunk in self._api.get_image(id):
                writer.write(chunk)
            ref = writer.finish()
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine does not give image {id[7:19]}: {error}") from error
        finally:
            writer.abort()
        body = system.open_blob(ref.digest)
        if body is None:
            raise TooLarge(f"image {id[7:19]} went away while it was read")
        try:
            return self._library.take(body)[0]
        finally:
            body.close()

    def ours(self, cluster: str) -> list[OurImage]:
        """What was loaded here, and what the PoPs of a cluster built from bundles."""
        try:
            loaded = self._api.images(name=f"{self._prefix}/loaded")
            built = self._api.images(filters={"label": f"{images.CLUSTER_LABEL}={cluster}"})
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error
        found = [OurImage(str(name), str(one["Id"]), None) for one in loaded for name in one.get("RepoTags") or ()]
        for one in built:
            bundle = (one.get("Labels") or {}).get(images.BUNDLE_LABEL)
            names = [
                name for name in map(str, one.get("RepoTags") or ()) if not name.startswith(f"{self._prefix}/loaded:")
            ]
            found += [OurImage(name, str(one["Id"]), bundle) for name in names]
        return found

    def unload(self, name: str) -> bool:
        """Remove what was loaded under that name; False when a container is made from it."""
        try:
            self._api.remove_image(name)
        except docker.errors.ImageNotFound:
            return True
        except docker.errors.APIError as error:
            if error.status_code == 409:
                return False
            raise EngineUnavailable(
                f"the Docker engine does not remove {name}: {error.explanation or error}"
            ) from error
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error
        return True

    def _load(self, image: StoredImage, skip: int) -> None:
        try:
            for line in self._api.load_image(self._library.archive(image, self._loaded_name(image.id), skip)):
                if "error" in line:
                    raise BuildFailed(f"the engine does not load image {image.id[7:19]}: {line['error']}")
        except docker.errors.APIError as error:
            raise BuildFailed(
                f"the engine does not load image {image.id[7:19]}: {error.explanation or error}"
            ) from error
        except EdgeflowError:
            raise
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine went away while it loaded an image: {error}") from error

    def _on_engine(self, id: str) -> str | None:
        """What the engine calls the image; None when it has not got it."""
        return images.find_image(self._client, id) or images.find_image(self._client, self._loaded_name(id))

    def _loaded_name(self, id: str) -> str:
        return f"{self._prefix}/loaded:{id.removeprefix('sha256:')[:_ID_CHARS]}"

    def _shared_layers(self, image: StoredImage) -> int:
        """How many of the image's lowest layers the engine has, in this order."""
        wanted = [layer.diff_id for layer in image.layers]
        best = 0
        for layers in self._layers():
            same = 0
            while same < min(len(wanted), len(layers)) and wanted[same] == layers[same]:
                same += 1
            best = max(best, same)
        return best

    def _layers(self) -> Iterator[list[str]]:
        try:
            for one in self._api.images(all=True):
                try:
                    yield list((self._api.inspect_image(one["Id"]).get("RootFS") or {}).get("Layers") or ())
                except docker.errors.NotFound:
                    continue  # removed just now
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error

    def _want_key(self, id: str) -> str:
        return f"{WANTS}{id.removeprefix('sha256:')}/{self._pop}"

    def _want(self, id: str) -> None:
        system = self._store.namespace(SYSTEM_NAMESPACE)
        if system.head(self._want_key(id)) is None:
            system.put(self._want_key(id), b"{}", content_type="application/json")

    def _forget_want(self, id: str) -> None:
        system = self._store.namespace(SYSTEM_NAMESPACE)
        if system.head(self._want_key(id)) is not None:
            system.delete(self._want_key(id))
