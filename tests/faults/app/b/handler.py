"""The second step: feeds both c and the join."""

import time

from edgeflow import function


@function
def handle(ctx, a):
    time.sleep(0.003)
    return a.json()
