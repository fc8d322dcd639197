"""The first step. Slow enough that invocations are claimed one by one, so that their leases are short; fails the first attempt of what says so."""

import time

from edgeflow import function


@function
def handle(ctx, start):
    work = start.json()
    time.sleep(0.003)
    if work["flaky"] and ctx.attempt == 1:
        raise RuntimeError("the first attempt fails")
    return work
