"""One instance's connection: frames in, frames out, what it has claimed.

What it is: the agent's side of the instance protocol (docs/protocol.md) on one unix socket.
What it is not: the batched store calls (`rounds.py`), or starting and stopping instances (the runner).
What must stay true: namespace, function and instance come from the socket, never from a message; whatever an instance sends, only its own
session can suffer.
"""

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from edgeflow.core.routing import FunctionRoute
from edgeflow.core.wire import FrameReader, Message, encode_frame
from edgeflow.errors import EdgeflowError, ProtocolError
from edgeflow.flow.reactor import READ, WRITE, Reactor
from edgeflow.store import Claimed

log = structlog.get_logger(__name__)

PROTOCOL = 1
_READ_BYTES = 256 * 1024
_MAX_QUEUED_BYTES = 128 * 1024 * 1024

InboxKey = tuple[str, str]
"""Namespace and inbox ("function:revision")."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What the runner says about an instance."""

    namespace: str
    function: str
    revision: str
    instance: str
    socket: str

    @property
    def inbox(self) -> InboxKey:
        """The inbox it works on."""
        return (self.namespace, f"{self.function}:{self.revision}")


@dataclass(slots=True)
class Held:
    """One claimed attempt that this instance works on."""

    claimed: Claimed
    by: str
    """The instance in whose name it was claimed."""
    hop: int
    waiting_us: float
    ended: bool = False
    """The instance has sent its commit, which the next round carries out."""


class Session:
    """A connected instance."""

    def __init__(
        self, reactor: Reactor, sock: socket.socket, spec: InstanceSpec, route: FunctionRoute, pop: str,
        on_message: Callable[["Session", Message], None], on_closed: Callable[["Session"], None],
        on_direct: Callable[["Session"], None] | None = None, to_flush: set["Session"] | None = None,
    ) -> None:  # fmt: skip
        sock.setblocking(False)
        self.spec = spec
        self.route = route
        self.held: OrderedDict[str, Held] = OrderedDict()
        """Claimed attempts by invocation, in the order in which the instance works on them."""
        self.claim_max = 0
        """Size of the outstanding claim, 0 when there is none."""
        self.asked = 0
        """Size of the last claim: what is worth claiming ahead."""
        self.ahead = 0
        """How much is claimed ahead in its name."""
        self.mean_us = 0.0
        """Mean time of its handler, 0 while nothing is known."""
        self.committing = 0
        """How many commits it has sent that are not carried out yet."""
        self._reads: list[Callable[[], None]] = []
        self.idle_since_us = 0.0
        self.progress_s = time.monotonic()
        """When the instance last finished something."""
        self.state = "connected"
        self.woken = False
        """Whether work has woken it although the runner wants it parked; until the runner has heard of it."""
        self.closed = False
        self._to_flush = to_flush if to_flush is not None else set()
        self._pop = pop
        self._reactor = reactor
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_direct = on_direct
        self._reader = FrameReader()
        self._greeted = False
        self._out = bytearray()
        self._writing = False
        reactor.register(sock, READ, self._on_socket)

    def send(self, message: Message) -> None:
        """Queue a frame; `flush` writes it. Until then this is in the owner's `to_flush`."""
        if not self.closed:
            self._to_flush.add(self)
            self._out += encode_frame(message)
            if len(self._out) > _MAX_QUEUED_BYTES:
                log.warning("instance_does_not_read", instance=self.spec.instance, queued_bytes=len(self._out))
                self.close()

    @property
    def working_on(self) -> list[Held]:
        """The claimed attempts that it has not ended, in order: the first is the one that runs."""
        return [held for held in self.held.values() if not held.ended]

    def read(self, answer: Callable[[], None]) -> None:
        """Call `answer` once the commits are carried out that were sent before: whoever reads sees what it has written."""
        if self.committing:
            self._reads.append(answer)
        else:
            answer()

    def answer_reads(self) -> None:
        """Answer the reads that waited."""
        reads, self._reads = self._reads, []
        for answer in reads:
            answer()

    def took(self, handler_us: float) -> None:
        """Count a handler's time into the mean."""
        self.mean_us = self.mean_us * 0.8 + handler_us * 0.2 if self.mean_us else handler_us

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        if not self._out or self.closed:
            return
        try:
            sent = self._sock.send(self._out)
            del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # It is gone. What it said before is still to be read, and its end comes behind that.
            self._out.clear()
        writing = bool(self._out)
        if writing != self._writing:
            self._writing = writing
            self._reactor.modify(self._sock, READ | WRITE if writing else READ)

    def kill(self) -> None:
        """Tell the instance to exit at once, and close."""
        self.send({"t": "kill"})
        self.flush()
        self.close()

    def close(self) -> None:
        """Close the socket; what the instance held is given back by the owner."""
        if self.closed:
            return
        self.closed = True
        self._reactor.unregister(self._sock)
        with contextlib.suppress(OSError):
            self._sock.close()
        self._on_closed(self)

    def _on_socket(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        if not events & READ or self.closed:
            return
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for message in self._reader.feed(data):
                if not self.closed:
                    self._dispatch(message)
        except EdgeflowError as error:
            log.warning(
                "instance_protocol_error", instance=self.spec.instance, function=self.spec.function, error=error.message
            )
            self.send({"t": "error", "code": error.code, "error": error.message})
            self.flush()
            self.close()

    def _dispatch(self, message: Message) -> None:
        kind = message.get("t")
        if not self._greeted:
            if kind != "hello" or message.get("protocol") != PROTOCOL:
                raise ProtocolError(
                    f"expected hello of protocol {PROTOCOL}, got {kind!r} of {message.get('protocol')!r}"
                )
            self._greeted = True
            if self.route.direct and self._on_direct is not None:
                self._on_direct(self)  # welcomes it once it has an account at the broker
            else:
                self.welcome()
            return
        self._on_message(self, message)

    def welcome(self, mqtt: dict[str, str] | None = None) -> None:
        """Say who the instance is; `mqtt` is what it connects to the broker with when its input has qos 0."""
        route, spec = self.route, self.spec
        self.send(
            {
                "t": "welcome", "protocol": PROTOCOL, "namespace": spec.namespace, "function": spec.function, "revision": spec.revision,
                "instance": spec.instance, "pop": self._pop, "inputs": _inputs_of(route),
                "join": route.join["kind"] if route.join else None, "publish": list(route.publish), "context": dict(route.context),
                "state": bool(route.keyed and route.keyed["state"]), "timeout_ms": route.retry.timeout_ms, **({"mqtt": mqtt} if mqtt is not None else {}),
            }
        )  # fmt: skip
        self.flush()


def _inputs_of(route: FunctionRoute) -> list[dict[str, Any]]:
    """The parameters of the handler: their names, channels, and whether each is a list and may be absent."""
    described = [
        {
            "name": one.name, "channel": one.channel, "list": route.takes_lists, "optional": route.takes_parts,
            **({"captures": dict(one.captures)} if one.captures else {}),
        }
        for one in route.inputs
    ]  # fmt: skip
    return described + [
        {"name": side.name, "channel": side.channel, "list": False, "optional": True} for side in route.latest
    ]
