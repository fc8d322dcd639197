"""What the control process holds of the runner: the driver of the PoP's mode and the reconciler over it."""

from typing import Any, Protocol

from edgeflow.runner.driver import Driver
from edgeflow.runner.ports import StorePort
from edgeflow.runner.reconciler import Reconciler
from edgeflow.runner.usage import Usage
from edgeflow.settings import PopSettings


class Runner:
    """The runner of one PoP."""

    def __init__(self, settings: PopSettings, store: StorePort) -> None:
        self._driver = _driver_for(settings)
        self._reconciler = Reconciler(settings, store, self._driver)

    def start(self) -> None:
        """Start caring."""
        self._reconciler.start()

    def stop(self) -> None:
        """Stop caring; instances stay."""
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


def _driver_for(settings: PopSettings) -> _Measured:
    if settings.mode == "docker":
        from edgeflow.runner.docker import DockerDriver

        return DockerDriver(settings)
    from edgeflow.runner.process import ProcessDriver

    return ProcessDriver(settings)
