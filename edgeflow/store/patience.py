"""How long a reader of events waits for a body that was damaged here, or is not here for another reason, before it goes on without it.

What it is: a note of what was found missing, and when first.
What must stay true: what is missing is waited for once, and never for ever; the notes are bounded.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

PATIENCE_S = 10.0
"""A body comes from a peer within a second or two; one that no peer has does not come."""
MOST = 1000


class Patience:
    """Of one reader."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: OrderedDict[object, float] = OrderedDict()

    def waits(self, what: object) -> bool:
        """Whether to try again: the first time that it was missing is not long ago."""
        since = self._since.setdefault(what, self._clock())
        if len(self._since) > MOST:
            self._since.popitem(last=False)
        return self._clock() - since < PATIENCE_S
