"""A step that takes a moment, so that there is work under way when a PoP goes."""

import time

from edgeflow import function


@function
def handle(ctx, start):
    time.sleep(0.02)
    return start.json()
