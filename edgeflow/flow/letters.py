"""Dead letters are announced: each is also an event on `<namespace>/_dead/<function>`.

What must stay true: every dead letter is announced once, also when this process ends in between: the event's id is the dead letter's, and the mark
is taken away after the ingest.
"""

import json

import structlog

from edgeflow.core.channels import DEAD_LEVEL
from edgeflow.core.events import make_event
from edgeflow.errors import EdgeflowError
from edgeflow.settings import Limits
from edgeflow.store import Arrival, Refusal
from edgeflow.store.namespace import now_ms
from edgeflow.store.records import DeadLetter
from edgeflow.store.replica import ReplicatedNamespace

log = structlog.get_logger(__name__)

DETAIL_CHARS = 2000


def announce(namespace: ReplicatedNamespace, limits: Limits) -> bool:
    """Announce what was buried since the last call; True when something was."""
    letters = namespace.unannounced_letters()
    for letter in letters:
        try:
            arrival = _arrival(namespace.name, letter, namespace.pop)
            result = namespace.ingest([arrival])[0] if arrival.event.hop <= limits.hops else None
        except EdgeflowError as error:
            if error.retryable:
                return True  # no room now; the mark stays
            result = Refusal(letter.id, error)
        if result is None or isinstance(result, Refusal):
            reason = "too many hops" if result is None else result.error.message
            log.warning("dead_letter_not_announced", namespace=namespace.name, id=letter.id, reason=reason)
        namespace.announced(letter.id)
    return bool(letters)


def _arrival(name: str, letter: DeadLetter, pop: str) -> Arrival:
    inputs = [
        {"name": one.name, "channel": one.event.channel, "id": one.event.id, "subject": one.event.subject}
        for one in letter.inputs[:100]
    ]
    document = {
        "id": letter.id, "function": letter.function, "revision": letter.revision, "reason": letter.reason, "detail": letter.detail[:DETAIL_CHARS],
        "attempts": letter.attempts, "pop": pop, "inputs": inputs,
    }  # fmt: skip
    # A function that fails on dead letters would make dead letters for ever: each is one hop further than what it is about.
    hop = max((one.event.hop for one in letter.inputs), default=0) + 1
    subject = next((one.event.subject for one in letter.inputs if one.event.subject), None)
    event = make_event(
        f"{name}/{DEAD_LEVEL}/{letter.function}", json.dumps(document).encode(), id=letter.id, source=f"/pops/{pop}/dead-letters", now_ms=now_ms(),
        type="edgeflow.dead-letter", subject=subject, datacontenttype="application/json", hop=hop,
    )  # fmt: skip
    return Arrival(event, deduplicate=True)
