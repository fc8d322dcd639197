from edgeflow import function


@function
def handle(ctx, left, right):  # one of them is None
    return f"{ctx.key} on the {'right' if left is None else 'left'}"
