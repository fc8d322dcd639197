"""The keeper: removes what no kept revision is made from, and gives other PoPs the images that only this PoP's engine has.

What it is: a thread of the control process beside the reconciler, since saving an image or removing a large folder takes its time. It looks for wanted
images every few seconds, and for what is unused once an hour.
What it is not: the retention of data (the store tidies itself), or what an operator removes (`edgeflow images rm`).
What must stay true: nothing that a manifest, a kept revision or an instance refers to is removed; what is unused stays for a grace first; a reference
that cannot be read stops the clean-up, never the reverse.

What goes, and after how long: docs/operations.md.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import EdgeflowError, VersionMismatch
from edgeflow.runner.library import IMAGES, PIECES, ImageLibrary
from edgeflow.runner.references import References, references
from edgeflow.runner.venvs import Venvs
from edgeflow.settings import PopSettings
from edgeflow.store.members import MemberBook

log = structlog.get_logger()

LOOK_S = 3.0
CLEAN_S = 3600.0
"""How often unused things are looked for; the first time this long after the start of the control process, so that manifests have arrived."""
TURN_MS = 20_000
"""How long the PoPs before this one (by name) have to give an image that is wanted."""
WANT_MS = 24 * 3_600_000
"""A wish for an image that is older is forgotten: the PoP that has it asks again."""
WANTS = "image-wants/"
BUNDLES = "bundles/"


class Keeper:
    """One per PoP."""

    def __init__(
        self,
        settings: PopSettings,
        store: Any,
        engine: Any = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`engine`: the EngineImages of this PoP, None without one."""
        self._settings = settings
        self._store = store
        self._engine = engine
        self._clock_ms = clock_ms
        self._library = ImageLibrary(store, settings.pop, settings.limits.image_bytes)
        self._members = MemberBook(store, settings.pop, settings.link.peers)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; a step that is under way is left to end by itself."""
        self._stop.set()

    def _loop(self) -> None:
        clean_s = time.monotonic() + min(CLEAN_S, self._grace_ms / 1000)
        while not self._stop.wait(LOOK_S):
            try:
                self.give_wanted()
                if time.monotonic() >= clean_s:
                    clean_s = time.monotonic() + min(CLEAN_S, self._grace_ms / 1000)
                    self.clean()
            except EdgeflowError as error:
                log.warning("keeper_round_failed", reason=error.message)
            except Exception:
                log.exception("keeper_round_failed")

    # -- images that other PoPs need -----------------------------------------------------------------------------------

    def give_wanted(self) -> int:
        """Put what other PoPs want, and this PoP's engine has, into the library; how many images."""
        given = 0
        for key in list(self._library.keys(WANTS)):
            id, _, pop = key.removeprefix(WANTS).partition("/")
            if pop == self._settings.pop or self._engine is None or not self._is_my_turn(key):
                continue  # its own is ended when the image is there (engine_images.py)
            if self._library.get(id) is None and self._engine.give(f"sha256:{id}") is not None:
                given += 1
                log.info("image_given", image=id, pop=pop)
        return given

    def _is_my_turn(self, key: str) -> bool:
        """One PoP after the other, so that an image which several engines have is stored once."""
        info = self._store.namespace(SYSTEM_NAMESPACE).head(key)
        rank = sorted(self._members.fresh().pops()).index(self._settings.pop)
        return info is not None and written_ms(info.version) + rank * TURN_MS <= self._clock_ms()

    # -- what is unused ------------------------------------------------------------------------------------------------

    @property
    def _grace_ms(self) -> int:
        return int(self._settings.runner.unused_hours * 3_600_000)

    def clean(self) -> dict[str, int]:
        """Remove what has been unused for the grace; how much of each kind. Counted in the document `kept`."""
        used = references(self._store)
        removed = {
            "images": self._clean_images(used),
            "pieces": self._clean_pieces(),
            "wants": self._clean_values(WANTS, lambda _key: False, WANT_MS),
            "bundles": self._clean_values(
                BUNDLES, lambda key: key.removeprefix(BUNDLES) in used.bundles, self._grace_ms
            ),
            "folders": self._clean_folders(used),
            "engine": self._clean_engine(used),
            "venvs": self._clean_venvs(),
        }
        if any(removed.values()):
            log.info("unused_removed", **removed)
        before = self._store.local.get_doc("kept", "removed") or {}
        total = {kind: int(before.get(kind) or 0) + count for kind, count in removed.items()}
        self._store.local.put_doc("kept", "removed", {**total, "at_ms": self._clock_ms()})
        return removed

    def _clean_images(self, used: References) -> int:
        """Images that nothing refers to, by id or by a name that means them."""
        removed = 0
        newest: dict[str, str] = {}
        images = self._library.all()
        for image in images:
            for name in image.names:
                newest.setdefault(name, image.id)
        for image in images:
            names = [name for name in image.names if newest[name] == image.id]
            is_used = any(key in used.images for key in (image.id, *names)) or any(
                name.endswith("@" + image.id) for name in used.images
            )
            if not is_used and image.pushed_ms < self._clock_ms() - self._grace_ms:
                removed += self._delete(IMAGES + image.id.removeprefix("sha256:"))
        return removed

    def _clean_pieces(self) -> int:
        """Pieces that belong to no image. An image that cannot be read stops this: its pieces are not known."""
        kept: set[str] = set()
        for key in self._library.keys(IMAGES):
            image = self._library.get(key.removeprefix(IMAGES))
            if image is None:
                return 0
            kept |= {piece.digest.removeprefix("sha256:") for piece in image.pieces()}
        return self._clean_values(PIECES, lambda key: key.removeprefix(PIECES) in kept, self._grace_ms)

    def _clean_values(self, prefix: str, is_used: Callable[[str], bool], grace_ms: int) -> int:
        removed = 0
        system = self._store.namespace(SYSTEM_NAMESPACE)
        for key in list(self._library.keys(prefix)):
            info = None if is_used(key) else system.head(key)
            if info is not None and written_ms(info.version) < self._clock_ms() - grace_ms:
                removed += self._delete(key, info.version)
        return removed

    def _delete(self, key: str, version: str | None = None) -> int:
        try:
            self._store.namespace(SYSTEM_NAMESPACE).delete(key, if_version=version)
        except VersionMismatch:
            return 0  # written again meanwhile: it is used
        except EdgeflowError as error:
            if error.code == "not-found":
                return 0  # another PoP was faster
            raise
        return 1

    def _clean_folders(self, used: References) -> int:
        """Unpacked bundles of this PoP."""
        names = {digest[:24] for digest in used.bundles}
        return self._clean_old(self._settings.state_dir / "bundles", lambda path: path.name in names)

    def _clean_old(self, folder: Path, is_used: Callable[[Path], bool]) -> int:
        removed = 0
        before_s = (self._clock_ms() - self._grace_ms) / 1000
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_used(path):
                path.touch()  # the grace begins when it is not used any more
            elif path.stat().st_mtime < before_s:
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
        return removed

    def _clean_engine(self, used: References) -> int:
        """What was loaded into the engine here, or built from bundles. The engine itself keeps what a container is made from."""
        if self._engine is None:
            return 0
        removed = 0
        notes: dict[str, dict[str, Any]] = self._store.local.docs("unused_image")
        for one in self._engine.ours(self._settings.cluster):
            stored = self._library.get(one.id)
            keys = (one.id, one.name, *(stored.names if stored is not None else ()))
            if one.bundle in used.bundles or any(key in used.images for key in keys):
                self._store.local.delete_doc("unused_image", one.name)
                continue
            since_ms = int(notes.get(one.name, {}).get("since_ms") or self._clock_ms())
            if since_ms < self._clock_ms() - self._grace_ms and self._engine.unload(one.name):
                self._store.local.delete_doc("unused_image", one.name)
                removed += 1
            else:
                self._store.local.put_doc("unused_image", one.name, {"since_ms": since_ms})
        return removed

    def _clean_venvs(self) -> int:
        """Environments that no PoP of this machine has used for the grace: each touches those of its folders."""
        # Which environments the folders use that `edgeflow dev` runs from is not to be seen among the bundles.
        if self._settings.mode != "embedded" or self._settings.runner.dev_dir is not None:
            return 0
        venvs = Venvs.of(self._settings)
        folder = self._settings.state_dir / "bundles"
        for path in folder.iterdir() if folder.is_dir() else ():
            requirements = path / "requirements.txt"
            venvs.touch(requirements.read_bytes() if requirements.is_file() else b"")
        return venvs.remove_unused((self._clock_ms() - self._grace_ms) / 1000)


def written_ms(version: str) -> int:
    """When a value of that version was written, by the clock of its PoP (ms since 1970)."""
    return int(version.partition(".")[0])
