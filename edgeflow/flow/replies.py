"""Replies to MQTT clients that invoked a function by name: its outputs on their response topic.

What it is: who waits for which invocation, and the messages that end the wait.
What it is not: durable. The invocation is; who repeats the request with the same id after a restart of this process gets the same outcome.
What must stay true: each request gets one reply: as many messages as there are outputs (one empty message for none, one error for none to come).

MQTT 5.0, section 4.10 (request/response).
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

from edgeflow.core.mqttprops import encode_properties
from edgeflow.errors import EdgeflowError
from edgeflow.flow.outgoing import BlobUrl, outgoing
from edgeflow.settings import Limits
from edgeflow.store import Result
from edgeflow.store.replica import ReplicatedNamespace

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000
LONGEST_WAIT_S = 600.0

Publish = Callable[[str, bytes, bytes], object]
"""(topic, payload, encoded properties)."""


class Replies:
    """The requests of one namespace that have no reply yet."""

    def __init__(self, namespace: ReplicatedNamespace, limits: Limits, blob_url: BlobUrl) -> None:
        self._namespace = namespace
        self._limits = limits
        self._blob_url = blob_url
        self._waiting: OrderedDict[tuple[str, str, bytes | None], float] = OrderedDict()

    def ask(self, invocation: str, topic: str, correlation: bytes | None) -> None:
        """Somebody waits for the outcome of an invocation on `topic`."""
        self._waiting[invocation, topic, correlation] = time.monotonic()
        if len(self._waiting) > MAX_WAITING:
            (dropped, _, _), _ = self._waiting.popitem(last=False)
            log.warning("reply_given_up", namespace=self._namespace.name, invocation=dropped, waiting=MAX_WAITING)

    def pump(self, publish: Publish) -> None:
        """Reply to those whose invocation has ended. Called when something was released, and once a second."""
        if not self._waiting:
            return
        late = time.monotonic() - LONGEST_WAIT_S
        for request, since in list(self._waiting.items()):
            invocation, topic, correlation = request
            try:
                result = self._namespace.result(invocation)
                if result is None:
                    if since < late:
                        del self._waiting[request]
                    continue
                del self._waiting[request]
                self._reply(result, topic, correlation, publish)
            except EdgeflowError as error:
                self._waiting.pop(request, None)
                self._refuse(error.code, error.message, topic, correlation, publish)

    def _reply(self, result: Result, topic: str, correlation: bytes | None, publish: Publish) -> None:
        if result.status != "committed":
            self._refuse("invocation-dead", result.reason or result.status, topic, correlation, publish)
            return
        more = {"outputs": str(len(result.events))}
        for event in result.events:
            publish(
                topic,
                *outgoing(event, self._namespace, self._limits, self._blob_url, correlation=correlation, more=more),
            )
        if not result.events:
            publish(topic, b"", encode_properties(list(more.items()), correlation=correlation))

    @staticmethod
    def _refuse(code: str, detail: str, topic: str, correlation: bytes | None, publish: Publish) -> None:
        document = {"class": "failed", "code": code, "detail": detail}
        properties = encode_properties(
            [("error", code)], content_type="application/problem+json", correlation=correlation
        )
        publish(topic, json.dumps(document).encode(), properties)
