"""What every endpoint needs: the settings, the store, the hubs of event streams and of waits.

What it is: one object on `app.state`, made by the composition root (`__main__`) or by a test.
What must stay true: nothing here is global; two apps in one process share nothing.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from edgeflow.api.pressure import Pressure
from edgeflow.api.problems import Busy
from edgeflow.api.tails import TailHub
from edgeflow.api.waits import WaitHub
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.errors import NotFound
from edgeflow.runner.usage import Usage
from edgeflow.settings import PopSettings
from edgeflow.store.client import Store
from edgeflow.store.members import MemberBook
from edgeflow.store.policies import PolicyBook
from edgeflow.store.replica import ReplicatedNamespace
from edgeflow.store.sealed import Sealer, SecretBook

if TYPE_CHECKING:  # it brings the engine's client along, which only a PoP in Docker mode needs
    from edgeflow.runner.engine_images import EngineImages

BUDGET_BYTES = 256 * 1024 * 1024


class BodyBudget:
    """Bytes of all request bodies held at the moment. Used on the event loop only."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count `size_bytes` more. Raises Busy when that is over the budget."""
        if self.held_bytes + size_bytes > self._budget_bytes:
            raise Busy()
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Count `size_bytes` less."""
        self.held_bytes -= size_bytes


@dataclass(slots=True)
class Api:
    """The dependencies of all endpoints of one app."""

    settings: PopSettings
    store: Store
    token: str
    hub: TailHub
    runner_alive: Callable[[], bool]
    """Whether the reconciler thread of this process runs."""
    runner_error: Callable[[], str] = lambda: ""
    """Why the runner cannot do its work just now; empty when it can."""
    usage: Callable[[], Mapping[str, Usage]] = dict
    """What each instance of this PoP uses."""
    budget: BodyBudget = field(default_factory=BodyBudget)
    waits: WaitHub = field(default_factory=WaitHub)
    images: "EngineImages | None" = None
    """The images of this PoP's engine; None when it has none."""
    images_under_way: int = 0
    """How many images are being pushed or loaded."""
    policies: PolicyBook = field(init=False)
    secrets: SecretBook = field(init=False)
    members: MemberBook = field(init=False)
    pressure: Pressure = field(init=False)
    stands: dict[str, Any] = field(default_factory=dict)
    """What `consistency.stand` has found last, by namespace."""
    asking: dict[str, Any] = field(default_factory=dict)
    """Where it is being asked for in the background."""

    def __post_init__(self) -> None:
        self.policies = PolicyBook(self.store)
        self.members = MemberBook(self.store, self.settings.pop, self.settings.link.peers)
        self.pressure = Pressure(self.settings, self.store, self.members, self.hub.subscribers)
        sealer = Sealer.load(self.settings.runner.secrets_key_file, self.settings.cluster)
        self.secrets = SecretBook(lambda: self.namespace_for_write(SYSTEM_NAMESPACE), sealer)

    @property
    def blobs_url(self) -> str:
        """What the URLs of bodies begin with."""
        return self.settings.public.api_url.rstrip("/") + "/v1/blobs"

    def namespace(self, name: str) -> ReplicatedNamespace:
        """The namespace `name` for reading. Raises NotFound when this PoP has none of that name."""
        check_namespace(name)
        if not self.store.has_namespace(name):
            raise NotFound(
                f"there is no namespace {name!r} at PoP {self.settings.pop}",
                hint="A namespace comes into being by its first event, value or manifest; `edgeflow get channels` lists what is there.",
            )
        return self.store.namespace(name)

    def namespace_for_write(self, name: str) -> ReplicatedNamespace:
        """The namespace `name`, made when it is not there: an operator's first use creates it."""
        check_namespace(name)
        self.store.create_namespace(name)
        return self.store.namespace(name)


def now_ms() -> int:
    """Wall clock in ms since the epoch."""
    return time.time_ns() // 1_000_000


def get_api(connection: HTTPConnection) -> Api:
    """The app's dependencies, from any request or WebSocket."""
    return cast(Api, connection.app.state.api)


ApiDep = Annotated[Api, Depends(get_api)]
