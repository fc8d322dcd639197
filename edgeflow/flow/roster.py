"""The connected instances of one PoP, and the inboxes that may have work for them.

What it is: who is connected, by instance and by inbox; which inboxes are worth asking the store for; whose answers are still to be written.
What must stay true: a session is here from its connection to its end, under its own instance and inbox only.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from edgeflow.flow.sessions import InboxKey, Session


class Roster:
    """The sessions of one PoP."""

    def __init__(self) -> None:
        self.maybe_work: set[InboxKey] = set()
        self.to_flush: set[Session] = set()
        self._by_instance: dict[str, Session] = {}
        self._by_inbox: dict[InboxKey, list[Session]] = defaultdict(list)

    def add(self, session: Session) -> None:
        """It has connected."""
        self._by_instance[session.spec.instance] = session
        self._by_inbox[session.spec.inbox].append(session)

    def remove(self, session: Session) -> bool:
        """It has ended; whether it was the last one of its inbox. The instance may have another one by now."""
        if self._by_instance.get(session.spec.instance) is session:
            del self._by_instance[session.spec.instance]
        siblings = self._by_inbox[session.spec.inbox]
        siblings.remove(session)
        if not siblings:
            del self._by_inbox[session.spec.inbox]
        return not siblings

    def get(self, instance: str) -> Session | None:
        """The session of an instance."""
        return self._by_instance.get(instance)

    def all(self) -> list[Session]:
        """All of them."""
        return list(self._by_instance.values())

    def of(self, inbox: InboxKey) -> Sequence[Session]:
        """Those that work on an inbox."""
        return self._by_inbox.get(inbox, ())

    def wake(self, namespace: str, inboxes: Iterable[str] | None = None) -> None:
        """These inboxes of a namespace got work; None: any of them may have."""
        if inboxes is None:
            self.maybe_work.update(
                session.spec.inbox for session in self._by_instance.values() if session.spec.namespace == namespace
            )
        else:
            self.maybe_work.update((namespace, inbox) for inbox in inboxes)

    def flush(self) -> None:
        """Write the answers."""
        sessions = list(self.to_flush)
        self.to_flush.clear()
        for session in sessions:
            session.flush()
