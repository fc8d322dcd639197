"""What the control process holds of the runner: the driver of the PoP's mode, the reconciler over it, and the keeper beside it."""

from typing import TYPE_CHECKING, Any, Protocol

from edgeflow.runner.driver import Driver
from edgeflow.runner.keeper import Keeper
from edgeflow.runner.reconciler import Reconciler
from edgeflow.runner.usage import Usage
from edgeflow.settings import PopSettings

if TYPE_CHECKING:  # it brings the engine's client along
    from edgeflow.runner.engine_images import EngineImages


class Runner:
    """The runner of one PoP."""

    def __init__(self, settings: PopSettings, store: Any) -> None:
        # A StorePort to the reconciler, an ImageStorePort to what has to do with images.
        self._driver, self.images = _driver_for(settings, store)
        """`images`: those of this PoP's engine, None without one."""
        self._reconciler = Reconciler(settings, store, self._driver)
        self._keeper = Keeper(settings, store, self.images)

    def start(self) -> None:
        """Start caring."""
        self._reconciler.start()
        self._keeper.start()

    def stop(self) -> None:
        """Stop caring; instances stay."""
        self._keeper.stop()
        self._reconciler.stop()

    def status(self) -> dict[str, Any]:
        """See Reconciler.status."""
        return self._reconciler.status()

    def usage(self) -> dict[str, Usage]:
        """What each instance of this PoP uses now. Raises EngineUnavailable."""
        return self._driver.usage()


class _Measured(Driver, Protocol):
    """A driver that knows what its instances use."""

    def usage(self) -> dict[str, Usage]: ...


def _driver_for(settings: PopSettings, store: Any) -> "tuple[_Measured, EngineImages | None]":
    if settings.mode == "docker":
        from edgeflow.runner.docker import DockerDriver

        driver = DockerDriver(settings, store=store)
        return driver, driver.images
    from edgeflow.runner.process import ProcessDriver

    return ProcessDriver(settings), None
