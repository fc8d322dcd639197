"""What the control process holds of the runner: the driver of the PoP's mode and the reconciler over it."""

from typing import Any

from edgeflow.runner.driver import Driver
from edgeflow.runner.ports import StorePort
from edgeflow.runner.reconciler import Reconciler
from edgeflow.settings import PopSettings


class Runner:
    """The runner of one PoP."""

    def __init__(self, settings: PopSettings, store: StorePort) -> None:
        self._reconciler = Reconciler(settings, store, _driver_for(settings))

    def start(self) -> None:
        """Start caring."""
        self._reconciler.start()

    def stop(self) -> None:
        """Stop caring; instances stay."""
        self._reconciler.stop()

    def status(self) -> dict[str, Any]:
        """See Reconciler.status."""
        return self._reconciler.status()


def _driver_for(settings: PopSettings) -> Driver:
    if settings.mode == "docker":
        from edgeflow.runner.docker import DockerDriver

        return DockerDriver(settings)
    from edgeflow.runner.process import ProcessDriver

    return ProcessDriver(settings)
