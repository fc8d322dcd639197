"""The first step: passes every input on. Takes a moment, so that a fault finds work under way."""

import time
from typing import Any

from edgeflow import function


@function
def handle(ctx: Any, start: Any) -> Any:
    time.sleep(0.002)
    return start.json()
