from edgeflow import function


@function
def handle(ctx, readings):
    return readings.json()["room"]
